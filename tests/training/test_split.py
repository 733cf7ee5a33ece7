"""What a model learns from and what it is asked are kept apart, as each protocol promises."""

from collections import Counter
from typing import Any

import polars as pl
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ranklet.errors import DataError
from ranklet_training.data.events import read_events
from ranklet_training.data.simulator import Simulation
from ranklet_training.data.split import Cases, Split, SplitKind, split_events

Event = tuple[str, str, int]  # user, item, time


def split_of(events: list[Event], kind: SplitKind = "leave-one-out", **options: Any) -> Split:
    frame = pl.DataFrame(events, schema=["user_id", "item_id", "timestamp"], orient="row")
    return split_events(read_events(frame).frame, kind, **options)


def training_of(split: Split) -> list[list[Any]]:
    """Return the items of each training user, by id."""
    return [list(split.vocabulary.ids(history)) for history in split.training]


def cases_of(split: Split, cases: Cases) -> list[tuple[list[Any], Any]]:
    """Return (history, target) by id; what the catalogue lacks is None."""
    ids = [None, *split.vocabulary.all_ids]
    return [
        ([ids[i] for i in history], ids[target])
        for history, target in zip(cases.histories, cases.targets, strict=True)
    ]


def user(name: str, items: str, begin: int = 0) -> list[Event]:
    """Return the events of a user, one letter an item, one second apart."""
    return [(name, item, begin + place) for place, item in enumerate(items)]


# Leave-one-out.


def test_leave_one_out_by_hand() -> None:
    split = split_of([*user("u1", "abcd"), *user("u2", "dcb"), *user("u3", "ae")])
    assert list(split.vocabulary.all_ids) == ["a", "b", "c", "d", "e"]
    # Two events are too few to ask about: all of u3 is for training.
    assert training_of(split) == [["a", "b"], ["d"], ["a", "e"]]
    assert cases_of(split, split.validation) == [(["a", "b"], "c"), (["d"], "c")]
    assert cases_of(split, split.test) == [(["a", "b", "c"], "d"), (["d", "c"], "b")]


def test_leave_one_out_keeps_the_order_of_the_file_and_says_that_it_leaks() -> None:
    split = split_of([("u", item, 7) for item in "cabd"])  # equal times
    assert cases_of(split, split.test) == [(["c", "a", "b"], "d")]
    assert "later events of other users are in training" in split.notes


def test_ratings_stay_beside_their_training_events() -> None:
    users, ratings = ["u1"] * 4 + ["u2"] * 2, [1.0, 2.0, 3.0, 4.0, 5.0, 4.5]
    columns = {"user_id": users, "item_id": list("abcdab"), "timestamp": range(6)}
    frame = pl.DataFrame({**columns, "rating": ratings})
    ratings = split_events(read_events(frame).frame).training.ratings
    assert ratings is not None
    assert ratings.tolist() == [1.0, 2.0, 5.0, 4.5]


# Time.

logs = st.lists(
    st.tuples(st.sampled_from("uvwxyz"), st.sampled_from("abcdefgh"), st.integers(0, 30)),
    min_size=12,
    max_size=60,
)


