"""Rank the items of a bundle for histories: check the request, run the graph once, name the items.

* Every id and number is checked here, before onnxruntime sees it: onnxruntime takes index -1 for
  the last item and cuts k to 32 bits, and CUDA does not check indices at all.
* A history alone, padded, or in any batch gets the same order (of an int8 bundle, where ``exact``:
  batches have a kernel of their own); ties go to the lower item index.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from ranklet.bundle import (
    FILE_NAMES,
    NEVER,
    Manifest,
    Opened,
    read_popularity,
    read_titles,
    read_vocabulary,
)
from ranklet.errors import InputError
from ranklet.graph import Best, Events, Floats, Graphs
from ranklet.plain import Plain
from ranklet.provider import Provider
from ranklet.requests import (
    NOTHING,
    Eligible,
    Margin,
    Ranking,
    Request,
    Times,
    check_flag,
    check_k,
    lists,
)
from ranklet.time_gaps import UNKNOWN, bucket_until, buckets_before
from ranklet.vocabulary import (
    IdLists,
    Ids,
    ItemId,
    Unknown,
    Vocabulary,
    flat,
    listed,
    show,
    whole_number,
    whole_numbers,
)

if TYPE_CHECKING:
    from ranklet.ring import Appender
    from ranklet.user import User, Users

# One run of the graph holds at most this many scores (64 MiB), however many histories come.
MAX_SCORES = 1 << 24
# What 64 histories of 50 events need stays in the caches: a tenth faster than 256.
MAX_BATCH = 64
ORDER_ALONE = "this bundle does not use times: its model was trained on order alone"
WARM_UP = 3  # requests

T = TypeVar("T")


class Ranker:
    """A loaded bundle. Rankings keep no state: threads may share one ranker."""

    def __init__(
        self, graphs: Graphs, manifest: Manifest, vocabulary: Vocabulary, opened: Opened
    ) -> None:
        """Use ``Ranker.load``."""
        self.provider = graphs.provider
        self.manifest = manifest
        self.vocabulary = vocabulary
        # Whether the model was trained to know when events happened.
        self.uses_times = graphs.uses_times
        self.graphs = graphs
        self.plain = Plain(graphs) if graphs.can_bind else None
        self._opened = opened
        self._max_length, self._rounding = manifest.max_length, manifest.rounding

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
            check_digests: Compare files with their SHA-256, but those of more than 256 MiB, which
                only ``ranklet verify`` reads whole. Without it a damaged bundle can give wrong
                answers; sizes are always compared.
            warm_up: Rank a few times, so that the first request is as fast as the others.

        Raises:
            BundleError: The bundle is missing, damaged or of a newer format.
            ProviderError: CUDA was asked for and does not run.
        """
        opened = Opened(Path(path))
        with opened.unchanged(*FILE_NAMES) as folder:
            manifest = Manifest.read(folder, check_digests=check_digests)
            opened.files = manifest.files
            vocabulary = read_vocabulary(folder, manifest)
            graphs = Graphs(opened, manifest, provider, threads)
        ranker = cls(graphs, manifest, vocabulary, opened)
        if warm_up:
            first = vocabulary.ids(np.ones(1, dtype=np.int64))
            for _ in range(WARM_UP):
                for length in ranker.graphs.lengths:
                    ranker.rank(np.repeat(first, length))
                ranker.rank(first, candidates=first)  # by the encoder alone
            user = ranker.user(first)
            for _ in range(WARM_UP):
                user.append(first[0])
                user.rank()
        return ranker

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied: sessions can't be."""
        raise TypeError(f"{self!r} can't be pickled or copied: load the bundle in each process")

    def __len__(self) -> int:
        """Return the number of items that can be ranked."""
        return len(self.vocabulary)

    def __repr__(self) -> str:
        """Say which bundle this is and where it runs."""
        return (
            f"Ranker({str(self._opened.folder)!r}, items={len(self)}, provider={self.provider!r})"
        )

    def rank(
        self,
        history: Ids,
        *,
        times: Times | None = None,
        now: int | None = None,
        k: int = 10,
        candidates: Ids | None = None,
        exclude: Ids | None = None,
        exclude_seen: bool = False,
        eligible: Eligible | None = None,
        unknown: Unknown = "skip",
    ) -> Ranking:
        """Rank items for one history.

        Args:
            history: Item ids, oldest first: a list or one-dimensional array. Only the latest
                ``manifest.max_length`` known events count.
            times: When each event happened, whole numbers in the unit of the training events (as a
                rule seconds), not falling; only for a bundle whose ``uses_times`` holds, which
                ranks without them, too.
            now: The instant to rank for; not before the last event. None: it is not known.
            k: How many items to return, at least 1; fewer come where fewer are left.
            candidates: Rank these only. Ids that the catalogue lacks are dropped, repeated ones
                count once.
            exclude: Never return these.
            exclude_seen: Never return an item of the history, the whole of it.
            eligible: Rank these only: ``Ranker.eligible``, made once for many requests.
            unknown: What to do with ids of ``history`` and ``candidates`` that the catalogue
                lacks: ``"skip"`` or ``"error"``.

        Raises:
            InputError: A value can't be used; the message names it and its place.
        """
        if type(k) is not int or k < 1:
            k = check_k(k)
        check_flag(exclude_seen)
        indices = self.vocabulary.index(history, unknown=unknown)
        if candidates is None and exclude is None and times is None and now is None:
            ranking = self._rank_plain(indices, k, exclude_seen, eligible)
            if ranking is not None:
                return ranking
        request = self._request(
            indices, times, now, candidates, exclude, exclude_seen, unknown, "history"
        )
        return self._answer([request], k, eligible)[0]

    def _rank_plain(
        self, indices: NDArray[np.int64], k: int, exclude_seen: bool, eligible: Eligible | None
    ) -> Ranking | None:
        """Answer most requests, in a third of the time that Python takes for any; None for others.

        After a run of the graph the caches hold its table: every function and object that a
        request touches costs a microsecond or more.
        """
        known = indices if np.count_nonzero(indices) == len(indices) else indices[indices > 0]
        latest = known[-self._max_length :]
        available = len(self) if eligible is None else self.check_eligible(eligible).count
        if exclude_seen:
            if len(latest) < len(known):  # more to exclude than the graph is given to encode
                return None
            available -= len(known)  # or more, where items repeat
        plain, pool = self.plain, self.graphs.pool_of(k)
        if not len(known) or pool >= available or plain is None:
            return None
        if not plain.can_rank(len(latest), k):
            return None
        bias = None if eligible is None else eligible.bias
        best = plain.rank(latest, k, pool, exclude_seen=exclude_seen, bias=bias)
        return self.name(best, 0, len(indices) - len(known))

    def rank_batch(
        self,
        histories: IdLists,
        *,
        times: Sequence[Times | None] | None = None,
        now: Sequence[int | None] | NDArray[np.int64] | None = None,
        k: int = 10,
        candidates: IdLists | None = None,
        exclude: IdLists | None = None,
        exclude_seen: bool = False,
        eligible: Eligible | None = None,
        unknown: Unknown = "skip",
    ) -> list[Ranking]:
        """Rank items for many histories at once, see ``rank``.

        Args:
            histories: One sequence of ids each.
            times: One sequence of times for each history, see ``rank``.
            now: One instant for each history.
            k: The same for all.
            candidates: One sequence of ids for each history, None for the whole catalogue.
            exclude: One sequence of ids for each history, None for nothing.
            exclude_seen: As in ``rank``.
            eligible: As in ``rank``, the same for all.
            unknown: As in ``rank``.

        Raises:
            InputError: A value can't be used, or the lists differ in length.
        """
        check_flag(exclude_seen)
        histories = lists(histories, "histories")
        count = len(histories)
        rows = zip(
            histories,
            [None] * count if times is None else lists(times, "times", count),
            [None] * count if now is None else lists(now, "now", count),
            [None] * count if candidates is None else lists(candidates, "candidates", count),
            [None] * count if exclude is None else lists(exclude, "exclude", count),
            strict=True,
        )
        requests = []
        for place, (history, instants, asked, wanted, dropped) in enumerate(rows):
            name = f"histories[{place}]"
            indices = self.vocabulary.index(history, name, unknown=unknown)
            requests.append(
                self._request(
                    indices, instants, asked, wanted, dropped, exclude_seen, unknown, name
                )
            )
        return self._answer(requests, check_k(k), eligible)

    def user(self, history: Ids = (), *, times: Times | None = None) -> "User":
        """Keep the state of a user, so that one more event costs one event.

        Args:
            history: Item ids, oldest first; only the latest ``manifest.max_length`` known ones
                count.
            times: When each event happened, see ``rank``.

        Raises:
            InputError: A value can't be used.
        """
        from ranklet.user import User

        user = User(self)
        user.extend(history, times=times)
        return user

    def users(self, histories: IdLists, *, times: Sequence[Times | None] | None = None) -> "Users":
        """Keep the states of many users, to append and rank for all of them at once.

        Args:
            histories: One sequence of ids each, see ``user``.
            times: One sequence of times for each history.
        """
        from ranklet.user import User, Users

        rows = lists(histories, "histories")
        told = [None] * len(rows) if times is None else lists(times, "times", len(rows))
        users = Users([User(self) for _ in rows], self)
        for place, (row, instants) in enumerate(zip(rows, told, strict=True)):
            users[place].extend(row, times=instants, name=f"histories[{place}]")
        return users

    def eligible(self, ids: Ids, *, unknown: Unknown = "skip") -> Eligible:
        """Prepare a part of the catalogue to rank from: what is in stock, or allowed here.

        Unlike ``candidates`` it is scored with the catalogue, at no cost: for many items and many
        requests. It belongs to this ranker.

        Args:
            ids: Item ids.
            unknown: What to do with ids that the catalogue lacks.

        Raises:
            InputError: An id can't be used.
        """
        indices = self.vocabulary.index(listed(ids), "ids", unknown=unknown)
        bias = np.full_like(self.graphs.bias, NEVER)
        bias[indices] = 0
        bias[0] = NEVER
        return Eligible(self.graphs, bias, int(np.count_nonzero(bias == 0)))

    def titles(self, items: Sequence[ItemId]) -> list[str]:
        """Return what to show a person for each item: its title, or its id where there is none."""
        titles, asked = self._titles, flat(items, "items")
        if titles is None:
            return [str(item) for item in asked]
        indices = self.vocabulary.index(asked, "items").tolist()
        pairs = zip(asked, indices, strict=True)
        return [titles[index - 1] or str(item) if index else str(item) for item, index in pairs]

    def find(self, text: str) -> list[str] | list[int]:
        """Return the ids whose title contains ``text``, upper and lower case alike."""
        if not isinstance(text, str):
            raise InputError(f"text is {show(text)}; pass a part of a title")
        wanted = text.casefold()
        places = [i for i, title in enumerate(self._titles or [], 1) if wanted in title.casefold()]
        return self.vocabulary.ids(np.array(places, dtype=np.int64))

    @cached_property
    def appender(self) -> "Appender":
        """Return what ranks after one more event of a user."""
        from ranklet.ring import Appender

        return Appender(self.graphs)

    @cached_property
    def _titles(self) -> Sequence[str] | None:
        with self._opened.unchanged("titles.utf8", "titles.offsets.npy") as folder:
            return read_titles(folder, self.manifest)

    @cached_property
    def _popularity(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Item indices by falling popularity, and the popularity of every index from 0."""
        with self._opened.unchanged("popularity.npy") as folder:
            shares = np.concatenate([[np.float32(0)], read_popularity(folder, self.manifest)])
        return np.argsort(-shares[1:], kind="stable") + 1, shares

    def _request(
        self,
        indices: NDArray[np.int64],
        times: Times | None,
        now: int | None,
        candidates: Ids | None,
        exclude: Ids | None,
        exclude_seen: bool,
        unknown: Unknown,
        name: str,
    ) -> Request:
        known = indices if np.count_nonzero(indices) == len(indices) else indices[indices > 0]
        unknown_ids, latest = len(indices) - len(known), known[-self._max_length :]
        is_plain = times is None and now is None and candidates is None and exclude is None
        if is_plain and not exclude_seen:  # most requests of a batch
            return Request(latest, NOTHING, UNKNOWN, unknown_ids, NOTHING, None)
        since, until = self._gaps(indices, times, now, name)
        seen = known.tolist() if exclude_seen else []
        dropped, wanted = self.filters(seen, exclude, candidates, unknown, name)
        return Request(latest, since[-self._max_length :], until, unknown_ids, dropped, wanted)

    def filters(
        self,
        excluded: list[int],
        exclude: Ids | None,
        candidates: Ids | None,
        unknown: Unknown = "skip",
        name: str = "history",
    ) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        """Return what may not be ranked, and of what alone to choose, as item indices."""
        if exclude is not None:
            place = _beside(name, "exclude")
            excluded = excluded + self.vocabulary.index(listed(exclude), place).tolist()
        dropped = NOTHING
        if excluded:
            unique = set(excluded)
            unique.discard(0)
            dropped = np.array(list(unique), dtype=np.int64)
        if candidates is None:
            return dropped, None
        place = _beside(name, "candidates")
        wanted = self.vocabulary.index(listed(candidates), place, unknown=unknown)
        return dropped, np.setdiff1d(wanted, np.append(dropped, 0))

    def _gaps(
        self, indices: NDArray[np.int64], times: Times | None, now: int | None, name: str
    ) -> tuple[NDArray[np.int64], int]:
        """Check times, and return the buckets before each known event and from the last to now."""
        if times is None and now is None:
            return NOTHING, UNKNOWN
        if not self.uses_times:
            raise InputError(ORDER_ALONE)
        place = _beside(name, "times")
        if times is None:
            raise InputError(f"now was given without {place}: it counts from the last event")
        instants = whole_numbers(times, place)
        if len(instants) != len(indices):
            raise InputError(
                f"{place} has {len(instants)} times for {len(indices)} events: pass one for each"
            )
        falls = np.flatnonzero(instants[1:] < instants[:-1])
        if len(falls):
            at = int(falls[0])
            raise InputError(
                f"{place}[{at + 1}] is {instants[at + 1]}, before {place}[{at}], {instants[at]}: "
                "pass events oldest first"
            )
        instants = instants[indices > 0]
        if now is None or not len(instants):
            return buckets_before(instants), UNKNOWN
        place = _beside(name, "now")
        asked, last = whole_number(now, place), int(instants[-1])
        if asked < last:
            raise InputError(f"{place} is {asked}, before the last event of {name}, {last}")
        return buckets_before(instants), bucket_until(asked, last)

    def _answer(self, requests: list[Request], k: int, eligible: Eligible | None) -> list[Ranking]:
        """Rank every request: cold ones by popularity, the others in padded batches."""
        if eligible is not None:
            self.check_eligible(eligible)
        answers: dict[int, Ranking] = {}
        groups: dict[tuple[bool, int], list[int]] = {}
        for row, request in enumerate(requests):
            available = self.available(request, eligible)
            if not available or not len(request.history):
                answers[row] = self.popular(request, k, eligible)
            else:
                # Where little is left, the pool is smaller: a run of its own.
                left = min(available, self.graphs.pool_of(k))
                groups.setdefault((request.candidates is not None, left), []).append(row)
        for (has_candidates, left), rows in groups.items():
            rows.sort(key=lambda row: len(requests[row].history))  # so that little is padded
            for part in batches(rows, len(self)):
                chosen = [requests[row] for row in part]
                if has_candidates:
                    found = self._rank_candidates(chosen, k, eligible)
                else:
                    found = self._rank_catalogue(chosen, min(k, left), left, eligible)
                answers.update(zip(part, found, strict=True))
        return [answers[row] for row in range(len(requests))]

    def check_eligible(self, eligible: Eligible) -> Eligible:
        """Return it, if this ranker made it."""
        if not isinstance(eligible, Eligible):
            kind = type(eligible).__name__
            raise InputError(f"eligible is a {kind}; pass what Ranker.eligible(ids) returns")
        if eligible.graphs is not self.graphs:
            raise InputError("eligible was made by another ranker: make it with this one")
        return eligible

    def available(self, request: Request, eligible: Eligible | None) -> int:
        """Return from how many items an answer to this request is taken."""
        if request.candidates is not None:
            wanted = request.candidates
            return len(wanted if eligible is None else wanted[eligible.bias[wanted] == 0])
        if eligible is None:
            return len(self) - len(request.excluded)
        return eligible.count - int(np.count_nonzero(eligible.bias[request.excluded] == 0))

    def _rank_catalogue(
        self, requests: list[Request], k: int, pool: int, eligible: Eligible | None
    ) -> list[Ranking]:
        """Run the graph once; each request leaves at least ``pool`` items."""
        best = self.best(requests, self._events(requests), k, pool, eligible)
        return [self.name(best, row, request.unknown) for row, request in enumerate(requests)]

    def best(
        self,
        requests: Sequence[Request],
        events: Events,
        k: int,
        pool: int,
        eligible: Eligible | None,
        *,
        keep: bool = False,
    ) -> Best:
        """Run the graph once; each request leaves at least ``pool`` items, k of them are wanted."""
        best = self.graphs.rank(
            events,
            k,
            pool=pool,
            exclude=_pad([request.excluded for request in requests]),
            bias=None if eligible is None else eligible.bias,
            keep=keep,
        )
        return self.with_pool(best, k, pool)

    def with_pool(self, best: Best, k: int, pool: int) -> Best:
        """Return what a graph gave, without the scores of a pool that holds all that is left."""
        return best._replace(pool_scores=None) if pool < self.graphs.pool_of(k) else best

    def bias(self, request: Request, eligible: Eligible | None) -> Floats | None:
        """Return what is added to scores so that no item is ranked that may not be."""
        bias = None if eligible is None else eligible.bias
        if len(request.excluded):
            bias = (self.graphs.bias if bias is None else bias).copy()
            bias[request.excluded] = NEVER
        return bias

    def name(self, best: Best, row: int, unknown: int) -> Ranking:
        """Turn one row of what the graph gave into a ranking."""
        margin = None
        if self._rounding is not None and best.pool_scores is not None:
            assert best.users is not None
            last, floor = best.scores.item(row, -1), best.pool_scores.item(row, -1)
            margin = Margin(best.users[row].copy(), last, floor, self._rounding)
        ids = self.vocabulary.ids(best.items[row])
        return Ranking(ids, best.scores[row], unknown, False, margin)

    def _events(self, requests: list[Request]) -> Events:
        """Return the histories of some requests, the longest last, as one padded batch."""
        if len(requests) == 1 and not self.uses_times:
            return Events(requests[0].history[None])
        counts = np.array([len(request.history) for request in requests])
        padded = np.zeros((len(requests), counts[-1]), dtype=np.int64)
        for row, request in enumerate(requests):
            padded[row, : counts[row]] = request.history
        if not self.uses_times:
            return Events(padded, counts)
        since = np.full_like(padded, UNKNOWN)
        for row, request in enumerate(requests):
            since[row, : len(request.since)] = request.since
        until = np.array([request.until for request in requests])
        return Events(padded, counts, since=since, until=until)

    def _rank_candidates(
        self, requests: list[Request], k: int, eligible: Eligible | None
    ) -> list[Ranking]:
        """Encode once, and score some items of each request from the mapped rows of the table."""
        users, _ = self.graphs.encode(self._events(requests))
        return [
            self.rank_some(user, request, k, eligible)
            for user, request in zip(users, requests, strict=True)
        ]

    def rank_some(
        self, user: NDArray[np.float32], request: Request, k: int, eligible: Eligible | None
    ) -> Ranking:
        """Rank the candidates of one request."""
        wanted = request.candidates
        assert wanted is not None
        if eligible is not None:
            wanted = wanted[eligible.bias[wanted] == 0]
        # A BLAS product rounds equal rows differently by their place, which would break ties.
        rows = self.graphs.table[wanted].astype(np.float32, copy=False)
        self.graphs.count_lookups(len(wanted))
        scores = np.einsum("nd,d->n", rows, user)
        order = np.lexsort((wanted, -scores))[:k]
        ids = self.vocabulary.ids(wanted[order])
        return Ranking(ids, scores[order], request.unknown, cold=False)

    def popular(self, request: Request, k: int, eligible: Eligible | None) -> Ranking:
        """Answer a cold user, or one for whom nothing is left."""
        order, shares = self._popularity
        if request.candidates is not None:
            wanted = request.candidates
            order = wanted[np.lexsort((wanted, -shares[wanted]))]
        if eligible is not None:
            order = order[eligible.bias[order] == 0]
        first = order[: k + len(request.excluded)]
        items = first[~np.isin(first, request.excluded)][:k]
        cold = not len(request.history)
        return Ranking(self.vocabulary.ids(items), shares[items], request.unknown, cold=cold)


def batches(rows: list[T], items: int) -> Iterator[list[T]]:
    """Yield as many at a time as one run of the graph may score."""
    size = max(1, min(MAX_BATCH, MAX_SCORES // items))
    for begin in range(0, len(rows), size):
        yield rows[begin : begin + size]


def _beside(name: str, argument: str) -> str:
    """Return what messages call the part of another argument that goes with a history."""
    return name.replace("histories", argument).replace("history", argument)


def _pad(rows: list[NDArray[np.int64]]) -> NDArray[np.int64] | None:
    """Return ragged rows as one array, 0 on the right; None if all are empty."""
    longest = max(len(row) for row in rows)
    if not longest:
        return None
    padded = np.zeros((len(rows), longest), dtype=np.int64)
    for line, row in zip(padded, rows, strict=True):
        line[: len(row)] = row
    return padded
