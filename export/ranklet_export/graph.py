"""The graphs of a bundle and the tables that they share.

    encoder.onnx     history and state in, user vectors and state out
    model.onnx       the same, then the best items of the catalogue
    batch.onnx       the same for many users at once; int8 only
    plain.onnx       the same for the whole history of one user, of which nothing is kept
    append.onnx      the same for one event of one user whose state is kept
    model.onnx.data  weights of all: item table, rows of the first block, codes; mapped

Batch, length, past, k and the number of excluded items are dynamic. model.onnx serves a cold
history (an empty past) and new events (a past of any length). The last two do what most users need
in less time: plain.onnx goes through a long history in chunks, and append.onnx puts a new event
into the state where it lies.
"""

import math
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ranklet.bundle import (
    APPEND,
    BATCH,
    CHUNK,
    CODE_BITS,
    DATA,
    ENCODER,
    GRAPH,
    PLAIN,
    BlockMask,
    Precision,
    Rounding,
    Table,
    of_one_event,
    of_whole_history,
)
from ranklet.positions import known_positions
from ranklet_export.encoder import Encoder, state_shapes
from ranklet_export.head import LARGEST_TWICE, add_head, can_batch, quantize
from ranklet_training.runs.checkpoint import Model

OPSETS = range(18, 24)
# From here on attention and rotary positions are one ONNX node each.
FUSED_OPSET = 23
# Sizes to trace with; 0 and 1 would be taken for constants (pytorch#151582). The parity gate
# uses none of them. The tables are cut to a few rows: only their names matter here.
TRACED_BATCH, TRACED_LENGTH, TRACED_PAST, TRACED_RECENT, TRACED_ITEMS = 3, 7, 4, 2, 5
PAGE = 4096  # bytes; where a table starts in its file, so that it is mapped as it lies
SMALLEST_STORED = 1024  # bytes; smaller weights stay in the graphs
# Rows of the first block cost up to four times the item table on disk and save 3 to 6 % of a
# request; beyond this many bytes the graph computes them.
LARGEST_ROWS = 1 << 27


Weights: TypeAlias = dict[tuple[tuple[int, ...], bytes], TensorProto]


@dataclass(frozen=True)
class WrittenGraphs:
    """What ``export_graphs`` wrote."""

    nodes: int  # of model.onnx
    table: Table
    rounding: Rounding | None  # of codes
    masks: list[BlockMask]


