"""The weights of a model as the graphs use them, worked out from its torch modules once.

* Rows are stored times sqrt(D), as they enter the first block, and users are divided by it.
* What the first block makes of an item alone (query, key, value, gate) is a table of its own.
* With one head, the output layer of attention is part of the values: weights that add up to 1
  carry its bias, too. That saves a product and an addition a block.
* The last block asks for one event, so its layers go to that side: the query has been through the
  layer of the keys, and the weighted sum goes through that of the values. Keys and values are then
  both the normalised events that enter the block, and a state keeps nothing else of it.
* An event that the first block may not see has a low score instead of the lowest there is: the
  exponential of the lowest is a denormal number, which takes a processor ten times as long
  (causal attention over 200 events: 202 us, and 90 without). See ``hidden_score``.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ranklet.bundle.manifest import NEVER
from ranklet_training.model.attention import relative_bias
from ranklet_training.model.model import Block, SequenceModel
from ranklet_training.model.seed import SeedModel
from ranklet_training.runs.checkpoint import Model

Floats = NDArray[np.float32]
# All hidden events together weigh at most exp(-17) = 4e-8 of one that is seen: less than float32
# can tell.
HIDDEN_BELOW = 17
# From exp(-87) on exponentials are denormal; scores of trained models spread over some 15.
LOWEST_SCORE = -70
ROWS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Linear:
    """x @ weight + bias."""

    weight: Floats  # (in, out)
    bias: Floats | None

    @classmethod
    def of(cls, *layers: nn.Linear) -> "Linear":
        """Put the outputs of several layers of one input side by side."""
        bias = None
        if layers[0].bias is not None:
            bias = torch.cat([layer.bias for layer in layers]).numpy()
        return cls(torch.cat([layer.weight for layer in layers]).T.contiguous().numpy(), bias)


@dataclass(frozen=True)
class Norm:
    """Layer normalisation over the last axis."""

    scale: Floats
    shift: Floats
    epsilon: float

    @classmethod
    def of(cls, norm: nn.Module) -> "Norm":
        """Take over a torch layer."""
        assert isinstance(norm, nn.LayerNorm)
        return cls(norm.weight.numpy(), norm.bias.numpy(), norm.eps)


@dataclass(frozen=True)
class FeedForward:
    """The second half of a block."""

    norm: Norm
    first: Linear
    is_swiglu: bool
    second: Linear
    gate: Linear | None

    @classmethod
    def of(cls, block: Block) -> "FeedForward":
        """Take over the layers of a block."""
        norm, first, _, second = block.feed_forward
        assert isinstance(first, nn.Linear)
        assert isinstance(second, nn.Linear)
        gate = block.feed_forward_gate
        is_swiglu = first.out_features == 2 * second.in_features
        return cls(
            Norm.of(norm), Linear.of(first), is_swiglu, Linear.of(second), gate and Linear.of(gate)
        )


@dataclass(frozen=True)
class EveryEventBlock:
    """A block before the last: every event asks."""

    norm: Norm
    query_key_value: Linear  # (D, 3 D)
    output: Linear | None  # None: part of the values
    gate: Linear | None
    hidden: float  # score of an event that may not be seen
    feed_forward: FeedForward


@dataclass(frozen=True)
class LastEventBlock:
    """The last block: one event asks with D channels a head; keys and values are what enters."""

    norm: Norm | None
    query: Linear  # (D, H D)
    scale: float
    output: Linear  # (H D, D)
    gate: Linear | None
    bias: Floats  # by age, (H, max_length)
    feed_forward: FeedForward | None  # None: a seed model


@dataclass(frozen=True)
class ServedModel:
    """A model laid out for serving."""

    table: Floats  # (items + 1, D); users are scored against it, histories look it up
    rows: dict[str, Floats]  # of the first block, by item: query, key, value, perhaps gate
    offset: Floats | None  # added to every event, (D,): the mean user of a seed model
    since: Floats | None  # added to an event by the gap before it, (buckets, D)
    until: Floats | None  # added to the last event by the gap after it, (buckets, D)
    blocks: list[EveryEventBlock]
    last: LastEventBlock | None  # None: a model without attention
    norm: Norm | None
    user_scale: Floats | None  # (D,)
    is_cosine: bool
    heads: int
    window: int  # events that blocks before the last see; 0: all
    rotary_base: float
    max_length: int

    @property
    def width(self) -> int:
        """Return D."""
        return self.table.shape[1]

    @classmethod
    def of(cls, model: Model, *, with_rows: bool) -> "ServedModel":
        """Lay out a model that is in evaluation mode, without gradients.

        Args:
            model: Of the run.
            with_rows: Make ``rows`` where the first block sees items alone: there are two blocks or
                more, and the model knows no times.
        """
        config = model.config
        if isinstance(model, SeedModel):
            return cls(
                table=model.table().detach().contiguous().numpy(),
                rows={},
                offset=model.users.weight.mean(dim=0).numpy(),
                since=None,
                until=None,
                blocks=[],
                last=last_event_block(model, config.max_length),
                norm=None,
                user_scale=None,
                is_cosine=False,
                heads=1,
                window=0,
                rotary_base=1.0,
                max_length=config.max_length,
            )
        scale = config.width**0.5
        table = (model.table().detach() * scale).contiguous()
        blocks = list(model.each_block())
        sees_items_alone = len(blocks) > 1 and not config.time_gaps
        rows: dict[str, Floats] = {}
        if with_rows and sees_items_alone:
            rows = first_block_rows(blocks[0], table)
        served = []
        for place, block in enumerate(blocks[:-1]):
            hidden = None
            if sees_items_alone and place == 0:
                hidden = hidden_score(block, table, config.max_length)
            served.append(every_event_block(block, hidden or NEVER))
        is_cosine = config.scoring == "cosine"
        shrink = 1 / scale / (config.temperature if is_cosine else 1.0)
        if is_cosine:  # x / |x| is x / (sqrt(D) rms(x))
            shrink *= config.width**-0.5
        return cls(
            table=table.numpy(),
            rows=rows,
            offset=None,
            since=model.since.weight.numpy() if config.time_gaps else None,
            until=model.until.weight.numpy() if config.time_gaps else None,
            blocks=served,
            last=last_event_block(blocks[-1], config.max_length, model) if blocks else None,
            norm=Norm.of(model.norm),
            user_scale=np.full(config.width, shrink, np.float32),
            is_cosine=is_cosine,
            heads=config.heads,
            window=config.attention_window,
            rotary_base=config.rotary_base,
            max_length=config.max_length,
        )


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


def first_block_rows(block: Block, table: Tensor) -> dict[str, Floats]:
    """Return query, key, value and perhaps gate of every item, (items + 1, D) each."""
    normed = block.attention_norm(table)
    parts = [block.query(normed), *served_key_value(block)(normed).chunk(2, dim=-1)]
    if block.attention_gate is not None:
        parts.append(block.attention_gate(table).sigmoid())
    names = ("queries", "keys", "values", "gates")
    return {name: part.contiguous().numpy() for name, part in zip(names, parts, strict=False)}


def every_event_block(block: Block, hidden: float) -> EveryEventBlock:
    """Lay out a block before the last."""
    gate = block.attention_gate
    return EveryEventBlock(
        norm=Norm.of(block.attention_norm),
        query_key_value=Linear.of(block.query, served_key_value(block)),
        output=None if block.heads == 1 else Linear.of(block.output),
        gate=None if gate is None else Linear.of(gate),
        hidden=hidden,
        feed_forward=FeedForward.of(block),
    )


def last_event_block(
    source: Block | SeedModel, max_length: int, model: SequenceModel | None = None
) -> LastEventBlock:
    """Lay out the last block.

    <W_q x + b, W_k y> is <W_k' (W_q x + b), y>, a sum of values is the value of the sum, and a bias
    of the keys adds the same to all scores. A head then asks with D channels, not D / H.
    """
    heads = source.heads if isinstance(source, Block) else 1
    width = source.query.in_features
    query, key_value, output = (
        [layer.weight.double(), layer.bias.double()]
        for layer in (source.query, source.key_value, source.output)
    )
    key, value = key_value[0].chunk(2)
    by_head = [rows.chunk(heads) for rows in (*query, key, value)]
    columns = output[0].chunk(heads, dim=1)
    asked = [(k.T @ q, k.T @ b) for q, b, k, _ in zip(*by_head, strict=True)]
    given = [o @ v for o, v in zip(columns, by_head[-1], strict=True)]
    shift = output[0] @ key_value[1].chunk(2)[1] + output[1]
    is_block = isinstance(source, Block)
    bias = np.zeros((heads, max_length), dtype=np.float32)
    if model is not None:
        bias = relative_bias(*model.bias.waves().tolist(), max_length)
    return LastEventBlock(
        norm=Norm.of(source.attention_norm) if is_block else None,
        query=_linear(torch.cat([w for w, _ in asked]), torch.cat([b for _, b in asked])),
        scale=(width // heads) ** -0.5,
        output=_linear(torch.cat(given, dim=1), shift),
        gate=Linear.of(source.attention_gate) if is_block and source.attention_gate else None,
        bias=bias,
        feed_forward=FeedForward.of(source) if is_block else None,
    )


def _linear(weight: Tensor, bias: Tensor) -> Linear:
    return Linear(weight.T.contiguous().float().numpy(), bias.float().numpy())


def hidden_score(block: Block, table: Tensor, events: int) -> float | None:
    """Return the score that hides an event from the first block, None if none is high enough.

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
