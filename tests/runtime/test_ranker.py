"""Rankings are right, alone and in batches, whatever lies around them."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ranklet import Ranker, Ranking
from ranklet.bundle.folder import read_popularity
from ranklet.engine.engine import MOST_EVENTS, MOST_USERS, History
from ranklet.golden import ask_model
from ranklet.time_gaps import UNKNOWN
from ranklet_export.parity import SCORE_TOLERANCE


def by_score(scores: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the places of scores, highest first, ties in order of place."""
    return np.lexsort((np.arange(len(scores)), -scores))


def by_torch(made: Any, histories: list[list[str]]) -> list[Ranking]:
    """Rank all items for histories with the model that was exported, each alone."""
    ids, found = [str(item) for item in made.ranker.vocabulary.all_ids], []
    table = made.model.table()
    for history in histories:
        indices = made.ranker.vocabulary.index(history)[-made.model.config.max_length :][None]
        gaps = None
        if made.model.config.time_gaps:
            gaps = torch.full(indices.shape, UNKNOWN), torch.full((1,), UNKNOWN)
        kinds = None
        if made.model.kinds:
            asked = torch.from_numpy(made.ranker.manifest.objective)[None]
            kinds = torch.zeros(indices.shape, dtype=torch.int64), asked
        user = made.model.serve(torch.from_numpy(indices), table, gaps, kinds)
        scores = (user @ table[1:].T)[0].detach().numpy()
        best = by_score(scores)
        found.append(Ranking([ids[place] for place in best], scores[best], 0, cold=False))
    return found


def drawn(ids: list[str], length: int, seed: int = 0) -> list[str]:
    return [ids[place] for place in np.random.default_rng(seed).integers(0, len(ids), length)]


# The order


@torch.no_grad()
def test_every_length_ranks_as_torch_alone_and_in_a_batch(
    any_model: Any, ids: list[str], same_order: Any
) -> None:
    ranker, longest = any_model.ranker, any_model.model.config.max_length
    histories = [drawn(ids, length, seed=length) for length in range(1, longest + 2)]
    together = ranker.rank_batch(histories, k=60)
    for history, found, expected in zip(
        histories, together, by_torch(any_model, histories), strict=True
    ):
        tolerance = SCORE_TOLERANCE[ranker.manifest.precision]
        same_order(found, expected, tolerance)
        same_order(ranker.rank(history, k=60), expected, tolerance)


@torch.no_grad()
def test_a_history_that_is_cut_into_chunks_ranks_as_torch(
    long_model: Any, ids: list[str], same_order: Any
) -> None:
    ranker = long_model.ranker
    assert ranker.manifest.programs["encode"].lengths == [1, 15]
    assert ranker.manifest.programs["encode_long"].lengths == [16, 40]
    histories = [drawn(ids, length, seed=length) for length in range(1, 42)]
    expected = by_torch(long_model, histories)
    for found in (
        [ranker.rank(history, k=60) for history in histories],
        ranker.rank_batch(histories, k=60),
        [ranker.user(history).rank(60) for history in histories],
    ):
        for one, other in zip(found, expected, strict=True):
            same_order(one, other)


def test_the_one_graph_for_others_answers_alike(
    any_model: Any, ids: list[str], same_order: Any
) -> None:
    ranker = any_model.ranker
    for length in (1, 5, 12, 30):
        history = drawn(ids, length, seed=length)
        found = ask_model(ranker.engine.programs, ranker.vocabulary, history, 60)
        tolerance = SCORE_TOLERANCE[ranker.manifest.precision]
        same_order(found, ranker.rank(history, k=60), tolerance)


def test_the_order_of_events_and_each_repetition_count(any_model: Any, ids: list[str]) -> None:
    config = any_model.model.config
    if config.kind == "seed" or not config.blocks or config.max_length == 1:
        pytest.skip("this model knows no order, or one event alone")
    rank, history = any_model.ranker.rank, ids[:6]
    before = rank(history, k=60).scores
    assert np.abs(before - rank([*history[4::-1], ids[5]], k=60).scores).max() > 1e-3
    assert np.abs(before - rank([*history, ids[5]], k=60).scores).max() > 1e-3


