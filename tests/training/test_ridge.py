"""The map from features to vectors is the closed form of ridge regression."""

import numpy as np
import pytest
import torch

from ranklet.item_features import Ragged
from ranklet_training.model.ridge import PENALTY, fit_map

ITEMS, WIDTH = 30, 5


@pytest.mark.parametrize("count", [8, 200])
def test_the_map_is_the_closed_form(count: int) -> None:
    draw = np.random.default_rng(count)
    dense = draw.normal(size=(ITEMS, count)) * (draw.random((ITEMS, count)) < 0.3)
    dense[:, 0], dense[3] = 0, 0  # code 0 is no feature, and item 3 has none
    rows, events = draw.normal(size=(ITEMS, WIDTH)), draw.integers(0, 80, ITEMS)
    item, code = np.nonzero(dense)
    features = Ragged(code, dense[item, code].astype(np.float32), np.cumsum((dense != 0).sum(1)))
    found = fit_map(features, count, torch.from_numpy(rows).float(), events)

    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    share = np.diag(np.minimum(events, 50) ** 0.5)
    mean = share.diagonal() @ units / share.diagonal().sum()
    left = dense.T @ share @ dense + PENALTY * np.eye(count)
    expected = np.linalg.solve(left, dense.T @ share @ (units - mean))
    assert np.abs(found.mean.numpy() - mean).max() < 1e-6
    assert np.abs(found.weights.numpy() - expected).max() < 1e-3  # TOLERANCE is of the residual
    assert not found.weights[0].any()
    directions = found.directions(features).numpy()
    placed = mean + dense @ expected
    placed /= np.linalg.norm(placed, axis=1, keepdims=True)
    assert np.abs(directions - placed).max() < 1e-3


def test_items_without_features_are_all_the_mean() -> None:
    features = Ragged(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(4, np.int64))
    found = fit_map(features, 1, torch.eye(4), np.ones(4, np.int64))
    assert torch.equal(found.weights, torch.zeros(1, 4))
    assert torch.allclose(found.directions(features), torch.full((4, 4), 0.5))
