"""Splits of an event log into training histories and held-out cases.

* ``leave-one-out``: a user's last event is the test target, the one before it the validation
  target, the rest training (the papers' protocol). It leaks: other users' later events are in
  training.
* ``time``: two instants cut the whole log, so that no training event is later than a target; the
  catalogue holds the items before the first instant. The split to trust for production.
* ``k-fold``: users are dealt into folds; one fold is the test, the next the validation. Targets are
  the last events of users outside training.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import polars as pl

from ranklet.errors import DataError
from ranklet.bundle.vocabulary import Vocabulary
from ranklet_training.data.sequences import Ints, Mask, Sequences, ragged_places

SplitKind = Literal["leave-one-out", "time", "k-fold"]

# Training gets the first 80 % of the events, validation the next 10 %, test the last 10 %.
TIME_QUANTILES = (0.8, 0.9)


@dataclass(frozen=True)
class Cases:
    """Held-out cases: ``targets[i]`` is the next item after ``histories[i]``.

    A target outside the catalogue is 0 and counts as a miss. ``target_times`` are the times of the
    target events, if histories have times.
    """

    histories: Sequences
    targets: Ints
    target_times: Ints | None = None

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self.targets)

    def take(self, rows: Ints) -> "Cases":
        """Return some of the cases, in the order of ``rows``."""
        starts, lengths = self.histories.offsets[rows], self.histories.lengths[rows]
        places, offsets = ragged_places(starts, lengths)
        items, times = self.histories.items, self.histories.times
        return Cases(
            Sequences(items[places], offsets, times=None if times is None else times[places]),
            self.targets[rows],
            None if self.target_times is None else self.target_times[rows],
        )

    def drop_unknown(self) -> "Cases":
        """Return the cases without the history events whose item the catalogue lacks."""
        items, times = self.histories.items, self.histories.times
        known = items > 0
        offsets = np.concatenate([[0], np.cumsum(known)])[self.histories.offsets]
        kept = Sequences(items[known], offsets, times=None if times is None else times[known])
        return replace(self, histories=kept)


@dataclass(frozen=True)
class Split:
    """Training histories, and the cases that choose and judge a model."""

    kind: SplitKind
    vocabulary: Vocabulary
    training: Sequences
    validation: Cases
    test: Cases

    @property
    def notes(self) -> str:
        """Return one line on the sizes of the split and its caveat."""
        warning = {
            "leave-one-out": "later events of other users are in training: not for production",
            "time": "no training event is later than a target",
            "k-fold": "targets are of users outside training",
        }[self.kind]
        return (
            f"{self.kind}: {len(self.training.items):,} training events of "
            f"{len(self.training):,} users over {len(self.vocabulary):,} items; "
            f"{len(self.validation):,} validation and {len(self.test):,} test users; {warning}"
        )


def split_events(
    frame: pl.DataFrame,
    kind: SplitKind = "leave-one-out",
    *,
    folds: int = 5,
    fold: int = 0,
    seed: int = 0,
) -> Split:
    """Cut a frame of ``read_events``, sorted by user and time.

    ``kind`` is the protocol, see the module. Of the ``folds`` of ``k-fold``, into which ``seed``
    deals the users, number ``fold`` is the test.

    Raises:
        DataError: No user is left for training or as a case.
    """
    users = frame["user_id"].rle_id().to_numpy().astype(np.int64)  # 0, 0, 0, 1, 1, ...
    # Number of later events of the same user, for each event.
    from_end = np.cumsum(np.bincount(users))[users] - 1 - np.arange(len(users))
    if kind == "leave-one-out":
        # Users with fewer than three events are no cases: all of their events are for training.
        is_case = (np.bincount(users) >= 3)[users]
        in_training = ~is_case | (from_end >= 2)
        validation, test = is_case & (from_end == 1), is_case & (from_end == 0)
    elif kind == "time":
        times = frame["timestamp"].to_numpy()
        first, second = np.quantile(times, TIME_QUANTILES, method="higher")
        in_training = times < first
        validation = _first_of_user(users, (times >= first) & (times < second))
        test = _first_of_user(users, times >= second)
    else:
        if not 0 <= fold < folds or folds < 3:
            raise DataError(f"fold must be in [0, folds) and folds at least 3: {fold}, {folds}")
        random = np.random.Generator(np.random.Philox([seed, folds]))
        fold_of = random.permutation(users[-1] + 1) % folds
        in_training = (fold_of[users] != fold) & (fold_of[users] != (fold + 1) % folds)
        validation = (fold_of[users] == (fold + 1) % folds) & (from_end == 0)
        test = (fold_of[users] == fold) & (from_end == 0)
    # The papers rank all items of the log, also those outside training.
    known = frame if kind == "leave-one-out" else frame.filter(pl.Series(in_training))
    ids = known.select(pl.col("item_id").unique().sort())
    is_text = ids["item_id"].dtype == pl.String
    vocabulary = Vocabulary(ids["item_id"].to_list() if is_text else ids["item_id"].to_numpy())
    indices = ids.with_row_index("index", offset=1)
    joined = frame.join(indices, on="item_id", how="left", maintain_order="left")
    items = joined["index"].fill_null(0).to_numpy().astype(np.int64)
    times = frame["timestamp"].to_numpy()
    lengths = np.unique(users[in_training], return_counts=True)[1]
    ratings = None
    if "rating" in frame.columns:
        ratings = frame["rating"].cast(pl.Float32).to_numpy()[in_training]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    split = Split(
        kind,
        vocabulary,
        Sequences(items[in_training], offsets, ratings, times[in_training]),
        _cases(users, items, times, validation, strict_time=kind == "time"),
        _cases(users, items, times, test, strict_time=kind == "time"),
    )
    for name, cases in (("validation", split.validation), ("test", split.test)):
        if not len(cases):
            raise DataError(
                f"the {kind} split leaves no {name} user: leave-one-out needs users with at "
                "least 3 events, time and k-fold need users with an earlier event"
            )
    if not (split.training.lengths > 1).any():
        raise DataError(f"the {kind} split leaves no user with two training events")
    return split


def _first_of_user(users: Ints, candidate: Mask) -> Mask:
    places = np.flatnonzero(candidate)
    first = np.zeros(len(users), dtype=bool)
    first[places[np.unique(users[places], return_index=True)[1]]] = True
    return first


def _cases(users: Ints, items: Ints, times: Ints, is_target: Mask, *, strict_time: bool) -> Cases:
    """Return the target events with all earlier events of their users; empty histories drop out.

    With ``strict_time`` an event at the same instant as the target is not part of the history.
    """
    targets = np.flatnonzero(is_target)
    starts, ends = np.searchsorted(users, users[targets]), targets
    if strict_time:
        pairs = zip(starts.tolist(), targets.tolist(), strict=True)
        lengths = [np.searchsorted(times[start:end], times[end]) for start, end in pairs]
        ends = starts + np.array(lengths, dtype=np.int64)
    kept = ends > starts
    places, offsets = ragged_places(starts[kept], (ends - starts)[kept])
    targets = targets[kept]
    histories = Sequences(items[places], offsets, times=times[places])
    return Cases(histories, items[targets], times[targets])
