"""Kept users: an incremental state, so that one more event costs one event.

* Up to ``max_length`` events a user ranks as ``Ranker.rank`` with the whole history.
* Beyond, the window rolls: in the last block an event attends to the ``max_length`` latest events,
  itself included. Events outside the window still influence those that attended to them, so
  answers differ from ``Ranker.rank`` with the latest events; they are no worse
  (docs/performance.md). More than ``APPENDED`` new events at once are encoded with the latest
  ``max_length``, as ``Ranker.rank`` does; so are fewer where that is faster and changes nothing.
* Events are encoded by the next ranking, so that appending alone costs next to nothing.
* A signal handler that raises may end any call. The counts of a user are therefore one immutable
  value, replaced in one assignment. The lists of events may be longer than these counts, and an
  event may be put into the state twice.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import numpy as np

from ranklet.answer import Answers, Ranking, by_length
from ranklet.bundle.manifest import ENCODE, WEIGHTS
from ranklet.bundle.vocabulary import ItemId
from ranklet.engine.engine import NONE, Event, Floats, History
from ranklet.engine.state import State
from ranklet.errors import InputError
from ranklet.request import Eligible, Reader, Request, beside
from ranklet.time_gaps import BUCKETS, UNKNOWN, buckets_before
from ranklet.values import Ids, Times, check_flag, check_k, flat, show, whole_number

MAGIC = b"ranklet user 3\n"
DIGEST_BYTES = 32
MALFORMED = (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError)
APPENDED = 4  # new events
# Appending one event takes as long as encoding these (docs/log.md).
EVENTS_OF_AN_APPEND = 32


class Kept(NamedTuple):
    """Counts of a user: its known events, and those in its state."""

    events: int = 0  # known events
    unknown: int = 0  # ids that the catalogue lacks
    last_time: int | None = None
    encoded: int = 0  # events that are or were in the state
    position: int = 0  # of the next event, in the state


class User:
    """Kept state of one user, made by ``Ranker.user``; for one thread at a time."""

    def __init__(self, answers: Answers, reader: Reader, state: State | None = None) -> None:
        """Use ``Ranker.user``."""
        self._answers, self._reader = answers, reader
        self._engine = answers.engine
        self._kept = Kept()
        self._history: list[int] = []  # known events, all of them
        self._since: list[int] = []  # bucket of the gap before each
        self._state = self._engine.empty_state(1) if state is None else state

    def __copy__(self) -> "User":
        """Return an independent copy."""
        return User(self._answers, self._reader).load(self.save())

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
        return self._kept.events

    @property
    def unknown(self) -> int:
        """Return the number of ids that the catalogue lacks."""
        return self._kept.unknown

    def append(self, item: ItemId, *, time: int | None = None) -> None:
        """Add an event; an id that the catalogue lacks is counted and skipped.

        Raises:
            InputError: ``item`` or ``time`` can't be used, see ``Ranker.rank``.
        """
        index = self._reader.vocabulary.find(item) if time is None else None
        if index is None:
            self.extend([item], times=None if time is None else [time], name="item")
            return
        events, unknown, _, encoded, position = self._kept  # as extend, without arrays
        del self._history[events:], self._since[events:]  # rest of an interrupted call
        self._history.append(index)
        self._since.append(UNKNOWN)
        self._kept = Kept(events + 1, unknown, None, encoded, position)

    def extend(self, items: Ids, *, times: Times | None = None, name: str = "history") -> None:
        """Add events, oldest first, see ``append``; errors call them ``name``."""
        self.add(*self.read(items, times, name))

    def read(self, items: Ids, times: Times | None, name: str) -> tuple[list[int], list[int], Kept]:
        """Validate new events; return items, buckets before them and the counts after them."""
        kept = self._kept
        indices = self._reader.vocabulary.index(items, name)
        known = indices[indices > 0]
        since, last_time = [UNKNOWN] * len(known), None if len(known) else kept.last_time
        if times is not None:
            place = "times" if name == "item" else beside(name, "times")
            instants = self._reader.instants(times, len(indices), place, kept.last_time)
            instants = instants[indices > 0]
            if len(instants):
                before = [] if kept.last_time is None else [kept.last_time]
                gaps = buckets_before(np.concatenate([np.array(before, np.int64), instants]))
                since = gaps[len(before) :].tolist()
                last_time = int(instants[-1])
        events, unknown = kept.events + len(known), kept.unknown + len(indices) - len(known)
        after = Kept(events, unknown, last_time, kept.encoded, kept.position)
        return known.tolist(), since, after

    def add(self, items: list[int], since: list[int], after: Kept) -> None:
        """Add events that ``read`` returned."""
        del self._history[self._kept.events :], self._since[self._kept.events :]
        self._history += items
        self._since += since
        self._kept = after

    def rank(
        self,
        k: int = 10,
        *,
        now: int | None = None,
        candidates: Ids | None = None,
        exclude: Ids | None = None,
        exclude_seen: bool = False,
        eligible: Eligible | None = None,
    ) -> Ranking:
        """Rank items for the events of this user so far, see ``Ranker.rank``."""
        if type(k) is not int or k < 1:
            k = check_k(k)
        if exclude_seen is not False:
            check_flag(exclude_seen)
        if eligible is not None:
            self._answers.check_eligible(eligible)
        request = self.request(now, candidates, exclude, exclude_seen=exclude_seen)
        return self._answers.rank_one(request, k, eligible, self._encode)

    def request(
        self,
        now: int | None = None,
        candidates: Ids | None = None,
        exclude: Ids | None = None,
        *,
        exclude_seen: bool = False,
    ) -> Request:
        """Return the request of a ranking, see ``rank``."""
        kept = self._kept
        excluded = NONE
        if exclude_seen:
            excluded = np.array(self._history[: kept.events], dtype=np.int64)
        chosen = None
        if exclude is not None or candidates is not None:
            excluded, chosen = self._reader.filters(excluded, candidates, exclude)
        until = UNKNOWN if now is None else self._until(now)
        history = History(NONE, NONE, until) if kept.events else None
        return Request(history, kept.unknown, excluded, chosen)

    def _until(self, now: int) -> int:
        """Return the bucket of the gap from the last event to now."""
        last = self._kept.last_time
        if last is not None or not self._reader.uses_times:
            return self._reader.until(now, last or 0)
        whole_number(now, "now")
        if self._kept.events:
            raise InputError("now was given without the time of the last event: it counts from it")
        return UNKNOWN

    @property
    def new(self) -> int:
        """Return the number of events that are not in the state yet."""
        return self._kept.events - self._kept.encoded

    @property
    def is_encoded_whole(self) -> bool:
        """Return whether the history must be encoded, not its new events appended."""
        new, events = self.new, self._kept.events
        if new < 2 or not self._kept.encoded:
            return new > 0 and not self._kept.encoded
        is_short = events <= min(EVENTS_OF_AN_APPEND * new, self._reader.max_length)
        return new > APPENDED or is_short

    def _encode(self, history: History) -> Floats:
        """Return the vector of this user, (1, D), and bring the state up to date."""
        until = history.until
        if self.is_encoded_whole:
            users, states = self._engine.encode_states([self.latest(until)])
            self.restart(states[0])
            return users
        while self.new > 1:
            self._engine.append(self._state, [self.next_event(UNKNOWN)])
            self.advance()
        users = self._engine.append(self._state, [self.next_event(until)])
        self.advance()
        return users

    def latest(self, until: int) -> History:
        """Return the latest ``max_length`` events for an encoder."""
        events = self._kept.events
        latest = slice(max(0, events - self._reader.max_length), events)
        items, since = (np.array(part[latest], np.int64) for part in (self._history, self._since))
        return History(items, since, until)

    def restart(self, events: list[Floats]) -> None:
        """Replace the state by that of the latest ``max_length`` events from an encoder."""
        kept = self._kept
        count = min(kept.events, self._reader.max_length)
        self._state.fill(0, events, count)
        self._kept = kept._replace(encoded=kept.events, position=count)

    def next_event(self, until: int) -> Event:
        """Return the event to append: the first new one, or the last one again."""
        kept = self._kept
        place = min(kept.encoded, kept.events - 1)
        position = kept.position - (kept.encoded - place)
        return Event(self._history[place], position, self._since[place], until)

    def advance(self) -> None:
        """Count ``next_event`` as part of the state."""
        events, unknown, last_time, encoded, position = self._kept
        if encoded < events:
            self._kept = Kept(events, unknown, last_time, encoded + 1, position + 1)

    def save(self) -> bytes:
        """Return the user as bytes, so that a process can park it; see ``load``."""
        kept = self._kept
        text = json.dumps({"bundle": self._fingerprint(), **kept._asdict()}).encode()
        lists = self._history[: kept.events], self._since[: kept.events]
        numbers = np.array(lists, dtype="<i8")
        rows = self._state.read(0) if kept.encoded else []
        body = MAGIC + len(text).to_bytes(4, "little") + text + numbers.tobytes()
        body += b"".join(part.astype("<f4").tobytes() for part in rows)
        return body + hashlib.sha256(body).digest()

    def load(self, data: bytes) -> "User":
        """Restore a saved user into this object, and return it.

        Raises:
            InputError: These are not the bytes of a user, they are damaged, or they belong to
                another bundle. This user stays as it was.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise InputError(f"a saved user is bytes, got {show(data)}")
        data = bytes(data)
        body, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
        if not data.startswith(MAGIC):
            raise InputError(f"these {len(data)} bytes are not a saved user")
        if hashlib.sha256(body).digest() != digest:
            raise InputError(f"the saved user is damaged (SHA-256 of {len(data)} bytes)")
        try:
            kept, history, since, rows = self._read(body)
        except MALFORMED as error:
            raise InputError(f"the saved user does not follow the format: {error}") from error
        self._kept = Kept()  # until all parts are there
        self._history, self._since = history, since
        self._state.restore(0, rows)
        self._kept = kept
        return self

    def _read(self, body: bytes) -> tuple[Kept, list[int], list[int], list[Floats]]:
        start = len(MAGIC) + 4
        end = start + int.from_bytes(body[len(MAGIC) : start], "little")
        header = json.loads(body[start:end])
        if header.pop("bundle") != self._fingerprint():
            raise InputError("the saved user belongs to another bundle: start it again")
        kept = Kept(**header)
        numbers = np.frombuffer(body, "<i8", 2 * kept.events, end).reshape(2, kept.events)
        history, since = numbers.tolist()
        self._check(kept, history, since)
        place, rows = end + numbers.nbytes, []
        for array in self._state.arrays.values() if kept.encoded else ():
            part = np.frombuffer(body, "<f4", array[0].size, place).reshape(array[0].shape)
            if not np.isfinite(part).all():
                raise ValueError("a state that is not finite")
            rows.append(part.astype(np.float32))
            place += part.nbytes
        if place != len(body):
            raise ValueError(f"{len(body)} bytes, of which {place} are read")
        return kept, history, since, rows

    def _check(self, kept: Kept, history: list[int], since: list[int]) -> None:
        """Refuse an impossible user: onnxruntime takes item -1 for the last one."""
        events, unknown, last, *encoded = kept
        is_whole = all(type(count) is int and count >= 0 for count in (events, unknown, *encoded))
        if not is_whole or not (last is None or (type(last) is int and -(2**63) <= last < 2**63)):
            raise ValueError(f"counts {tuple(kept)}")
        if not kept.position <= kept.encoded <= events or bool(kept.encoded) != bool(kept.position):
            raise ValueError(f"{events} events, {kept.encoded} encoded, {kept.position} of a state")
        for name, values, least, most in (
            ("item", history, 1, len(self._reader.vocabulary)),
            ("since", since, 0, BUCKETS - 1),
        ):
            if events and not least <= min(values) <= max(values) <= most:
                raise ValueError(f"{name} from {min(values)} to {max(values)}")

    def _fingerprint(self) -> str:
        manifest = self._engine.manifest
        return "".join(
            manifest.files[name].sha256 for name in (manifest.programs[ENCODE].file, WEIGHTS)
        )


