"""The simulated world keeps what it promises."""

import polars as pl
import pytest

from ranklet.errors import DataError
from ranklet_training.data.simulator import Simulation, simulate


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    return simulate(users=1500, items=300, seed=1)


def test_equal_seeds_give_equal_worlds() -> None:
    first, second = simulate(users=50, items=60, seed=3), simulate(users=50, items=60, seed=3)
    assert first.events.equals(second.events)
    assert first.items.equals(second.items)
    assert first.oracle.equals(second.oracle)
    assert first.best_hit_rate == second.best_hit_rate
    assert not simulate(users=50, items=60, seed=4).events.equals(first.events)


def test_events_are_in_order_of_time_without_ties_or_repeated_items(simulation: Simulation) -> None:
    events = simulation.events
    assert events["timestamp"].is_sorted()
    for column in ("timestamp", "item_id"):
        assert events.select("user_id", column).n_unique() == len(events)
    user = events["user_id"]  # users are interleaved
    assert (user != user.shift(1)).mean() == pytest.approx(1, abs=0.05)


def test_every_user_has_the_shortest_length_or_more(simulation: Simulation) -> None:
    lengths = simulation.events.group_by("user_id").len()["len"]
    assert len(lengths) == 1500
    assert lengths.min() == 5
    # Standard deviation of the geometric lengths is about 25: 4 standard errors of the mean.
    assert float(lengths.to_numpy().mean()) == pytest.approx(30, abs=4 * 25 / 1500**0.5)


def test_late_items_have_no_event_in_the_first_four_fifths_of_the_time() -> None:
    events = simulate(users=400, items=100, late_items=0.2, seed=2).events
    late = events.filter(pl.col("item_id") > "i080")["timestamp"].to_numpy()
    first, last = events["timestamp"][0], events["timestamp"][-1]
    assert len(late) > 100
    assert late.min() > first + 0.79 * (last - first)


def test_the_oracle_hits_as_often_as_best_hit_rate_says(simulation: Simulation) -> None:
    last = simulation.events.group_by("user_id").last().join(simulation.oracle, on="user_id")
    hits = last.select(pl.col("item_id").is_in(pl.col("item_ids"))).to_series().to_numpy()
    four_errors = 4 * (0.25 / len(hits)) ** 0.5
    assert float(hits.mean()) == pytest.approx(simulation.best_hit_rate, abs=four_errors)


def test_the_oracle_never_names_a_seen_item(simulation: Simulation) -> None:
    is_last = pl.int_range(pl.len()).over("user_id") == pl.len().over("user_id") - 1
    seen = simulation.events.filter(~is_last).select("user_id", "item_id")
    named = simulation.oracle.explode("item_ids").rename({"item_ids": "item_id"})
    assert named.join(seen, on=["user_id", "item_id"]).is_empty()


def test_ten_candidates_or_fewer_are_always_hit() -> None:
    # 14 items, at least 4 of them seen before the last event.
    simulation = simulate(users=40, items=14, clusters=2, late_items=0, mean_length=6)
    assert simulation.best_hit_rate == pytest.approx(1, abs=1e-12)


def test_popularity_is_far_below_the_best(simulation: Simulation) -> None:
    last = simulation.events.group_by("user_id").last()
    popular = simulation.events["item_id"].value_counts(sort=True)["item_id"][:10].to_list()
    hit_rate = float(last["item_id"].is_in(popular).to_numpy().mean())
    assert hit_rate < 0.5 * simulation.best_hit_rate < 0.5


def test_items_have_features_that_tell_of_the_next_item(simulation: Simulation) -> None:
    events = simulation.events.join(simulation.items, on="item_id", maintain_order="left")
    same = events.select(pl.col("maker") == pl.col("maker").shift(1).over("user_id"))
    by_chance = (simulation.items["maker"].value_counts()["count"] / 300).pow(2).sum()
    assert float(same.to_series().drop_nulls().to_numpy().mean()) > 3 * float(by_chance)
    schema = {"item_id": pl.String, "title": pl.String, "genres": pl.List(pl.String)}
    assert simulation.items.schema == schema | {"maker": pl.String}
    assert simulation.items["item_id"].n_unique() == 300


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"users": 0}, "0 users"),
        ({"items": 9}, "9 items"),
        ({"items": 20, "clusters": 21}, "21 clusters"),
        ({"late_items": 0.6}, "late_items=0.6"),
        ({"mean_length": 1}, "mean_length=1"),
    ],
)
def test_an_impossible_world_is_refused(arguments: dict[str, int], words: str) -> None:
    with pytest.raises(DataError, match=words):
        simulate(**arguments)
