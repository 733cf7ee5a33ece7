"""The item table, whole or in shards: with several processes, each holds a range of its rows.

Process r of N holds S = ceil(rows / N) rows from r * S, with zeros after the last row of the table.
It alone has their moments and moves them. A lookup asks each process for its rows, and its
backward pass sends the gradients of these rows back.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from ranklet_training import processes
from ranklet_training.data.features import Features


class ItemTable(nn.Module):
    """Embeddings of items and of their features; row 0 is padding."""

    codes: Tensor
    weights: Tensor
    offsets: Tensor

    def __init__(self, items: int, width: int, features: Features | None = None) -> None:
        super().__init__()
        self.item = nn.Parameter(torch.empty(items + 1, width))
        self.rows = items + 1
        self.has_sparse_gradient = False  # True: the gradient has only the looked-up rows
        self.feature: nn.EmbeddingBag | None = None
        if features is not None:
            self.feature = nn.EmbeddingBag(features.count, width, mode="sum")
            for name in ("codes", "weights", "offsets"):
                array = torch.from_numpy(getattr(features, name))
                self.register_buffer(name, array, persistent=False)

    @property
    def is_cut(self) -> bool:
        """Return whether this process holds a shard."""
        return len(self.item) < self.rows

    def cut(self) -> None:
        """Keep the shard of this process."""
        self.item.data = cut_shard(self.item.data)

    def whole(self, table: Tensor) -> Tensor:
        """Return the weights or moments of all rows, (items + 1, D), in the first process."""
        return gather_shards(table, self.rows) if self.is_cut else table

    def init_weights(self) -> None:
        """Draw every row from N(0, 0.02); the padding row is 0."""
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)
        with torch.no_grad():
            self.item[0] = 0

    def forward(self, rows: Tensor | None = None) -> Tensor:
        """Return e(item) of all items, (items + 1, D), or of some sorted rows, (R, D)."""
        table: Tensor = self.item
        if self.is_cut:
            every = torch.arange(self.rows, device=table.device)
            table = _Lookup.apply(  # type: ignore[no-untyped-call]
                self.item, every if rows is None else rows, self.has_sparse_gradient
            )
        elif rows is not None:
            table = functional.embedding(rows, self.item, sparse=self.has_sparse_gradient)
        if self.feature is None:
            return table
        codes, weights, offsets = self.codes, self.weights, self.offsets
        if rows is not None:
            places, offsets = _take_ragged(offsets, len(codes), rows)
            codes, weights = codes[places], weights[places]
        added: Tensor = self.feature(codes, offsets, weights)
        return table + added


def _take_ragged(offsets: Tensor, count: int, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places of some rows in a ragged array of ``count`` values, and their offsets."""
    ends = torch.cat([offsets[1:], offsets.new_tensor([count])])
    lengths = (ends - offsets)[rows]
    starts = lengths.cumsum(0) - lengths
    shift = torch.repeat_interleave(offsets[rows] - starts, lengths)
    return torch.arange(len(shift), device=rows.device) + shift, starts


def cut_shard(table: Tensor) -> Tensor:
    """Return the rows of a table that this process holds, (S, D)."""
    size = -(-len(table) // processes.count())
    rows = table[processes.rank() * size : (processes.rank() + 1) * size]
    shard = table.new_zeros(size, table.shape[1])
    shard[: len(rows)] = rows
    return shard


def gather_shards(shard: Tensor, rows: int) -> Tensor:
    """Return the table of all shards, (rows, D), in the first process; the shard in the others."""
    if not processes.is_first():
        dist.gather(shard)
        return shard
    table = shard.new_empty(processes.count() * len(shard), shard.shape[1])
    dist.gather(shard, [*table.chunk(processes.count())])
    return table[:rows]


class _Lookup(torch.autograd.Function):
    """Rows of a table in shards; every process asks for its own."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (torch gives it no public type)
        shard: Tensor,
        rows: Tensor,
        is_sparse: bool,
    ) -> Tensor:
        numbers = torch.bincount(rows // len(shard), minlength=processes.count())
        asking = torch.empty_like(numbers)
        dist.all_to_all_single(asking, numbers)
        ctx.asked, ctx.asking = numbers.tolist(), asking.tolist()  # of and by each process
        ctx.places = _exchange(rows, ctx.asked, ctx.asking) - processes.rank() * len(shard)
        ctx.shape, ctx.is_sparse = shard.shape, is_sparse
        return _exchange(shard[ctx.places], ctx.asking, ctx.asked)

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        gradient: Tensor,
    ) -> tuple[Tensor, None, None]:
        values = _exchange(gradient.contiguous(), ctx.asked, ctx.asking)
        if not ctx.is_sparse:
            return values.new_zeros(ctx.shape).index_add_(0, ctx.places, values), None, None
        rows = torch.sparse_coo_tensor(ctx.places[None], values, ctx.shape, check_invariants=False)
        return rows, None, None


def _exchange(values: Tensor, sent: list[int], received: list[int]) -> Tensor:
    """Send rows to each process, in their order, and return those received."""
    found = values.new_empty(sum(received), *values.shape[1:])
    dist.all_to_all_single(found, values, received, sent)
    return found
