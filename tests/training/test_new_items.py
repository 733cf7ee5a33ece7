"""New items are pushed in where their features say which items follow, and nowhere else."""

from typing import Any

import numpy as np
import pytest
import torch

from ranklet.attributes import Attributes
from ranklet.item_features import ItemFeatures, learn
from ranklet_training.judge.new_items import BEHIND, CatalogueFeatures, measure_new_items
from ranklet_training.model.model import ModelConfig, SequenceModel
from ranklet_training.runs.checkpoint import Questions

ITEMS, WIDTH = 200, 32


def measure(count: int, groups: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Measure a model whose users like the group of their last item, one of ``count``.

    The category of each item is given, which may be another group.
    """
    draw = np.random.default_rng(0)
    model = SequenceModel(ModelConfig(width=WIDTH, blocks=0, max_length=4), ITEMS)
    model.init_weights()
    own = np.arange(ITEMS) % count
    centres = draw.normal(size=(count, WIDTH))
    with torch.no_grad():
        rows = centres[own] + 0.3 * draw.normal(size=(ITEMS, WIDTH))
        model.items.item[1:] = torch.from_numpy(rows).float()
    columns = {"group": groups.tolist()}
    attributes = Attributes.empty({"group": "category"})
    attributes = learn(attributes.with_items(columns, np.arange(1, ITEMS + 1), ITEMS), columns)
    features = ItemFeatures(attributes)
    catalogue = CatalogueFeatures(
        attributes, features.encode(columns, ITEMS), torch.zeros(features.count, WIDTH)
    )
    last = draw.integers(0, ITEMS, 2000)
    targets = (
        last + count * draw.integers(1, ITEMS // count, len(last))
    ) % ITEMS  # of the same group
    questions = Questions([np.array([item + 1]) for item in last], targets + 1)
    events = np.full(ITEMS, 30)
    return measure_new_items(
        model.eval().requires_grad_(requires_grad=False), catalogue, events, questions, masked=True
    )


def test_features_that_tell_what_follows_push_new_items_in() -> None:
    found = measure(20, np.arange(ITEMS) % 20)
    figures = found["figures"]
    assert found["bias"] > BEHIND
    assert figures["all_NDCG@10"]["shown"] > figures["all_NDCG@10"]["not_shown"]
    assert figures["cold"]["HR@10"] > 0.2
    assert figures["held_out_items"] == ITEMS // 10


@pytest.mark.parametrize("seed", [1, 2])
def test_features_without_a_meaning_keep_new_items_behind(seed: int) -> None:
    found = measure(5, np.random.default_rng(seed).integers(0, 5, ITEMS))
    assert (found["bias"], found["in_histories"]) == (BEHIND, False)
