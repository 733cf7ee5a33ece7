"""Ranker: load a bundle and rank, the public interface of the runtime.

It is in one file because it is one class: signatures, what they mean, and a few lines each.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranklet.bundle.manifest import Manifest
from ranklet.bundle.vocabulary import ItemId, Unknown, Vocabulary
from ranklet.catalogue import Boost, Eligible, ItemSet, Where
from ranklet.engine.engine import Engine, Floats
from ranklet.engine.sessions import MAX_THREADS, PROVIDERS, Provider
from ranklet.errors import BundleError, InputError
from ranklet.event_kinds import Kinds, Objective
from ranklet.forks import ProcessLock
from ranklet.golden import check_golden
from ranklet.kept import KeptHistory
from ranklet.new_items import Addition, add_items, remove_items, retitle
from ranklet.question import Cold, read_question
from ranklet.ranking import Ranking
from ranklet.request import Request
from ranklet.serving import Current, Serving
from ranklet.user import User, Users
from ranklet.values import (
    IdLists,
    Ids,
    Times,
    choice,
    flag,
    flat,
    folder_path,
    lists,
    plain,
    reading,
    show,
    whole,
)

WARM_UP = 3  # requests
MOST_OPENED = 4  # bundles that a process keeps open for rankers that were pickled


class Ranker:
    """A loaded bundle. Rankings keep no state: threads may share one ranker.

    The catalogue and the bundle may change (``add_items``, ``define``, ``reload``) while other
    threads rank: each call is answered by what was there when it began.
    """

    def __init__(self, serving: Serving) -> None:
        """Use ``Ranker.load``."""
        self._current = Current(serving)
        self._changing = ProcessLock()

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        provider: Provider = "auto",
        threads: int = 1,
        check_digests: bool = True,
        warm_up: bool = False,
    ) -> "Ranker":
        """Open a bundle.

        Args:
            path: Its folder.
            provider: ``"cuda"`` raises where CUDA does not run; ``"auto"`` may take the CPU and
                says so in ``Ranker.provider``.
            threads: Threads of one ranking.
            check_digests: Compare all files with their SHA-256, large ones while the engine loads.
                Without it a damaged bundle can give wrong answers; sizes are always compared.
            warm_up: Rank a few times, so that the first request is as fast as the others.

        Raises:
            BundleError: The bundle is missing, damaged or of a newer format.
            ProviderError: CUDA was asked for and does not run.
            InputError: An argument can't be used.
        """
        is_warm = flag(warm_up, "warm_up")
        serving = Serving.open(
            folder_path(path),
            choice(provider, "provider", PROVIDERS),
            whole(threads, "threads", 1, MAX_THREADS),
            owner=object(),
            check_digests=flag(check_digests, "check_digests"),
        )
        ranker = cls(serving)
        if is_warm:
            ranker._warm_up()
        return ranker

    @classmethod
    def from_hub(
        cls,
        name: str,
        *,
        revision: str | None = None,
        digest: str | None = None,
        provider: Provider = "auto",
        threads: int = 1,
        warm_up: bool = False,
    ) -> "Ranker":
        """Open a bundle of the Hugging Face Hub, downloaded once; needs the extra ``hub``.

        Args:
            name: ``"owner/name"``.
            revision: A branch, tag or commit; None: the main branch.
            digest: That of the manifest, ``manifest.digest``; any other bundle is refused.
            provider: As in ``load``.
            threads: As in ``load``.
            warm_up: As in ``load``.

        Raises:
            BundleError: There is no such bundle, it is damaged, or it has another digest.
            ProviderError: CUDA was asked for and does not run.
        """
        from ranklet.hub import download

        folder = download(name, revision, digest)
        return cls.load(folder, provider=provider, threads=threads, warm_up=warm_up)

    def reload(self, path: str | Path | None = None, *, check_digests: bool = True) -> None:
        """Replace the bundle while other threads rank, and return when it answers.

        Requests are answered by the old bundle until the new one has given its golden answers and
        is warm. If it fails, the old one stays. Named filters, filters of ``eligible`` and removed
        items hold on, by their ids. Kept users go on: their events are known by id, and are encoded
        again at their next call; until then they keep the old bundle in memory. Items that were
        added to the old bundle are not in the new one, unless ``ranklet catalogue`` or a training
        put them there: add them again.

        Args:
            path: The folder of the new bundle; None: that of the old one, which was replaced.
            check_digests: As in ``load``.

        Raises:
            BundleError: The new bundle is missing or damaged, or gives a wrong answer.
            InputError: An argument can't be used.
        """
        folder = self.path if path is None else folder_path(path)
        check_digests = flag(check_digests, "check_digests")
        with self._changing.lock:
            old = self._serving
            new = Serving.open(
                folder,
                old.engine.provider,
                old.engine.threads,
                owner=old.catalogue.owner,
                check_digests=check_digests,
            )
            new = new.changed(new.catalogue.following(old.catalogue, old.engine.bias))
            trial = Ranker(new)
            check_golden(trial, with_model=False)
            trial._warm_up()
            self._current.serving = new

    def _warm_up(self) -> None:
        first = self.vocabulary.ids(np.ones(1, dtype=np.int64))
        for _ in range(WARM_UP):
            for program in self.manifest.programs.values():
                if program.lengths:
                    self.rank(np.repeat(first, program.lengths[0]))
            self.rank(first, candidates=first, exclude_seen=False)
        user = self.user(first)
        for _ in range(WARM_UP):
            user.append(first[0])
            user.rank()

    @property
    def _serving(self) -> Serving:
        return self._current.serving

    @property
    def path(self) -> Path:
        """Return the folder of the bundle, absolute."""
        return self._serving.opened.folder

    @property
    def manifest(self) -> Manifest:
        """Return the manifest of the bundle; ``manifest.digest`` is ``Ranking.bundle``."""
        return self._serving.manifest

    @property
    def engine(self) -> Engine:
        """Return the engine that runs the graphs, for tools such as ``ranklet bench``."""
        return self._serving.engine

    @property
    def vocabulary(self) -> Vocabulary:
        """Return the ids of the items, with those of added items."""
        return self._serving.catalogue.vocabulary

    @property
    def provider(self) -> Provider:
        """Return where the ranker runs, ``"cpu"`` or ``"cuda"``."""
        return self._serving.engine.provider

    @property
    def uses_times(self) -> bool:
        """Return whether the model was trained with the times of events."""
        return self._serving.manifest.uses_times

    @property
    def exclude_seen(self) -> bool:
        """Return whether rankings leave out the items of the history by default."""
        return self._serving.manifest.exclude_seen

    @property
    def time_unit(self) -> str:
        """Return the unit of ``times`` and ``now``, that of the training events.

        It is ``"s"``, ``"ms"``, ``"us"`` or ``"ns"`` since 1970, ``""`` if it is not known.
        """
        return self._serving.manifest.time_unit

    @property
    def kinds(self) -> list[str]:
        """Return the kinds of events that ``kinds`` and ``objective`` can name."""
        return self._serving.manifest.kinds

    @property
    def objective(self) -> dict[str | None, float]:
        """Return the kind of events that is asked for by default; None: any."""
        return {self._serving.manifest.target or None: 1.0}

    @property
    def attributes(self) -> list[str]:
        """Return the attributes of items that ``where`` and ``at_most`` can name."""
        return self._serving.catalogue.attributes.names

    @property
    def ids(self) -> Sequence[str] | NDArray[np.int64]:
        """Return every item id, for reading only: sorted ones, then those of added items."""
        return self.vocabulary.all_ids

    def __reduce__(self) -> tuple[Callable[..., "Ranker"], tuple[object, ...]]:
        """Travel by path and digest: whoever unpickles it opens that bundle in that folder.

        Named filters travel along.

        Raises:
            InputError: Items were added, removed or retitled since the bundle was loaded.
        """
        serving = self._serving
        if serving.catalogue.is_edited:
            raise InputError(
                f"{self!r} can't be pickled or copied: its items were added, removed or retitled "
                "since its bundle was loaded. Write a bundle with them (ranklet catalogue), and "
                "load that"
            )
        engine, sets = serving.engine, dict(serving.catalogue.sets)
        path, digest = str(self.path), serving.manifest.digest
        return load_pickled, (path, digest, engine.provider, engine.threads, sets)

    def __len__(self) -> int:
        """Return the number of items that can be ranked."""
        own = self._serving.catalogue.own
        return own.items + own.others

    def __repr__(self) -> str:
        """Say which bundle this is and where it runs."""
        return f"Ranker({str(self.path)!r}, items={len(self)}, provider={self.provider!r})"

    def rank(
        self,
        history: Ids,
        *,
        times: Times | None = None,
        now: int | None = None,
        kinds: Kinds | None = None,
        objective: Objective | None = None,
        k: int = 10,
        candidates: Ids | None = None,
        exclude: Ids | None = None,
        exclude_seen: bool | None = None,
        eligible: Eligible | None = None,
        where: Where | None = None,
        boost: Boost | None = None,
        seen_recently: Ids | None = None,
        penalty: float = 1.0,
        min_score: float | None = None,
        at_most: Mapping[str, int] | None = None,
        skip: int = 0,
        diversity: float = 0.0,
        cold: Cold = "popular",
        explain: bool | int = False,
        exact: bool = False,
        unknown: Unknown = "skip",
    ) -> Ranking:
        """Rank items for one history.

        Args:
            history: Item ids, oldest first: a list or one-dimensional array. Only the latest
                ``manifest.max_length`` known events count.
            times: The time of each event, whole numbers in ``time_unit``, not falling. Only a
                bundle with ``uses_times`` takes them, and it ranks without them, too.
            now: The time to rank for in ``time_unit``, not before the last event; None: unknown.
            kinds: The kind of each event, such as "view", None where it is unknown. Only a bundle
                with ``kinds`` takes them, and it ranks without them, too.
            objective: The kind of the events to rank for, like ``"buy"``, or weights of several,
                like ``{"buy": 1, "view": 0.2}``; a weight below 0 asks for what such an event is
                not about. None: the bundle's default, ``Ranker.objective``.
            k: The number of items to return, at least 1; fewer if fewer are left.
            candidates: Rank only these. Ids that the catalogue lacks are dropped, repeated ones
                count once.
            exclude: Never return these items.
            exclude_seen: Never return an item of the whole history; None: the bundle's default,
                ``Ranker.exclude_seen``, which served the validation cases of the training better.
            eligible: Rank only the items of a filter from ``Ranker.eligible``.
            where: Rank only the items that meet all of these conditions: the name of a filter of
                ``define``, or ``"!name"`` for all others; ``{attribute: value, ...}``, where a list
                is any of its values, a tuple is a range of numbers with both ends (None: open), and
                ``"!attribute"`` negates; a filter of ``eligible``; or a list of these. It is
                compiled once, and kept for later requests.
            boost: Points to add to scores: ``{name: points}`` for the items of named filters, a
                list of (where, points), or an array with a float for each item of ``ids``. Points
                are in units of the score, which is a cosine over the temperature in most models,
                from -14 to 14; cold rankings have no boosts.
            seen_recently: Items that were shown already and lose ``penalty`` points. For a cold
                user they come last.
            penalty: Points, from 0.
            min_score: Return only items of at least this score; cold rankings ignore it.
            at_most: The most items of each value of some attributes, like ``{"brand": 2}``.
            skip: Leave out so many of the best items, those of earlier pages.
            diversity: From 0, by score alone, to 1, as different as possible: maximal marginal
                relevance among at least 100 of the best items. Scores do not fall then.
            cold: Rank for a user without a known event by popularity, or by that of the latest days
                of the training (``"trending"``).
            explain: Whether ``Ranking.explanation`` says which events of the history led to each
                item. It examines the 5 events with most attention, or as many as this says.
            exact: Scan all items, also if the bundle has an index, which reads the nearest clusters
                of them alone and finds nearly all of the best. A ``boost`` scans, too.
            unknown: ``"skip"`` or ``"error"`` for ids of ``history`` and ``candidates`` that the
                catalogue lacks.

        Raises:
            InputError: A value can't be used; the message names it and its place.
        """
        serving = self._current.serving
        question = read_question(
            serving.catalogue,
            k,
            eligible,
            where,
            boost,
            seen_recently,
            penalty,
            min_score,
            at_most,
            skip,
            diversity,
            cold,
            explain,
            exact,
        )
        if exclude_seen is not False:
            exclude_seen = serving.reader.excludes_seen(exclude_seen)
        request = serving.reader.read(
            history,
            times,
            now,
            candidates,
            exclude,
            exclude_seen,
            unknown,
            demoted=seen_recently,
            kinds=kinds,
            objective=None if objective is None else serving.reader.kinds.weights(objective),
        )
        return serving.answers.rank_one(request, question)

    def rank_batch(
        self,
        histories: IdLists,
        *,
        times: Sequence[Times | None] | None = None,
        now: Sequence[int | None] | NDArray[np.int64] | None = None,
        kinds: Sequence[Kinds | None] | None = None,
        objective: Objective | None = None,
        k: int = 10,
        candidates: IdLists | None = None,
        exclude: IdLists | None = None,
        exclude_seen: bool | None = None,
        eligible: Eligible | None = None,
        where: Where | None = None,
        boost: Boost | None = None,
        seen_recently: IdLists | None = None,
        penalty: float = 1.0,
        min_score: float | None = None,
        at_most: Mapping[str, int] | None = None,
        skip: int = 0,
        diversity: float = 0.0,
        cold: Cold = "popular",
        explain: bool | int = False,
        exact: bool = False,
        unknown: Unknown = "skip",
    ) -> list[Ranking]:
        """Rank items for many histories at once.

        All arguments are as in ``rank`` and the same for every history, but for these, of which
        each history has its own.

        Args:
            histories: One sequence of ids each.
            times: One sequence of times for each history, or None.
            now: One time for each history, or None.
            kinds: One sequence of kinds for each history, or None.
            candidates: One sequence of ids for each history, or None for the whole catalogue.
            exclude: One sequence of ids for each history, or None.
            seen_recently: One sequence of ids for each history, or None.
            k: The number of items of each ranking, and the others, as in ``rank``.
            objective: As in ``rank``.
            exclude_seen: As in ``rank``.
            eligible: As in ``rank``.
            where: As in ``rank``.
            boost: As in ``rank``.
            penalty: As in ``rank``.
            min_score: As in ``rank``.
            at_most: As in ``rank``.
            skip: As in ``rank``.
            diversity: As in ``rank``.
            cold: As in ``rank``.
            explain: As in ``rank``.
            exact: As in ``rank``.
            unknown: As in ``rank``.

        Raises:
            InputError: A value can't be used, or the lists differ in length.
        """
        serving = self._current.serving
        exclude_seen = serving.reader.excludes_seen(exclude_seen)
        histories = lists(histories, "histories")
        count = len(histories)
        own = {
            "times": times,
            "now": now,
            "kinds": kinds,
            "candidates": candidates,
            "exclude": exclude,
            "seen_recently": seen_recently,
        }
        columns = {
            name: [None] * count if values is None else lists(values, name, count)
            for name, values in own.items()
        }
        question = read_question(
            serving.catalogue,
            k,
            eligible,
            where,
            boost,
            seen_recently,
            penalty,
            min_score,
            at_most,
            skip,
            diversity,
            cold,
            explain,
            exact,
        )
        weights, requests = serving.reader.kinds.weights(objective), []
        for place, row in enumerate(zip(histories, *columns.values(), strict=True)):
            history, instants, at, of_events, chosen, dropped, demoted = row
            requests.append(
                serving.reader.read(
                    history,
                    instants,
                    at,
                    chosen,
                    dropped,
                    exclude_seen,
                    unknown,
                    f"histories[{place}]",
                    demoted,
                    of_events,
                    weights,
                )
            )
        return serving.answers.rank(requests, question)

    def similar(
        self,
        item: ItemId,
        k: int = 10,
        *,
        candidates: Ids | None = None,
        exclude: Ids | None = None,
        where: Where | None = None,
        boost: Boost | None = None,
        min_score: float | None = None,
        at_most: Mapping[str, int] | None = None,
        skip: int = 0,
        diversity: float = 0.0,
        exact: bool = False,
    ) -> Ranking:
        """Rank the items that are most like an item.

        A score is the product of both rows over the square of the item's own, so the item itself,
        which is left out, has 1. That is the cosine where a model scores by cosines, as most do.

        Args:
            item: The item id.
            k: The number of items to return.
            candidates: As in ``rank``, and so are all others.
            exclude: Never return these items.
            where: Rank only the items of a filter.
            boost: Points to add to scores.
            min_score: Return only items of at least this score.
            at_most: The most items of each value of some attributes.
            skip: Leave out so many of the best items.
            diversity: From 0, by score alone, to 1, as different as possible.
            exact: Scan all items.

        Raises:
            InputError: The catalogue lacks the item, or another value can't be used.
        """
        serving = self._current.serving
        answers = serving.answers.of_items
        question = read_question(
            answers.catalogue,
            k,
            None,
            where,
            boost,
            None,
            0.0,
            min_score,
            at_most,
            skip,
            diversity,
            exact=exact,
        )
        index = serving.catalogue.vocabulary.index([item], "item", unknown="error")
        excluded, chosen = serving.reader.filters(index, candidates, exclude)
        request = Request(None, 0, excluded, chosen)
        return answers.similar(int(index[0]), request, question)

    def popular(
        self,
        k: int = 10,
        *,
        trending: bool = False,
        where: Where | None = None,
        at_most: Mapping[str, int] | None = None,
        skip: int = 0,
    ) -> Ranking:
        """Rank by popularity: the share of each item of the training events.

        Args:
            k: The number of items to return.
            trending: Count only the events of the latest days of the training log.
            where: As in ``rank``, and so are the others.
            at_most: The most items of each value of some attributes.
            skip: Leave out so many of the first items.

        Raises:
            InputError: A value can't be used, or an older bundle has no latest days.
        """
        serving = self._current.serving
        question = read_question(
            serving.catalogue,
            k,
            where=where,
            at_most=at_most,
            skip=skip,
            cold="trending" if flag(trending, "trending") else "popular",
        )
        return serving.answers.popular(question)

    def user_vector(
        self,
        history: Ids,
        *,
        times: Times | None = None,
        now: int | None = None,
        kinds: Kinds | None = None,
        objective: Objective | None = None,
    ) -> Floats:
        """Return the preference vector after a history, (D,).

        Its product with a row of ``item_vectors`` is the score of the item, before boosts. An index
        of nearest neighbours (by inner product) or another model may use both. All arguments are as
        in ``rank``.

        Raises:
            InputError: A value can't be used, or no event is known.
        """
        serving = self._current.serving
        weights = serving.reader.kinds.weights(objective)
        request = serving.reader.read(history, times, now, kinds=kinds, objective=weights)
        if request.history is None:
            raise InputError(
                f"history has no event that the catalogue knows ({request.unknown} unknown): a "
                "user vector needs one"
            )
        vector: Floats = serving.answers.encode([request.history])[0]
        return vector

    def item_vectors(self, items: Ids | None = None) -> Floats:
        """Return rows of the item table, (n, D), of some items or of all ``ids``.

        Raises:
            InputError: The catalogue lacks an item.
        """
        catalogue = self._current.serving.catalogue
        if items is None:
            return catalogue.rows(np.arange(1, len(catalogue.vocabulary) + 1))
        return catalogue.rows(catalogue.vocabulary.index(items, "items", unknown="error"))

    def user(
        self, history: Ids = (), *, times: Times | None = None, kinds: Kinds | None = None
    ) -> User:
        """Return the kept state of a user: each further event costs one event.

        Args:
            history: The events so far, as in ``rank``.
            times: The time of each event, as in ``rank``.
            kinds: The kind of each event, as in ``rank``.

        Raises:
            InputError: A value can't be used.
        """
        user = User(KeptHistory(self._current))
        user.extend(history, times=times, kinds=kinds)
        return user

    def users(
        self,
        histories: IdLists,
        *,
        times: Sequence[Times | None] | None = None,
        kinds: Sequence[Kinds | None] | None = None,
    ) -> Users:
        """Return the kept states of many users, to append and rank for all at once.

        Args:
            histories: The events of each user so far, as in ``rank_batch``.
            times: The times of the events of each user, as in ``rank_batch``.
            kinds: The kinds of the events of each user, as in ``rank_batch``.

        Raises:
            InputError: A value can't be used, or the lists differ in length.
        """
        given = lists(histories, "histories")
        rows = [flat(row, f"histories[{place}]") for place, row in enumerate(given)]
        instants = [None] * len(rows) if times is None else lists(times, "times", len(rows))
        of_events = [None] * len(rows) if kinds is None else lists(kinds, "kinds", len(rows))
        users = Users(self._current, len(rows))
        for place, (row, *known) in enumerate(zip(rows, instants, of_events, strict=True)):
            name = f"histories[{place}]"
            users[place].extend(row, times=known[0], kinds=known[1], name=name)
        return users

    def eligible(self, ids: Ids, *, unknown: Unknown = "skip") -> Eligible:
        """Return a reusable filter: only these items are ranked, such as those in stock.

        Its cost in a request does not grow with its items, unlike that of ``candidates``, which are
        scored alone. It belongs to this ranker.

        Args:
            ids: Item ids.
            unknown: ``"skip"`` or ``"error"`` for ids that the catalogue lacks.

        Raises:
            InputError: An id can't be used.
        """
        catalogue = self._current.serving.catalogue
        items = ItemSet.read(ids, catalogue.vocabulary, unknown)
        return Eligible(items, catalogue.vocabulary, catalogue.owner)

    def define(self, name: str, ids: Ids) -> None:
        """Define, or define anew, a named filter for ``where`` and ``boost``.

        Args:
            name: Not empty, and not beginning with ``!``, which means all other items.
            ids: Item ids. Ids that the catalogue lacks count once such items are added.

        Raises:
            InputError: The name or an id can't be used.
        """
        name = plain(name)
        if type(name) is not str or not name or name.startswith("!"):
            raise InputError(f"name is {show(name)}; a filter has a name, without '!' before it")
        with self._changing.lock:
            serving = self._serving
            items = ItemSet.read(ids, serving.catalogue.vocabulary)
            self._current.serving = serving.changed(serving.catalogue.defined(name, items))

    def add_items(
        self,
        table: Any,  # noqa: ANN401 (any form of a table)
        *,
        vectors: Any = None,  # noqa: ANN401 (an array from outside)
        like: Mapping[ItemId, Ids] | None = None,
        bias: float | None = None,
        in_histories: bool | None = None,
    ) -> Addition:
        """Add items that training never saw; they can be ranked at once.

        Items of the table that are known keep their rows, and take its attributes and titles. Items
        that were removed are ranked again. All or nothing is added. The items stay until the bundle
        is reloaded; ``ranklet catalogue save`` makes a bundle with them.

        Args:
            table: ``item_id``, perhaps ``title``, and the attributes of the training: a dict of
                columns, a list of dicts, or a table of pandas, polars or pyarrow.
            vectors: Ready-made rows, (items of the table, D), whose directions count; by default
                item.onnx makes rows from attributes.
            like: Known items that a new one is like, by its id: its row is their mean.
            bias: Points that are added to the scores of the new items. None: of attributes what
                training measured on held-out items, else 0. -1000 ranks them behind all others.
            in_histories: Whether all added items count as events of a history; None: as those that
                were added before, else as training measured. Otherwise they are seen items, and
                nothing else.

        Raises:
            InputError: A value can't be used, or a new item can't be placed; nothing was added.
        """
        with self._changing.lock, reading("an argument of add_items"):
            serving = self._serving
            catalogue, addition = add_items(serving, table, vectors, like, bias, in_histories)
            self._current.serving = serving.changed(catalogue)
        return addition

    def remove_items(self, items: Ids) -> None:
        """Never rank some items, until ``add_items`` has them again.

        They still count as events of histories.

        Raises:
            InputError: The catalogue lacks one; nothing was removed.
        """
        with self._changing.lock:
            serving = self._serving
            self._current.serving = serving.changed(remove_items(serving.catalogue, items))

    def retitle(self, titles: Mapping[ItemId, str]) -> None:
        """Give items other titles, by their ids; an empty one is none.

        Raises:
            InputError: The catalogue lacks one, or a title is no text; nothing was changed.
        """
        with self._changing.lock:
            serving = self._serving
            self._current.serving = serving.changed(retitle(serving.catalogue, titles))

    def titles(self, items: Sequence[ItemId]) -> list[str]:
        """Return the title of each item, or its id if it has none.

        Raises:
            InputError: An id can't be used.
        """
        return self._current.serving.catalogue.titles.of(items)

    def find(self, text: str) -> list[str] | list[int]:
        """Return the ids of items whose title contains ``text``, ignoring case, in index order.

        Raises:
            InputError: ``text`` is no text.
        """
        return self._current.serving.catalogue.titles.find(text)


def load_pickled(
    path: str, digest: str, provider: Provider, threads: int, sets: Mapping[str, ItemSet]
) -> Ranker:
    """Open the bundle of a pickled ranker, once a process.

    Raises:
        BundleError: There is none at its path, or another one.
        ProviderError: CUDA was asked for and does not run.
    """
    serving = _opened(os.getpid(), path, digest, provider, threads)
    return Ranker(serving.changed(replace(serving.catalogue, sets=sets).fresh()))


@lru_cache(maxsize=MOST_OPENED)
def _opened(process: int, path: str, digest: str, provider: Provider, threads: int) -> Serving:
    """Open a bundle; a forked process, which can't use what its parent opened, opens its own."""
    serving = Serving.open(Path(path), provider, threads, owner=object(), check_digests=True)
    if serving.manifest.digest != digest:
        raise BundleError(
            f"{path} has a bundle with the digest {serving.manifest.digest}, not {digest} as where "
            "the ranker was pickled: put the same bundle into this folder of every machine"
        )
    return serving
