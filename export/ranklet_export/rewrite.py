"""Graphs and weights of a bundle, written again for another catalogue, without torch.

The scorers are written anew, and so are the clusters of an index. In the other graphs, tensors with
a row for each item are replaced:
the item table, the rows of the first block, and what model.onnx adds to the scores of items. All
other weights are copied.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ranklet.bundle.manifest import (
    APPEND,
    CHUNK,
    CODE_BITS,
    ENCODE,
    FIRST_BLOCK,
    FIRST_BLOCK_ROWS,
    MODEL,
    NEVER,
    SCORE,
    SCORE_MANY,
    SEARCH,
    WEIGHTS,
    Manifest,
    Precision,
    Program,
    Rounding,
)
from ranklet.engine.engine import Engine
from ranklet.errors import BundleError
from ranklet_export.clusters import Clusters, cluster
from ranklet_export.hidden import hidden_score
from ranklet_export.scorer import Codes, Scorer, can_score_many, quantize
from ranklet_export.search import Search
from ranklet_export.writer import MASK, GraphWriter, WeightFile, offset_of, scanned_bytes, size_of

Indices = NDArray[np.int64]
Floats = NDArray[np.float32]
Array = NDArray[Any]

FP16 = ".fp16"  # ends the name of a tensor that a graph widens
ROWS_AT_ONCE = 1 << 16


class Places(NamedTuple):
    """The new index of every item; 0 is padding."""

    known: Indices  # of padding and of the items that were there, (items + 1,)
    added: Indices  # of added items, (added,)

    def merge(self, known: Array, added: Any) -> Array:  # noqa: ANN401 (an array or a number)
        """Return rows of known items, padding first, and of added ones by their new index."""
        size = len(self.known) + len(self.added)
        merged = np.empty((size, *known.shape[1:]), dtype=known.dtype)
        merged[self.known], merged[self.added] = known, added
        return merged


class _Old:
    """The graphs that are there."""

    def __init__(self, folder: Path, engine: Engine) -> None:
        self.folder, self.engine, self.manifest = folder, engine, engine.manifest
        self._weights = np.memmap(folder / WEIGHTS, np.uint8, "r")

    def load(self, program: str) -> onnx.ModelProto:
        path = self.folder / self.manifest.programs[program].file
        return onnx.load(path, load_external_data=False)

    def initializers(self, program: str) -> dict[str, onnx.TensorProto]:
        return {t.name.removesuffix(FP16): t for t in self.load(program).graph.initializer}

    def values(self, tensor: onnx.TensorProto) -> Array:
        """Return the values of an initializer; stored ones are mapped."""
        if not tensor.external_data:
            return numpy_helper.to_array(tensor)
        begin = offset_of(tensor)
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        return self._weights[begin : begin + size_of(tensor)].view(dtype).reshape(tensor.dims)

    def first_block(self, table: Array) -> Iterator[tuple[Floats, ...]]:
        """Yield the rows of the first block for rows of the item table, in pieces."""
        session = self.engine.programs.session(FIRST_BLOCK)
        size = ROWS_AT_ONCE // (len(self.manifest.kinds) + 1)
        for begin in range(0, len(table), size):
            rows = table[begin : begin + size].astype(np.float32)
            yield tuple(session.run(None, {"rows": rows}))


def write_graphs(
    bundle: Path, engine: Engine, places: Places, table: Array, bias: Floats, folder: Path
) -> Manifest:
    """Write the graphs of a bundle for another catalogue.

    Args:
        bundle: Folder of the bundle.
        engine: Its engine.
        places: The new index of every item.
        table: The new item table, (items + 1, D), of the type of the one before.
        bias: What is added to the score of each item, (items + 1,).
        folder: Where the files go.

    Returns:
        The manifest with what it says of graphs and weights, and of all else as it was. The probes
        of an index are not chosen yet.

    Raises:
        BundleError: Items are added, and the bundle is too old for that.
    """
    old, items = _Old(bundle, engine), len(table) - 1
    manifest, rows = old.manifest, _whole_chunks(len(table))
    bits = CODE_BITS.get(manifest.precision)
    codes = quantize(table, bits) if bits else None
    clusters = cluster(table) if manifest.index else None
    changed, hidden = _first_block(old, places, table)
    changed["table"] = table
    programs = dict[str, Program]()
    with (folder / WEIGHTS).open("wb") as file:
        weights = WeightFile(file)
        place = weights.tensor("table", table, rows)
        for name, program in manifest.programs.items():
            if name == SCORE_MANY and not (codes and can_score_many(codes)):
                continue
            model = old.load(name)
            if name in (SCORE, SCORE_MANY, SEARCH):
                model = _score(model, table, manifest.precision, codes, clusters, weights, name)
            else:
                own = {_bias_of(model.graph): _padded(bias, rows)} if name == MODEL else {}
                _copy_weights(old, model.graph, weights, {**changed, **own}, hidden)
            (folder / program.file).write_bytes(model.SerializeToString())
            inputs = [
                replace(each, shape=[*each.shape[:1], rows]) if each.name == "bias" else each
                for each in program.inputs
            ]
            programs[name] = replace(
                program, inputs=inputs, scanned_bytes=scanned_bytes(model.graph)
            )
        file.flush()
        os.fsync(file.fileno())
    for program in programs.values():
        onnx.checker.check_model(folder / program.file, full_check=True)
    return replace(
        manifest,
        items=items,
        programs=programs,
        table=replace(manifest.table, offset=offset_of(place), rows=items + 1),
        rounding=Rounding(codes.row_error, codes.row_norm) if codes else None,
        index=clusters.index if clusters else None,
    )


def _whole_chunks(rows: int) -> int:
    return -(-rows // CHUNK) * CHUNK


def _padded(bias: Floats, rows: int) -> Floats:
    return np.pad(bias, (0, rows - len(bias)), constant_values=NEVER)


def _bias_of(graph: onnx.GraphProto) -> str:
    """Return the name of what model.onnx adds to the scores of items."""
    scores = next(n for n in graph.node if n.op_type == "Gemm" and n.input[1] == "table")
    return str(scores.input[2])


def _first_block(old: _Old, places: Places, table: Array) -> tuple[dict[str, Array], float]:
    """Return the tables of the first block, and the score that hides an event from it.

    Without new items all stays as it is: no tables, and 0. Known items keep their rows.
    """
    manifest, stored = old.manifest, old.initializers(ENCODE)
    if not len(places.added):
        return {}, 0.0
    if FIRST_BLOCK not in manifest.programs:
        if not manifest.uses_times and "key_0" in manifest.state_rows:
            raise BundleError(
                f"{old.folder} has no {FIRST_BLOCK}.onnx, which new items need: an older version "
                "exported it; export the run again"
            )
        return {}, 0.0
    pieces = old.first_block(table[places.added])
    added = [np.concatenate(part) for part in zip(*pieces, strict=True)]
    of_items = {
        name: places.merge(old.values(stored[name]), part)
        for name, part in zip(FIRST_BLOCK_ROWS, added, strict=False)
        if name in stored
    }
    mask = old.initializers(APPEND).get(MASK)
    if mask is None:
        return of_items, 0.0
    queries_keys = ((parts[0], parts[1]) for parts in old.first_block(table))
    heads = manifest.training["model"]["heads"]
    needed = hidden_score(queries_keys, heads, manifest.max_length)
    return of_items, min(needed, float(old.values(mask).min()))


def _score(
    model: onnx.ModelProto,
    table: Array,
    precision: Precision,
    codes: Codes | None,
    clusters: Clusters | None,
    weights: WeightFile,
    name: str,
) -> onnx.ModelProto:
    """Return a scorer of a table, for the opset of the one before."""
    writer = GraphWriter(weights)
    if name == SEARCH and codes and clusters:
        Search(writer, table, precision, many=False).write_search(codes, clusters)
    else:
        Scorer(writer, table, precision, many=name == SCORE_MANY).write(codes)
    return writer.model(next(opset.version for opset in model.opset_import if not opset.domain))


def _copy_weights(
    old: _Old,
    graph: onnx.GraphProto,
    weights: WeightFile,
    changed: Mapping[str, Array],
    hidden: float,
) -> None:
    """Store the weights of a graph, of which some have changed; ``hidden`` is below 0 if it has."""
    for tensor in graph.initializer:
        key = tensor.name.removesuffix(FP16)
        if key in changed:
            values = changed[key]
        elif key == MASK and hidden < 0:
            values = old.values(tensor)
            values = np.where(values < 0, np.float32(hidden), values)
        elif tensor.external_data:
            key, values = f"at {offset_of(tensor)}", old.values(tensor)
        else:
            continue
        stored = weights.tensor(key, values, _whole_chunks(len(values)) if key == "table" else 0)
        stored.name = tensor.name
        tensor.CopyFrom(stored)