class Users:
    """Kept states of many users, made by ``Ranker.users``; for one thread at a time."""

    def __init__(self, answers: Answers, reader: Reader, count: int) -> None:
        """Use ``Ranker.users``."""
        self._answers, self._engine = answers, answers.engine
        size, self._blocks = self._engine.users_of_state, list[State]()
        self._users: list[User] = []
        for begin in range(0, count, size):
            block = self._engine.empty_state(min(size, count - begin))
            self._blocks.append(block)
            rows = block.rows()
            self._users += [User(answers, reader, state) for state in rows]

    def __len__(self) -> int:
        """Return the number of users."""
        return len(self._users)

    def __getitem__(self, place: int) -> User:
        """Return one user, to append to, rank for or save."""
        return self._users[place]

    def append(
        self, items: Sequence[ItemId | None], *, times: Sequence[int | None] | None = None
    ) -> None:
        """Add one event of each user, None for users without one, see ``User.append``.

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
                added.append(user.read(items, of_items, "item"))
            except InputError as error:
                raise InputError(f"user {len(added)}: {error}") from error
        for user, new in zip(self._users, added, strict=True):
            user.add(*new)

    def rank(
        self, k: int = 10, *, exclude_seen: bool = False, eligible: Eligible | None = None
    ) -> list[Ranking]:
        """Rank for every user, in shared runs of the graphs."""
        k = check_k(k)
        check_flag(exclude_seen)
        if eligible is not None:
            self._answers.check_eligible(eligible)
        requests = [user.request(exclude_seen=exclude_seen) for user in self._users]
        return self._answers.rank_users(requests, self._encode, k, eligible)

    def _encode(self, rows: list[int]) -> Floats:
        """Return the vectors of some users, and bring the states of all up to date."""
        whole = [user for user in self._users if user.is_encoded_whole]
        histories = [user.latest(UNKNOWN) for user in whole]
        for part in by_length([len(history.items) for history in histories]):
            _, states = self._engine.encode_states([histories[place] for place in part])
            for place, state in zip(part, states, strict=True):
                whole[place].restart(state)
        vectors, begin = [], 0
        for block in self._blocks:
            users = self._users[begin : begin + block.users]
            begin += block.users
            for _ in range(max(1, *(user.new for user in users))):
                events = [user.next_event(UNKNOWN) if user else _NOTHING for user in users]
                vector = self._engine.append(block, events)
                for user in users:
                    user.advance()
            vectors.append(vector)
        return np.concatenate(vectors)[rows]


_NOTHING = Event(0, 0)  # of a user without an event: its row is overwritten by the first one
