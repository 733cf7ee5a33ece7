"""Cut an event log into what a model may learn from and what it is asked.

* ``leave-one-out``: a user's last event is the test, the one before it the validation, the rest
  is for training (the papers' protocol). It leaks: other users' later events are in training.
* ``time``: two instants cut the whole log, so nothing that is learned lies after what is asked;
  the catalogue, too, is what had happened by then. The one to trust for production.
* ``k-fold``: users are dealt into folds; one fold is the test, the next the validation, and what
  is asked is the last event of users that training never saw.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ranklet.errors import DataError
from ranklet.bundle.vocabulary import Vocabulary
from ranklet_training.data.sequences import Sequences

SplitKind = Literal["leave-one-out", "time", "k-fold"]

# Training gets the first 80 % of the events, validation the next 10 %, test the last 10 %.
TIME_QUANTILES = (0.8, 0.9)


@dataclass(frozen=True)
class Cases:
    """Questions with known answers: given ``histories[i]``, the next event was ``targets[i]``.

    A target that the catalogue does not have is 0: it counts as a miss. Where histories have times,
    ``target_times`` are the instants at which is asked.
    """

    histories: Sequences
    targets: NDArray[np.int64]
    target_times: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """Return the number of questions."""
        return len(self.targets)

    def times(self, row: int) -> NDArray[np.int64]:
        """Return the times of one history."""
        assert self.histories.times is not None
        offsets = self.histories.offsets
        return self.histories.times[offsets[row] : offsets[row + 1]]

    def take(self, rows: NDArray[np.int64]) -> "Cases":
        """Return some of the questions, in the order of ``rows``."""
        lengths = self.histories.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        shift = np.repeat(self.histories.offsets[rows] - offsets[:-1], lengths)
        places = np.arange(len(shift)) + shift
        items, times = self.histories.items, self.histories.times
        return Cases(
            Sequences(items[places], offsets, times=None if times is None else times[places]),
            self.targets[rows],
            None if self.target_times is None else self.target_times[rows],
        )


@dataclass(frozen=True)
class Split:
    """What a model learns from, and the questions for choosing and for judging it."""

    kind: SplitKind
    vocabulary: Vocabulary
    training: Sequences
    validation: Cases
    test: Cases

    @property
    def notes(self) -> str:
        """Return one line that says what was cut, and what to know about it."""
        warning = {
            "leave-one-out": "later events of other users are in training: not for production",
            "time": "nothing that is learned lies after what is asked",
            "k-fold": "asked about users that training never saw",
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
    """Cut a frame of ``read_events`` (sorted by user and time).

    Args:
        frame: Columns user_id, item_id, timestamp, perhaps rating.
        kind: The protocol, see the module.
        folds: Number of folds of ``k-fold``.
        fold: Which of them is the test, from 0.
        seed: Deals users into folds.

    Raises:
        DataError: Nothing is left to train on or to ask.
    """
    users = frame["user_id"].rle_id().to_numpy().astype(np.int64)  # 0, 0, 0, 1, 1, ...
    from_end = _places_from_end(users)
    if kind == "leave-one-out":
        # Users with fewer than three events have nothing to spare: all of it is for training.
        is_asked = (np.bincount(users) >= 3)[users]
        in_training = ~is_asked | (from_end >= 2)
        validation, test = is_asked & (from_end == 1), is_asked & (from_end == 0)
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
    # The papers rank all items of the log, those that training lacks among them.
    known = frame if kind == "leave-one-out" else frame.filter(pl.Series(in_training))
    vocabulary = _vocabulary(known["item_id"])
    items = _indices(frame["item_id"], vocabulary)
    ratings = None
    if "rating" in frame.columns:
        ratings = frame["rating"].cast(pl.Float32).to_numpy()
    times = frame["timestamp"].to_numpy()
    split = Split(
        kind,
        vocabulary,
        _sequences(users, items, ratings, times, in_training),
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


def _places_from_end(users: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many events of the same user come after each event."""
    ends = np.cumsum(np.bincount(users))
    return ends[users] - 1 - np.arange(len(users))


def _first_of_user(users: NDArray[np.int64], candidate: NDArray[np.bool_]) -> NDArray[np.bool_]:
    places = np.flatnonzero(candidate)
    first = np.zeros(len(users), dtype=bool)
    first[places[np.unique(users[places], return_index=True)[1]]] = True
    return first


def _vocabulary(ids: pl.Series) -> Vocabulary:
    unique = ids.unique().sort()
    return Vocabulary(unique.to_list() if unique.dtype == pl.String else unique.to_numpy())


def _indices(ids: pl.Series, vocabulary: Vocabulary) -> NDArray[np.int64]:
    known = pl.DataFrame({"item_id": vocabulary.all_ids}, schema={"item_id": ids.dtype})
    found = pl.DataFrame({"item_id": ids}).join(
        known.with_row_index("index", offset=1), on="item_id", how="left", maintain_order="left"
    )
    return found["index"].fill_null(0).to_numpy().astype(np.int64)


def _sequences(
    users: NDArray[np.int64],
    items: NDArray[np.int64],
    ratings: NDArray[np.float32] | None,
    times: NDArray[np.int64],
    kept: NDArray[np.bool_],
) -> Sequences:
    lengths = np.unique(users[kept], return_counts=True)[1]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Sequences(items[kept], offsets, None if ratings is None else ratings[kept], times[kept])


def _cases(
    users: NDArray[np.int64],
    items: NDArray[np.int64],
    times: NDArray[np.int64],
    asked: NDArray[np.bool_],
    *,
    strict_time: bool,
) -> Cases:
    """Ask for the events at ``asked``, given all earlier events of their users.

    With ``strict_time`` an event at the same instant as the target is not part of the history.
    Users whose history is empty are not asked: a model has nothing to say about them.
    """
    starts = np.searchsorted(users, users)
    histories, history_times, places = [], [], []
    for place in np.flatnonzero(asked):
        end = place
        if strict_time:
            end = starts[place] + np.searchsorted(times[starts[place] : place], times[place])
        if end > starts[place]:
            histories.append(items[starts[place] : end])
            history_times.append(times[starts[place] : end])
            places.append(place)
    offsets = np.cumsum([0, *map(len, histories)], dtype=np.int64)
    nothing = np.zeros(0, dtype=np.int64)  # so that no histories can be joined, too
    flat = Sequences(
        np.concatenate([nothing, *histories]),
        offsets,
        times=np.concatenate([nothing, *history_times]),
    )
    return Cases(flat, items[places], times[places])
