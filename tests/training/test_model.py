"""What the models promise: append-stable, padding-free, served as trained, seeded dropout."""

import subprocess
import sys
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor

from ranklet.errors import DataError
from ranklet_training.data.attributes import attribute_kinds
from ranklet_training.data.features import Features, build_features
from ranklet_training.model.model import (
    Dropout,
    ItemTable,
    ModelConfig,
    SequenceModel,
    reset_dropout,
)
from ranklet_training.model.seed import SeedModel
from ranklet_training.runs.checkpoint import Model

# User vectors have norm 1 / 0.07 = 14; a hundred units in the last place of that.
TOLERANCE = 1e-4
EARLIER = 1e-5  # what an appended event may change in earlier outputs: rounding only
ITEMS, LENGTH = 30, 9

SHAPES: dict[str, dict[str, Any]] = {
    "two-blocks": {"blocks": 2},
    "two-heads": {"heads": 2},
    "window": {"attention_window": 3},
    "chunks": {"attention_window": 1},
    "gated": {"block": "gated"},
    "swiglu": {"activation": "swiglu"},
    "dot": {"scoring": "dot"},
    "one-block": {"blocks": 1},
    "zero-blocks": {"blocks": 0},
    "seed": {"kind": "seed"},
}
every_shape = pytest.mark.parametrize("shape", SHAPES)


def make_model(shape: str, **settings: Any) -> Model:
    """Return a model with random weights that are large enough for every part to matter."""
    defaults = {"width": 16, "feed_forward": 2, "max_length": 12}
    config = ModelConfig(**{**defaults, **SHAPES[shape], **settings})
    torch.manual_seed(1)
    model: Model
    if config.kind == "seed":
        model = SeedModel(config, ITEMS, users=4)
        model.init_weights()
    else:
        model = SequenceModel(config, ITEMS)
        model.init_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "items" not in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def encode(model: Model, history: Tensor) -> Tensor:
    """Encode as the mean user, who is the one that a server knows."""
    with torch.no_grad():
        table = model.table()
        if isinstance(model, SequenceModel):
            return model.encode(history, table)
        model.users.weight[:] = model.users.weight.mean(dim=0)
        return model.encode(history, table, torch.zeros(len(history), dtype=torch.int64))


def serve(model: Model, history: Tensor) -> Tensor:
    with torch.no_grad():
        return model.serve(history, model.table())


def draw_history(batch: int = 3, length: int = LENGTH) -> Tensor:
    return torch.randint(1, ITEMS + 1, (batch, length), generator=torch.Generator().manual_seed(2))


