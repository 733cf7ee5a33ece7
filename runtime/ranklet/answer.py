"""Rankings of checked requests, by user vectors or popularity.

* A history without a known event is ranked by popularity.
* Candidates are scored with mapped rows of the item table, all else by a scan of the catalogue.
* Ties go to the lower item index.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import inf
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ranklet.bundle.damage import check_items, finite, not_finite
from ranklet.bundle.folder import Opened, read_popularity, read_trending
from ranklet.bundle.manifest import NEVER, POPULARITY, TRENDING, Manifest
from ranklet.catalogue import Catalogue
from ranklet.engine.engine import MOST_EVENTS, MOST_USERS, NONE, Best, Engine, History, Indices
from ranklet.errors import InputError
from ranklet.explanation import Explanation, explain
from ranklet.forks import cached_property
from ranklet.question import Question, Top
from ranklet.ranking import Margin, Origin, Ranking
from ranklet.request import Request

Floats = NDArray[np.float32]
T = TypeVar("T")
DEEPER = 4  # times as many items are looked at where a question needs more
NO_HISTORY = Request(None, 0, NONE, None)
NOBODY: list[Indices] = []


class Answers:
    """Ranking of a catalogue with an engine."""

    def __init__(
        self, engine: Engine, manifest: Manifest, catalogue: Catalogue, opened: Opened
    ) -> None:
        """Rank the items of a catalogue."""
        self.engine, self.catalogue = engine, catalogue
        self._manifest, self._opened = manifest, opened
        self._origin = Origin(manifest.digest, catalogue.titles)
        self._pool, self._rounding = manifest.pool, manifest.rounding
        self._is_grown = len(catalogue.added) > 0

    def rank(self, requests: Sequence[Request], question: Question) -> list[Ranking]:
        """Rank for histories."""

        def encode(rows: list[int]) -> Floats:
            return self.encode([h for row in rows if (h := requests[row].history)])

        return self.rank_users(requests, encode, question)

    def rank_one(
        self,
        request: Request,
        question: Question,
        encode: Callable[[History], Floats] | None = None,
    ) -> Ranking:
        """Rank for one history, or for the user vector (1, D) that ``encode`` returns."""
        left, history = self._left(request, question, question.depth), request.history
        if history is None or not (left or self._others(request, question)):
            return self._rank_popular(request, question)
        attention = None
        if question.explain and encode is None:
            attention = self.engine.attention(history)
        if attention:
            user = attention[0]
        else:
            user = encode(history) if encode else self.engine.encode((history,))
        if request.candidates is not None:
            ranking = self._rank_candidates(user, request, question)
        else:
            ranking = self._rank_catalogue(user, (request,), question, left)[0]
        if question.explain:
            return self._explained(ranking, history, question, attention)
        return ranking

    def rank_users(
        self,
        requests: Sequence[Request],
        encode: Callable[[list[int]], Floats],
        question: Question,
    ) -> list[Ranking]:
        """Rank for users; ``encode`` returns the user vectors of some rows of ``requests``."""
        answers: dict[int, Ranking] = {}
        left = [self._left(request, question, question.depth) for request in requests]
        warm = [
            row
            for row, request in enumerate(requests)
            if request.history and (left[row] or self._others(request, question))
        ]
        users = encode(warm) if warm else np.zeros((0, 0), dtype=np.float32)
        # Where few items are left, the pool is smaller, which takes another run.
        groups: dict[tuple[int, bool], list[int]] = {}
        for place, row in enumerate(warm):
            request = requests[row]
            if request.candidates is not None:
                user = users[place : place + 1]
                answers[row] = self._rank_candidates(user, request, question)
            else:
                has_own = len(request.excluded) + len(request.demoted) > 0
                groups.setdefault((left[row], has_own), []).append(place)
        for (size, _), places in groups.items():
            for part in batches(places, self.engine.most_users):
                rows = [warm[place] for place in part]
                chosen = [requests[row] for row in rows]
                rankings = self._rank_catalogue(users[part], chosen, question, size)
                answers.update(zip(rows, rankings, strict=True))
        for row, request in enumerate(requests):
            if row not in answers:
                answers[row] = self._rank_popular(request, question)
            elif question.explain and request.history:
                answers[row] = self._explained(answers[row], request.history, question)
        return [answers[row] for row in range(len(requests))]

    @cached_property
    def of_items(self) -> "Answers":
        """Return answers of which ``similar`` is one: the bias of new items is in other units."""
        return Answers(self.engine, self._manifest, self.catalogue.neutral(), self._opened)

    def similar(self, item: int, request: Request, question: Question) -> Ranking:
        """Rank by the product with the row of an item, in units of that of the item itself."""
        row = self.catalogue.rows(np.array([item]))
        user = row / np.maximum(np.square(row).sum(), np.finfo(np.float32).tiny)
        left = self._left(request, question, question.depth)
        if request.candidates is not None:
            return self._rank_candidates(user, request, question)
        return self._rank_catalogue(user, (request,), question, left)[0]

    def encode(self, histories: list[History]) -> Floats:
        """Return the user vectors of histories, in their order."""
        users = np.zeros((len(histories), self._manifest.width), dtype=np.float32)
        for part in by_length([len(history.items) for history in histories]):
            users[part] = self.engine.encode([histories[row] for row in part])
        return finite(users)

    def popular(self, question: Question) -> Ranking:
        """Rank by popularity alone."""
        return self._rank_popular(NO_HISTORY, question)

    def _rank_catalogue(
        self, users: Floats, requests: Sequence[Request], question: Question, left: int
    ) -> list[Ranking]:
        """Rank the catalogue for users; ``left`` is as of ``_left``, the same for all."""
        depth, vocabulary = question.depth, self.catalogue.vocabulary
        best = self._score(users, requests, question, depth, left)
        has_outside = best.pool_scores is not None and left == self._pool.size(depth)
        rankings = []
        for row, request in enumerate(requests):
            user = users[row]
            if question.is_cut or self._is_grown:
                top = self._top(best, row, user, request, question, depth, left)
                rankings.append(self._answer(request, question, top, user))
                continue
            margin, scores = None, best.scores[row]
            last = scores.item(-1) if left else 0.0
            if left and not -inf < last <= scores.item(0) < inf:  # NaN, too
                raise not_finite()
            if has_outside:  # else a pool of all items that are left needs no proof
                margin = self._margin(user, last, best.pool_scores.item(row, -1))  # type: ignore[union-attr]
            ids = vocabulary.ids(best.items[row])
            unknown = request.unknown
            rankings.append(Ranking(ids, scores, unknown, False, None, margin, self._origin))
        return rankings

    def _rank_candidates(self, user: Floats, request: Request, question: Question) -> Ranking:
        """Rank candidates by their rows for a user, (1, D)."""
        catalogue, items = self.catalogue, request.candidates
        items = NONE if items is None else items
        bias = catalogue.at(question.bias or catalogue.own, items)
        is_open = bias > NEVER / 2
        items, bias = items[is_open], bias[is_open]
        scores = self._scores(user[0], items) + bias
        if len(request.demoted):
            scores[np.isin(items, request.demoted)] -= question.penalty
        order = np.lexsort((catalogue.ties(items), -scores))
        top = Top(items[order], scores[order], None, is_all=True)
        return self._answer(request, question, top, user[0])

    def _rank_popular(self, request: Request, question: Question) -> Ranking:
        """Rank by popularity: for a cold user, or where no item is left."""
        top = self._most_popular(request, question, question.depth)
        return self._answer(request, question, top, None)

    def _answer(
        self, request: Request, question: Question, top: Top, user: Floats | None
    ) -> Ranking:
        """Return what a question cuts from the best items for a user, (D,); None: by popularity."""
        catalogue, items, scores, last = self.catalogue, top.items, top.scores, -1
        is_cold = request.history is None and user is None
        if question.is_cut:
            depth = question.depth
            while (places := question.choose(catalogue, top)) is None:
                depth *= DEEPER
                top = self._deeper(request, question, depth, user)
            # The proof covers items that ``min_score`` drops: another could have reached it.
            last = -1 if question.diversity else int(places.max(initial=0))
            if question.min_score is not None and not is_cold:
                places = places[top.scores[places] >= question.min_score]
            items, scores = top.items[places], top.scores[places]
        elif len(items) > question.k:
            items, scores = items[: question.k], scores[: question.k]
        margin = None
        if top.floor is not None and self._rounding is not None and user is not None:
            margin = self._margin(user, top.scores.item(last), top.floor)
        ids = catalogue.vocabulary.ids(items)
        return Ranking(ids, scores, request.unknown, is_cold, None, margin, self._origin)

    def _explained(
        self,
        ranking: Ranking,
        history: History,
        question: Question,
        attention: tuple[Floats, Floats] | None = None,
    ) -> Ranking:
        """Return a ranking with what the events of the history do to its scores."""
        vocabulary = self.catalogue.vocabulary
        rows = self.catalogue.rows(vocabulary.index(ranking.items))
        effects = explain(self.engine, history, rows, question.explain, attention)
        events = vocabulary.ids(history.items)
        explanation = Explanation(ranking.items, events, effects, self.catalogue.titles)
        return replace(ranking, explanation=explanation)

    def _deeper(self, request: Request, question: Question, depth: int, user: Floats | None) -> Top:
        """Return more of the best items."""
        if user is None:
            return self._most_popular(request, question, depth)
        left = self._left(request, question, depth)
        best = self._score(user[None], (request,), question, depth, left)
        return self._top(best, 0, user, request, question, depth, left)

    def _score(
        self,
        users: Floats,
        requests: Sequence[Request],
        question: Question,
        depth: int,
        left: int,
    ) -> Best:
        """Return the ``depth`` best items of the bundle for users, (B, D)."""
        if not left:
            none = np.zeros((len(users), 0))
            return Best(none.astype(np.int64), none.astype(np.float32))
        bias, excluded, demoted = question.bias or self.catalogue.own, NOBODY, NOBODY
        if len(requests[0].excluded):
            excluded = [self._in_bundle(request.excluded) for request in requests]
        if len(requests[0].demoted):
            demoted = [self._in_bundle(request.demoted) for request in requests]
        is_searched = self._manifest.index and not (question.exact or bias.lifts)
        probes = [
            self._manifest.probes(bias.items - len(request.excluded), depth + request.removed)
            for request in (requests if is_searched else ())
        ]
        return self.engine.score(
            users,
            min(depth, left),
            left,
            bias.table,
            bias.has_boosts,
            excluded,
            demoted,
            question.penalty,
            probes,
        )

    def _top(
        self,
        best: Best,
        row: int,
        user: Floats,
        request: Request,
        question: Question,
        depth: int,
        left: int,
    ) -> Top:
        """Return the best items for one of some users, with those of added items."""
        floor = None
        if left == self._pool.size(depth) and best.pool_scores is not None:
            floor = best.pool_scores.item(row, -1)
        check_items(best.items[row], self.catalogue.last)
        top = Top(best.items[row], finite(best.scores[row]), floor, is_all=left < depth)
        return self._with_added(top, user, request, question, depth) if self._is_grown else top

    def _margin(self, user: Floats, last: float, floor: float) -> Margin:
        """Return the margin of a ranking."""
        assert self._rounding is not None
        return Margin(user.copy(), last, floor, self._rounding)

    def _with_added(
        self, top: Top, user: Floats, request: Request, question: Question, depth: int
    ) -> Top:
        """Return the best items of the bundle and of the added items."""
        catalogue, bias = self.catalogue, question.bias or self.catalogue.own
        last = catalogue.last
        scores: Floats = np.einsum("dn,d->n", catalogue.added.columns, user) + bias.added
        if len(request.demoted):
            demoted = request.demoted
            scores[demoted[demoted > last] - last - 1] -= np.float32(question.penalty)
        if len(request.excluded):
            excluded = request.excluded
            scores[excluded[excluded > last] - last - 1] = NEVER
        least = NEVER / 2 if len(top.items) < depth else top.scores[-1]
        places = np.flatnonzero(scores >= least)
        if not len(places):
            return top
        items = np.concatenate([top.items, places + last + 1])
        scores = np.concatenate([top.scores, scores[places]])
        order = np.lexsort((catalogue.ties(items), -scores))[:depth]
        is_all = top.is_all and len(order) == len(items)
        return Top(items[order], scores[order], top.floor, is_all)

    def _in_bundle(self, items: Indices) -> Indices:
        return items[items <= self.catalogue.last] if self._is_grown else items

    def _scores(self, user: Floats, items: Indices) -> Floats:
        """Return the scores of items for a user, (D,), by their rows."""
        if not self._is_grown:
            return finite(self.engine.score_rows(user, items))
        scores: Floats = np.einsum("nd,d->n", self.catalogue.rows(items), user)
        return finite(scores)

    def _left(self, request: Request, question: Question, depth: int) -> int:
        """Return the number of items that can be ranked, at most the size of the pool."""
        pool, bias = self._pool.size(depth), question.bias or self.catalogue.own
        if request.candidates is not None:
            values = self.catalogue.at(bias, request.candidates)
            return int(np.count_nonzero(values > NEVER / 2))
        if bias.items - len(request.excluded) >= pool:
            return pool
        excluded = np.unique(self._in_bundle(request.excluded))
        is_open = self.catalogue.at(bias, excluded) > NEVER / 2
        return min(pool, bias.items - int(np.count_nonzero(is_open)))

    def _others(self, request: Request, question: Question) -> bool:
        """Return whether added items can be ranked in the whole catalogue."""
        bias = question.bias or self.catalogue.own
        return bias.others > 0 and request.candidates is None

    def _most_popular(self, request: Request, question: Question, depth: int) -> Top:
        """Return the ``depth`` most popular items; demoted ones are the last."""
        bias = question.bias or self.catalogue.own
        order, shares = self._trending if question.by_trend else self._popularity
        if request.candidates is not None:
            candidates = request.candidates
            order = candidates[np.lexsort((self.catalogue.ties(candidates), -shares[candidates]))]
        if bias.items + bias.others < len(self.catalogue.vocabulary):
            order = order[self.catalogue.at(bias, order) > NEVER / 2]
        if len(request.demoted):
            is_last = np.isin(order, request.demoted)
            order = np.concatenate([order[~is_last], order[is_last]])
        first = order[: depth + len(request.excluded)]
        items = first[~np.isin(first, request.excluded)][:depth]
        return Top(items, shares[items], None, is_all=len(items) < depth)

    @cached_property
    def _popularity(self) -> tuple[Indices, Floats]:
        """Item indices by falling popularity, and the popularity of every index from 0."""
        with self._opened.unchanged(POPULARITY) as folder:
            return self._by_share(read_popularity(folder, self._manifest))

    @cached_property
    def _trending(self) -> tuple[Indices, Floats]:
        """The same by the share of the latest events; equal ones by popularity."""
        with self._opened.unchanged(TRENDING) as folder:
            recent = read_trending(folder, self._manifest)
        if recent is None:
            raise InputError(
                "this bundle does not know what was popular lately: train and export it again"
            )
        return self._by_share(recent, self._popularity[1])

    def _by_share(self, of_bundle: Floats, then: Floats | None = None) -> tuple[Indices, Floats]:
        """Return all items by falling share, ``then`` by another one, then by id."""
        shares = np.zeros(len(self.catalogue.vocabulary) + 1, dtype=np.float32)
        shares[1 : len(of_bundle) + 1] = of_bundle
        items = np.arange(1, len(shares))
        second = shares if then is None else then
        return np.lexsort((self.catalogue.ties(items), -second[1:], -shares[1:])) + 1, shares


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
