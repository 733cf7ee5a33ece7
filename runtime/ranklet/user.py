"""Users whose state is kept: one more event costs one event, not the whole history again.

* A state is what the blocks keep of events: keys and values of those that blocks before the last
  show to the next one, and what entered the last block. Up to ``max_length`` events a user ranks as
  ``Ranker.rank`` with the whole history.
* Beyond, the window rolls: in the last block an event attends to the ``max_length`` latest events,
  itself included, and positions go on. What left the window still shows in the values of those that
  saw it, so answers differ from ``Ranker.rank`` with the latest events; they are no worse
  (docs/performance.md).
* Events are encoded when a ranking asks for them, so that appending alone costs next to nothing.
* A signal handler that raises may end any call. What belongs together is therefore set in one
  statement that calls nothing, and what is set before it does no harm.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from ranklet.bound import MOST_ANSWERS
from ranklet.bundle import DATA, ENCODER
from ranklet.device import DeviceArray
from ranklet.errors import InputError
from ranklet.graph import Best, Events, Floats, State
from ranklet.ranker import ORDER_ALONE, Ranker, batches
from ranklet.requests import (
    NOTHING,
    Eligible,
    Ranking,
    Request,
    Times,
    check_flag,
    check_k,
)
from ranklet.ring import Event, Ring
from ranklet.time_gaps import BUCKETS, UNKNOWN, bucket_until, buckets_before
from ranklet.vocabulary import Ids, ItemId, flat, show, whole_number, whole_numbers

MAGIC = b"ranklet user 2\n"
DIGEST_BYTES = 32


class User:
    """The state of one user, made by ``Ranker.user``; not for two threads at once."""

    def __init__(self, ranker: Ranker) -> None:
        """Use ``Ranker.user``."""
        self._ranker = ranker
        self._graphs = ranker.graphs
        self._window = ranker.manifest.max_length
        self._history: list[int] = []  # known events, all of them
        # Bucket before each of them; more only where a call was interrupted, see ``append``.
        self._since: list[int] = []
        self._encoded = 0  # how many of them were encoded
        self._state: list[Floats | DeviceArray] = list(ranker.graphs.empty_state(1))
        self._ring: Ring | None = None  # where the state lies instead, after an event
        self._position = 0  # of the next event
        self._last_time: int | None = None
        self.unknown = 0  # ids that the catalogue does not have

    def __copy__(self) -> "User":
        """Return a user that goes on alone."""
        return User(self._ranker).load(self.save())

    def __deepcopy__(self, _: object) -> "User":
        """Return a user that goes on alone, of the same ranker."""
        return self.__copy__()

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: ``save`` and ``load`` are for that."""
        raise TypeError(
            "a User can't be pickled: save() gives bytes, and Ranker.user().load() takes them"
        )

    def __len__(self) -> int:
        """Return the number of known events."""
        return len(self._history)

    def append(self, item: ItemId, *, time: int | None = None) -> None:
        """Add an event.

        Args:
            item: Its item id; one that the catalogue lacks is counted and skipped.
            time: When it happened, see ``Ranker.rank``.

        Raises:
            InputError: A value can't be used.
        """
        index = self._ranker.vocabulary.find(item) if time is None else None
        if index is None:
            self.extend([item], times=None if time is None else [time], name="item")
        else:  # the same without arrays
            del self._since[len(self._history) :]
            self._since += (UNKNOWN,)
            self._history += (index,)
            self._last_time = None

    def extend(self, items: Ids, *, times: Times | None = None, name: str = "history") -> None:
        """Add events, oldest first, see ``append``; ``name`` is what an error calls them."""
        indices = self._ranker.vocabulary.index(items, name)
        is_known = indices > 0
        known = indices[is_known].tolist()
        since, last_time = [UNKNOWN] * len(known), None if known else self._last_time
        if times is not None:
            instants = self._check_times(times, len(indices))[is_known]
            if len(instants):
                before = [] if self._last_time is None else [self._last_time]
                gaps = buckets_before(np.concatenate([np.array(before, np.int64), instants]))
                since = gaps[len(before) :].tolist()
                last_time = int(instants[-1])
        unknown = self.unknown + len(indices) - len(known)
        del self._since[len(self._history) :]
        self._since += since
        self._history += known
        self._last_time, self.unknown = last_time, unknown

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
        """Rank items for what this user did so far, see ``Ranker.rank``.

        Raises:
            InputError: A value can't be used.
        """
        if type(k) is not int or k < 1:
            k = check_k(k)
        check_flag(exclude_seen)
        ranker, pool = self._ranker, self._graphs.pool_of(k)
        is_plain = now is None and candidates is None and exclude is None and eligible is None
        if is_plain and not exclude_seen and pool < len(ranker):
            best = self._append(k, pool)
            if best is not None:
                return ranker.name(best, 0, self.unknown)
        if eligible is not None:
            ranker.check_eligible(eligible)
        request = self.request(now, candidates, exclude, exclude_seen)
        available = ranker.available(request, eligible)
        if not available or not self._history:
            return ranker.popular(request, k, eligible)
        if request.candidates is not None:
            users, state = self._graphs.encode(self.prepare(request.until))
            self.keep(state)
            return ranker.rank_some(users[0], request, k, eligible)
        pool = min(pool, available)
        k = min(k, pool)
        best = self._append(k, pool, request, eligible)
        if best is None:
            events = self.prepare(request.until)
            best = ranker.best([request], events, k, pool, eligible, keep=True)
            self.keep(best.state)
        return ranker.name(best, 0, request.unknown)

    def _append(
        self, k: int, pool: int, request: Request | None = None, eligible: Eligible | None = None
    ) -> Best | None:
        """Rank where the last event alone is new, or nothing is; None if this is another case."""
        graphs, new = self._graphs, len(self._history) - self._encoded
        if not (graphs.can_append and self._encoded and new < 2 and k <= MOST_ANSWERS):
            return None
        position = self._position - 1 + new
        if position >= graphs.positions:
            return None
        appender = self._ranker.appender
        if self._ring is None or not self._ring.has_room:
            self._settle()
            if not self._size:  # an interrupt came when a window of one event had been cleared
                return None
            self._ring, self._state = appender.ring(self._state), []
        until, bias = UNKNOWN, None
        if request is not None:
            until, bias = request.until, self._ranker.bias(request, eligible)
        event = Event(self._history[-1], position, self._since[len(self._history) - 1], until)
        ring, before = self._ring, self._ring.events - 1 + new
        best = self._ranker.with_pool(appender.rank(ring, event, before, k, pool, bias), k, pool)
        # At once, so that no interrupt leaves counts that differ.
        ring.events, self._encoded, self._position = before + 1, self._encoded + new, position + 1
        return best

    def _settle(self) -> None:
        """Take the state out of the ring."""
        if self._ring is not None:
            self._state, self._ring = list(self._ring.read()), None

    def save(self) -> bytes:
        """Return all that is kept, so that a process can park its users; see ``load``."""
        state = self._state if self._ring is None else self._ring.read()
        header = {
            "bundle": self._fingerprint(),
            "encoded": self._encoded,
            "position": self._position,
            "last_time": self._last_time,
            "unknown": self.unknown,
            "shapes": [part.shape for part in state],
            "events": len(self._history),
        }
        numbers = np.array([self._history, self._since[: len(self._history)]], dtype="<i8")
        parts = [numbers, *(np.ascontiguousarray(part, dtype="<f4") for part in state)]
        text = json.dumps(header).encode()
        body = MAGIC + len(text).to_bytes(4, "little") + text
        body += b"".join(part.tobytes() for part in parts)
        return body + hashlib.sha256(body).digest()

    def load(self, data: bytes) -> "User":
        """Take the place of a user that was saved; return this object.

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
            self.__dict__ = self._read(body).__dict__
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"the saved user does not follow the format: {error}") from error
        return self

    def _read(self, body: bytes) -> "User":
        start = len(MAGIC) + 4
        end = start + int.from_bytes(body[len(MAGIC) : start], "little")
        header = json.loads(body[start:end])
        if header["bundle"] != self._fingerprint():
            raise InputError("the saved user belongs to another bundle: start it again")
        events = header["events"]
        numbers = np.frombuffer(body, "<i8", 2 * events, end).reshape(2, events)
        place = end + numbers.nbytes
        state: list[Floats | DeviceArray] = []
        for shape in header["shapes"]:
            part = np.frombuffer(body, "<f4", math.prod(shape), place).reshape(shape)
            state.append(part.astype(np.float32))
            place += part.nbytes
        taken = User(self._ranker)
        taken._history, taken._since, taken._state = *numbers.tolist(), state
        taken._encoded, taken._position = header["encoded"], header["position"]
        taken._last_time, taken.unknown = header["last_time"], header["unknown"]
        taken._check([part.shape for part in self._graphs.empty_state(1)])
        return taken

    def _check(self, shapes: list[tuple[int, ...]]) -> None:
        """Refuse what no user can be: onnxruntime takes item -1 for the last one."""
        counts = [self._encoded, self._position, self.unknown, self._last_time or 0]
        if not all(type(count) is int for count in counts):
            raise ValueError(f"counts {counts}")
        if [(*part.shape[:-2], 0, *part.shape[-1:]) for part in self._state] != shapes:
            raise ValueError(f"a state of the shapes {[part.shape for part in self._state]}")
        rows = max((part.shape[-2] for part in self._state), default=0)
        events = len(self._history)
        positions = self._graphs.positions if shapes else events
        if not (rows <= self._encoded <= events and rows <= self._position <= positions):
            raise ValueError(f"{events} events, {counts}, and {rows} of them kept")
        if not all(np.isfinite(part).all() for part in self._state):
            raise ValueError("a state that is not finite")
        for name, found, least, most in (
            ("item", self._history, 1, len(self._ranker)),
            ("since", self._since, 0, BUCKETS - 1),
        ):
            if events and not least <= min(found) <= max(found) <= most:
                raise ValueError(f"{name} from {min(found)} to {max(found)}")

    # What Users needs, too.

    def forget(self, events: int, last_time: int | None, unknown: int) -> None:
        """Go back to so many events, all that were encoded among them."""
        del self._history[events:], self._since[events:]
        self._last_time, self.unknown = last_time, unknown

    def request(
        self, now: int | None, candidates: Ids | None, exclude: Ids | None, exclude_seen: bool
    ) -> Request:
        """Check what a ranking is asked for."""
        seen = self._history if exclude_seen else []
        excluded, wanted = self._ranker.filters(seen, exclude, candidates)
        until = UNKNOWN
        if now is not None:
            until = self._until(now)
        history = np.array(self._history[-1:], dtype=np.int64)  # only whether it is empty counts
        return Request(history, NOTHING, until, self.unknown, excluded, wanted)

    def _until(self, now: int) -> int:
        """Return the bucket of the gap from the last event to now."""
        if not self._ranker.uses_times:
            raise InputError(ORDER_ALONE)
        asked = whole_number(now, "now")
        if not self._history:
            return UNKNOWN
        if self._last_time is None:
            raise InputError("now was given without the time of the last event: it counts from it")
        if asked < self._last_time:
            raise InputError(f"now is {asked}, before the last event, {self._last_time}")
        return bucket_until(asked, self._last_time)

    def prepare(self, until: int) -> Events:
        """Return the events to encode for a ranking.

        They fit into the window; what comes before is encoded here, event by event where the
        window rolls. Where nothing is new, the last event is encoded again.
        """
        self._settle()
        if not self._state:  # a model without blocks sees the last event alone
            return self._events(len(self._history) - 1, None, until)
        new = len(self._history) - self._encoded
        if not self._encoded and new > self._window:  # as Ranker.rank: the latest count
            self._encoded, new = len(self._history) - self._window, self._window
        if not new:
            state: list[Floats | DeviceArray] = [part[..., :-1, :] for part in self._state]
            counts = self._encoded - 1, self._position - 1
            self._state, (self._encoded, self._position) = state, counts
        while (new := len(self._history) - self._encoded) > 1 and self._size + new > self._window:
            count = max(1, min(new - 1, self._window - self._size))
            events = self._events(self._encoded, count, UNKNOWN)
            self.keep(self._graphs.encode(events)[1], count)
        return self._events(self._encoded, None, until)

    def keep(self, state: State, events: int | None = None) -> None:
        """Take over the state after so many events, or after all."""
        new = len(self._history) - self._encoded if events is None else events
        latest = self._latest(state, self._window, self._graphs.attention_window)
        counts = self._encoded + new, self._position + new
        self._state, (self._encoded, self._position) = latest, counts

    def _latest(self, state: State, events: int, shown: int) -> list[Floats | DeviceArray]:
        """Return a state of so many events at most, with keys and values of those that are shown.

        On a device, where to cut is to copy, they stay until events are cut, too.
        """
        if not state:
            return []
        *keys_values, entered = state
        if self._graphs.attention_window and isinstance(entered, np.ndarray):
            keys_values = [_cut(part, min(shown, events)) for part in keys_values]
        return [_cut(part, events) for part in (*keys_values, entered)]

    @property
    def _size(self) -> int:
        return int(self._state[-1].shape[-2])

    def _events(self, first: int, count: int | None, until: int) -> Events:
        """Return events as input of a graph, with the part of the past that they may see."""
        last = len(self._history) if count is None else first + count
        history = np.array([self._history[first:last]], dtype=np.int64)
        since = np.array([self._since[first:last]], dtype=np.int64)
        room = self._window - history.shape[1]
        if self._state:
            self._state = self._latest(self._state, room, self._graphs.attention_window - 1)
        self._rebase(history.shape[1])
        starts = np.array([self._position], dtype=np.int64)
        told = np.array([until], dtype=np.int64)
        return Events(history, starts=starts, since=since, until=told, past=self._state)

    def _rebase(self, new: int) -> None:
        """Count positions from the first kept event, before they leave the table of the graph.

        Only differences of rotary positions matter, so keys are turned back by the same angle.
        """
        base = self._ranker.manifest.rotary_base
        if not self._state or self._position + new <= self._graphs.positions:
            return
        state, size = self._state.copy(), self._size
        for place in range(0, len(state) - 1 if base else 0, 2):  # keys; no block turns the last
            keys = np.asarray(state[place], dtype=np.float64)
            half = keys.shape[-1] // 2
            angles = (size - self._position) * base ** (-np.arange(half) / half)
            cos, sin = np.cos(angles), np.sin(angles)
            first, second = np.split(keys, 2, axis=-1)
            turned = [first * cos - second * sin, second * cos + first * sin]
            state[place] = np.concatenate(turned, axis=-1).astype(np.float32)
        self._state, self._position = state, size

    def _check_times(self, times: Times, events: int) -> NDArray[np.int64]:
        if not self._ranker.uses_times:
            raise InputError(ORDER_ALONE)
        instants = whole_numbers(times, "times")
        if len(instants) != events:
            raise InputError(f"times has {len(instants)} times for {events} events")
        before = [] if self._last_time is None else [self._last_time]
        ordered = np.array([*before, *instants.tolist()], dtype=np.int64)
        if (ordered[1:] < ordered[:-1]).any():
            raise InputError(f"times falls: {show(ordered.tolist())}; pass events oldest first")
        return instants

    def _fingerprint(self) -> str:
        files = self._ranker.manifest.files
        return files[ENCODER].sha256 + files[DATA].sha256


class Users:
    """The states of many users, made by ``Ranker.users``; not for two threads at once."""

    def __init__(self, users: Sequence[User], ranker: Ranker) -> None:
        """Use ``Ranker.users``."""
        self._users, self._ranker = list(users), ranker

    def __len__(self) -> int:
        """Return the number of users."""
        return len(self._users)

    def __getitem__(self, place: int) -> User:
        """Return one user, to append to, rank for or save."""
        return self._users[place]

    def append(
        self, items: Sequence[ItemId | None], *, times: Sequence[int | None] | None = None
    ) -> None:
        """Add an event of each user, None for those who did nothing, see ``User.append``.

        Raises:
            InputError: A value can't be used, or the lists differ in length; no event was added.
        """
        done = flat(items, "items")
        told = [None] * len(done) if times is None else flat(times, "times")
        if not len(done) == len(told) == len(self._users):
            raise InputError(f"{len(done)} items, {len(told)} times, {len(self._users)} users")
        before = [(len(user), user._last_time, user.unknown) for user in self._users]
        place = 0
        try:
            for place, (item, time) in enumerate(zip(done, told, strict=True)):
                if item is not None:
                    self._users[place].append(item, time=time)
        except InputError as error:
            for user, counts in zip(self._users, before, strict=True):
                user.forget(*counts)
            raise InputError(f"user {place}: {error}") from error

    def rank(
        self,
        k: int = 10,
        *,
        exclude_seen: bool = False,
        eligible: Eligible | None = None,
    ) -> list[Ranking]:
        """Rank for every user, those with equally many kept events in one run of the graph."""
        k, ranker = check_k(k), self._ranker
        check_flag(exclude_seen)
        if eligible is not None:
            ranker.check_eligible(eligible)
        answers: dict[int, Ranking] = {}
        groups: dict[tuple[tuple[int, ...], int], list[_Question]] = {}
        for row, user in enumerate(self._users):
            request = user.request(None, None, None, exclude_seen)
            available = ranker.available(request, eligible)
            if not available or not len(user):
                answers[row] = ranker.popular(request, k, eligible)
                continue
            question = _Question(row, request, user.prepare(UNKNOWN))
            left = min(available, ranker.graphs.pool_of(k))  # a smaller pool needs a run of its own
            groups.setdefault((question.rows, left), []).append(question)
        for (_, left), questions in groups.items():
            for part in batches(questions, len(ranker)):
                requests = [q.request for q in part]
                best = ranker.best(requests, _stack(part), min(k, left), left, eligible, keep=True)
                states = [np.asarray(t) for t in best.state]
                for place, q in enumerate(part):
                    new = q.events.history.shape[1]  # the rest is padding
                    state = [
                        t[place : place + 1, ..., : rows + new, :].copy()
                        for t, rows in zip(states, q.rows, strict=True)
                    ]
                    self._users[q.row].keep(state)
                    answers[q.row] = ranker.name(best, place, q.request.unknown)
        return [answers[row] for row in range(len(self._users))]


def _cut(part: Floats | DeviceArray, rows: int) -> Floats | DeviceArray:
    start = part.shape[-2] - rows
    return part[..., start:, :] if start > 0 else part


@dataclass(frozen=True, slots=True)
class _Question:
    """What one of many users needs to be ranked."""

    row: int
    request: Request
    events: Events

    @property
    def rows(self) -> tuple[int, ...]:
        """Return of how many events before each part of the state is."""
        return tuple(part.shape[-2] for part in self.events.past)


def _stack(questions: Sequence[_Question]) -> Events:
    """Return the events of users whose pasts are equally long as one batch."""
    events = [q.events for q in questions]
    counts = np.array([e.history.shape[1] for e in events])
    padded = np.zeros((2, len(events), counts.max()), dtype=np.int64)
    padded[1] = UNKNOWN
    for row, e in enumerate(events):
        padded[:, row, : counts[row]] = [e.history[0], e.since[0]]
    return Events(
        padded[0],
        counts,
        starts=np.concatenate([e.starts for e in events]),
        since=padded[1],
        until=np.concatenate([e.until for e in events]),
        past=[np.concatenate(parts) for parts in zip(*(e.past for e in events), strict=True)],
    )
