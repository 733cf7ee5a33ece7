"""Questions: what is asked of a ranking besides the history, the same for a whole batch.

A ranking is cut from the best items in three steps: at most so many of a kind, maximal marginal
relevance, and the page from ``skip`` on.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ranklet.attributes import Attributes
from ranklet.catalogue import (
    LARGEST_BOOST,
    Bias,
    Boost,
    Catalogue,
    Eligible,
    Where,
    listed_conditions,
)
from ranklet.engine.engine import Floats, Indices
from ranklet.errors import InputError
from ranklet.explanation import EXAMINED
from ranklet.values import (
    Ids,
    bounded,
    check_k,
    choice,
    flag,
    kind,
    mapping,
    reading,
    show,
    whole,
)

Cold = Literal["popular", "trending"]
COLD = ("popular", "trending")
# Items that maximal marginal relevance chooses from: of k, and at least.
POOL_FACTOR, SMALLEST_POOL = 4, 100
# Items to look at for ``at_most``, of k, and at least; if they are too few, ever more.
LIMIT_FACTOR, FEWEST = 4, 64


class Top(NamedTuple):
    """The best items for one user, best first."""

    items: Indices
    scores: Floats  # falling
    floor: float | None  # by codes, the last score of the pool; None: no item is outside
    is_all: bool  # whether no other item can be ranked


class Question(NamedTuple):
    """A checked question.

    Attributes:
        k: The number of items to return.
        bias: Of a filter and boosts; None: that of the catalogue.
        skip: The number of best items to leave out, as they were on earlier pages.
        min_score: The least score of an answer.
        at_most: Attributes, and the most items of each of their values.
        diversity: 0 ranks by score alone, 1 by difference alone.
        penalty: Points that recently seen items lose.
        by_trend: Whether cold users are shown what is popular lately.
        explain: The number of events to examine for each ranking; 0: none.
        depth: The number of best items to look at.
        is_cut: Whether the answer is another part of the best items than the first k.
        exact: Whether all items are scanned, though the bundle has an index.
    """

    k: int
    bias: Bias | None = None
    skip: int = 0
    min_score: float | None = None
    at_most: tuple[tuple[str, int], ...] = ()
    diversity: float = 0.0
    penalty: float = 0.0
    by_trend: bool = False
    explain: int = 0
    depth: int = 0
    is_cut: bool = False
    exact: bool = False

    def choose(self, catalogue: Catalogue, top: Top) -> NDArray[np.int64] | None:
        """Return the places of the page among the best items, in its order, before ``min_score``.

        None: more items must be looked at.
        """
        wanted, items, scores = self.skip + self.k, top.items, top.scores
        limits = Limits(catalogue.attributes, self.at_most, items)
        if self.diversity and len(items):
            pool = slice(None if self.at_most else max(POOL_FACTOR * wanted, SMALLEST_POOL))
            rows = catalogue.rows(items[pool])
            places = marginal_relevance(rows, scores[pool], self.diversity, wanted, limits)
        elif self.at_most:
            places = limits.first(len(items), wanted)
        else:
            places = np.arange(min(wanted, len(items)))
        if len(places) < wanted and not top.is_all:
            return None
        return places[self.skip :]


class Limits:
    """Counts of the items of each value of some attributes in an answer."""

    def __init__(
        self, attributes: Attributes, at_most: tuple[tuple[str, int], ...], items: Indices
    ) -> None:
        """Look up the values of items."""
        self._codes = [(most, attributes.codes(name, items)) for name, most in at_most]
        self._counts: list[dict[int, int]] = [{} for _ in at_most]

    def take(self, place: int) -> bool:
        """Count an item unless one of its values has enough; return whether it was counted."""
        if not self._codes:
            return True
        pairs = list(zip(self._codes, self._counts, strict=True))
        for (most, codes), counts in pairs:
            if any(counts.get(code, 0) >= most for code in codes[place]):
                return False
        for (_, codes), counts in pairs:
            for code in codes[place]:
                counts[code] = counts.get(code, 0) + 1
        return True

    def first(self, size: int, wanted: int) -> NDArray[np.int64]:
        """Return the places of the first items that all limits allow."""
        places: list[int] = []
        for place in range(size):
            if len(places) == wanted:
                break
            if self.take(place):
                places.append(place)
        return np.array(places, dtype=np.int64)


def marginal_relevance(
    rows: Floats, scores: Floats, diversity: float, wanted: int, limits: Limits
) -> NDArray[np.int64]:
    """Return places by maximal marginal relevance, at most ``wanted``.

    The next item has the largest (1 - diversity) r - diversity s, where r is its score scaled to
    [0, 1] among these, and s its largest cosine with an item that was chosen before. Source:
    Carbonell and Goldstein, "The Use of MMR", SIGIR 1998.
    """
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
    # Vectors of this length have cosines times the diversity as products.
    unit = rows * (diversity**0.5 / np.maximum(lengths, np.finfo(np.float32).tiny))
    least = scores.min()
    relevance = (scores - least) * ((1 - diversity) / (float(scores[0] - least) or 1.0))
    nearest, worth = np.full((2, len(rows)), -diversity, dtype=np.float32)
    places: list[int] = []
    for _ in range(len(rows)):
        if len(places) == wanted:
            break
        place = int(np.subtract(relevance, nearest, out=worth).argmax())
        relevance[place] = -np.inf
        if limits.take(place):
            places.append(place)
            np.maximum(nearest, unit @ unit[place], out=nearest)
    return np.array(places, dtype=np.int64)


def read_question(
    catalogue: Catalogue,
    k: int,
    eligible: Eligible | None = None,
    where: Where | None = None,
    boost: Boost | None = None,
    seen_recently: Ids | None = None,
    penalty: float = 0.0,
    min_score: float | None = None,
    at_most: Mapping[str, int] | None = None,
    skip: int = 0,
    diversity: float = 0.0,
    cold: Cold = "popular",
    explain: bool | int = False,
    exact: bool = False,
) -> Question:
    """Return a checked question, see ``Ranker.rank``.

    Raises:
        InputError: A value can't be used; the message names it.
    """
    bias = None
    if type(k) is not int or k < 1:
        k = check_k(k)
    if exact is not False:
        exact = flag(exact, "exact")
    is_whole = where is None and boost is None and eligible is None and seen_recently is None
    has_limits = min_score is not None or at_most is not None
    if is_whole and not has_limits and _is_plain(skip, diversity, cold, explain):
        return Question(k, depth=k, exact=exact)
    if where is not None or boost is not None or eligible is not None:
        bias = _bias(catalogue, eligible, where, boost)
    limits = () if at_most is None else _limits(catalogue, at_most)
    if min_score is not None:
        min_score = bounded(min_score, "min_score", 3e38)
    if type(skip) is not int or skip != 0:
        skip = whole(skip, "skip", 0)
    if type(diversity) is not float or diversity != 0:
        diversity = bounded(diversity, "diversity", 1.0, 0.0)
    penalty = 0.0 if seen_recently is None else bounded(penalty, "penalty", LARGEST_BOOST, 0.0)
    cold = choice(cold, "cold", COLD)
    examined = 0 if explain is False else _examined(explain)
    depth, is_cut = skip + k, bool(skip or limits or diversity or min_score is not None)
    if diversity:
        depth = max(POOL_FACTOR * depth, SMALLEST_POOL)
    elif limits:
        depth = max(LIMIT_FACTOR * depth, FEWEST)
    by_trend = cold != "popular"
    return Question(
        *(k, bias, skip, min_score, limits, diversity, penalty, by_trend, examined, depth, is_cut),
        exact,
    )


def _is_plain(skip: object, diversity: object, cold: object, explain: object) -> bool:
    """Return whether these are the defaults, of their types."""
    return (
        explain is False
        and type(skip) is int
        and skip == 0
        and type(diversity) is float
        and diversity == 0
        and type(cold) is str
        and cold == "popular"
    )


def _bias(
    catalogue: Catalogue, eligible: Eligible | None, where: Where | None, boost: Boost | None
) -> Bias:
    if eligible is not None and type(eligible) is not Eligible:
        raise InputError(f"eligible is a {kind(eligible)}; pass what Ranker.eligible(ids) returns")
    with reading("where or boost"):
        if eligible is not None:
            where = eligible if where is None else [eligible, *listed_conditions(where)]
        return catalogue.bias(where, boost)


def _limits(catalogue: Catalogue, at_most: object) -> tuple[tuple[str, int], ...]:
    """Return attributes and their limits."""
    limits = mapping(at_most, "at_most", "pass {attribute: number}")
    for name in limits:
        catalogue.attributes.values(name)  # raises its errors
    return tuple((n, whole(most, f"at_most of {show(n)}", 1)) for n, most in limits.items())


def _examined(explain: object) -> int:
    """Return the number of events to examine."""
    if issubclass(type(explain), bool | np.bool_):
        return EXAMINED if flag(explain, "explain") else 0
    return whole(explain, "explain", 1)
