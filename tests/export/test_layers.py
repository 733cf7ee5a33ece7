"""Weights that were worked out for serving stand for the layers that they were made of."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ranklet.bundle.manifest import NEVER
from ranklet_export.hidden import LOWEST_SCORE
from ranklet_export.layers import ServedModel, one_query_layers
from ranklet_training.model.attention import attention, rotary
from ranklet_training.model.model import Block
from ranklet_training.runs.checkpoint import Model

TOLERANCE = 1e-5  # of activations around 1
SEED: dict[str, Any] = {"kind": "seed", "heads": 1}


def first_block(model: Model) -> Block:
    block = next(iter(model.each_block()))
    assert isinstance(block, Block)
    return block


def assert_close(found: Tensor, expected: Tensor) -> None:
    difference = float((found - expected).abs().max())
    assert difference < TOLERANCE, f"off by {difference:.1e}"


@pytest.mark.parametrize("settings", [{"heads": 1}, {"heads": 4}, SEED], ids=str)
def test_the_layers_of_one_query_attend_as_query_key_value_and_output_do(
    settings: dict[str, Any], make_model: Callable[..., Model]
) -> None:
    model = make_model(**settings)
    block, heads = model if settings == SEED else first_block(model), model.config.heads
    asking, events = torch.randn(1, 1, 16), torch.randn(1, 9, 16)

    def split(x: Tensor) -> Tensor:
        return x.view(1, -1, heads, x.shape[-1] // heads).transpose(1, 2)  # (1, H, T, d)

    key, value = (split(part) for part in block.key_value(events).chunk(2, dim=-1))
    attended = attention(split(block.query(asking)), key, value)
    expected = block.output(attended.transpose(1, 2).flatten(2))
    query, output = one_query_layers(block, heads)
    scores = split(query(asking)) @ events[:, None].mT * (16 // heads) ** -0.5
    attended = scores.softmax(dim=-1) @ events[:, None]  # (1, H, 1, D)
    assert_close(output(attended.transpose(1, 2).flatten(2)), expected)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, ["queries", "keys", "values"]),
        ({"heads": 1, "block": "gated"}, ["queries", "keys", "values", "gates"]),
        ({"blocks": 1}, []),
        ({"time_gaps": True}, []),
        ({"kinds": 2}, []),
        (SEED, []),
    ],
    ids=str,
)
def test_rows_hold_what_the_first_block_makes_of_an_item_alone(
    settings: dict[str, Any], names: list[str], make_model: Callable[..., Model]
) -> None:
    model = make_model(**settings)
    rows = ServedModel(model, with_rows=True).rows
    assert list(rows) == names
    assert not ServedModel(model, with_rows=False).rows
    if names:
        block, table = first_block(model), model.table() * 4  # the root of the width
        normed = block.attention_norm(table)
        key, value = block.key_value(normed).chunk(2, dim=-1)
        # Weights add up to 1: with one head, values may go through the output layer first.
        expected = [block.query(normed), key, block.output(value) if block.heads == 1 else value]
        if block.attention_gate is not None:
            expected.append(block.attention_gate(table).sigmoid())
        for name, part in zip(names, expected, strict=True):
            assert_close(torch.from_numpy(rows[name]), part)


@pytest.mark.parametrize("kinds", [0, 2])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0])
def test_all_hidden_events_together_weigh_less_than_float32_can_tell(
    spread: float, heads: int, kinds: int, make_model: Callable[..., Model]
) -> None:
    model = make_model(heads=heads, blocks=3, kinds=kinds)
    block = first_block(model)
    block.query.weight.mul_(spread)
    served = ServedModel(model, with_rows=True)
    entering = torch.from_numpy(served.table)
    if kinds:  # every item with every kind
        entering = (entering[:, None] + 8 * model.kind).flatten(0, 1)
    normed = block.attention_norm(entering)
    query, key = (
        block.split_heads(part[None])[0].double()  # (H, N, d)
        for part in (block.query(normed), block.key_value(normed).chunk(2, dim=-1)[0])
    )
    itself = (query * key).sum(dim=-1)
    gap = -math.inf
    for steps in range(12):  # between the two events
        positions = torch.full((1, key.shape[1]), steps)
        turned = rotary(key[None], model.cos, model.sin, positions)[0]
        gap = max(gap, float((query @ turned.mT - itself[..., None]).max()))
    gap /= key.shape[-1] ** 0.5
    assert gap > 0
    hidden, of_second = served.hidden
    assert model.config.max_length * math.exp(hidden + gap) < torch.finfo(torch.float32).eps
    assert hidden >= LOWEST_SCORE
    assert of_second == NEVER  # what enters it is not known beforehand


def test_a_model_whose_scores_spread_too_far_or_know_times_hides_by_the_lowest_score(
    make_model: Callable[..., Model],
) -> None:
    assert ServedModel(make_model(time_gaps=True), with_rows=True).hidden == [NEVER]
    model = make_model()
    first_block(model).query.weight.mul_(300)
    assert ServedModel(model, with_rows=True).hidden == [NEVER]


def test_a_model_is_not_changed_by_its_layout(make_model: Callable[..., Model]) -> None:
    model = make_model(heads=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ServedModel(model, with_rows=True)
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor, before[name], err_msg=name)
