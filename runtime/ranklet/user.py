"""Kept users: what was computed of their events stays, so that one more event costs one event."""

from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from ranklet.answer import Answers, Ranking, by_length
from ranklet.bundle.vocabulary import ItemId
from ranklet.engine.engine import Event, Floats
from ranklet.engine.state import State
from ranklet.errors import InputError
from ranklet.kept import KeptHistory
from ranklet.request import Eligible, Reader
from ranklet.saved_user import pack, unpack
from ranklet.time_gaps import UNKNOWN
from ranklet.values import Ids, Times, check_k, flat


class User:
    """One user, made by ``Ranker.user``; for one thread at a time."""

    def __init__(self, answers: Answers, reader: Reader, state: State | None = None) -> None:
        """Use ``Ranker.user``."""
        self._answers, engine = answers, answers.engine
        self._kept = KeptHistory(engine, reader, engine.empty_state(1) if state is None else state)

    def __copy__(self) -> "User":
        """Return an independent copy."""
        return User(self._answers, self._kept.reader).load(self.save())

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

    def append(self, item: ItemId, *, time: int | None = None) -> None:
        """Add an event; an id that the catalogue lacks is counted and skipped.

        Args:
            item: The item id.
            time: The time of the event, as ``times`` of ``Ranker.rank``.

        Raises:
            InputError: ``item`` or ``time`` can't be used; no event was added.
        """
        index = self._kept.reader.vocabulary.find(item) if time is None else None
        if index is None:
            self.extend([item], times=None if time is None else [time], name="item")
        else:
            self._kept.append(index)

    def extend(self, items: Ids, *, times: Times | None = None, name: str = "history") -> None:
        """Add events, oldest first.

        Args:
            items: Item ids; ids that the catalogue lacks are counted and skipped.
            times: The time of each event, see ``Ranker.rank``.
            name: The name of ``items`` in errors.

        Raises:
            InputError: A value can't be used; no event was added.
        """
        self._kept.add(*self._kept.read(items, times, name))

    def rank(
        self,
        k: int = 10,
        *,
        now: int | None = None,
        candidates: Ids | None = None,
        exclude: Ids | None = None,
        exclude_seen: bool | None = None,
        eligible: Eligible | None = None,
    ) -> Ranking:
        """Rank items for the events of this user so far.

        Args:
            k: The number of items to return, at least 1; fewer if fewer are left.
            now: As in ``Ranker.rank``, and so are the others.
            candidates: Rank only these items.
            exclude: Never return these items.
            exclude_seen: Never return an item of this user's events; None is the bundle's default.
            eligible: Rank only the items of this filter.

        Raises:
            InputError: A value can't be used; the message names it and its place.
        """
        if type(k) is not int or k < 1:
            k = check_k(k)
        if exclude_seen is not False:
            exclude_seen = self._kept.reader.excludes_seen(exclude_seen)
        if eligible is not None:
            self._answers.check_eligible(eligible)
        request = self._kept.request(now, candidates, exclude, exclude_seen=exclude_seen)
        return self._answers.rank_one(request, k, eligible, self._kept.encode)

    def save(self) -> bytes:
        """Return the user as bytes with a digest, for ``load`` of the same bundle."""
        return pack(self._kept)

    def load(self, data: bytes) -> "User":
        """Restore a saved user into this object, and return it.

        Raises:
            InputError: These are not the bytes of a user, they are damaged, or they belong to
                another bundle. This user stays as it was.
        """
        unpack(data, self._kept)
        return self


class Users:
    """Kept states of many users, made by ``Ranker.users``; for one thread at a time."""

    def __init__(self, answers: Answers, reader: Reader, count: int) -> None:
        """Use ``Ranker.users``."""
        self._answers, self._reader, self._engine = answers, reader, answers.engine
        size, self._blocks = self._engine.users_of_state, list[State]()
        self._users: list[User] = []
        for begin in range(0, count, size):
            block = self._engine.empty_state(min(size, count - begin))
            self._blocks.append(block)
            rows = block.rows()
            self._users += [User(answers, reader, state) for state in rows]

    def __copy__(self) -> "Users":
        """Return independent copies of all users."""
        copies = Users(self._answers, self._reader, len(self))
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
        self, items: Sequence[ItemId | None], *, times: Sequence[int | None] | None = None
    ) -> None:
        """Add one event of each user.

        Args:
            items: One item id for each user, None for users without an event.
            times: One time for each user, None where it is unknown, see ``User.append``.

        Raises:
            InputError: A value can't be used, or the lists differ in length; no event was added.
        """
        events = flat(items, "items")
        instants = [None] * len(events) if times is None else flat(times, "times")
        if not len(events) == len(instants) == len(self._users):
            raise InputError(
                f"{len(events)} items, {len(instants)} times, {len(self._users)} users"
            )
        added = []
        for user, item, time in zip(self._users, events, instants, strict=True):
            try:
                items = [] if item is None else [item]
                of_items = None if item is None or time is None else [time]
                added.append(user._kept.read(items, of_items, "item"))
            except InputError as error:
                raise InputError(f"user {len(added)}: {error}") from error
        for user, new in zip(self._users, added, strict=True):
            user._kept.add(*new)

    def rank(
        self, k: int = 10, *, exclude_seen: bool | None = None, eligible: Eligible | None = None
    ) -> list[Ranking]:
        """Rank for every user, in shared runs of the graphs, see ``User.rank``.

        Raises:
            InputError: A value can't be used.
        """
        k = check_k(k)
        exclude_seen = self._reader.excludes_seen(exclude_seen)
        if eligible is not None:
            self._answers.check_eligible(eligible)
        requests = [user._kept.request(exclude_seen=exclude_seen) for user in self._users]
        return self._answers.rank_users(requests, self._encode, k, eligible)

    def _encode(self, rows: list[int]) -> Floats:
        """Return the vectors of some users, and bring the states of all up to date."""
        events = [user._kept for user in self._users]
        whole = [one for one in events if one.is_encoded_whole]
        histories = [one.latest(UNKNOWN) for one in whole]
        for places in by_length([len(history.items) for history in histories]):
            _, states = self._engine.encode_states([histories[place] for place in places])
            for place, state in zip(places, states, strict=True):
                whole[place].restart(state)
        vectors, begin = [], 0
        for block in self._blocks:
            rows_of_block = events[begin : begin + block.users]
            begin += block.users
            for _ in range(max(1, *(one.new for one in rows_of_block))):
                new = [
                    one.next_event(UNKNOWN) if one.counts.events else _NOTHING
                    for one in rows_of_block
                ]
                vector = self._engine.append(block, new)
                for one in rows_of_block:
                    one.advance()
            vectors.append(vector)
        return np.concatenate(vectors)[rows]


_NOTHING = Event(0, 0)  # of a user without an event: its row is overwritten by the first one
