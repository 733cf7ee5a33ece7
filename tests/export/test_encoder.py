"""The encoder as it is served equals the model as it was trained, in torch and as a graph."""

import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranklet_export.encoder import Encoder, hidden_score, state_shapes
from torch import Tensor

from ranklet.bundle import NEVER
from ranklet.time_gaps import BUCKETS
from ranklet_export.parity import SCORE_TOLERANCE
from ranklet_training.model.attention import rotary
from ranklet_training.runs.checkpoint import Model

USER_TOLERANCE = 2e-5  # of vectors that are 14 long, or 4 for dot products
ITEMS = 40

SHAPES: list[dict[str, Any]] = [
    {"block": block, "activation": activation, "scoring": scoring, "heads": heads, "blocks": blocks}
    for block, activation, scoring, heads, blocks in product(
        ("pre-norm", "gated"), ("gelu", "swiglu"), ("cosine", "dot"), (1, 2), (0, 1, 2, 3)
    )
]
SHAPES += [{"time_gaps": True, "heads": h, "blocks": b} for h in (1, 2) for b in (1, 2)]
SHAPES += [{"kind": "seed", "heads": 1}]


def name_of(settings: dict[str, Any]) -> str:
    return "-".join(f"{key}={value}" for key, value in settings.items())


def gaps_of(model: Model, history: Tensor) -> tuple[Tensor, Tensor] | None:
    if not model.config.time_gaps:
        return None
    random = np.random.default_rng(1)
    since = random.integers(0, BUCKETS, history.shape)
    return torch.from_numpy(since), torch.from_numpy(random.integers(0, BUCKETS, len(history)))


