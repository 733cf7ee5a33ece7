"""Writer of ONNX graphs, node by node, with one weights file that all of them map."""

import math
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import DTypeLike, NDArray
from onnx import TensorProto, helper, numpy_helper

from ranklet.bundle.manifest import CHUNK, WEIGHTS

PAGE = 4096  # bytes; where a tensor starts in its file, so that it is mapped as it lies
LARGEST_COMPARED = 1 << 20  # bytes; larger tensors are the same if they have one name
SMALLEST_STORED = 1024  # bytes; smaller tensors stay in the graphs
MASK = "first_mask"  # initializer whose low score depends on the items, see ``hidden_score``
CONTRIB = "com.microsoft"  # domain of onnxruntime's own operators

Axes = list[int | str]
Attribute = int | float | str | list[int]


@dataclass
class WeightFile:
    """weights.bin: every tensor once, each aligned to a page."""

    file: BinaryIO
    stored: dict[Any, TensorProto] = field(default_factory=dict)  # by type, shape and content

    def store(self, values: NDArray[Any], name: str, rows: int = 0) -> TensorProto:
        """Write an array unless the file has it; return the tensor that refers to it.

        Args:
            values: The array.
            name: Identifies an array of more than ``LARGEST_COMPARED`` bytes.
            rows: The array is padded with zeros to this number of rows.
        """
        values = np.ascontiguousarray(values)
        shape = (max(rows, len(values)), *values.shape[1:])
        content = name if values.nbytes > LARGEST_COMPARED else values.tobytes()
        key = values.dtype.str, shape, content
        if key not in self.stored:
            self.file.write(bytes(-self.file.tell() % PAGE))
            start = self.file.tell()
            self.file.write(np.ascontiguousarray(values).data)  # tofile hides a full disk
            missing = (shape[0] - len(values)) * math.prod(shape[1:]) * values.itemsize
            self.file.write(bytes(missing))
            tensor = TensorProto(dims=shape, data_location=TensorProto.EXTERNAL)
            tensor.data_type = helper.np_dtype_to_tensor_dtype(values.dtype)
            place = {"location": WEIGHTS, "offset": start, "length": self.file.tell() - start}
            for entry, value in place.items():
                tensor.external_data.add(key=entry, value=str(value))
            self.stored[key] = tensor
        return self.stored[key]

    def tensor(self, name: str, values: NDArray[Any], rows: int = 0) -> TensorProto:
        """Return an initializer, which holds a small array and refers to a large one."""
        if values.nbytes < SMALLEST_STORED and not rows:
            return numpy_helper.from_array(np.asarray(values, order="C"), name)
        tensor = TensorProto()
        tensor.CopyFrom(self.store(values, name, rows))
        tensor.name = name
        return tensor


def offset_of(tensor: TensorProto) -> int:
    """Return where a stored tensor begins in its file, in bytes."""
    return next(int(entry.value) for entry in tensor.external_data if entry.key == "offset")


def size_of(tensor: TensorProto) -> int:
    """Return the bytes of a stored tensor."""
    return next(int(entry.value) for entry in tensor.external_data if entry.key == "length")


def scanned_bytes(graph: onnx.GraphProto) -> int:
    """Return the bytes of stored weights that each run reads completely, not row by row."""
    casts = {node.input[0]: node.output[0] for node in graph.node if node.op_type == "Cast"}
    read = {
        name
        for node in graph.node
        for place, name in enumerate(node.input)
        if node.op_type != "Cast" and (node.op_type, place) != ("Gather", 0)
    }
    return sum(
        size_of(tensor)
        for tensor in graph.initializer
        if tensor.external_data and casts.get(tensor.name, tensor.name) in read
    )