def slow_time_split(events: list[Event]) -> tuple[int, int]:
    """Return the two instants: the smallest time that 80 % and 90 % of the steps lie before."""
    times = sorted(time for _, _, time in events)
    first, second = (times[-((-(len(times) - 1) * tenth) // 10)] for tenth in (8, 9))
    return first, second


@given(logs)
def test_a_time_split_trains_on_nothing_that_is_later_than_a_question(events: list[Event]) -> None:
    try:
        split = split_of(events, "time")
    except DataError:
        assume(False)
    first, second = slow_time_split(events)
    earlier = [(u, i) for u, i, time in events if time < first]
    # All of what is learned is earlier than the first instant, and all of it is learned.
    learned = Counter(i for history in training_of(split) for i in history)
    assert learned == Counter(i for _, i in earlier)
    assert list(split.vocabulary.all_ids) == sorted({i for _, i in earlier})
    # What is asked is at the first instant or later: one question a user and period.
    expected: dict[str, list[tuple[list[str | None], str | None]]] = {"validation": [], "test": []}
    for name, begin, end in (("validation", first, second), ("test", second, 10**9)):
        for who in sorted({u for u, _, _ in events}):
            own = sorted((e for e in events if e[0] == who), key=lambda event: event[2])
            asked = next((e for e in own if begin <= e[2] < end), None)
            if asked is None:
                continue
            history = [i for _, i, time in own if time < asked[2]]
            known = [i if i in split.vocabulary.all_ids else None for i in [*history, asked[1]]]
            if history:
                expected[name].append((known[:-1], known[-1]))
    assert cases_of(split, split.validation) == expected["validation"]
    assert cases_of(split, split.test) == expected["test"]


def test_every_training_event_is_earlier_than_every_target(world: Simulation) -> None:
    split = split_events(read_events(world.events).frame, "time")
    assert split.training.times is not None
    assert len(split.validation) + len(split.test) > 50
    for cases in (split.validation, split.test):
        assert split.training.times.max() < cases.target_times.min()  # type: ignore[union-attr]


def test_an_item_of_the_future_is_a_target_that_nothing_knows() -> None:
    events = [*user("u1", "abcabcab"), *user("u2", "babcabca"), ("u1", "new", 50), ("u2", "a", 51)]
    split = split_of([*events, ("u2", "b", 20), ("u1", "c", 21)], "time")
    assert "new" not in list(split.vocabulary.all_ids)
    targets = [target for _, target in cases_of(split, split.validation)]
    targets += [target for _, target in cases_of(split, split.test)]
    assert None in targets
    assert (split.training.items > 0).all()


def test_an_event_at_the_instant_of_the_target_is_not_its_history() -> None:
    events = [*user("u1", "abcab" * 4), ("u2", "a", 0), ("u2", "b", 30), ("u2", "c", 30)]
    split = split_of(events, "time")
    assert cases_of(split, split.test)[-1] == (["a"], "b")


def test_a_time_split_counts_the_answers_that_are_new_items_and_keeps_its_instants() -> None:
    events = [*user("u1", "abcabcab"), *user("u2", "babcabca"), ("u1", "new", 50), ("u2", "a", 51)]
    split = split_of([*events, ("u2", "b", 20), ("u1", "c", 21)], "time")
    assert "; 0 and 1 of their answers are new items; " in split.notes
    assert split.instants == slow_time_split([*events, ("u2", "b", 20), ("u1", "c", 21)])


def test_a_newer_log_is_split_at_the_instants_of_the_older_one() -> None:
    events = [*user("u1", "abcab"), *user("u2", "babca"), ("u1", "new", 50), ("u2", "a", 51)]
    split = split_of(events, "time", instants=(4, 6), for_training=False)
    assert list(split.vocabulary.all_ids) == ["a", "b", "c", "new"]
    assert training_of(split) == [["a", "b", "c", "a"], ["b", "a", "b", "c"]]
    assert cases_of(split, split.validation) == [(["a", "b", "c", "a"], "b"), ([*"babc"], "a")]
    assert cases_of(split, split.test) == [([*"abcab"], "new"), ([*"babca"], "a")]
    assert split.validation.is_repeat.tolist() == [True, True]
    assert split.test.is_repeat.tolist() == [False, True]
    assert split.test.repeats == 0.5


# None.


def test_all_events_are_for_training_and_nothing_is_held_out(world: Simulation) -> None:
    frame = read_events(world.events).frame
    split = split_events(frame, "none")
    assert [item for history in training_of(split) for item in history] == frame[
        "item_id"
    ].to_list()
    assert len(split.vocabulary) == frame["item_id"].n_unique()
    assert len(split.validation) == len(split.test) == split.test.repeats == 0
    assert split.notes.endswith("; nothing is held out")


# k-fold.


def k_folds(world: Simulation, folds: int) -> list[Split]:
    frame = read_events(world.events).frame
    return [split_events(frame, "k-fold", folds=folds, fold=fold) for fold in range(folds)]


def last_events(world: Simulation) -> Counter[tuple[Any, ...]]:
    """Return every user's whole history; its last event is the target."""
    by_user = read_events(world.events).frame.group_by("user_id", maintain_order=True)
    return Counter(tuple(items) for items in by_user.agg("item_id")["item_id"].to_list())


def whole(split: Split, cases: Cases) -> Counter[tuple[Any, ...]]:
    """Return the histories with their targets, unknown items as None."""
    return Counter((*history, target) for history, target in cases_of(split, cases))


@pytest.mark.parametrize("folds", [3, 5])
def test_every_user_is_tested_in_one_fold_and_validated_in_one(
    world: Simulation, folds: int
) -> None:
    splits = k_folds(world, folds)
    everyone = last_events(world)
    for name in ("validation", "test"):
        found = sum((whole(s, getattr(s, name)) for s in splits), Counter())
        assert sum(found.values()) == sum(everyone.values())
        complete = Counter({h: n for h, n in found.items() if None not in h})
        assert len(complete) > 0.9 * len(everyone)
        assert complete <= everyone


def test_users_of_training_validation_and_test_are_disjoint(world: Simulation) -> None:
    frame = read_events(world.events).frame
    tests = [split_events(frame, "k-fold", seed=seed).test.targets.tolist() for seed in (0, 0, 1)]
    assert tests[0] == tests[1] != tests[2]  # folds depend on the seed
    for split in k_folds(world, 4):
        assert set(split.training.items.tolist()) == set(range(1, len(split.vocabulary) + 1))
        training = Counter(tuple(history) for history in training_of(split))
        parts = training + whole(split, split.validation) + whole(split, split.test)
        assert sum(parts.values()) == 150
        known = Counter({h: n for h, n in parts.items() if None not in h})
        assert known <= last_events(world)


# Refusals.


@pytest.mark.parametrize(("folds", "fold"), [(2, 0), (5, 5), (5, -1)])
def test_folds_that_can_not_be_are_refused(folds: int, fold: int) -> None:
    with pytest.raises(DataError, match=rf"folds at least 3.*{fold}, {folds}"):
        split_of(user("u", "abcd"), "k-fold", folds=folds, fold=fold)


@pytest.mark.parametrize(
    ("events", "kind", "message"),
    [
        ([*user("u1", "ab"), *user("u2", "ba")], "leave-one-out", "no validation user.*3 events"),
        (
            [("u", item, 5) for item in "abcdefgh"],
            "time",
            "no validation user: .* the log has 1 distinct instants: give finer times",
        ),
        ([*user("u1", "abc"), *user("u2", "cba")], "leave-one-out", "no user with two training"),
    ],
    ids=["short histories", "one instant", "no pair"],
)
def test_a_log_without_cases_or_pairs_is_refused(
    events: list[Event], kind: SplitKind, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        split_of(events, kind)
