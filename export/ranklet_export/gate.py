"""Quality gate of a precision: the loss of NDCG@10 on held-out histories."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ranklet.errors import PrecisionError
from ranklet.ranker import Ranker
from ranklet_training.data.sequences import pad
from ranklet_training.judge.metrics import hit_rate, ndcg
from ranklet_training.runs.checkpoint import Model, Questions

TOP = 10
BATCH = 256
FEWEST, MOST_SCORES = 64, 1 << 25  # questions, and scores of all together: some seconds


def check_ranking(
    ranker: Ranker,
    model: Model,
    table: Tensor,
    questions: Questions,
    allow_drop: float,
    most_scores: int = MOST_SCORES,
) -> dict[str, Any]:
    """Compare a bundle with its torch model in full precision, without seen items.

    Args:
        ranker: The ranker of the bundle.
        model: The model in evaluation mode.
        table: Its item table, (items + 1, D).
        questions: Histories and, if they were held out, the items that came next.
        allow_drop: The largest share of NDCG@10 that the bundle may lose.
        most_scores: Limit of the scores of all questions together.

    Returns:
        ``questions``, ``overlap`` (share of the model's 10 best that the bundle has, too),
        ``same`` (share of questions with the same 10 items), ``proven`` (share of
        ``Ranking.exact``) and, with targets, NDCG@10 and HR@10 of both.

    Raises:
        PrecisionError: NDCG@10 drops by more; without targets, the overlap does.
    """
    count = min(len(questions.histories), max(FEWEST, most_scores // len(table)))
    histories, k = questions.histories[:count], min(TOP, len(ranker))
    expected, found = np.zeros((2, count, k), dtype=np.int64)
    shared, proven = np.zeros(count), 0
    for begin in range(0, count, BATCH):
        part = histories[begin : begin + BATCH]
        ids = [ranker.vocabulary.ids(row) for row in part]
        kinds = questions.kinds and questions.kinds[begin : begin + BATCH]
        names = kinds and [np.array([None, *ranker.kinds])[row] for row in kinds]
        rankings = ranker.rank_batch(ids, kinds=names, k=k, exclude_seen=True, exact=True)
        users = _users(model, table, part, kinds, ranker.manifest.objective)
        scored = zip(part, rankings, users, strict=True)
        for row, (history, ranking, user) in enumerate(scored, begin):
            scores = table @ user
            scores[0] = -torch.inf
            scores[history] = -torch.inf
            values, items = scores.topk(k)
            items, values = items[values > -torch.inf], values[values > -torch.inf]
            expected[row, : len(items)] = items.numpy()
            found[row, : len(ranking.items)] = ranker.vocabulary.index(ranking.items)
            # An item that scores as the last of the best is one of them, whichever is shown.
            is_best = scores[found[row, : len(items)]] >= values[-1:]
            shared[row] = is_best.float().mean().item() if len(items) else 1.0
            proven += ranking.exact
    figures: dict[str, Any] = {
        "questions": count,
        "overlap": float(shared.mean()),
        "same": float((shared == 1).mean()),
        "proven": proven / count,
    }
    drop = 1 - figures["overlap"]
    if questions.targets is not None:
        targets = questions.targets[:count]
        for name, items_shown in (("fp32", expected), (ranker.manifest.precision, found)):
            ranks = _ranks(items_shown, targets)
            figures[name] = {"NDCG@10": ndcg(ranks, TOP), "HR@10": hit_rate(ranks, TOP)}
        before = figures["fp32"]["NDCG@10"]
        drop = 1 - figures[ranker.manifest.precision]["NDCG@10"] / before if before else 0.0
    figures["drop"] = drop
    if drop > allow_drop:
        has_targets = questions.targets is not None
        what, kind = ("NDCG@10", "held-out") if has_targets else ("the best 10", "drawn")
        raise PrecisionError(
            f"{ranker.manifest.precision} loses {drop:.2%} of {what} on {count} {kind} "
            f"histories, more than {allow_drop:.2%}: choose --precision fp32, or "
            f"--allow-drop {math.ceil(drop * 1e4) / 1e4:.4f}"
        )
    return figures


def _users(
    model: Model,
    table: Tensor,
    histories: list[NDArray[np.int64]],
    kinds: list[NDArray[np.int64]] | None,
    objective: NDArray[np.float32],
) -> Tensor:
    """Return the torch user vectors of histories with unknown times, (B, D)."""
    padded = torch.from_numpy(pad(histories, model.config.max_length))
    gaps = (torch.zeros_like(padded), torch.zeros_like(padded[:, 0]))
    of_events = torch.zeros_like(padded)
    if kinds is not None:
        of_events = torch.from_numpy(pad(kinds, model.config.max_length))
    weights = torch.from_numpy(objective).expand(len(histories), -1)
    with torch.no_grad():
        return model.serve(
            padded,
            table,
            gaps if model.config.time_gaps else None,
            (of_events, weights) if model.kinds else None,
        )


def _ranks(items: NDArray[np.int64], targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rank of each target among the items shown, TOP + 1 where it is missing."""
    is_right = items == targets[:, None]
    return np.where(is_right.any(axis=1), is_right.argmax(axis=1) + 1, TOP + 1)
