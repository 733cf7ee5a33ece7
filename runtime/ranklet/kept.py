"""Kept histories: the events of one user, and a state that the next event is appended to.

* Up to ``max_length`` events a user ranks as ``Ranker.rank`` with the whole history.
* Beyond, the window rolls: in the last block an event attends to the ``max_length`` latest events,
  itself included. Events outside the window still influence those that attended to them, so
  answers differ from ``Ranker.rank`` with the latest events; they are no worse
  (docs/performance.md). More than ``APPENDED`` new events at once are encoded with the latest
  ``max_length``, as ``Ranker.rank`` does; so are fewer where that is faster and changes nothing.
* Events are encoded by the next ranking, so that appending alone costs next to nothing.
* A signal handler that raises may end any call. The counts are therefore one immutable value,
  replaced in one assignment. The lists of events may be longer than these counts, and an event may
  be put into the state twice.
"""

from typing import NamedTuple

import numpy as np

from ranklet.engine.engine import NONE, Engine, Event, Floats, History
from ranklet.engine.state import State
from ranklet.errors import InputError
from ranklet.request import Reader, Request, beside
from ranklet.time_gaps import UNKNOWN, buckets_before
from ranklet.values import Ids, Times, whole_number

APPENDED = 4  # new events
# Appending one event takes as long as encoding these (docs/development/log.md).
EVENTS_OF_AN_APPEND = 32


class Counts(NamedTuple):
    """Counts of a history: its known events, and those in the state."""

    events: int = 0  # known events
    unknown: int = 0  # ids that the catalogue lacks
    last_time: int | None = None
    encoded: int = 0  # events that are or were in the state
    position: int = 0  # of the next event, in the state


Added = tuple[list[int], list[int], Counts]  # items, buckets before them, counts with them


class KeptHistory:
    """Events of one user and their state; not for two threads at once.

    Attributes:
        counts: How much of the rest counts.
        items: Item indices of known events, all of them.
        since: Bucket of the gap before each.
        state: Rows of the latest events.
    """

    def __init__(self, engine: Engine, reader: Reader, state: State) -> None:
        """Start without an event."""
        self.engine, self.reader, self.state = engine, reader, state
        self.counts = Counts()
        self.items: list[int] = []
        self.since: list[int] = []

    def append(self, index: int) -> None:
        """Add an event of unknown time: ``add`` and ``read`` without arrays."""
        events, unknown, _, encoded, position = self.counts
        del self.items[events:], self.since[events:]  # rest of an interrupted call
        self.items.append(index)
        self.since.append(UNKNOWN)
        self.counts = Counts(events + 1, unknown, None, encoded, position)

    def read(self, items: Ids, times: Times | None, name: str) -> Added:
        """Validate new events; return items, buckets before them and the counts after them."""
        counts = self.counts
        indices = self.reader.vocabulary.index(items, name)
        known = indices[indices > 0]
        since, last_time = [UNKNOWN] * len(known), None if len(known) else counts.last_time
        if times is not None:
            place = "times" if name == "item" else beside(name, "times")
            instants = self.reader.instants(times, len(indices), place, counts.last_time)
            instants = instants[indices > 0]
            if len(instants):
                before = [] if counts.last_time is None else [counts.last_time]
                gaps = buckets_before(np.concatenate([np.array(before, np.int64), instants]))
                since = gaps[len(before) :].tolist()
                last_time = int(instants[-1])
        events, unknown = counts.events + len(known), counts.unknown + len(indices) - len(known)
        after = Counts(events, unknown, last_time, counts.encoded, counts.position)
        return known.tolist(), since, after

    def add(self, items: list[int], since: list[int], after: Counts) -> None:
        """Add events that ``read`` returned."""
        del self.items[self.counts.events :], self.since[self.counts.events :]
        self.items += items
        self.since += since
        self.counts = after

    def request(
        self,
        now: int | None = None,
        candidates: Ids | None = None,
        exclude: Ids | None = None,
        *,
        exclude_seen: bool = False,
    ) -> Request:
        """Return the request of a ranking, see ``rank``."""
        counts = self.counts
        excluded = NONE
        if exclude_seen:
            excluded = np.array(self.items[: counts.events], dtype=np.int64)
        chosen = None
        if exclude is not None or candidates is not None:
            excluded, chosen = self.reader.filters(excluded, candidates, exclude)
        until = UNKNOWN if now is None else self._until(now)
        history = History(NONE, NONE, until) if counts.events else None
        return Request(history, counts.unknown, excluded, chosen)

    def _until(self, now: int) -> int:
        """Return the bucket of the gap from the last event to now."""
        last = self.counts.last_time
        if last is not None or not self.reader.uses_times:
            return self.reader.until(now, last or 0)
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
        if new < 2 or not self.counts.encoded:
            return new > 0 and not self.counts.encoded
        is_short = events <= min(EVENTS_OF_AN_APPEND * new, self.reader.max_length)
        return new > APPENDED or is_short

    def encode(self, history: History) -> Floats:
        """Return the user vector, (1, D), and bring the state up to date.

        Args:
            history: Of the request, for its gap from the last event to the question.
        """
        until = history.until
        if self.is_encoded_whole:
            users, states = self.engine.encode_states([self.latest(until)])
            self.restart(states[0])
            return users
        while self.new > 1:
            self.engine.append(self.state, [self.next_event(UNKNOWN)])
            self.advance()
        users = self.engine.append(self.state, [self.next_event(until)])
        self.advance()
        return users

    def latest(self, until: int) -> History:
        """Return the latest ``max_length`` events for an encoder."""
        events = self.counts.events
        latest = slice(max(0, events - self.reader.max_length), events)
        items, since = (np.array(part[latest], np.int64) for part in (self.items, self.since))
        return History(items, since, until)

    def restart(self, events: list[Floats]) -> None:
        """Replace the state by that of the latest ``max_length`` events from an encoder."""
        counts = self.counts
        count = min(counts.events, self.reader.max_length)
        self.state.fill(0, events, count)
        self.counts = counts._replace(encoded=counts.events, position=count)

    def next_event(self, until: int) -> Event:
        """Return the event to append: the first new one, or the last one again."""
        counts = self.counts
        place = min(counts.encoded, counts.events - 1)
        position = counts.position - (counts.encoded - place)
        return Event(self.items[place], position, self.since[place], until)

    def advance(self) -> None:
        """Count ``next_event`` as part of the state."""
        events, unknown, last_time, encoded, position = self.counts
        if encoded < events:
            self.counts = Counts(events, unknown, last_time, encoded + 1, position + 1)
