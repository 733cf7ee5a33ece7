"""Sequence model: causal self-attention encodes a history as a user vector.

score(user, item) = <user, e(item)>. Choices (docs/training.md has their effects):

* One item table for input and output; a score is a cosine over a temperature, or a dot product.
* e(item) = id embedding + weighted sum of feature embeddings, folded into one table for export.
* With ``time_gaps``, the gap before an event is added to that event, and the gap before the next
  event to the query of the last block: neither changes a cached key.
* With kinds of events, the kind of an event is added to that event, and the kind that is asked for
  to the query of the last block, in the same way. Several can be asked for at once, by weights.
* Blocks are pre-norm and causal, padding is on the right. Positions are rotary, and in the last
  block a relative bias: append-stable, so a state stays valid.
* Serving computes the query of the last block, and all later layers, for the last event alone.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ranklet.time_gaps import BUCKETS
from ranklet.values import show
from ranklet_training.data.features import Features
from ranklet_training.model.attention import (
    RelativeBias,
    attention,
    biased_attention,
    local_attention,
    rotary,
    rotary_tables,
)
from ranklet_training.model.item_table import ItemTable

LARGEST = 2**31 - 1  # of integer settings
SMALLEST_FLOAT, LARGEST_FLOAT = 1e-12, 1e12  # of others, in size
MOST_BLOCKS = 256
LARGEST_SEED = 2**63 - 1  # of torch and numpy
# Buckets of ranklet.time_gaps: before each event, and from an event to its target.
Gaps = tuple[Tensor, Tensor]
# Kind of each event (B, T), and what is asked for: the kind of each target (B, T) in training, the
# weight of each kind (B, kinds + 1) in serving. Kind 0 is unknown: an event of any kind.
Kinds = tuple[Tensor, Tensor]
# Factor of the embeddings of kinds, without which answers to different kinds hardly differ.
KIND_SCALE = 8


def check_settings(config: object, *positive: str, **least: int) -> None:
    """Raise ValueError if a setting is not among its choices, too large, or below its minimum."""
    types = get_type_hints(type(config))
    for name, value in vars(config).items():
        choices = get_args(types[name])  # of a Literal
        if choices and value not in choices:
            raise ValueError(f"{name} must be one of {choices}, got {value!r}")
        largest = LARGEST_SEED if name == "seed" else LARGEST
        if isinstance(value, int) and value > largest:
            raise ValueError(f"{name} must be at most {largest:,}, got {show(value)}")
        if name in least and value < least[name]:
            raise ValueError(f"{name} must be at least {least[name]}, got {value}")
        if name in positive and not 0 < value < math.inf:
            raise ValueError(f"{name} must be above 0 and finite, got {value}")
        is_other = isinstance(value, float) and value != 0 and math.isfinite(value)
        if is_other and not SMALLEST_FLOAT <= abs(value) <= LARGEST_FLOAT:
            bounds = f"from {SMALLEST_FLOAT:g} to {LARGEST_FLOAT:g} in size"
            raise ValueError(f"{name} must be 0 or {bounds}, got {value}")


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a model."""

    kind: Literal["sequence", "seed"] = "sequence"
    width: int = 64
    blocks: int = 2  # 0: the last event alone scores, the baseline of attention
    heads: int = 1
    block: Literal["pre-norm", "gated"] = "pre-norm"
    activation: Literal["gelu", "swiglu"] = "gelu"
    feed_forward: int = 4  # hidden width of the feed-forward layer, in widths
    max_length: int = 200  # longer histories keep their latest events
    attention_window: int = 32  # events that a block before the last sees; 0: all
    dropout: float = 0.3
    scoring: Literal["cosine", "dot"] = "cosine"
    temperature: float = 0.07  # of cosine scores
    rotary_base: float = 1000.0  # of all blocks but the last
    time_gaps: bool = False  # embed the time before each event and before the next one

    def __post_init__(self) -> None:
        least = {"width": 1, "heads": 1, "feed_forward": 1, "max_length": 1}
        check_settings(self, "temperature", "rotary_base", blocks=0, attention_window=0, **least)
        if self.blocks > MOST_BLOCKS:
            raise ValueError(f"blocks must be at most {MOST_BLOCKS}, got {self.blocks}")
        if self.time_gaps and (self.blocks == 0 or self.kind == "seed"):
            raise ValueError("time_gaps needs a sequence model with at least 1 block")
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width must be divisible by 2 * heads, got {self.width} and {self.heads} heads"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")