def difference(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()


@every_shape
def test_a_later_event_changes_no_earlier_output(shape: str) -> None:
    model, history = make_model(shape), draw_history()
    before, after = encode(model, history[:, :-1]), encode(model, history)
    assert difference(before, after[:, :-1]) < EARLIER
    other = history.clone()
    other[:, 5:] = 1 + other[:, 5:] % ITEMS
    one, two = encode(model, history), encode(model, other)
    assert difference(one[:, :5], two[:, :5]) < EARLIER
    assert difference(one[:, 5:], two[:, 5:]) > 0.01


@every_shape
def test_padding_changes_no_output(shape: str) -> None:
    model, history = make_model(shape), draw_history()
    padded = torch.nn.functional.pad(history, (0, 3))
    assert difference(encode(model, padded)[:, :LENGTH], encode(model, history)) < EARLIER
    assert difference(serve(model, padded), serve(model, history)) < EARLIER


@every_shape
def test_serving_equals_encoding_at_the_last_event(shape: str) -> None:
    model, history = make_model(shape), draw_history()
    for row, size in enumerate((LENGTH, 4, 1)):
        history[row, size:] = 0
    users, encoded = serve(model, history), encode(model, history)
    for row, size in enumerate((LENGTH, 4, 1)):
        assert difference(users[row], encoded[row, size - 1]) < TOLERANCE
        alone = serve(model, history[row : row + 1, :size])
        assert difference(alone[0], users[row]) < TOLERANCE


@pytest.mark.parametrize("window", [0, 1, 3, LENGTH])
def test_a_block_before_the_last_sees_a_window(window: int) -> None:
    model, history = make_model("two-blocks", attention_window=window), draw_history(batch=1)
    assert isinstance(model, SequenceModel)
    other = history.clone()
    other[0, 4] = 1 + other[0, 4] % ITEMS
    with torch.no_grad():
        before, after = (
            model._before_last(model.embed(h, model.table(), None)) for h in (history, other)
        )
    changed = (before - after).abs().amax(dim=(0, 2)) > EARLIER
    seen_by = range(4, min(LENGTH, 4 + (window or LENGTH)))
    assert changed.nonzero().flatten().tolist() == list(seen_by)
    assert difference(encode(model, history)[:, -1], encode(model, other)[:, -1]) > EARLIER


@pytest.mark.parametrize("shape", ["two-blocks", "two-heads", "one-block"])
def test_the_order_of_earlier_events_matters(shape: str) -> None:
    model, history = make_model(shape), draw_history(batch=1)
    swapped = history[:, [1, 0, *range(2, LENGTH)]]
    assert difference(serve(model, history), serve(model, swapped)) > 0.01
    last_alone = make_model("zero-blocks")
    assert difference(serve(last_alone, history), serve(last_alone, history[:, -1:])) == 0


def test_norms_of_table_and_users_give_a_cosine_over_the_temperature() -> None:
    model = make_model("two-blocks", temperature=0.1)
    norms = model.table().detach().norm(dim=1)
    assert norms[0].item() == 0
    assert difference(norms[1:], torch.ones(ITEMS)) < EARLIER
    users = serve(model, draw_history())
    assert difference(users.norm(dim=1), torch.full((3,), 10.0)) < TOLERANCE


@every_shape
def test_the_padding_row_stays_zero_after_a_step(shape: str) -> None:
    model, history = make_model(shape).train(), torch.nn.functional.pad(draw_history(), (0, 2))
    table = model.table()
    if isinstance(model, SequenceModel):
        users = model.encode(history, table)
    else:
        users = model.encode(history, table, torch.arange(3))
    (users[history > 0] @ table.T).square().mean().backward()
    torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1).step()
    assert not model.table()[0].detach().any()
    assert model.table().isfinite().all()


# Dropout.


def dropped(rate: float, seed: int = 0, step: int = 0, size: int = 40_000) -> Tensor:
    dropout = Dropout(rate).train()
    reset_dropout(dropout, seed, step)
    result: Tensor = dropout(torch.ones(size))
    return result


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_drops_at_its_rate_and_keeps_the_mean(rate: float) -> None:
    values = dropped(rate).double()
    share = float((values == 0).double().mean())
    # The rate is rounded to 1 / 256; four standard errors.
    assert share == pytest.approx(rate, abs=1 / 512 + 4 * (0.25 / 40_000) ** 0.5)
    assert float(values.mean()) == pytest.approx(1, abs=4 * float(values.std()) / 40_000**0.5)


def test_the_highest_rate_keeps_some_values() -> None:
    values = dropped(0.999)
    assert values.isfinite().all()
    assert 0 < int((values > 0).sum()) < 1000


def test_dropout_is_off_in_evaluation_and_at_rate_zero() -> None:
    x = torch.ones(100)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0).train()(x) is x


def test_a_mask_belongs_to_its_seed_step_and_place() -> None:
    assert torch.equal(dropped(0.5, seed=1, step=2), dropped(0.5, seed=1, step=2))
    for seed, step in ((1, 3), (2, 2), (2, 1)):
        assert not torch.equal(dropped(0.5, seed=1, step=2), dropped(0.5, seed=seed, step=step))
    dropouts = torch.nn.ModuleList([Dropout(0.5), Dropout(0.5)]).train()
    reset_dropout(dropouts, 0, 0)
    one, other = (dropout(torch.ones(1000)) for dropout in dropouts)
    assert not torch.equal(one, other)


# Features.


def features(**columns: list[Any]) -> Features:
    frame = pl.DataFrame(columns)
    return build_features(frame, attribute_kinds(frame, {}), list(columns))


def test_an_item_is_its_embedding_and_the_weighted_sum_of_its_features() -> None:
    genres = [["a", "c"], ["a"], [], None, ["c"]]
    items = ItemTable(5, 3, features(genres=genres, maker=["x", None, "x", "y", "y"]))
    items.init_weights()
    own = items.item
    assert items.feature is not None
    _, a, c, x, y = items.feature.weight
    half = 0.5**0.5  # two categories at length 1
    expected = [own[0], own[1] + (a + c) * half + x, own[2] + a, own[3] + x, own[4] + y]
    assert difference(items(), torch.stack([*expected, own[5] + c + y])) < 1e-7


