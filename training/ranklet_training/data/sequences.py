"""Histories in flat arrays, and the padded batches of a training epoch.

Histories are oldest first, padded on the right with 0, and cut to their latest events.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ranklet.time_gaps import UNKNOWN, buckets_before, buckets_between

Windows = Literal["last", "all"]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
BLOCK = 1 << 22  # events that are worked on at a time


@dataclass(frozen=True)
class Sequences:
    """Histories as a ragged array of item indices: user u has items[offsets[u]:offsets[u + 1]].

    Items outside the catalogue are 0, and absent from training. ``ratings``, ``times`` and
    ``kinds`` (0 is unknown) are parallel to ``items``, None if the event log lacks them.
    """

    items: Ints
    offsets: Ints
    ratings: NDArray[np.float32] | None = None
    times: Ints | None = None
    kinds: Ints | None = None

    def __len__(self) -> int:
        """Return the number of users."""
        return len(self.offsets) - 1

    def __getitem__(self, user: int) -> Ints:
        """Return the history of one user."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def __iter__(self) -> Iterator[Ints]:
        return (self[user] for user in range(len(self)))

    @property
    def lengths(self) -> Ints:
        """Return the number of events of every user."""
        return np.diff(self.offsets)

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Yield users and their events, about ``BLOCK`` events at a time."""
        places = np.arange(0, self.offsets[-1], BLOCK)
        begins = np.unique(np.searchsorted(self.offsets[:-1], places, side="right") - 1).tolist()
        for begin, end in pairwise([*begins, len(self)]):
            yield slice(begin, end), slice(*self.offsets[[begin, end]].tolist())

    @cached_property
    def gaps(self) -> Ints:
        """Return the bucket of the gap before each event, ``UNKNOWN`` before a user's first."""
        assert self.times is not None
        before = buckets_before(self.times)
        before[self.offsets[:-1][self.lengths > 0]] = UNKNOWN
        return before

    def take(self, places: Ints, offsets: Ints) -> "Sequences":
        """Return histories of the events at some places, with times and kinds but no ratings."""
        times = None if self.times is None else self.times[places]
        kinds = None if self.kinds is None else self.kinds[places]
        return Sequences(self.items[places], offsets, times=times, kinds=kinds)

    def counts(self, items: int) -> Ints:
        """Return the number of events of each item, by index, (items + 1,)."""
        return np.bincount(self.items, minlength=items + 1)


@dataclass(frozen=True)
class Batch:
    """Histories and the next item of each event, both (B, T), padded with 0 on the right."""

    users: Ints
    history: Ints
    targets: Ints
    ratings: NDArray[np.float32] | None
    since: Ints | None = None  # bucket of the gap before each event of the history
    until: Ints | None = None  # bucket of the gap between each event and its target
    kinds: Ints | None = None  # of each event of the history
    target_kinds: Ints | None = None


def ragged_places(starts: Ints, lengths: Ints) -> tuple[Ints, Ints]:
    """Return the concatenated places of ranges in a flat array, and the offsets of each range."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths), offsets


def pad(histories: Sequence[Ints], length: int | None = None) -> Ints:
    """Return the latest ``length`` events of each history, padded on the right, (B, T)."""
    cut = [history[-length:] if length else history for history in histories]
    padded = np.zeros((len(cut), max(1, *map(len, cut), 1)), dtype=np.int64)
    for row, history in zip(padded, cut, strict=True):
        row[: len(history)] = history
    return padded


def targets_per_epoch(sequences: Sequences, windows: Windows, length: int) -> int:
    """Return the number of (history, next item) pairs of an epoch."""
    pairs = np.maximum(sequences.lengths - 1, 0)
    return int(pairs.sum() if windows == "all" else np.minimum(pairs, length).sum())


def epoch_batches(
    sequences: Sequences,
    *,
    windows: Windows,
    length: int,
    targets: int,
    seed: int,
    epoch: int,
    with_gaps: bool = False,
    with_kinds: bool = False,
) -> Iterator[Batch]:
    """Yield the batches of an epoch, which depend on (seed, epoch) alone, in random order.

    Windows ``"last"`` are the latest ``length`` pairs of each user; ``"all"`` cover the whole
    history from a random phase of the epoch. Windows of similar length share a batch of about
    ``targets`` pairs: on short histories 3 times faster than padding to the maximum length.
    """
    random = np.random.Generator(np.random.Philox([seed, epoch]))
    users, starts, ends = _cut_windows(sequences, windows, length, random)
    shuffled = random.permutation(len(users))
    order = shuffled[np.argsort((ends - starts)[shuffled], kind="stable")]
    ends_of_batches = np.cumsum((ends - starts)[order]) // targets
    batches = np.split(order, np.flatnonzero(np.diff(ends_of_batches)) + 1)
    for batch in random.permutation(len(batches)):
        rows = batches[batch]
        if len(rows):
            yield _gather(sequences, users[rows], starts[rows], ends[rows], with_gaps, with_kinds)


def _cut_windows(
    sequences: Sequences, windows: Windows, length: int, random: np.random.Generator
) -> tuple[Ints, Ints, Ints]:
    """Return (user, start, end) of windows; targets are items[start:end] of a user, start > 0."""
    lengths = sequences.lengths
    if windows == "last":
        starts = np.maximum(1, lengths - length)
        users = np.flatnonzero(lengths > 1)
        return users, starts[users], lengths[users]
    # The phase moves windows to the left; the part before the first target is cut.
    phases = np.where(lengths > length + 1, random.integers(0, length, len(lengths)), 0)
    counts = np.maximum(0, -(-(lengths - 1 + phases) // length))
    users = np.repeat(np.arange(len(lengths)), counts)
    nth = np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = 1 - phases[users] + nth * length
    ends = np.minimum(starts + length, lengths[users])
    starts = np.maximum(starts, 1)
    kept = ends > starts
    return users[kept], starts[kept], ends[kept]


def _gather(
    sequences: Sequences, users: Ints, starts: Ints, ends: Ints, with_gaps: bool, with_kinds: bool
) -> Batch:
    steps = np.arange((ends - starts).max())
    is_event = steps < (ends - starts)[:, None]  # (B, T)
    places = np.where(is_event, (sequences.offsets[users] + starts)[:, None] + steps, 0)
    history = np.where(is_event, sequences.items[places - 1], 0)
    targets = np.where(is_event, sequences.items[places], 0)
    ratings = since = until = kinds = target_kinds = None
    if sequences.ratings is not None:
        ratings = np.where(is_event, sequences.ratings[places], np.float32(0))
    if with_gaps:
        assert sequences.times is not None
        times = [sequences.times[places - back] for back in range(3)]
        is_first = (starts == 1)[:, None] & (steps == 0)  # of the history
        since = np.where(is_event & ~is_first, buckets_between(times[2], times[1]), UNKNOWN)
        until = np.where(is_event, buckets_between(times[1], times[0]), UNKNOWN)
    if with_kinds:
        assert sequences.kinds is not None
        kinds = np.where(is_event, sequences.kinds[places - 1], 0)
        target_kinds = np.where(is_event, sequences.kinds[places], 0)
    return Batch(users, history, targets, ratings, since, until, kinds, target_kinds)
