"""Arrays that stay from one request to the next carry nothing over, and do not become many."""

import copy
import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from ranklet import ProviderError, Ranker, Ranking
from ranklet.engine.engine import MOST_SCORES, Event, History
from ranklet.engine.runs import RUN_BYTES, Run, Runs


def idle(ranker: Ranker) -> list[Run]:
    return [run for runs in ranker.engine._runs._idle.values() for run in runs]


def answer(found: Ranking) -> tuple[Any, ...]:
    return found.items, found.scores.tolist(), found.unknown, found.cold, found.exact


# What is shared


def test_requests_alike_share_their_arrays(ranker: Ranker, ids: list[str]) -> None:
    for place in range(5):
        ranker.rank(ids[place : place + 3], k=5)
    assert len(idle(ranker)) == 2  # one that encodes and one that scores
    users = [ranker.user(ids[place : place + 4]) for place in range(5)]
    for _ in range(3):
        for user in users:
            user.append(ids[30])
            user.rank(5)
    assert len(idle(ranker)) == 4  # one that encodes with states, and one that appends


def test_an_answer_stays_when_the_next_request_is_like_it(ranker: Ranker, ids: list[str]) -> None:
    user, engine = ranker.user(ids[:3]), ranker.engine
    state = engine.empty_state(1)
    asks: list[Callable[[int], Any]] = [
        lambda place: answer(ranker.rank(ids[place : place + 3], k=5)),
        lambda place: ranker.rank_batch([ids[place : place + 3]] * 9, k=5)[8].scores,
        lambda place: ranker.rank(ids[place : place + 3], candidates=ids).scores,
        lambda place: (user.append(ids[place]), user.rank(5).scores)[1],
        lambda place: engine.encode([History(np.array([place, 5]))]),
        lambda place: engine.encode_states([History(np.array([place, 5]))])[1][0][0],
        lambda place: engine.attention(History(np.array([place, 5]))),
        lambda place: engine.append(state, [Event(place, 0)]),
        *(lambda place, part=part: engine.score(vectors[place], 5, 32)[part] for part in range(3)),
    ]
    vectors = {place: engine.encode([History(np.array([place]))]) for place in (3, 7)}
    for ask in asks:
        first = ask(3)
        before = copy.deepcopy(first)
        assert repr(ask(7)) != repr(before)
        assert repr(first) == repr(before)


def test_an_answer_keeps_no_batch_and_no_state(tiny_ranker: Ranker, ids: list[str]) -> None:
    users = tiny_ranker.users([ids[:40]] * 30)
    users.append(ids[:30])
    for ranking in (users.rank()[0], users[0].rank(), *tiny_ranker.rank_batch([ids[:9]] * 2)):
        margin = ranking._margin or pytest.fail("nothing to prove")
        assert (margin.user.base, margin.user.shape) == (None, (tiny_ranker.manifest.width,))
        assert isinstance(margin.last, float)
        assert isinstance(margin.floor, float)
        assert "_margin" not in repr(ranking)


# The bias


def filters(ranker: Ranker, ids: list[str]) -> list[tuple[dict[str, Any], set[str]]]:
    """Return options of a request, which leave few items or a whole pool, and what they allow."""
    some, few = ranker.eligible(ids[5:58]), ranker.eligible(ids[:17])
    return [
        ({"exclude": ids[8:20]}, {*ids} - {*ids[8:20]}),
        ({"exclude": [ids[9]] * 3}, {*ids} - {ids[9]}),
        ({"exclude_seen": True}, {*ids}),
        ({"exclude": ids[:50]}, {*ids[50:]}),
        ({"eligible": some}, {*ids[5:58]}),
        ({"eligible": few}, {*ids[:17]}),
        ({"eligible": some, "exclude": ids[30:]}, {*ids[5:30]}),
        ({"eligible": few, "exclude_seen": True}, {*ids[:17]}),
    ]


def asked_in_every_way(ranker: Ranker, ids: list[str], options: dict[str, Any]) -> list[Ranking]:
    """Rank five times: alone, in a batch, and for a user after one event and again."""
    rows = {key: [value] * 2 for key, value in options.items() if key == "exclude"}
    user = ranker.user(ids[:6])
    first = user.rank(10, **options)
    user.append(ids[6])
    return [
        ranker.rank(ids[:7], k=10, **options),
        *ranker.rank_batch([ids[:7], ids[:6]], k=10, **{**options, **rows}),
        first,
        user.rank(10, **options),
    ]


