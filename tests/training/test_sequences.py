"""An epoch trains on every pair of a history and its next event, once."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from ranklet_training.data.sequences import (
    Batch,
    Sequences,
    Windows,
    epoch_batches,
    pad,
    targets_per_epoch,
)

Pair = tuple[int, int]  # user, place of the target in the user's history

ragged = st.lists(st.integers(0, 23), min_size=1, max_size=12)


def numbered(lengths: list[int]) -> Sequences:
    """Items tell user and place, 1000 * user + place + 1; ratings are their half."""
    items = [1000 * user + place + 1 for user, n in enumerate(lengths) for place in range(n)]
    offsets = np.cumsum([0, *lengths])
    return Sequences(np.array(items, np.int64), offsets, np.array(items, np.float32) / 2)


def batches_of(sequences: Sequences, windows: Windows, length: int, **given: int) -> list[Batch]:
    options = {"targets": 10, "seed": 0, "epoch": 0} | given
    return list(epoch_batches(sequences, windows=windows, length=length, **options))


def pairs_of(batches: list[Batch]) -> Counter[Pair]:
    """Count the targets, and check that each follows its history without a gap."""
    found: Counter[Pair] = Counter()
    for batch in batches:
        for user, history, targets in zip(batch.users, batch.history, batch.targets, strict=True):
            size = int((targets > 0).sum())
            assert (targets[:size] > 0).all()  # padding on the right only
            assert_array_equal(history[:size], targets[:size] - 1)  # next event, same user
            assert not history[size:].any()
            assert_array_equal(history[1:size], targets[: size - 1])  # no gap
            found.update(
                (int(user), int(target) - 1000 * int(user) - 1) for target in targets[:size]
            )
    return found


@given(lengths=ragged, length=st.integers(1, 9), seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_all_windows_hold_every_pair_once(
    lengths: list[int], length: int, seed: int, epoch: int
) -> None:
    batches = batches_of(numbered(lengths), "all", length, seed=seed, epoch=epoch)
    every = Counter((user, place) for user, n in enumerate(lengths) for place in range(1, n))
    assert pairs_of(batches) == every
    assert all(batch.history.shape[1] <= length for batch in batches)


@given(lengths=ragged, length=st.integers(1, 9))
def test_last_windows_hold_the_latest_pairs_of_every_user(lengths: list[int], length: int) -> None:
    latest = Counter(
        (user, place) for user, n in enumerate(lengths) for place in range(max(1, n - length), n)
    )
    assert pairs_of(batches_of(numbered(lengths), "last", length)) == latest


@given(lengths=ragged, length=st.integers(1, 9), windows=st.sampled_from(["all", "last"]))
def test_targets_per_epoch_is_the_number_of_targets(
    lengths: list[int], length: int, windows: Windows
) -> None:
    sequences = numbered(lengths)
    count = sum(int((b.targets > 0).sum()) for b in batches_of(sequences, windows, length))
    assert targets_per_epoch(sequences, windows, length) == count


def flat(batches: list[Batch]) -> list[list[list[int]]]:
    return [batch.targets.tolist() for batch in batches]


LONG = numbered([30, 2, 17, 5, 9, 1, 40])


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    first = batches_of(LONG, "all", 8)
    np.random.seed(7)  # noqa: NPY002 (the point is the global state)
    assert flat(batches_of(LONG, "all", 8)) == flat(first)
    assert flat(batches_of(LONG, "all", 8, seed=1)) != flat(first)
    assert flat(batches_of(LONG, "all", 8, epoch=1)) != flat(first)


def test_windows_are_cut_elsewhere_in_every_epoch() -> None:
    begins = set()
    for epoch in range(20):
        for batch in batches_of(numbered([40]), "all", 8, epoch=epoch):
            begins |= set(batch.history[:, 0].tolist())
    assert len(begins) > 20


def test_a_batch_holds_about_as_many_targets_as_asked() -> None:
    batches = batches_of(numbered([20] * 50), "all", 5, targets=100)
    sizes = [int((batch.targets > 0).sum()) for batch in batches]
    # Up to one window more or less at either end; the last batch holds what is left.
    assert max(sizes) <= 105
    assert sorted(sizes)[1] >= 95


def test_ratings_stand_beside_their_targets() -> None:
    for batch in batches_of(LONG, "all", 8):
        assert batch.ratings is not None
        assert_array_equal(batch.ratings, batch.targets / 2)


def test_pad_keeps_the_latest_events_and_counts_hold_every_item() -> None:
    histories = [np.array([1, 2, 3, 4]), np.array([5]), np.array([], np.int64)]
    assert pad(histories, 3).tolist() == [[2, 3, 4], [5, 0, 0], [0, 0, 0]]
    assert pad([np.array([1, 2]), np.array([3])], 9).tolist() == [[1, 2], [3, 0]]
    assert Sequences(np.array([2, 2, 4]), np.array([0, 3])).counts(5).tolist() == [0, 0, 2, 0, 1, 0]


@given(lengths=ragged, block=st.integers(1, 30))
def test_blocks_hold_every_event_once_with_its_user(lengths: list[int], block: int) -> None:
    sequences, found = numbered(lengths), list[int]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ranklet_training.data.sequences.BLOCK", block)
        for users, events in sequences.blocks():
            items = sequences.items[events]
            owners = np.repeat(np.arange(users.start, users.stop), sequences.lengths[users])
            assert_array_equal(owners, items // 1000)
            found += items.tolist()
    assert found == sequences.items.tolist()


@given(
    times=st.lists(st.integers(-(2**62), 2**62), min_size=2, max_size=30).map(sorted),
    length=st.integers(1, 9),
)
def test_batches_have_the_time_gaps_of_the_history(times: list[int], length: int) -> None:
    places = np.arange(len(times))
    sequences = Sequences(places + 1, np.array([0, len(times)]), times=np.array(times))
    options: dict[str, Any] = {"windows": "all", "length": length, "targets": 9}
    for batch in epoch_batches(sequences, **options, seed=0, epoch=0, with_gaps=True):
        is_event = batch.targets > 0
        assert batch.since is not None
        assert batch.until is not None
        assert_array_equal(batch.since[is_event], sequences.gaps[batch.history[is_event] - 1])
        assert_array_equal(batch.until[is_event], sequences.gaps[batch.targets[is_event] - 1])
        assert not batch.since[~is_event].any()
        assert not batch.until[~is_event].any()
