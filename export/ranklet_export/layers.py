"""Precomputed layers: a trained model rearranged for serving, worked out once.

* Rows are stored times sqrt(D), as they enter the first block, and users are divided by it.
* The query, key, value and gate of the first block depend on the item only: they become tables.
* With one head, the output layer of attention is part of the values: weights that add up to 1
  carry its bias, too. That saves a product and an addition a block.
* Only the last event queries the last block, so the other layers move to its side: the query has
  passed the key layer, and the weighted sum passes the value layer. Keys and values are then both
  the normalised events that enter the block, and a state keeps nothing else of it.
* An event that the first block may not see has a low score instead of the lowest: the exponential
  of the lowest is a denormal number, which takes a processor ten times as long (causal attention
  over 200 events: 202 us, and 90 without). See ``hidden_score``.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ranklet.bundle.manifest import NEVER
from ranklet_training.model.model import KIND_SCALE, Block, SequenceModel
from ranklet_training.model.seed import SeedModel
from ranklet_training.runs.checkpoint import Model

Floats = NDArray[np.float32]
# All hidden events together weigh at most exp(-17) = 4e-8 of a visible one: below float32.
HIDDEN_BELOW = 17
# From exp(-87) on exponentials are denormal; scores of trained models spread over some 15.
LOWEST_SCORE = -70
ROWS_AT_ONCE = 1 << 16


class ServedModel:
    """The layers and tables of a model that the graphs need.

    Attributes:
        model: The model in evaluation mode, without gradients.
        table: Item table of histories and scores, (items + 1, D).
        rows: Query, key, value and perhaps gate of the first block for each item; empty if the
            block sees times or kinds, or the bundle is compact.
        offset: The mean user of a seed model, (D,), added to every event.
        blocks: Blocks before the last.
        key_values: Their key-value layers.
        hidden: Their scores of hidden events.
        last: The last block, None for a model without attention.
        query: Its layer before attention, (D, H D).
        output: Its layer after attention, (H D, D).
        bias: Its bias of scores by age, (H, max_length).
        user_scale: Factor of a normalised user, None of a seed model.
        kinds: What each kind of event adds to an event, (kinds + 1, D); None without kinds.
        objectives: What asking for each kind adds to the event that asks, (kinds + 1, D).
    """

    def __init__(self, model: Model, *, with_rows: bool) -> None:
        """Rearrange a model; ``with_rows`` precomputes ``rows`` where that is possible."""
        self.model, self.config = model, model.config
        self.heads = model.config.heads if isinstance(model, SequenceModel) else 1
        self.width, self.max_length = model.config.width, model.config.max_length
        self.rows: dict[str, Floats] = {}
        self.offset: Floats | None = None
        self.user_scale: float | None = None
        self.kinds: Tensor | None = None
        self.objectives: Tensor | None = None
        self.blocks: list[Block] = []
        self.last: Block | SeedModel | None = None
        self.bias = np.zeros((self.heads, self.max_length), dtype=np.float32)
        scale = 1.0
        if isinstance(model, SeedModel):
            self.last, self.offset = model, model.users.weight.mean(dim=0).numpy()
        else:
            blocks = list(model.each_block())
            self.blocks, self.last = blocks[:-1], blocks[-1] if blocks else None
            scale = self.width**0.5
            # A cosine: x / |x| is x / (sqrt(D) rms(x)).
            is_cosine = model.config.scoring == "cosine"
            self.user_scale = 1 / scale
            if model.kinds:
                self.kinds = KIND_SCALE * model.kind.detach()
                self.objectives = KIND_SCALE * model.objective.detach()
            if is_cosine:
                self.user_scale /= model.config.temperature * scale
        table = (model.table().detach() * scale).contiguous()
        self.table: Floats = table.numpy()
        self.key_values = [served_key_value(block) for block in self.blocks]
        self.hidden: list[float] = [NEVER] * len(self.blocks)
        if self.blocks and not model.config.time_gaps:  # the first one sees items and kinds alone
            added = torch.zeros(1, self.width) if self.kinds is None else self.kinds
            self.hidden[0] = hidden_score(self.blocks[0], table, self.max_length, added) or NEVER
            if with_rows and self.kinds is None:
                self.rows = self._first_block(table)
        if self.last is not None:
            self.query, self.output = one_query_layers(self.last, self.heads)
        if isinstance(model, SequenceModel) and self.last is not None:
            self.bias = model.bias(self.max_length).numpy()

    @property
    def window(self) -> int:
        """Return the attention window of the blocks before the last; 0: all events."""
        window = self.config.attention_window if self.blocks else 0
        return 0 if window >= self.max_length else window

    def _first_block(self, table: Tensor) -> dict[str, Floats]:
        block, key_value = self.blocks[0], self.key_values[0]
        normed = block.attention_norm(table)
        key, value = key_value(normed).chunk(2, dim=-1)
        rows = {"queries": block.query(normed), "keys": key, "values": value}
        if block.attention_gate is not None:
            rows["gates"] = block.attention_gate(table).sigmoid()
        return {name: part.contiguous().numpy() for name, part in rows.items()}


def served_key_value(block: Block) -> nn.Linear:
    """Return the key-value layer; with one head it includes the output layer."""
    layer = nn.Linear(block.key_value.in_features, block.key_value.out_features)
    layer.load_state_dict(block.key_value.state_dict())
    layer.requires_grad_(requires_grad=False)
    if block.heads == 1:
        values = slice(block.output.in_features, None)
        layer.weight[values] = block.output.weight @ layer.weight[values]
        layer.bias[values] = block.output.weight @ layer.bias[values] + block.output.bias
    return layer


def one_query_layers(source: Block | SeedModel, heads: int) -> tuple[nn.Linear, nn.Linear]:
    """Return query and output layers of the last block, whose keys and values are its input.

    <W_q x + b, W_k y> is <W_k' (W_q x + b), y>, a sum of values is the value of the sum, and a bias
    of the keys adds the same to all scores. The query of a head then has D channels, not D / H.
    """
    width = source.query.in_features
    before, after = nn.Linear(width, heads * width), nn.Linear(heads * width, width)
    query, key_value, output = (
        [layer.weight.double(), layer.bias.double()]
        for layer in (source.query, source.key_value, source.output)
    )
    key, value = key_value[0].chunk(2)
    by_head = [rows.chunk(heads) for rows in (*query, key, value)]
    columns = output[0].chunk(heads, dim=1)
    with torch.no_grad():
        asks = [(k.T @ q, k.T @ b) for q, b, k, _ in zip(*by_head, strict=True)]
        before.weight.copy_(torch.cat([weight for weight, _ in asks]))
        before.bias.copy_(torch.cat([bias for _, bias in asks]))
        gives = [o @ v for o, v in zip(columns, by_head[-1], strict=True)]
        after.weight.copy_(torch.cat(gives, dim=1))
        after.bias.copy_(output[0] @ key_value[1].chunk(2)[1] + output[1])
    return before.requires_grad_(requires_grad=False), after.requires_grad_(requires_grad=False)


def hidden_score(block: Block, table: Tensor, events: int, added: Tensor) -> float | None:
    """Return the score that hides an event from the first block, None if none is high enough.

    An event always sees itself, so a hidden one weighs at most exp(``hidden_score`` + gap) of what
    it sees, where the gap is between the two scores, and fewer than ``events`` are hidden. Rotation
    keeps lengths, and turns an event and itself alike:
    score(i, j) - score(i, i) <= (|q_i| max |k| - <q_i, k_i>) / sqrt(d). What hidden events add is
    their weight times their values, which are taken to be as large as those of the others.

    Args:
        block: The first block.
        table: Its inputs of all items, (items + 1, D).
        events: The most events of a history, padding included.
        added: What may be added to each of its inputs, such as kinds, (A, D).
    """

    def parts(rows: Tensor) -> tuple[Tensor, Tensor]:
        normed = block.attention_norm(rows)
        key = block.key_value(normed).chunk(2, dim=-1)[0]
        shape = (len(rows), block.heads, -1)
        return block.query(normed).view(shape), key.reshape(shape)  # (N, H, d)

    def each() -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.split(table, ROWS_AT_ONCE):
            yield from (parts(rows + one) for one in added)

    longest = torch.stack([key.norm(dim=-1).amax(dim=0) for _, key in each()]).amax(dim=0)
    gap = 0.0
    for query, key in each():
        gaps = query.norm(dim=-1) * longest - (query * key).sum(dim=-1)
        gap = max(gap, float(gaps.max()) / query.shape[-1] ** 0.5)
    score = -math.ceil(gap + HIDDEN_BELOW + math.log(events))
    return float(score) if score >= LOWEST_SCORE else None
