"""Encoder graphs: events to user vectors, by attention.

    encode.onnx        whole histories -> user, state
    encode_long.onnx   the same for long ones: chunks of events skip all that their window hides
    append.onnx        one more event of each user, and their states, changed in place -> user

Positions, masks and the place of the last event are made inside from constants, so a runtime passes
item indices and nothing else. A state holds keys and values of the blocks before the last, not
rotated, and the events that entered the last block.

append.onnx puts event p in row p modulo the rows of an array: the newest takes the place of the
oldest, nothing grows and nothing is copied. The order of rows does not matter to attention; masks
and rotations come from tables by age. Keys are rotated when they are read, so positions never end.
"""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from onnx import TensorProto
from torch import nn

from ranklet.bundle.manifest import NEVER
from ranklet_export.context import Context
from ranklet_export.layers import ServedModel
from ranklet_export.masks import by_age, causal_mask
from ranklet_export.writer import MASK, GraphWriter
from ranklet_training.model.attention import rotary_tables
from ranklet_training.model.model import Block, SwiGLU

INT64, FLOAT = TensorProto.INT64, TensorProto.FLOAT
# Floats that a processor adds at once: sums of rows that begin at multiples of it keep the order of
# the whole history, so that scores rarely differ, and in the last bit.
CHUNK_EVENTS = 16
EPSILON = 1e-24  # of the norm of a user


def long_from(served: ServedModel) -> int | None:
    """Return the length from which encode_long.onnx pays, None if no history is so long."""
    if not served.window or not served.blocks:
        return None
    length = 2 * _visible(served)
    return length if length <= served.max_length else None


