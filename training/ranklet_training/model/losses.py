"""Losses: softmax over all or sampled items, gBCE, squared error of ratings."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Chunks of logits of this size stay in the cache, and below the size from which the allocator maps
# new pages at every step.
CHUNK_ELEMENTS = 1 << 22


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of targets against other rows, with the gradient from the forward pass.

    Only one chunk of logits exists at a time. Row ``column[n]`` of the others is the item of target
    n and does not compete with it; ``column[n]`` is -1 if the others lack that item.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (torch gives it no public type)
        users: Tensor,
        right: Tensor,
        others: Tensor,
        column: Tensor,
        shift: float,
        dtype: torch.dtype,
    ) -> Tensor:
        count = len(users)
        narrow_users, narrow_others = users.to(dtype), others.to(dtype)
        right_logits = (users * right).sum(dim=1, keepdim=True)  # (N, 1)
        grad_users, grad_others = torch.empty_like(users), torch.zeros_like(others)
        grad_right_logits = torch.empty_like(right_logits)
        loss = torch.zeros((), dtype=torch.float64, device=users.device)
        size = max(1, CHUNK_ELEMENTS // len(others))
        for begin in range(0, count, size):
            rows = slice(begin, begin + size)
            logits = narrow_users[rows] @ narrow_others.T  # (C, M)
            hit = torch.nonzero(column[rows] >= 0)[:, 0]
            logits[hit, column[rows][hit]] = -torch.inf
            # The shift changes two columns instead of the matrix.
            right_logit = right_logits[rows] - shift
            top = torch.maximum(logits.amax(dim=1, keepdim=True).to(users.dtype), right_logit)
            top = top.to(dtype).to(users.dtype)  # one number for all columns, in either type
            weights = logits.sub_(top.to(dtype)).exp_()
            right_weight = (right_logit - top).exp()
            total = weights.sum(dim=1, keepdim=True, dtype=users.dtype) + right_weight
            loss += (total.log() + top - right_logit).sum()
            # d loss / d logits = softmax - one-hot, over the number of targets
            weights.mul_((1 / (total * count)).to(dtype))
            grad_right_logits[rows] = (right_weight / total - 1) / count
            grad_users[rows] = (weights @ narrow_others).to(users.dtype)
            grad_others += (weights.T @ narrow_users[rows]).to(others.dtype)
        grad_users += grad_right_logits * right
        ctx.save_for_backward(grad_users, grad_right_logits * users, grad_others)
        return (loss / count).to(users.dtype)

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor | None, ...]:
        grad_users, grad_right, grad_others = ctx.saved_tensors
        return grad * grad_users, grad * grad_right, grad * grad_others, None, None, None


def softmax_loss(
    users: Tensor, table: Tensor, targets: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return the mean cross-entropy of the softmax over all items.

    Users are vectors (N, D), one for each target, the table (items + 1, D) with padding in row 0,
    targets int64 (N,), from 1. ``dtype`` is that of logits and products: bfloat16 is faster on a
    CPU that multiplies it.
    """
    loss: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        users, functional.embedding(targets, table), table[1:], targets - 1, 0.0, dtype
    )
    return loss


def sampled_softmax_loss(
    users: Tensor,
    table: Tensor,
    targets: Tensor,
    negatives: Tensor,
    items: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return the mean cross-entropy of each target against shared negatives.

    A negative represents items / negatives items, the log of which is added to its logit: the logQ
    correction of Bengio and Senecal, "Adaptive importance sampling", 2008, for uniform sampling.
    A target among the negatives does not compete with itself.

    Users are (N, D), targets int64 (N,) and negatives int64 (M,) rows of the table (R, D); the
    negatives are distinct, sorted and drawn uniformly from all ``items``.
    """
    place = torch.searchsorted(negatives, targets).clamp_(max=len(negatives) - 1)
    column = torch.where(negatives[place] == targets, place, -1)
    shift = math.log(items / len(negatives))
    right, others = functional.embedding(targets, table), functional.embedding(negatives, table)
    loss: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        users, right, others, column, shift, dtype
    )
    return loss


def gbce_loss(
    users: Tensor, table: Tensor, targets: Tensor, negatives: Tensor, items: int, calibration: float
) -> Tensor:
    """Return the mean generalised binary cross-entropy.

    -log(sigmoid(s+)^beta) - sum log(1 - sigmoid(s-)), beta = a (t (1 - 1 / a) + 1 / a), where a is
    the share of items drawn and t the calibration in [0, 1]; t = 0 is plain BCE, as in SASRec.
    Source: Petrov and Macdonald, "gSASRec", RecSys 2023, equation 7.

    Users are (N, D), targets int64 (N,) and negatives int64 (N, M) rows of the table (R, D).
    """
    share = min(1.0, negatives.shape[1] / max(1, items - 1))
    beta = share * (calibration * (1 - 1 / share) + 1 / share)
    right = (users * functional.embedding(targets, table)).sum(dim=1)
    wrong = torch.einsum("nd,nmd->nm", users, functional.embedding(negatives, table))
    loss = -beta * functional.logsigmoid(right) - functional.logsigmoid(-wrong).sum(dim=1)
    return loss.mean()


def rating_loss(users: Tensor, table: Tensor, targets: Tensor, ratings: Tensor) -> Tensor:
    """Return the mean squared error of the predicted ratings <user, e(target)>.

    Users are (N, D), the table (items + 1, D), targets int64 (N,), ratings less their mean (N,).
    """
    predicted = (users * functional.embedding(targets, table)).sum(dim=-1)
    return (predicted - ratings).square().mean()