def test_integer_ids_get_the_ranking_of_the_same_items_as_text(
    tiny_ranker: Ranker, number_ranker: Ranker, ids: list[str]
) -> None:
    texts = tiny_ranker.rank([ids[0], ids[59], ids[1]], k=60)
    user = number_ranker.user([-30, 147])
    user.append(-27)
    for numbers in (number_ranker.rank([-30, 147, -27], k=60), user.rank(60)):
        assert {type(item) for item in numbers.items} == {int}
        assert [ids[(int(number) + 30) // 3] for number in numbers.items] == texts.items


@pytest.mark.parametrize("k", [1, 13, 30, 59, 60])
def test_ties_go_to_the_lower_index(tied_ranker: Ranker, ids: list[str], k: int) -> None:
    histories = [ids[place : place + 1 + place % 4] for place in range(20)]
    together, users = tied_ranker.rank_batch(histories, k=k), tied_ranker.users(histories)
    every = tied_ranker.eligible(ids)
    for row, (history, of_user) in enumerate(zip(histories, users.rank(k), strict=True)):
        user = tied_ranker.engine.encode([History(tied_ranker.vocabulary.index(history))])[0]
        scores = (tied_ranker.engine.table[1:6].astype(np.float64) @ user)[np.arange(60) % 5]
        expected = [ids[place] for place in by_score(scores)[:k]]
        for found in (together[row], of_user, tied_ranker.rank(history, k=k)):
            assert found.items == expected
        for options in ({"candidates": ids[::-1]}, {"eligible": every}):
            assert tied_ranker.rank(history, k=k, **options).items == expected


@pytest.mark.parametrize("width", [7, 16, 64, 100])
def test_candidates_with_equal_rows_have_equal_scores(tiny_ranker: Ranker, width: int) -> None:
    engine, random = copy.copy(tiny_ranker.engine), np.random.default_rng(0)
    engine.table = np.tile(random.normal(size=width).astype(np.float32), (61, 1))
    user = random.normal(size=width).astype(np.float32)
    for count in range(2, 61):  # BLAS takes the last few rows another way
        assert len(set(engine.score_rows(user, np.arange(1, 1 + count)).tolist())) == 1


# Length


@pytest.mark.parametrize("length", [13, 24, 500])
def test_a_history_longer_than_the_maximum_equals_its_end(
    tiny_ranker: Ranker, ids: list[str], length: int
) -> None:
    assert tiny_ranker.manifest.max_length == 12
    found, expected = (tiny_ranker.rank(drawn(ids, length)[begin:], k=60) for begin in (0, -12))
    assert (found.items, found.scores.tolist()) == (expected.items, expected.scores.tolist())


# Batches


def test_no_event_and_no_time_of_one_batch_is_left_for_the_next(
    any_model: Any, ids: list[str], same_order: Any
) -> None:
    ranker = any_model.ranker
    for step, lengths in enumerate([(12, 12, 12), (12, 1, 5), (5, 12, 1)]):
        histories = [drawn(ids, length, seed=step) for length in lengths]
        times, now = None, None
        if ranker.uses_times and step == 0:
            times, now = [[place**4 for place in range(12)]] * 3, [10**6] * 3
        found = ranker.rank_batch(histories, times=times, now=now, k=60)
        for row, history in enumerate(histories if times is None else ()):
            same_order(found[row], ranker.rank(history, k=60))


def test_a_batch_larger_than_one_run_keeps_its_order(
    tiny_ranker: Ranker, ids: list[str], same_order: Any
) -> None:
    count = max(MOST_USERS, MOST_EVENTS // 12) + 5
    histories = [[ids[place % 60]] * (1 + place % 15) for place in range(count)]
    for found, history in zip(tiny_ranker.rank_batch(histories, k=60), histories, strict=True):
        same_order(found, tiny_ranker.rank(history, k=60))


@pytest.mark.parametrize("histories", [[], (), np.zeros((0, 3), dtype=np.int64)], ids=type)
def test_a_batch_of_nothing_is_nothing(tiny_ranker: Ranker, histories: Any) -> None:
    assert tiny_ranker.rank_batch(histories) == []
    assert tiny_ranker.users(histories).rank() == []


def test_the_rows_of_a_matrix_are_lists(number_ranker: Ranker, same_order: Any) -> None:
    matrix = np.array([[-30, 0, 3], [6, 9, 147]], dtype=np.int32)
    for found, history in zip(number_ranker.rank_batch(matrix, k=60), matrix.tolist(), strict=True):
        same_order(found, number_ranker.rank(history, k=60))
    some = np.array([[0, 6], [9, 12]])
    found = number_ranker.rank_batch(matrix, candidates=some)
    assert [sorted(map(int, ranking.items)) for ranking in found] == some.tolist()
    found = number_ranker.rank_batch(matrix, k=60, exclude=some)
    assert [{0, 6, 9, 12} - set(ranking.items) for ranking in found] == [{0, 6}, {9, 12}]


# Cold users


@pytest.mark.parametrize("history", [[], ["nowhere"], ["nowhere", "else"]], ids=len)
def test_a_cold_user_gets_what_is_popular(
    tiny_ranker: Ranker, tiny_bundle: Path, ids: list[str], history: list[str]
) -> None:
    shares = read_popularity(tiny_bundle, tiny_ranker.manifest)
    best = by_score(shares)
    assert len(set(shares)) == 30  # so that there are ties
    for found in (tiny_ranker.rank(history, k=60), tiny_ranker.user(history).rank(60)):
        assert found.items == [ids[place] for place in best]
        assert found.scores.tolist() == shares[best].tolist()
        assert (found.cold, found.exact, found.unknown) == (True, True, len(history))
    wanted = ids[:20:-1]
    found = tiny_ranker.rank(history, k=5, candidates=wanted, exclude=ids[30:33])
    allowed = {*wanted} - {*ids[30:33]}
    assert found.items == [ids[place] for place in best if ids[place] in allowed][:5]


# The object


def test_a_ranker_says_what_it_is(tiny_ranker: Ranker, tiny_bundle: Path) -> None:
    assert repr(tiny_ranker) == f"Ranker({str(tiny_bundle)!r}, items=60, provider='cpu')"
    assert len(tiny_ranker) == 60


def test_rankings_can_be_compared_without_an_error(tiny_ranker: Ranker, ids: list[str]) -> None:
    found = tiny_ranker.rank(ids[:2])
    assert found in [tiny_ranker.rank(ids[:3]), found]


def test_a_warm_up_changes_no_answer(tiny_bundle: Path, long_model: Any, ids: list[str]) -> None:
    for folder in (tiny_bundle, long_model.ranker.path):
        cold, warm = (Ranker.load(folder, provider="cpu", warm_up=w) for w in (False, True))
        assert {"encode", "append", "score"} <= set(warm.engine.programs._sessions)
        assert warm.rank(ids[:5]).items == cold.rank(ids[:5]).items
