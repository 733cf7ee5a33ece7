"""Graphs of a bundle, checked before onnxruntime reads them, without the onnx package.

The exporter writes a small part of ONNX, and no more is let through:

* the operators below, without control flow, functions or subgraphs, and a bounded number of them
* tensors inside the graph, or in weights.bin, each within the file and of the size of its shape
* the fields of ONNX that are named below, each once unless it repeats

A graph is a protobuf message; every field is a tag, and a number or some bytes
(https://protobuf.dev/programming-guides/encoding/).
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ranklet.bundle.manifest import CHUNK, SCORE, WEIGHTS, WIDEST, Manifest
from ranklet.errors import BundleError
from ranklet.values import show

LARGEST_GRAPH = 1 << 22  # bytes; exporters store tensors of 1 KiB and more in weights.bin
MOST_NODES = 1 << 12
PIECE = 1 << 18  # bytes read at once

CONTRIB = "com.microsoft"
OPSETS = {"": range(20, 24), CONTRIB: range(1, 2)}
# Operators by domain: the fewest and the most inputs, and the attributes.
OPERATORS = {
    "": {
        "Abs": (1, 1, ""),
        "Add": (2, 2, ""),
        "And": (2, 2, ""),
        "ArgMax": (1, 1, "axis select_last_index"),
        "Attention": (3, 4, "is_causal kv_num_heads q_num_heads scale"),
        "Cast": (1, 1, "to"),
        "Clip": (2, 3, ""),
        "Concat": (2, 4, "axis"),
        "CumSum": (2, 2, "exclusive reverse"),
        "Div": (2, 2, ""),
        "Equal": (2, 2, ""),
        "Expand": (2, 2, ""),
        "Gather": (2, 2, "axis"),
        "GatherElements": (2, 2, "axis"),
        "GatherND": (2, 2, "batch_dims"),
        "Gelu": (1, 1, "approximate"),
        "Gemm": (3, 3, "transB"),
        "GreaterOrEqual": (2, 2, ""),
        "IsNaN": (1, 1, ""),
        "LayerNormalization": (3, 3, "axis epsilon stash_type"),
        "Less": (2, 2, ""),
        "MatMul": (2, 2, ""),
        "MatMulInteger": (3, 3, ""),
        "Max": (2, 2, ""),
        "Min": (2, 2, ""),
        "Mod": (2, 2, ""),
        "Mul": (2, 2, ""),
        "Neg": (1, 1, ""),
        "Not": (1, 1, ""),
        "Or": (2, 2, ""),
        "Pad": (2, 2, ""),
        "QuantizeLinear": (3, 3, ""),
        "RMSNormalization": (2, 2, "epsilon"),
        "Range": (3, 3, ""),
        "ReduceL2": (2, 2, "keepdims noop_with_empty_axes"),
        "ReduceMax": (2, 2, "keepdims"),
        "ReduceSum": (2, 2, "keepdims noop_with_empty_axes"),
        "Reshape": (2, 2, "allowzero"),
        "RotaryEmbedding": (4, 4, "num_heads"),
        "ScatterElements": (3, 3, "axis"),
        "Shape": (1, 1, "end start"),
        "Sigmoid": (1, 1, ""),
        "Sign": (1, 1, ""),
        "Slice": (3, 4, ""),
        "Softmax": (1, 1, "axis"),
        "Split": (1, 1, "axis num_outputs"),
        "Squeeze": (1, 2, ""),
        "Sub": (2, 2, ""),
        "Sum": (3, 3, ""),
        "TopK": (2, 2, "largest sorted"),
        "Transpose": (1, 1, "perm"),
        "Unsqueeze": (2, 2, ""),
        "Where": (3, 3, ""),
    },
    CONTRIB: {
        "MatMulIntegerToFloat": (6, 6, ""),
        "MatMulNBits": (3, 3, "K N accuracy_level bits block_size"),
    },
}
OUTPUTS = {"Split": 2, "TopK": 2}  # all others have one
# The least and the most of integer attributes: onnxruntime crashes on some others.
AXES, FLAG, HEADS = (-1, 3), (0, 1), (1, 1 << 10)
INTEGERS = {
    **dict.fromkeys(("axis", "start", "end", "perm"), AXES),
    **dict.fromkeys(("allowzero", "batch_dims", "exclusive", "is_causal", "keepdims"), FLAG),
    **dict.fromkeys(("largest", "noop_with_empty_axes", "reverse", "select_last_index"), FLAG),
    **dict.fromkeys(("sorted", "stash_type", "transB"), FLAG),
    **dict.fromkeys(("kv_num_heads", "num_heads", "q_num_heads"), HEADS),
    **{"num_outputs": (2, 2), "to": (1, 10), "accuracy_level": (4, 4), "bits": (4, 8)},
    **{"K": (1, WIDEST), "block_size": (16, WIDEST), "N": (CHUNK, 1 << 40)},
}
# Element types of tensors (TensorProto.DataType), as numpy writes them.
TYPES = {1: "<f4", 2: "|u1", 3: "|i1", 5: "<i2", 6: "<i4", 7: "<i8", 9: "|b1", 10: "<f2"}
VALUES = {1: "float", 2: "integer", 3: "text", 7: "integers"}  # of attributes, by type

# Fields of onnx.proto by tag: eight times the number, plus 0 for an integer, 2 for bytes and 5 for
# four bytes. Those without a name are known and not looked at.
MODEL = {8: "", 18: "", 58: "graph", 66: "opsets"}  # 8, 18: version, producer
OPSET = {10: "domain", 16: "version"}
GRAPH = {10: "nodes", 18: "", 42: "tensors", 90: "", 98: ""}  # name, inputs, outputs
NODE = {
    **{10: "inputs", 18: "outputs", 26: "", 34: "operator"},  # 26, 50: name, note
    **{42: "attributes", 50: "", 58: "domain"},
}
ATTRIBUTE = {
    **{10: "name", 21: "float", 24: "integer", 34: "text"},
    **{64: "integers", 160: "type"},
}
TENSOR = {8: "dims", 16: "type", 66: "name", 74: "content", 106: "places", 112: "is_stored"}
PLACE = {10: "key", 18: "value"}
REPEATED = {"opsets", "nodes", "tensors", "inputs", "outputs", "attributes", "integers"}
REPEATED |= {"dims", "places"}


class Stored(NamedTuple):
    """A tensor in weights.bin."""

    offset: int  # bytes
    type: str  # as numpy writes it
    dims: tuple[int, ...]


def check_graphs(folder: Path, manifest: Manifest, *, with_weights: bool) -> None:
    """Check every graph of a bundle, and that its weights are finite.

    Args:
        folder: The folder of the bundle.
        manifest: Its manifest.
        with_weights: Read the stored weights, too, and not only those inside the graphs.

    Raises:
        BundleError: A graph holds what the exporter does not write, or a weight is not finite.
    """
    size, stored = manifest.files[WEIGHTS].size, set[Stored]()
    for name, program in manifest.programs.items():
        path = folder / program.file
        try:
            if path.stat().st_size > LARGEST_GRAPH:
                raise ValueError(f"it is larger than {LARGEST_GRAPH:,} bytes")
            tensors = {*stored_tensors(path.read_bytes(), size)}
            if name == SCORE and not any(_is_table(tensor, manifest) for tensor in tensors):
                raise ValueError("it does not have the item table of the manifest")
        except (OSError, ValueError, IndexError) as error:
            raise BundleError(f"{path} is no graph of a bundle: {error}") from error
        stored |= tensors
    if with_weights:
        _check_weights(folder / WEIGHTS, stored)


def stored_tensors(data: bytes, size: int) -> Iterator[Stored]:
    """Check a model, and yield its tensors that lie in a weights.bin of some bytes.

    Raises:
        ValueError: It holds something else.
        IndexError: It ends too early.
    """
    model = _fields(data, MODEL)
    for opset in model.get("opsets", ()):
        fields = _fields(opset, OPSET)
        domain, version = _text(fields, "domain"), fields.get("version")
        if version not in OPSETS.get(domain, ()):
            raise ValueError(f"opset {show(version)} of {show(domain)}")
    graph = _fields(model.get("graph", b""), GRAPH)
    nodes = graph.get("nodes", ())
    if not 0 < len(nodes) <= MOST_NODES:
        raise ValueError(f"it has {len(nodes):,} nodes, of 1 to {MOST_NODES:,}")
    for node in nodes:
        _check_node(_fields(node, NODE))
    for tensor in graph.get("tensors", ()):
        yield from _stored(_fields(tensor, TENSOR), size)


def _check_node(node: dict[str, Any]) -> None:
    domain, operator = _text(node, "domain"), _text(node, "operator")
    if operator not in OPERATORS.get(domain, ()):
        raise ValueError(f"operator {show(operator)} of domain {show(domain)}")
    fewest, most, names = OPERATORS[domain][operator]
    inputs, outputs = node.get("inputs", ()), node.get("outputs", ())
    is_whole = all((*inputs, *outputs)) and fewest <= len(inputs) <= most
    if not is_whole or len(outputs) != OUTPUTS.get(operator, 1):
        raise ValueError(f"{operator} of {len(inputs)} inputs and {len(outputs)} outputs")
    for attribute in node.get("attributes", ()):
        _check_attribute(attribute, operator, names)


@lru_cache(maxsize=1 << 8)  # most are the same
def _check_attribute(attribute: bytes, operator: str, names: str) -> None:
    fields = _fields(attribute, ATTRIBUTE)
    name, kind = _text(fields, "name"), VALUES.get(fields.get("type", 0), "")
    value = fields.get(kind, 0)
    least, largest = INTEGERS.get(name, (0, 0))
    whole = {"integer": [value], "integers": value}.get(kind, [])
    is_known = name in names.split() and kind in fields
    if not is_known or any(
        not least <= number - (number >> 63 << 64) <= largest for number in whole
    ):
        raise ValueError(f"attribute {show(name)} of {operator} is {show(value)}")


def _stored(tensor: dict[str, Any], size: int) -> Iterator[Stored]:
    """Check a tensor, and yield it if it lies in weights.bin."""
    name, dims = show(_text(tensor, "name")), tuple(tensor.get("dims", ()))
    dtype = TYPES.get(tensor.get("type", 0))
    if dtype is None:
        raise ValueError(f"tensor {name} has the type {show(tensor.get('type'))}")
    needed = math.prod(dims) * np.dtype(dtype).itemsize
    if tensor.get("is_stored") != 1:
        content = tensor.get("content", b"")
        if len(content) != needed or "places" in tensor:
            raise ValueError(f"tensor {name} of shape {show(dims)} has {len(content)} bytes")
        if not _is_finite(np.frombuffer(content, dtype)):
            raise ValueError(f"tensor {name} is not finite")
        return
    places = [_fields(place, PLACE) for place in tensor.get("places", ())]
    values = {_text(place, "key"): _text(place, "value") for place in places}
    offset, length = (_whole(values.get(key, "")) for key in ("offset", "length"))
    is_known = sorted(values) == ["length", "location", "offset"] and len(places) == 3
    if not is_known or values["location"] != WEIGHTS or "content" in tensor:
        raise ValueError(f"tensor {name} lies at {show(values)}")
    if length != needed or offset + length > size:
        raise ValueError(f"tensor {name} of shape {show(dims)} lies at {show(values)} of {size}")
    yield Stored(offset, dtype, dims)


def _is_table(tensor: Stored, manifest: Manifest) -> bool:
    table = manifest.table
    is_there = (tensor.offset, tensor.type) == (table.offset, table.type)
    return is_there and len(tensor.dims) == 2 and tensor.dims[1] == table.columns


def _check_weights(path: Path, stored: set[Stored]) -> None:
    """Check that stored weights are finite, in pieces: a mapping would stay resident."""
    buffer = np.empty(PIECE, dtype=np.uint8)
    with path.open("rb", buffering=0) as file:
        for offset, dtype, dims in sorted(stored):
            left = math.prod(dims) * np.dtype(dtype).itemsize if "f" in dtype else 0
            file.seek(offset)
            while left:
                piece = buffer[: min(PIECE, left)]
                if file.readinto(piece.data) != len(piece) or not _is_finite(piece.view(dtype)):
                    raise BundleError(f"{path} holds NaN or infinity at byte {offset:,} and later")
                left -= len(piece)


def _is_finite(values: NDArray[Any]) -> bool:
    if values.dtype.kind != "f":
        return True
    if values.dtype.itemsize == 2:  # numpy is slow in 16 bits; exponents of ones are not finite
        return not len(values) or int((values.view("<u2") & 0x7FFF).max()) < 0x7C00
    with np.errstate(invalid="ignore"):
        return not len(values) or bool(-np.inf < values.min() and values.max() < np.inf)


def _fields(data: bytes, known: dict[int, str]) -> dict[str, Any]:
    """Return the fields of a message by name, those that repeat as lists."""
    found, at, end = dict[str, list[int | bytes]](), 0, len(data)
    while at < end:
        tag, at = (data[at], at + 1) if data[at] < 128 else _varint(data, at)
        name, wire, size = known.get(tag), tag & 7, 4
        if name is None:
            raise ValueError(f"it has a field {tag >> 3} of wire type {wire}")
        if wire < 5:
            size, at = (data[at], at + 1) if data[at] < 128 else _varint(data, at)
        begin, at = at, at + size if wire else at
        if name:
            found.setdefault(name, []).append(data[begin:at] if wire else size)
    if at > end:
        raise IndexError("it ends inside a field")
    if twice := [name for name in {*found} - REPEATED if len(found[name]) > 1]:
        raise ValueError(f"{sorted(twice)} is there twice")
    return {name: values if name in REPEATED else values[0] for name, values in found.items()}


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number of 7 bits a byte, the lowest first, and the place after it."""
    value, shift, byte = 0, 0, 128
    while byte > 127:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if value >> 64:
            raise ValueError("a number of more than 64 bits")
    return value, at


def _text(fields: dict[str, Any], name: str) -> str:
    text: str = fields.get(name, b"").decode()
    return text


def _whole(digits: str) -> int:
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 20):
        raise ValueError(f"a tensor lies at {show(digits)}")
    return int(digits)
