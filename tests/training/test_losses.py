"""The chunked softmax loss equals torch's cross-entropy, gradients and all."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ranklet_training.model import losses
from ranklet_training.model.losses import gbce_loss, rating_loss, sampled_softmax_loss, softmax_loss
from ranklet_training.runs.batch_loss import draw_negatives

COUNT, ITEMS, WIDTH = 37, 23, 8
# The value is summed in float32 parts whatever the type of the logits.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-6}
BFLOAT16 = 0.02  # of the largest gradient: 8 bits of mantissa, products summed in float32


def draw(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    users = torch.randn(COUNT, WIDTH, generator=random, dtype=torch.float64).to(dtype)
    table = torch.randn(ITEMS + 1, WIDTH, generator=random, dtype=torch.float64).to(dtype)
    targets = torch.randint(1, ITEMS + 1, (COUNT,), generator=random)
    return users.requires_grad_(), table.requires_grad_(), targets


def reference(users: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    never = torch.full((len(users), 1), -torch.inf, dtype=users.dtype)
    return functional.cross_entropy(torch.cat([never, users @ table[1:].T], dim=1), targets)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("rows", [0.1, 5, COUNT - 1, COUNT, 1000])  # at least one at a time
def test_softmax_loss_is_cross_entropy_whatever_the_chunk(
    rows: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", int(rows * (ITEMS + 1)))
    users, table, targets = draw(dtype)
    expected = reference(users, table, targets)
    expected_gradients = torch.autograd.grad(expected, (users, table))
    found = softmax_loss(users, table, targets, dtype)
    gradients = torch.autograd.grad(found, (users, table))
    pairs = [(found, expected), *zip(gradients, expected_gradients, strict=True)]
    differences = [(one - other).abs().max().item() for one, other in pairs]
    assert max(differences) < TOLERANCE[dtype], differences


def test_the_padding_row_takes_no_part_and_gradients_scale_with_what_comes_after() -> None:
    users, table, targets = draw(torch.float32)
    loss = softmax_loss(users, table, targets)
    gradients = torch.autograd.grad(loss, (users, table), retain_graph=True)
    assert (gradients[1][0] == 0).all()
    assert torch.equal(torch.autograd.grad(3 * loss, users)[0], 3 * gradients[0])
    other = table.detach().clone()
    other[0] = 1e6
    assert softmax_loss(users, other, targets).item() == loss.item()


def test_bfloat16_is_close_to_float32() -> None:
    users, table, targets = draw(torch.float32)
    loss, narrow = (
        softmax_loss(users, table, targets, dtype) for dtype in (torch.float32, torch.bfloat16)
    )
    assert narrow.item() == pytest.approx(loss.item(), rel=BFLOAT16)
    gradients = (torch.autograd.grad(x, (users, table)) for x in (loss, narrow))
    for exact, found in zip(*gradients, strict=True):
        assert found.dtype == torch.float32
        assert float((found - exact).abs().max() / exact.abs().max()) < BFLOAT16


def test_bfloat16_scales_the_right_and_the_wrong_items_alike() -> None:
    """The largest score, which is subtracted from both, is rounded once for both."""
    random = torch.Generator().manual_seed(0)
    users, table = (torch.randn(n, 64, generator=random) for n in (4096, 2001))
    targets = torch.randint(1, 2001, (4096,), generator=random)
    table = functional.normalize(table)
    users = functional.normalize(table[targets] + users / 16).mul_(14.0).requires_grad_()
    exact, found = (
        torch.autograd.grad(softmax_loss(users, table, targets, dtype), users)[0]
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert float((found - exact).norm() / exact.norm()) < 0.005


def test_large_scores_do_not_overflow() -> None:
    users, table = torch.tensor([[1000.0]]), torch.tensor([[0.0], [1.0], [-1.0]])
    # softmax of (1000, -1000): certain of item 1, and 2000 nats off for item 2.
    assert float(softmax_loss(users, table, torch.tensor([1]))) == 0
    assert float(softmax_loss(users, table, torch.tensor([2]))) == 2000


def test_rating_loss_is_the_mean_squared_error() -> None:
    users = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    table = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.5, 0.0]])
    # Predicted 1 + 2 = 3 and 1.5; errors 1 and -0.5.
    found = rating_loss(users, table, torch.tensor([1, 2]), torch.tensor([2.0, 2.0]))
    assert float(found) == (1 + 0.25) / 2


# Sampled losses.


def slow_sampled_softmax(
    users: Tensor, table: Tensor, targets: Tensor, negatives: Tensor
) -> Tensor:
    """Compare each target with every negative but itself, one at a time."""
    parts = []
    for user, target in zip(users, targets.tolist(), strict=True):
        others = [table[n] @ user for n in negatives.tolist() if n != target]
        correction = torch.log(torch.tensor(ITEMS / len(negatives), dtype=users.dtype))
        logits = torch.stack([table[target] @ user, *(other + correction for other in others)])
        parts.append(torch.logsumexp(logits, 0) - logits[0])
    return torch.stack(parts).mean()


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_sampled_softmax_is_what_a_slow_reference_gives(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", rows * 9)
    users, table, targets = draw(torch.float64)
    negatives = torch.tensor([1, 2, 5, 6, 11, 13, 17, 20, 23])
    assert set(targets.tolist()) & set(negatives.tolist())
    assert set(targets.tolist()) - set(negatives.tolist())
    expected = slow_sampled_softmax(users, table, targets, negatives)
    expected_gradients = torch.autograd.grad(expected, (users, table))
    found = sampled_softmax_loss(users, table, targets, negatives, ITEMS, torch.float64)
    gradients = torch.autograd.grad(found, (users, table))
    assert found.item() == pytest.approx(expected.item(), abs=1e-9)
    for one, other in zip(gradients, expected_gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-9)


def test_sampled_softmax_with_every_item_is_the_whole_softmax() -> None:
    users, table, targets = draw(torch.float64)
    every = torch.arange(1, ITEMS + 1)
    found = sampled_softmax_loss(users, table, targets, every, ITEMS, torch.float64)
    assert found.item() == pytest.approx(reference(users, table, targets).item(), abs=1e-9)
    assert sampled_softmax_loss(users * 1000, table, targets, every, ITEMS).isfinite()


@pytest.mark.parametrize("calibration", [0.0, 0.75, 1.0])
def test_gbce_is_its_formula(calibration: float) -> None:
    users, table, targets = draw(torch.float64)
    generator = torch.Generator().manual_seed(1)
    negatives = torch.randint(1, ITEMS + 1, (COUNT, 4), generator=generator)
    share = 4 / (ITEMS - 1)
    beta = share * (calibration * (1 - 1 / share) + 1 / share)
    total = 0.0
    for user, target, drawn in zip(users, targets, negatives, strict=True):
        total -= beta * torch.sigmoid(user @ table[target]).log().item()
        total -= sum((1 - torch.sigmoid(user @ table[n])).log().item() for n in drawn)
    found = gbce_loss(users, table, targets, negatives, ITEMS, calibration)
    assert found.item() == pytest.approx(total / COUNT, abs=1e-9)


def test_gbce_without_calibration_is_binary_cross_entropy() -> None:
    users, table, targets = draw(torch.float64)
    negatives = torch.ones((COUNT, 1), dtype=torch.int64)
    right, wrong = (users * table[targets]).sum(dim=1), users @ table[1]
    labels = torch.cat([torch.ones(COUNT), torch.zeros(COUNT)]).double()
    logits = torch.cat([right, wrong])
    expected = functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
    found = gbce_loss(users, table, targets, negatives, ITEMS, 0.0)
    assert found.item() == pytest.approx(expected.item() / COUNT, abs=1e-9)


@pytest.mark.parametrize(("count", "items"), [(5, 100), (99, 100), (100, 100), (2048, 7)])
def test_negatives_are_distinct_sorted_and_in_the_catalogue(count: int, items: int) -> None:
    drawn = draw_negatives(np.random.default_rng(0), count, items).tolist()
    assert len(drawn) == min(count, items)
    assert drawn == sorted(set(drawn))
    assert drawn[0] >= 1
    assert drawn[-1] <= items


@pytest.mark.slow
def test_negatives_are_drawn_evenly() -> None:
    random = np.random.default_rng(0)
    counts = np.bincount(
        np.concatenate([draw_negatives(random, 3, 10).numpy() for _ in range(4000)]), minlength=11
    )
    assert counts[0] == 0
    # Each of 10 items is in 30 % of the draws; 5 standard deviations of 4,000 draws are 3.6 %.
    assert np.abs(counts[1:] / 4000 - 0.3).max() < 0.036