def _visible(served: ServedModel) -> int:
    """Return the events visible to a chunk: itself, and the whole chunks that hold its window."""
    return -(-(served.window - 1) // CHUNK_EVENTS) * CHUNK_EVENTS + CHUNK_EVENTS


def state_rows(served: ServedModel) -> dict[str, int]:
    """Return the number of rows of each state array."""
    window = served.window or served.max_length
    names = [f"{part}_{i}" for i in range(len(served.blocks)) for part in ("key", "value")]
    rows = dict.fromkeys(names, window)
    return {**rows, "events": served.max_length} if served.last else {}


class Encoder:
    """The layers of all encoders, as nodes."""

    model: Any  # with the layers that its configuration says
    looks_up = True  # rows of the item table, and those of the first block

    def __init__(self, writer: GraphWriter, served: ServedModel, dtype: DTypeLike) -> None:
        """Prepare to write; item tables are stored as ``dtype``."""
        self.writer, self.served, self.model, self.dtype = writer, served, served.model, dtype
        self.node, self.constant = writer.node, writer.constant

    def linear(self, x: str, layer: nn.Linear) -> str:
        """Return layer(x)."""
        product = self.node("MatMul", x, self.constant(layer.weight.T.contiguous()))
        has_bias = layer.bias is not None
        return self.node("Add", product, self.constant(layer.bias)) if has_bias else product

    def norm(self, x: str, norm: nn.LayerNorm) -> str:
        """Return the normalised x."""
        scale, shift = self.constant(norm.weight), self.constant(norm.bias)
        return self.node("LayerNormalization", x, scale, shift, epsilon=norm.eps)

    def add(self, x: str, y: str, layer: nn.Linear) -> str:
        """Return x + layer(y), with one node less."""
        product = self.node("MatMul", y, self.constant(layer.weight.T.contiguous()))
        return self.node("Sum", x, product, self.constant(layer.bias))

    def gate(self, x: str, layer: nn.Linear | None) -> str | None:
        """Return the gate of a block for x, None if it has none."""
        return None if layer is None else self.node("Sigmoid", self.linear(x, layer))

    def embed(self, items: str, context: Context) -> str:
        """Return the events that enter the first block, (B, T, D)."""
        x = self.item_rows(items)
        if self.served.offset is not None:
            x = self.node("Add", x, self.constant(self.served.offset))
        if context.since:
            gaps = self.node("Gather", self.constant(self.model.since.weight), context.since)
            x = self.node("Add", x, gaps)
        if context.kind:
            kinds = self.node("Gather", self.constant(self.served.kinds), context.kind)
            x = self.node("Add", x, kinds)
        return x

    def item_rows(self, items: str) -> str:
        """Return the rows of the item table, (B, T, D)."""
        return self.node("Gather", self.writer.table(self.served.table, self.dtype), items)

    def query_key_value(self, place: int, items: str, x: str) -> tuple[list[str], str | None]:
        """Return query, key and value of events, (B, T, D) each, and perhaps their gate."""
        rows = self.served.rows
        if place == 0 and rows and self.looks_up:
            parts = [
                self.node("Gather", self.writer.weight(name, part.astype(self.dtype)), items)
                for name, part in rows.items()
            ]
            return parts[:3], parts[3] if len(parts) > 3 else None
        return self.attention_inputs(place, x)

    def attention_inputs(self, place: int, x: str) -> tuple[list[str], str | None]:
        """Return query, key and value of what enters a block, and perhaps their gate."""
        block = self.served.blocks[place]
        normed = self.norm(x, block.attention_norm)
        query = self.linear(normed, block.query)
        key_value = self.linear(normed, self.served.key_values[place])
        parts = self.writer.nodes("Split", [key_value], 2, axis=-1, num_outputs=2)
        return [query, *parts], self.gate(x, block.attention_gate)

    def attention(self, *inputs: str, is_causal: int = 0) -> str:
        """Return softmax(QK^T / sqrt(d))V of query, key, value and perhaps a mask, (B, T, D)."""
        heads = self.served.heads
        return self.node(
            "Attention", *inputs, q_num_heads=heads, kv_num_heads=heads, is_causal=is_causal
        )

    def mask(self, values: NDArray[np.float32], hidden: float) -> str:
        """Return a mask; one whose score of hidden events depends on the items has a name."""
        return self.constant(values) if hidden == NEVER else self.writer.weight(MASK, values)

    def merge(
        self, block: Block, x: str, attended: str, output: nn.Linear | None, gate: str | None
    ) -> str:
        """Return x with attention and the feed-forward layer of a block added."""
        if gate is not None:
            attended = self.linear(attended, output) if output else attended
            x = self.node("Add", x, self.node("Mul", gate, attended))
        else:
            x = self.add(x, attended, output) if output else self.node("Add", x, attended)
        norm, first, activation, second = block.feed_forward
        assert isinstance(norm, nn.LayerNorm)
        assert isinstance(first, nn.Linear)
        assert isinstance(second, nn.Linear)
        hidden = self.linear(self.norm(x, norm), first)
        if isinstance(activation, SwiGLU):
            half, value = self.writer.nodes("Split", [hidden], 2, axis=-1, num_outputs=2)
            hidden = self.node("Mul", self.node("Mul", half, self.node("Sigmoid", half)), value)
        else:
            hidden = self.node("Gelu", hidden)
        gate = self.gate(x, block.feed_forward_gate)
        if gate is None:
            return self.add(x, hidden, second)
        return self.node("Add", x, self.node("Mul", gate, self.linear(hidden, second)))

    def finish(self, asking: str, x: str, events: str, mask: str, context: Context) -> None:
        """Write the last block for one event of each user, and the output ``user``.

        Args:
            asking: The normalised event, the source of the query, (B, 1, D).
            x: The same event as it entered the last block, (B, 1, D).
            events: All normalised events, (B, S, D).
            mask: Added to scores, (B, H, 1, S).
            context: With what is asked for.
        """
        served, last = self.served, self.served.last
        parts = []
        if context.until:
            parts.append(self.node("Gather", self.constant(self.model.until.weight), context.until))
        if context.objective:
            parts.append(self.node("MatMul", context.objective, self.constant(served.objectives)))
        for part in parts:
            x = self.node("Add", x, self.node("Unsqueeze", part, self.constant([1])))
        if parts:
            asking = self.enter_last(x)
        attended = self.attend_once(self.linear(asking, served.query), events, mask)
        if isinstance(last, Block):
            x = self.merge(last, x, attended, served.output, self.gate(x, last.attention_gate))
        else:
            x = self.linear(attended, served.output)
        self.user(x)

    def attend_once(self, query: str, events: str, mask: str) -> str:
        """Return the attention output of one query a head, (B, 1, H D); see ``finish``."""
        heads = self.served.heads
        scale = (self.served.width // heads) ** -0.5
        inputs = query, events, events, mask
        return self.node("Attention", *inputs, q_num_heads=heads, kv_num_heads=1, scale=scale)

    def enter_last(self, x: str) -> str:
        """Return events normalised for the last block."""
        last = self.served.last
        return self.norm(x, last.attention_norm) if isinstance(last, Block) else x

    def user(self, x: str) -> None:
        """Write the output ``user``, (B, D), from the last block's output, (B, 1, D)."""
        served = self.served
        if served.user_scale is not None:
            x = self.norm(x, self.model.norm)
            scale = self.constant(np.full(served.width, served.user_scale, np.float32))
            if served.config.scoring == "cosine":  # divides by the root mean square, and multiplies
                x = self.node("RMSNormalization", x, scale, epsilon=EPSILON)
            else:
                x = self.node("Mul", x, scale)
        self.node("Squeeze", x, self.constant([1]), to="user")
        self.writer.output("user", FLOAT, ["batch", served.width])


class HistoryEncoder(Encoder):
    """encode.onnx."""

    in_chunks = False

    def write(self) -> None:
        """Write the graph."""
        served, node, constant = self.served, self.node, self.constant
        history = self.writer.input("history", INT64, ["batch", "length"])
        context = Context.declare(self.writer, served, ["batch", "length"])
        if self.in_chunks:
            history, context = self._pad(history, context)
        is_event = node("Sign", history)
        # Counted from the last event, which is 1; padding is 0.
        ages = node("CumSum", is_event, constant(1), reverse=1)  # (B, T)
        last = node("ArgMax", is_event, axis=1, select_last_index=1)  # (B, 1)
        last = node("Unsqueeze", last, constant([2]))
        x = self.embed(history, context)
        for place, block in enumerate(served.blocks):
            (query, key, value), gate = self.query_key_value(place, history, x)
            key, value = self._keep(key, f"key_{place}"), self._keep(value, f"value_{place}")
            attended = self._attend(served.hidden[place], ages, query, key, value)
            x = self.merge(block, x, attended, block.output if block.heads > 1 else None, gate)
        if served.last is None:
            self.user(node("GatherND", x, last, batch_dims=1))
            return
        events = self._keep(self.enter_last(x), "events")
        asking = node("GatherND", events, last, batch_dims=1)  # (B, 1, D)
        is_block = isinstance(served.last, Block)  # else events are what entered
        x = node("GatherND", x, last, batch_dims=1) if is_block else asking
        by_age = np.hstack([np.full_like(served.bias[:, :1], NEVER), served.bias])
        mask = node("Gather", constant(by_age.T if served.heads > 1 else by_age[0]), ages)
        if served.heads > 1:
            mask = node("Transpose", mask, perm=[0, 2, 1])  # (B, H, T)
        mask = node("Unsqueeze", mask, constant([2] if served.heads > 1 else [1, 2]))
        self.finish(asking, x, events, mask, context)

    def _keep(self, value: str, name: str) -> str:
        """Output a state array, (B, T, D), rows of padding included."""
        self.writer.output(name, FLOAT, ["batch", "events", self.served.width])
        return self.writer.rename(value, name)

    def _pad(self, history: str, context: Context) -> tuple[str, Context]:
        """Pad histories, and what is known of their events, to whole chunks."""
        node, chunk = self.node, self.constant([CHUNK_EVENTS])
        missing = node("Mod", node("Neg", node("Shape", history, start=1)), chunk)
        pads = node("Concat", self.constant([0, 0, 0]), missing, axis=0)
        since, kind = (x and node("Pad", x, pads) for x in (context.since, context.kind))
        return node("Pad", history, pads), context._replace(since=since, kind=kind)

    def _attend(self, hidden: float, ages: str, query: str, key: str, value: str) -> str:
        """Return the attention output of every event, (B, T, D)."""
        node, constant, served = self.node, self.constant, self.served
        width = served.width // served.heads
        longest = served.max_length + CHUNK_EVENTS  # onnxruntime counts padding, too
        tables = rotary_tables(longest, width, served.config.rotary_base)
        cos, sin = (table.numpy() for table in tables)
        cos_sin = constant(cos), constant(-sin)  # turned back by age: only differences matter
        query, key = (
            node("RotaryEmbedding", part, *cos_sin, ages, num_heads=served.heads)
            for part in (query, key)
        )
        if not served.window:
            return self.attention(query, key, value, is_causal=1)
        length = node("Shape", ages, start=1)
        if not self.in_chunks:
            longest = (long_from(served) or served.max_length + 1) - 1
            mask = self.mask(causal_mask(hidden, served.window, longest, longest), hidden)
            ends = node("Concat", length, length, axis=0)
            mask = node("Slice", mask, constant([0, 0]), ends, constant([2, 3]))
            return self.attention(query, key, value, mask)
        visible = _visible(served)
        before = visible // CHUNK_EVENTS - 1  # chunks that the first event of a chunk sees, too
        numbers = np.arange(-(-served.max_length // CHUNK_EVENTS))
        count = node("Div", length, constant([CHUNK_EVENTS]))
        seen = np.maximum(numbers[:, None] + np.arange(-before, 1), 0)  # (chunks, before + 1)
        seen_chunks = node("Slice", constant(seen), constant([0]), count)
        query = node("Reshape", query, constant([-1, CHUNK_EVENTS, served.width]))  # (B C, 16, D)
        key, value = (
            node(
                "Reshape",
                node(
                    "Gather",
                    node("Reshape", part, constant([0, -1, CHUNK_EVENTS * served.width])),
                    seen_chunks,
                    axis=1,
                ),
                constant([-1, visible, served.width]),
            )
            for part in (key, value)
        )  # (B C, visible, D)
        masks = np.concatenate(
            [
                causal_mask(hidden, served.window, CHUNK_EVENTS, visible, n * CHUNK_EVENTS)
                for n in range(before + 1)
            ]
        )
        kind = node("Slice", constant(np.minimum(numbers, before)), constant([0]), count)
        batch = node("Shape", ages, end=1)
        kind = node("Expand", kind, node("Concat", batch, count, axis=0))
        kind = node("Reshape", kind, constant([-1]))
        mask = node("Gather", self.mask(masks, hidden), kind)
        attended = self.attention(query, key, value, mask)
        shape = node("Concat", node("Shape", ages), constant([served.width]), axis=0)
        return node("Reshape", attended, shape)


class LongHistoryEncoder(HistoryEncoder):
    """encode_long.onnx."""

    in_chunks = True


class AppendEncoder(Encoder):
    """append.onnx."""

    def write(self) -> None:
        """Write the graph."""
        served, node = self.served, self.node
        item = self.writer.input("item", INT64, ["batch", 1])
        position = self.writer.input("position", INT64, ["batch", 1, 1])
        context = Context.declare(self.writer, served, ["batch", 1])
        rows = state_rows(served)
        x = self.embed(item, context)
        if served.blocks:
            row, ages = self._place(position, rows["key_0"], heads=1)  # ages (B, 1, 1, count)
            places = node("Squeeze", ages, self.constant([1, 2]))
        for place, block in enumerate(served.blocks):
            (query, key, value), gate = self.query_key_value(place, item, x)
            keys = self._put(f"key_{place}", row, key, rows["key_0"])
            values = self._put(f"value_{place}", row, value, rows["key_0"])
            cos, sin = self._turn_back(rows["key_0"])
            keys = node("RotaryEmbedding", keys, cos, sin, places, num_heads=served.heads)
            bias = np.zeros(rows["key_0"], dtype=np.float32)
            hidden = served.hidden[place]
            mask = node("Gather", self.mask(by_age(bias, hidden), hidden), ages)
            attended = self.attention(query, keys, values, mask)
            x = self.merge(block, x, attended, block.output if block.heads > 1 else None, gate)
        if served.last is None:
            self.user(x)
            return
        new = self.enter_last(x)
        row, ages = self._place(position, rows["events"], heads=served.heads)
        events = self._put("events", row, new, rows["events"])
        bias = np.concatenate([by_age(head, NEVER) for head in served.bias])
        self.finish(new, x, events, node("Gather", self.constant(bias), ages), context)

    def _place(self, position: str, count: int, heads: int) -> tuple[str, str]:
        """Return the row of an event, (B, 1, D), and all ages in ``by_age``, (B, H, 1, count)."""
        node, rows = self.node, self.constant([count])
        row = node("Mod", position, rows)
        # The age of row r is newest - r, in a table that holds every age twice.
        newest = node("Min", position, node("Add", row, rows))  # (B, 1, 1)
        begins = np.arange(heads)[:, None] * (3 * count - 1) + count - 1 - np.arange(count)
        newest = node("Unsqueeze", newest, self.constant([3]))
        ages = node("Add", newest, self.constant(begins[None, :, None]))
        return node("Expand", row, self.constant([1, 1, self.served.width])), ages

    def _put(self, name: str, row: str, new: str, count: int) -> str:
        """Scatter an event into a state array, (B, count, D), in place."""
        axes: list[int | str] = ["batch", count, self.served.width]
        kept = self.writer.input(name, FLOAT, axes)
        self.writer.output(f"new_{name}", FLOAT, axes)
        return self.node("ScatterElements", kept, row, new, to=f"new_{name}", axis=1)

    def _turn_back(self, count: int) -> tuple[str, str]:
        """Return cos and sin that rotate keys back by their age; the query is not rotated."""
        cos, sin = rotary_tables(
            count, self.served.width // self.served.heads, self.served.config.rotary_base
        )
        return self.constant(by_age(cos.numpy(), 1)), self.constant(by_age(-sin.numpy(), 0))
