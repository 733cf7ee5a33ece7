"""The co-occurrence start follows positive pointwise mutual information."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ranklet_training.data.sequences import Sequences
from ranklet_training.model.cooccurrence import _positive_mutual_information, cooccurrence_table

EXACT = 1e-5  # float32
WIDTH = 8
NORM = 0.02 * WIDTH**0.5


def sequences_of(*histories: list[int]) -> Sequences:
    lengths = [len(history) for history in histories]
    items = np.array([item for history in histories for item in history], np.int64)
    return Sequences(items, np.cumsum([0, *lengths]))


def two_groups(users: int = 60) -> Sequences:
    """Half of the users know items 1 to 20 alone, the others items 21 to 40."""
    random = np.random.default_rng(0)
    histories = [random.integers(1, 21, 12) + 20 * (user % 2) for user in range(users)]
    return sequences_of(*(history.tolist() for history in histories))


def cosines(table: Tensor) -> Tensor:
    rows = torch.nn.functional.normalize(table, dim=1)
    return rows @ rows.T


def slow_information(histories: list[list[int]], items: int) -> Tensor:
    """PPMI by its definition, pair by pair."""
    count = torch.zeros(items, items, dtype=torch.float64)
    for history in histories:
        for i, one in enumerate(history):
            for j, other in enumerate(history):
                if 1 <= abs(i - j) <= 5:
                    count[one - 1, other - 1] += 1 / abs(i - j)
    total = float(count.sum())
    context = count.sum(dim=0) ** 0.75
    result = torch.zeros_like(count)
    for row in range(items):
        for column in range(items):
            if count[row, column] > 0:
                joint = float(count[row, column]) / total
                single = float(count[row].sum()) / total
                smoothed = float(context[column] / context.sum())
                result[row, column] = max(0.0, math.log(joint / (single * smoothed)))
    return result.float()


def test_information_of_two_items_in_closed_form() -> None:
    # Item 1 meets 2 at distance 1, and 3 meets 4: P(1, 2) = 1/4, P(1) = 1/4, all contexts 1/4.
    dense = _positive_mutual_information(sequences_of([1, 2], [3, 4]), 4).to_dense()
    expected = torch.zeros(4, 4)
    for row, column in ((0, 1), (1, 0), (2, 3), (3, 2)):
        expected[row, column] = math.log(4)
    assert float((dense - expected).abs().max()) < EXACT


def test_information_equals_its_definition() -> None:
    random = np.random.default_rng(1)
    histories = [random.integers(1, 9, n).tolist() for n in (1, 2, 3, 7, 12)]
    dense = _positive_mutual_information(sequences_of(*histories), 10).to_dense()
    assert float((dense - slow_information(histories, 10)).abs().max()) < EXACT


def test_rows_have_the_norm_of_the_random_start_and_padding_is_zero() -> None:
    table = cooccurrence_table(two_groups(), 40, WIDTH, 0)
    assert table.shape == (41, WIDTH)
    assert float((table[1:].norm(dim=1) - NORM).abs().max()) < EXACT
    assert not table[0].any()


def test_groups_that_never_meet_are_orthogonal() -> None:
    likeness = cosines(cooccurrence_table(two_groups(), 40, WIDTH, 0)[1:])
    assert float(likeness[:20, 20:].abs().mean()) < 0.05
    assert float(likeness[:20, :20].mean()) > 0.2


def test_items_that_stand_together_are_alike() -> None:
    # 1 and 2 are always followed by 3, 4 and 5 by 6.
    histories = [[1, 3], [2, 3], [4, 6], [5, 6]] * 10
    likeness = cosines(cooccurrence_table(sequences_of(*histories), 6, WIDTH, 0)[1:])
    assert float(likeness[0, 1]) > 0.9
    assert float(likeness[3, 4]) > 0.9
    assert abs(float(likeness[0, 3])) < 0.1


@pytest.mark.parametrize("items", [30, 200])
def test_items_that_meet_nobody_get_a_random_start(items: int) -> None:
    # Every third item is seen. The random start is the same whatever is seen.
    rng = np.random.default_rng(0)
    seen = np.arange(3, items + 1, 3)
    histories = [rng.choice(seen, 10).tolist() for _ in range(40)]
    table = cooccurrence_table(sequences_of(*histories), items, WIDTH, 5)
    random = torch.randn(items + 1, WIDTH, generator=torch.Generator().manual_seed(5)) * 0.02
    unseen = [item for item in range(1, items + 1) if item % 3]
    assert torch.equal(table[unseen], random[unseen])


def test_histories_that_tell_nothing_give_the_random_start() -> None:
    # One item alone meets itself as often as chance says.
    table = cooccurrence_table(sequences_of([1, 1, 1], [2]), 3, WIDTH, 0)
    random = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0)) * 0.02
    assert torch.equal(table[1:], random[1:])


def test_fewer_items_than_columns_fill_the_columns() -> None:
    table = cooccurrence_table(sequences_of([1, 2, 3], [3, 1]), 3, WIDTH, 0)
    assert float((table[1:].norm(dim=1) - NORM).abs().max()) < EXACT
    assert bool((table[1:].abs() > 1e-4).float().mean() > 0.8)


def test_the_start_depends_on_the_seed_alone_and_global_random_numbers_stay() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = cooccurrence_table(two_groups(), 40, WIDTH, 0)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(cooccurrence_table(two_groups(), 40, WIDTH, 0), first)
    assert not torch.equal(cooccurrence_table(two_groups(), 40, WIDTH, 1), first)
