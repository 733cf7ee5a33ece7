"""Hit rate, NDCG and MRR from the rank of the one relevant item of each question.

Ranks count from 1. Ties are pessimistic: an item that shares its score with others stands behind
them, so a model that gives all items one score gets nothing.
"""

import numpy as np
from numpy.typing import NDArray

CUTOFFS = (5, 10, 20)
Metrics = dict[str, float]


def hit_rate(ranks: NDArray[np.int64], k: int) -> float:
    """Return the share of questions whose item is among the first k (equal to recall@k here)."""
    return float((ranks <= k).mean())


def ndcg(ranks: NDArray[np.int64], k: int) -> float:
    """Return the mean of 1 / log2(1 + rank), 0 beyond k; the ideal gain is 1 with one item.

    Source: Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", 2002.
    """
    return float(np.where(ranks <= k, 1 / np.log2(1.0 + ranks), 0).mean())


def mrr(ranks: NDArray[np.int64], k: int) -> float:
    """Return the mean of 1 / rank, 0 beyond k."""
    return float(np.where(ranks <= k, 1 / ranks, 0).mean())


def all_metrics(ranks: NDArray[np.int64]) -> Metrics:
    """Return every metric at every cut-off, by names like ``NDCG@10``."""
    functions = {"HR": hit_rate, "NDCG": ndcg, "MRR": mrr}
    return {f"{name}@{k}": f(ranks, k) for name, f in functions.items() for k in CUTOFFS}


def pessimistic_ranks(scores: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rank of each row's target: 1 + those above it + those beside it.

    Args:
        scores: (B, items + 1); column 0 is padding and must be -inf, as must be masked items.
        targets: Column of the right item, (B,); 0 where the catalogue lacks it.

    Raises:
        FloatingPointError: A score is NaN; a rank among NaNs would mean nothing.
    """
    if np.isnan(scores).any():
        row, item = np.argwhere(np.isnan(scores))[0]
        raise FloatingPointError(f"the score of item index {item} is NaN in row {row}")
    target_scores = np.take_along_axis(scores, targets[:, None], axis=1)
    # The target is one of those that are at least as good as itself, which makes up for the 1.
    ranks: NDArray[np.int64] = (scores >= target_scores).sum(axis=1)
    ranks[targets == 0] = scores.shape[1]
    return ranks
