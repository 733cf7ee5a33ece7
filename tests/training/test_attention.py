"""Attention and what knows places equal their formulas, written out slowly in float64."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ranklet_training.model.attention import (
    WAVES,
    RelativeBias,
    attention,
    biased_attention,
    local_attention,
    rotary,
    rotary_tables,
)

TABLES = 1e-6  # the tables of rotations are float32
EXACT = 1e-12  # float64 sums in another order
BATCH, HEADS, LENGTH, WIDTH = 2, 3, 5, 4


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def query_key_value(length: int = LENGTH) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (draw(BATCH, HEADS, length, WIDTH, seed=seed) for seed in range(3))
    return q, k, v


def slow_attention(query: Tensor, key: Tensor, value: Tensor, allowed: list[list[bool]]) -> Tensor:
    """softmax(QK^T / sqrt(d))V, one number at a time; allowed[t][s]: query t looks at key s."""
    result = torch.zeros_like(query)
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            for t in range(query.shape[2]):
                weights = []
                for s in range(key.shape[2]):
                    pairs = zip(query[b, h, t].tolist(), key[b, h, s].tolist(), strict=True)
                    dot = sum(q * k for q, k in pairs)
                    seen = allowed[t][s]
                    weights.append(math.exp(dot / math.sqrt(query.shape[3])) if seen else 0.0)
                for s, weight in enumerate(weights):
                    result[b, h, t] += weight / sum(weights) * value[b, h, s]
    return result


def largest_difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@pytest.mark.parametrize("window", [0, 1, 2, 5, 20])
@pytest.mark.parametrize("length", [1, 8, 9, 17, 18])
def test_local_attention_is_the_closed_form(length: int, window: int) -> None:
    query, key, value = (x.requires_grad_() for x in query_key_value(length))
    allowed = [[0 <= t - s < (window or length) for s in range(length)] for t in range(length)]
    with torch.no_grad():
        expected = slow_attention(query, key, value, allowed)
    found = local_attention(query, key, value, window)
    assert largest_difference(found.detach(), expected) < EXACT
    mask = torch.tensor(allowed)
    masked = attention(query, key, value, mask=mask)
    gradients, others = (
        torch.autograd.grad(x.square().sum(), (query, key, value)) for x in (found, masked)
    )
    for part, other in zip(gradients, others, strict=True):
        assert largest_difference(part, other) < EXACT


HIDDEN = torch.zeros(LENGTH, LENGTH, dtype=torch.float64)
HIDDEN[:, 2] = -torch.inf


@pytest.mark.parametrize(
    ("options", "may_attend"),
    [
        ({}, lambda t, s: True),
        ({"is_causal": True}, lambda t, s: s <= t),
        ({"mask": HIDDEN}, lambda t, s: s != 2),
    ],
    ids=["all", "causal", "hidden key"],
)
def test_attention_is_the_closed_form(
    options: dict[str, Any], may_attend: Callable[[int, int], bool]
) -> None:
    query, key, value = query_key_value()
    allowed = [[may_attend(t, s) for s in range(LENGTH)] for t in range(LENGTH)]
    expected = slow_attention(query, key, value, allowed)
    assert largest_difference(attention(query, key, value, **options), expected) < EXACT


def rotated(x: Tensor, positions: Tensor, base: float = 100.0) -> Tensor:
    cos, sin = rotary_tables(64, x.shape[-1], base)
    return rotary(x, cos.double(), sin.double(), positions)


def test_rotary_is_a_complex_multiplication() -> None:
    x, positions = draw(1, 1, LENGTH, WIDTH), torch.arange(LENGTH)[None]
    angles = [100.0 ** (-2 * i / WIDTH) for i in range(WIDTH // 2)]
    expected = torch.zeros_like(x)
    for t in range(LENGTH):
        for i, angle in enumerate(angles):
            pair = complex(x[0, 0, t, i], x[0, 0, t, i + WIDTH // 2])
            turned = pair * complex(math.cos(t * angle), math.sin(t * angle))
            expected[0, 0, t, i], expected[0, 0, t, i + WIDTH // 2] = turned.real, turned.imag
    assert largest_difference(rotated(x, positions), expected) < TABLES


@pytest.mark.parametrize("shift", [1, 7, 40])
def test_products_after_rotary_depend_on_the_distance_alone(shift: int) -> None:
    query, key, _ = query_key_value()
    positions = torch.arange(LENGTH)[None]
    products = rotated(query, positions) @ rotated(key, positions).mT
    shifted = rotated(query, positions + shift) @ rotated(key, positions + shift).mT
    assert largest_difference(products, shifted) < 10 * TABLES


def test_rotary_turns_every_row_by_its_own_positions() -> None:
    x = draw(2, 1, 3, WIDTH)
    positions = torch.tensor([[0, 1, 2], [5, 9, 4]])
    alone = [rotated(x[row : row + 1], positions[row : row + 1]) for row in range(2)]
    assert torch.equal(rotated(x, positions), torch.cat(alone))


def slow_bias(bias: RelativeBias, distances: int) -> Tensor:
    """sum_f a_f cos(w_f n) + b_f sin(w_f n), one number at a time, (H, distances)."""
    a, b = bias.waves().double()
    result = torch.zeros(len(a), distances, dtype=torch.float64)
    for h in range(len(a)):
        for n in range(distances):
            for f in range(WAVES):
                angle = n * 1000 ** (-f / WAVES)
                result[h, n] += a[h, f] * math.cos(angle) + b[h, f] * math.sin(angle)
    return result


def drawn_bias(seed: int = 0) -> RelativeBias:
    bias = RelativeBias(HEADS).double().requires_grad_(requires_grad=False)
    bias.steps += draw(2, HEADS, WAVES, seed=seed)
    return bias


def test_a_bias_is_the_sum_of_its_waves() -> None:
    bias = drawn_bias()
    assert largest_difference(bias(30), slow_bias(bias, 30)) < EXACT


def test_channels_of_two_events_make_the_bias_of_their_distance() -> None:
    bias = drawn_bias()
    query, key = bias.channels(30)
    products, expected = query @ key.T, slow_bias(bias, 30)
    for t in range(30):
        for s in range(t + 1):
            assert largest_difference(products[:, t, s], expected[:, t - s]) < EXACT


def test_biased_attention_is_attention_with_the_bias_as_a_mask() -> None:
    query, key, value = query_key_value()
    bias = drawn_bias()
    scores = query @ key.mT / WIDTH**0.5
    for t in range(LENGTH):
        for s in range(LENGTH):
            seen = s <= t
            scores[:, :, t, s] += slow_bias(bias, LENGTH)[:, t - s] if seen else -torch.inf
    expected = scores.softmax(dim=-1) @ value
    found = biased_attention(query, key, value, bias)
    assert largest_difference(found, expected) < EXACT
