"""Runs of a graph on arrays that are handed over once.

``InferenceSession.run`` wraps every input and copies every output anew: with what it takes to make
them, a tenth of a request for ten events (docs/log.md). Here onnxruntime reads and writes arrays of
numpy where they lie, as ``OrtValue.ortvalue_from_numpy`` promises for the CPU.
"""

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from numpy.typing import NDArray

from ranklet.provider import share

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, OrtValue

Arrays = dict[str, NDArray[Any]]
Kind = TypeVar("Kind", bound=Hashable)
Run = TypeVar("Run")

MOST_ANSWERS = 1024  # of a run that is kept
MOST_KEPT = 1 << 24  # bytes of idle runs of a graph, and of masks
RUN_BYTES = 1 << 13  # what onnxruntime and Python need for one, roughly


class BoundRun:
    """Inputs and outputs of a session, to run on again and again; not for two threads at once.

    Attributes:
        arrays: By name; what lies in them when ``run`` is called is read, and answers lie in them
            afterwards.
    """

    def __init__(self, session: "InferenceSession", inputs: Arrays, outputs: Arrays) -> None:
        """Bind contiguous arrays."""
        self._session, self._binding = session, session.io_binding()
        self.arrays: Arrays = {}  # alive as long as onnxruntime refers to them
        for name, array in inputs.items():
            self.read(name, array)
        for name, array in outputs.items():
            self.write(name, array)

    def read(self, name: str, array: NDArray[Any]) -> None:
        """Take an input from another array from now on."""
        self._binding.bind_ortvalue_input(name, share(array))
        self.arrays[name] = array

    def write(self, name: str, array: NDArray[Any]) -> None:
        """Put an output into another array from now on."""
        self._binding.bind_ortvalue_output(name, share(array))
        self.arrays[name] = array

    def change(self, source: str, target: str, value: "OrtValue") -> None:
        """Have an input and an output be the same memory, which must outlive the next run."""
        self._binding.bind_ortvalue_input(source, value)
        self._binding.bind_ortvalue_output(target, value)

    def run(self) -> None:
        """Run the session."""
        self._session.run_with_iobinding(self._binding)


class Idle(Generic[Kind, Run]):
    """Runs that no thread uses, by kind: dropped before they take much more than MOST_KEPT."""

    def __init__(self) -> None:
        self.runs: dict[Kind, list[Run]] = {}
        self.bytes = 0  # of those that were made since, in use or not

    def take(self, kind: Kind) -> Run | None:
        """Return a run that no other thread has from now on; None if there is none."""
        try:
            return self.runs[kind].pop()
        except (KeyError, IndexError):
            return None

    def count(self, size: int) -> None:
        """Make room for a run that keeps so many bytes of arrays."""
        self.bytes += RUN_BYTES + size
        if self.bytes > MOST_KEPT:
            self.runs, self.bytes = {}, RUN_BYTES + size

    def give(self, kind: Kind, run: Run) -> None:
        """Keep a run for the next request of its kind."""
        self.runs.setdefault(kind, []).append(run)
