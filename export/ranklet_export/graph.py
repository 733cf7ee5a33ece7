"""The graphs of a bundle and the tables that they share.

    encoder.onnx     history and state in, user vectors and state out
    model.onnx       the same, then the best items of the catalogue
    model.onnx.data  weights of both: item table, rows of the first block, codes; mapped

Batch, length, past, k and the number of excluded items are dynamic. One graph serves a cold history
(an empty past) and a single new event (a past of any length).
"""

import math
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from ranklet.bundle import CHUNK, CODE_BITS, DATA, ENCODER, GRAPH, Precision, Rounding, Table
from ranklet_export.encoder import Encoder
from ranklet_export.head import add_head, quantize
from ranklet_training.attention import KeyValue
from ranklet_training.checkpoint import Model
from ranklet_training.model import SHORTEST_EXPORT

OPSETS = range(18, 24)
# From here on attention and rotary positions are one ONNX node each.
FUSED_OPSET = 23
# Sizes to trace with; 0 and 1 would be taken for constants (pytorch#151582). The parity gate
# uses none of them. The tables are cut to a few rows: only their names matter here.
TRACED_BATCH, TRACED_LENGTH, TRACED_PAST, TRACED_ITEMS = 3, 7, 4, 5
PAGE = 4096  # bytes; where a table starts in its file, so that it is mapped as it lies
SMALLEST_STORED = 1024  # bytes; smaller weights stay in the graphs
# Rows of the first block cost up to four times the item table on disk and save 5 to 8 % of a
# request; beyond this many bytes the graph computes them.
LARGEST_ROWS = 1 << 27


@dataclass(frozen=True)
class WrittenGraphs:
    """What ``export_graphs`` wrote."""

    nodes: int  # of model.onnx
    table: Table
    rounding: Rounding | None  # of codes
    hidden_score: float | None  # of the causal mask, if the graphs take one


def export_graphs(
    model: Model, folder: Path, opset: int, precision: Precision = "fp32", *, compact: bool = False
) -> WrittenGraphs:
    """Write both graphs and their tables.

    Args:
        model: In evaluation mode, without gradients.
        folder: Where the files go.
        opset: From 18; from 23 on attention is one node, see ``FUSED_OPSET``.
        precision: Of the scores; ``"fp16"`` is how tables lie on disk, sums are fp32.
        compact: Leave out the rows of the first block.
    """
    items, width = model.items.item.shape
    parts = 4 if model.config.block == "gated" else 3
    with_rows = not compact and 4 * items * parts * width <= LARGEST_ROWS
    encoder = Encoder(model, onnx_nodes=opset >= FUSED_OPSET, with_rows=with_rows).eval()
    table, rows = encoder.table.numpy(), None if encoder.rows is None else encoder.rows.numpy()
    encoder.table = encoder.table[:TRACED_ITEMS].clone()
    encoder.rows = None if encoder.rows is None else encoder.rows[:TRACED_ITEMS].clone()
    traced = _trace(encoder, model, folder / ENCODER, opset)
    padded = -(-items // CHUNK) * CHUNK
    kind: Literal["<f2", "<f4"] = "<f2" if precision == "fp16" else "<f4"
    rounding = None
    codes: list[TensorProto] = []
    with (folder / DATA).open("wb") as file:
        stored = [_store(file, "table", table.astype(kind, copy=False), padded)]
        place = _offset(stored[0])
        if rows is not None:
            stored.append(_store(file, "rows", rows.astype(kind, copy=False)))
        names = {tensor.name for tensor in stored}
        for tensor in traced.graph.initializer:
            if len(tensor.raw_data) >= SMALLEST_STORED and tensor.name not in names:
                stored.append(_store(file, tensor.name, numpy_helper.to_array(tensor)))
        if bits := CODE_BITS.get(precision):
            quantized = quantize(table, padded, bits)
            codes.append(_store(file, "codes", quantized.codes))
            codes.append(_store(file, "scales", quantized.scales))
            rounding = Rounding(quantized.row_error, quantized.row_norm)
        file.flush()
        os.fsync(file.fileno())
    _refer(traced.graph, stored)
    whole = onnx.ModelProto()
    whole.CopyFrom(traced)
    _refer(whole.graph, codes)
    add_head(whole.graph, padded, precision)
    for graph, name in ((traced, ENCODER), (whole, GRAPH)):
        _describe(graph, model)
        (folder / name).write_bytes(graph.SerializeToString())
        onnx.checker.check_model(folder / name)
    written = Table(DATA, place, items, width, kind)
    return WrittenGraphs(len(whole.graph.node), written, rounding, encoder.hidden_score)


def flatten(state: list[KeyValue]) -> list[Tensor]:
    """Return keys and values of each block, one after another."""
    return [tensor for pair in state for tensor in pair]


def state_names(model: Model, prefix: str) -> list[str]:
    """Return the names of the state's tensors, in the order of ``flatten``."""
    blocks = range(len(model.empty_state(1)))
    return [f"{prefix}_{part}_{block}" for block in blocks for part in ("key", "value")]


def gap_names(model: Model) -> list[str]:
    """Return the names of the inputs that tell time."""
    return ["since", "until"] if model.config.time_gaps else []


def _trace(encoder: Encoder, model: Model, path: Path, opset: int) -> onnx.ModelProto:
    """Return the encoder as a graph, with tables of a few rows."""
    longest = max(model.config.max_length, SHORTEST_EXPORT)
    batch = torch.export.Dim("batch", min=1)
    length = torch.export.Dim("length", min=1, max=longest)
    past = torch.export.Dim("past", min=0, max=longest)
    state = [
        tensor.new_zeros(TRACED_BATCH, tensor.shape[1], TRACED_PAST, tensor.shape[3])
        for tensor in flatten(model.empty_state(1))
    ]
    history = torch.ones(TRACED_BATCH, TRACED_LENGTH, dtype=torch.int64)
    one = history[:, :1]
    may_attend = torch.ones(TRACED_BATCH, 1, 1, TRACED_PAST + TRACED_LENGTH, dtype=torch.bool)
    causal_mask = torch.zeros(1, 1, TRACED_LENGTH, TRACED_PAST + TRACED_LENGTH)
    gaps = [history.clone(), history[:, 0].clone()][: len(gap_names(model))]  # no input twice
    shapes: dict[str, object] = {
        "history": {0: batch, 1: length},
        "positions": {0: batch, 1: length},
        "last": {0: batch},
        "last_position": {0: batch},
        "may_attend": {0: batch, 3: torch.export.Dim.DYNAMIC},
        "causal_mask": {2: length, 3: torch.export.Dim.DYNAMIC},
    }
    others = (
        *({0: batch, 1: length}, {0: batch})[: len(gaps)],
        *({0: batch, 2: past} for _ in state),
    )
    names = [*shapes, *gap_names(model), *state_names(model, "past")]
    if others:
        shapes["others"] = others
    with torch.no_grad(), warnings.catch_warnings():
        # The exporter warns of its own internals, and that axes of one name share that name.
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message="# The axis name")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        program = torch.onnx.export(
            encoder,
            (
                history,
                history.clone(),
                one[:, :, None].clone(),
                one.clone(),
                may_attend,
                causal_mask,
                *gaps,
                *state,
            ),
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=names,
            output_names=["user_row", *state_names(model, "present")],
            opset_version=opset,
            verbose=False,
        )
    assert program is not None
    program.save(path, external_data=False)
    traced = onnx.load(path)
    graph = traced.graph
    graph.initializer.append(numpy_helper.from_array(np.array([1]), "axis_1"))
    graph.node.append(helper.make_node("Squeeze", ["user_row", "axis_1"], ["user"], "user"))
    graph.output[0].name = "user"  # (B, D)
    return traced


