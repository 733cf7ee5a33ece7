"""The map from features to vectors is the closed form of ridge regression."""

import numpy as np
import pytest
import torch

from ranklet.item_features import Ragged
from ranklet_training.model import ridge
from ranklet_training.model.ridge import OWN_LENGTH, PENALTY, fit_map

ITEMS, WIDTH = 30, 5


@pytest.mark.parametrize("count", [8, 200])
def test_the_map_is_the_closed_form(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ridge, "TOLERANCE", 1e-6)
    monkeypatch.setattr(ridge, "STEPS", 100)
    draw = np.random.default_rng(count)
    dense = draw.normal(size=(ITEMS, count)) * (draw.random((ITEMS, count)) < 0.3)
    dense[:, 0], dense[3] = 0, 0  # code 0 is no feature, and item 3 has none
    rows, events = draw.normal(size=(ITEMS, WIDTH)), draw.integers(0, 80, ITEMS)
    item, code = np.nonzero(dense)
    features = Ragged(code, dense[item, code].astype(np.float32), np.cumsum((dense != 0).sum(1)))
    found = fit_map(features, torch.from_numpy(rows).float(), events, torch.zeros(count, WIDTH))

    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    share = np.diag(np.minimum(events, 50) ** 0.5)
    mean = share.diagonal() @ units / share.diagonal().sum()
    left = dense.T @ share @ dense + PENALTY * np.eye(count)
    expected = np.linalg.solve(left, dense.T @ share @ (units - mean))
    assert np.abs(found.mean.numpy() - mean).max() < 1e-6
    assert np.abs(found.weights.numpy() - expected).max() < 1e-4
    assert not found.weights[0].any()
    directions = found.directions(features).numpy()
    placed = mean + dense @ expected
    placed /= np.linalg.norm(placed, axis=1, keepdims=True)
    assert np.abs(directions - placed).max() < 1e-3


def test_items_without_features_are_all_the_mean() -> None:
    features = Ragged(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(4, np.int64))
    found = fit_map(features, torch.eye(4), np.ones(4, np.int64), torch.zeros(1, 4))
    assert torch.equal(found.weights, torch.zeros(1, 4))
    assert torch.allclose(found.directions(features), torch.full((4, 4), 0.5))


def test_embeddings_of_the_model_add_a_row_on_average() -> None:
    draw = np.random.default_rng(1)
    features = Ragged(np.array([1, 2]), np.ones(2, np.float32), np.array([1, 2]))
    own = torch.from_numpy(draw.normal(size=(3, WIDTH))).float()
    rows, events = torch.from_numpy(draw.normal(size=(2, WIDTH))).float(), np.array([4, 16])
    added = (
        fit_map(features, rows, events, own).weights
        - fit_map(features, rows, events, torch.zeros_like(own)).weights
    )
    typical = (2 * own[1].norm() + 4 * own[2].norm()) / 6  # weighed by the root of the events
    assert torch.allclose(added, own * OWN_LENGTH / typical, atol=1e-6)
