"""Rankings are right, whatever comes with them, and requests that can't be right are refused."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ranklet import InputError, Ranker, Ranking
from ranklet.bundle import read_popularity
from ranklet.graph import Events
from ranklet.ranker import MAX_BATCH
from ranklet.requests import NOTHING, Request

SameOrder = Callable[[Ranking, Ranking], None]
same_ranker = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
ragged_batches = st.lists(
    st.lists(st.integers(0, 59), min_size=1, max_size=30), min_size=1, max_size=12
)


def user_vector(ranker: Ranker, history: list[Any]) -> NDArray[np.float32]:
    """Return what the graph makes of a history that is neither padded nor batched."""
    indices = ranker.vocabulary.index(history)
    indices = indices[indices > 0][-ranker.manifest.max_length :][None]
    user: NDArray[np.float32] = ranker.graphs.encode(Events(indices))[0][0]
    return user


def all_scores(ranker: Ranker, history: list[Any]) -> NDArray[np.float64]:
    """Score every item, in index order, in float64."""
    table = np.asarray(ranker.graphs.table[1:], dtype=np.float64)
    return table @ user_vector(ranker, history).astype(np.float64)


def by_score(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the places of scores, highest first, ties in order of place."""
    return np.lexsort((np.arange(len(scores)), -scores))


def assert_equal(found: Ranking, expected: Ranking) -> None:
    assert found.items == expected.items
    assert found.scores.tolist() == expected.scores.tolist()
    assert (found.unknown, found.cold) == (expected.unknown, expected.cold)


# The order


@pytest.mark.parametrize("length", [1, 2, 7, 20, 33])
def test_items_are_those_with_the_highest_products_of_user_and_row(
    any_ranker: Ranker, ids: list[str], length: int, same_order: SameOrder
) -> None:
    history = (ids * 2)[5 : 5 + length]
    scores = all_scores(any_ranker, history)
    best = by_score(scores)
    expected = Ranking([ids[i] for i in best], scores[best].astype(np.float32), 0, cold=False)
    same_order(any_ranker.rank(history, k=60), expected)


def test_scores_fall(tiny_ranker: Ranker, ids: list[str]) -> None:
    assert (np.diff(tiny_ranker.rank(ids[:9], k=60).scores) <= 0).all()


