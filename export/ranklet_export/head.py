"""The part of a graph that scores the catalogue and picks the best: user vectors in, items out.

* fp32 and fp16: one Gemm on the item table as it lies.
* int8 and int4: one MatMulNBits on codes of 8 or 4 bits, one scale an item; the ``pool`` best by
  these scores are scored again with the fp32 rows, of which nothing else is read. ``pool_scores``
  are their scores by codes, falling: what is outside the pool has none that is better than the
  last.
* Batches are scored by MatMulIntegerToFloat instead: the same codes as 8-bit integers, packed for
  products of matrices. From eight users on it is faster, twice to three times from 32 on.
* Large catalogues are picked from in two levels: the best of every chunk of 64 items, then the
  items of the best chunks. The k best items lie in the k chunks with the best maxima, so nothing is
  lost. Chunks keep the order of the items, so that ties go to the lower index.
* ``bias`` is added to every score: 0, or ``NEVER`` for what must not be ranked, padding included.
  Items of ``exclude`` are dropped the same way, a row each.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ranklet.bundle import CHUNK, CODE_BITS, NEVER, Precision

# Below so many items, one TopK over all scores costs no more than two levels and has 11 nodes less
# (docs/log.md). A batch shares what these cost, and its scores are in no cache that is near.
TWO_LEVELS_FROM, TWO_LEVELS_OF_BATCHES_FROM = 16_384, 4_096
# Of 4 bits, a step that reaches the largest component is not the one that loses least.
SHARES_OF_LARGEST = np.linspace(1, 0.75, 6, dtype=np.float32)
SMALLEST_STEP = np.finfo(np.float32).tiny  # below, a division would be inexact
ROWS_AT_ONCE = 1 << 18
# A row that begins at a multiple of these is summed up in one order, wherever it lies.
LANES = 4
ZERO = 128  # the code of 0 in 8 bits, of items and of users
LARGEST_TWICE = 1 << 24  # bytes of codes, or of a table without, that a second graph may hold
SMALLEST_BLOCK, LARGEST_BLOCK = 16, 256  # what MatMulNBits takes; powers of 2


@dataclass(frozen=True)
class Codes:
    """An item table in few bits: row = scale * (code - zero), a scale for each block of columns.

    The scale of zeros is 0: products with codes are sums that cancel, up to their rounding. The
    code of 0 is 2^(bits - 1); of two codes of 4 bits in a byte the first is the lower half.
    """

    codes: NDArray[np.uint8]  # (rows, blocks, block * bits / 8)
    scales: NDArray[np.float32]  # (rows, blocks)
    row_error: float  # largest |row - its codes| (Euclidean)
    row_norm: float  # largest |codes|
    bits: int = 8


def quantize(table: NDArray[np.float32], rows: int, bits: int = 8) -> Codes:
    """Round every row to 8 or 4 bits, symmetrically; a row of zeros keeps zeros.

    Rows of up to 256 columns have one scale. Wider ones have one for each 256.

    Args:
        table: (items + 1, D).
        rows: Of the codes; those that the table lacks are zeros.
        bits: Of a code.
    """
    width, zero = table.shape[1], 1 << (bits - 1)
    block = min(LARGEST_BLOCK, max(SMALLEST_BLOCK, 1 << (width - 1).bit_length()))
    blocks = -(-width // block)
    codes = np.full((rows, blocks, block), zero, dtype=np.uint8)
    scales = np.zeros((rows, blocks), dtype=np.float32)
    error = norm = 0.0
    for begin in range(0, len(table), ROWS_AT_ONCE):
        part = table[begin : begin + ROWS_AT_ONCE]
        padded = np.zeros((len(part), blocks * block), dtype=np.float32)
        padded[:, :width] = part
        padded = padded.reshape(len(part), blocks, block)
        steps = _steps(padded, bits)
        rounded = _round(padded, steps, bits)
        restored = rounded * steps[..., None]
        error = max(error, np.square(restored - padded).sum(axis=(1, 2)).max())
        norm = max(norm, np.square(restored).sum(axis=(1, 2)).max())
        codes[begin : begin + len(part)] = rounded + zero
        scales[begin : begin + len(part)] = np.where(rounded.any(axis=2), steps, 0)
    if bits == 4:
        codes = codes[..., ::2] | codes[..., 1::2] << 4
    return Codes(codes, scales, float(error) ** 0.5, float(norm) ** 0.5, bits)


def _steps(padded: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Return the step of each block that loses least (Euclidean), (rows, blocks)."""
    largest: NDArray[np.float32] = np.abs(padded).max(axis=2) / ((1 << (bits - 1)) - 1)
    largest[largest < SMALLEST_STEP] = 1  # nothing but zeros, as far as a score can tell
    if bits == 8:
        return largest
    best, least = largest, np.full_like(largest, np.inf)
    for share in SHARES_OF_LARGEST:
        steps = largest * share
        lost = np.square(_round(padded, steps, bits) * steps[..., None] - padded).sum(axis=2)
        best, least = np.where(lost < least, steps, best), np.minimum(lost, least)
    return best