class GraphWriter:
    """Builder of an ONNX graph, one node a call; values are known by their names."""

    def __init__(self, weights: WeightFile) -> None:
        """Refer to large tensors in a file."""
        self.weights = weights
        self.graph = onnx.GraphProto(name="ranklet")
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def input(self, name: str, kind: int, axes: Axes) -> str:
        """Add an input; a text axis is dynamic."""
        self.graph.input.append(helper.make_tensor_value_info(name, kind, axes))
        return name

    def output(self, name: str, kind: int, axes: Axes) -> None:
        """Declare a value as an output."""
        self.graph.output.append(helper.make_tensor_value_info(name, kind, axes))

    def adopt(self, graph: onnx.GraphProto, inputs: dict[str, Axes], *, without: str) -> None:
        """Copy a traced graph without one initializer and without the tracer's metadata."""
        for node in graph.node:
            node.doc_string = ""
            del node.metadata_props[:]
            self.graph.node.append(node)
        for tensor in graph.initializer:
            if tensor.name != without:
                self.weight(tensor.name, numpy_helper.to_array(tensor))
        for name, axes in inputs.items():
            given = next(value for value in graph.input if value.name == name)
            self.input(name, given.type.tensor_type.elem_type, axes)

    def rename(self, value: str, name: str) -> str:
        """Give a value another name, before a node reads it."""
        producer = next(node for node in reversed(self.graph.node) if value in node.output)
        producer.output[list(producer.output).index(value)] = name
        return name

    def nodes(
        self, operator: str, inputs: list[str], count: int, **attributes: Attribute
    ) -> list[str]:
        """Add a node of several outputs and return their names."""
        name = f"{operator}_{len(self.graph.node)}"
        return self._append(
            operator, name, inputs, [f"{name}.{n}" for n in range(count)], **attributes
        )

    def node(self, operator: str, *inputs: str, to: str = "", **attributes: Attribute) -> str:
        """Add a node of one output and return its name: ``to``, or one of its own."""
        name = f"{operator}_{len(self.graph.node)}"
        return self._append(operator, name, [*inputs], [to or name], **attributes)[0]

    def _append(
        self,
        operator: str,
        name: str,
        inputs: list[str],
        outputs: list[str],
        **attributes: Attribute,
    ) -> list[str]:
        domain = str(attributes.pop("domain", ""))
        if "dtype" in attributes:  # of a Cast, whose attribute is called as an argument here
            attributes["to"] = attributes.pop("dtype")
        node = helper.make_node(operator, inputs, outputs, name, domain=domain)
        node.attribute.extend(helper.make_attribute(*pair) for pair in attributes.items())
        self.graph.node.append(node)
        return outputs

    def top(self, scores: str, count: str, best: str, items: str) -> None:
        """Name the best of (B, N) scores ``best`` and their places ``items``, best first."""
        self.graph.node.append(
            helper.make_node("TopK", [scores, count], [best, items], f"{best}_TopK")
        )

    def constant(self, values: Any) -> str:  # noqa: ANN401 (what numpy takes)
        """Return the name of a constant with these values, stored once."""
        array = np.asarray(values)
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self._constants:
            self._constants[key] = self.weight(f"constant_{len(self._constants)}", array)
        return self._constants[key]

    def weight(self, name: str, values: NDArray[Any], *, rows: int = 0) -> str:
        """Add an initializer: large ones go to weights.bin; fp16 is widened to fp32."""
        tensor = self.weights.tensor(name, values, rows)
        if tensor.data_type == TensorProto.FLOAT16:  # onnxruntime widens it once, while it loads
            tensor.name = f"{name}.fp16"
            self.graph.node.insert(
                0, helper.make_node("Cast", [tensor.name], [name], name, to=TensorProto.FLOAT)
            )
        self.graph.initializer.append(tensor)
        return name

    def table(self, values: NDArray[np.floating], dtype: DTypeLike) -> str:
        """Add the item table, padded with zeros to whole chunks of the scorer."""
        rows = -(-len(values) // CHUNK) * CHUNK
        return self.weight("table", values.astype(dtype, copy=False), rows=rows)

    def model(self, opset: int) -> onnx.ModelProto:
        """Return the graph as a model; onnxruntime's own operators are declared if it has some."""
        opsets = [helper.make_opsetid("", opset)]
        if any(node.domain == CONTRIB for node in self.graph.node):
            opsets.append(helper.make_opsetid(CONTRIB, 1))
        model = helper.make_model(self.graph, opset_imports=opsets, producer_name="ranklet")
        model.ir_version = min(model.ir_version, 10)
        return model
