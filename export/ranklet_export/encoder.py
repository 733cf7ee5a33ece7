"""The model as it is served: histories and state in, user vectors and state out, few ONNX nodes.

It answers as ``Model.serve``, which the parity gate compares; the work is laid out for one user who
waits:

* What of the first block depends on an item alone (queries, keys, values, gate) is computed once,
  at export, and looked up beside the item's row.
* With one head, the output layer of attention is part of the values: weights that add up to 1
  carry its bias, too. That saves a product and an addition a block. In the last block, which asks
  for one event, values are what enters that layer, and only their sum goes through it.
* Rows are stored times sqrt(D), as they enter the first block, and users are divided by it.
* Positions, the place of the last event and the masks are inputs: to numpy they are views, to a
  graph a dozen nodes, and each node costs half a microsecond.
* What the first block may not see has a low score instead of the lowest there is: the exponential
  of the lowest is a denormal number on its way to 0, which takes a processor ten times as long
  (causal attention over 200 events: 202 us, and 90 without). See ``hidden_score``.
* From opset 23 on one node adds three tensors, and one normalises. SkipLayerNormalization would do
  more at once, but onnxruntime 1.32 runs it on one lane of the CPU: docs/log.md.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.onnx.ops import symbolic

from ranklet_training.attention import KeyValue, attention, rotary
from ranklet_training.checkpoint import Model
from ranklet_training.model import Block, Gaps, SequenceModel
from ranklet_training.seed import SeedModel

FLOAT = 1  # onnx.TensorProto.FLOAT
# All hidden events together weigh at most exp(-17) = 4e-8 of one that is seen: less than float32
# can tell.
HIDDEN_BELOW = 17
# From exp(-87) on exponentials are denormal; scores of trained models spread over some 15.
LOWEST_SCORE = -70
ROWS_AT_ONCE = 1 << 16


class Places(NamedTuple):
    """Where events are and what they see, see ``Encoder.forward``."""

    positions: Tensor
    last: Tensor
    last_position: Tensor
    may_attend: Tensor
    causal_mask: Tensor


class Encoder(nn.Module):
    """A model in evaluation mode, laid out for serving.

    Attributes:
        table: What a history looks up and users are scored against, (items + 1, D).
        rows: What of the first block depends on the item alone, (items + 1, R), or None.
        hidden_score: What ``causal_mask`` adds to the score of a later event, or None: the mask is
            not used, and attention is causal by itself.
    """

    table: Tensor
    rows: Tensor | None
    hidden_score: float | None
    shrink: Tensor

    def __init__(self, model: Model, *, onnx_nodes: bool, with_rows: bool) -> None:
        """Lay out a model.

        Args:
            model: In evaluation mode, without gradients.
            onnx_nodes: Write one ONNX node for each attention, rotation and norm of a user.
            with_rows: Compute ``rows``; models that know time, and those without a block, have
                none.
        """
        super().__init__()
        self.model, self.config, self.onnx_nodes = model, model.config, onnx_nodes
        self.heads = model.config.heads if isinstance(model, SequenceModel) else 1
        self.hidden_score = None
        scale = model.config.width**0.5 if isinstance(model, SequenceModel) else 1.0
        table, rows = model.table().detach() * scale, None
        if isinstance(model, SequenceModel):
            blocks = list(model.each_block())
            knows_item_alone = bool(blocks) and not model.config.time_gaps
            has_rows = with_rows and knows_item_alone
            layers = list(map(served_key_value, blocks))
            self.keys_values = nn.ModuleList(map(KeysValues, layers))
            self.after = nn.ModuleList(nn.Identity() for _ in blocks)
            if self.heads == 1 and len(blocks) > has_rows:
                key, self.after[-1] = halves(layers[-1])
                self.keys_values[-1] = LateValues(key)
            if has_rows:
                rows = torch.cat(self._item_parts(blocks[0], table), dim=-1).contiguous()
            if len(blocks) > 1 and knows_item_alone:
                self.hidden_score = hidden_score(blocks[0], table, model.config.max_length)
            temperature = model.config.temperature if model.config.scoring == "cosine" else 1.0
            shrink = torch.full((model.config.width,), 1 / scale / temperature)
            self.register_buffer("shrink", shrink)
        self.register_buffer("table", table.contiguous())
        self.register_buffer("rows", rows)

    def forward(
        self,
        history: Tensor,
        positions: Tensor,
        last: Tensor,
        last_position: Tensor,
        may_attend: Tensor,
        causal_mask: Tensor,
        *others: Tensor,
    ) -> tuple[Tensor, ...]:
        """Encode the events that are new.

        Args:
            history: Item indices, oldest first, 0 pads on the right, int64 (B, T).
            positions: Place of each event, counted from 0, int64 (B, T).
            last: Where each row's last event lies in the row, int64 (B, 1, 1).
            last_position: Its position, int64 (B, 1).
            may_attend: True for the past and for events, False for padding, (B, 1, 1, P + T).
            causal_mask: 0 for the past and for events up to an event, ``hidden_score`` for later
                ones, float32 (1, 1, T, P + T).
            others: With ``time_gaps``, buckets before each event (B, T) and until the question
                (B,); then keys and values of each block in turn, each (B, H, P, D / H).

        Returns:
            user (B, 1, D), then keys and values of each block, (B, H, P + T, D / H).
        """
        if isinstance(self.model, SeedModel):
            user, present = self._serve_seed(self.model, history, last, may_attend, others)
        else:
            places = Places(positions, last, last_position, may_attend, causal_mask)
            user, present = self._serve(self.model, history, places, others)
        return (user, *present)

    def _serve(
        self,
        model: SequenceModel,
        history: Tensor,
        places: Places,
        others: tuple[Tensor, ...],
    ) -> tuple[Tensor, list[Tensor]]:
        positions, last, last_position, may_attend, causal_mask = places
        gaps: Gaps | None = None
        if self.config.time_gaps:
            gaps, others = (others[0], others[1]), others[2:]
        x = functional.embedding(history, self.table)  # (B, T, D)
        if gaps is not None:
            x = x + model.since(gaps[0])
        present: list[Tensor] = []
        for place, block in enumerate(model.each_block()):
            is_last = place == self.config.blocks - 1
            if place == 0 and self.rows is not None:
                parts = functional.embedding(history, self.rows)  # (B, T, R)
                query, key, value, *gate = torch.split(parts, self.config.width, dim=-1)
                if is_last:
                    x, query, *gate = (self._take(part, last) for part in (x, query, *gate))
            else:
                normed = block.attention_norm(x)
                key, value = self.keys_values[place](normed)
                if is_last:
                    x, normed = self._take(x, last), self._take(normed, last)  # (B, 1, D)
                    if gaps is not None:
                        x = x + model.until(gaps[1])[:, None]
                        normed = block.attention_norm(x)
                query, gate = block.query(normed), gates(block, x)
            mask = causal_mask if place == 0 and self.hidden_score is not None else None
            attended, *now = self._attend(
                self._rotate(query, last_position if is_last else positions),
                self._rotate(key, positions),
                value,
                (others[2 * place], others[2 * place + 1]),
                may_attend if is_last else mask,
            )
            present += now
            x = self._merge(block, x, self.after[place](attended), gate)
        if not present:
            x = self._take(x, last)
        return self._user(model.norm(x)), present

    def _item_parts(self, block: Block, x: Tensor) -> list[Tensor]:
        """Return query, key, value and gate of rows of the item table, each (N, D)."""
        normed = block.attention_norm(x)
        key, value = self.keys_values[0](normed)
        return [block.query(normed), key, value, *gates(block, x)]

    def _merge(self, block: Block, x: Tensor, attended: Tensor, gate: list[Tensor]) -> Tensor:
        """Add what attention gave and the feed-forward layer to the residual stream."""
        output, (norm, first, activation, second) = block.output, block.feed_forward
        assert isinstance(second, nn.Linear)
        if self.heads == 1:  # it has been through the output layer already
            x = x + (gate[0] * attended if gate else attended)
        elif gate:
            x = x + gate[0] * output(attended)
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

    def _serve_seed(
        self,
        model: SeedModel,
        history: Tensor,
        last: Tensor,
        may_attend: Tensor,
        past: tuple[Tensor, ...],
    ) -> tuple[Tensor, list[Tensor]]:
        x = functional.embedding(history, self.table) + model.users.weight.mean(dim=0)
        key, value = model.key_value(x).chunk(2, dim=-1)
        query = model.query(self._take(x, last))
        attended, *present = self._attend(query, key, value, (past[0], past[1]), may_attend)
        return model.output(attended), present

    def _rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        model = self.model
        assert isinstance(model, SequenceModel)
        if self.onnx_nodes:
            rotated: Tensor = torch.onnx.ops.rotary_embedding(
                x, model.cos, model.sin, positions, num_heads=self.heads
            )
            return rotated
        return self._merge_heads(rotary(self._split_heads(x), model.cos, model.sin, positions))

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, past: KeyValue, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return attended values (B, T, D), and keys and values to keep; causal without a mask."""
        is_causal = mask is None
        if self.onnx_nodes:
            attended, keys, values, _ = torch.onnx.ops.attention(
                query,
                key,
                value,
                mask,
                *past,
                is_causal=is_causal,
                q_num_heads=self.heads,
                kv_num_heads=self.heads,
            )
            return attended, keys, values
        attended, (keys, values) = attention(
            *(self._split_heads(part) for part in (query, key, value)),
            past=past,
            may_attend=mask,
            is_causal=is_causal,
        )
        return self._merge_heads(attended), keys, values

    def _take(self, x: Tensor, last: Tensor) -> Tensor:
        """Return one event of each row, (B, 1, D)."""
        if not self.onnx_nodes:
            return x.gather(1, last.expand(-1, -1, x.shape[2]))
        shape = (x.shape[0], 1, x.shape[2])
        return symbolic(
            "GatherND", [x, last], {"batch_dims": 1}, dtype=FLOAT, shape=shape, version=13
        )

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # (B, H, T, D / H)

    def _merge_heads(self, x: Tensor) -> Tensor:
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


class KeysValues(nn.Module):
    """Keys and values of events, each (B, T, D), from one layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """Split what the layer makes."""
        key, value = self.layer(normed).chunk(2, dim=-1)
        return key, value


class LateValues(nn.Module):
    """Keys from a layer, and values that go through theirs when they are summed up."""

    def __init__(self, key: nn.Linear) -> None:
        super().__init__()
        self.key = key

    def forward(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys, and values as they are."""
        return self.key(normed), normed


def halves(layer: nn.Linear) -> list[nn.Linear]:
    """Return two layers that make the first and the second half of what a layer makes."""
    made = []
    for weight, bias in zip(layer.weight.chunk(2), layer.bias.chunk(2), strict=True):
        made.append(nn.Linear(*weight.T.shape))
        made[-1].load_state_dict({"weight": weight, "bias": bias})
        made[-1].requires_grad_(requires_grad=False)
    return made


def hidden_score(block: Block, table: Tensor, events: int) -> float | None:
    """Return what hides a later event from the first block, if such a number is high enough.

    An event always sees itself, so a later one weighs at most exp(``hidden_score`` + gap) of what
    it sees, where the gap is between the two scores, and fewer than ``events`` are later. Rotation
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
