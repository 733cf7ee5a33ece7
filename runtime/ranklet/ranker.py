"""Ranker: load a bundle and rank, the public interface of the runtime."""

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from ranklet.answer import Answers, Ranking
from ranklet.bundle.folder import Opened, read_vocabulary
from ranklet.bundle.manifest import FILE_NAMES, Manifest
from ranklet.bundle.vocabulary import ItemId, Unknown, Vocabulary
from ranklet.engine.engine import Engine
from ranklet.engine.sessions import Provider
from ranklet.request import Eligible, Reader
from ranklet.user import User, Users
from ranklet.values import IdLists, Ids, Times, check_k, listed, lists

WARM_UP = 3  # requests


class Ranker:
    """A loaded bundle. Rankings keep no state: threads may share one ranker.

    Attributes:
        provider: Where it runs, ``"cpu"`` or ``"cuda"``.
        manifest: The manifest of the bundle.
        vocabulary: The ids of its items.
        uses_times: Whether the model was trained with the times of events.
        exclude_seen: Whether rankings leave out the items of the history by default.
        time_unit: The unit of ``times`` and ``now``, that of the training events: ``"s"``,
            ``"ms"``, ``"us"`` or ``"ns"`` since 1970, ``""`` if it is not known.
        engine: The engine that runs its graphs, for tools such as ``ranklet bench``.
    """

    provider: Provider
    manifest: Manifest
    vocabulary: Vocabulary
    uses_times: bool
    exclude_seen: bool
    time_unit: str
    engine: Engine

    def __init__(
        self, engine: Engine, manifest: Manifest, vocabulary: Vocabulary, opened: Opened
    ) -> None:
        """Use ``Ranker.load``."""
        self.provider, self.manifest, self.vocabulary = engine.provider, manifest, vocabulary
        self.uses_times, self.time_unit = manifest.uses_times, manifest.time_unit
        self.exclude_seen = manifest.exclude_seen
        self.engine = engine
        self._opened = opened
        self._answers = Answers(engine, manifest, vocabulary, opened)
        self._reader = Reader(
            vocabulary,
            manifest.max_length,
            uses_times=self.uses_times,
            time_unit=manifest.checked_unit,
            exclude_seen=self.exclude_seen,
        )

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
            check_digests: Compare files of up to 256 MiB with their SHA-256 (``ranklet verify``
                compares all). Without it a damaged bundle can give wrong answers; sizes are always
                compared.
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
            engine = Engine(opened, manifest, provider, threads)
        ranker = cls(engine, manifest, vocabulary, opened)
        if warm_up:
            ranker._warm_up()
        return ranker

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

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied: sessions can't be."""
        raise TypeError(
            f"{self!r} can't be pickled or copied: load the bundle in each process, and share the "
            "ranker between threads"
        )

    def __len__(self) -> int:
        """Return the number of items that can be ranked."""
        return len(self.vocabulary)

    def __repr__(self) -> str:
        """Say which bundle this is and where it runs."""
        return (
            f"Ranker({str(self._opened.folder)!r}, items={len(self)}, provider={self.provider!r})"
        )

    @property
    def ids(self) -> Sequence[str] | NDArray[np.int64]:
        """Return every item id of the catalogue, sorted, for reading only."""
        return self.vocabulary.all_ids

    def rank(
        self,
        history: Ids,
        *,
        times: Times | None = None,
        now: int | None = None,
        k: int = 10,
        candidates: Ids | None = None,
        exclude: Ids | None = None,
        exclude_seen: bool | None = None,
        eligible: Eligible | None = None,
        unknown: Unknown = "skip",
    ) -> Ranking:
        """Rank items for one history.

        Args:
            history: Item ids, oldest first: a list or one-dimensional array. Only the latest
                ``manifest.max_length`` known events count.
            times: The time of each event, whole numbers in ``time_unit``, not falling. Only a
                bundle with ``uses_times`` takes them, and it ranks without them, too.
            now: The time to rank for in ``time_unit``, not before the last event; None: unknown.
            k: The number of items to return, at least 1; fewer if fewer are left.
            candidates: Rank only these. Ids that the catalogue lacks are dropped, repeated ones
                count once.
            exclude: Never return these items.
            exclude_seen: Never return an item of the whole history; None: the bundle's default,
                ``Ranker.exclude_seen``, which served the validation cases of the training better.
            eligible: Rank only the items of a filter from ``Ranker.eligible``.
            unknown: ``"skip"`` or ``"error"`` for ids of ``history`` and ``candidates`` that the
                catalogue lacks.

        Raises:
            InputError: A value can't be used; the message names it and its place.
        """
        if type(k) is not int or k < 1:
            k = check_k(k)
        if exclude_seen is not False:
            exclude_seen = self._reader.excludes_seen(exclude_seen)
        if eligible is not None:
            self._answers.check_eligible(eligible)
        request = self._reader.read(history, times, now, candidates, exclude, exclude_seen, unknown)
        return self._answers.rank_one(request, k, eligible)

    def rank_batch(
        self,
        histories: IdLists,
        *,
        times: Sequence[Times | None] | None = None,
        now: Sequence[int | None] | NDArray[np.int64] | None = None,
        k: int = 10,
        candidates: IdLists | None = None,
        exclude: IdLists | None = None,
        exclude_seen: bool | None = None,
        eligible: Eligible | None = None,
        unknown: Unknown = "skip",
    ) -> list[Ranking]:
        """Rank items for many histories at once, see ``rank``.

        Args:
            histories: One sequence of ids each.
            times: One sequence of times for each history, or None.
            now: One time for each history, or None.
            k: As in ``rank``, the same for all.
            candidates: One sequence of ids for each history, or None for the whole catalogue.
            exclude: One sequence of ids for each history, or None.
            exclude_seen: As in ``rank``, the same for all.
            eligible: As in ``rank``, the same for all.
            unknown: As in ``rank``, the same for all.

        Raises:
            InputError: A value can't be used, or the lists differ in length.
        """
        exclude_seen = self._reader.excludes_seen(exclude_seen)
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
        if eligible is not None:
            self._answers.check_eligible(eligible)
        requests = [
            self._reader.read(*row, exclude_seen, unknown, f"histories[{place}]")
            for place, row in enumerate(rows)
        ]
        return self._answers.rank(requests, check_k(k), eligible)

    def user(self, history: Ids = (), *, times: Times | None = None) -> User:
        """Return the kept state of a user: each further event costs one event.

        Args:
            history: The events so far, as in ``rank``.
            times: The time of each event, as in ``rank``.

        Raises:
            InputError: A value of ``history`` or ``times`` can't be used.
        """
        user = User(self._answers, self._reader)
        user.extend(history, times=times)
        return user

    def users(self, histories: IdLists, *, times: Sequence[Times | None] | None = None) -> Users:
        """Return the kept states of many users, to append and rank for all at once.

        Args:
            histories: The events of each user so far, as in ``rank_batch``.
            times: The times of the events of each user, as in ``rank_batch``.

        Raises:
            InputError: A value can't be used, or the lists differ in length.
        """
        rows = lists(histories, "histories")
        instants = [None] * len(rows) if times is None else lists(times, "times", len(rows))
        users = Users(self._answers, self._reader, len(rows))
        for place, (row, of_row) in enumerate(zip(rows, instants, strict=True)):
            users[place].extend(row, times=of_row, name=f"histories[{place}]")
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
        indices = self.vocabulary.index(listed(ids), "ids", unknown=unknown)
        return self._answers.eligible(indices)

    def titles(self, items: Sequence[ItemId]) -> list[str]:
        """Return the title of each item, or its id if it has none.

        Raises:
            InputError: An id can't be used.
        """
        return self._answers.titles.of(items)

    def find(self, text: str) -> list[str] | list[int]:
        """Return the ids of items whose title contains ``text``, ignoring case, in index order.

        Raises:
            InputError: ``text`` is no text.
        """
        return self._answers.titles.find(text)