def test_no_filter_is_left_for_the_next_request(any_precision: Ranker, ids: list[str]) -> None:
    full = any_precision.rank(ids[:7], k=60).items, any_precision.rank(ids[:6], k=60).items
    asked, nothing = filters(any_precision, ids), (dict[str, Any](), {*ids})
    for options, allowed in [*asked, nothing, *asked[::-1], nothing]:
        for row, found in enumerate(asked_in_every_way(any_precision, ids, options)):
            events = 6 if row in (2, 3) else 7
            gone = {*ids[:events]} if options.get("exclude_seen") else set()
            wanted = [item for item in full[7 - events] if item in allowed - gone][:10]
            assert found.items == wanted, (options, row)
    assert not any_precision.engine.bias[0, 1:61].any()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_request_that_fails_leaves_no_filter(
    ranker: Ranker, ids: list[str], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    go, expected = Run.go, [answer(one) for one in asked_in_every_way(ranker, ids, {})]
    users = [ranker.users([ids[:5], ids[:6]]) for _ in range(8)]
    for options, _ in filters(ranker, ids):
        for found in asked_in_every_way(ranker, ids, options):  # so that all arrays are there
            assert found.items

        def fail(self: Run) -> None:
            is_score = "k" in self.inputs
            if when == "after" or not is_score:
                go(self)
            if is_score:
                raise ProviderError("out of memory")

        of_users = {key: value for key, value in options.items() if key != "exclude"}
        with monkeypatch.context() as patch:
            patch.setattr(Run, "go", fail)
            for ask in (
                lambda options=options: ranker.rank(ids[:7], k=10, **options),
                lambda options=options: ranker.user(ids[:7]).rank(10, **options),
                lambda of_users=of_users: users.pop().rank(10, **of_users),
            ):
                with pytest.raises(ProviderError, match="out of memory"):
                    ask()
        assert [answer(one) for one in asked_in_every_way(ranker, ids, {})] == expected


def test_a_selection_is_not_kept_alive(ranker: Ranker, ids: list[str]) -> None:
    user, users = ranker.user(ids[:3]), ranker.users([ids[:3]])
    for exclude_seen in (False, True):
        options: dict[str, Any] = {"eligible": ranker.eligible(ids[:40]), "k": 5}
        options["exclude_seen"] = exclude_seen
        ranker.rank(ids[:3], **options)
        bias = weakref.ref(options["eligible"]._compiled[1].table)
        ranker.rank_batch([ids[:3]] * 9, **options)
        user.rank(**options)
        users.rank(**options)
        del options
        gc.collect()
        assert bias() is None


def test_a_user_that_is_gone_is_not_kept_alive_by_many_others(
    ranker: Ranker, ids: list[str]
) -> None:
    states = []
    for place in range(9):
        user = ranker.user(ids[place : place + 3])
        for item in ids[20:23]:
            user.rank()
            user.append(item)
        states.append(weakref.ref(next(iter(user._kept.state.arrays.values()))))
    del user
    gc.collect()
    assert sum(state() is not None for state in states) <= 1  # of the last that was appended to


# Memory


def test_what_is_kept_is_bounded(
    ranker: Ranker, tiny_ranker: Ranker, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 6 * RUN_BYTES
    monkeypatch.setattr(ranker.engine, "_runs", Runs(most))
    user, other, several = ranker.user(ids[:3]), tiny_ranker.user(ids[:3]), 0
    for count in range(1, 40):
        found = ranker.rank(ids[: 1 + count % 12], k=count, exclude=ids[:count])
        expected = tiny_ranker.rank(ids[: 1 + count % 12], k=count, exclude=ids[:count])
        assert answer(found) == answer(expected)
        for one in (user, other):
            one.append(ids[count])
        assert answer(user.rank(count)) == answer(other.rank(count))
        assert ranker.engine._runs.bytes <= most
        assert sum(run.bytes + RUN_BYTES for run in idle(ranker)) <= most
        several += len(idle(ranker)) > 2
    assert several > 9


def test_runs_are_counted_with_all_arrays_that_they_hold(ranker: Ranker, ids: list[str]) -> None:
    before = ranker.engine._runs.bytes
    ranker.rank_batch([ids[:3]] * 8, k=30, exclude_seen=True)
    run = max(idle(ranker), key=lambda run: run.bytes)
    # 8 users: items, scores, the pool's scores, the bias of 64 rows, the users themselves.
    assert run.bytes == 8 * (30 * 12 + 57 * 4 + 64 * 4 + 16 * 4) + 2 * 8
    assert ranker.engine._runs.bytes - before >= run.bytes
    ranker.users([ids[:3]] * 9).rank()
    (run,) = (run for run in idle(ranker) if "position" in run.inputs)
    # 9 users: item and position, the user itself, and the state that the run was bound to last.
    assert run.bytes == 9 * (2 * 8 + 16 * 4 + 3 * 12 * 16 * 4)


def test_more_users_than_one_run_scores_are_split(
    ranker: Ranker, tiny_ranker: Ranker, ids: list[str]
) -> None:
    assert ranker.engine.most_users == 64 <= MOST_SCORES // 64
    ranker.engine.most_users = 3
    histories = [ids[place : place + 4] for place in range(10)]
    expected = tiny_ranker.rank_batch(histories, k=5)
    found = ranker.rank_batch(histories, k=5)
    assert [one.items for one in found] == [one.items for one in expected]
    assert {len(run.inputs["user"]) for run in idle(ranker) if "k" in run.inputs} == {3, 1}


# Threads


def test_threads_that_share_a_ranker_get_the_serial_answers(ranker: Ranker, ids: list[str]) -> None:
    some = ranker.eligible(ids[:45])
    asked: list[Callable[[], Ranking]] = []
    for place in range(40):
        history, k = ids[place : place + 2 + place % 3], 3 + place % 3
        asked += [
            lambda h=history, k=k: ranker.rank(h, k=k),
            lambda h=history, k=k: ranker.rank(h, k=k, exclude_seen=True),
            lambda h=history, k=k: ranker.rank(h, k=k, eligible=some),
            lambda h=history, k=k: ranker.rank(h, k=k, eligible=some, exclude=h),
        ]
    serial = [answer(ask()) for ask in asked]
    with ThreadPoolExecutor(8) as pool:
        assert [answer(one) for one in pool.map(lambda ask: ask(), asked * 4)] == serial * 4


def test_two_threads_never_share_a_run(
    ranker: Ranker, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    go, both, used = Run.go, Barrier(2, timeout=30), set[int]()

    def meet(self: Run) -> None:
        both.wait()  # a thread alone would wait for ever
        used.add(id(self))
        go(self)

    monkeypatch.setattr(Run, "go", meet)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: ranker.rank(ids[:4], exclude_seen=True), range(2)))
    assert len(used) == len(idle(ranker)) == 4


# What fails


class Broken:
    """A session whose runs fail."""

    def __init__(self, session: Any) -> None:
        self.io_binding = session.io_binding

    def run_with_iobinding(self, _: object) -> None:
        raise RuntimeError("out of memory")


def test_an_error_of_onnxruntime_is_named(ranker: Any, ids: list[str], monkeypatch: Any) -> None:
    load = ranker.engine.programs.session
    monkeypatch.setattr(ranker.engine.programs, "session", lambda name: Broken(load(name)))
    asks: list[Callable[[], object]] = [
        lambda: ranker.rank(ids[:2]),
        lambda: ranker.rank_batch([ids[:2], ids[:1]]),
        lambda: ranker.rank(ids[:2], candidates=ids),
        lambda: ranker.user(ids[:2]).rank(),
        lambda: ranker.users([ids[:2], ids[:1]]).rank(),
    ]
    for ask in asks:
        with pytest.raises(ProviderError, match="onnxruntime failed on cpu: out of memory"):
            ask()


@pytest.mark.parametrize("new", [1, 4, 5])
def test_a_user_outlives_an_error_of_onnxruntime(
    ranker: Ranker, ids: list[str], monkeypatch: pytest.MonkeyPatch, new: int
) -> None:
    user, expected = ranker.user(ids[:30]), ranker.user(ids[:30])
    for one in (user, expected):
        one.rank()
        one.extend(ids[30 : 30 + new])

    def fail(_: Run) -> None:
        raise ProviderError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Run, "go", fail)
        for _ in range(2):
            with pytest.raises(ProviderError, match="out of memory"):
                user.rank()
    assert user.rank(60).items == expected.rank(60).items


def test_the_engine_encodes_lengths_together_as_alone(any_model: Any) -> None:
    engine, random = any_model.ranker.engine, np.random.default_rng(0)
    longest = min(12, any_model.model.config.max_length)
    histories = [History(random.integers(1, 61, 1 + row % longest)) for row in range(14)]
    together, states = engine.encode_states(histories)
    for row, history in enumerate(histories):
        (alone,), (state,) = engine.encode_states([history])
        np.testing.assert_allclose(together[row], alone, atol=1e-5)
        for padded, whole in zip(states[row], state, strict=True):
            np.testing.assert_allclose(padded[: len(whole)], whole, atol=1e-5)
