"""Request validation: ids, times and filters, checked once and turned into item indices."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ranklet.bundle.manifest import Manifest
from ranklet.bundle.vocabulary import Unknown
from ranklet.catalogue import Catalogue
from ranklet.engine.engine import NONE, Floats, History
from ranklet.errors import InputError
from ranklet.event_kinds import EventKinds, Kinds
from ranklet.time_gaps import UNKNOWN, bucket_until, buckets_before, unit_by_size
from ranklet.values import Ids, Times, flag, listed, whole_number, whole_numbers

ORDER_ALONE = "this bundle does not use times: its model was trained on order alone"

Indices = NDArray[np.int64]


class Request(NamedTuple):
    """One checked request: item indices only."""

    history: History | None  # the latest known events; None: no event is known
    unknown: int  # number of history ids that the catalogue lacks
    excluded: Indices  # items that may not be ranked, with repeats
    candidates: Indices | None  # unique, none of them excluded
    demoted: Indices = NONE  # items that lose points, with repeats
    seen: int = 0  # of the excluded, those of the history

    @property
    def removed(self) -> int:
        """Return how many items were named that may stand before the best of the answer."""
        return len(self.excluded) - self.seen + len(self.demoted)


class Reader:
    """Validator of requests for a catalogue."""

    def __init__(self, catalogue: Catalogue, manifest: Manifest) -> None:
        """Check ids against a catalogue, and times and kinds if the model uses them."""
        self.catalogue, self.vocabulary = catalogue, catalogue.vocabulary
        self.max_length, self.uses_times = manifest.max_length, manifest.uses_times
        self.time_unit = manifest.checked_unit  # "": times are not checked
        self.exclude_seen = manifest.exclude_seen  # default of requests
        self._silent, self._is_grown = catalogue.silent, len(catalogue.added) > 0
        self.kinds = EventKinds(manifest.kinds)

    def excludes_seen(self, exclude_seen: bool | None) -> bool:
        """Return whether a request excludes seen items; None is the default."""
        if exclude_seen is None:
            return self.exclude_seen
        return flag(exclude_seen, "exclude_seen")

    def read(
        self,
        history: Ids,
        times: Times | None = None,
        now: int | None = None,
        candidates: Ids | None = None,
        exclude: Ids | None = None,
        exclude_seen: bool = False,
        unknown: Unknown = "skip",
        name: str = "history",
        demoted: Ids | None = None,
        kinds: Kinds | None = None,
        objective: Floats | None = None,
    ) -> Request:
        """Return a request for a history, see ``Ranker.rank``; errors call it ``name``.

        ``objective`` is of ``EventKinds.weights``.
        """
        indices = self.vocabulary.index(history, name, unknown=unknown)
        known = indices if np.count_nonzero(indices) == len(indices) else indices[indices > 0]
        items, since, until, of_events = known, NONE, UNKNOWN, NONE
        if self._silent is not None and self._silent[known].any():
            items = known[~self._silent[known]]
        if times is not None or now is not None:
            since, until = self._gaps(indices, times, now, name)
        if kinds is not None:
            given = self.kinds.indices(kinds, len(indices), beside(name, "kinds"))
            of_events = given[self._is_event(indices)][-self.max_length :]
        excluded = known if exclude_seen else NONE
        seen, chosen = len(excluded), None
        if exclude is not None or candidates is not None:
            excluded, chosen = self.filters(excluded, candidates, exclude, unknown, name)
        events = None
        if len(items):
            latest = -self.max_length
            events = History(items[latest:], since[latest:], until, of_events, objective)
            if self._is_grown:
                events = self.with_rows(events)
        fewer = NONE if demoted is None else self.demoted(demoted, name)
        return Request(events, len(indices) - len(known), excluded, chosen, fewer, seen)

    def with_rows(self, history: History) -> History:
        """Return a history with the rows of its items if any of them was added."""
        if len(self.catalogue.added) and (history.items > self.catalogue.last).any():
            return history._replace(rows=self.catalogue.rows(history.items))
        return history

    def _is_event(self, indices: Indices) -> NDArray[np.bool_]:
        """Return which items count as events of a history."""
        silent, is_known = self.catalogue.silent, indices > 0
        return is_known if silent is None else is_known & ~silent[indices]

    def demoted(self, items: Ids, name: str = "history") -> Indices:
        """Return the items that lose points."""
        place = beside(name, "seen_recently")
        indices = self.vocabulary.index(listed(items, place), place)
        return indices[indices > 0]

    def filters(
        self,
        excluded: Indices,
        candidates: Ids | None,
        exclude: Ids | None,
        unknown: Unknown = "skip",
        name: str = "history",
    ) -> tuple[Indices, Indices | None]:
        """Return the excluded items, and the candidates if there are any."""
        if exclude is not None:
            place = beside(name, "exclude")
            dropped = self.vocabulary.index(listed(exclude, place), place)
            excluded = np.concatenate([excluded, dropped[dropped > 0]])
        if candidates is None:
            return excluded, None
        place = beside(name, "candidates")
        chosen = self.vocabulary.index(listed(candidates, place), place, unknown=unknown)
        return excluded, np.setdiff1d(chosen, np.append(excluded, 0))

    def instants(
        self, times: Times, events: int, name: str, last: int | None = None
    ) -> NDArray[np.int64]:
        """Return checked times, one for each event and none before the one before it.

        Args:
            times: The times from the caller.
            events: The number of events.
            name: The name of the times in messages.
            last: The time of the event before these, if it is known.
        """
        if not self.uses_times:
            raise InputError(ORDER_ALONE)
        instants = whole_numbers(times, name)
        if len(instants) != events:
            raise InputError(
                f"{name} has {len(instants)} times for {events} events: pass one for each"
            )
        falls = np.flatnonzero(instants[1:] < instants[:-1])
        if len(falls):
            at = int(falls[0])
            raise InputError(
                f"{name}[{at + 1}] is {instants[at + 1]}, before {name}[{at}], {instants[at]}: "
                "pass events oldest first"
            )
        if last is not None and events and instants[0] < last:
            raise InputError(
                f"{name}[0] is {instants[0]}, before the last event, {last}: "
                "pass events oldest first"
            )
        for place in (0, -1) if len(instants) else ():  # the extremes
            self._check_unit(int(instants[place]), name)
        return instants

    def until(self, now: int, last: int, name: str = "now", history: str = "") -> int:
        """Return the bucket of the gap from the last event to ``now``."""
        if not self.uses_times:
            raise InputError(ORDER_ALONE)
        instant = whole_number(now, name)
        self._check_unit(instant, name)
        if instant < last:
            of = f" of {history}" if history else ""
            raise InputError(f"{name} is {instant}, before the last event{of}, {last}")
        return bucket_until(instant, last)

    def _check_unit(self, time: int, name: str) -> None:
        """Refuse a time that is a date of our age in another unit than the model's."""
        unit = unit_by_size(time)
        if unit and self.time_unit not in ("", unit):
            raise InputError(
                f"{name} holds {time}, which is in {unit} by its size; the times of this bundle "
                f"are in {self.time_unit} since 1970: convert them"
            )

    def _gaps(
        self, indices: Indices, times: Times | None, now: int | None, name: str
    ) -> tuple[Indices, int]:
        """Return the buckets before each event that counts, and from the last one to now."""
        if not self.uses_times:
            raise InputError(ORDER_ALONE)
        place = beside(name, "times")
        if times is None:
            raise InputError(f"now was given without {place}: it counts from the last event")
        instants = self.instants(times, len(indices), place)[self._is_event(indices)]
        if now is None:
            return buckets_before(instants), UNKNOWN
        place = beside(name, "now")
        if not len(instants):
            whole_number(now, place)
            return NONE, UNKNOWN
        return buckets_before(instants), self.until(now, int(instants[-1]), place, name)


def beside(name: str, argument: str) -> str:
    """Return the name of another argument's part for a history: of ``histories[3]``, ``now[3]``."""
    return name.replace("histories", argument).replace("history", argument)
