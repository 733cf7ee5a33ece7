"""Reusable runs of a graph: arrays bound to onnxruntime once (IOBinding).

``InferenceSession.run`` wraps every input and copies every output anew, which takes a third of a
short request (docs/development/log.md). On the CPU onnxruntime reads and writes the arrays of numpy
where they lie, as ``OrtValue.ortvalue_from_numpy`` promises. On CUDA each array has a twin on the
device.
"""

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, Literal
from weakref import ReferenceType

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ranklet.engine.sessions import ORT_ERRORS
from ranklet.errors import ProviderError
from ranklet.forks import INHERITED, leak

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, OrtValue

Arrays = dict[str, NDArray[Any]]
Device = Literal["cpu", "cuda"]
# TopK reads its k on the host.
ON_HOST = frozenset({"k", "pool"})
MOST_KEPT = 1 << 24  # bytes of idle runs
RUN_BYTES = 1 << 13  # rough overhead of one in onnxruntime and Python


class Value:
    """An array and its OrtValue: the same memory on the CPU, a copy on CUDA."""

    def __init__(self, array: NDArray[Any], device: Device, name: str = "") -> None:
        """Wrap a contiguous array, which must live as long as this."""
        self.array = array
        self.is_shared = device == "cpu" or name in ON_HOST
        place = "cpu" if self.is_shared else device
        # onnxruntime holds a pointer into the array on the CPU, a copy elsewhere.
        try:
            self.value: OrtValue = onnxruntime.OrtValue.ortvalue_from_numpy(array, place)
        except ORT_ERRORS as error:
            raise _failed(device, error) from error

    def send(self) -> None:
        """Copy the array to onnxruntime's value, where memory is not shared."""
        if not self.is_shared:
            try:
                self.value.update_inplace(self.array)
            except ORT_ERRORS as error:
                raise _failed("cuda", error) from error

    def fetch(self) -> None:
        """Copy onnxruntime's value to the array, where memory is not shared."""
        if not self.is_shared:
            try:
                self.array[...] = self.value.numpy()
            except ORT_ERRORS as error:
                raise _failed("cuda", error) from error


class Run:
    """Bound inputs and outputs of a graph for repeated runs; for one thread at a time.

    Attributes:
        inputs: Arrays to fill before ``go``.
        large: Inputs that are sent when they change, see ``read``.
        base: What a bias of the run's own was copied from.
        outputs: Arrays that hold the results after it.
        bytes: The size of these arrays.
    """

    def __init__(
        self,
        session: "InferenceSession",
        device: Device,
        inputs: Arrays,
        outputs: Arrays,
        grown: Sequence[str] = (),
    ) -> None:
        """Bind contiguous arrays; ``grown`` are outputs that onnxruntime allocates for each run."""
        self.inputs, self.outputs = inputs, outputs
        self.bytes = sum(array.nbytes for array in (*inputs.values(), *outputs.values()))
        self._session, self._binding, self._device = session, session.io_binding(), device
        self._sent = [Value(array, device, name) for name, array in inputs.items()]
        self._fetched = [Value(array, device, name) for name, array in outputs.items()]
        self.large: dict[str, Value] = {}  # inputs that are sent when they change
        self.base: ReferenceType[NDArray[np.float32]] | None = None
        self._state: object = None
        for name, value in zip(inputs, self._sent, strict=True):
            self._binding.bind_ortvalue_input(name, value.value)
        for name, value in zip(outputs, self._fetched, strict=True):
            self._binding.bind_ortvalue_output(name, value.value)
        for name in grown:
            self._binding.bind_output(name, "cpu")

    def read(self, name: str, array: NDArray[Any]) -> None:
        """Bind a large input to an array with its present content."""
        held = self.large.get(name)
        if held is None or held.array is not array:
            held = self.large[name] = Value(array, self._device)
            self._binding.bind_ortvalue_input(name, held.value)
        else:
            held.send()

    def change(self, state: Sequence[tuple[str, str, Value]]) -> None:
        """Bind a state as inputs and as outputs: the graph changes it in place."""
        if self._state is not state:
            self._state = state
            for source, target, value in state:
                self._binding.bind_ortvalue_input(source, value.value)
                self._binding.bind_ortvalue_output(target, value.value)

    def go(self) -> None:
        """Run the graph.

        Raises:
            ProviderError: onnxruntime failed.
        """
        try:
            if self._device == "cpu":
                self._session.run_with_iobinding(self._binding)
                return
            for value in self._sent:
                value.send()
            self._session.run_with_iobinding(self._binding)
            for value in self._fetched:
                value.fetch()
        except ORT_ERRORS as error:
            raise _failed(self._device, error) from error

    def grown(self) -> list[NDArray[Any]]:
        """Return copies of the outputs that onnxruntime allocated, in their order."""
        try:
            outputs = self._binding.get_outputs()[len(self._fetched) :]
            return [np.array(value.numpy()) for value in outputs]
        except ORT_ERRORS as error:
            raise _failed(self._device, error) from error


def _failed(device: Device, error: Exception) -> ProviderError:
    return ProviderError(f"onnxruntime failed on {device}: {error}")


class Runs:
    """A pool of idle runs by shape, emptied before it takes much more than ``most`` bytes."""

    def __init__(self, most: int = MOST_KEPT) -> None:
        """Make an empty pool."""
        self._idle: dict[Hashable, list[Run]] = {}
        self._most = most
        self.bytes = 0  # of the runs made since the pool was emptied, in use or not
        INHERITED.add(self)

    def after_fork(self) -> None:
        """Leave the runs of the parent alone: their sessions don't work in a forked child."""
        leak(self._idle)
        self._idle, self.bytes = {}, 0

    def idle(self, kind: Hashable) -> list[Run]:
        """Return the idle runs of a shape, to take from and to give back to."""
        idle = self._idle.get(kind)
        return self._idle.setdefault(kind, []) if idle is None else idle

    def made(self, run: Run) -> Run:
        """Count a new run, empty the pool if it is full, and return the run."""
        size = RUN_BYTES + run.bytes
        self.bytes += size
        if self.bytes > self._most:
            self._idle, self.bytes = {}, size
        return run
