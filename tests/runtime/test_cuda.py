"""Arrays that have a twin on a device answer as those of the CPU.

They run everywhere on twins in memory of the CPU, which onnxruntime alone reads and writes, and
once more on CUDA where there is a GPU (``pytest -m cuda``).
"""

import dataclasses
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from ranklet import ProviderError, Ranker
from ranklet.engine import programs, runs
from ranklet.engine.sessions import create_session

ITEMS = 60
DEVICES = ["twins", pytest.param("cuda", marks=pytest.mark.cuda)]
Pair = tuple[Ranker, Ranker]


def twin(array: np.ndarray[Any, Any], device: str) -> Any:
    """Return what onnxruntime sees of an array: itself, or a copy of it."""
    array = array if device == "cpu" else array.copy()
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def load(bundle: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> Ranker:
    """Load a ranker whose arrays are not those that onnxruntime sees."""
    if device == "cuda":
        try:
            return Ranker.load(bundle, provider="cuda")
        except ProviderError as error:
            pytest.skip(f"CUDA does not run here: {error}")
    module = SimpleNamespace(OrtValue=SimpleNamespace(ortvalue_from_numpy=twin))
    monkeypatch.setattr(runs, "onnxruntime", module)

    def create(graph: Path, _: Any, threads: int) -> Any:
        return create_session(graph, "cpu", threads)[0], "cuda"

    with monkeypatch.context() as patch:
        patch.setattr(programs, "create_session", create)
        ranker = Ranker.load(bundle, provider="cuda")
        for name in ranker.manifest.programs:
            ranker.engine.programs.session(name)
    return ranker


@pytest.fixture(params=DEVICES)
def ranker(
    request: pytest.FixtureRequest, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> Ranker:
    return load(tiny_bundle, request.param, monkeypatch)


@pytest.fixture(params=DEVICES)
def pair(request: pytest.FixtureRequest, any_model: Any, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """A ranker on a device, and the same on the CPU."""
    return load(any_model.ranker.path, request.param, monkeypatch), any_model.ranker


@pytest.fixture
def same_order(same_order: Callable[..., None]) -> Any:
    return partial(same_order, tolerance=1e-3)  # CUDA sums in orders of its own


def draw(count: int, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return [f"i{number:05}" for number in random.integers(0, ITEMS, count)]


def test_a_device_is_where_it_runs(ranker: Ranker) -> None:
    assert ranker.provider == "cuda"
    assert not any(value.is_shared for _, _, value in ranker.user()._kept.state.values)
    assert ranker.engine.users_of_state == 1


def test_requests_rank_as_on_the_cpu(pair: Pair, same_order: Any) -> None:
    for length in range(1, 26):
        history, some = draw(length, length), sorted(set(draw(50, length)))
        parts = [ranker.eligible(some) for ranker in pair]  # each brings a bias of its own
        asks: list[Callable[[int], dict[str, Any]]] = [
            lambda _: {"exclude_seen": True},
            lambda row, parts=parts: {"eligible": parts[row]},
            lambda row, parts=parts: {"eligible": parts[row], "exclude": draw(9)},
            lambda _: {"exclude": draw(9), "k": 5},
            lambda _, some=some: {"candidates": some},
            lambda _: {},
        ]
        for ask in asks:
            same_order(*(ranker.rank(history, **ask(row)) for row, ranker in enumerate(pair)))


@pytest.mark.parametrize("rows", [1, 9, 70])
def test_a_ragged_batch_ranks_as_on_the_cpu(pair: Pair, same_order: Any, rows: int) -> None:
    histories = [draw(1 + row % 20, seed=row) for row in range(rows)] + [[], ["nowhere"]]
    for seen in (False, True, False):
        found, expected = (ranker.rank_batch(histories, exclude_seen=seen) for ranker in pair)
        for one, other in zip(found, expected, strict=True):
            same_order(one, other)


def test_users_rank_as_on_the_cpu_and_beyond_the_window(pair: Pair, same_order: Any) -> None:
    users = [ranker.user(draw(3)) for ranker in pair]
    many = [ranker.users([draw(length) for length in (0, 1, 12, 40)]) for ranker in pair]
    for place in range(25):
        for user, some in zip(users, many, strict=True):
            user.extend(draw(1 + place % 6, seed=place))
            some.append(draw(4, seed=100 + place))
        for _ in range(2):  # again, without a new event
            same_order(*(user.rank(ITEMS, exclude_seen=place % 2 == 0) for user in users))
        for one, other in zip(*(some.rank() for some in many), strict=True):
            same_order(one, other)
        back = pair[0].user(draw(2)).load(pair[1].user().load(users[0].save()).save())
        same_order(back.rank(ITEMS), users[1].rank(ITEMS))


def test_times_rank_as_on_the_cpu(exported: Any, monkeypatch: Any, same_order: Any) -> None:
    expected = exported(time_gaps=True).ranker
    found = load(expected.path, "twins", monkeypatch)
    for length in (1, 5, 12):
        asked: Any = {"times": [place**4 for place in range(length)], "now": 10**6}
        same_order(found.rank(draw(length), **asked), expected.rank(draw(length), **asked))


@pytest.mark.parametrize("step", ["ortvalue_from_numpy", "update_inplace", "numpy"])
def test_memory_of_a_device_that_fails_is_named_and_leaves_nothing_behind(
    tiny_bundle: Path, ids: list[str], monkeypatch: pytest.MonkeyPatch, step: str, same_order: Any
) -> None:
    ranker, cpu = load(tiny_bundle, "twins", monkeypatch), Ranker.load(tiny_bundle, provider="cpu")
    is_made = step == "ortvalue_from_numpy"
    owner: Any = runs.onnxruntime.OrtValue if is_made else onnxruntime.OrtValue
    do, kept, failed = getattr(owner, step), ranker.user(ids[:5]), 0
    calls: list[Callable[[], object]] = [
        lambda: ranker.rank(ids[10:14], k=7, exclude_seen=True),
        lambda: ranker.rank(ids[10:14], eligible=ranker.eligible(ids[10:58])),
        lambda: ranker.user(ids[:5]).rank(60),
        lambda: (kept.append("nowhere"), kept.rank()),
        lambda: ranker.user().load(kept.save()),
    ]
    for call in calls:
        for left in itertools.count():
            countdown = itertools.count(left, -1)

            def fail(*arguments: Any, countdown: Any = countdown) -> Any:
                if next(countdown) == 0:
                    raise RuntimeError("out of memory")
                return do(*arguments)

            with monkeypatch.context() as patch:
                patch.setattr(owner, step, fail)
                try:
                    call()
                    break
                except ProviderError as error:
                    failed += str(error) == "onnxruntime failed on cuda: out of memory"
            for one in (ranker, kept):
                arguments = [ids[:5]] if one is ranker else []
                found = one.rank(*arguments, k=60)
                same_order(dataclasses.replace(found, unknown=0), cpu.rank(ids[:5], k=60))
    assert failed > 4