def _store(file: BinaryIO, name: str, values: NDArray[Any], rows: int = 0) -> TensorProto:
    """Write an array, with zeros up to ``rows`` rows, and return what refers to it in a graph."""
    file.write(bytes(-file.tell() % PAGE))
    start, shape = file.tell(), (max(rows, len(values)), *values.shape[1:])
    np.ascontiguousarray(values).tofile(file)
    file.write(bytes((shape[0] - len(values)) * math.prod(shape[1:]) * values.itemsize))
    tensor = TensorProto(name=name, dims=shape, data_location=TensorProto.EXTERNAL)
    tensor.data_type = helper.np_dtype_to_tensor_dtype(values.dtype)
    where = {"location": DATA, "offset": start, "length": file.tell() - start}
    for key, value in where.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _offset(tensor: TensorProto) -> int:
    return next(int(entry.value) for entry in tensor.external_data if entry.key == "offset")


def _refer(graph: onnx.GraphProto, tensors: Iterable[TensorProto]) -> None:
    """Put initializers in the place of those of their names."""
    for tensor in tensors:
        for old in [i for i in graph.initializer if i.name == tensor.name]:
            graph.initializer.remove(old)
        new = graph.initializer.add()
        new.CopyFrom(tensor)
        if tensor.data_type == TensorProto.FLOAT16:  # onnxruntime does this once, while it loads
            new.name = f"{tensor.name}_fp16"
            cast = helper.make_node("Cast", [new.name], [tensor.name], to=TensorProto.FLOAT)
            graph.node.insert(0, cast)


def _describe(model: onnx.ModelProto, source: Model) -> None:
    """Drop what the exporter tells of itself (stack traces hold local paths); name all axes."""
    graph = model.graph
    model.producer_name, model.producer_version = "ranklet", ""
    model.doc_string = "history and past in; user, present and perhaps the best items out"
    graph.name = "ranklet"
    del model.metadata_props[:], graph.metadata_props[:], graph.value_info[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    if all(opset.domain != "com.microsoft" for opset in model.opset_import):
        model.opset_import.add(domain="com.microsoft", version=1)

    used = {name for node in graph.node for name in node.input}
    for unused in [i for i in graph.input if i.name not in used]:
        graph.input.remove(unused)
    shapes = [(s.shape[1], s.shape[3]) for s in flatten(source.empty_state(1))]
    axes: dict[str, list[int | str]] = {
        **{name: ["batch", "length"] for name in ("history", "positions", "since")},
        "last": ["batch", 1, 1],
        "last_position": ["batch", 1],
        "may_attend": ["batch", 1, 1, "total"],
        "causal_mask": [1, 1, "length", "total"],
        "until": ["batch"],
        "user": ["batch", source.config.width],
        **{
            name: ["batch", heads, axis, width]
            for prefix, axis in (("past", "past"), ("present", "total"))
            for name, (heads, width) in zip(state_names(source, prefix), shapes, strict=True)
        },
    }
    for tensor in (*graph.input, *graph.output):
        if tensor.name in axes:
            new = helper.make_tensor_value_info(
                tensor.name, tensor.type.tensor_type.elem_type, axes[tensor.name]
            )
            tensor.CopyFrom(new)
