"""Losses as functions: softmax over the whole catalogue in chunks, and squared error of ratings."""

from typing import Any

import torch
from torch import Tensor

# A chunk of logits of this many numbers stays in the cache and below the size at which the
# allocator maps fresh pages at every step.
CHUNK_ELEMENTS = 1 << 22


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy whose gradient is made in the forward pass, so that no logits are kept."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (torch gives it no public type)
        users: Tensor,
        table: Tensor,
        targets: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        count, items = len(users), table.shape[0]
        narrow_users, narrow_table = users.to(dtype), table.to(dtype)
        grad_users = torch.empty_like(users)
        grad_table = torch.zeros_like(table)
        loss = torch.zeros((), dtype=torch.float64)
        size = max(1, CHUNK_ELEMENTS // items)
        for begin in range(0, count, size):
            rows = slice(begin, begin + size)
            logits = narrow_users[rows] @ narrow_table.T  # (C, items + 1)
            logits[:, 0] = -torch.inf  # padding is never an answer
            right = targets[rows, None]
            target_logits = logits.gather(1, right).float()
            top = logits.amax(dim=1, keepdim=True)
            weights = logits.sub_(top).exp_()
            total = weights.sum(dim=1, keepdim=True, dtype=torch.float32)
            loss += (total.log() + top.float() - target_logits).sum()
            # d loss / d logits = softmax - one-hot, over the number of targets
            weights.mul_((1 / (total * count)).to(dtype))
            weights.scatter_add_(1, right, torch.full_like(right, -1 / count, dtype=dtype))
            grad_users[rows] = (weights @ narrow_table).to(users.dtype)
            grad_table += (weights.T @ narrow_users[rows]).to(table.dtype)
        ctx.save_for_backward(grad_users, grad_table)
        return (loss / count).to(users.dtype)

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor, Tensor, None, None]:
        grad_users, grad_table = ctx.saved_tensors
        return grad * grad_users, grad * grad_table, None, None


def softmax_loss(
    users: Tensor, table: Tensor, targets: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return the mean cross-entropy of the softmax over all items.

    Args:
        users: User vectors, one for each target, (N, D); gather the valid positions first.
        table: Item table, (items + 1, D); row 0 is padding and takes no part.
        targets: Index of the item that came next, int64 (N,), from 1.
        dtype: Of the logits and the products; bfloat16 saves time where the CPU has it.
    """
    loss: Tensor = _ChunkedCrossEntropy.apply(users, table, targets, dtype)  # type: ignore[no-untyped-call]
    return loss


def rating_loss(users: Tensor, table: Tensor, targets: Tensor, ratings: Tensor) -> Tensor:
    """Return the mean squared error of the predicted ratings <user, e(target)>.

    Args:
        users: (N, D).
        table: (items + 1, D).
        targets: int64 (N,).
        ratings: Less the mean rating, (N,).
    """
    predicted = (users * table[targets]).sum(dim=-1)
    return (predicted - ratings).square().mean()
