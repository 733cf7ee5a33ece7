"""Kept histories: the events of one user, and a state that the next event is appended to.

* Up to ``max_length`` events a user ranks as ``Ranker.rank`` with the whole history.
* Beyond, the window rolls: in the last block an event attends to the ``max_length`` latest events,
  itself included. Events outside the window still influence those that attended to them, so
  answers differ from ``Ranker.rank`` with the latest events; they are no worse
  (docs/performance.md). More than ``APPENDED`` new events at once are encoded with the latest
  ``max_length``, as ``Ranker.rank`` does; so are fewer where that is faster and changes nothing.
* Events are encoded by the next ranking, so that appending alone costs next to nothing.
* Events are known by their ids. Where the ranker has another bundle or more items, they are looked
  up again, also those that did not count before, and encoded again if that changes anything. Kinds
  of events are then known by their names; one that the other bundle lacks is unknown from then on.
* No state depends on what is asked: the last event is appended again for another objective.
* A signal handler that raises may end any call. The counts, with the log that they are of, are
  therefore one immutable value, replaced in one assignment. The lists of a log may be longer than
  the counts, and an event may be put into the state twice.
"""

from typing import NamedTuple

import numpy as np

from ranklet.bundle.vocabulary import ItemId
from ranklet.engine.engine import NONE, Event, Floats, History
from ranklet.engine.state import State
from ranklet.errors import InputError
from ranklet.event_kinds import Kinds
from ranklet.request import Request, beside
from ranklet.serving import Current, Serving
from ranklet.time_gaps import UNKNOWN, bucket_until
from ranklet.values import Ids, Times, flat, plain, whole_number

APPENDED = 4  # new events
# Appending one event takes as long as encoding these (docs/development/log.md).
EVENTS_OF_AN_APPEND = 32


class Aside(NamedTuple):
    """An event that does not count: its item is unknown, or new and not for histories."""

    place: int  # number of events before it that count
    item: ItemId
    time: int | None
    kind: int
    known: int  # index of a new item; 0: unknown


class Log(NamedTuple):
    """Events in the indices of one serving, and the state of those that were encoded."""

    serving: Serving
    state: State
    items: list[int]  # of the events that count
    since: list[int]  # bucket of the gap before each
    times: list[int | None]
    kinds: list[int]
    aside: list[Aside]  # the others

    @classmethod
    def empty(cls, serving: Serving, state: State | None = None) -> "Log":
        """Return a log without an event."""
        return cls(serving, state or serving.engine.empty_state(1), [], [], [], [], [])


class Counts(NamedTuple):
    """A log, and how much of it counts."""

    log: Log
    events: int = 0
    aside: int = 0
    unknown: int = 0  # events of ``aside`` that the catalogue lacks
    encoded: int = 0  # events that are or were in the state
    position: int = 0  # of the next event, in the state

    @property
    def last_time(self) -> int | None:
        """Return the time of the last event that counts."""
        return self.log.times[self.events - 1] if self.events else None


class Added(NamedTuple):
    """Checked new events for the lists of a log, and the counts with them."""

    items: list[int]
    times: list[int | None]
    kinds: list[int]
    aside: list[Aside]
    after: Counts


