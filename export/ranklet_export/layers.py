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

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ranklet.bundle.manifest import FIRST_BLOCK_ROWS, NEVER
from ranklet_export.hidden import hidden_score
from ranklet_training.model.model import KIND_SCALE, Block, SequenceModel
from ranklet_training.model.seed import SeedModel
from ranklet_training.runs.checkpoint import Model

Floats = NDArray[np.float32]
ROWS_AT_ONCE = 1 << 16


class ServedModel:
    """The layers and tables of a model that the graphs need.

    Attributes:
        model: The model in evaluation mode, without gradients.
        scale: Factor of the rows of the model.
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
        self.scale = 1.0
        if isinstance(model, SeedModel):
            self.last, self.offset = model, model.users.weight.mean(dim=0).numpy()
        else:
            blocks = list(model.each_block())
            self.blocks, self.last = blocks[:-1], blocks[-1] if blocks else None
            self.scale = self.width**0.5
            # A cosine: x / |x| is x / (sqrt(D) rms(x)).
            is_cosine = model.config.scoring == "cosine"
            self.user_scale = 1 / self.scale
            if model.kinds:
                self.kinds = KIND_SCALE * model.kind.detach()
                self.objectives = KIND_SCALE * model.objective.detach()
            if is_cosine:
                self.user_scale /= model.config.temperature * self.scale
        table = (model.table().detach() * self.scale).contiguous()
        self.table: Floats = table.numpy()
        self.key_values = [served_key_value(block) for block in self.blocks]
        self.hidden: list[float] = [NEVER] * len(self.blocks)
        if self.sees_no_times:
            parts = map(self._first_block, self._first_inputs(table))
            queries_keys = ((rows["queries"], rows["keys"]) for rows in parts)
            self.hidden[0] = hidden_score(queries_keys, self.heads, self.max_length)
            if with_rows and self.kinds is None:
                self.rows = self._first_block(table)
        if self.last is not None:
            self.query, self.output = one_query_layers(self.last, self.heads)
        if isinstance(model, SequenceModel) and self.last is not None:
            self.bias = model.bias(self.max_length).numpy()

    @property
    def sees_no_times(self) -> bool:
        """Return whether the first block sees no times, and the last block is another one."""
        return bool(self.blocks) and not self.config.time_gaps

    @property
    def window(self) -> int:
        """Return the attention window of the blocks before the last; 0: all events."""
        window = self.config.attention_window if self.blocks else 0
        return 0 if window >= self.max_length else window

    def _first_inputs(self, table: Tensor) -> Iterator[Tensor]:
        """Yield every input of the first block, (inputs, D): rows of items, of each kind if any."""
        for rows in torch.split(table, ROWS_AT_ONCE):
            if self.kinds is None:
                yield rows
            else:
                yield from (rows + kind for kind in self.kinds)

    def _first_block(self, table: Tensor) -> dict[str, Floats]:
        block, key_value = self.blocks[0], self.key_values[0]
        normed = block.attention_norm(table)
        parts = [block.query(normed), *key_value(normed).chunk(2, dim=-1)]
        if block.attention_gate is not None:
            parts.append(block.attention_gate(table).sigmoid())
        pairs = zip(FIRST_BLOCK_ROWS, parts, strict=False)
        return {name: part.contiguous().numpy() for name, part in pairs}


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
