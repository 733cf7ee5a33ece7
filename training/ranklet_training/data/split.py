"""Splits of an event log into training histories and held-out cases.

* ``leave-one-out``: the last event of a user is the test target, the one before it the validation
  target, the rest training (the protocol of most papers). It leaks: later events of other users are
  in training.
* ``time``: two instants cut the log, so that no training event is later than a target; the
  catalogue holds the items before the first instant. The split to trust for production.
* ``k-fold``: one fold of the users is the test, the next one the validation. Targets are the last
  events of users outside training.
* ``none``: all events are for training and nothing is held out, for a bundle that goes into
  production after another split has measured it.

With a target kind, targets are events of that kind alone: the last of a user and the one of that
kind before it in ``leave-one-out``, where training ends before the latter; the first in each part
of ``time``; the last in ``k-fold``. Histories have the earlier events of every kind.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ranklet.bundle.vocabulary import Vocabulary
from ranklet.errors import DataError
from ranklet.values import show
from ranklet_training.data.events import distinct
from ranklet_training.data.kinds import MOST_KINDS, check_target, count_kinds
from ranklet_training.data.sequences import Ints, Mask, Sequences, ragged_places
from ranklet_training.data.stored import (
    Arrays,
    Frames,
    StoredFrames,
    columns_of,
    concatenate,
    scratch_array,
)

SplitKind = Literal["leave-one-out", "time", "k-fold", "none"]
Instants = tuple[int | float, int | float]  # in the unit of the log

TIME_QUANTILES = (0.8, 0.9)  # ends of the training and of the validation events


@dataclass(frozen=True)
class Cases:
    """Held-out cases: ``targets[i]`` is the next item after ``histories[i]``.

    Targets outside the catalogue are 0 and count as misses. ``target_times`` are the times of the
    target events, None if histories have no times.
    """

    histories: Sequences
    targets: Ints
    target_times: Ints | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: Ints) -> "Cases":
        """Return some of the cases, in the order of ``rows``."""
        places, offsets = ragged_places(self.histories.offsets[rows], self.histories.lengths[rows])
        times = None if self.target_times is None else self.target_times[rows]
        return Cases(self.histories.take(places, offsets), self.targets[rows], times)

    @cached_property
    def is_repeat(self) -> Mask:
        """Return for each case whether the target is in the history."""
        histories, is_repeat = self.histories, np.zeros(len(self), dtype=bool)
        for users, events in histories.blocks():
            case = np.repeat(np.arange(users.start, users.stop), histories.lengths[users])
            items = histories.items[events]
            is_repeat[case[(items == self.targets[case]) & (items > 0)]] = True
        return is_repeat

    @property
    def repeats(self) -> float:
        """Return the share of repeats among the targets, 0 without a case."""
        return float(self.is_repeat.mean()) if len(self) else 0.0

    def translate(self, places: Ints, kinds: Ints | None = None) -> "Cases":
        """Return the cases with other indices of items, and perhaps of kinds.

        ``places`` are the new indices of all items, (items + 1,), and ``kinds`` those of kinds.
        """
        histories = replace(self.histories, items=places[self.histories.items])
        if kinds is not None and histories.kinds is not None:
            histories = replace(histories, kinds=kinds[histories.kinds])
        return replace(self, histories=histories, targets=places[self.targets])

    def drop_unknown(self) -> "Cases":
        """Return the cases without history events of items outside the catalogue."""
        known = self.histories.items > 0
        offsets = np.concatenate([[0], np.cumsum(known)])[self.histories.offsets]
        return replace(self, histories=self.histories.take(np.flatnonzero(known), offsets))


@dataclass(frozen=True)
class Split:
    """Training histories, and the validation and test cases.

    ``instants`` are the ends of the training and of the validation events of ``time``. ``kinds``
    counts the events of each kind of the whole log, by name: that of index i is number i - 1.
    ``target`` is the kind that the cases ask about, "" if that is the next event of any kind.
    """

    kind: SplitKind
    vocabulary: Vocabulary
    training: Sequences
    validation: Cases
    test: Cases
    instants: Instants | None = None
    kinds: dict[str, int] = field(default_factory=dict)
    target: str = ""

    @property
    def target_kind(self) -> int:
        """Return the index of the kind that the cases ask about, 0 for any."""
        return 1 + list(self.kinds).index(self.target) if self.target else 0

    @property
    def notes(self) -> str:
        """Return a line on the sizes and the caveat of the split."""
        training = (
            f"{self.kind}: {len(self.training.items):,} training events of "
            f"{len(self.training):,} users over {len(self.vocabulary):,} items"
        )
        if self.kind == "none":
            return f"{training}; nothing is held out"
        warning = {
            "leave-one-out": "later events of other users are in training: not for production",
            "time": "no training event is later than a target",
            "k-fold": "targets are of users outside training",
        }[self.kind]
        asked = f", asked about {show(self.target)} alone" if self.target else ""
        new = [int((cases.targets == 0).sum()) for cases in (self.validation, self.test)]
        misses = f"; {new[0]:,} and {new[1]:,} of their answers are new items" if any(new) else ""
        return (
            f"{training}; {len(self.validation):,} validation and {len(self.test):,} test users"
            f"{asked}{misses}; {warning}"
        )


def split_events(
    events: pl.DataFrame | Frames,
    kind: SplitKind = "leave-one-out",
    *,
    folds: int = 5,
    fold: int = 0,
    seed: int = 0,
    instants: Instants | None = None,
    target: str = "",
    for_training: bool = True,
) -> Split:
    """Split the frame or pieces of ``read_events``, sorted by user and time, by a protocol.

    ``seed`` assigns users to the ``folds`` of ``k-fold``, of which number ``fold`` is the test.
    ``instants`` of ``time`` are by default quantiles of the log. Cases ask about events of the kind
    ``target``, "" for any. If not ``for_training``, the catalogue has every item of the log, and a
    part may be empty. The arrays of stored pieces are stored beside them. DataError: no event is of
    the target kind, or no user is left for training, validation or test.
    """
    pieces = [events] if isinstance(events, pl.DataFrame) else events
    counts = count_kinds(pieces)
    check_target(target, counts)
    if kind == "k-fold" and (not 0 <= fold < folds or folds < 3):
        raise DataError(f"fold must be in [0, folds) and folds at least 3: {fold}, {folds}")
    if kind == "time" and instants is None:
        instants = _default_instants(pieces)
    fold_of = _fold_of_users(pieces, folds, seed) if kind == "k-fold" else None
    rule = _Rule(kind, target, instants, fold_of, folds, fold)
    known = columns_of(pieces, "item_id")
    # The papers rank all items of the log, including those outside training.
    if for_training and kind in ("time", "k-fold"):
        split = rule.parts(pieces)
        known = (frame["item_id"].filter(pl.Series(parts.training)) for frame, parts in split)
    ids = distinct(known)
    vocabulary = Vocabulary(ids.to_list() if ids.dtype == pl.String else ids.to_numpy())
    indices = ids.to_frame().with_row_index("index", offset=1)
    folder = None
    if isinstance(pieces, StoredFrames):
        key = repr((kind, folds, fold, seed, instants, target, for_training))
        folder = pieces.folder / sha256(key.encode()).hexdigest()[:16]
    arrays = concatenate(
        (_arrays(frame, parts, indices, counts, kind) for frame, parts in rule.parts(pieces)),
        folder,
    )
    training = _sequences(arrays, "training")
    cases = {}
    for name in ("validation", "test"):
        targets, times = arrays[f"{name}.targets"], arrays[f"{name}.target_times"]
        cases[name] = Cases(_sequences(arrays, name), targets, times)
        if for_training and kind != "none" and not len(cases[name]):
            needs = _needs(kind, pieces, target)
            raise DataError(f"the {kind} split leaves no {name} user{needs}")
    if for_training and not (training.lengths > 1).any():
        held_out = ": it holds the last two events of a user out" if kind == "leave-one-out" else ""
        raise DataError(f"the {kind} split leaves no user with two training events{held_out}")
    instants = instants if kind == "time" else None
    return Split(
        kind, vocabulary, training, cases["validation"], cases["test"], instants, counts, target
    )


@dataclass(frozen=True)
class _Parts:
    """The user of each event of a frame, numbered from 0, and the parts that the events are in."""

    users: Ints  # 0, 0, 0, 1, 1, ...
    training: Mask
    validation: Mask  # targets
    test: Mask


@dataclass(frozen=True)
class _Rule:
    """The protocol of a split, which decides on the events of each user alone."""

    kind: SplitKind
    target: str
    instants: Instants | None
    fold_of: Ints | None  # of each user
    folds: int
    fold: int

    def parts(self, pieces: Frames) -> Iterator[tuple[pl.DataFrame, _Parts]]:
        """Yield each frame with its parts."""
        first_user = 0
        for frame in pieces:
            users = frame["user_id"].rle_id().to_numpy().astype(np.int64)
            yield frame, _Parts(users, *self._assign(frame, users, first_user))
            first_user += int(users[-1]) + 1

    def _assign(self, frame: pl.DataFrame, users: Ints, first_user: int) -> tuple[Mask, Mask, Mask]:
        """Return which events are for training, and which are validation and test targets."""
        is_asked = _is_of_kind(frame, self.target)
        # Number of later events of the same user that may be targets, for each event.
        later = np.cumsum(np.bincount(users, is_asked))[users] - np.cumsum(is_asked)
        if self.kind == "leave-one-out":
            validation, test = is_asked & (later == 1), is_asked & (later == 0)
            # All events of users without an event before the validation target are for training.
            has_earlier = np.append(False, users[1:] == users[:-1]) & validation
            is_case = (np.bincount(users, has_earlier) > 0)[users]
            return ~is_case | (later >= 2), validation & is_case, test & is_case
        if self.kind == "time":
            assert self.instants is not None
            (first, second), times = self.instants, frame["timestamp"].to_numpy()
            validation = _first_of_user(users, is_asked & (times >= first) & (times < second))
            test = _first_of_user(users, is_asked & (times >= second))
            return times < first, validation, test
        if self.kind == "none":
            nothing = np.zeros(len(users), dtype=bool)
            return ~nothing, nothing, nothing
        assert self.fold_of is not None
        fold_of, is_last = self.fold_of[first_user + users], is_asked & (later == 0)
        is_test, is_validation = fold_of == self.fold, fold_of == (self.fold + 1) % self.folds
        return ~is_test & ~is_validation, is_validation & is_last, is_test & is_last


def _default_instants(pieces: Frames) -> Instants:
    """Return the quantiles of all times, by the method "higher" of numpy."""
    columns = (column.to_numpy() for column in columns_of(pieces, "timestamp"))
    if isinstance(pieces, StoredFrames):
        times = scratch_array(columns, pieces.folder)
    else:
        times = np.concatenate([*columns])
    ranks = np.ceil((len(times) - 1) * np.array(TIME_QUANTILES)).astype(np.int64)
    times.partition(ranks)
    first, second = times[ranks].tolist()
    return first, second


def _fold_of_users(pieces: Frames, folds: int, seed: int) -> Ints:
    users = sum(ids.n_unique() for ids in columns_of(pieces, "user_id"))
    random = np.random.Generator(np.random.Philox([seed, folds]))
    return random.permutation(users) % folds


def _is_of_kind(frame: pl.DataFrame, target: str) -> Mask:
    """Return for each event whether it is of a kind, "" for any."""
    if not target:
        return np.ones(len(frame), dtype=bool)
    return (frame["event"] == target).fill_null(value=False).to_numpy()


def _needs(kind: SplitKind, pieces: Frames, target: str) -> str:
    """Return what a split needs to have cases, as the end of an error message."""
    instants = len(distinct(columns_of(pieces, "timestamp")))
    needs = {
        "leave-one-out": "it needs users with at least 3 events",
        "time": f"it needs users with earlier events, and the log has {instants:,} distinct "
        "instants: give finer times, or take another split",
        "k-fold": "it needs users with at least 2 events",
    }[kind]
    if not target:
        return f": {needs}"
    if kind == "leave-one-out":
        needs = "it needs users with two such events and an earlier one"
    return f" with a target of kind {show(target)}: {needs}"


def _kind_indices(frame: pl.DataFrame, counts: dict[str, int]) -> Ints | None:
    """Return the index of the kind of each event, None if the log has no kinds, or too many."""
    if not 0 < len(counts) <= MOST_KINDS:
        return None
    indices = {name: index for index, name in enumerate(counts, 1)}
    return frame["event"].replace_strict(indices, default=0, return_dtype=pl.Int64).to_numpy()


def _first_of_user(users: Ints, candidate: Mask) -> Mask:
    places = np.flatnonzero(candidate)
    first = np.zeros(len(users), dtype=bool)
    first[places[np.unique(users[places], return_index=True)[1]]] = True
    return first


def _arrays(
    frame: pl.DataFrame, parts: _Parts, indices: pl.DataFrame, counts: dict[str, int], kind: str
) -> dict[str, NDArray[Any]]:
    """Return the arrays of the split of a frame; ``indices`` are those of the items by id."""
    joined = frame.join(indices, on="item_id", how="left", maintain_order="left")
    columns: dict[str, NDArray[Any]] = {
        "items": joined["index"].fill_null(0).to_numpy().astype(np.int64),
        "times": frame["timestamp"].to_numpy(),
    }
    if (kinds := _kind_indices(frame, counts)) is not None:
        columns["kinds"] = kinds
    arrays = {f"training.{name}": column[parts.training] for name, column in columns.items()}
    arrays["training.lengths"] = np.unique(parts.users[parts.training], return_counts=True)[1]
    if "rating" in frame.columns:
        ratings = frame["rating"].cast(pl.Float32).to_numpy()
        arrays["training.ratings"] = ratings[parts.training]
    for name, is_target in (("validation", parts.validation), ("test", parts.test)):
        cases = _cases(columns, parts.users, is_target, strict_time=kind == "time")
        arrays |= {f"{name}.{column}": array for column, array in cases.items()}
    return arrays


def _cases(
    columns: dict[str, NDArray[Any]], users: Ints, is_target: Mask, *, strict_time: bool
) -> dict[str, NDArray[Any]]:
    """Return the target events with the earlier events of their users, if there are any.

    With ``strict_time``, events at the instant of the target are not part of the history.
    """
    times = columns["times"]
    targets = np.flatnonzero(is_target)
    starts, ends = np.searchsorted(users, users[targets]), targets
    if strict_time:
        pairs = zip(starts.tolist(), targets.tolist(), strict=True)
        before = [np.searchsorted(times[start:end], times[end]) for start, end in pairs]
        ends = starts + np.array(before, dtype=np.int64)
    kept = ends > starts
    starts, lengths, targets = starts[kept], (ends - starts)[kept], targets[kept]
    places, _ = ragged_places(starts, lengths)
    histories = {name: column[places] for name, column in columns.items()}
    return {
        **histories,
        "lengths": lengths,
        "targets": columns["items"][targets],
        "target_times": times[targets],
    }


def _sequences(arrays: Arrays, part: str) -> Sequences:
    """Return the histories of a part of a split."""
    items, times = arrays[f"{part}.items"], arrays[f"{part}.times"]
    offsets = np.concatenate([[0], np.cumsum(arrays[f"{part}.lengths"])]).astype(np.int64)
    ratings, kinds = arrays.get(f"{part}.ratings"), arrays.get(f"{part}.kinds")
    return Sequences(items, offsets, ratings, times, kinds)