def test_integer_ids_get_the_ranking_of_the_same_items_as_text(
    tiny_ranker: Ranker, number_ranker: Ranker, ids: list[str]
) -> None:
    numbers = number_ranker.rank([-30, 147, -27], k=60)
    texts = tiny_ranker.rank([ids[0], ids[59], ids[1]], k=60)
    assert [ids[(int(number) + 30) // 3] for number in numbers.items] == texts.items


def test_integer_ids_come_as_python_integers(number_ranker: Ranker) -> None:
    assert {type(item) for item in number_ranker.rank([-30], k=5).items} == {int}


@pytest.mark.parametrize("k", [1, 5, 13, 30, 59, 60])
def test_ties_go_to_the_lower_index(tied_ranker: Ranker, ids: list[str], k: int) -> None:
    history = ids[10:13]
    scores = all_scores(tied_ranker, history)[:5][np.arange(60) % 5]
    assert tied_ranker.rank(history, k=k).items == [ids[i] for i in by_score(scores)[:k]]


@pytest.mark.parametrize("k", [1, 13, 60])
def test_ties_of_candidates_go_to_the_lower_index(
    tied_ranker: Ranker, ids: list[str], k: int
) -> None:
    full = tied_ranker.rank(ids[10:13], k=60)
    found = tied_ranker.rank(ids[10:13], k=k, candidates=ids[::-1])
    assert found.items == full.items[:k]


@pytest.mark.parametrize("width", [7, 16, 64, 100])
def test_candidates_with_equal_rows_have_equal_scores(
    tiny_ranker: Ranker, ids: list[str], width: int
) -> None:
    ranker, random = object.__new__(Ranker), np.random.default_rng(0)
    ranker.__dict__ |= tiny_ranker.__dict__
    ranker.graphs = copy.copy(tiny_ranker.graphs)
    ranker.graphs.table = np.tile(random.normal(size=width).astype(np.float32), (61, 1))
    user = random.normal(size=width).astype(np.float32)
    for count in range(2, 61):  # BLAS takes the last few rows another way
        candidates = np.arange(1, 1 + count)[::-1]
        request = Request(NOTHING, NOTHING, 0, 0, NOTHING, candidates)
        found = ranker.rank_some(user, request, 60, None)
        assert (found.items, len(set(found.scores.tolist()))) == (ids[:count], 1)


def test_ties_in_a_batch_go_to_the_lower_index(tied_ranker: Ranker, ids: list[str]) -> None:
    histories = [ids[place : place + 1 + place % 4] for place in range(40)]
    for found, history in zip(tied_ranker.rank_batch(histories, k=60), histories, strict=True):
        scores = all_scores(tied_ranker, history)[:5][np.arange(60) % 5]
        assert found.items == [ids[i] for i in by_score(scores)]


def test_repeated_events_count(tiny_ranker: Ranker, ids: list[str]) -> None:
    once = tiny_ranker.rank([ids[0], ids[1]], k=60)
    often = tiny_ranker.rank([ids[0], ids[0], ids[0], ids[1]], k=60)
    assert np.abs(once.scores - often.scores).max() > 1e-2


def test_a_history_of_one_item_many_times_equals_the_reference(
    tiny_ranker: Ranker, ids: list[str], same_order: SameOrder
) -> None:
    scores = all_scores(tiny_ranker, [ids[3]] * 17)
    best = by_score(scores)
    expected = Ranking([ids[i] for i in best], scores[best].astype(np.float32), 0, cold=False)
    same_order(tiny_ranker.rank([ids[3]] * 17, k=60), expected)


# Length


@pytest.mark.parametrize("length", [21, 22, 40, 41, 60, 500])
def test_a_history_longer_than_the_maximum_equals_its_end(
    tiny_ranker: Ranker, ids: list[str], length: int
) -> None:
    assert tiny_ranker.manifest.max_length == 20
    history = [ids[7 * place % 60] for place in range(length)]
    assert_equal(tiny_ranker.rank(history, k=60), tiny_ranker.rank(history[-20:], k=60))


def test_unknown_ids_take_no_place_of_the_maximum(tiny_ranker: Ranker, ids: list[str]) -> None:
    history = [text for item in ids[:20] for text in (item, "nowhere")]
    found, expected = tiny_ranker.rank(history, k=60), tiny_ranker.rank(ids[:20], k=60)
    assert (found.items, found.scores.tolist()) == (expected.items, expected.scores.tolist())


# Batches


@same_ranker
@given(batch=ragged_batches)
def test_a_row_alone_and_in_any_batch_gets_the_same_order(
    tiny_ranker: Ranker, ids: list[str], batch: list[list[int]], same_order: SameOrder
) -> None:
    histories = [[ids[place] for place in row] for row in batch]
    together = tiny_ranker.rank_batch(histories, k=60)
    for found, history in zip(together, histories, strict=True):
        same_order(found, tiny_ranker.rank(history, k=60))


@same_ranker
@given(batch=ragged_batches)
def test_a_batch_equals_the_reference(
    tiny_ranker: Ranker, ids: list[str], batch: list[list[int]], same_order: SameOrder
) -> None:
    histories = [[ids[place] for place in row] for row in batch]
    for found, history in zip(tiny_ranker.rank_batch(histories, k=7), histories, strict=True):
        scores = all_scores(tiny_ranker, history)
        best = by_score(scores)[:7]
        expected = Ranking([ids[i] for i in best], scores[best].astype(np.float32), 0, cold=False)
        same_order(found, expected)


def test_a_batch_larger_than_one_run_keeps_its_order(
    tiny_ranker: Ranker, ids: list[str], same_order: SameOrder
) -> None:
    histories = [[ids[place % 60]] * (1 + place % 25) for place in range(2 * MAX_BATCH + 3)]
    found = tiny_ranker.rank_batch(histories, k=60)
    for place in (0, 1, MAX_BATCH - 1, MAX_BATCH, 2 * MAX_BATCH + 2):
        same_order(found[place], tiny_ranker.rank(histories[place], k=60))


def test_cold_and_warm_rows_keep_their_places(tiny_ranker: Ranker, ids: list[str]) -> None:
    found = tiny_ranker.rank_batch([[], ids[:2], ["nowhere"], ids[:1], []], k=3)
    assert [ranking.cold for ranking in found] == [True, False, True, False, True]


@pytest.mark.parametrize("histories", [[], (), np.zeros((0, 3), dtype=np.int64)], ids=type)
def test_a_batch_of_nothing_is_nothing(tiny_ranker: Ranker, histories: Any) -> None:
    assert tiny_ranker.rank_batch(histories) == []


def test_the_rows_of_a_matrix_are_histories(number_ranker: Ranker, same_order: SameOrder) -> None:
    matrix = np.array([[-30, 0, 3], [6, 9, 147]], dtype=np.int32)
    for found, history in zip(number_ranker.rank_batch(matrix, k=60), matrix.tolist(), strict=True):
        same_order(found, number_ranker.rank(history, k=60))


def test_the_rows_of_a_matrix_are_candidates(number_ranker: Ranker) -> None:
    found = number_ranker.rank_batch([[0], [3]], candidates=np.array([[0, 6], [9, 12]]))
    assert [sorted(map(int, ranking.items)) for ranking in found] == [[0, 6], [9, 12]]


def test_the_rows_of_a_matrix_are_exclusions(number_ranker: Ranker) -> None:
    found = number_ranker.rank_batch([[0], [3]], k=60, exclude=np.array([[0, 6], [9, 12]]))
    assert [{0, 6, 9, 12} - set(ranking.items) for ranking in found] == [{0, 6}, {9, 12}]


def test_rows_of_a_batch_may_have_candidates_and_exclusions_or_not(
    tiny_ranker: Ranker, ids: list[str], same_order: SameOrder
) -> None:
    histories = [ids[:3], ids[:2], ids[:3], []]
    found = tiny_ranker.rank_batch(
        histories, k=60, candidates=[None, ids[:9], [], None], exclude=[ids[:5], ids[:4], None, ids]
    )
    same_order(found[0], tiny_ranker.rank(ids[:3], k=60, exclude=ids[:5]))
    same_order(found[1], tiny_ranker.rank(ids[:2], k=60, candidates=ids[4:9]))
    assert found[2].items == found[3].items == []


@pytest.mark.parametrize("argument", ["candidates", "exclude"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_lists_of_another_length_than_the_batch_are_refused(
    tiny_ranker: Ranker, ids: list[str], argument: str, count: int
) -> None:
    options: dict[str, Any] = {argument: [[ids[0]]] * count}
    with pytest.raises(InputError, match=f"{argument} has {count} lists for 2 histories"):
        tiny_ranker.rank_batch([[ids[0]], [ids[1]]], **options)


NO_BATCHES = {
    "text": ("50", "histories is a str"),
    "bytes": (b"50", "histories is a bytes"),
    "dict": ({"user": ["50"]}, "histories is a dict"),
    "set": ({("50",)}, "histories is a set"),
    "None": (None, "histories is None"),
    "number": (5, "histories is 5"),
    "0-d": (np.array(5), r"histories is array\(5\)"),
    "flat": (["50"], r"histories\[0\] is the text '50'"),
    "flat numbers": (np.array([5, 6]), r"histories\[0\] has shape \(\)"),
    "3-d": (np.zeros((1, 2, 3), dtype=np.int64), r"histories\[0\] has shape \(2, 3\)"),
}


@pytest.mark.parametrize(("histories", "message"), NO_BATCHES.values(), ids=NO_BATCHES)
def test_what_is_no_list_of_histories_is_refused(
    tiny_ranker: Ranker, histories: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        tiny_ranker.rank_batch(histories)


def test_threads_that_share_a_ranker_get_the_serial_answers(
    tiny_ranker: Ranker, ids: list[str]
) -> None:
    histories = [ids[place : place + 1 + place % 20] for place in range(50)] * 8
    serial = [tiny_ranker.rank(history, k=60) for history in histories]
    with ThreadPoolExecutor(16) as pool:
        parallel = list(pool.map(lambda history: tiny_ranker.rank(history, k=60), histories))
    for found, expected in zip(parallel, serial, strict=True):
        assert_equal(found, expected)


# Cold users


@pytest.mark.parametrize(
    "history", [[], ["nowhere"], ["nowhere", "else"]], ids=["empty", "unknown", "two unknown"]
)
def test_a_cold_user_gets_what_is_popular(
    tiny_ranker: Ranker, tiny_bundle: Path, ids: list[str], history: list[str]
) -> None:
    shares = read_popularity(tiny_bundle, tiny_ranker.manifest)
    found = tiny_ranker.rank(history, k=60)
    best = by_score(shares.astype(np.float64))
    assert found.items == [ids[i] for i in best]
    assert found.scores.tolist() == shares[best].tolist()


@pytest.mark.parametrize(("unknown", "known", "cold"), [(0, 0, True), (2, 0, True), (2, 1, False)])
def test_only_users_without_a_known_event_are_cold(
    tiny_ranker: Ranker, ids: list[str], unknown: int, known: int, cold: bool
) -> None:
    assert tiny_ranker.rank(["nowhere"] * unknown + ids[:known]).cold is cold


def test_a_cold_user_gets_candidates_by_popularity(tiny_ranker: Ranker, ids: list[str]) -> None:
    full = tiny_ranker.rank([], k=60)
    found = tiny_ranker.rank([], candidates=ids[10:][::-1], k=60)
    assert found.items == [item for item in full.items if item in ids[10:]]


def test_a_cold_user_does_not_get_what_is_excluded(tiny_ranker: Ranker, ids: list[str]) -> None:
    full = tiny_ranker.rank([], k=60)
    found = tiny_ranker.rank([], exclude=full.items[:7], k=5)
    assert found.items == full.items[7:12]


@same_ranker
@given(batch=st.lists(st.lists(st.integers(55, 65), max_size=3), max_size=5))
def test_scores_are_never_nan(tiny_ranker: Ranker, ids: list[str], batch: list[list[int]]) -> None:
    names = [*ids, *(f"unknown {place}" for place in range(6))]
    found = tiny_ranker.rank_batch([[names[place] for place in row] for row in batch], k=60)
    assert all(np.isfinite(ranking.scores).all() for ranking in found)