def test_categories_are_coded_as_they_appear() -> None:
    genres = features(genres=[["b", "a"], [], ["a", None], ["b"]])
    # Row 0 is padding: items 1 to 4 begin at 0, 2, 2 and 3; code 0 is no feature.
    assert genres.codes.tolist() == [1, 2, 2, 1]
    assert genres.offsets.tolist() == [0, 0, 2, 2, 3]
    assert features(year=[1999, 2001, None, 1999, 2001]).count == 3


def test_a_feature_may_have_any_name() -> None:
    # Names that modules of torch have as attributes or refuse.
    for name in ("type", "keys", "item.genre", "training", "item"):
        items = ItemTable(2, 3, features(**{name: ["x", "x"]}))
        items.init_weights()
        assert items().shape == (3, 3)


def test_a_feature_that_is_not_there_or_has_no_value_is_refused() -> None:
    with pytest.raises(
        DataError, match="no feature column 'colour' among the items; there are item_id"
    ):
        build_features(pl.DataFrame({"item_id": ["a"]}), {}, ["colour"])
    with pytest.raises(DataError, match="'colour' holds no value for any item"):
        build_features(pl.DataFrame({"colour": [None, None]}), {"colour": "category"}, ["colour"])
    assert features(colour=["red", "blue"]).count == 1  # no value of two items


# Configuration.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "deep"}, r"kind must be one of \('sequence', 'seed'\), got 'deep'"),
        ({"block": "post-norm"}, "block must be one of .*, got 'post-norm'"),
        ({"activation": "relu"}, "activation must be one of .*, got 'relu'"),
        ({"scoring": "euclid"}, "scoring must be one of .*, got 'euclid'"),
        *(
            ({name: 0}, f"{name} must be at least 1, got 0")
            for name in ("width", "heads", "feed_forward", "max_length")
        ),
        ({"blocks": -1}, "blocks must be at least 0, got -1"),
        ({"attention_window": -1}, "attention_window must be at least 0, got -1"),
        ({"width": 6, "heads": 2}, r"divisible by 2 \* heads, got 6 and 2 heads"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": float("nan")}, r"dropout must be in \[0, 1\), got nan"),
        ({"temperature": float("nan")}, "temperature must be above 0 and finite, got nan"),
        ({"rotary_base": 0.0}, "rotary_base must be above 0 and finite, got 0.0"),
        ({"temperature": 1e-300}, "temperature must be 0 or from 1e-12 to 1e"),
        ({"blocks": 257}, "blocks must be at most 256, got 257"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_shape_that_no_model_can_have_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**settings)


def test_initial_weights_are_small_biases_zero_and_norms_one() -> None:
    model = SequenceModel(ModelConfig(width=64), 500)
    model.init_weights()
    assert model.items.item[1:].std().item() == pytest.approx(0.02, rel=0.05)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            is_scale = "norm.weight" in name or name.endswith("feed_forward.0.weight")
            assert (parameter == float(is_scale)).all(), name
        elif name == "bias.steps":
            assert (parameter == 0).all(), name
        else:
            assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.1), name


def test_some_rows_of_the_table_are_those_of_the_whole() -> None:
    values = [[str(n), str(n % 3)] if n % 4 else [] for n in range(ITEMS)]
    tags = features(tags=values)
    model = SequenceModel(ModelConfig(width=8, max_length=4), ITEMS, tags)
    model.init_weights()
    for rows in ([0], [0, 3, 3, 30], [2, 0, 7], list(range(ITEMS + 1))):
        found = model.table(torch.tensor(rows))
        assert torch.allclose(found, model.table()[rows], atol=1e-6, rtol=0)


def test_memory_of_a_long_history_is_linear() -> None:
    """A matrix of all pairs of 8,000 events would take 256 MB for one block, twice when trained."""
    code = """
import resource
import torch
from ranklet_training.model.model import ModelConfig, SequenceModel

model = SequenceModel(ModelConfig(width=8, heads=1, max_length=8000), items=50)
model.init_weights()

def peak(length):
    history = torch.arange(length)[None] % 50 + 1
    model.encode(history, model.table()).sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

before = peak(500)
assert peak(8000) - before < 64
"""
    subprocess.run([sys.executable, "-c", code], check=True)