class Dropout(nn.Module):
    """Dropout by random bytes of its own generator.

    Bernoulli sampling of PyTorch took a third of a training step on CPU; bytes compared with a
    threshold take a tenth of that. The rate is rounded to 1/256.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.threshold = min(255, round(rate * 256))  # 256 would keep nothing
        self.random: np.random.BitGenerator = np.random.SFC64(0)
        self.first_row = 0  # of x, in the batch of all processes

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.threshold == 0:
            return x
        begin = self.first_row * x[0].numel()
        self.random.random_raw(begin // 8, output=False)
        words = self.random.random_raw((begin % 8 + x.numel() + 7) // 8)
        drawn = torch.from_numpy(words.view(np.uint8))[begin % 8 :][: x.numel()].view(x.shape)
        kept = (drawn >= self.threshold).to(x.device)
        return x * kept.to(x.dtype).mul_(256 / (256 - self.threshold))


def reset_dropout(model: nn.Module, seed: int, step: int, first_row: int = 0) -> None:
    """Seed all dropout masks by (seed, step), as a resumed run repeats them.

    A model that gets the rows of a batch from ``first_row`` on has the masks of these rows.
    """
    dropouts = (module for module in model.modules() if isinstance(module, Dropout))
    for place, module in enumerate(dropouts):
        module.random, module.first_row = np.random.SFC64((seed, step, place)), first_row


class SwiGLU(nn.Module):
    """SwiGLU activation: half of the channels times the SiLU of the other half.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020.
    """

    def forward(self, x: Tensor) -> Tensor:
        gate, value = x.chunk(2, dim=-1)
        return functional.silu(gate) * value


class Block(nn.Module):
    """Transformer block, pre-norm; in parts, so that serving computes one query only.

    A gated block multiplies the outputs of attention and feed-forward layer by a sigmoid of the
    residual stream (Borisyuk et al., "LiGR", 2025, as in eSASRec, RecSys 2025).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.feed_forward * config.width
        is_gated, is_swiglu = config.block == "gated", config.activation == "swiglu"
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * hidden if is_swiglu else hidden),
            SwiGLU() if is_swiglu else nn.GELU(),
            nn.Linear(hidden, width),
        )
        self.attention_gate = nn.Linear(width, width, bias=False) if is_gated else None
        self.feed_forward_gate = nn.Linear(width, width, bias=False) if is_gated else None
        self.attention_dropout = Dropout(config.dropout)
        self.feed_forward_dropout = Dropout(config.dropout)

    def split_heads(self, x: Tensor) -> Tensor:
        split = x.view(*x.shape[:2], self.heads, -1)
        return split.transpose(1, 2)  # (B, H, T, D / H)

    def keys_values(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        key, value = self.key_value(normed).chunk(2, dim=-1)
        return self.split_heads(key), self.split_heads(value)

    def merge(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add attention and feed-forward output to the residual stream, (B, T, D)."""
        attended = attended.transpose(1, 2).flatten(2)  # (B, T, D)
        x = x + self.attention_dropout(_gate(self.attention_gate, x, self.output(attended)))
        added = _gate(self.feed_forward_gate, x, self.feed_forward(x))
        out: Tensor = x + self.feed_forward_dropout(added)
        return out


def _gate(gate: nn.Module | None, x: Tensor, added: Tensor) -> Tensor:
    return added if gate is None else gate(x).sigmoid() * added


class SequenceModel(nn.Module):
    """Encoder of histories as user vectors, which score the rows of ``table()``."""

    cos: Tensor
    sin: Tensor

    def __init__(
        self, config: ModelConfig, items: int, features: Features | None = None, kinds: int = 0
    ) -> None:
        super().__init__()
        self.config, self.kinds = config, kinds
        self.items = ItemTable(items, config.width, features)
        if kinds:
            self.kind = nn.Parameter(torch.empty(kinds + 1, config.width))
            self.objective = nn.Parameter(torch.empty(kinds + 1, config.width))
        if config.time_gaps:
            self.since = nn.Embedding(BUCKETS, config.width)
            self.until = nn.Embedding(BUCKETS, config.width)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        if config.blocks:
            self.bias = RelativeBias(config.heads)  # of the last block
        self.norm = nn.LayerNorm(config.width)
        head_width = config.width // config.heads
        cos, sin = rotary_tables(config.max_length, head_width, config.rotary_base)
        self.register_buffer("cos", cos, persistent=False)  # (max_length, head_width / 2)
        self.register_buffer("sin", sin, persistent=False)

    def init_weights(self) -> None:
        """Initialise every parameter.

        ====================  =========================================================
        embeddings            N(0, 0.02), row 0 of items zero
        linear weights        N(0, 0.02)
        linear biases         0
        bias of the distance  0
        layer norms           scale 1, shift 0
        ====================  =========================================================
        """
        self.items.init_weights()
        if self.config.time_gaps:
            nn.init.normal_(self.since.weight, std=0.02)
            nn.init.normal_(self.until.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.kinds:  # last, so that the other weights are those of a model without kinds
            nn.init.normal_(self.kind, std=0.02)
            nn.init.normal_(self.objective, std=0.02)

    def table(self, rows: Tensor | None = None) -> Tensor:
        """Return the item table, (items + 1, D), or some rows int64 (R,) of it, (R, D).

        Rows are normalised if scores are cosines.
        """
        table: Tensor = self.items(rows)
        return functional.normalize(table, dim=-1) if self.config.scoring == "cosine" else table

    def encode(
        self,
        history: Tensor,
        table: Tensor,
        gaps: Gaps | None = None,
        kinds: Kinds | None = None,
    ) -> Tensor:
        """Return the user vector after every event, for training, (B, T, D).

        The history is int64 (B, T), item indices, oldest first, padded with 0 on the right. The
        table is from ``table()``, once a step; scores are u @ table.T. With ``time_gaps``, gaps are
        buckets before each event and until its target, both (B, T); so are the kinds of both.
        """
        since, until = gaps or (None, None)
        kind, asked = kinds or (None, None)
        x = self.dropout(self.embed(history, table, since, kind))  # (B, T, D)
        if not self.config.blocks:
            return self.user(x)
        x = self._before_last(x)
        *_, final = self.each_block()
        key, value = final.keys_values(final.attention_norm(x))
        if until is not None:
            x = x + self.until(until)
        if asked is not None:
            x = x + KIND_SCALE * functional.embedding(asked, self.objective)
        query = final.split_heads(final.query(final.attention_norm(x)))
        return self.user(final.merge(x, biased_attention(query, key, value, self.bias)))

    def serve(
        self,
        history: Tensor,
        table: Tensor,
        gaps: Gaps | None = None,
        kinds: Kinds | None = None,
    ) -> Tensor:
        """Return the user vector after the last event, for serving, (B, D).

        Arguments are as in ``encode`` with T at least 1, but the second of the gaps is (B,), the
        bucket between the last event and the next one, and that of the kinds are weights.
        """
        last = (history != 0).sum(dim=1, keepdim=True) - 1  # (B, 1)
        last_of = last[:, :, None].expand(-1, -1, self.config.width)  # (B, 1, D)
        since, until = gaps or (None, None)
        kind, weights = kinds or (None, None)
        x = self.embed(history, table, since, kind)  # (B, T, D)
        if not self.config.blocks:
            return self.user(x.gather(1, last_of))[:, 0]
        x = self._before_last(x)
        *_, final = self.each_block()
        key, value = final.keys_values(final.attention_norm(x))
        x = x.gather(1, last_of)  # (B, 1, D)
        if until is not None:
            x = x + self.until(until)[:, None]
        if weights is not None:
            x = x + KIND_SCALE * (weights @ self.objective)[:, None]
        query = final.split_heads(final.query(final.attention_norm(x)))
        distance = last - torch.arange(history.shape[1], device=history.device)  # (B, T)
        mask = self.bias(history.shape[1])[:, distance.clamp(min=0)]  # (H, B, T)
        mask = mask.masked_fill(distance < 0, -torch.inf).transpose(0, 1)[:, :, None]
        x = final.merge(x, attention(query, key, value, mask=mask))  # (B, 1, D)
        return self.user(x)[:, 0]

    def _before_last(self, x: Tensor) -> Tensor:
        """Run all blocks but the last, (B, T, D)."""
        positions = torch.arange(x.shape[1], device=x.device)[None]
        *blocks, _ = self.each_block()
        for block in blocks:
            normed = block.attention_norm(x)
            key, value = block.keys_values(normed)
            query = rotary(block.split_heads(block.query(normed)), self.cos, self.sin, positions)
            key = rotary(key, self.cos, self.sin, positions)
            x = block.merge(x, local_attention(query, key, value, self.config.attention_window))
        return x

    def embed(
        self, history: Tensor, table: Tensor, since: Tensor | None, kind: Tensor | None = None
    ) -> Tensor:
        x: Tensor = functional.embedding(history, table) * self.config.width**0.5
        if since is not None:
            x = x + self.since(since)
        return x if kind is None else x + KIND_SCALE * functional.embedding(kind, self.kind)

    def user(self, x: Tensor) -> Tensor:
        """Return the user vectors of the residual stream."""
        user: Tensor = self.norm(x)
        if self.config.scoring == "dot":
            return user
        return functional.normalize(user, dim=-1) / self.config.temperature

    def each_block(self) -> Iterator[Block]:
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block
