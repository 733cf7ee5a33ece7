"""Graph of the first block alone, for the rows of items that a saved catalogue adds.

first_block.onnx   rows of the item table -> what the first block makes of each item and kind
"""

from ranklet.bundle.manifest import FIRST_BLOCK_ROWS
from ranklet_export.encoders import FLOAT, Encoder
from ranklet_export.writer import Axes


class FirstBlock(Encoder):
    """first_block.onnx."""

    def write(self) -> None:
        """Write the graph; with kinds, an item has a row for each kind of its events."""
        kinds, axes = self.served.kinds, Axes(["items", self.served.width])
        x = self.writer.input("rows", FLOAT, axes)
        if kinds is not None:
            x = self.node("Unsqueeze", x, self.constant([1]))
            x = self.node("Add", x, self.constant(kinds))  # (items, kinds + 1, D)
            x = self.node("Reshape", x, self.constant([-1, self.served.width]))
            axes = ["events", self.served.width]
        parts, gate = self.attention_inputs(0, x)
        made = [*parts, gate] if gate else parts
        for name, part in zip(FIRST_BLOCK_ROWS, made, strict=False):
            self.writer.rename(part, name)
            self.writer.output(name, FLOAT, axes)
