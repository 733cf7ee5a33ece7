"""A run, a bundle and the baselines are asked the same questions, and judged alike."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from ranklet import Ranker
from ranklet.bundle.vocabulary import Vocabulary
from ranklet.errors import RunError
from ranklet_training.data.events import Events
from ranklet_training.data.sequences import Sequences
from ranklet_training.data.simulator import Simulation
from ranklet_training.data.split import Cases, Split, split_events
from ranklet_training.judge.compare import compare_models
from ranklet_training.judge.evaluate import (
    again_scorer,
    evaluate,
    markov_scorer,
    plot_evaluation,
    popularity_scorer,
    rank_targets,
)
from ranklet_training.judge.metrics import MISS, all_metrics
from ranklet_training.judge.subjects import Scorer, find_items, model_scorer
from ranklet_training.runs.checkpoint import Run

FOUR_DIGITS = 5e-5  # what run and bundle agree to


def sequences_of(*histories: Sequence[int]) -> Sequences:
    items = np.array([item for history in histories for item in history], np.int64)
    return Sequences(items, np.cumsum([0, *map(len, histories)]))


def cases_of(*pairs: tuple[Sequence[int], int]) -> Cases:
    """Return questions from (history, target)."""
    return Cases(sequences_of(*(h for h, _ in pairs)), np.array([t for _, t in pairs]))


def constant(*scores: float) -> Scorer:
    """Score items 1, 2, ... alike whatever the history."""
    row = np.array([0.0, *scores], np.float32)
    return lambda cases: np.tile(row, (len(cases), 1))


def asking(*histories: Sequence[int]) -> Cases:
    return cases_of(*((history, 1) for history in histories))


# Baselines.


def test_popularity_counts_training_events() -> None:
    scores = popularity_scorer(sequences_of([1, 2, 2], [2, 4]), 5)(asking([3], [1]))
    assert scores[:, 1:].tolist() == [[1, 3, 0, 1, 0]] * 2


def test_markov_counts_what_followed_the_last_item_and_breaks_ties_by_popularity() -> None:
    # After 1 came 2 twice and 3 once; the 1 that ends a history is followed by nobody.
    scorer = markov_scorer(sequences_of([1, 2, 1, 3], [1, 2], [4, 1]), 4)
    scores = scorer(asking([4, 1]))[0]
    assert np.floor(scores[1:]).tolist() == [0, 2, 1, 0]
    # Nothing followed item 5, nor an unknown one: 1 four times, 2 twice, 3 once.
    scorer = markov_scorer(sequences_of([1, 1, 1, 2], [3, 2, 1], [4, 5]), 5)
    for history in ([5], [1, 0]):
        assert (-scorer(asking(history))[0][1:4]).argsort().tolist() == [0, 1, 2]
    # Popularity never outweighs one transition.
    assert markov_scorer(sequences_of([1] * 500, [2, 3]), 3)(asking([2]))[0].argmax() == 3


def test_again_scores_the_events_of_the_user_by_age_and_number() -> None:
    training = sequences_of([1, 2, 2], [2, 4])
    scores = again_scorer(training, 5)(asking([3, 1, 3], [5], [0, 2, 0]))
    for row, history in zip(scores, ([3, 1, 3], [5], [0, 2, 0]), strict=True):
        for item in range(1, 6):
            ages = [len(history) - place for place, seen in enumerate(history) if seen == item]
            if ages:
                assert row[item] == pytest.approx(sum(1 / age**0.5 for age in ages))
            else:
                assert row[item] < 0
    # The others by popularity: 2 three times, 1 and 4 once, 3 never.
    assert scores[1][2] > scores[1][1] == scores[1][4] > scores[1][3]


def test_again_is_popularity_where_seen_items_are_masked(split: Split) -> None:
    rows = {row["model"]: row for row in evaluate({}, split)["rows"]}
    again, popularity = rows["again, then popularity"], rows["popularity"]
    assert again["masked"] == popularity["masked"]
    assert again["unmasked"] != popularity["unmasked"]


# Ranks.


def test_ranks_are_in_the_order_of_the_questions() -> None:
    # Histories of different length, so that batches sort them.
    cases = cases_of(([1, 2, 3], 4), ([1], 2), ([1, 2], 3))
    assert rank_targets(constant(4, 3, 2, 1), cases, mask_seen=False).ranks.tolist() == [4, 2, 3]
    unknown = cases_of(([1], 0), ([0], 0))  # a target that the catalogue lacks is a miss
    ranks = rank_targets(constant(*range(30)), unknown, mask_seen=True).ranks
    assert set(all_metrics(ranks).values()) == {0.0}


@pytest.mark.parametrize(
    ("history", "target", "masked", "unmasked"),
    [
        ([1, 2], 4, 2, 4),
        ([1, 2, 3], 2, MISS, 2),  # a repeated target is masked
        ([0, 1], 3, 2, 3),  # an unknown item masks nothing
    ],
)
def test_seen_items_do_not_stand_above_the_target(
    history: list[int], target: int, masked: int, unmasked: int
) -> None:
    cases, scorer = cases_of((history, target)), constant(4, 3, 2, 1)
    assert rank_targets(scorer, cases, mask_seen=True).ranks.tolist() == [masked]
    assert rank_targets(scorer, cases, mask_seen=False).ranks.tolist() == [unmasked]


def test_the_whole_history_is_masked_not_only_what_the_model_reads(
    tiny_run: Run, split: Split
) -> None:
    model = tiny_run.load_model()
    long = np.arange(1, 41)  # twice the maximum length; 60 items in all
    cases = cases_of((long.tolist(), 50))
    assert (
        rank_targets(model_scorer(model, split.training.counts(60)), cases, mask_seen=True).ranks[0]
        <= 20
    )


def oracle_scorer(world: Simulation, split: Split, cases: Cases) -> Scorer:
    """Score the ten likeliest items of each user by their place; found again by the history."""
    frame = world.events.sort("user_id", "timestamp", maintain_order=True)
    by_user = frame.group_by("user_id", maintain_order=True).agg("item_id")
    best = dict(world.oracle.iter_rows())
    answers: dict[tuple[int, ...], NDArray[np.int64]] = {}
    for user, items in by_user.iter_rows():
        history = split.vocabulary.index(items[:-1])
        known = [item for item in best[user] if item in split.vocabulary.all_ids]
        answers[tuple(history)] = split.vocabulary.index(known)

    def score(cases: Cases) -> NDArray[np.float32]:
        scores = np.zeros((len(cases), len(split.vocabulary) + 1), np.float32)
        for row, history in zip(scores, cases.histories, strict=True):
            best = answers[tuple(history)]
            row[best] = np.arange(len(best), 0, -1)
        return scores

    return score


def test_the_oracle_of_the_world_hits_as_often_as_the_world_says(
    world: Simulation, split: Split
) -> None:
    scorer = oracle_scorer(world, split, split.test)
    rate = all_metrics(rank_targets(scorer, split.test, mask_seen=True).ranks)["HR@10"]
    four_errors = 4 * (0.25 / len(split.test)) ** 0.5
    assert rate == pytest.approx(world.best_hit_rate, abs=four_errors)


def test_no_model_beats_the_oracle_by_more_than_noise(
    world: Simulation, split: Split, tiny_run: Run
) -> None:
    four_errors = 4 * (0.25 / len(split.test)) ** 0.5
    for row in evaluate({"run": tiny_run.load_model()}, split)["rows"]:
        assert row["masked"]["HR@10"] < world.best_hit_rate + four_errors, row["model"]


# Run and bundle.


@pytest.fixture(scope="module")
def time_split(events: Events) -> Split:
    """A split whose questions name items that its training lacks."""
    return split_events(events.frame, "time")


def with_unknown_items(split: Split) -> Split:
    """Forget what every seventh question is about, and parts of histories, one of them whole."""
    random = np.random.default_rng(0)
    items, targets = split.test.histories.items.copy(), split.test.targets.copy()
    items[random.random(len(items)) < 0.2] = 0
    items[: split.test.histories.offsets[1]] = 0
    targets[::7] = 0
    histories = Sequences(items, split.test.histories.offsets)
    return Split(
        split.kind, split.vocabulary, split.training, split.validation, Cases(histories, targets)
    )


@pytest.mark.parametrize("are_unknown", [False, True], ids=["known", "unknown"])
def test_run_and_bundle_agree_in_every_metric(
    are_unknown: bool, tiny_run: Run, tiny_ranker: Ranker, split: Split
) -> None:
    asked = with_unknown_items(split) if are_unknown else split
    table = evaluate({"run": tiny_run.load_model(), "bundle": tiny_ranker}, asked)
    run, bundle = table["rows"][:2]
    for part in ("masked", "unmasked"):
        assert bundle[part] == pytest.approx(run[part], abs=FOUR_DIGITS)
    for part in ("coverage", "popularity"):
        assert run[part] == pytest.approx(bundle[part], rel=1e-3)
    scorer = model_scorer(tiny_run.load_model(), asked.training.counts(60))
    ranks = rank_targets(scorer, asked.test, mask_seen=True).ranks
    of_bundle = rank_targets(tiny_ranker, asked.test, mask_seen=True).ranks
    np.testing.assert_array_equal(np.minimum(ranks, 21), np.minimum(of_bundle, 21))


def test_a_cold_history_is_answered_by_popularity(
    tiny_run: Run, tiny_ranker: Ranker, split: Split
) -> None:
    cases = cases_of(([0, 0], 5), ([0], 17))
    scorer = model_scorer(tiny_run.load_model(), split.training.counts(60))
    run = rank_targets(scorer, cases, mask_seen=True).ranks
    counts = split.training.counts(60)[1:]
    expected = [int((counts >= counts[item - 1]).sum()) for item in (5, 17)]
    assert run.tolist() == expected
    bundle = rank_targets(tiny_ranker, cases, mask_seen=True).ranks
    assert np.minimum(bundle, 21).tolist() == np.minimum(expected, 21).tolist()


# The table.


def test_the_table_names_protocol_users_and_baselines(tiny_run: Run, split: Split) -> None:
    table = evaluate({"mine": tiny_run.load_model()}, split)
    ties = "pessimistic ties (as shown, where served)"
    assert table["protocol"] == f"leave-one-out, test, full ranking of 60 items, {ties}"
    assert table["users"] == 150
    baselines = ["last-item Markov", "again, then popularity", "popularity"]
    assert [row["model"] for row in table["rows"]] == ["mine", *baselines]
    assert evaluate({}, split, on="validation")["protocol"].startswith("leave-one-out, validation,")


def test_slices_hold_the_users_of_their_length_and_of_cold_targets(split: Split) -> None:
    table = evaluate({}, split)
    lengths = split.test.histories.lengths
    counts = split.training.counts(60)
    expected = {"cold targets": int((counts[split.test.targets] == 0).sum())}
    assert table["cold_targets"] == expected["cold targets"]
    for low, high in ((1, 4), (5, 9), (10, 19), (20, 49), (50, 99), (100, 199)):
        expected[f"{low}-{high} events"] = int(((lengths >= low) & (lengths <= high)).sum())
    assert table["slices"] == {name: users for name, users in expected.items() if users}
    by_length = {name: users for name, users in table["slices"].items() if "events" in name}
    for row in table["rows"]:
        mean = sum(row["slices"][name]["NDCG@10"] * users for name, users in by_length.items())
        assert mean / table["users"] == pytest.approx(row["masked"]["NDCG@10"], abs=1e-12)


def test_popularity_recommends_what_is_popular_and_little_else(split: Split) -> None:
    rows = {row["model"]: row for row in evaluate({}, split)["rows"]}
    counts = np.sort(split.training.counts(60)[1:])[::-1]
    assert rows["popularity"]["popularity"] <= counts[:10].mean()
    assert rows["popularity"]["popularity"] > rows["last-item Markov"]["popularity"]
    assert 10 / 60 <= rows["popularity"]["coverage"] <= rows["last-item Markov"]["coverage"] <= 1


def test_mean_ties_tell_a_collapsed_model() -> None:
    cases = cases_of(([1], 2), ([2], 3))
    answers = rank_targets(constant(*[1.0] * 19), cases, mask_seen=False)
    assert answers.ranks.tolist() == [19, 19]
    assert answers.mean_ranks.tolist() == [10, 10]


def test_the_top_holds_the_best_items_and_never_a_masked_one() -> None:
    cases, scores = cases_of(([1, 2], 4), ([3], 1)), np.array([[0, 4, 3, 2, 1]] * 2, np.float32)
    found = rank_targets(lambda _: scores, cases, mask_seen=True, top=4).top
    assert found.tolist() == [[3, 4, 0, 0], [1, 2, 4, 0]]
    assert scores.tolist() == [[0, 4, 3, 2, 1]] * 2  # unchanged


def test_a_plot_of_the_table_is_a_whole_picture(split: Split, tmp_path: Path) -> None:
    plot_evaluation(evaluate({}, split), tmp_path / "slices.png")
    assert (tmp_path / "slices.png").read_bytes().endswith(b"IEND\xaeB`\x82")


def test_small_batches_give_the_same_ranks(monkeypatch: pytest.MonkeyPatch, split: Split) -> None:
    scorer = markov_scorer(split.training, 60)
    expected = rank_targets(scorer, split.test, mask_seen=True).ranks
    monkeypatch.setattr("ranklet_training.judge.evaluate.LARGEST_BATCH", 130)  # two questions of 60
    found = rank_targets(scorer, split.test, mask_seen=True, items=60).ranks
    assert found.tolist() == expected.tolist()


# Other logs and catalogues.


def test_a_model_that_knows_no_item_of_the_log_is_refused(
    events: Events, tiny_ranker: Ranker
) -> None:
    renamed = events.frame.with_columns(pl.col("item_id").str.replace("^", "new-"))
    other = split_events(renamed)
    first = other.vocabulary.all_ids[0]
    message = f"bundle knows no item of these events: .* events have ids like {first!r}"
    with pytest.raises(RunError, match=message):
        evaluate({"bundle": tiny_ranker}, other)
    with pytest.raises(RunError, match=message):
        compare_models(tiny_ranker, tiny_ranker, other, names=("bundle", "again"))


def test_a_bare_model_of_another_catalogue_is_refused(tiny_run: Run, time_split: Split) -> None:
    items = len(time_split.vocabulary)
    assert items < 60
    with pytest.raises(RunError, match=f"mine has 60 items and the split {items}: pass its run"):
        evaluate({"mine": tiny_run.load_model()}, time_split)


def test_ids_are_looked_up_by_their_text() -> None:
    numbers = Vocabulary(np.array([-7, 3, 12, 2**62]))
    texts = Vocabulary(["-7", "007", "12", "12.0", "3", "4", "99999999999999999999", "x"])
    assert find_items(texts, numbers).tolist() == [0, 1, 0, 3, 0, 2, 0, 0, 0]
    assert find_items(numbers, texts).tolist() == [0, 1, 5, 3, 0]
    assert find_items(numbers, numbers).tolist() == [0, 1, 2, 3, 4]
    assert find_items(texts, Vocabulary(["12", "x"])).tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 2]


@pytest.mark.parametrize("kind", ["run", "bundle"])
def test_a_target_that_the_catalogue_lacks_is_a_miss_and_counted(
    kind: str, tiny_run: Run, tiny_ranker: Ranker, events: Events, split: Split
) -> None:
    model = {"run": tiny_run, "bundle": tiny_ranker}[kind]
    whole = evaluate({"mine": model}, split)
    assert whole["unknown"] == {"mine": {"targets": 0, "history_events": 0}}
    # The answers of every third user are new items, which nothing else of the log has.
    last = pl.int_range(pl.len()).over("user_id") == pl.len().over("user_id") - 1
    third = pl.col("user_id").rle_id() % 3 == 0
    new = pl.when(last & third).then("new-" + pl.col("item_id")).otherwise("item_id")
    changed = split_events(events.frame.with_columns(item_id=new))
    table = evaluate({"mine": model}, changed)
    lost = np.arange(150) % 3 == 0
    assert table["unknown"] == {"mine": {"targets": lost.sum(), "history_events": 0}}
    assert table["users"] == 150
    ranks = rank_targets(
        model_scorer(tiny_run.load_model(), split.training.counts(60)), split.test, mask_seen=True
    ).ranks
    ranks[lost] = MISS
    assert table["rows"][0]["masked"] == pytest.approx(all_metrics(ranks), abs=FOUR_DIGITS)
