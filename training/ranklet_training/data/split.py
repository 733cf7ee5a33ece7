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

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import polars as pl

from ranklet.bundle.vocabulary import Vocabulary
from ranklet.errors import DataError
from ranklet.values import show
from ranklet_training.data.kinds import MOST_KINDS, check_target, count_kinds
from ranklet_training.data.sequences import Ints, Mask, Sequences, ragged_places

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
        case = np.repeat(np.arange(len(self)), self.histories.lengths)
        same = (self.histories.items == self.targets[case]) & (self.histories.items > 0)
        return np.bincount(case[same], minlength=len(self)) > 0

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
    frame: pl.DataFrame,
    kind: SplitKind = "leave-one-out",
    *,
    folds: int = 5,
    fold: int = 0,
    seed: int = 0,
    instants: Instants | None = None,
    target: str = "",
    for_training: bool = True,
) -> Split:
    """Split a frame of ``read_events``, sorted by user and time, by a protocol of the module.

    ``seed`` assigns users to the ``folds`` of ``k-fold``, of which number ``fold`` is the test.
    ``instants`` of ``time`` are by default quantiles of the log. Cases ask about events of the kind
    ``target``, "" for any. If not ``for_training``, the catalogue has every item of the log, and a
    part may be empty. DataError: no event is of the target kind, or no user is left for training,
    validation or test.
    """
    counts = count_kinds(frame)
    check_target(target, counts)
    users = frame["user_id"].rle_id().to_numpy().astype(np.int64)  # 0, 0, 0, 1, 1, ...
    times = frame["timestamp"].to_numpy()
    is_asked = _is_of_kind(frame, target)
    # Number of later events of the same user that may be targets, for each event.
    later = np.cumsum(np.bincount(users, is_asked))[users] - np.cumsum(is_asked)
    if kind == "leave-one-out":
        validation, test = is_asked & (later == 1), is_asked & (later == 0)
        # All events of users without an event before the validation target are for training.
        has_earlier = np.append(False, users[1:] == users[:-1]) & validation
        is_case = (np.bincount(users, has_earlier) > 0)[users]
        validation, test = validation & is_case, test & is_case
        in_training = ~is_case | (later >= 2)
    elif kind == "time":
        if instants is None:
            first, second = np.quantile(times, TIME_QUANTILES, method="higher")
            instants = first.item(), second.item()
        first, second = instants
        in_training = times < first
        validation = _first_of_user(users, is_asked & (times >= first) & (times < second))
        test = _first_of_user(users, is_asked & (times >= second))
    elif kind == "none":
        in_training = np.ones(len(users), dtype=bool)
        validation = test = ~in_training
    else:
        if not 0 <= fold < folds or folds < 3:
            raise DataError(f"fold must be in [0, folds) and folds at least 3: {fold}, {folds}")
        random = np.random.Generator(np.random.Philox([seed, folds]))
        fold_of = (random.permutation(users[-1] + 1) % folds)[users]
        is_test, is_validation = fold_of == fold, fold_of == (fold + 1) % folds
        in_training = ~is_test & ~is_validation
        is_last = is_asked & (later == 0)
        validation, test = is_validation & is_last, is_test & is_last
    # The papers rank all items of the log, including those outside training.
    is_whole = kind == "leave-one-out" or not for_training
    known = frame if is_whole else frame.filter(pl.Series(in_training))
    ids = known["item_id"].unique().sort()
    vocabulary = Vocabulary(ids.to_list() if ids.dtype == pl.String else ids.to_numpy())
    indices = ids.to_frame().with_row_index("index", offset=1)
    joined = frame.join(indices, on="item_id", how="left", maintain_order="left")
    items = joined["index"].fill_null(0).to_numpy().astype(np.int64)
    lengths = np.unique(users[in_training], return_counts=True)[1]
    ratings = None
    if "rating" in frame.columns:
        ratings = frame["rating"].cast(pl.Float32).to_numpy()[in_training]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    whole = Sequences(items, np.zeros(1, dtype=np.int64), None, times, _kind_indices(frame, counts))
    training = replace(whole.take(np.flatnonzero(in_training), offsets), ratings=ratings)
    cases = {}
    for name, is_target in (("validation", validation), ("test", test)):
        cases[name] = _cases(users, whole, is_target, strict_time=kind == "time")
        if for_training and kind != "none" and not len(cases[name]):
            raise DataError(f"the {kind} split leaves no {name} user{_needs(kind, times, target)}")
    if for_training and not (lengths > 1).any():
        held_out = ": it holds the last two events of a user out" if kind == "leave-one-out" else ""
        raise DataError(f"the {kind} split leaves no user with two training events{held_out}")
    instants = instants if kind == "time" else None
    return Split(
        kind, vocabulary, training, cases["validation"], cases["test"], instants, counts, target
    )


def _is_of_kind(frame: pl.DataFrame, target: str) -> Mask:
    """Return for each event whether it is of a kind, "" for any."""
    if not target:
        return np.ones(len(frame), dtype=bool)
    return (frame["event"] == target).fill_null(value=False).to_numpy()


def _needs(kind: SplitKind, times: Ints, target: str) -> str:
    """Return what a split needs to have cases, as the end of an error message."""
    distinct = f"{len(np.unique(times)):,} distinct instants"
    needs = {
        "leave-one-out": "it needs users with at least 3 events",
        "time": f"it needs users with earlier events, and the log has {distinct}: give finer "
        "times, or take another split",
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


def _cases(users: Ints, events: Sequences, is_target: Mask, *, strict_time: bool) -> Cases:
    """Return the target events with the earlier events of their users, if there are any.

    With ``strict_time``, events at the instant of the target are not part of the history.
    """
    times = events.times
    assert times is not None
    targets = np.flatnonzero(is_target)
    starts, ends = np.searchsorted(users, users[targets]), targets
    if strict_time:
        pairs = zip(starts.tolist(), targets.tolist(), strict=True)
        lengths = [np.searchsorted(times[start:end], times[end]) for start, end in pairs]
        ends = starts + np.array(lengths, dtype=np.int64)
    kept = ends > starts
    places, offsets = ragged_places(starts[kept], (ends - starts)[kept])
    targets = targets[kept]
    return Cases(events.take(places, offsets), events.items[targets], times[targets])
