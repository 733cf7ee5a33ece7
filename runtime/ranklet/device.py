"""Sessions on CUDA: arrays that stay there, and requests alike launched as one CUDA graph.

* What a request shares with the one before it (masks, bias) is not copied again, and states stay
  on the device from one run to the next.
* The kernels of a shape are recorded once and launched together from then on: some forty launches
  take longer than the work they start. A recorded graph reads and writes the addresses that it was
  recorded with, what lies between the nodes included: so one run goes at a time, and what outlives
  a run lies in memory that the session does not give out again.
* The first answer of a recorded graph is compared with that of the same run unrecorded.
* All of it happens in one thread, see ``ranklet.provider.on_cuda``.
"""

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnxruntime
from numpy.typing import DTypeLike, NDArray

from ranklet.provider import ORT_ERRORS, on_cuda, records_graphs

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

logger = logging.getLogger(__name__)

# Sizes of what TopK picks: onnxruntime reads them on the host.
ON_HOST = ("k", "pool")
STATE = "present_"  # how outputs begin that stay on the device
TYPES: dict[str, DTypeLike] = {"tensor(int64)": np.int64, "tensor(float)": np.float32}
# Recorded graphs live as long as their session: other shapes run unrecorded.
MOST_RECORDED = 64
UNRECORDED = "-1"  # what onnxruntime calls a run that is neither recorded nor replayed
AGREE = 1e-4  # relative


