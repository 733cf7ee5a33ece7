"""How weights move: lazy Adam against PyTorch's, clipping, L1, and resuming with lazy rows."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from ranklet_training.data.events import Events
from ranklet_training.data.split import Split
from ranklet_training.model.optimizer import LazyAdam, clip_gradients, make_optimizer, shrink_l1
from ranklet_training.runs.checkpoint import Run, read_tensors
from ranklet_training.runs.presets import configure
from ranklet_training.runs.start import start_run
from ranklet_training.runs.train import train

Start = Callable[..., Run]
ROWS, WIDTH = 7, 3


@pytest.fixture
def start(tmp_path: Path, events: Events, split: Split) -> Start:
    def make(**settings: object) -> Run:
        path = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        base = {"width": 8, "max_length": 20, "epochs": 2, "targets_per_step": 128}
        return start_run(path, configure({**base, **settings}), events, split)

    return make


def table() -> nn.Parameter:
    generator = torch.Generator().manual_seed(0)
    return nn.Parameter(torch.randn(ROWS, WIDTH, generator=generator))


def step(weights: nn.Parameter, rows: list[int], *, sparse: bool) -> None:
    found = functional.embedding(torch.tensor(rows), weights, sparse=sparse)
    found.square().sum().backward()  # type: ignore[no-untyped-call]


def test_lazy_adam_is_adam_where_every_row_has_a_gradient() -> None:
    ours, theirs = table(), table()
    lazy, adam = LazyAdam([ours], 0.1), torch.optim.Adam([theirs], 0.1)
    for _ in range(5):
        step(ours, [*range(ROWS), 2, 2], sparse=True)
        step(theirs, [*range(ROWS), 2, 2], sparse=False)
        for optimizer in (lazy, adam):
            optimizer.step()
            optimizer.zero_grad()
    assert torch.allclose(ours, theirs, atol=1e-6, rtol=0)


def test_lazy_adam_leaves_other_rows_and_their_moments_alone() -> None:
    weights, before = table(), table().detach()
    lazy = LazyAdam([weights], 0.1)
    for rows in ([1, 4], [4]):
        step(weights, rows, sparse=True)
        lazy.step()
        lazy.zero_grad()
    moved = (weights != before).any(dim=1)
    assert moved.nonzero()[:, 0].tolist() == [1, 4]
    for moment in ("exp_avg", "exp_avg_sq"):
        assert lazy.state[weights][moment].any(dim=1).nonzero()[:, 0].tolist() == [1, 4]


@pytest.mark.parametrize("largest", [0.5, 1e6])
def test_sparse_gradients_are_clipped_like_dense_ones(largest: float) -> None:
    models = []
    for sparse in (True, False):
        model = nn.Module()
        model.table = table()
        step(model.table, [3, 3, 5], sparse=sparse)
        models.append((clip_gradients(model, largest), model.table.grad))
    (sparse_norm, sparse_gradient), (norm, gradient) = models
    assert sparse_norm == pytest.approx(norm, rel=1e-6)
    assert sparse_gradient is not None
    assert gradient is not None
    assert torch.allclose(sparse_gradient.to_dense(), gradient, atol=1e-7)
    assert gradient.norm().item() == pytest.approx(min(norm, largest), rel=1e-4)


def test_l1_moves_matrices_towards_zero_and_not_past_it() -> None:
    model = nn.Linear(6, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5, -0.5, 0.05, -0.05, 0.0, 0.1]]))
        model.bias.fill_(0.5)
    shrink_l1(model, 0.1)
    expected = torch.tensor([[0.4, -0.4, 0.0, 0.0, 0.0, 0.0]])
    assert torch.allclose(model.weight.detach(), expected, atol=1e-7, rtol=0)
    assert model.bias.item() == 0.5


@pytest.mark.parametrize("loss", ["sampled-softmax", "gbce"])
def test_lazy_rows_resume_to_the_same_weights(loss: str, start: Start, split: Split) -> None:
    settings = {"loss": loss, "negatives": 16, "lazy_rows": True, "checkpoint_steps": 3}
    straight, stopped = start(**settings), start(**settings)
    train(straight, split, show_progress=False)

    def stop_after_an_epoch(line: object) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        train(stopped, split, log=stop_after_an_epoch, show_progress=False)
    train(stopped, split, show_progress=False)
    expected, _ = read_tensors(straight.path / "last.safetensors")
    found, _ = read_tensors(stopped.path / "last.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_lazy_step_gives_the_first_weights_of_a_dense_one(start: Start, split: Split) -> None:
    settings = {"loss": "sampled-softmax", "negatives": 1000, "epochs": 1}
    settings["targets_per_step"] = 1_000_000  # one step that uses every row
    runs = [start(**settings, lazy_rows=lazy) for lazy in (True, False)]
    tables = []
    for run in runs:
        train(run, split, show_progress=False)
        tables.append(read_tensors(run.path / "last.safetensors")[0]["model.items.item"])
    assert torch.allclose(*tables, atol=1e-6, rtol=0)


def test_what_an_optimizer_can_not_do_is_refused() -> None:
    with pytest.raises(KeyError, match=r"no optimizer has this parameter of shape \(2,\)"):
        make_optimizer(nn.Linear(2, 1), configure({}).train).state_of(nn.Parameter(torch.ones(2)))
    for settings in ({"loss": "softmax"}, {"loss": "gbce", "l2": 0.1}, {"loss": "gbce", "l1": 0.1}):
        with pytest.raises(Exception, match="lazy_rows needs a sampled loss and no l1 or l2"):
            configure({"lazy_rows": True, **settings})
