"""Encoder of histories whose items are known by their rows alone.

    encode_rows.onnx   histories and the rows of their items -> user, state, attention

It looks nothing up, so items that no table has may be among the events. It is also the graph that
explains: its output ``attention`` has the weights of the last query, 0 for padding, (B, H, T); a
model without blocks has none.
"""

import numpy as np

from ranklet.bundle.manifest import NEVER
from ranklet_export.encoders import FLOAT, HistoryEncoder, long_from


class RowsEncoder(HistoryEncoder):
    """encode_rows.onnx."""

    looks_up = False

    def write(self) -> None:
        """Write the graph, for every length: in chunks if the model has long histories."""
        self.in_chunks = long_from(self.served) is not None
        super().write()

    def item_rows(self, items: str) -> str:
        """Return the input ``rows``, padded to whole chunks as ``items`` are, (B, T, D)."""
        node, constant = self.node, self.constant
        rows = self.writer.input("rows", FLOAT, ["batch", "length", self.served.width])
        if not self.in_chunks:
            return rows
        missing = node("Sub", node("Shape", items, start=1), node("Shape", rows, start=1, end=2))
        pads = node("Concat", constant([0, 0, 0, 0]), missing, constant([0]), axis=0)
        return node("Pad", rows, pads)

    def _attend(self, hidden: float, ages: str, query: str, key: str, value: str) -> str:
        """Hide events for sure: ``hidden`` is from the scores of the catalogue alone."""
        return super()._attend(NEVER, ages, query, key, value)

    def attend_once(self, query: str, events: str, mask: str) -> str:
        """Write softmax(QK^T / sqrt(d)) as an output, too.

        The operator Attention has an output for it, which CUDA does not implement
        (onnxruntime#28351).
        """
        node, constant = self.node, self.constant
        heads, width = self.served.heads, self.served.width
        query = node("Reshape", query, constant([0, heads, width]))  # (B, H, D)
        query = node("Mul", query, constant(np.float32((width // heads) ** -0.5)))
        scores = node("MatMul", query, node("Transpose", events, perm=[0, 2, 1]))
        scores = node("Add", scores, node("Squeeze", mask, constant([2])))
        weights = node("Softmax", scores, axis=-1)  # (B, H, T)
        length = node("Shape", "rows", start=1, end=2)
        node("Slice", weights, constant([0]), length, constant([2]), to="attention")
        self.writer.output("attention", FLOAT, ["batch", heads, "length"])
        attended = node("MatMul", weights, events)
        return node("Reshape", attended, constant([0, 1, heads * width]))
