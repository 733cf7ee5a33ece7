"""Rank for the whole history of one user, of which nothing is kept: most requests.

* Arrays are bound to onnxruntime once, and filled for each request (``ranklet.bound``).
* plain.onnx takes events in chunks, each beside what its events may see: what a window hides from
  a whole chunk is not computed. Without it, model.onnx takes the history as it is.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ranklet.bound import MOST_ANSWERS, Arrays, BoundRun, Idle
from ranklet.bundle import NEVER
from ranklet.device import Inputs
from ranklet.graph import LONGEST_KEPT, Best, Events, Floats, Graphs, Indices
from ranklet.provider import ORT_ERRORS

if TYPE_CHECKING:
    from ranklet.graph import Session

# As many floats as a processor adds at once: rows that begin at multiples of it are summed up in
# the order of the whole history, and scores are the same, rarely but for the last bit.
CHUNK_EVENTS = 16


class Layout(NamedTuple):
    """How a history is cut: chunks of so many events each, which see so many."""

    chunks: int
    events: int
    visible: int

    @classmethod
    def of(cls, length: int, window: int) -> "Layout":
        """Cut a history whose events see ``window`` (0: all) up to themselves, where that pays."""
        before = -(-(window - 1) // CHUNK_EVENTS) * CHUNK_EVENTS
        visible = before + CHUNK_EVENTS
        if not window or 2 * visible > length:
            return cls(1, length, length)
        return cls(-(-length // CHUNK_EVENTS), CHUNK_EVENTS, visible)


class Plain:
    """What ranks for whole histories, on graphs that ``can_bind``."""

    def __init__(self, graphs: Graphs) -> None:
        """Use the graphs of a bundle."""
        self._graphs = graphs
        self._window = graphs.attention_window if graphs.has_plain else 0
        self._idle: Idle[tuple[int, int, int, bool], _Run] = Idle()

    def can_rank(self, length: int, k: int) -> bool:
        """Return whether so many events and answers may be asked for."""
        is_short = length <= LONGEST_KEPT or Layout.of(length, self._window).chunks > 1
        return is_short and k <= MOST_ANSWERS

    def rank(
        self,
        history: Indices,
        k: int,
        pool: int,
        *,
        exclude_seen: bool = False,
        bias: Floats | None = None,
    ) -> Best:
        """Rank for a history, (T,), T at least 1, as ``Graphs.rank`` does.

        Args:
            history: Item indices.
            k: As in ``Graphs.rank``.
            pool: As in ``Graphs.rank``.
            exclude_seen: Rank no item of ``history``.
            bias: As in ``Graphs.rank``.
        """
        kind = (len(history), k, pool, exclude_seen)
        try:
            run = self._idle.take(kind)
            if run is None:
                run = self._new_run(*kind)
                self._idle.count(run.bytes)
        except ORT_ERRORS as error:
            raise self._graphs.failed(error) from error
        run.fill(history)
        best = run.rank(bias)
        self._idle.give(kind, run)
        return best

    def bare(self, history: Indices, k: int, pool: int) -> "tuple[Session, Inputs]":
        """Return the session that ranks for a history, and what it gets, see ``rank``."""
        run = self._new_run(len(history), k, pool, exclude_seen=False)
        run.fill(history)
        return run.session, {**run.inputs}

    def _new_run(self, length: int, k: int, pool: int, exclude_seen: bool) -> "_Run":
        graphs = self._graphs
        kind = _ChunkedRun if graphs.has_plain else _Run
        return kind(graphs, length, k, pool, exclude_seen=exclude_seen)


class _Run:
    """A run of model.onnx for histories of one length."""

    def __init__(
        self, graphs: Graphs, length: int, k: int, pool: int, *, exclude_seen: bool
    ) -> None:
        history = np.zeros((1, length), dtype=np.int64)
        exclude = history if exclude_seen else None
        inputs = graphs.rank_inputs(Events(history), k, pool=pool, exclude=exclude)
        self._history = history[0]
        self._bind(graphs, graphs.session, {n: np.asarray(a) for n, a in inputs.items()}, k, pool)

    def _bind(self, graphs: Graphs, session: "Session", inputs: Arrays, k: int, pool: int) -> None:
        outputs = graphs.answer_arrays(k, pool)
        self.session, self.inputs = session, inputs
        self._graphs, self._bound = graphs, BoundRun(session, inputs, outputs)
        own = [array for name, array in inputs.items() if name != "bias"]
        self.bytes = sum(array.nbytes for array in (*own, *outputs.values()))

    def fill(self, history: Indices) -> None:
        """Take a history, (T,)."""
        self._history[:] = history

    def rank(self, bias: Floats | None) -> Best:
        """Rank for what was taken."""
        return self._graphs.run_bound(self._bound, bias)


class _ChunkedRun(_Run):
    """A run of plain.onnx for histories of one length."""

    def __init__(
        self, graphs: Graphs, length: int, k: int, pool: int, *, exclude_seen: bool
    ) -> None:
        layout = chunks, events, visible = Layout.of(length, graphs.attention_window)
        before = visible - events  # what the first event of a chunk sees, too
        room = np.zeros(before + chunks * events, dtype=np.int64)
        self._history = room[before : before + length]
        self._keys = self._visible = history = room[before:].reshape(chunks, events)
        if chunks > 1:
            self._keys = np.zeros((chunks, visible), dtype=np.int64)
            self._visible = sliding_window_view(room, visible)[::events]
        begins = np.arange(0, chunks * events, events, dtype=np.int64)
        places = begins[:, None] + np.arange(-before, events, dtype=np.int64)
        places = places.clip(0)  # of what would be before the first event, and is hidden
        mask_0, mask_1 = graphs.chunk_masks(length, *layout)
        inputs = {
            "history": history,
            "last": np.full((1, 1, 1), length - 1, dtype=np.int64),
            "positions": np.ascontiguousarray(places[:, before:]),
            "mask_0": mask_0,
            "mask_1": mask_1,
            "keys": self._keys,
            "key_positions": places,
            "k": np.array([k], dtype=np.int64),
            "pool": np.array([pool], dtype=np.int64),
            "bias": graphs.bias,
        }
        self._bind(graphs, graphs.plain, {n: inputs[n] for n in graphs.plain_names}, k, pool)
        self._bias = graphs.bias.copy() if exclude_seen else None  # between requests as that
        self.bytes += 0 if self._bias is None else self._bias.nbytes

    def fill(self, history: Indices) -> None:
        """Take a history, (T,)."""
        self._history[:] = history
        if self._keys is not self._visible:
            self._keys[:] = self._visible

    def rank(self, bias: Floats | None) -> Best:
        """Rank for what was taken."""
        if self._bias is None:
            return super().rank(bias)
        without = self._bias if bias is None else bias.copy()
        without[self._history] = NEVER
        best = super().rank(without)
        self._bias[self._history] = 0
        return best