class KeptHistory:
    """Events of one user and their state; not for two threads at once.

    Attributes:
        current: The serving of the ranker.
        counts: The events, and how much of them counts.
    """

    def __init__(self, current: Current, state: State | None = None) -> None:
        """Start without an event."""
        self.current = current
        self.counts = Counts(Log.empty(current.serving, state))

    @property
    def serving(self) -> Serving:
        """Return the serving that the events are of, see ``follow``."""
        return self.counts.log.serving

    @property
    def state(self) -> State:
        """Return the state of the latest events."""
        return self.counts.log.state

    def follow(self, state: State | None = None) -> None:
        """Look up the events again if the ranker has another serving by now.

        ``state`` is an empty one of the new engine, by default a new one.
        """
        serving, counts = self.current.serving, self.counts
        log, vocabulary = counts.log, serving.catalogue.vocabulary
        if serving is log.serving:
            return
        found = vocabulary.index([event.item for event in log.aside[: counts.aside]]).tolist()
        is_stale = any(serving.catalogue.counts(index) for index in found)
        # Added items may have other rows, and may not count any more.
        is_stale |= any(item > vocabulary.sorted for item in log.items[: counts.events])
        if serving.engine is log.serving.engine and not is_stale:
            pairs = zip(log.aside, found, strict=False)
            aside = [event._replace(known=index) for event, index in pairs]
            moved = log._replace(serving=serving, aside=aside)
            self.counts = counts._replace(log=moved, unknown=found.count(0))
            return
        ids = log.serving.catalogue.vocabulary.ids(np.array(log.items[: counts.events], np.int64))
        events: list[tuple[ItemId, int | None, int]] = []
        events.extend(zip(ids, log.times, log.kinds, strict=False))
        for event in reversed(log.aside[: counts.aside]):
            events.insert(event.place, (event.item, event.time, event.kind))
        new = Counts(Log.empty(serving, state))
        indices = vocabulary.index([item for item, *_ in events]).tolist()
        kind_of = log.serving.reader.kinds.translated(serving.reader.kinds)
        translated = [(item, time, kind_of[kind]) for item, time, kind in events]
        self.add(_sorted_out(new, translated, indices))

    def append(self, index: int, kind: int = 0) -> None:
        """Add an event that counts, of unknown time: ``add`` and ``read`` without arrays."""
        log, events, *others = self.counts
        # Of an interrupted call.
        del log.items[events:], log.since[events:], log.times[events:], log.kinds[events:]
        log.items.append(index)
        log.since.append(UNKNOWN)
        log.times.append(None)
        log.kinds.append(kind)
        self.counts = Counts(log, events + 1, *others)

    def read(self, items: Ids, times: Times | None, kinds: Kinds | None, name: str) -> Added:
        """Validate new events."""
        counts, reader, ids = self.counts, self.serving.reader, flat(items, name)
        indices = reader.vocabulary.index(ids, name).tolist()
        instants: list[int | None] = [None] * len(indices)
        if times is not None:
            place = "times" if name == "item" else beside(name, "times")
            instants = reader.instants(times, len(indices), place, counts.last_time).tolist()
        of_events = [0] * len(indices)
        if kinds is not None:
            place = "kinds" if name == "item" else beside(name, "kinds")
            of_events = reader.kinds.indices(kinds, len(indices), place).tolist()
        ids = ids if isinstance(ids, list) else ids.tolist()
        return _sorted_out(counts, [*zip(ids, instants, of_events, strict=True)], indices)

    def add(self, added: Added) -> None:
        """Add events that ``read`` returned."""
        log, events, aside, *_ = added.after
        before = events - len(added.items)
        del log.items[before:], log.since[before:], log.times[before:], log.kinds[before:]
        del log.aside[aside - len(added.aside) :]
        log.since.extend(_gaps(log.times[before - 1] if before else None, added.times))
        log.items.extend(added.items)
        log.times.extend(added.times)
        log.kinds.extend(added.kinds)
        log.aside.extend(added.aside)
        self.counts = added.after

    def request(
        self,
        now: int | None = None,
        candidates: Ids | None = None,
        exclude: Ids | None = None,
        *,
        exclude_seen: bool = False,
        demoted: Ids | None = None,
        objective: Floats | None = None,
    ) -> Request:
        """Return the request of a ranking, see ``Reader.read``; its history holds no events."""
        counts, reader = self.counts, self.serving.reader
        excluded = NONE
        if exclude_seen:
            events = counts.log.items[: counts.events]
            if counts.aside > counts.unknown:
                events = [*events, *(e.known for e in counts.log.aside[: counts.aside] if e.known)]
            excluded = np.array(events, dtype=np.int64)
        seen, chosen = len(excluded), None
        if exclude is not None or candidates is not None:
            excluded, chosen = reader.filters(excluded, candidates, exclude)
        until = UNKNOWN if now is None else self._until(now)
        history = History(NONE, NONE, until, NONE, objective) if counts.events else None
        fewer = NONE if demoted is None else reader.demoted(demoted)
        return Request(history, counts.unknown, excluded, chosen, fewer, seen)

    def _until(self, now: int) -> int:
        """Return the bucket of the gap from the last event to now."""
        last, reader = self.counts.last_time, self.serving.reader
        if last is not None or not reader.uses_times:
            return reader.until(now, last or 0)
        whole_number(now, "now")
        if self.counts.events:
            raise InputError("now was given without the time of the last event: it counts from it")
        return UNKNOWN

    @property
    def new(self) -> int:
        """Return the number of events that are not in the state yet."""
        return self.counts.events - self.counts.encoded

    @property
    def is_encoded_whole(self) -> bool:
        """Return whether the history must be encoded, not its new events appended."""
        new, events = self.new, self.counts.events
        if self.ends_with_new_item:
            return True
        if new < 2 or not self.counts.encoded:
            return new > 0 and not self.counts.encoded
        is_short = events <= min(EVENTS_OF_AN_APPEND * new, self.serving.reader.max_length)
        return new > APPENDED or is_short

    @property
    def ends_with_new_item(self) -> bool:
        """Return whether an event to append is of an added item, which append.onnx lacks."""
        counts, catalogue = self.counts, self.serving.catalogue
        if not len(catalogue.added):
            return False
        first = max(0, min(counts.encoded, counts.events - 1))
        return any(item > catalogue.last for item in counts.log.items[first : counts.events])

    def encode(self, asked: History) -> Floats:
        """Return the user vector, (1, D), and bring the state up to date.

        Args:
            asked: The history of the request, which says what is asked: the gap from the last event
                to the question, and the objective. The state does not depend on it.
        """
        engine = self.serving.engine
        if self.is_encoded_whole:
            users, states = engine.encode_states([self.latest(asked)])
            self.restart(states[0])
            return users
        while self.new > 1:
            engine.append(self.state, [self.next_event(asked)])
            self.advance()
        users = engine.append(self.state, [self.next_event(asked)])
        self.advance()
        return users

    def latest(self, asked: History) -> History:
        """Return the latest ``max_length`` events for an encoder."""
        log, events, reader = self.counts.log, self.counts.events, self.serving.reader
        latest = slice(max(0, events - reader.max_length), events)
        items, since, kinds = (
            np.array(part[latest], np.int64) for part in (log.items, log.since, log.kinds)
        )
        return reader.with_rows(asked._replace(items=items, since=since, kinds=kinds))

    def restart(self, events: list[Floats]) -> None:
        """Replace the state by that of the latest ``max_length`` events from an encoder."""
        counts = self.counts
        count = min(counts.events, self.serving.reader.max_length)
        counts.log.state.fill(0, events, count)
        self.counts = counts._replace(encoded=counts.events, position=count)

    def next_event(self, asked: History) -> Event:
        """Return the event to append: the first new one, or the last one again."""
        counts = self.counts
        place = min(counts.encoded, counts.events - 1)
        position = counts.position - (counts.encoded - place)
        log = counts.log
        return Event(
            log.items[place],
            position,
            log.since[place],
            asked.until,
            log.kinds[place],
            asked.objective,
        )

    def advance(self) -> None:
        """Count ``next_event`` as part of the state."""
        log, events, aside, unknown, encoded, position = self.counts
        if encoded < events:
            self.counts = Counts(log, events, aside, unknown, encoded + 1, position + 1)


def _gaps(last: int | None, times: list[int | None]) -> list[int]:
    """Return the bucket of the gap before each event; ``last`` is the time before them."""
    gaps = [UNKNOWN] * len(times)
    for place, time in enumerate(times):
        if time is not None and last is not None:
            gaps[place] = bucket_until(time, last)
        last = time
    return gaps


def _sorted_out(
    counts: Counts, events: list[tuple[ItemId, int | None, int]], indices: list[int]
) -> Added:
    """Return ids, times and kinds of events as those that count and those that do not."""
    catalogue = counts.log.serving.catalogue
    items: list[int] = []
    times: list[int | None] = []
    kinds: list[int] = []
    aside: list[Aside] = []
    for (item, time, kind), index in zip(events, indices, strict=True):
        if catalogue.counts(index):
            items.append(index)
            times.append(time)
            kinds.append(kind)
        else:
            aside.append(Aside(counts.events + len(items), plain(item), time, kind, index))
    unknown = sum(event.known == 0 for event in aside)
    after = counts._replace(
        events=counts.events + len(items),
        aside=counts.aside + len(aside),
        unknown=counts.unknown + unknown,
    )
    return Added(items, times, kinds, aside, after)
