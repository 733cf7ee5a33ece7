"""The model as it is served: histories and state in, user vectors and state out, few ONNX nodes.

It answers as ``Model.serve``, which the parity gate compares; the work is laid out for one user who
waits:

* What of the first block depends on an item alone (queries, keys, values, gate) is computed once,
  at export, and looked up beside the item's row.
* With one head, the output layer of attention is part of the values: weights that add up to 1
  carry its bias, too. That saves a product and an addition a block.
* The last block asks for one event alone, so its layers go to that side: the query has been through
  the layer of the keys, and what is summed up goes through that of the values. Keys and values are
  then both what enters the block, and that is all that a state keeps of it.
* Rows are stored times sqrt(D), as they enter the first block, and users are divided by it.
* Positions, the place of the last event and the masks (later events, bias, padding) are inputs: to
  numpy they are views, to a graph a dozen nodes, and each node costs a microsecond.
* What the first block may not see has a low score instead of the lowest there is: the exponential
  of the lowest is a denormal number on its way to 0, which takes a processor ten times as long
  (causal attention over 200 events: 202 us, and 90 without). See ``hidden_score``.
* Where nothing is kept, most of what the first block may not see is not computed: ``in_chunks``.
* From opset 23 on one node adds three tensors, and one normalises. SkipLayerNormalization would do
  more at once, but onnxruntime 1.32 runs it on one lane of the CPU: docs/log.md.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.onnx.ops import symbolic

from ranklet.bundle import NEVER, BlockMask
from ranklet.positions import WAVES, known_positions
from ranklet_training.model.attention import attention, rotary, rotary_tables
from ranklet_training.model.model import Block, ModelConfig, SequenceModel
from ranklet_training.model.seed import SeedModel
from ranklet_training.runs.checkpoint import Model

FLOAT = 1  # onnx.TensorProto.FLOAT
# All hidden events together weigh at most exp(-17) = 4e-8 of one that is seen: less than float32
# can tell.
HIDDEN_BELOW = 17
# From exp(-87) on exponentials are denormal; scores of trained models spread over some 15.
LOWEST_SCORE = -70
ROWS_AT_ONCE = 1 << 16
NO_BIAS = [[0.0] * WAVES]


class Encoder(nn.Module):
    """A model in evaluation mode, laid out for serving.

    Attributes:
        table: What a history looks up and users are scored against, (items + 1, D).
        rows: What of the first block depends on the item alone, perhaps nothing: queries, keys,
            values and gate, (items + 1, D) each.
        masks: What the runtime makes the mask of each block of.
        appends: Take one event of one user and a state that does not grow, see ``forward``.
        in_chunks: Take the whole history of one user and keep nothing, see ``forward``.
    """

    table: Tensor
    shrink: Tensor
    in_one_row: Tensor
    appends = in_chunks = False

    def __init__(self, model: Model, *, onnx_nodes: bool, with_rows: bool) -> None:
        """Lay out a model.

        Args:
            model: In evaluation mode, without gradients.
            onnx_nodes: Write one ONNX node for each attention, rotation and norm of a user.
            with_rows: Compute ``rows``; models that know time, and those with less than two blocks,
                have none.
        """
        super().__init__()
        self.model, self.config, self.onnx_nodes = model, model.config, onnx_nodes
        self.heads = model.config.heads if isinstance(model, SequenceModel) else 1
        self.masks: list[BlockMask] = []
        scale = model.config.width**0.5 if isinstance(model, SequenceModel) else 1.0
        table, rows = model.table().detach() * scale, list[Tensor]()
        if isinstance(model, SequenceModel):
            blocks = list(model.each_block())
            places, width = known_positions(model.config.max_length), model.config.width
            tables = rotary_tables(places, width // self.heads, model.config.rotary_base)
            model.cos, model.sin = tables
            knows_item_alone = len(blocks) > 1 and not model.config.time_gaps
            self.keys_values = nn.ModuleList(map(served_key_value, blocks[:-1]))
            if blocks:
                self.final = FinalAttention(blocks[-1])
            if with_rows and knows_item_alone:
                rows = self._parts(0, blocks[0], table)
            for place, block in enumerate(blocks[:-1]):
                hidden = None
                if knows_item_alone and place == 0:
                    hidden = hidden_score(block, table, model.config.max_length)
                window = model.config.attention_window
                self.masks.append(BlockMask(hidden or NEVER, NO_BIAS, NO_BIAS, window))
            if blocks:
                cosines, sines = model.bias.waves().tolist()
                self.masks.append(BlockMask(NEVER, cosines, sines, window=0))
            temperature = model.config.temperature if model.config.scoring == "cosine" else 1.0
            shrink = torch.full((model.config.width,), 1 / scale / temperature)
            self.register_buffer("shrink", shrink)
        else:
            self.final = FinalAttention(model)
            self.masks.append(BlockMask(NEVER, NO_BIAS, NO_BIAS, window=0))
        self.register_buffer("table", table.contiguous())
        self.register_buffer("in_one_row", torch.tensor([1, -1, table.shape[1]]))
        self.keep_rows(rows)

    def keep_rows(self, rows: list[Tensor]) -> None:
        """Set ``rows``."""
        kept = [nn.Parameter(part.contiguous(), requires_grad=False) for part in rows]
        self.rows = nn.ParameterList(kept)

    def forward(self, history: Tensor, last: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """Encode the events that are new.

        Args:
            history: Item indices, oldest first, 0 pads on the right, int64 (B, T).
            last: Where each row's last event lies in the row, int64 (B, 1, 1).
            others: With two blocks or more, the place of each event, counted from 0, int64 (B, T).
                With ``time_gaps``, buckets before each event (B, T) and until the question (B,).
                Then the mask of each block, added to its scores: (1, 1, T, R + T), and of the last
                one (B, H, 1, P + T). Then the state: keys and values of each block but the last,
                each (B, H, R, D / H), and what entered the last one, (B, P, D); R is P, or less
                where a window hides the others.

        With ``appends`` B and T are 1, keys and values (H, R, D / H), and masks end after R and P:
        the event is put where ``last`` says, (1, 1, 2), and its keys and values where what comes
        after the state says, (H, 1, 2) of head and row.

        With ``in_chunks``, for a model of two blocks with ``rows``, the history of one user comes
        in chunks, (C, T) each beside what its events may see, (C, S), and padded at the end.
        Others: the place of each event, (C, T); masks (C, 1, T, S) and (1, H, 1, C T); the items
        that may be seen, (C, S), and their places, (C, S).

        Returns:
            user (B, 1, D), then the state with these events; ``in_chunks`` the user alone.
        """
        model = self.model
        if self.in_chunks:
            return (self._forward_chunks(history, last, list(others)),)
        x = functional.embedding(history, self.table)  # (B, T, D)
        if isinstance(model, SeedModel):
            mask, kept = others
            x = x + model.users.weight.mean(dim=0)
            attended, events = self._attend_last(self._take(x, last), x, kept, mask, last)
            return self.final.output(attended), events
        blocks, rest, until = list(model.each_block()), list(others), None
        positions = rest.pop(0) if len(blocks) > 1 else history
        if self.config.time_gaps:
            x, until = x + model.since(rest.pop(0)), rest.pop(0)
        place_of_keys = rest.pop() if self.appends and len(blocks) > 1 else last
        masks, past = rest[: len(blocks)], rest[len(blocks) :]
        present: list[Tensor] = []
        for place, block in enumerate(blocks[:-1]):
            if place == 0 and len(self.rows):
                parts = [functional.embedding(history, part) for part in self.rows]
            else:
                parts = self._parts(place, block, x)
            query, key, value, *gate = parts  # (B, T, D) each
            query, key = (self._rotate(part, positions) for part in (query, key))
            before = past[2 * place : 2 * place + 2]
            attended, *now = self._attend(query, key, value, before, masks[place], place_of_keys)
            present += now
            x = self._merge(block, x, attended, block.output if self.heads > 1 else None, gate)
        if not blocks:
            return (self._user(model.norm(self._take(x, last))),)
        user, events = self._finish(x, past[-1], masks[-1], last, until)
        return user, *present, events

    def _forward_chunks(self, history: Tensor, last: Tensor, others: list[Tensor]) -> Tensor:
        """Return the user (1, 1, D) of a history in chunks, side by side in the first block."""
        model = self.model
        assert isinstance(model, SequenceModel)
        block = next(model.each_block())
        positions, mask_0, mask_1, keys, key_positions = others
        x = functional.embedding(history, self.table)  # (C, T, D)
        of_queries, of_keys, of_values, *of_gates = list(self.rows)
        query = self._rotate(functional.embedding(history, of_queries), positions)
        key = self._rotate(functional.embedding(keys, of_keys), key_positions)  # (C, S, D)
        value = functional.embedding(keys, of_values)
        attended, _, _, _ = torch.onnx.ops.attention(
            query, key, value, mask_0, q_num_heads=self.heads, kv_num_heads=self.heads
        )
        gate = [functional.embedding(history, part) for part in of_gates]
        x = self._merge(block, x, attended, block.output if self.heads > 1 else None, gate)
        shape = (1, mask_1.shape[-1], x.shape[-1])
        x = symbolic("Reshape", [x, self.in_one_row], dtype=FLOAT, shape=shape, version=19)
        return self._finish(x, None, mask_1, last, None)[0]

    def _finish(
        self, x: Tensor, past: Tensor | None, mask: Tensor, last: Tensor, until: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Ask the last block, and return users (B, 1, D) and what entered it, (B, P + T, D)."""
        model = self.model
        assert isinstance(model, SequenceModel)
        final = list(model.each_block())[-1]
        normed = final.attention_norm(x)
        asking, x = self._take(normed, last), self._take(x, last)  # (B, 1, D)
        if until is not None:
            x = x + model.until(until)[:, None]
            asking = final.attention_norm(x)
        attended, events = self._attend_last(asking, normed, past, mask, last)
        x = self._merge(final, x, attended, self.final.output, gates(final, x))
        return self._user(model.norm(x)), events

    def _parts(self, place: int, block: Block, x: Tensor) -> list[Tensor]:
        """Return query, key, value and perhaps gate of events, (..., D) each."""
        normed = block.attention_norm(x)
        key, value = self.keys_values[place](normed).chunk(2, dim=-1)
        return [block.query(normed), key, value, *gates(block, x)]

    def _merge(
        self,
        block: Block,
        x: Tensor,
        attended: Tensor,
        output: nn.Linear | None,
        gate: list[Tensor],
    ) -> Tensor:
        """Add what attention gave, through ``output``, and the feed-forward layer to x."""
        norm, first, activation, second = block.feed_forward
        assert isinstance(second, nn.Linear)
        if gate:
            x = x + gate[0] * (attended if output is None else output(attended))
        elif output is None:
            x = x + attended
        else:
            x = self._add(x, attended @ output.weight.T, output.bias)
        hidden: Tensor = activation(first(norm(x)))
        if block.feed_forward_gate is not None:
            gated: Tensor = x + block.feed_forward_gate(x).sigmoid() * second(hidden)
            return gated
        return self._add(x, hidden @ second.weight.T, second.bias)

    def _add(self, x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
        if not self.onnx_nodes:
            return x + (y + bias)
        return symbolic("Sum", [x, y, bias], dtype=FLOAT, shape=x.shape, version=13)

    def _user(self, normed: Tensor) -> Tensor:
        if self.config.scoring == "dot":
            return normed * self.shrink
        if not self.onnx_nodes:
            return functional.normalize(normed, dim=-1) * self.shrink
        # x / |x| is x / (sqrt(D) rms(x)), and one node divides by rms and multiplies.
        scale = self.shrink * self.config.width**-0.5
        attributes: dict[str, Any] = {"epsilon": 1e-24}
        shape = normed.shape
        return symbolic(
            "RMSNormalization", [normed, scale], attributes, dtype=FLOAT, shape=shape, version=23
        )

    def _rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        model = self.model
        assert isinstance(model, SequenceModel)
        if self.onnx_nodes:
            rotated: Tensor = torch.onnx.ops.rotary_embedding(
                x, model.cos, model.sin, positions, num_heads=self.heads
            )
            return rotated
        return _merge_heads(rotary(_split_heads(x, self.heads), model.cos, model.sin, positions))

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        past: list[Tensor],
        mask: Tensor,
        place: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what new events (B, T, D) attend to, and all keys and values."""
        if self.appends:  # heads as a batch, so that no state is turned
            query, *new = (_rows_of_heads(part, self.heads) for part in (query, key, value))
            keys, values = (_put(*pair, place) for pair in zip(past, new, strict=True))
            attended, _, _, _ = torch.onnx.ops.attention(
                query, keys, values, mask, q_num_heads=1, kv_num_heads=1
            )
            return attended if self.heads == 1 else attended.view(1, 1, -1), keys, values
        if self.onnx_nodes:
            attended, keys, values, _ = torch.onnx.ops.attention(
                query, key, value, mask, *past, q_num_heads=self.heads, kv_num_heads=self.heads
            )
            return attended, keys, values
        query, *new = (_split_heads(part, self.heads) for part in (query, key, value))
        keys, values = (torch.cat(pair, dim=2) for pair in zip(past, new, strict=True))
        return _merge_heads(attention(query, keys, values, mask=mask)), keys, values

    def _attend_last(
        self, asking: Tensor, new: Tensor, past: Tensor | None, mask: Tensor, last: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what one event (B, 1, D) attends to, (B, 1, H D), and all events (B, P + T, D)."""
        if past is None:
            events = new
        else:
            events = _put(past, new, last) if self.appends else torch.cat([past, new], dim=1)
        query = self.final.query(asking)
        if self.onnx_nodes:
            attended, _, _, _ = torch.onnx.ops.attention(
                query,
                events,
                events,
                mask,
                q_num_heads=self.heads,
                kv_num_heads=1,
                scale=self.final.scale,
            )
            return attended, events
        shared = events[:, None].expand(-1, self.heads, -1, -1)
        query = _split_heads(query, self.heads)
        attended = attention(query, shared, shared, mask=mask, scale=self.final.scale)
        return _merge_heads(attended), events

    def _take(self, x: Tensor, last: Tensor) -> Tensor:
        """Return one event of each row, (B, 1, D)."""
        if self.appends:
            return x
        if not self.onnx_nodes:
            return x.gather(1, last.expand(-1, -1, x.shape[2]))
        shape = (x.shape[0], 1, x.shape[2])
        return symbolic(
            "GatherND", [x, last], {"batch_dims": 1}, dtype=FLOAT, shape=shape, version=13
        )


class FinalAttention(nn.Module):
    """The layers around the attention of one event: keys and values are both what enters.

    <W_q x + b, W_k y> is <W_k' (W_q x + b), y>, a sum of values is the value of the sum, and a bias
    of the keys adds the same to all scores. A head then asks with D channels, not D / H.
    """

    def __init__(self, source: Block | SeedModel) -> None:
        super().__init__()
        heads = source.heads if isinstance(source, Block) else 1
        width = source.query.in_features
        self.scale = (width // heads) ** -0.5
        self.query = nn.Linear(width, heads * width)
        self.output = nn.Linear(heads * width, width)
        query, key_value, output = (
            [layer.weight.double(), layer.bias.double()]
            for layer in (source.query, source.key_value, source.output)
        )
        key, value = key_value[0].chunk(2)
        by_head = [rows.chunk(heads) for rows in (*query, key, value)]
        columns = output[0].chunk(heads, dim=1)
        with torch.no_grad():
            asked = [(k.T @ q, k.T @ b) for q, b, k, _ in zip(*by_head, strict=True)]
            self.query.weight.copy_(torch.cat([weight for weight, _ in asked]))
            self.query.bias.copy_(torch.cat([bias for _, bias in asked]))
            given = [o @ v for o, v in zip(columns, by_head[-1], strict=True)]
            self.output.weight.copy_(torch.cat(given, dim=1))
            self.output.bias.copy_(output[0] @ key_value[1].chunk(2)[1] + output[1])
        self.requires_grad_(requires_grad=False)


def state_shapes(config: ModelConfig, axis: str, recent: str) -> dict[str, list[int | str]]:
    """Return name and shape of what is kept of the events: of each block in turn.

    Args:
        config: Of the model.
        axis: What the axis of events is called.
        recent: The same of keys and values, of which a window is enough.
    """
    blocks = config.blocks if config.kind == "sequence" else 1
    head: list[int | str] = ["batch", config.heads, recent, config.width // config.heads]
    shapes = {f"{part}_{block}": head for block in range(blocks - 1) for part in ("key", "value")}
    return {**shapes, "events": ["batch", axis, config.width]} if blocks else {}


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)  # (B, H, T, D / H)


def _rows_of_heads(x: Tensor, heads: int) -> Tensor:
    """Return one event (1, 1, D) as (H, 1, D / H)."""
    return x if heads == 1 else x.view(heads, 1, -1)


def _put(kept: Tensor, new: Tensor, place: Tensor) -> Tensor:
    """Return rows (N, P, C) with new ones (N, 1, C), where ``place`` (N, 1, 2) says.

    A node that writes into what it is given, where both are bound to the same memory.
    """
    return symbolic("ScatterND", [kept, place, new], dtype=FLOAT, shape=kept.shape, version=18)


def _merge_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)  # (B, T, D)


def served_key_value(block: Block) -> nn.Linear:
    """Return the layer that makes keys and values, for one head with the output layer inside."""
    layer = nn.Linear(block.key_value.in_features, block.key_value.out_features)
    layer.load_state_dict(block.key_value.state_dict())
    layer.requires_grad_(requires_grad=False)
    if block.heads == 1:
        values = slice(block.output.in_features, None)
        layer.weight[values] = block.output.weight @ layer.weight[values]
        layer.bias[values] = block.output.weight @ layer.bias[values] + block.output.bias
    return layer


def gates(block: Block, x: Tensor) -> list[Tensor]:
    """Return what a gated block multiplies its attention by, nothing for another."""
    return [] if block.attention_gate is None else [block.attention_gate(x).sigmoid()]


def hidden_score(block: Block, table: Tensor, events: int) -> float | None:
    """Return what hides an event from the first block, if such a number is high enough.

    An event always sees itself, so a hidden one weighs at most exp(``hidden_score`` + gap) of what
    it sees, where the gap is between the two scores, and fewer than ``events`` are hidden. Rotation
    keeps lengths, and turns an event and itself alike:
    score(i, j) - score(i, i) <= (|q_i| max |k| - <q_i, k_i>) / sqrt(d). What hidden events add is
    their weight times their values, which are taken to be as large as those of the others.

    Args:
        block: The first one.
        table: What enters it, all items, (items + 1, D).
        events: Of a history at most, padding included.
    """

    def parts(rows: Tensor) -> tuple[Tensor, Tensor]:
        normed = block.attention_norm(rows)
        key = block.key_value(normed).chunk(2, dim=-1)[0]
        shape = (len(rows), block.heads, -1)
        return block.query(normed).view(shape), key.reshape(shape)  # (N, H, d)

    chunks = torch.split(table, ROWS_AT_ONCE)
    longest = torch.stack([parts(rows)[1].norm(dim=-1).amax(dim=0) for rows in chunks]).amax(dim=0)
    gap = 0.0
    for query, key in map(parts, chunks):
        gaps = query.norm(dim=-1) * longest - (query * key).sum(dim=-1)
        gap = max(gap, float(gaps.max()) / query.shape[-1] ** 0.5)
    score = -math.ceil(gap + HIDDEN_BELOW + math.log(events))
    return float(score) if score >= LOWEST_SCORE else None
