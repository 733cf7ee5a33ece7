"""Rankings of checked requests, by user vectors or popularity.

* A history without a known event is ranked by popularity.
* Candidates are scored with mapped rows of the item table, all else by a scan of the catalogue.
* Ties go to the lower item index.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ranklet.bundle.folder import Opened, read_popularity
from ranklet.bundle.manifest import POPULARITY, Manifest, Rounding
from ranklet.bundle.vocabulary import Vocabulary
from ranklet.engine.engine import MOST_EVENTS, MOST_USERS, SUMS, Engine, History
from ranklet.errors import InputError
from ranklet.request import Eligible, Indices, Request
from ranklet.titles import Titles

Floats = NDArray[np.float32]
T = TypeVar("T")
SHOWN, SHOWN_ROWS = 10, 50  # items of a long ranking, as text and as a table


@dataclass(frozen=True, slots=True, eq=False, repr=False)  # comparing arrays would raise
class Ranking:
    """The best items for one history, best first. A notebook shows it as a table.

    Attributes:
        items: Item ids, of the bundle's id type.
        scores: One score for each item, falling, (items,). For a cold user the score is the
            popularity of the item, its share of the training events.
        unknown: The number of history ids that the catalogue lacks.
        cold: Whether no event of the history is known. The items are then the most popular ones.
    """

    items: list[str] | list[int]
    scores: NDArray[np.float32]
    unknown: int
    cold: bool
    _margin: "Margin | None" = None
    _titles: Titles | None = None

    @property
    def exact(self) -> bool:
        """Whether these items are proven to be those of fp32 scores.

        It is false only for some rankings of an int8 or int4 bundle, where an item outside the
        re-scored pool may be as good as the last one here.
        """
        return self._margin is None or self._margin.is_safe()

    def to_dict(self) -> dict[str, Any]:
        """Return items, scores, unknown, cold and exact as lists and Python values, for JSON."""
        return {
            "items": list(self.items),
            "scores": self.scores.tolist(),
            "unknown": self.unknown,
            "cold": self.cold,
            "exact": self.exact,
        }

    def __repr__(self) -> str:
        """Show the first items with their scores."""
        pairs = zip(self.items[:SHOWN], self.scores[:SHOWN].tolist(), strict=True)
        best = [f"{item!r}: {score:.4f}" for item, score in pairs]
        best += ["..."] * (len(self.items) > SHOWN)
        counts = f"{len(self.items)} items, unknown={self.unknown}, cold={self.cold}"
        return f"<Ranking {{{', '.join(best)}}}, {counts}>"

    def _repr_html_(self) -> str:
        """Return the first items as a table, with their titles if the bundle has any."""
        items = self.items[:SHOWN_ROWS]
        columns: dict[str, Sequence[object]] = {
            "rank": range(1, len(items) + 1),
            "item": items,
            "popularity" if self.cold else "score": [f"{s:.4f}" for s in self.scores[:SHOWN_ROWS]],
        }
        titles = self._titles.of(items) if self._titles else None
        if titles and titles != [str(item) for item in items]:
            columns["title"] = titles
        head = "".join(f"<th>{name}</th>" for name in columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>"
            for row in zip(*columns.values(), strict=True)
        )
        more = len(self.items) - len(items)
        note = f"<p>and {more:,} more</p>" if more else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        """Pickle everything but the titles, which belong to the open bundle."""
        return Ranking, (self.items, self.scores, self.unknown, self.cold, self._margin)


class Margin(NamedTuple):
    """The margin that proves that scores by codes missed no better item."""

    user: Floats  # (D,), a copy: the original array holds a batch
    last: float  # score of the last item
    floor: float  # by codes, the last score of the pool
    rounding: Rounding

    def is_safe(self) -> bool:
        """Return whether the last score beats every possible score outside the pool."""
        # Sums of fp32 products are off, too, by far less than 1e-4.
        slack = self.rounding.bound(self.user) + SUMS * (1 + abs(self.floor))
        return bool(self.last > self.floor + slack)


class Answers:
    """Ranking of a bundle's catalogue with its engine."""

    def __init__(
        self, engine: Engine, manifest: Manifest, vocabulary: Vocabulary, opened: Opened
    ) -> None:
        """Rank the items of a vocabulary."""
        self.engine, self.vocabulary = engine, vocabulary
        self._manifest, self._opened = manifest, opened
        self._items, self._pool = manifest.items, manifest.pool
        self._rounding = manifest.rounding
        self.titles = Titles(opened, manifest, vocabulary)

    def eligible(self, indices: Indices) -> Eligible:
        """Return a filter that allows only these items."""
        return Eligible(indices, self.engine.bias, self)

    def check_eligible(self, eligible: Eligible) -> None:
        """Refuse a filter of another ranker, and any other type."""
        if not isinstance(eligible, Eligible):
            kind = type(eligible).__name__
            raise InputError(f"eligible is a {kind}; pass what Ranker.eligible(ids) returns")
        if eligible.owner is not self:
            raise InputError("eligible was made by another ranker: make it with this one")

    def rank(self, requests: Sequence[Request], k: int, eligible: Eligible | None) -> list[Ranking]:
        """Rank for histories."""

        def encode(rows: list[int]) -> Floats:
            return self._encode([h for row in rows if (h := requests[row].history)])

        return self.rank_users(requests, encode, k, eligible)

    def rank_one(
        self,
        request: Request,
        k: int,
        eligible: Eligible | None,
        encode: Callable[[History], Floats] | None = None,
    ) -> Ranking:
        """Rank for one history, or for the user vector (1, D) that ``encode`` returns."""
        left = self._left(request, k, eligible)
        if request.history is None or not left:
            return self._popular(request, k, eligible)
        user = encode(request.history) if encode else self.engine.encode((request.history,))
        if request.candidates is not None:
            return self._rank_candidates(user[0], request, k, eligible)
        return self._score(user, (request,), k, left, eligible)[0]

    def rank_users(
        self,
        requests: Sequence[Request],
        encode: Callable[[list[int]], Floats],
        k: int,
        eligible: Eligible | None,
    ) -> list[Ranking]:
        """Rank for users; ``encode`` returns the user vectors of some rows of ``requests``."""
        answers: dict[int, Ranking] = {}
        left = [self._left(request, k, eligible) for request in requests]
        warm = [row for row, request in enumerate(requests) if request.history and left[row]]
        users = encode(warm) if warm else np.zeros((0, 0), dtype=np.float32)
        # Where few items are left, the pool is smaller, which takes another run.
        groups: dict[tuple[int, bool], list[int]] = {}
        for place, row in enumerate(warm):
            request = requests[row]
            if request.candidates is not None:
                answers[row] = self._rank_candidates(users[place], request, k, eligible)
            else:
                groups.setdefault((left[row], len(request.excluded) > 0), []).append(place)
        for (size, _), places in groups.items():
            for part in batches(places, self.engine.most_users):
                rows = [warm[place] for place in part]
                chosen = [requests[row] for row in rows]
                rankings = self._score(users[part], chosen, k, size, eligible)
                answers.update(zip(rows, rankings, strict=True))
        for row, request in enumerate(requests):
            if row not in answers:
                answers[row] = self._popular(request, k, eligible)
        return [answers[row] for row in range(len(requests))]

    def _score(
        self,
        users: Floats,
        requests: Sequence[Request],
        k: int,
        left: int,
        eligible: Eligible | None,
    ) -> list[Ranking]:
        """Rank the catalogue for users who may all be shown ``left`` items, or a whole pool."""
        excluded: list[Indices] = []
        if len(requests[0].excluded):
            excluded = [request.excluded for request in requests]
        bias = None if eligible is None else eligible.bias
        best = self.engine.score(users, min(k, left), left, bias=bias, excluded=excluded)
        # A pool of all items that are left needs no proof.
        rounding = self._rounding if left == self._pool.size(k) else None
        rankings = []
        for row, request in enumerate(requests):
            margin = None
            if rounding is not None and best.pool_scores is not None:
                last, floor = best.scores.item(row, -1), best.pool_scores.item(row, -1)
                margin = Margin(users[row].copy(), last, floor, rounding)
            ids = self.vocabulary.ids(best.items[row])
            rankings.append(
                Ranking(ids, best.scores[row], request.unknown, False, margin, self.titles)
            )
        return rankings

    def _encode(self, histories: list[History]) -> Floats:
        """Return the user vectors of histories, in their order."""
        users = np.zeros((len(histories), self._manifest.width), dtype=np.float32)
        for part in by_length([len(history.items) for history in histories]):
            users[part] = self.engine.encode([histories[row] for row in part])
        return users

    def _left(self, request: Request, k: int, eligible: Eligible | None) -> int:
        """Return the number of items that can be ranked, at most the size of the pool."""
        pool = self._pool.size(k)
        if request.candidates is not None:
            candidates = request.candidates
            return len(candidates if eligible is None else candidates[eligible.allows(candidates)])
        count = self._items if eligible is None else eligible.count
        if count - len(request.excluded) >= pool:
            return pool
        excluded = np.unique(request.excluded)
        if eligible is not None:
            excluded = excluded[eligible.allows(excluded)]
        return min(pool, count - len(excluded))

    def _rank_candidates(
        self, user: Floats, request: Request, k: int, eligible: Eligible | None
    ) -> Ranking:
        candidates = request.candidates
        assert candidates is not None
        if eligible is not None:
            candidates = candidates[eligible.allows(candidates)]
        scores = self.engine.score_rows(user, candidates)
        order = np.lexsort((candidates, -scores))[:k]
        ids = self.vocabulary.ids(candidates[order])
        return Ranking(ids, scores[order], request.unknown, cold=False, _titles=self.titles)

    def _popular(self, request: Request, k: int, eligible: Eligible | None) -> Ranking:
        """Rank by popularity: for a cold user, or where no item is left."""
        order, shares = self._popularity
        if request.candidates is not None:
            candidates = request.candidates
            order = candidates[np.lexsort((candidates, -shares[candidates]))]
        if eligible is not None:
            order = order[eligible.allows(order)]
        first = order[: k + len(request.excluded)]
        items = first[~np.isin(first, request.excluded)][:k]
        ids, is_cold = self.vocabulary.ids(items), request.history is None
        return Ranking(ids, shares[items], request.unknown, is_cold, _titles=self.titles)

    @cached_property
    def _popularity(self) -> tuple[Indices, Floats]:
        """Item indices by falling popularity, and the popularity of every index from 0."""
        with self._opened.unchanged(POPULARITY) as folder:
            shares = np.concatenate([[np.float32(0)], read_popularity(folder, self._manifest)])
        return np.argsort(-shares[1:], kind="stable") + 1, shares


def by_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield the rows of each encoder run: of similar lengths, and no more than the caches hold."""
    rows, begin = sorted(range(len(lengths)), key=lambda row: -lengths[row]), 0
    while begin < len(rows):
        end = begin + max(1, min(MOST_USERS, MOST_EVENTS // lengths[rows[begin]]))
        yield rows[begin:end]
        begin = end


def batches(rows: list[T], most: int) -> Iterator[list[T]]:
    """Yield parts of at most ``most`` rows."""
    for begin in range(0, len(rows), most):
        yield rows[begin : begin + most]
