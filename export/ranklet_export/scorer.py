"""Scorer graphs: user vectors to the best items of the catalogue.

    score.onnx        users -> best items
    score_many.onnx   the same for many users at once, from 8-bit codes

* fp32 and fp16: one Gemm on the item table.
* int8 and int4: one MatMulNBits on codes of 8 or 4 bits. The ``pool`` best by these scores are
  re-scored with their fp32 rows; no other rows are read. ``pool_scores`` are the scores by codes,
  falling: no item outside the pool has a better one than the last.
* Many users: MatMulIntegerToFloat on the same codes as 8-bit integers, packed for matrix products.
* Large catalogues take two levels: the maximum of every chunk of 64 items, then the items of the
  best chunks. The k best items lie in the k chunks with the best maxima, so nothing is lost. Chunks
  keep the order of the items, so that ties go to the lower index.
* ``bias`` is added to every score before the pick, one row for all users or one each: 0, points, or
  ``NEVER`` for padding and for items that must not be ranked.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from ranklet.bundle.manifest import CHUNK, Precision
from ranklet_export.writer import CONTRIB, GraphWriter

INT64, FLOAT = TensorProto.INT64, TensorProto.FLOAT
# Below these rows one TopK over all scores costs no more than two levels and has 11 nodes less
# (docs/development/log.md). Many users share the cost of the nodes, and their scores are in no
# near cache.
TWO_LEVELS_FROM, TWO_LEVELS_OF_MANY_FROM = 16_384, 4_096
# With 4 bits, the step that reaches the largest component does not lose least.
SHARES_OF_LARGEST = np.linspace(1, 0.75, 6, dtype=np.float32)
SMALLEST_STEP = np.finfo(np.float32).tiny  # below, a division would be inexact
ROWS_AT_ONCE = 1 << 18
# A row that begins at a multiple of these is summed up in one order, wherever it lies.
LANES = 4
ZERO = 128  # the code of 0 in 8 bits, of items and of users
LARGEST_TWICE = 1 << 24  # bytes of codes that score_many.onnx may hold once more
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


def quantize(table: NDArray[np.float32], bits: int = 8) -> Codes:
    """Quantize every row to 8 or 4 bits, symmetrically; zeros stay zeros.

    Rows of up to 256 columns have one scale. Wider ones have one for each 256.

    Args:
        table: (items + 1, D); the codes have more rows, of zeros, up to whole chunks.
        bits: Of a code.
    """
    width, zero = table.shape[1], 1 << (bits - 1)
    rows = -(-len(table) // CHUNK) * CHUNK
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


class Scorer:
    """Writer of score.onnx, or of score_many.onnx for ``many`` users."""

    def __init__(
        self, writer: GraphWriter, table: NDArray[np.float32], precision: Precision, *, many: bool
    ) -> None:
        """Prepare to score with the rows of a table, (items + 1, D)."""
        self.writer, self.node, self.constant = writer, writer.node, writer.constant
        self.precision, self.many = precision, many
        self.rows, self.width = -(-len(table) // CHUNK) * CHUNK, table.shape[1]
        self.table = writer.table(table, "<f2" if precision == "fp16" else "<f4")

    def write(self, codes: Codes | None) -> None:
        """Write the graph; ``codes`` of int8 and int4."""
        self.writer.input("user", FLOAT, ["batch", self.width])
        self.writer.input("bias", FLOAT, ["biases", self.rows])
        self.writer.input("k", INT64, [1])
        if codes is None:
            scores = self.node("Gemm", "user", self.table, "bias", transB=1)
            self.pick(scores, "k", "scores", "items")
        else:
            self.writer.input("pool", INT64, [1])
            if self.many:
                self.pick(self.many_scores(codes), "pool", "shares", "picked")
                self.node("Mul", "shares", "largest", to="pool_scores")
            else:
                self.pick(self.code_scores(codes), "pool", "pool_scores", "picked")
            self.score_again()
            self.writer.output("pool_scores", FLOAT, ["batch", "pool"])
        self.writer.output("items", INT64, ["batch", "k"])
        self.writer.output("scores", FLOAT, ["batch", "k"])

    def code_scores(self, codes: Codes) -> str:
        """Return scores by codes, (B, rows), one user after another."""
        scores = self.node(
            "MatMulNBits",
            *("user", self.writer.weight("codes", codes.codes)),
            self.writer.weight("scales", codes.scales),
            domain=CONTRIB,
            K=self.width,
            N=self.rows,
            bits=codes.bits,
            block_size=codes.codes.shape[2] * 8 // codes.bits,
            accuracy_level=4,
        )
        return self.node("Add", scores, "bias")

    def many_scores(self, codes: Codes) -> str:
        """Return scores by codes divided by ``largest``, the largest component of each user.

        Users are rounded one by one, so that none depends on the others. The codes change their
        layout while onnxruntime loads, because it folds nodes of constants.
        """
        node, constant = self.node, self.constant
        kept = self.writer.weight("codes", codes.codes)
        kept = node("Squeeze", kept, constant([1]))  # (rows, block)
        cut = [constant([0]), constant([self.width]), constant([1])]
        by_column = node("Transpose", node("Slice", kept, *cut))
        wide = node("Cast", by_column, dtype=TensorProto.INT16)
        centred = node("Sub", wide, constant(np.array(ZERO, dtype=np.int16)))
        signed = node("Cast", centred, dtype=TensorProto.INT8)
        scales = self.writer.weight("scales", codes.scales)
        size = node("ReduceMax", node("Abs", "user"), constant([1]), keepdims=1)
        # Not 0, for users of zeros.
        tiny = constant(np.array(SMALLEST_STEP, dtype=np.float32))
        share = node("Div", "user", node("Max", size, tiny, to="largest"))
        step = constant(np.array(1 / 127, dtype=np.float32))
        center = constant(np.array(ZERO, dtype=np.uint8))
        scores = node(
            "MatMulIntegerToFloat",
            *(node("QuantizeLinear", share, step, center), signed, step),
            *(node("Squeeze", scales, constant([1])), center, constant(np.array(0, np.int8))),
            domain=CONTRIB,
        )
        return node("Add", scores, "bias")

    def score_again(self) -> None:
        """Re-score the pool, ``picked``, with fp32 rows: ``items`` and ``scores``."""
        node, constant = self.node, self.constant
        # In the order of the items, so that among equal scores the lower index comes first.
        ordered, _ = self.writer.nodes("TopK", ["picked", "pool"], 2, largest=0)
        # Not a product of matrices: that may round equal rows differently by their place.
        user = node("Unsqueeze", "user", constant([1]))
        products = node("Mul", node("Gather", self.table, ordered), user)
        if self.width % LANES:
            products = node("Pad", products, constant([0, 0, 0, 0, 0, -self.width % LANES]))
        exact = node("ReduceSum", products, constant([2]), keepdims=0)  # (B, pool)
        scores, places = self.writer.nodes("TopK", [exact, "k"], 2)
        self.writer.rename(scores, "scores")
        node("GatherElements", ordered, places, axis=1, to="items")

    def pick(self, scores: str, count: str, best: str, items: str) -> None:
        """Name the best of (B, rows) scores ``best`` and ``items``, best first, ties by index."""
        writer, node, constant = self.writer, self.node, self.constant
        if self.rows < (TWO_LEVELS_OF_MANY_FROM if self.many else TWO_LEVELS_FROM):
            writer.top(scores, count, best, items)
            return
        chunks = self.rows // CHUNK
        chunked = node("Reshape", scores, constant([0, chunks, CHUNK]))
        largest = node("ReduceMax", chunked, constant([2]), keepdims=0)  # (B, chunks)
        chosen = node("Min", count, constant([chunks]))
        _, some = writer.nodes("TopK", [largest, chosen], 2, sorted=0)
        # As above: the lower index first.
        ordered, _ = writer.nodes("TopK", [some, chosen], 2, largest=0)
        kept = node("GatherND", chunked, node("Unsqueeze", ordered, constant([2])), batch_dims=1)
        flat = node("Reshape", kept, constant([0, -1]))  # (B, chosen * CHUNK)
        top, within = writer.nodes("TopK", [flat, count], 2)
        writer.rename(top, best)
        number = node("Div", within, constant(CHUNK))
        chunk = node("GatherElements", ordered, number, axis=1)
        # item = chunk * CHUNK + within % CHUNK
        shift = node("Mul", node("Sub", chunk, number), constant(CHUNK))
        node("Add", shift, within, to=items)


def can_score_many(codes: Codes) -> bool:
    """Return whether score_many.onnx pays: 8 bits, one scale per item, not too many codes.

    It holds the codes once more: for a million items of width 64, 280 MB (840 MB while it loads)
    would save a fifth of the time (docs/development/log.md).
    """
    return codes.bits == 8 and codes.scales.shape[1] == 1 and codes.codes.nbytes <= LARGEST_TWICE
