"""The chunked softmax loss equals torch's cross-entropy, gradients and all."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ranklet_training import losses
from ranklet_training.losses import rating_loss, softmax_loss

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
@pytest.mark.parametrize("rows", [1, 5, COUNT - 1, COUNT, 1000])
def test_softmax_loss_is_cross_entropy_whatever_the_chunk(
    rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", rows * (ITEMS + 1))
    users, table, targets = draw(dtype)
    expected = reference(users, table, targets)
    expected_gradients = torch.autograd.grad(expected, (users, table))
    found = softmax_loss(users, table, targets, dtype)
    gradients = torch.autograd.grad(found, (users, table))
    pairs = [(found, expected), *zip(gradients, expected_gradients, strict=True)]
    differences = [(one - other).abs().max().item() for one, other in pairs]
    assert max(differences) < TOLERANCE[dtype], differences


def test_a_chunk_holds_one_row_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 1)
    users, table, targets = draw(torch.float32)
    found, expected = softmax_loss(users, table, targets), reference(users, table, targets)
    assert (found - expected).abs().item() < TOLERANCE[torch.float32]


def test_gradients_equal_finite_differences() -> None:
    users, table, targets = draw(torch.float64)
    gradient = torch.autograd.grad(softmax_loss(users, table, targets, torch.float64), table)[0]
    step = 1e-3
    for row, column in ((1, 0), (7, 3), (ITEMS, WIDTH - 1)):
        moved = []
        for sign in (1, -1):
            near = table.detach().clone()
            near[row, column] += sign * step
            moved.append(reference(users, near, targets).item())
        assert float(gradient[row, column]) == pytest.approx(
            (moved[0] - moved[1]) / (2 * step), abs=1e-6
        )


def test_gradients_scale_with_what_comes_after() -> None:
    users, table, targets = draw(torch.float32)
    once = torch.autograd.grad(softmax_loss(users, table, targets), users)[0]
    thrice = torch.autograd.grad(3 * softmax_loss(users, table, targets), users)[0]
    assert torch.equal(thrice, 3 * once)


def test_the_padding_row_takes_no_part() -> None:
    users, table, targets = draw(torch.float32)
    loss = softmax_loss(users, table, targets)
    assert (torch.autograd.grad(loss, table)[0][0] == 0).all()
    other = table.detach().clone()
    other[0] = 1e6
    assert softmax_loss(users, other, targets).item() == loss.item()


def test_bfloat16_is_close_to_float32() -> None:
    users, table, targets = draw(torch.float32)
    loss, narrow = (
        softmax_loss(users, table, targets, dtype) for dtype in (torch.float32, torch.bfloat16)
    )
    assert narrow.item() == pytest.approx(loss.item(), rel=BFLOAT16)
    pairs = zip(
        torch.autograd.grad(loss, (users, table)),
        torch.autograd.grad(narrow, (users, table)),
        strict=True,
    )
    for exact, found in pairs:
        assert found.dtype == torch.float32
        assert float((found - exact).abs().max() / exact.abs().max()) < BFLOAT16


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
