"""Weights that were worked out for serving stand for the layers that they were made of."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ranklet.bundle.manifest import NEVER
from ranklet_export.layers import (
    HIDDEN_BELOW,
    LOWEST_SCORE,
    ServedModel,
    hidden_score,
    one_query_layers,
    served_key_value,
)
from ranklet_training.model.attention import attention, rotary
from ranklet_training.model.model import Block
from ranklet_training.runs.checkpoint import Model

TOLERANCE = 1e-5  # of activations around 1
ITEMS = 40


def first_block(model: Model) -> Block:
    block = next(iter(model.each_block()))
    assert isinstance(block, Block)
    return block


def assert_close(found: Tensor, expected: Tensor) -> None:
    difference = float((found - expected).abs().max())
    assert difference < TOLERANCE, f"off by {difference:.1e}"


@pytest.mark.parametrize("settings", [{"heads": 1}, {"heads": 4}, {"kind": "seed", "heads": 1}])
def test_the_layers_of_one_query_attend_as_query_key_value_and_output_do(
    settings: dict[str, Any], make_model: Callable[..., Model]
) -> None:
    model = make_model(**settings)
    block, heads = (
        model if settings.get("kind") == "seed" else first_block(model),
        model.config.heads,
    )
    asking, events = torch.randn(1, 1, 16), torch.randn(1, 9, 16)

    def split(x: Tensor, parts: int) -> Tensor:
        return x.view(1, -1, parts, x.shape[-1] // parts).transpose(1, 2)  # (1, H, T, d)

    key, value = (split(part, heads) for part in block.key_value(events).chunk(2, dim=-1))
    attended = attention(split(block.query(asking), heads), key, value)
    expected = block.output(attended.transpose(1, 2).flatten(2))
    query, output = one_query_layers(block, heads)
    scores = split(query(asking), heads) @ events[:, None].mT * (16 // heads) ** -0.5
    attended = scores.softmax(dim=-1) @ events[:, None]  # (1, H, 1, D)
    assert_close(output(attended.transpose(1, 2).flatten(2)), expected)


def test_values_of_one_head_hold_the_output_layer(make_model: Callable[..., Model]) -> None:
    block, events = first_block(make_model(heads=1)), torch.randn(9, 16)
    weights = torch.rand(3, 9).softmax(dim=-1)
    key, value = block.key_value(events).chunk(2, dim=-1)
    served_key, served_value = served_key_value(block)(events).chunk(2, dim=-1)
    assert torch.equal(served_key, key)
    assert_close(weights @ served_value, block.output(weights @ value))


ROWS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["queries", "keys", "values"]),
    ({"block": "gated"}, ["queries", "keys", "values", "gates"]),
    ({"blocks": 0}, []),
    ({"blocks": 1}, []),
    ({"time_gaps": True}, []),
    ({"kind": "seed", "heads": 1}, []),
]


@pytest.mark.parametrize(("settings", "names"), ROWS, ids=lambda value: str(value))
def test_rows_hold_what_the_first_block_makes_of_an_item_alone(
    settings: dict[str, Any], names: list[str], make_model: Callable[..., Model]
) -> None:
    model = make_model(**settings)
    served = ServedModel(model, with_rows=True)
    assert list(served.rows) == names
    assert not ServedModel(model, with_rows=False).rows
    if names:
        block, table = first_block(model), model.table() * 4  # the root of the width
        normed = block.attention_norm(table)
        expected = [block.query(normed), *block.key_value(normed).chunk(2, dim=-1)]
        if "gates" in names:
            expected.append(block.attention_gate(table).sigmoid())
        for name, part in zip(names, expected, strict=True):
            assert_close(torch.from_numpy(served.rows[name]), part)


@pytest.mark.parametrize(
    "settings", [{"kind": "seed", "heads": 1}, {"scoring": "dot"}, {"temperature": 0.5}], ids=str
)
def test_the_scale_of_users_undoes_that_of_rows(
    settings: dict[str, Any], make_model: Callable[..., Model]
) -> None:
    model = make_model(**settings)
    served, x = ServedModel(model, with_rows=False), torch.randn(3, 16)
    if served.user_scale is None:
        assert_close(torch.from_numpy(served.table), model.table())
        return
    user = model.norm(x)
    if model.config.scoring == "cosine":
        user = user / user.square().mean(dim=-1, keepdim=True).sqrt()
    scores = user * served.user_scale @ torch.from_numpy(served.table).T
    assert_close(scores, model.user(x) @ model.table().T)


def test_a_seed_model_does_not_know_the_order_of_events(make_model: Callable[..., Model]) -> None:
    served = ServedModel(make_model(kind="seed", heads=1), with_rows=False)
    assert served.bias.shape == (1, 70)
    assert not served.bias.any()


# What hides events from the first block


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0])
def test_all_hidden_events_together_weigh_less_than_float32_can_tell(
    spread: float, heads: int, make_model: Callable[..., Model]
) -> None:
    model = make_model(heads=heads)
    block = first_block(model)
    block.query.weight.mul_(spread)
    served = ServedModel(model, with_rows=True)
    normed = block.attention_norm(torch.from_numpy(served.table))
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
    hidden = served.hidden[0]
    assert model.config.max_length * math.exp(hidden + gap) < torch.finfo(torch.float32).eps
    assert hidden >= LOWEST_SCORE


@pytest.mark.parametrize("settings", [{}, {"heads": 1}], ids=str)
def test_a_model_whose_scores_spread_too_far_hides_by_the_lowest_score(
    settings: dict[str, Any], make_model: Callable[..., Model]
) -> None:
    model = make_model(**settings)
    first_block(model).query.weight.mul_(300)
    assert ServedModel(model, with_rows=True).hidden[0] == NEVER


@pytest.mark.parametrize("settings", [{"blocks": 3}, {"time_gaps": True}], ids=str)
def test_only_a_first_block_that_knows_the_item_alone_hides_by_less(
    settings: dict[str, Any], make_model: Callable[..., Model]
) -> None:
    hidden = ServedModel(make_model(**settings), with_rows=True).hidden
    assert [score == NEVER for score in hidden] == (
        [True] if "time_gaps" in settings else [False, True]
    )


def test_the_more_events_may_be_hidden_the_lower_is_their_score(
    make_model: Callable[..., Model],
) -> None:
    model = make_model(heads=1)
    table = model.table() * 4
    one, many = (hidden_score(first_block(model), table, events) for events in (1, 1000))
    assert one is not None
    assert many is not None
    assert one <= -HIDDEN_BELOW
    assert one - many in (6, 7)  # the logarithm of 1000 is 6.9


def test_a_model_is_not_changed_by_its_layout(make_model: Callable[..., Model]) -> None:
    model = make_model(heads=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ServedModel(model, with_rows=True)
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor, before[name], err_msg=name)
