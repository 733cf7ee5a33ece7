"""The graphs that turn events into user vectors; they know no catalogue but the rows they look up.

    encode.onnx        histories, whole                                  -> user, state
    encode_long.onnx   the same for long ones: what a window hides from a whole chunk of events is
                       not computed
    append.onnx        one more event of each user, and their states, changed in place -> user

Places, masks and the place of the last event are made here from constants, so a runtime hands over
item indices and nothing else. A state is what the blocks keep of events: keys and values of those
that the blocks before the last show to the next one, not rotated, and what entered the last block.

append.onnx puts event p in row p modulo the rows of an array: the newest takes the place of the
oldest, nothing grows and nothing is copied. Attention does not ask in which order rows lie; a
constant by age says how long ago each event was. Keys are turned by their age when they are used,
so positions never end.
"""

import numpy as np
from numpy.typing import DTypeLike, NDArray
from onnx import TensorProto

from ranklet.bundle.manifest import CHUNK, NEVER
from ranklet_export.layers import (
    EveryEventBlock,
    FeedForward,
    LastEventBlock,
    Linear,
    Norm,
    ServedModel,
)
from ranklet_export.writer import GraphWriter
from ranklet_training.model.attention import rotary_tables

INT64, FLOAT = TensorProto.INT64, TensorProto.FLOAT
# As many floats as a processor adds at once: rows that begin at multiples of it are summed up in
# the order of the whole history, and scores are the same, rarely but for the last bit.
CHUNK_EVENTS = 16
EPSILON = 1e-24  # of the norm of a user


def long_from(model: ServedModel) -> int | None:
    """Return the length from which encode_long.onnx pays, None if no history is so long."""
    if not model.window or not model.blocks:
        return None
    length = 2 * _visible(model)
    return length if length <= model.max_length else None


