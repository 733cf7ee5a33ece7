"""Rank the items of a bundle for histories: check the request, run the graph once, name the items.

* Every id and number is checked here, before onnxruntime sees it: onnxruntime takes index -1 for
  the last item and cuts k to 32 bits, and CUDA does not check indices at all.
* A history alone, padded, or in any batch gets the same order; ties go to the lower item index.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ranklet.bundle import (
    GRAPH,
    Manifest,
    TensorContract,
    map_table,
    read_popularity,
    read_titles,
    read_vocabulary,
)
from ranklet.errors import BundleError, InputError, ProviderError
from ranklet.gaps import UNKNOWN, buckets_before, gap_buckets
from ranklet.provider import ORT_ERRORS, Provider, create_session
from ranklet.vocabulary import IdLists, Ids, ItemId, Unknown, Vocabulary, show, whole_numbers

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

# One run of the graph holds at most this many scores (64 MiB), however many histories come.
MAX_SCORES = 1 << 24
MAX_BATCH = 256

NO_GAPS: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

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


@dataclass(frozen=True, slots=True)
class _Request:
    """One checked row: item indices only."""

    history: NDArray[np.int64]  # known events, the latest max_length of them
    since: NDArray[np.int64]  # bucket of the gap before each of them; empty if nobody asks
    until: int  # bucket of the gap from the last one to now
    unknown: int
    excluded: frozenset[int]
    candidates: NDArray[np.int64] | None  # unique, none of them excluded


class Ranker:
    """A loaded bundle. Rankings keep no state: threads may share one ranker."""

    def __init__(
        self,
        session: "InferenceSession",
        provider: Literal["cpu", "cuda"],
        manifest: Manifest,
        vocabulary: Vocabulary,
        folder: Path,
    ) -> None:
        """Use ``Ranker.load``."""
        self.provider = provider
        self.manifest = manifest
        self.vocabulary = vocabulary
        # Whether the model was trained to know when events happened.
        self.uses_times = any(tensor.name == "since" for tensor in manifest.inputs)
        self._session = session
        self._folder = folder
        self._table = map_table(folder, manifest)
        self._empty_states: dict[int, dict[str, NDArray[np.float32]]] = {}

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        provider: Provider = "auto",
        threads: int = 1,
        check_digests: bool = True,
    ) -> "Ranker":
        """Open a bundle.

        Args:
            path: Its folder.
            provider: ``"cuda"`` raises where CUDA does not run; ``"auto"`` may take the CPU and
                says so in ``Ranker.provider``.
            threads: Threads of one ranking.
            check_digests: Compare every file with its SHA-256. Without it a damaged bundle can
                give wrong answers; sizes are always compared.

        Raises:
            BundleError: The bundle is missing, damaged or of a newer format.
            ProviderError: CUDA was asked for and does not run.
        """
        folder = Path(path)
        manifest = Manifest.read(folder, check_digests=check_digests)
        vocabulary = read_vocabulary(folder, manifest)
        session, active = create_session(folder / GRAPH, provider, threads)
        _check_contract(session, manifest, folder)
        return cls(session, active, manifest, vocabulary, folder)

    def __len__(self) -> int:
        """Return the number of items that can be ranked."""
        return len(self.vocabulary)

    def __repr__(self) -> str:
        """Say which bundle this is and where it runs."""
        return f"Ranker({str(self._folder)!r}, items={len(self)}, provider={self.provider!r})"

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
            unknown: What to do with ids of ``history`` and ``candidates`` that the catalogue
                lacks: ``"skip"`` or ``"error"``.

        Raises:
            InputError: A value can't be used; the message names it and its place.
        """
        request = self._request(
            history, times, now, candidates, exclude, exclude_seen, unknown, "history"
        )
        return self._answer([request], _check_k(k))[0]

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
            unknown: As in ``rank``.

        Raises:
            InputError: A value can't be used, or the lists differ in length.
        """
        histories = _lists(histories, "histories")
        count = len(histories)
        rows = zip(
            histories,
            [None] * count if times is None else _lists(times, "times", count),
            [None] * count if now is None else _lists(now, "now", count),
            [None] * count if candidates is None else _lists(candidates, "candidates", count),
            [None] * count if exclude is None else _lists(exclude, "exclude", count),
            strict=True,
        )
        requests = [
            self._request(*row, exclude_seen, unknown, f"histories[{place}]")
            for place, row in enumerate(rows)
        ]
        return self._answer(requests, _check_k(k))

    def titles(self, items: Sequence[ItemId]) -> list[str]:
        """Return what to show a person for each item: its title, or its id where there is none."""
        titles = self._titles
        if titles is None:
            return [str(item) for item in items]
        indices = self.vocabulary.index(items, "items").tolist()
        pairs = zip(items, indices, strict=True)
        return [titles[index - 1] or str(item) if index else str(item) for item, index in pairs]

    def find(self, text: str) -> list[str] | list[int]:
        """Return the ids whose title contains ``text``, upper and lower case alike."""
        wanted = text.casefold()
        places = [i for i, title in enumerate(self._titles or [], 1) if wanted in title.casefold()]
        return self.vocabulary.ids(np.array(places, dtype=np.int64))

    @cached_property
    def _titles(self) -> list[str] | None:
        return read_titles(self._folder, self.manifest)

    @cached_property
    def _popularity(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Item indices by falling popularity, and the popularity of every index from 0."""
        shares = np.concatenate([[np.float32(0)], read_popularity(self._folder, self.manifest)])
        return np.argsort(-shares[1:], kind="stable") + 1, shares

    def _request(
        self,
        history: Ids,
        times: Times | None,
        now: int | None,
        candidates: Ids | None,
        exclude: Ids | None,
        exclude_seen: bool,
        unknown: Unknown,
        name: str,
    ) -> _Request:
        indices = self.vocabulary.index(history, name, unknown=unknown)
        known = indices[indices > 0]
        since, until = self._gaps(indices, times, now, name)
        excluded: set[int] = set(known.tolist()) if exclude_seen else set()
        if exclude is not None:
            place = name.replace("histories", "exclude").replace("history", "exclude")
            excluded.update(self.vocabulary.index(exclude, place).tolist())
            excluded.discard(0)
        wanted = None
        if candidates is not None:
            place = name.replace("histories", "candidates").replace("history", "candidates")
            wanted = self.vocabulary.index(candidates, place, unknown=unknown)
            chosen = [i for i in dict.fromkeys(wanted.tolist()) if i and i not in excluded]
            wanted = np.array(chosen, dtype=np.int64)
        last = slice(-self.manifest.max_length, None)
        unknown_ids = len(indices) - len(known)
        return _Request(known[last], since[last], until, unknown_ids, frozenset(excluded), wanted)

    def _gaps(
        self, indices: NDArray[np.int64], times: Times | None, now: int | None, name: str
    ) -> tuple[NDArray[np.int64], int]:
        """Check times, and return the buckets before each known event and from the last to now."""
        if times is None and now is None:
            return NO_GAPS, UNKNOWN
        if not self.uses_times:
            raise InputError("this bundle does not use times: its model was trained on order alone")
        place = name.replace("histories", "times").replace("history", "times")
        if times is None:
            raise InputError(f"now was given without {place}: it counts from the last event")
        instants = whole_numbers(times, place)
        if len(instants) != len(indices):
            raise InputError(
                f"{place} has {len(instants)} times for {len(indices)} events: pass one for each"
            )
        falls = np.flatnonzero(np.diff(instants) < 0)
        if len(falls):
            at = int(falls[0])
            raise InputError(
                f"{place}[{at + 1}] is {instants[at + 1]}, before {place}[{at}], {instants[at]}: "
                "pass events oldest first"
            )
        instants = instants[indices > 0]
        if now is None or not len(instants):
            return buckets_before(instants), UNKNOWN
        asked = whole_numbers([now], "now")[0]
        if asked < instants[-1]:
            raise InputError(f"now is {asked}, before the last event of {name}, {instants[-1]}")
        return buckets_before(instants), int(gap_buckets(asked - instants[-1:])[0])

    def _answer(self, requests: list[_Request], k: int) -> list[Ranking]:
        """Rank every request: cold ones by popularity, the others in padded batches."""
        answers: list[Ranking | None] = [
            None if len(request.history) else self._popular(request, k) for request in requests
        ]
        warm = [row for row, answer in enumerate(answers) if answer is None]
        warm.sort(key=lambda row: len(requests[row].history))  # so that little is padded
        size = max(1, min(MAX_BATCH, MAX_SCORES // len(self)))
        for begin in range(0, len(warm), size):
            rows = warm[begin : begin + size]
            batch = self._rank_rows([requests[row] for row in rows], k)
            for row, answer in zip(rows, batch, strict=True):
                answers[row] = answer
        return [answer for answer in answers if answer is not None]

    def _rank_rows(self, requests: list[_Request], k: int) -> list[Ranking]:
        """Run the graph once. It is asked for as many more items as a row may have to drop."""
        padded = np.zeros((len(requests), len(requests[-1].history)), dtype=np.int64)
        surplus = 0
        for line, request in zip(padded, requests, strict=True):
            line[: len(request.history)] = request.history
            if request.candidates is None:
                surplus = max(surplus, len(request.excluded))
        times: dict[str, NDArray[np.int64]] = {}
        if self.uses_times:
            since = np.full_like(padded, UNKNOWN)
            for line, request in zip(since, requests, strict=True):
                line[: len(request.since)] = request.since
            times = {"since": since, "until": np.array([request.until for request in requests])}
        first, scores, users = self._run(padded, times, min(k + surplus, len(self)))
        answers = []
        for row, request in enumerate(requests):
            items, values = first[row], scores[row]
            if request.candidates is not None:
                items, values = self._rank_candidates(users[row], request.candidates)
            elif request.excluded:
                excluded = request.excluded
                kept = [place for place, i in enumerate(items.tolist()) if i not in excluded]
                items, values = items[kept], values[kept]
            ids = self.vocabulary.ids(items[:k])
            answers.append(Ranking(ids, values[:k].copy(), request.unknown, cold=False))
        return answers

    def _run(
        self, history: NDArray[np.int64], times: dict[str, NDArray[np.int64]], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
        batch = len(history)
        if batch not in self._empty_states:
            self._empty_states[batch] = empty_state(self.manifest, batch)
        size = np.array(k, dtype=np.int64)
        inputs = {"history": history, "k": size, **times, **self._empty_states[batch]}
        try:
            items, scores, users = self._session.run(["items", "scores", "user"], inputs)
        except ORT_ERRORS as error:
            raise ProviderError(f"onnxruntime failed on {self.provider}: {error}") from error
        return items, scores, users

    def _rank_candidates(
        self, user: NDArray[np.float32], candidates: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Score some items only, from the mapped rows of the table."""
        # A BLAS product rounds equal rows differently by their place, which would break ties.
        scores = np.einsum("nd,d->n", self._table[candidates], user)
        order = np.lexsort((candidates, -scores))
        return candidates[order], scores[order]

    def _popular(self, request: _Request, k: int) -> Ranking:
        order, shares = self._popularity
        if request.candidates is not None:
            wanted = request.candidates
            items = wanted[np.lexsort((wanted, -shares[wanted]))][:k]
        else:
            first = order[: k + len(request.excluded)].tolist()
            kept = [index for index in first if index not in request.excluded]
            items = np.array(kept[:k], dtype=np.int64)
        ids = self.vocabulary.ids(items)
        return Ranking(ids, shares[items], request.unknown, cold=True)


def empty_state(manifest: Manifest, batch: int) -> dict[str, NDArray[np.float32]]:
    """Return the state of users without an event, as inputs of the graph."""
    sizes = {"batch": batch, "past": 0}
    return {
        i.name: np.zeros(
            [sizes[axis] if isinstance(axis, str) else axis for axis in i.shape], dtype=np.float32
        )
        for i in manifest.inputs
        if i.name.startswith("past_")
    }


def _check_k(k: Any) -> int:  # noqa: ANN401 (anything may come from outside)
    if isinstance(k, bool | np.bool_):
        raise InputError(f"k must be a positive integer, got {show(k)}")
    try:
        number = operator.index(k)
    except TypeError as error:
        raise InputError(f"k must be a positive integer, got {show(k)}") from error
    if number < 1:
        raise InputError(f"k must be at least 1, got {show(number)}")
    return number


def _lists(lists: Any, name: str, count: int | None = None) -> list[Any]:  # noqa: ANN401
    """Return one sequence of ids for each history, ``count`` of them if that is known."""
    if isinstance(lists, str | bytes | dict | set | frozenset):
        raise InputError(f"{name} is a {type(lists).__name__}; pass a list of lists of ids")
    try:
        rows = list(lists)
    except TypeError as error:
        raise InputError(f"{name} is {show(lists)}; pass a list of lists of ids") from error
    if count is not None and len(rows) != count:
        raise InputError(
            f"{name} has {len(rows)} lists for {count} histories: pass one for each history"
        )
    return rows


def _check_contract(session: "InferenceSession", manifest: Manifest, folder: Path) -> None:
    """Compare what the graph takes and gives with what the manifest says."""
    found = [
        [TensorContract(t.name, t.type, list(t.shape)) for t in tensors]
        for tensors in (session.get_inputs(), session.get_outputs())
    ]
    if found != [manifest.inputs, manifest.outputs]:
        raise BundleError(f"the graph of {folder} does not take and give what the manifest says")
