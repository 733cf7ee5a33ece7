"""Metrics equal closed forms and a slow reference that sorts."""

import math

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ranklet_training.judge.metrics import (
    MISS,
    all_metrics,
    hit_rate,
    mrr,
    ndcg,
    ranks_of_targets,
)

EXACT = 1e-12  # float64 sums in another order


def scores_of(*rows: list[float]) -> NDArray[np.float32]:
    """Put the padding column before scores of items 1, 2, ..."""
    return np.array([[-np.inf, *row] for row in rows], dtype=np.float32)


@pytest.mark.parametrize(
    ("scores", "target", "rank"),
    [
        ([0.3, 0.9, 0.1, 0.5], 2, 1),
        ([0.3, 0.9, 0.1, 0.5], 3, 4),
        ([0.5, 0.5, 0.5, 0.1], 1, 3),  # behind those with its score
        ([0.2, 0.1, 0.3], 0, MISS),  # the catalogue lacks it
        ([0.2, -np.inf, 0.3], 2, MISS),  # it is masked
        ([-np.inf, 0.1, -np.inf], 2, 1),  # masked items do not count
    ],
)
def test_a_rank_counts_the_items_above_and_beside(
    scores: list[float], target: int, rank: int
) -> None:
    assert ranks_of_targets(scores_of(scores), np.array([target]))[0].tolist() == [rank]


def test_mean_and_shown_ranks_stand_in_the_middle_and_at_the_place_of_a_tie() -> None:
    scores, targets = scores_of([0.5, 0.5, 0.9, 0.5]), np.array([2])
    assert [ranks.tolist() for ranks in ranks_of_targets(scores, targets)] == [[4], [3], [3]]


def test_a_model_that_gives_all_items_one_score_hits_nothing() -> None:
    ranks = ranks_of_targets(scores_of(*[[1.0] * 30] * 4), np.array([1, 2, 15, 30]))[0]
    assert set(all_metrics(ranks).values()) == {0.0}


def test_nan_is_refused_by_row_and_item() -> None:
    scores = scores_of([0.2, 0.1], [0.2, np.nan])
    with pytest.raises(FloatingPointError, match="item index 2 is NaN in row 1"):
        ranks_of_targets(scores, np.array([1, 1]))


def test_metrics_by_hand() -> None:
    assert hit_rate(np.array([1, 5, 6, 100]), 5) == 0.5
    expected = (1 + 1 / math.log2(4) + 0) / 3
    assert ndcg(np.array([1, 3, 11]), 10) == pytest.approx(expected, abs=EXACT)
    assert mrr(np.array([1, 4, 11]), 10) == pytest.approx((1 + 1 / 4) / 3, abs=EXACT)


@pytest.mark.parametrize("k", [5, 10, 20])
def test_closed_forms_when_every_rank_occurs_once(k: int) -> None:
    items = 50
    ranks = np.arange(1, items + 1)
    assert hit_rate(ranks, k) == pytest.approx(k / items, abs=EXACT)
    harmonic = sum(1 / r for r in range(1, k + 1))
    assert mrr(ranks, k) == pytest.approx(harmonic / items, abs=EXACT)
    gains = sum(math.log(2) / math.log(1 + r) for r in range(1, k + 1))
    assert ndcg(ranks, k) == pytest.approx(gains / items, abs=EXACT)


def test_every_metric_at_every_cutoff_has_a_name() -> None:
    names = {f"{m}@{k}" for m in ("HR", "NDCG", "MRR") for k in (5, 10, 20)}
    assert set(all_metrics(np.array([1]))) == names


def slow_metrics(row: list[float], target: int) -> dict[str, float]:
    """Sort best first, the target behind those beside it, and look where it stands."""
    order = sorted(range(1, len(row) + 1), key=lambda item: (-row[item - 1], item == target))
    place = order.index(target) + 1
    result = {}
    for k in (5, 10, 20):
        hit = target in order[:k]
        result[f"HR@{k}"] = float(hit)
        result[f"NDCG@{k}"] = math.log(2) / math.log(place + 1) if hit else 0.0
        result[f"MRR@{k}"] = 1 / place if hit else 0.0
    return result


@given(st.data())
def test_metrics_equal_a_reference_that_sorts(data: st.DataObject) -> None:
    items = data.draw(st.integers(1, 40))
    # Few different values, so that ties are common.
    row = st.lists(st.integers(-3, 3).map(float), min_size=items, max_size=items)
    rows = data.draw(st.lists(row, min_size=1, max_size=5))
    targets = [data.draw(st.integers(1, items)) for _ in rows]
    found = all_metrics(ranks_of_targets(scores_of(*rows), np.array(targets))[0])
    slow = [slow_metrics(row, target) for row, target in zip(rows, targets, strict=True)]
    for name, value in found.items():
        expected = sum(one[name] for one in slow) / len(slow)
        assert value == pytest.approx(expected, abs=EXACT), name


def test_metrics_equal_those_of_ir_measures() -> None:
    random = np.random.default_rng(0)
    scores = random.permutation(20 * 40).reshape(20, 40).astype(np.float32)  # no ties
    targets = random.integers(1, 41, 20)
    rows = enumerate(scores.tolist())
    run = {str(q): {str(i): s for i, s in enumerate(row, 1)} for q, row in rows}
    right = {str(q): {str(i): 1} for q, i in enumerate(targets.tolist())}
    found = all_metrics(ranks_of_targets(scores_of(*scores.tolist()), targets)[0])
    measures = {"HR": ir_measures.Success, "NDCG": ir_measures.nDCG, "MRR": ir_measures.RR}
    for name, value in found.items():
        kind, k = name.split("@")
        measure = measures[kind] @ int(k)
        assert value == pytest.approx(ir_measures.calc_aggregate([measure], right, run)[measure])