def _round(
    padded: NDArray[np.float32], steps: NDArray[np.float32], bits: int
) -> NDArray[np.float32]:
    half = 1 << (bits - 1)
    rounded: NDArray[np.float32] = np.rint(padded / steps[..., None])
    return np.clip(rounded, -half, half - 1, out=rounded)


def add_head(
    graph: onnx.GraphProto,
    rows: int,
    precision: Precision,
    *,
    batched: bool = False,
    of_one: bool = False,
) -> None:
    """Add scoring and selection to a graph that makes users.

    Args:
        graph: With ``user_row`` (B, 1, D), ``user`` (B, D) and the initializer ``table``; for int8
            and int4 also ``codes`` and ``scales``.
        rows: Of the table, a multiple of ``CHUNK``.
        precision: ``"int8"`` and ``"int4"`` score with the codes and have the input ``pool``, the
            output ``pool_scores``.
        batched: Score with the codes as many users at once, see ``can_batch``.
        of_one: Score for one user, without the input ``exclude``: ``bias`` can do the same.
    """
    head = _Head(graph, TWO_LEVELS_OF_BATCHES_FROM if batched else TWO_LEVELS_FROM)
    batch: int | str = 1 if of_one else "batch"
    head.input("k", TensorProto.INT64, [1])
    if not of_one:
        head.input("exclude", TensorProto.INT64, [batch, "excluded"])
    head.input("bias", TensorProto.FLOAT, [rows])
    bits = CODE_BITS.get(precision)
    if bits is None:
        scores = head.node("Gemm", ["user", "table", "bias"], transB=1)
        head.pick(scores if of_one else head.exclude(scores), rows, "k", ["scores", "items"])
    else:
        head.input("pool", TensorProto.INT64, [1])
        columns = next(i for i in graph.initializer if i.name == "table").dims[1]
        if batched:
            head.pick(head.exclude(head.whole_numbers(columns)), rows, "pool", ["shares", "picked"])
            head.node("Mul", ["shares", "largest"], "pool_scores")
        else:
            scores = head.codes(columns, rows, bits)
            head.pick(
                scores if of_one else head.exclude(scores), rows, "pool", ["pool_scores", "picked"]
            )
        # In the order of the items, so that among equal scores the lower index comes first.
        ordered, _ = head.nodes("TopK", ["picked", "pool"], ["ordered", "order"], largest=0)
        # Not a product of matrices: that may round equal rows differently by their place.
        products = head.node("Mul", [head.node("Gather", ["table", ordered]), "user_row"])
        if columns % LANES:
            padding = head.numbers([0, 0, 0, 0, 0, -columns % LANES])
            products = head.node("Pad", [products, padding])
        exact = head.node("ReduceSum", [products, head.numbers([2])], keepdims=0)  # (B, pool)
        _, places = head.nodes("TopK", [exact, "k"], ["scores", "best_places"])
        head.node("GatherElements", [ordered, places], "items", axis=1)
    head.output("items", TensorProto.INT64, [batch, "k"])
    head.output("scores", TensorProto.FLOAT, [batch, "k"])
    if bits is not None:
        head.output("pool_scores", TensorProto.FLOAT, [batch, "pool"])


def can_batch(codes: Codes) -> bool:
    """Return whether a kernel for batches pays: for 8 bits with one scale an item, if not too many.

    It takes no other, and holds the codes once more: for a million items of width 64 280 MB (840 MB
    while it loads) would save a fifth of the time (docs/log.md).
    """
    return codes.bits == 8 and codes.scales.shape[1] == 1 and codes.codes.nbytes <= LARGEST_TWICE


