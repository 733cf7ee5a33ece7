"""Requests whose arrays are bound once get the answers of those that bring their own."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranklet import Ranker, Ranking
from ranklet import bound as bound_module
from ranklet import graph as graph_module
from ranklet import plain as plain_module

histories = st.lists(st.integers(0, 59), min_size=1, max_size=45)


@pytest.fixture
def ranker(tiny_bundle: Path) -> Ranker:
    return Ranker.load(tiny_bundle, provider="cpu")


def assert_equal(found: Ranking, expected: Ranking) -> None:
    assert found.items == expected.items
    assert found.scores.tolist() == expected.scores.tolist()
    assert (found.unknown, found.exact) == (expected.unknown, expected.exact)


def idle_runs(ranker: Ranker) -> int:
    assert ranker.plain is not None
    return sum(map(len, ranker.plain._idle.runs.values()))


@settings(deadline=None)
@given(
    history=histories,
    k=st.integers(1, 12),
    exclude_seen=st.booleans(),
    chosen=st.none() | st.sets(st.integers(0, 59), min_size=40),
)
def test_a_bound_run_answers_as_one_that_is_not(
    any_ranker: Ranker,
    ids: list[str],
    history: list[int],
    k: int,
    exclude_seen: bool,
    chosen: set[int] | None,
) -> None:
    asked = [ids[place] for place in history]
    eligible = None if chosen is None else any_ranker.eligible([ids[place] for place in chosen])
    found = any_ranker.rank(asked, k=k, exclude_seen=exclude_seen, eligible=eligible)
    (expected,) = any_ranker.rank_batch([asked], k=k, exclude_seen=exclude_seen, eligible=eligible)
    assert_equal(found, expected)


def test_requests_alike_are_bound_once(ranker: Ranker, ids: list[str]) -> None:
    for place in range(5):
        ranker.rank(ids[place : place + 3], k=5)
    assert idle_runs(ranker) == 1


def test_an_answer_stays_when_the_next_request_is_like_it(ranker: Ranker, ids: list[str]) -> None:
    first = ranker.rank(ids[:3], k=5)
    items, scores = list(first.items), first.scores.copy()
    assert ranker.rank(ids[7:10], k=5).scores.tolist() != scores.tolist()
    assert first.items == items
    assert first.scores.tolist() == scores.tolist()


def test_threads_that_ask_alike_get_the_serial_answers(ranker: Ranker, ids: list[str]) -> None:
    asked = [ids[place : place + 2 + place % 3] for place in range(50)] * 20
    serial = [ranker.rank(history, k=5) for history in asked]
    with ThreadPoolExecutor(16) as pool:
        parallel = list(pool.map(lambda history: ranker.rank(history, k=5), asked))
    for found, expected in zip(parallel, serial, strict=True):
        assert_equal(found, expected)


def test_a_selection_is_not_kept_alive(ranker: Ranker, ids: list[str]) -> None:
    eligible = ranker.eligible(ids[:30])
    bias = weakref.ref(eligible.bias)
    assert set(ranker.rank(ids[:3], k=5, eligible=eligible).items) <= set(ids[:30])
    del eligible
    gc.collect()
    assert bias() is None


def test_what_is_kept_is_bounded(
    ranker: Ranker, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ranker.plain is not None
    monkeypatch.setattr(bound_module, "MOST_KEPT", 6 * bound_module.RUN_BYTES)
    for length in range(1, 30):
        found = ranker.rank(ids[:length], k=5)
        assert_equal(found, ranker.rank_batch([ids[:length]], k=5)[0])
        assert ranker.plain._idle.bytes <= bound_module.MOST_KEPT
        assert 1 <= idle_runs(ranker) <= 5


def test_the_masks_that_are_kept_are_bounded(
    ranker: Ranker, tiny_ranker: Ranker, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 6000  # bytes; masks of 20 events take 3,360, those of all lengths up to 20 24,640
    monkeypatch.setattr(graph_module, "MOST_KEPT", most)
    several = 0
    for length in range(1, 21):
        (found,), (expected,) = (r.rank_batch([ids[:length]]) for r in (ranker, tiny_ranker))
        assert_equal(found, expected)
        kept = [mask for masks in ranker.graphs._masks.values() for mask in masks.values()]
        assert 0 < sum(mask.nbytes for mask in kept) == ranker.graphs._kept_bytes <= most
        several += len(kept) > 2
    assert several >= 10


@pytest.mark.parametrize("limit", ["LONGEST_KEPT", "MOST_ANSWERS"])
def test_longer_requests_are_answered_unbound(
    ranker: Ranker, ids: list[str], monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    expected = ranker.rank(ids[:6], k=6)
    assert idle_runs(ranker) == 1
    assert ranker.plain is not None
    ranker.plain._idle.runs.clear()
    monkeypatch.setattr(plain_module, limit, 5)
    found = ranker.rank(ids[:6], k=6)
    assert idle_runs(ranker) == 0
    assert found.items == expected.items
    assert np.array_equal(found.scores, expected.scores)