def encode(
    encoder: Encoder, history: Tensor, gaps: tuple[Tensor, Tensor] | None, past: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Serve rows that are padded on the right, all with the same past."""
    length = history.shape[1]
    kept = past[0].shape[-2] if past else 0
    last = (history > 0).sum(dim=1, keepdim=True) - 1  # (B, 1)
    masks = []
    for place, block in enumerate(encoder.masks, 1):
        ages = kept + torch.arange(length)[:, None] - torch.arange(kept + length)
        if place == len(encoder.masks):
            ages = kept + last - torch.arange(kept + length)  # (B, P + T)
        angles = ages[..., None] * 1000.0 ** (-torch.arange(8) / 8)
        bias = angles.cos() @ torch.tensor(block.cosines).T
        bias += angles.sin() @ torch.tensor(block.sines).T  # (..., P + T, H)
        bias[(ages < 0) | (ages >= (block.window or kept + length))] = block.hidden
        bias = bias.movedim(-1, 0)
        is_last = place == len(encoder.masks)
        masks.append(bias.transpose(0, 1)[:, :, None] if is_last else bias[None])
    positions = [(kept + torch.arange(length)).expand(len(history), -1)]
    places = positions if len(encoder.masks) > 1 else []
    user, *state = encoder(history, last[:, :, None], *places, *(gaps or ()), *masks, *past)
    return user[:, 0], state


def empty_state(model: Model, batch: int) -> list[Tensor]:
    sizes = {"batch": batch, "past": 0, "recent": 0}
    shapes = state_shapes(model.config, "past", "recent").values()
    return [torch.zeros([sizes.get(str(axis), axis) for axis in shape]) for shape in shapes]


def scale_of(model: Model) -> float:
    """Rows of a sequence model are stored times this, users divided by it."""
    return float(model.config.width**0.5) if model.config.kind == "sequence" else 1.0


@pytest.mark.parametrize("with_rows", [True, False], ids=["rows", "compact"])
@pytest.mark.parametrize("settings", SHAPES, ids=name_of)
def test_the_encoder_serves_what_the_model_serves(
    settings: dict[str, Any], with_rows: bool, make_model: Callable[..., Model]
) -> None:
    model = make_model(**settings)
    encoder = Encoder(model, onnx_nodes=False, with_rows=with_rows).eval()
    history = torch.from_numpy(np.random.default_rng(0).integers(1, ITEMS + 1, (3, 11)))
    history[1, 4:], history[2, 1:] = 0, 0
    gaps, table = gaps_of(model, history), model.table()
    expected = model.serve(history, table, gaps)
    found, _ = encode(encoder, history, gaps, empty_state(model, 3))
    difference = (found * scale_of(model) - expected).abs().max()
    assert difference < USER_TOLERANCE, f"users differ by {difference:.1e}"
    difference = (encoder.table / scale_of(model) - table).abs().max()
    assert difference < 1e-6, f"rows differ by {difference:.1e}"


@pytest.mark.parametrize("with_rows", [True, False], ids=["rows", "compact"])
@pytest.mark.parametrize("settings", SHAPES, ids=name_of)
def test_the_state_of_the_encoder_stands_for_the_events_before(
    settings: dict[str, Any], with_rows: bool, make_model: Callable[..., Model]
) -> None:
    model = make_model(**settings)
    encoder = Encoder(model, onnx_nodes=False, with_rows=with_rows).eval()
    history = torch.from_numpy(np.random.default_rng(0).integers(1, ITEMS + 1, (2, 11)))
    gaps = gaps_of(model, history)
    expected = model.serve(history, model.table(), gaps)
    state = empty_state(model, 2)
    found = torch.zeros(2, model.config.width)
    for part in (slice(0, 6), slice(6, 7), slice(7, 11)):
        told = None if gaps is None else (gaps[0][:, part], gaps[1])
        found, state = encode(encoder, history[:, part], told, state)
    difference = (found * scale_of(model) - expected).abs().max()
    assert difference < USER_TOLERANCE, f"users differ by {difference:.1e}"


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({}, 3),
        ({"block": "gated"}, 4),
        ({"blocks": 0}, 0),
        ({"blocks": 1}, 0),
        ({"time_gaps": True}, 0),
        ({"kind": "seed", "heads": 1}, 0),
    ],
    ids=["pre-norm", "gated", "zero-block", "one block", "time gaps", "seed"],
)
def test_rows_hold_query_key_value_and_gate_where_these_depend_on_the_item_alone(
    settings: dict[str, Any], parts: int, make_model: Callable[..., Model]
) -> None:
    rows = Encoder(make_model(**settings), onnx_nodes=False, with_rows=True).rows
    assert [part.shape for part in rows] == [(ITEMS + 1, 16)] * parts


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0])
def test_a_later_event_weighs_less_than_float32_can_tell(
    spread: float, heads: int, make_model: Callable[..., Model]
) -> None:
    model = make_model(heads=heads)
    block = next(iter(model.each_block()))
    block.query.weight.mul_(spread)
    encoder = Encoder(model, onnx_nodes=False, with_rows=True)
    hidden = encoder.masks[0].hidden
    normed = block.attention_norm(encoder.table)
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
    together = model.config.max_length * math.exp(hidden + gap)
    assert together < torch.finfo(torch.float32).eps
    assert hidden >= -70


@pytest.mark.parametrize("settings", [{}, {"heads": 1}], ids=name_of)
def test_a_model_whose_scores_spread_too_far_hides_by_the_lowest_score(
    settings: dict[str, Any], make_model: Callable[..., Model]
) -> None:
    model = make_model(**settings)
    next(iter(model.each_block())).query.weight.mul_(300)
    encoder = Encoder(model, onnx_nodes=False, with_rows=True).eval()
    assert encoder.masks[0].hidden == NEVER
    history = torch.from_numpy(np.random.default_rng(0).integers(1, ITEMS + 1, (2, 11)))
    expected = model.serve(history, model.table(), None)
    found, _ = encode(encoder, history, None, empty_state(model, 2))
    assert (found * scale_of(model) - expected).abs().max() < USER_TOLERANCE


@pytest.mark.parametrize("settings", [{"blocks": 1}, {"blocks": 0}, {"time_gaps": True}])
def test_only_a_first_block_that_knows_the_item_alone_and_is_not_the_last_hides_by_less(
    settings: dict[str, Any], make_model: Callable[..., Model]
) -> None:
    encoder = Encoder(make_model(**settings), onnx_nodes=False, with_rows=True)
    assert {mask.hidden for mask in encoder.masks} <= {NEVER}


def test_the_more_events_may_be_hidden_the_lower_is_their_score(
    make_model: Callable[..., Model],
) -> None:
    model = make_model(heads=1)
    block, table = next(iter(model.each_block())), model.table() * model.config.width**0.5
    one, many = (hidden_score(block, table, events) for events in (1, 1000))
    assert one is not None
    assert many is not None
    assert one - many in (6, 7)  # the logarithm of 1000 is 6.9


def test_a_model_is_not_changed_by_its_layout(make_model: Callable[..., Model]) -> None:
    model = make_model(heads=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Encoder(model, onnx_nodes=False, with_rows=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_graphs_of_an_older_opset_pass_the_gate(old_graphs: Any) -> None:
    assert old_graphs.check().max_score_difference <= SCORE_TOLERANCE["int8"]


def test_graphs_of_an_older_opset_may_know_times(
    make_model: Callable[..., Model], write_graphs: Callable[..., Any], tmp_path: Path
) -> None:
    model = make_model(time_gaps=True, heads=1, blocks=1, activation="swiglu")
    written = write_graphs(model, tmp_path, "fp16", 18, compact=True)
    assert written.check().max_score_difference <= SCORE_TOLERANCE["fp16"]