class _Head:
    """Writes nodes into a graph."""

    def __init__(self, graph: onnx.GraphProto, two_levels_from: int) -> None:
        self.graph, self.two_levels_from = graph, two_levels_from

    def nodes(
        self, kind: str, inputs: list[str], outputs: list[str], **attributes: int | str
    ) -> list[str]:
        """Add a node and return the names of its outputs."""
        name = f"head_{kind}_{len(self.graph.node)}"
        node = helper.make_node(kind, inputs, outputs, name)
        node.domain = str(attributes.pop("domain", ""))
        node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
        self.graph.node.append(node)
        return outputs

    def node(
        self, kind: str, inputs: list[str], output: str | None = None, **attributes: int | str
    ) -> str:
        """Add a node of one output and return its name."""
        name = output or f"head_{len(self.graph.node)}"
        return self.nodes(kind, inputs, [name], **attributes)[0]

    def numbers(self, values: list[int] | int) -> str:
        """Return the name of a constant."""
        name = "constant_" + str(values).strip("[]").replace(", ", "_").replace("-", "minus_")
        name += "" if isinstance(values, list) else "_scalar"
        if all(i.name != name for i in self.graph.initializer):
            array = np.array(values, dtype=np.int64)
            self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def input(self, name: str, kind: int, shape: list[int | str]) -> None:
        self.graph.input.append(helper.make_tensor_value_info(name, kind, shape))

    def output(self, name: str, kind: int, shape: list[int | str]) -> None:
        self.graph.output.append(helper.make_tensor_value_info(name, kind, shape))

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def codes(self, columns: int, rows: int, bits: int) -> str:
        """Return scores by codes, one user after another."""
        codes = next(i for i in self.graph.initializer if i.name == "codes")
        return self.node(
            "MatMulNBits",
            ["user", "codes", "scales", "", "", "bias"],
            domain="com.microsoft",
            K=columns,
            N=rows,
            bits=bits,
            block_size=codes.dims[2] * 8 // bits,
            accuracy_level=4,
        )

    def whole_numbers(self, columns: int) -> str:
        """Return scores by codes in shares of ``largest``, the largest component of each user.

        Users are rounded one by one, so that none depends on the others. The layout of the codes
        is changed while onnxruntime loads, which folds what depends on constants alone.
        """
        codes = self.node("Squeeze", ["codes", self.numbers([1])])  # (rows, block)
        cut = [self.numbers([0]), self.numbers([columns]), self.numbers([1])]
        by_column = self.node("Transpose", [self.node("Slice", [codes, *cut])])
        wide = self.node("Cast", [by_column], to=TensorProto.INT16)
        zero = self.constant("head_zero", np.array(ZERO, dtype=np.int16))
        signed = self.node("Cast", [self.node("Sub", [wide, zero])], to=TensorProto.INT8)
        no_shift = self.constant("head_no_shift", np.array(0, dtype=np.int8))
        scales = self.node("Squeeze", ["scales", self.numbers([1])])
        # Not 0, for users of zeros.
        tiny = self.constant("head_tiny", np.array(SMALLEST_STEP, dtype=np.float32))
        size = self.node("ReduceMax", [self.node("Abs", ["user"]), self.numbers([1])], keepdims=1)
        share = self.node("Div", ["user", self.node("Max", [size, tiny], "largest")])
        step = self.constant("head_step", np.array(1 / 127, dtype=np.float32))
        center = self.constant("head_center", np.array(ZERO, dtype=np.uint8))
        rounded = self.node("QuantizeLinear", [share, step, center])
        return self.node(
            "MatMulIntegerToFloat",
            [rounded, signed, step, scales, center, no_shift, "bias"],
            domain="com.microsoft",
        )

    def exclude(self, scores: str) -> str:
        """Give the items of ``exclude`` the score NEVER; the buffer is changed where it lies."""
        never = self.constant("head_never", np.array(NEVER, dtype=np.float32))
        sizes = self.node("Shape", ["exclude"])
        updates = self.node("Expand", [never, sizes])
        return self.node("ScatterElements", [scores, "exclude", updates], axis=1)

    def pick(self, scores: str, rows: int, count: str, outputs: list[str]) -> None:
        """Add the best ``count`` of (B, rows), best first, ties by index: [scores, items]."""
        if rows < self.two_levels_from:
            self.nodes("TopK", [scores, count], outputs)
            return
        chunks = rows // CHUNK
        chunked = self.node("Reshape", [scores, self.numbers([0, chunks, CHUNK])])
        best = self.node("ReduceMax", [chunked, self.numbers([2])], keepdims=0)  # (B, chunks)
        # min(count, chunks) as the length of a slice: on CUDA that is known on the host, where TopK
        # reads it, and a run can be recorded.
        every = self.constant("head_chunks", np.zeros(chunks, dtype=np.int8))
        chosen = self.node("Shape", [self.node("Slice", [every, self.numbers([0]), count])])
        _, some = self.nodes("TopK", [best, chosen], ["chunk_scores", "best_chunks"], sorted=0)
        # As above: the lower index first.
        ordered, _ = self.nodes("TopK", [some, chosen], ["chunk_ids", "_"], largest=0)
        places = self.node("Unsqueeze", [ordered, self.numbers([2])])
        kept = self.node("GatherND", [chunked, places], batch_dims=1)
        flat = self.node("Reshape", [kept, self.numbers([0, -1])])  # (B, chosen * CHUNK)
        _, within = self.nodes("TopK", [flat, count], [outputs[0], "within"])
        number = self.node("Div", [within, self.numbers(CHUNK)])
        chunk = self.node("GatherElements", [ordered, number], axis=1)
        # item = chunk * CHUNK + within % CHUNK
        shift = self.node("Mul", [self.node("Sub", [chunk, number]), self.numbers(CHUNK)])
        self.node("Add", [shift, within], outputs[1])
