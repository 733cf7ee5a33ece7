"""Export of a model's graphs and their shared weights file.

encode, encode_long, append     events -> user vectors (``encoders``)
encode_rows                     the same of given rows (``rows``)
first_block                     rows of the item table -> rows of the first block (``first_block``)
score, score_many               user vectors -> items (``scorer``)
search                          a user vector -> items of the nearest clusters (``search``)
model                           histories -> items, for any onnxruntime (``single``)
item                            features of items -> rows of the item table (``items``)
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx

from ranklet.bundle.manifest import (
    APPEND,
    CODE_BITS,
    ENCODE,
    ENCODE_LONG,
    ENCODE_ROWS,
    FIRST_BLOCK,
    ITEM,
    MODEL,
    SCORE,
    SCORE_MANY,
    SEARCH,
    WEIGHTS,
    Index,
    Pool,
    Precision,
    Program,
    Rounding,
    Table,
    Tensor,
)
from ranklet_export.clusters import cluster
from ranklet_export.encoders import (
    AppendEncoder,
    HistoryEncoder,
    LongHistoryEncoder,
    long_from,
)
from ranklet_export.first_block import FirstBlock
from ranklet_export.items import ItemSource, write_items
from ranklet_export.layers import ServedModel
from ranklet_export.rows import RowsEncoder
from ranklet_export.scorer import Scorer, can_score_many, quantize
from ranklet_export.search import Search
from ranklet_export.single import OPSET as PLAIN_OPSET
from ranklet_export.single import write_model
from ranklet_export.writer import GraphWriter, WeightFile, offset_of, scanned_bytes
from ranklet_training.runs.checkpoint import Model

OPSET = 23  # from here on attention, rotary positions and the norm of a user are one node each
# Rows of the first block cost up to four times the item table on disk and save 3 to 6 % of a
# request; beyond this many bytes the graph computes them.
LARGEST_ROWS = 1 << 27
POOLS: dict[Precision, Pool] = {"int8": Pool(2, 32), "int4": Pool(4, 128)}
MANY_USERS = 8  # the batch from which score_many.onnx is faster (docs/development/log.md)
PURPOSES = {
    ENCODE: "the user vector after a history, and the state of its events",
    ENCODE_LONG: "the same for long histories",
    ENCODE_ROWS: "the same for given rows of the items, and the attention to each event",
    APPEND: "the user vector after one more event, which is put into the state in place",
    SCORE: "the best items for user vectors",
    SCORE_MANY: "the same for many users",
    SEARCH: "the best items for a user vector, of the nearest clusters alone",
    FIRST_BLOCK: "what the first block makes of rows of the item table",
    MODEL: "the best items for histories of any length, in standard operators alone",
    ITEM: "rows of the item table for new items, from their attributes",
}
ENCODERS: dict[str, type[HistoryEncoder | AppendEncoder | FirstBlock]] = {
    ENCODE: HistoryEncoder,
    ENCODE_LONG: LongHistoryEncoder,
    ENCODE_ROWS: RowsEncoder,
    APPEND: AppendEncoder,
    FIRST_BLOCK: FirstBlock,
}


@dataclass(frozen=True)
class WrittenGraphs:
    """The graphs of a bundle as its manifest describes them."""

    programs: dict[str, Program]
    nodes: dict[str, int]  # of each
    table: Table
    pool: Pool
    rounding: Rounding | None  # of codes
    scale: float  # of rows of the model
    index: Index | None  # whose probes are not chosen yet


def export_graphs(
    model: Model,
    folder: Path,
    precision: Precision = "fp32",
    *,
    compact: bool = False,
    new: ItemSource | None = None,
    index: bool = False,
) -> WrittenGraphs:
    """Write the graphs and weights of a model in evaluation mode, without gradients.

    Args:
        model: The model.
        folder: Where the files go.
        precision: Of the scores; ``"fp16"`` stores tables in 16 bits, sums are fp32.
        compact: Leave out the rows of the first block.
        new: The map of new items; None: there is no item.onnx.
        index: Write search.onnx, which needs int8.
    """
    items, width = model.items.item.shape
    parts = 4 if model.config.block == "gated" else 3
    with_rows = not compact and 4 * items * parts * width <= LARGEST_ROWS
    served = ServedModel(model, with_rows=with_rows)
    dtype: Literal["<f2", "<f4"] = "<f2" if precision == "fp16" else "<f4"
    bits = CODE_BITS.get(precision)
    codes = quantize(served.table, bits) if bits else None
    clusters = cluster(served.table) if index else None
    graphs: dict[str, GraphWriter] = {}
    with (folder / WEIGHTS).open("wb") as file:
        weights = WeightFile(file)
        for name in PURPOSES:
            writer = GraphWriter(weights)
            is_used = {ENCODE_LONG: long_from(served), FIRST_BLOCK: served.sees_no_times}
            if name in ENCODERS and is_used.get(name, True):
                ENCODERS[name](writer, served, dtype).write()
            elif name == SCORE or (name == SCORE_MANY and codes and can_score_many(codes)):
                Scorer(writer, served.table, precision, many=name == SCORE_MANY).write(codes)
            elif name == SEARCH and clusters and codes:
                Search(writer, served.table, precision, many=False).write_search(codes, clusters)
            elif name == MODEL:
                write_model(writer, served, dtype)
            elif name == ITEM and new:
                write_items(writer, new, served.scale)
            else:
                continue
            graphs[name] = writer
        file.flush()
        os.fsync(file.fileno())
    for name, writer in graphs.items():
        path = folder / f"{name}.onnx"
        path.write_bytes(writer.model(PLAIN_OPSET if name == MODEL else OPSET).SerializeToString())
        onnx.checker.check_model(path, full_check=True)
    names = ("table", "table.fp16")
    table = next(t for t in graphs[SCORE].graph.initializer if t.name in names)
    return WrittenGraphs(
        programs={name: _program(name, writer, served) for name, writer in graphs.items()},
        nodes={name: len(writer.graph.node) for name, writer in graphs.items()},
        table=Table(WEIGHTS, offset_of(table), items, width, dtype),
        pool=POOLS.get(precision, Pool(1, 1)),
        rounding=Rounding(codes.row_error, codes.row_norm) if codes else None,
        scale=served.scale,
        index=clusters.index if clusters else None,
    )


def _program(name: str, writer: GraphWriter, served: ServedModel) -> Program:
    """Return the contract of a graph for the manifest."""
    longest, begin = served.max_length, long_from(served)
    lengths = {
        ENCODE: [1, begin - 1 if begin else longest],
        ENCODE_LONG: [begin or 1, longest],
        ENCODE_ROWS: [1, longest],
    }
    return Program(
        file=f"{name}.onnx",
        purpose=PURPOSES[name],
        inputs=[_tensor(value) for value in writer.graph.input],
        outputs=[_tensor(value) for value in writer.graph.output],
        lengths=lengths.get(name, []),
        least_users=MANY_USERS if name == SCORE_MANY else 1,
        scanned_bytes=scanned_bytes(writer.graph),
    )


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    kind = value.type.tensor_type
    name = "int64" if kind.elem_type == onnx.TensorProto.INT64 else "float"
    axes: list[int | str] = [axis.dim_param or axis.dim_value for axis in kind.shape.dim]
    return Tensor(value.name, f"tensor({name})", axes)
