"""Kept users: what was computed of their events stays, so that one more event costs one event."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NoReturn

import numpy as np

from ranklet.answer import by_length
from ranklet.bundle.vocabulary import ItemId
from ranklet.catalogue import Boost, Eligible, Where
from ranklet.engine.engine import NONE, Event, Floats, History
from ranklet.engine.state import State
from ranklet.errors import InputError
from ranklet.event_kinds import Kinds, Objective
from ranklet.kept import KeptHistory
from ranklet.question import Cold, read_question
from ranklet.ranking import Ranking
from ranklet.saved_user import pack, unpack
from ranklet.serving import Current, Serving
from ranklet.values import Ids, Times, flat


class User:
    """One user, made by ``Ranker.user``; for one thread at a time."""

    def __init__(self, kept: KeptHistory, follow: Callable[[], None] | None = None) -> None:
        """Use ``Ranker.user``."""
        self._kept, self._follow = kept, follow or kept.follow

    def __copy__(self) -> "User":
        """Return an independent copy."""
        return User(KeptHistory(self._kept.current)).load(self.save())

    def __deepcopy__(self, _: object) -> "User":
        """Return an independent copy of the same ranker."""
        return self.__copy__()

    def __reduce__(self) -> NoReturn:
        """Refuse pickling: ``save`` and ``load`` take its place."""
        raise TypeError(
            "a User can't be pickled: save() gives bytes, and Ranker.user().load() takes them"
        )

    def __len__(self) -> int:
        """Return the number of known events."""
        return self._kept.counts.events

    @property
    def unknown(self) -> int:
        """The number of event ids that the catalogue lacks."""
        return self._kept.counts.unknown

    def append(self, item: ItemId, *, time: int | None = None, kind: str | None = None) -> None:
        """Add an event; an id that the catalogue lacks is counted and skipped.

        Args:
            item: The item id.
            time: The time of the event, as ``times`` of ``Ranker.rank``.
            kind: The kind of the event, as ``kinds`` of ``Ranker.rank``.

        Raises:
            InputError: A value can't be used; no event was added.
        """
        kept = self._kept
        self._follow()
        catalogue = kept.serving.catalogue
        of_kind = 0 if kind is None else kept.serving.reader.kinds.index(kind)
        index = catalogue.vocabulary.find(item) if time is None else None
        if index is None or not catalogue.counts(index):
            times = None if time is None else [time]
            kinds = None if kind is None else [kind]
            self.extend([item], times=times, kinds=kinds, name="item")
        else:
            kept.append(index, of_kind)

    def extend(
        self,
        items: Ids,
        *,
        times: Times | None = None,
        kinds: Kinds | None = None,
        name: str = "history",
    ) -> None:
        """Add events, oldest first.

        Args:
            items: Item ids; ids that the catalogue lacks are counted and skipped.
            times: The time of each event, see ``Ranker.rank``.
            kinds: The kind of each event, see ``Ranker.rank``.
            name: The name of ``items`` in errors.

        Raises:
            InputError: A value can't be used; no event was added.
        """
        self._follow()
        self._kept.add(self._kept.read(items, times, kinds, name))

    def rank(
        self,
        k: int = 10,
        *,
        now: int | None = None,
        objective: Objective | None = None,
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
    ) -> Ranking:
        """Rank items for the events of this user so far; all arguments are as in ``Ranker.rank``.

        Raises:
            InputError: A value can't be used; the message names it and its place.
        """
        self._follow()
        serving = self._kept.serving
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
        request = self._kept.request(
            now,
            candidates,
            exclude,
            exclude_seen=exclude_seen,
            demoted=seen_recently,
            objective=serving.reader.kinds.weights(objective),
        )
        if question.explain and request.history:
            request = request._replace(history=self._kept.latest(request.history))
        return serving.answers.rank_one(request, question, self._kept.encode)

    def save(self) -> bytes:
        """Return the user as bytes with a digest, for ``load`` of the same bundle."""
        self._follow()
        return pack(self._kept)

    def load(self, data: bytes) -> "User":
        """Restore a saved user into this object, and return it.

        Raises:
            InputError: These are not the bytes of a user, they are damaged, or they belong to
                another bundle. This user stays as it was.
        """
        self._follow()
        unpack(data, self._kept)
        return self


class Together:
    """The events of many users, and the blocks of states that they share.

    It refers to no ``User``: in a reference cycle, a replaced engine would stay in memory until the
    garbage collector runs.

    Attributes:
        current: The serving of the ranker.
        serving: The serving that the events are of, see ``follow``.
        blocks: The states, in the order of the users.
        kept: The events of each user.
    """

    def __init__(self, current: Current, count: int) -> None:
        """Start without an event."""
        self.current, self.serving = current, current.serving
        self.blocks = self._empty_blocks(self.serving, count)
        self.kept = [KeptHistory(current, row) for block in self.blocks for row in block.rows()]

    @staticmethod
    def _empty_blocks(serving: Serving, count: int) -> list[State]:
        size = serving.engine.users_of_state
        sizes = [min(size, count - begin) for begin in range(0, count, size)]
        return [serving.engine.empty_state(users) for users in sizes]

    def follow(self) -> None:
        """Look up all events again if the ranker has another serving by now."""
        serving, blocks = self.current.serving, self.blocks
        if serving is self.serving:
            return
        if serving.engine is not self.serving.engine:
            blocks = self._empty_blocks(serving, len(self.kept))
        rows = [state for block in blocks for state in block.rows()]
        for kept, state in zip(self.kept, rows, strict=True):
            kept.follow(state)
        self.serving, self.blocks = serving, blocks


class Users:
    """Kept states of many users, made by ``Ranker.users``; for one thread at a time."""

    def __init__(self, current: Current, count: int) -> None:
        """Use ``Ranker.users``."""
        self._all = Together(current, count)
        self._users = [User(kept, self._all.follow) for kept in self._all.kept]

    def __copy__(self) -> "Users":
        """Return independent copies of all users."""
        copies = Users(self._all.current, len(self))
        for copied, user in zip(copies._users, self._users, strict=True):
            copied.load(user.save())
        return copies

    def __deepcopy__(self, _: object) -> "Users":
        """Return independent copies of all users, of the same ranker."""
        return self.__copy__()

    def __reduce__(self) -> NoReturn:
        """Refuse pickling: ``User.save`` and ``User.load`` take its place."""
        raise TypeError(
            "Users can't be pickled: users[place].save() gives bytes, and the load() of a user of "
            "Ranker.users takes them"
        )

    def __len__(self) -> int:
        """Return the number of users."""
        return len(self._users)

    def __getitem__(self, place: int) -> User:
        """Return one user, to append to, rank for or save."""
        return self._users[place]

    def append(
        self,
        items: Sequence[ItemId | None],
        *,
        times: Sequence[int | None] | None = None,
        kinds: Kinds | None = None,
    ) -> None:
        """Add one event of each user.

        Args:
            items: One item id for each user, None for users without an event.
            times: One time for each user, None where it is unknown, see ``User.append``.
            kinds: One kind for each user, None where it is unknown.

        Raises:
            InputError: A value can't be used, or the lists differ in length; no event was added.
        """
        self._all.follow()
        events = flat(items, "items")
        instants = [None] * len(events) if times is None else flat(times, "times")
        of_kinds = [None] * len(events) if kinds is None else flat(kinds, "kinds")
        sizes = len(events), len(instants), len(of_kinds), len(self._users)
        if len(set(sizes)) > 1:
            raise InputError("{} items, {} times, {} kinds, {} users".format(*sizes))
        added = []
        for kept, item, time, kind in zip(self._all.kept, events, instants, of_kinds, strict=True):
            try:
                items = [] if item is None else [item]
                time_of = None if item is None or time is None else [time]
                kind_of = None if item is None or kind is None else [kind]
                added.append(kept.read(items, time_of, kind_of, "item"))
            except InputError as error:
                raise InputError(f"user {len(added)}: {error}") from error
        for kept, new in zip(self._all.kept, added, strict=True):
            kept.add(new)

    def rank(
        self,
        k: int = 10,
        *,
        objective: Objective | None = None,
        exclude_seen: bool | None = None,
        eligible: Eligible | None = None,
        where: Where | None = None,
        boost: Boost | None = None,
        min_score: float | None = None,
        at_most: Mapping[str, int] | None = None,
        skip: int = 0,
        diversity: float = 0.0,
        cold: Cold = "popular",
        exact: bool = False,
    ) -> list[Ranking]:
        """Rank for every user, in shared runs of the graphs, see ``User.rank``.

        Raises:
            InputError: A value can't be used.
        """
        self._all.follow()
        serving = self._all.serving
        question = read_question(
            serving.catalogue,
            k,
            eligible,
            where,
            boost,
            None,
            0.0,
            min_score,
            at_most,
            skip,
            diversity,
            cold,
            exact=exact,
        )
        exclude_seen = serving.reader.excludes_seen(exclude_seen)
        weights = serving.reader.kinds.weights(objective)
        requests = [kept.request(exclude_seen=exclude_seen) for kept in self._all.kept]
        encode = partial(self._encode, asked=History(NONE, objective=weights))
        return serving.answers.rank_users(requests, encode, question)

    def _encode(self, rows: list[int], asked: History) -> Floats:
        """Return the vectors of some users, and bring the states of all up to date."""
        engine, events = self._all.serving.engine, self._all.kept
        whole = [row for row, one in enumerate(events) if one.is_encoded_whole]
        histories = [events[row].latest(asked) for row in whole]
        encoded = dict[int, tuple[Floats, list[Floats]]]()  # of users whose last event is put again
        for places in by_length([len(history.items) for history in histories]):
            users, states = engine.encode_states([histories[place] for place in places])
            for place, user, state in zip(places, users, states, strict=True):
                events[whole[place]].restart(state)
                if events[whole[place]].ends_with_new_item:
                    encoded[whole[place]] = user, state
        vectors, begin = [], 0
        for block in self._all.blocks:
            block_rows = range(begin, begin + block.users)
            begin += block.users
            for _ in range(max(1, *(events[row].new for row in block_rows))):
                new = [
                    events[row].next_event(asked)
                    if events[row].counts.events and row not in encoded
                    else _NOTHING
                    for row in block_rows
                ]
                vector = engine.append(block, new)
                for row in block_rows:
                    events[row].advance()
            vectors.append(vector)
        every = np.concatenate(vectors)
        for row, (user, state) in encoded.items():  # append.onnx has put nothing into them
            events[row].restart(state)
            every[row] = user
        return every[rows]


# Of a user without an event, or with one that append.onnx lacks: what it puts is overwritten.
_NOTHING = Event(0, 0)
