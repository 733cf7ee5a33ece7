"""States of users that append.onnx changes where they lie.

Attention does not ask in which order keys lie, so the newest event takes the place of the oldest,
and masks tell how long ago each was. Nothing grows, and nothing is copied.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ranklet.bound import Arrays, BoundRun, Idle
from ranklet.graph import Best, Floats, Graphs, Indices, State
from ranklet.provider import ORT_ERRORS, share

if TYPE_CHECKING:
    from onnxruntime import OrtValue

# A state has places for so many events, or a multiple; at most for a window.
ROOM = 16


class Event(NamedTuple):
    """The newest event of a user."""

    item: int
    position: int
    since: int  # bucket of the gap before it
    until: int  # bucket of the gap from it to the question


class Ring:
    """The state of one user: rows by place, of each block's keys and values and of events."""

    def __init__(self, state: State, window: int, attention_window: int) -> None:
        """Take over the state of at least one event, and at most ``window``.

        Args:
            state: With the keys and values that ``attention_window`` shows to the next event.
            window: How many events are kept.
            attention_window: Of how many of them keys and values are; 0: of all.
        """
        parts = [np.asarray(part) for part in state]
        self.events: int = parts[-1].shape[-2]  # that were ever put here; the user counts them
        self.places: int = min(window, ROOM * (self.events // ROOM + 1))
        self.places_of_keys = min(window, attention_window) or self.places
        self._window = window
        rows = [part.reshape(-1, *part.shape[-2:]) for part in parts]
        self.arrays = [self._laid_out(part, self.places_of_keys) for part in rows[:-1]]
        self.arrays.append(self._laid_out(rows[-1], self.places))
        self.values = [share(array) for array in self.arrays]

    @property
    def has_room(self) -> bool:
        """Return whether there is a place for one more event."""
        return self.events < self.places or self.places == self._window

    def read(self) -> list[Floats]:
        """Return a copy as ``Graphs.encode`` gives it, the oldest event first."""
        *blocks, events = [
            np.take(part, self._latest(part.shape[1]) % part.shape[1], axis=1)
            for part in self.arrays
        ]
        return [*(part[None] for part in blocks), events]

    def _latest(self, count: int) -> Indices:
        """Return the numbers of so many latest events, or of all."""
        return np.arange(max(0, self.events - count), self.events)

    def _laid_out(self, rows: Floats, places: int) -> Floats:
        """Return the latest of rows (H, R, C), each in the place of its event, (H, places, C)."""
        if rows.shape[1] == places == self.events:
            return np.ascontiguousarray(rows)  # as they lie
        array = np.zeros((len(rows), places, rows.shape[2]), dtype=np.float32)
        latest = self._latest(min(places, rows.shape[1]))
        array[:, latest % places] = rows[:, rows.shape[1] - len(latest) :]
        return array


class Appender:
    """append.onnx of a bundle, and what it needs beside a state."""

    def __init__(self, graphs: Graphs) -> None:
        """Use graphs that ``can_append``."""
        self._graphs = graphs
        self._idle: Idle[int, _Run] = Idle()  # by places

    def ring(self, state: State) -> Ring:
        """Return a ring with the state of at least one event, and at most a window of them."""
        return Ring(state, self._graphs.window, self._graphs.attention_window)

    def rank(
        self,
        ring: Ring,
        event: Event,
        before: int,
        k: int,
        pool: int,
        bias: Floats | None = None,
    ) -> Best:
        """Put an event in its place, and rank for the user after it.

        Args:
            ring: Of the user, with room. That it has one event more is for the caller to note: to
                put an event there once more changes nothing, whatever went wrong after it.
            event: What is new.
            before: How many events were put there before this one.
            k: As in ``Graphs.rank``.
            pool: As in ``Graphs.rank``.
            bias: As in ``Graphs.rank``.
        """
        graphs = self._graphs
        try:
            run = self._idle.take(ring.places) or self._new_run(ring)
            run.prepare(ring, event, before, k, pool)
        except ORT_ERRORS as error:
            raise graphs.failed(error) from error
        best = graphs.run_bound(run.bound, bias)
        self._idle.give(ring.places, run)
        return best

    def _new_run(self, ring: Ring) -> "_Run":
        """Return a run for such a state; an idle one keeps the state that it was last bound to."""
        self._idle.count(sum(array.nbytes for array in ring.arrays))
        return _Run(self._graphs, ring)


class _Run:
    """A run of append.onnx on states with as many places as a ring has."""

    def __init__(self, graphs: Graphs, ring: Ring) -> None:
        self._graphs = graphs
        heads, places_of_keys = ring.arrays[0].shape[:2]
        places = [places_of_keys] * (len(graphs.ramps) - 1) + [ring.places]  # of each block
        self._states = list(zip(graphs.past_names, graphs.present_names, strict=True))
        self._values: list[OrtValue] = []  # of the state that is bound
        masks = [
            np.zeros((1, len(ramp), 1, count), dtype=np.float32)
            for ramp, count in zip(graphs.ramps, places, strict=True)
        ]
        arrays: Arrays = {name: np.zeros(1, dtype=np.int64) for name in ("until", "k", "pool")}
        arrays |= {n: np.zeros((1, 1), dtype=np.int64) for n in ("history", "positions", "since")}
        arrays |= {f"mask_{block}": mask for block, mask in enumerate(masks)}
        arrays["last"] = np.zeros((1, 1, 2), dtype=np.int64)
        arrays["last_key"] = np.zeros((heads, 1, 2), dtype=np.int64)
        arrays["last_key"][:, 0, 0] = np.arange(heads)
        arrays["bias"] = graphs.bias
        given = [name for name in graphs.append_names if name in arrays]
        self.bound = BoundRun(graphs.append, {name: arrays[name] for name in given}, {})
        self._item, self._position = arrays["history"][0], arrays["positions"][0]
        self._since, self._until = arrays["since"][0], arrays["until"]
        self._place, self._place_of_keys = arrays["last"][0, :, 1], arrays["last_key"][:, 0, 1]
        self._k, self._pool, self._sizes = arrays["k"], arrays["pool"], (0, 0)
        # What is added by distance, twice, then what hides free places.
        end = graphs.ramps[0].shape[1] // 2
        self._masks = []
        for mask, ramp, count in zip(masks, graphs.ramps, places, strict=True):
            known, whole = ramp[:, end - count : end], ramp[:, end - count : end + count]
            self._masks.append((mask[0, :, 0], np.hstack([known, whole])))

    def prepare(self, ring: Ring, event: Event, before: int, k: int, pool: int) -> None:
        """Bind a state, and say what comes to it after so many events."""
        self._item[0], self._position[0], self._since[0], self._until[0] = event
        self._place[:] = before % ring.places
        self._place_of_keys[:] = before % ring.places_of_keys
        for mask, strip in self._masks:
            places = mask.shape[1]
            first = places - 1 - before % places + (places if before < places else 0)
            mask[:] = strip[:, first : first + places]
        if self._values is not ring.values:
            self._values = ring.values
            for (past, present), value in zip(self._states, ring.values, strict=True):
                self.bound.change(past, present, value)
        if self._sizes != (k, pool):
            self._sizes = self._k[0], self._pool[0] = k, pool
            for name, array in self._graphs.answer_arrays(k, pool).items():
                self.bound.write(name, array)
