"""Sessions whose arrays stay on a device answer as those of the CPU.

They run everywhere on arrays of the CPU, with a session that records as onnxruntime does on CUDA,
and once more on CUDA where there is a GPU (``pytest -m cuda``).
"""

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnxruntime import OrtValue

from ranklet import ProviderError, Ranker, Ranking
from ranklet import device as device_module
from ranklet import graph as graph_module
from ranklet import provider as provider_module
from ranklet.device import UNRECORDED, DeviceArray, DeviceSession
from ranklet.provider import ORT_NAMES, RECORD, create_session, on_cuda

ITEMS = 60
HOUR = 3600
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
Same = Callable[[Ranking, Ranking], None]


class Recording:
    """A session on the CPU; a number stands for the arrays that it was first run on."""

    def __init__(self, session: Any) -> None:
        self.session, self.recorded = session, dict[str, Any]()
        self.get_inputs, self.get_outputs = session.get_inputs, session.get_outputs
        self.io_binding = session.io_binding

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {ORT_NAMES["cuda"]: {RECORD: "1"}}

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        number = options.get_run_config_entry("gpu_graph_id")
        if number == UNRECORDED:
            self.session.run_with_iobinding(binding)
        elif number in self.recorded:
            self.replay(self.recorded[number])
        else:
            self.record(number, binding)

    def record(self, number: str, binding: Any) -> None:
        self.session.run_with_iobinding(binding)
        self.recorded[number] = binding

    def replay(self, binding: Any) -> None:
        self.session.run_with_iobinding(binding)


class Forgetful(Recording):
    def replay(self, binding: Any) -> None:
        pass


class Refusing(Recording):
    def record(self, number: str, binding: Any) -> None:
        super().record(number, binding)  # as one that fails at its end
        raise RuntimeError("operation not permitted when stream is capturing")

    def replay(self, binding: Any) -> None:
        raise AssertionError("what failed is replayed")


def load(
    bundle: Path,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
    session: Callable[[Any], Any] = Recording,
) -> Ranker:
    """Load a ranker whose arrays stay on a device."""
    if device == "cuda":
        try:
            return Ranker.load(bundle, provider="cuda")
        except ProviderError as error:
            pytest.skip(f"CUDA does not run here: {error}")

    def create(graph: Path, provider: Any, threads: int) -> Any:
        if provider == "cpu":  # of another ranker
            return create_session(graph, provider, threads)
        return session(create_session(graph, "cpu", threads)[0]), "cuda"

    monkeypatch.setattr(graph_module, "create_session", create)
    monkeypatch.setattr(graph_module, "DeviceSession", lambda made, _: DeviceSession(made, "cpu"))
    return Ranker.load(bundle)