def _visible(model: ServedModel) -> int:
    """Return how many events a chunk looks at: whole chunks that hold its window, and itself."""
    return -(-(model.window - 1) // CHUNK_EVENTS) * CHUNK_EVENTS + CHUNK_EVENTS


def state_rows(model: ServedModel) -> dict[str, int]:
    """Return the arrays of a state, and how many events each holds."""
    window = min(model.window, model.max_length) or model.max_length
    rows = {
        f"{part}_{place}": window for place in range(len(model.blocks)) for part in ("key", "value")
    }
    return {**rows, "events": model.max_length} if model.last else {}


def add_table(writer: GraphWriter, table: NDArray[np.float32], dtype: DTypeLike) -> str:
    """Add the item table, with rows of zeros up to a whole chunk of the scorer."""
    rows = -(-len(table) // CHUNK) * CHUNK
    return writer.weight("table", table.astype(dtype, copy=False), rows=rows)


class _Encoder:
    """The layers that every encoder shares, as nodes."""

    def __init__(self, writer: GraphWriter, model: ServedModel, dtype: DTypeLike) -> None:
        """Prepare to write; item tables are stored as ``dtype``."""
        self.writer, self.model, self.dtype = writer, model, dtype
        self.node, self.constant = writer.node, writer.constant

    def linear(self, x: str, layer: Linear) -> str:
        product = self.node("MatMul", x, self.constant(layer.weight))
        return product if layer.bias is None else self.node("Add", product, self.constant(layer.bias))

    def norm(self, x: str, norm: Norm) -> str:
        scale, shift = self.constant(norm.scale), self.constant(norm.shift)
        return self.node("LayerNormalization", x, scale, shift, epsilon=norm.epsilon)

    def embed(self, items: str, since: str | None) -> str:
        """Return what enters the first block, (B, T, D)."""
        x = self.node("Gather", add_table(self.writer, self.model.table, self.dtype), items)
        if self.model.offset is not None:
            x = self.node("Add", x, self.constant(self.model.offset))
        if self.model.since is not None:
            assert since is not None
            gaps = self.node("Gather", self.constant(self.model.since), since)
            x = self.node("Add", x, gaps)
        return x

    def query_key_value(self, place: int, items: str, x: str) -> tuple[list[str], str | None]:
        """Return query, key and value of events, (B, T, D) each, and perhaps their gate."""
        block, rows = self.model.blocks[place], self.model.rows
        if place == 0 and rows:
            parts = [
                self.node("Gather", self.writer.weight(name, part.astype(self.dtype)), items)
                for name, part in rows.items()
            ]
            return parts[:3], parts[3] if len(parts) > 3 else None
        products = self.linear(self.norm(x, block.norm), block.query_key_value)
        parts = self.writer.nodes("Split", [products], 3, axis=-1, num_outputs=3)
        return parts, self.gate(x, block.gate)

    def gate(self, x: str, layer: Linear | None) -> str | None:
        return None if layer is None else self.node("Sigmoid", self.linear(x, layer))

    def add_attended(self, x: str, attended: str, output: Linear | None, gate: str | None) -> str:
        """Return x + gate * output(attended)."""
        if gate is not None:
            attended = self.linear(attended, output) if output else attended
            return self.node("Add", x, self.node("Mul", gate, attended))
        return self.add(x, attended, output) if output else self.node("Add", x, attended)

    def add(self, x: str, y: str, layer: Linear) -> str:
        """Return x + layer(y), in a node less."""
        assert layer.bias is not None
        product = self.node("MatMul", y, self.constant(layer.weight))
        return self.node("Sum", x, product, self.constant(layer.bias))

    def feed_forward(self, x: str, layers: FeedForward) -> str:
        hidden = self.linear(self.norm(x, layers.norm), layers.first)
        if layers.is_swiglu:
            half, value = self.writer.nodes("Split", [hidden], 2, axis=-1, num_outputs=2)
            silu = self.node("Mul", half, self.node("Sigmoid", half))
            hidden = self.node("Mul", silu, value)
        else:
            hidden = self.node("Gelu", hidden)
        if layers.gate is None:
            return self.add(x, hidden, layers.second)
        gate = self.gate(x, layers.gate)
        assert gate is not None
        return self.node("Add", x, self.node("Mul", gate, self.linear(hidden, layers.second)))

    def finish(self, asking: str, x: str, events: str, mask: str, until: str | None) -> None:
        """Ask the last block for one event of each user, and make ``user`` of the answer.

        Args:
            asking: The event, normalised, (B, 1, D).
            x: The event as it entered the last block, (B, 1, D).
            events: All events, normalised, (B, S, D).
            mask: Added to scores, (B, H, 1, S).
            until: Buckets from the event to the question, (B,), of a model that knows times.
        """
        last = self.model.last
        assert last is not None
        if self.model.until is not None:
            assert until is not None
            gaps = self.node("Gather", self.constant(self.model.until), until)
            x = self.node("Add", x, self.node("Unsqueeze", gaps, self.constant([1])))
            assert last.norm is not None
            asking = self.norm(x, last.norm)
        query = self.linear(asking, last.query)
        attended = self.node(
            "Attention",
            *(query, events, events, mask),
            q_num_heads=self.model.heads,
            kv_num_heads=1,
            scale=last.scale,
        )
        if last.feed_forward is None:  # a seed model
            self.user(self.linear(attended, last.output))
            return
        x = self.add_attended(x, attended, last.output, self.gate(x, last.gate))
        self.user(self.feed_forward(x, last.feed_forward))

    def user(self, x: str) -> None:
        """Make ``user``, (B, D), of what leaves the last block, (B, 1, D)."""
        model = self.model
        if model.norm is not None:
            assert model.user_scale is not None
            x, scale = self.norm(x, model.norm), self.constant(model.user_scale)
            if model.is_cosine:  # one node divides by the root mean square and multiplies
                x = self.node("RMSNormalization", x, scale, epsilon=EPSILON)
            else:
                x = self.node("Mul", x, scale)
        self.node("Squeeze", x, self.constant([1]), to="user")
        self.writer.output("user", FLOAT, ["batch", model.width])


class HistoryEncoder(_Encoder):
    """encode.onnx."""

    in_chunks = False

    def write(self) -> None:
        """Write the graph."""
        model, node, constant = self.model, self.node, self.constant
        history = self.writer.input("history", INT64, ["batch", "length"])
        since = until = None
        if model.since is not None:
            since = self.writer.input("since", INT64, ["batch", "length"])
            until = self.writer.input("until", INT64, ["batch"])
        if self.in_chunks:
            history, since = self._pad(history, since)
        is_event = node("Sign", history)
        # Counted from the last event, which is 1; padding is 0.
        ages = node("CumSum", is_event, constant(1), reverse=1)  # (B, T)
        last = node("ArgMax", is_event, axis=1, select_last_index=1)  # (B, 1)
        last = node("Unsqueeze", last, constant([2]))
        x = self.embed(history, since)
        for place, block in enumerate(model.blocks):
            (query, key, value), gate = self.query_key_value(place, history, x)
            key, value = self._keep(key, f"key_{place}"), self._keep(value, f"value_{place}")
            attended = self._attend(block, ages, query, key, value)
            x = self.add_attended(x, attended, block.output, gate)
            x = self.feed_forward(x, block.feed_forward)
        if model.last is None:
            self.user(node("GatherND", x, last, batch_dims=1))
            return
        events = x if model.last.norm is None else self.norm(x, model.last.norm)
        events = self._keep(events, "events")
        asking = node("GatherND", events, last, batch_dims=1)  # (B, 1, D)
        x = node("GatherND", x, last, batch_dims=1)
        by_age = np.hstack([np.full_like(model.last.bias[:, :1], NEVER), model.last.bias])
        mask = node("Gather", constant(by_age.T if model.heads > 1 else by_age[0]), ages)
        if model.heads > 1:
            mask = node("Transpose", mask, perm=[0, 2, 1])  # (B, H, T)
        mask = node("Unsqueeze", mask, constant([2] if model.heads > 1 else [1, 2]))
        self.finish(asking, x, events, mask, until)

    def _keep(self, value: str, name: str) -> str:
        """Give a part of the state, (B, T, D), rows of padding included."""
        self.writer.output(name, FLOAT, ["batch", "events", self.model.width])
        return self.writer.rename(value, name)

    def _pad(self, history: str, since: str | None) -> tuple[str, str | None]:
        """Pad histories to whole chunks."""
        node, chunk = self.node, self.constant([CHUNK_EVENTS])
        missing = node("Mod", node("Neg", node("Shape", history, start=1)), chunk)
        pads = node("Concat", self.constant([0, 0, 0]), missing, axis=0)
        return node("Pad", history, pads), since and node("Pad", since, pads)

    def _attend(
        self, block: EveryEventBlock, ages: str, query: str, key: str, value: str
    ) -> str:
        """Return what every event attends to, (B, T, D)."""
        node, constant, model = self.node, self.constant, self.model
        width = model.width // model.heads
        longest = model.max_length + CHUNK_EVENTS  # onnxruntime counts padding, too
        tables = rotary_tables(longest, width, model.rotary_base)
        cos, sin = (table.numpy() for table in tables)
        cos_sin = constant(cos), constant(-sin)  # turned back by age: only differences matter
        heads = {"q_num_heads": model.heads, "kv_num_heads": model.heads}
        query, key = (
            node("RotaryEmbedding", part, *cos_sin, ages, num_heads=model.heads)
            for part in (query, key)
        )
        if not model.window:
            return node("Attention", query, key, value, is_causal=1, **heads)
        length = node("Shape", ages, start=1)
        if not self.in_chunks:
            longest = (long_from(model) or model.max_length + 1) - 1
            mask = constant(causal_mask(block.hidden, model.window, longest, longest))
            ends = node("Concat", length, length, axis=0)
            mask = node("Slice", mask, constant([0, 0]), ends, constant([2, 3]))
            return node("Attention", query, key, value, mask, **heads)
        visible = _visible(model)
        before = visible // CHUNK_EVENTS - 1  # chunks that the first event of a chunk sees, too
        numbers = np.arange(-(-model.max_length // CHUNK_EVENTS))
        count = node("Div", length, constant([CHUNK_EVENTS]))
        seen = np.maximum(numbers[:, None] + np.arange(-before, 1), 0)  # (chunks, before + 1)
        seen_chunks = node("Slice", constant(seen), constant([0]), count)
        query = node("Reshape", query, constant([-1, CHUNK_EVENTS, model.width]))  # (B C, 16, D)
        key, value = (
            node(
                "Reshape",
                node(
                    "Gather",
                    node("Reshape", part, constant([0, -1, CHUNK_EVENTS * model.width])),
                    seen_chunks,
                    axis=1,
                ),
                constant([-1, visible, model.width]),
            )
            for part in (key, value)
        )  # (B C, visible, D)
        masks = np.concatenate(
            [
                causal_mask(block.hidden, model.window, CHUNK_EVENTS, visible, n * CHUNK_EVENTS)
                for n in range(before + 1)
            ]
        )
        kind = node("Slice", constant(np.minimum(numbers, before)), constant([0]), count)
        batch = node("Shape", ages, end=1)
        kind = node("Expand", kind, node("Concat", batch, count, axis=0))
        mask = node("Gather", constant(masks), node("Reshape", kind, constant([-1])))
        attended = node("Attention", query, key, value, mask, **heads)
        shape = node("Concat", node("Shape", ages), constant([model.width]), axis=0)
        return node("Reshape", attended, shape)


class LongHistoryEncoder(HistoryEncoder):
    """encode_long.onnx."""

    in_chunks = True


class AppendEncoder(_Encoder):
    """append.onnx."""

    def write(self) -> None:
        """Write the graph."""
        model, node = self.model, self.node
        item = self.writer.input("item", INT64, ["batch", 1])
        position = self.writer.input("position", INT64, ["batch", 1, 1])
        since = until = None
        if model.since is not None:
            since = self.writer.input("since", INT64, ["batch", 1])
            until = self.writer.input("until", INT64, ["batch"])
        rows = state_rows(model)
        x = self.embed(item, since)
        if model.blocks:
            row, ages = self._place(position, rows["key_0"], heads=1)  # ages (B, 1, 1, count)
            places = node("Squeeze", ages, self.constant([1, 2]))
        for place, block in enumerate(model.blocks):
            (query, key, value), gate = self.query_key_value(place, item, x)
            keys = self._put(f"key_{place}", row, key, rows["key_0"])
            values = self._put(f"value_{place}", row, value, rows["key_0"])
            cos, sin = self._turn_back(rows["key_0"])
            keys = node("RotaryEmbedding", keys, cos, sin, places, num_heads=model.heads)
            bias = np.zeros(rows["key_0"], dtype=np.float32)
            mask = node("Gather", self.constant(by_age(bias, block.hidden)), ages)
            attended = node(
                "Attention",
                *(query, keys, values, mask),
                q_num_heads=model.heads,
                kv_num_heads=model.heads,
            )
            x = self.add_attended(x, attended, block.output, gate)
            x = self.feed_forward(x, block.feed_forward)
        if model.last is None:
            self.user(x)
            return
        new = x if model.last.norm is None else self.norm(x, model.last.norm)
        row, ages = self._place(position, rows["events"], heads=model.heads)
        events = self._put("events", row, new, rows["events"])
        bias = np.concatenate([by_age(head, NEVER) for head in model.last.bias])
        self.finish(new, x, events, node("Gather", self.constant(bias), ages), until)

    def _place(self, position: str, count: int, heads: int) -> tuple[str, str]:
        """Return where event ``position`` goes, and the age of each row as places of ``by_age``.

        Returns:
            Rows for ScatterElements, (B, 1, D), and places for each head, (B, H, 1, count).
        """
        node, rows = self.node, self.constant([count])
        row = node("Mod", position, rows)
        # The age of row r is newest - r, in a table that holds every age twice.
        newest = node("Min", position, node("Add", row, rows))  # (B, 1, 1)
        begins = np.arange(heads)[:, None] * (3 * count - 1) + count - 1 - np.arange(count)
        newest = node("Unsqueeze", newest, self.constant([3]))
        ages = node("Add", newest, self.constant(begins[None, :, None]))
        return node("Expand", row, self.constant([1, 1, self.model.width])), ages

    def _put(self, name: str, row: str, new: str, count: int) -> str:
        """Put an event into a part of the state, (B, count, D), where that lies."""
        axes: list[int | str] = ["batch", count, self.model.width]
        kept = self.writer.input(name, FLOAT, axes)
        self.writer.output(f"new_{name}", FLOAT, axes)
        return self.node("ScatterElements", kept, row, new, to=f"new_{name}", axis=1)

    def _turn_back(self, count: int) -> tuple[str, str]:
        """Return cos and sin that turn keys back by their age, where a query is not turned."""
        cos, sin = rotary_tables(
            count, self.model.width // self.model.heads, self.model.rotary_base
        )
        return self.constant(by_age(cos.numpy(), 1)), self.constant(by_age(-sin.numpy(), 0))


def by_age(values: NDArray[np.float32], hidden: float) -> NDArray[np.float32]:
    """Return values by age as a table that ``AppendEncoder._place`` looks up.

    A row that holds no event yet is younger than the newest one. After that every age stands twice,
    for rows before and behind the newest event, where the array has gone round.
    """
    missing = np.full_like(values[1:], hidden)
    return np.concatenate([missing, values, values])


def causal_mask(
    hidden: float, window: int, queries: int, keys: int, begin: int = 0
) -> NDArray[np.float32]:
    """Return the mask of the latest queries of so many keys, (1, 1, queries, keys).

    Args:
        hidden: Added where a query may not look, 0 elsewhere.
        window: Keys that a query sees, its own included.
        queries: How many.
        keys: How many; the last query stands beside the last key.
        begin: The place of the first query; keys whose place is below 0 do not exist.
    """
    places = begin + np.arange(queries)
    of_keys = begin + queries - keys + np.arange(keys)
    age = places[:, None] - of_keys
    is_seen = (age >= 0) & (age < window) & (of_keys >= 0)
    return np.where(is_seen, 0, hidden).astype(np.float32)[None, None]
