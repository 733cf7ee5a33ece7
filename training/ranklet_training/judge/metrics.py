"""Hit rate, NDCG and MRR from the rank of the one target of each case.

Ranks count from 1. Ties are pessimistic: a target ranks behind all items of the same score, so a
constant model gets nothing.
"""

import numpy as np
from numpy.typing import NDArray

CUTOFFS = (5, 10, 20)
MISS = 2**62  # rank of a target that is never shown, however few items there are
Metrics = dict[str, float]
Ranks = NDArray[np.int64] | NDArray[np.float64]


def hit_rate(ranks: Ranks, k: int) -> float:
    """Return HR@k, the share of targets in the first k, equal to recall@k with one target."""
    return float((ranks <= k).mean())


def ndcg(ranks: Ranks, k: int) -> float:
    """Return NDCG@k, the mean of 1 / log2(1 + rank), 0 beyond k; the ideal gain is 1.

    Source: Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", 2002.
    """
    return float(np.where(ranks <= k, 1 / np.log2(1.0 + ranks), 0).mean())


def mrr(ranks: Ranks, k: int) -> float:
    """Return MRR@k, the mean of 1 / rank, 0 beyond k."""
    return float(np.where(ranks <= k, 1 / ranks, 0).mean())


def all_metrics(ranks: Ranks) -> Metrics:
    """Return every metric at every cut-off, by name, such as ``NDCG@10``."""
    functions = {"HR": hit_rate, "NDCG": ndcg, "MRR": mrr}
    return {f"{name}@{k}": f(ranks, k) for name, f in functions.items() for k in CUTOFFS}


def ranks_of_targets(
    scores: NDArray[np.float32], targets: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Return the pessimistic, mean and shown rank of the target of each row, (B,).

    The pessimistic rank is 1 + better items + equal items, the mean rank counts half of the latter,
    and the shown rank those of a lower index, as the runtime orders them. Scores are (B, items +
    1), -inf for padding (column 0) and masked items. Targets are columns (B,), 0 if outside the
    catalogue; such a target and a masked one are ``MISS``. FloatingPointError: a score is NaN.
    """
    if np.isnan(scores.max()):  # a maximum is NaN if any number is
        row, item = np.argwhere(np.isnan(scores))[0]
        raise FloatingPointError(f"the score of item index {item} is NaN in row {row}")
    target_scores = np.take_along_axis(scores, targets[:, None], axis=1)
    # The count includes the target itself: the 1 of the rank.
    ranks = np.count_nonzero(scores >= target_scores, axis=1)
    above = np.count_nonzero(scores > target_scores, axis=1)
    is_earlier = np.arange(scores.shape[1]) < targets[:, None]
    shown = above + 1 + np.count_nonzero((scores == target_scores) & is_earlier, axis=1)
    means, is_missed = (above + 1 + ranks) / 2, np.isneginf(target_scores[:, 0]) | (targets == 0)
    ranks[is_missed] = means[is_missed] = shown[is_missed] = MISS
    return ranks, means, shown