def export_graphs(
    model: Model, folder: Path, opset: int, precision: Precision = "fp32", *, compact: bool = False
) -> WrittenGraphs:
    """Write the graphs and their tables.

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
    table, rows = encoder.table.numpy(), [part.numpy() for part in encoder.rows]
    encoder.table = encoder.table[:TRACED_ITEMS].clone()
    # Each its own number: the exporter makes one of two that are equal.
    encoder.keep_rows([torch.full((TRACED_ITEMS, width), i + 0.5) for i in range(len(rows))])
    takes, gives = input_contract(model), ["user_row", *state_contract(model, "present")]
    longest = known_positions(model.config.max_length) // 2
    trace = partial(_trace, path=folder / ENCODER, longest=longest, opset=opset)
    traced = trace(encoder, takes, gives)
    padded = -(-items // CHUNK) * CHUNK
    kind: Literal["<f2", "<f4"] = "<f2" if precision == "fp16" else "<f4"
    rounding = None
    codes: list[TensorProto] = []
    with (folder / DATA).open("wb") as file:
        stored = [_store(file, "table", table.astype(kind, copy=False), padded)]
        place = _offset(stored[0])
        for number, part in enumerate(rows):
            stored.append(_store(file, f"rows.{number}", part.astype(kind, copy=False)))
        weights: Weights = {}
        _share(file, traced.graph, stored, weights)
        scored = 4 * padded * width
        if bits := CODE_BITS.get(precision):
            quantized = quantize(table, padded, bits)
            codes.append(_store(file, "codes", quantized.codes))
            codes.append(_store(file, "scales", quantized.scales))
            rounding = Rounding(quantized.row_error, quantized.row_norm)
            scored = quantized.codes.nbytes
        graphs = {ENCODER: traced, GRAPH: _with_head(traced, codes, padded, precision)}
        if rounding is not None and can_batch(quantized):
            graphs[BATCH] = _with_head(traced, codes, padded, precision, batched=True)
        special: dict[str, onnx.ModelProto] = {}
        can_hold_more = opset >= FUSED_OPSET and scored <= LARGEST_TWICE
        if can_hold_more and rows and model.config.blocks == 2:
            encoder.in_chunks = True
            special[PLAIN] = trace(encoder, of_whole_history(takes), gives[:1])
        if can_hold_more and len(gives) > 1:
            encoder.in_chunks, encoder.appends = False, True
            special[APPEND] = trace(encoder, of_one_event(takes), gives)
        for name, of_one in special.items():
            _share(file, of_one.graph, stored, weights)
            graphs[name] = _with_head(of_one, codes, padded, precision, of_one=True)
        file.flush()
        os.fsync(file.fileno())
    axes, changed = encoder_contract(model), {PLAIN: of_whole_history, APPEND: of_one_event}
    for name, graph in graphs.items():
        _describe(graph, changed.get(name, dict)(axes))
        (folder / name).write_bytes(graph.SerializeToString())
        onnx.checker.check_model(folder / name)
    nodes = len(graphs[GRAPH].graph.node)
    written = Table(DATA, place, items, width, kind)
    return WrittenGraphs(nodes, written, rounding, encoder.masks)


def state_contract(model: Model, prefix: Literal["past", "present"]) -> dict[str, list[int | str]]:
    """Return the tensors of the state, in their order, and their axes."""
    axes = {"past": ("past", "recent"), "present": ("total", "recent_total")}[prefix]
    return {f"{prefix}_{k}": v for k, v in state_shapes(model.config, *axes).items()}


def input_contract(model: Model) -> dict[str, list[int | str]]:
    """Return what an encoder takes, in its order, and the axes."""
    config = model.config
    is_sequence = config.kind == "sequence"
    blocks, heads = (config.blocks, config.heads) if is_sequence else (1, 1)
    events: list[int | str] = ["batch", "length"]
    return {
        "history": events,
        "last": ["batch", 1, 1],
        **({"positions": events} if blocks > 1 else {}),
        **({"since": events, "until": ["batch"]} if config.time_gaps else {}),
        **{f"mask_{place}": [1, 1, "length", "recent_total"] for place in range(blocks - 1)},
        **({f"mask_{blocks - 1}": ["batch", heads, 1, "total"]} if blocks else {}),
        **state_contract(model, "past"),
    }


def encoder_contract(model: Model) -> dict[str, list[int | str]]:
    """Return what an encoder takes and gives, and the axes."""
    user: list[int | str] = ["batch", model.config.width]
    return {**input_contract(model), "user": user, **state_contract(model, "present")}


def _trace(
    encoder: Encoder,
    takes: dict[str, list[int | str]],
    gives: list[str],
    *,
    path: Path,
    longest: int,
    opset: int,
) -> onnx.ModelProto:
    """Return an encoder as a graph, with tables of a few rows.

    Args:
        encoder: What to trace.
        takes: Names and axes of its inputs, in their order.
        gives: Names of its outputs.
        path: Where the graph is written meanwhile.
        longest: How long its axes can be.
        opset: Of the graph.
    """
    dims = {
        "batch": torch.export.Dim("batch", min=1),
        "length": torch.export.Dim("length", min=1, max=longest),
        "past": torch.export.Dim("past", min=0, max=longest),
        "recent": torch.export.Dim("recent", min=0, max=longest),
        "kept": torch.export.Dim("kept", min=1, max=longest),
        "chunks": torch.export.Dim("chunks", min=1),
        "visible": torch.export.Dim("visible", min=1, max=longest),
        "total": torch.export.Dim.DYNAMIC,
        "recent_total": torch.export.Dim.DYNAMIC,
        "padded": torch.export.Dim.DYNAMIC,
    }
    sizes = {"batch": TRACED_BATCH, "length": TRACED_LENGTH, "past": TRACED_PAST}
    sizes |= {"kept": TRACED_PAST, "total": TRACED_PAST + TRACED_LENGTH}
    sizes |= {"recent": TRACED_RECENT, "recent_total": TRACED_RECENT + TRACED_LENGTH}
    sizes |= {"chunks": TRACED_BATCH, "visible": TRACED_PAST + TRACED_LENGTH}
    sizes |= {"padded": TRACED_BATCH * TRACED_LENGTH}
    inputs, shapes = {}, []
    for name, axes in takes.items():
        kind = torch.float32 if name.startswith(("mask_", "past_")) else torch.int64
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in axes]
        inputs[name] = torch.zeros(shape, dtype=kind)
        shapes.append({i: dims[axis] for i, axis in enumerate(axes) if isinstance(axis, str)})
    with torch.no_grad(), warnings.catch_warnings():
        # The exporter warns of its own internals, and that axes of one name share that name.
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message="# The axis name")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        program = torch.onnx.export(
            encoder,
            tuple(inputs.values()),
            dynamo=True,
            dynamic_shapes=(*shapes[:2], tuple(shapes[2:]))[: len(shapes)],
            input_names=list(inputs),
            output_names=gives,
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


def _with_head(
    encoder: onnx.ModelProto, codes: list[TensorProto], rows: int, precision: Precision, **how: bool
) -> onnx.ModelProto:
    whole = onnx.ModelProto()
    whole.CopyFrom(encoder)
    _refer(whole.graph, codes)
    add_head(whole.graph, rows, precision, **how)
    return whole


def _share(
    file: BinaryIO, graph: onnx.GraphProto, stored: Sequence[TensorProto], weights: Weights
) -> None:
    """Have a graph refer to the tables that are stored, and its large weights to those of others.

    Args:
        file: Where weights go that no other graph has.
        graph: With tables of a few rows.
        stored: The tables.
        weights: By what is in them; those of this graph are added.
    """
    refers, names = list(stored), {tensor.name for tensor in stored}
    for tensor in graph.initializer:
        if len(tensor.raw_data) >= SMALLEST_STORED and tensor.name not in names:
            content = tuple(tensor.dims), tensor.raw_data
            if content not in weights:
                weights[content] = _store(file, tensor.name, numpy_helper.to_array(tensor))
            refers.append(TensorProto())
            refers[-1].CopyFrom(weights[content])
            refers[-1].name = tensor.name
    _refer(graph, refers)


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


def _describe(model: onnx.ModelProto, axes: dict[str, list[int | str]]) -> None:
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
    for tensor in (*graph.input, *graph.output):
        if tensor.name in axes:
            new = helper.make_tensor_value_info(
                tensor.name, tensor.type.tensor_type.elem_type, axes[tensor.name]
            )
            tensor.CopyFrom(new)
