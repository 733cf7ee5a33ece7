"""What a ranking is asked for, checked, and what it answers."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ranklet.bundle import Rounding
from ranklet.errors import InputError
from ranklet.graph import SUMS, Graphs
from ranklet.vocabulary import show

NOTHING: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
Times = Sequence[int] | NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)  # to compare arrays would raise
class Ranking:
    """The best items for one history, best first.

    Attributes:
        items: Item ids, of the bundle's id type.
        scores: One for each item, falling; for a cold user the popularity of the item.
        unknown: How many ids of the history the catalogue does not have.
        cold: No event of the history is known, so the answer is what is popular.
    """

    items: list[str] | list[int]
    scores: NDArray[np.float32]
    unknown: int
    cold: bool
    _margin: "Margin | None" = field(default=None, repr=False)

    @property
    def exact(self) -> bool:
        """Return whether 32-bit scores are proven to give these items.

        Always true, but for an int8 or int4 bundle where an item outside the pool that was scored
        again may be as good as the last one here.
        """
        return self._margin is None or self._margin.is_safe()


class Margin(NamedTuple):
    """What proves that scores by codes left no better item out of one row of answers."""

    user: NDArray[np.float32]  # its own: what it came with holds a batch and its states
    last: float  # score of the last item
    floor: float  # by codes, the last score of the pool
    rounding: Rounding

    def is_safe(self) -> bool:
        """Compare the last score with the best that an item outside the pool can have."""
        # Sums of fp32 products are off, too: far less than a ten thousandth.
        slack = self.rounding.bound(self.user) + SUMS * (1 + abs(self.floor))
        return bool(self.last > self.floor + slack)


@dataclass(frozen=True, slots=True, eq=False)
class Eligible:
    """Items that may be ranked, see ``Ranker.eligible``."""

    graphs: Graphs  # of the ranker that made it
    bias: NDArray[np.float32]
    count: int


class Request(NamedTuple):
    """One checked row: item indices only."""

    history: NDArray[np.int64]  # known events, the latest max_length of them
    since: NDArray[np.int64]  # bucket of the gap before each of them; empty if nobody asks
    until: int  # bucket of the gap from the last one to now
    unknown: int
    excluded: NDArray[np.int64]  # unique
    candidates: NDArray[np.int64] | None  # unique, none of them excluded


def check_k(k: Any) -> int:  # noqa: ANN401 (anything may come from outside)
    """Return how many items are asked for."""
    if isinstance(k, bool | np.bool_):
        raise InputError(f"k must be a positive integer, got {show(k)}")
    try:
        number = operator.index(k)
    except TypeError as error:
        raise InputError(f"k must be a positive integer, got {show(k)}") from error
    if number < 1:
        raise InputError(f"k must be at least 1, got {show(number)}")
    return number


def check_flag(exclude_seen: Any) -> None:  # noqa: ANN401 (anything may come from outside)
    """Refuse what is neither true nor false, such as a list of items."""
    if exclude_seen is not False and not isinstance(exclude_seen, int | np.bool_):
        raise InputError(f"exclude_seen must be True or False, got {show(exclude_seen)}")


def lists(values: Any, name: str, count: int | None = None) -> list[Any]:  # noqa: ANN401
    """Return one sequence of ids for each history, ``count`` of them if that is known."""
    if isinstance(values, str | bytes | dict | set | frozenset):
        raise InputError(f"{name} is a {type(values).__name__}; pass a list of lists of ids")
    try:
        rows = list(values)
    except TypeError as error:
        raise InputError(f"{name} is {show(values)}; pass a list of lists of ids") from error
    if count is not None and len(rows) != count:
        raise InputError(
            f"{name} has {len(rows)} lists for {count} histories: pass one for each history"
        )
    return rows