class DeviceArray:
    """An array on a device; numpy gets a copy on the host."""

    def __init__(self, value: onnxruntime.OrtValue) -> None:
        """Hold a value."""
        self.value = value

    @property
    def shape(self) -> tuple[int, ...]:
        """Return its axes."""
        return tuple(self.value.shape())

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Copy it to the host."""
        return np.asarray(on_cuda(_copy, self.value), dtype=dtype)

    def __getitem__(self, key: Any) -> NDArray[Any]:  # noqa: ANN401 (as numpy)
        """Copy it to the host and return a part."""
        part: NDArray[Any] = on_cuda(_copy, self.value)[key]
        return part


Inputs = dict[str, NDArray[Any] | DeviceArray]
Shapes = Mapping[str, tuple[list[int], DTypeLike]]


class DeviceSession:
    """A session that is called as ``onnxruntime.InferenceSession``, and runs one run at a time."""

    def __init__(self, session: "InferenceSession", device: Literal["cpu", "cuda"]) -> None:
        """Keep nothing on the device yet.

        Args:
            session: Records graphs if it was made to.
            device: Where its inputs and outputs lie.
        """
        self._session, self._device = session, device
        self.get_inputs, self.get_outputs = session.get_inputs, session.get_outputs
        self._axes = {t.name: list(t.shape) for t in session.get_inputs()}
        self._outputs = {t.name: t for t in session.get_outputs()}
        self._records = records_graphs(session)
        self._kinds: dict[tuple[object, ...], _Kept] = {}
        # Never the same twice: onnxruntime would replay what a failed recording left. 0 is its own.
        self._numbers = itertools.count(1)

    def run(self, names: Sequence[str], inputs: Inputs) -> list[NDArray[Any] | DeviceArray]:
        """Return outputs: states on the device, the rest on the host.

        States grow with every event: a run that takes or gives them is not recorded.

        Args:
            names: Of the outputs.
            inputs: Must not change afterwards: one that is handed over again is not copied again.
        """
        return on_cuda(self._run, names, inputs)

    def _run(self, names: Sequence[str], inputs: Inputs) -> list[NDArray[Any] | DeviceArray]:
        shapes = self._shapes(names, inputs)
        takes_state = any(isinstance(array, DeviceArray) for array in inputs.values())
        if takes_state or any(name.startswith(STATE) for name in names):
            return self._run_once(shapes, inputs)
        kind = (*names, *(_kind(name, array) for name, array in inputs.items()))
        kept = self._kinds.get(kind)
        if kept is None:
            if len(self._kinds) >= MOST_RECORDED:
                return self._run_once(shapes, inputs)
            kept = _Kept(self._session, self._device, shapes, inputs)
            if self._records:
                kept.record(str(next(self._numbers)))
            self._kinds[kind] = kept
        return [*kept.run(inputs)]

    def _shapes(self, names: Sequence[str], inputs: Inputs) -> Shapes:
        """Return shapes and types of outputs, whose axes have the names of those of inputs."""
        sizes = {name: int(np.asarray(inputs[name])[0]) for name in ON_HOST if name in inputs}
        for name, array in inputs.items():
            sizes |= zip(self._axes[name], array.shape, strict=True)
        return {
            t.name: ([sizes.get(axis, axis) for axis in t.shape], TYPES[t.type])
            for t in map(self._outputs.__getitem__, names)
        }

    def _run_once(self, shapes: Shapes, inputs: Inputs) -> list[NDArray[Any] | DeviceArray]:
        binding = self._session.io_binding()
        found = _bind(binding, self._device, shapes, _put_all(inputs, self._device))
        self._session.run_with_iobinding(binding, _options(UNRECORDED))
        return [
            DeviceArray(value) if name.startswith(STATE) else _copy(value)
            for name, value in found.items()
        ]


class _Kept:
    """Arrays on the device for requests of one kind, perhaps with a graph recorded on them."""

    def __init__(
        self,
        session: "InferenceSession",
        device: Literal["cpu", "cuda"],
        shapes: Shapes,
        inputs: Inputs,
    ) -> None:
        """Put the inputs on the device."""
        self._session, self._binding = session, session.io_binding()
        self._sources: dict[str, object] = dict(inputs)
        self._values = _put_all(inputs, device)
        self._found = _bind(self._binding, device, shapes, self._values)
        self._options = _options(UNRECORDED)

    def record(self, number: str) -> None:
        """Record a graph, if it answers as the run that it was recorded from."""
        expected, options = self._launch(), _options(number)
        try:
            self._session.run_with_iobinding(self._binding, options)
            for value, array in zip(self._found.values(), expected, strict=True):
                value.update_inplace(np.zeros_like(array))  # so that the replay must write it
            self._session.run_with_iobinding(self._binding, options)
        except ORT_ERRORS as error:
            logger.warning("no CUDA graph could be recorded: %s", error)
            return
        if all(map(_agree, self._read(), expected)):
            self._options = options
        else:
            logger.warning("a CUDA graph answers otherwise than what it recorded: not used")

    def run(self, inputs: Inputs) -> list[NDArray[Any]]:
        """Copy what is new, launch, and copy the outputs to the host."""
        for name, array in inputs.items():
            if name not in ON_HOST and array is not self._sources[name]:
                self._sources[name] = None  # should the copy fail
                self._values[name].update_inplace(np.ascontiguousarray(array))
                # Where a node runs on the host, onnxruntime copies what it takes when it is bound.
                self._binding.bind_ortvalue_input(name, self._values[name])
                self._sources[name] = array
        return self._launch()

    def _launch(self) -> list[NDArray[Any]]:
        self._session.run_with_iobinding(self._binding, self._options)
        return self._read()

    def _read(self) -> list[NDArray[Any]]:
        return [_copy(value) for value in self._found.values()]


def _agree(found: NDArray[Any], expected: NDArray[Any]) -> bool:
    """Return whether scores are equal but for rounding; that may order items otherwise."""
    if expected.dtype != np.float32:
        return bool((found > 0).all())
    return bool((np.abs(found - expected) <= AGREE * (1 + np.abs(expected))).all())


def _copy(value: onnxruntime.OrtValue) -> NDArray[Any]:
    """Copy a value to the host; of one on the CPU, numpy alone would give a view."""
    return np.array(value.numpy())


def _kind(name: str, array: NDArray[Any] | DeviceArray) -> tuple[object, ...]:
    """Return what a recorded graph can't take otherwise: the shape, and numbers on the host."""
    return (name, *(np.asarray(array).tolist() if name in ON_HOST else array.shape))


def _put_all(inputs: Inputs, device: str) -> dict[str, onnxruntime.OrtValue]:
    """Return inputs on the device."""
    return {
        name: array.value
        if isinstance(array, DeviceArray)
        # A copy, so that values on the CPU do not lie in the caller's memory either.
        else onnxruntime.OrtValue.ortvalue_from_numpy(
            np.array(array, order="C"), "cpu" if name in ON_HOST else device
        )
        for name, array in inputs.items()
    }


def _bind(
    binding: Any,  # noqa: ANN401 (onnxruntime has no types)
    device: str,
    shapes: Shapes,
    inputs: Mapping[str, onnxruntime.OrtValue],
) -> dict[str, onnxruntime.OrtValue]:
    """Bind inputs, and outputs that are made here and returned."""
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, value)
    outputs = {
        name: onnxruntime.OrtValue.ortvalue_from_shape_and_type(*shape, device)
        for name, shape in shapes.items()
    }
    for name, value in outputs.items():
        binding.bind_ortvalue_output(name, value)
    return outputs


def _options(number: str) -> onnxruntime.RunOptions:
    """Return options that record or replay a graph of this number."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", number)
    return options