@pytest.fixture(params=DEVICES)
def ranker(
    request: pytest.FixtureRequest, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> Ranker:
    return load(tiny_bundle, request.param, monkeypatch)


@pytest.fixture(params=DEVICES)
def pair(
    request: pytest.FixtureRequest, any_model: Any, monkeypatch: pytest.MonkeyPatch
) -> tuple[Ranker, Ranker]:
    """A ranker of every kind of model on a device, and the same on the CPU."""
    return load(any_model.ranker._opened.folder, request.param, monkeypatch), any_model.ranker


@pytest.fixture
def same_order(same_order: Callable[..., None]) -> Same:
    return partial(same_order, tolerance=1e-3)  # CUDA sums in orders of its own


def draw(count: int, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return [f"i{number:05}" for number in random.integers(0, ITEMS, count)]


def kinds(session: Any) -> int:
    assert isinstance(session, DeviceSession)
    return len(session._kinds)


# Answers


@pytest.mark.parametrize("k", [5, ITEMS])
def test_every_length_ranks_as_on_the_cpu(
    pair: tuple[Ranker, Ranker], same_order: Same, k: int
) -> None:
    found, expected = pair
    for length in range(1, 2 * expected.manifest.max_length + 1):
        history = draw(length, seed=length)
        for exclude_seen in (False, True):
            same_order(
                found.rank(history, k=k, exclude_seen=exclude_seen),
                expected.rank(history, k=k, exclude_seen=exclude_seen),
            )


@pytest.mark.parametrize("rows", [1, 2, 3, 9, 40])
def test_a_ragged_batch_ranks_as_on_the_cpu(
    pair: tuple[Ranker, Ranker], same_order: Same, rows: int
) -> None:
    found, expected = pair
    histories = [draw(1 + row % 20, seed=row) for row in range(rows)] + [[], ["nowhere"]]
    for seen in (False, True):
        wanted = expected.rank_batch(histories, exclude_seen=seen)
        for one, other in zip(found.rank_batch(histories, exclude_seen=seen), wanted, strict=True):
            same_order(one, other)


def test_candidates_and_eligible_items_rank_as_on_the_cpu(
    pair: tuple[Ranker, Ranker], same_order: Same
) -> None:
    found, expected = pair
    for seed in range(3):  # each brings a bias of its own
        history, some = draw(7, seed), sorted(set(draw(50, seed + 10)))
        answers = [
            [
                ranker.rank(history, candidates=some),
                ranker.rank(history, eligible=ranker.eligible(some)),
                ranker.rank(history),
            ]
            for ranker in (found, expected)
        ]
        for one, other in zip(*answers, strict=True):
            same_order(one, other)


def test_times_rank_as_on_the_cpu(
    exported: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, same_order: Same
) -> None:
    expected = exported(time_gaps=True).ranker
    found = load(expected._opened.folder, "cpu", monkeypatch)
    for length in (1, 5, 9, 12):
        times = [HOUR * place**2 for place in range(length)]
        asked: Any = {"times": times, "now": times[-1] + 9 * HOUR}
        same_order(found.rank(draw(length), **asked), expected.rank(draw(length), **asked))


# Users


def test_a_user_ranks_as_on_the_cpu_and_beyond_the_window(
    pair: tuple[Ranker, Ranker], same_order: Same
) -> None:
    users = [ranker.user(draw(3)) for ranker in pair]
    for item in draw(60, seed=1):  # leaves the table of positions
        for user in users:
            user.append(item)
        same_order(users[0].rank(ITEMS), users[1].rank(ITEMS))
        same_order(users[0].rank(ITEMS), users[1].rank(ITEMS))  # again, without a new event


def test_a_state_stays_on_the_device(ranker: Ranker, ids: list[str]) -> None:
    user = ranker.user(ids[:5])
    user.rank()
    assert all(isinstance(part, DeviceArray) for part in user._state)
    assert {part.shape[-2] for part in user._state} == {5}


def test_a_user_moves_between_a_device_and_the_cpu(
    ranker: Ranker, tiny_ranker: Ranker, ids: list[str], same_order: Same
) -> None:
    user = ranker.user(ids[:5])
    user.rank()
    other = tiny_ranker.user().load(user.save())
    back = ranker.user().load(other.save())
    for one in (user, other, back):
        one.append(ids[9])
        same_order(one.rank(), tiny_ranker.rank([*ids[:5], ids[9]]))


def test_users_in_a_batch_rank_as_on_the_cpu(pair: tuple[Ranker, Ranker], same_order: Same) -> None:
    histories = [draw(length, seed=length) for length in (0, 1, 3, 12, 13, 40, 3)]
    users = [ranker.users(histories) for ranker in pair]
    for place in range(15):
        for one, other in zip(*(some.rank() for some in users), strict=True):
            same_order(one, other)
        events = draw(len(histories), seed=100 + place)
        for some in users:
            some.append(events)


# What is kept


def test_an_answer_stays_as_it_was_when_the_next_request_comes(
    ranker: Ranker, ids: list[str]
) -> None:
    first = ranker.rank(ids[:5])
    before = (first.items, first.scores.tolist(), first.exact)
    ranker.rank(ids[5:10])
    assert (first.items, first.scores.tolist(), first.exact) == before


def test_a_request_is_not_answered_from_the_one_before(
    ranker: Ranker, tiny_ranker: Ranker, ids: list[str], same_order: Same
) -> None:
    for place in range(10):
        asked, k = ids[place : place + 6], 3 + place % 2
        same_order(ranker.rank(asked, k=k), tiny_ranker.rank(asked, k=k))


def test_lengths_share_a_power_of_two(ranker: Ranker, ids: list[str]) -> None:
    for length in range(1, 31):  # 8, 16, and 20, the longest
        ranker.rank(ids[:length])
    assert kinds(ranker.graphs.session) == 3
    for rows in (3, 4):
        ranker.rank_batch([ids[:9]] * rows)
    assert kinds(ranker.graphs.session) == 4


def test_a_warm_up_meets_every_length(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(tiny_bundle, "cpu", monkeypatch)
    ranker = Ranker.load(tiny_bundle, warm_up=True)
    assert kinds(ranker.graphs.session) == 3
    for length in range(1, 31):
        ranker.rank([str(item) for item in ranker.vocabulary.all_ids[:length]])
    assert kinds(ranker.graphs.session) == 3


def test_kinds_beyond_the_most_are_answered_and_not_kept(
    ranker: Ranker,
    tiny_ranker: Ranker,
    ids: list[str],
    monkeypatch: pytest.MonkeyPatch,
    same_order: Same,
) -> None:
    monkeypatch.setattr(device_module, "MOST_RECORDED", 2)
    for length in (3, 9, 20, 3, 20):
        same_order(ranker.rank(ids[:length]), tiny_ranker.rank(ids[:length]))
    assert kinds(ranker.graphs.session) == 2


def test_threads_share_a_session(
    ranker: Ranker, tiny_ranker: Ranker, ids: list[str], same_order: Same
) -> None:
    asked = [ids[place % 40 : place % 40 + 1 + place % 12] for place in range(200)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ranker.rank, asked))
    for one, history in zip(found, asked, strict=True):
        same_order(one, tiny_ranker.rank(history))


# What fails


@pytest.mark.parametrize(
    ("session", "message"),
    [(Forgetful, "a CUDA graph answers otherwise"), (Refusing, "not permitted when stream")],
)
def test_what_can_not_be_recorded_runs_without_and_says_so(
    session: Any,
    message: str,
    tiny_bundle: Path,
    tiny_ranker: Ranker,
    ids: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    same_order: Same,
) -> None:
    ranker = load(tiny_bundle, "cpu", monkeypatch, session)
    for length in (3, 5, 12, 4):
        same_order(ranker.rank(ids[:length]), tiny_ranker.rank(ids[:length]))
    assert [message in record.message for record in caplog.records] == [True, True]


def test_a_number_is_never_recorded_twice(
    tiny_bundle: Path, tiny_ranker: Ranker, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ranker = load(tiny_bundle, "cpu", monkeypatch)
    copy = device_module._copy
    monkeypatch.setattr(device_module, "_copy", fail)  # after the run that is to be recorded
    with pytest.raises(ProviderError, match="out of memory"):
        ranker.rank(ids[:3])
    monkeypatch.setattr(device_module, "_copy", copy)
    assert ranker.rank(ids[:12]).items == tiny_ranker.rank(ids[:12]).items
    assert sorted(ranker.graphs.session._session.recorded) == ["2"]  # type: ignore[union-attr]


@pytest.mark.parametrize("copies", range(5))
def test_a_copy_that_fails_leaves_nothing_to_the_next_request(
    copies: int,
    ranker: Ranker,
    tiny_ranker: Ranker,
    ids: list[str],
    monkeypatch: pytest.MonkeyPatch,
    same_order: Same,
) -> None:
    ranker.rank(ids[:5])
    copy, done = OrtValue.update_inplace, itertools.count()

    def copy_some(value: OrtValue, array: Any) -> None:
        copy(value, array)
        if next(done) == copies:
            fail()

    monkeypatch.setattr(OrtValue, "update_inplace", copy_some)
    with pytest.raises(ProviderError, match="out of memory"):
        ranker.rank(ids[10:14], eligible=ranker.eligible(ids[10:58]))
    monkeypatch.setattr(OrtValue, "update_inplace", copy)
    same_order(ranker.rank(ids[:5]), tiny_ranker.rank(ids[:5]))


def fail(*_: object) -> None:
    raise RuntimeError("out of memory")


def test_threads_that_ask_at_once_share_the_thread_of_cuda() -> None:
    for _ in range(20):
        provider_module._cuda_thread.cache_clear()
        start = threading.Barrier(4)

        def ask(start: threading.Barrier = start) -> int:
            start.wait()
            return on_cuda(threading.get_ident)

        with ThreadPoolExecutor(4) as pool:
            found = [pool.submit(ask) for _ in range(4)]
        assert len({future.result() for future in found}) == 1


def test_all_runs_are_of_one_thread(
    tiny_bundle: Path, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = set[int]()

    class Watching(Recording):
        def run_with_iobinding(self, binding: Any, options: Any) -> None:
            threads.add(threading.get_ident())
            super().run_with_iobinding(binding, options)

    rankers = [load(tiny_bundle, "cpu", monkeypatch, Watching) for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda place: rankers[place % 2].rank(ids[:place]), range(1, 20)))
        list(pool.map(lambda place: rankers[0].rank(ids[:place], candidates=ids), range(1, 9)))
    assert len(threads) == 1
    assert threading.get_ident() not in threads
