"""The provider that was asked for is the one that runs, or an error says why not."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import onnxruntime
import pytest

from ranklet import BundleError, InputError, ProviderError, Ranker
from ranklet.engine import programs
from ranklet.engine import sessions as sessions_module
from ranklet.engine.sessions import ORT_NAMES, create_session

HAS_CUDA = ORT_NAMES["cuda"] in onnxruntime.get_available_providers()
needs_cpu_build = pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has CUDA")

CPU, CUDA = ORT_NAMES["cpu"], ORT_NAMES["cuda"]


class FakeSession:
    """A session that runs on ``active``."""

    def __init__(self, active: list[str]) -> None:
        self.active = active

    def get_providers(self) -> list[str]:
        return self.active


@pytest.fixture
def cuda_build(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An onnxruntime with CUDA compiled in, on a machine where nobody knows whether it works."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    # As onnxruntime does, with print.
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: sys.stdout.write("Failed to load"))
    return monkeypatch


def use_sessions(monkeypatch: pytest.MonkeyPatch, *, cuda: Any) -> None:
    """Answer a wish for CUDA with ``cuda``, a session or an error, and one for the CPU with it."""

    def create(path: str, options: object, providers: list[Any], **_: object) -> Any:
        if providers == [CPU]:
            return FakeSession([CPU])
        if isinstance(cuda, Exception):
            raise cuda
        return cuda

    monkeypatch.setattr(onnxruntime, "InferenceSession", create)


@pytest.mark.parametrize("provider", ["cpu", "auto"])
@needs_cpu_build
def test_a_ranker_says_that_it_runs_on_the_cpu(tiny_bundle: Path, provider: Any) -> None:
    assert Ranker.load(tiny_bundle, provider=provider).provider == "cpu"


@needs_cpu_build
def test_cuda_that_is_missing_is_an_error(tiny_bundle: Path) -> None:
    with pytest.raises(ProviderError, match=r"'cuda' is not active.*pip install '\.\[gpu\]' in "):
        Ranker.load(tiny_bundle, provider="cuda")


def test_two_builds_of_onnxruntime_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    monkeypatch.setattr(sessions_module, "_is_installed", lambda name: True)
    with pytest.raises(ProviderError, match="pip uninstall -y onnxruntime onnxruntime-gpu && pip"):
        create_session(Path("model.onnx"), "cuda", 1)


def test_cuda_that_works_is_reported(cuda_build: pytest.MonkeyPatch) -> None:
    use_sessions(cuda_build, cuda=FakeSession([CUDA, CPU]))
    assert create_session(Path("model.onnx"), "auto", 1)[1] == "cuda"


BROKEN = {
    "silent fallback": FakeSession([CPU]),
    "error": RuntimeError("CUDA failure 100: no CUDA-capable device is detected"),
}


@pytest.mark.parametrize("cuda", BROKEN.values(), ids=BROKEN)
def test_cuda_that_does_not_work_is_an_error(cuda_build: pytest.MonkeyPatch, cuda: Any) -> None:
    use_sessions(cuda_build, cuda=cuda)
    with pytest.raises(ProviderError, match=r"'cuda' is not active \(active: CPUExec"):
        create_session(Path("model.onnx"), "cuda", 1)


@pytest.mark.parametrize("cuda", BROKEN.values(), ids=BROKEN)
def test_auto_takes_the_cpu_where_cuda_does_not_work(
    cuda_build: pytest.MonkeyPatch, cuda: Any, caplog: pytest.LogCaptureFixture
) -> None:
    use_sessions(cuda_build, cuda=cuda)
    with caplog.at_level(logging.WARNING, "ranklet"):
        assert create_session(Path("model.onnx"), "auto", 1)[1] == "cpu"
    assert "running on the CPU" in caplog.text


def test_the_reason_of_a_broken_cuda_is_logged_and_not_printed(
    cuda_build: pytest.MonkeyPatch, caplog: Any, capfd: Any
) -> None:
    use_sessions(cuda_build, cuda=BROKEN["error"])
    create_session(Path("model.onnx"), "auto", 1)
    assert "no CUDA-capable device is detected" in caplog.text
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("provider", ["gpu", "CPU", "", None, 1, ["cpu"], CUDA], ids=str)
def test_a_provider_that_does_not_exist_is_named(tiny_bundle: Path, provider: Any) -> None:
    with pytest.raises(InputError, match="provider must be 'auto', 'cpu' or 'cuda', got "):
        Ranker.load(tiny_bundle, provider=provider)


@pytest.mark.parametrize("threads", [0, -1, True, None, "2", 1.0, 2**31], ids=repr)
def test_threads_that_are_no_positive_integer_are_named(tiny_bundle: Path, threads: Any) -> None:
    with pytest.raises(InputError, match=f"threads must be .*, got {threads!r}"):
        Ranker.load(tiny_bundle, provider="cpu", threads=threads)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_number_of_threads_changes_no_answer(
    tiny_bundle: Path, tiny_ranker: Ranker, ids: list[str], threads: int
) -> None:
    found = Ranker.load(tiny_bundle, provider="cpu", threads=threads).rank(ids[:20], k=60)
    assert found.items == tiny_ranker.rank(ids[:20], k=60).items


NO_GRAPHS = {"nothing": b"", "text": b"a model", "flatbuffer": b"\x20\0\0\0ORTM" + bytes(100)}


@pytest.mark.parametrize("data", NO_GRAPHS.values(), ids=NO_GRAPHS)
def test_what_is_no_graph_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(BundleError, match=r"onnxruntime can't load .*model\.onnx"):
        create_session(tmp_path / "model.onnx", "cpu", 1)


def test_a_graph_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"onnxruntime can't load .*model\.onnx"):
        create_session(tmp_path / "model.onnx", "cpu", 1)


@pytest.mark.parametrize("percent", [5, 35, 65, 95])
def test_a_truncated_graph_is_refused(tiny_bundle: Path, tmp_path: Path, percent: int) -> None:
    data = (tiny_bundle / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(data[: len(data) * percent // 100])
    with pytest.raises(BundleError, match=r"onnxruntime can't load .*model\.onnx"):
        create_session(tmp_path / "model.onnx", "cpu", 1)


def test_a_failed_load_prints_nothing_to_stdout(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"a model")
    with pytest.raises(BundleError, match="can't load"):
        create_session(tmp_path / "model.onnx", "cpu", 1)
    assert capfd.readouterr().out == ""


def test_a_load_prints_nothing_and_changes_no_environment_variable(
    tiny_bundle: Path, capfd: Any
) -> None:
    before = dict(os.environ)
    Ranker.load(tiny_bundle, provider="cpu")
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert dict(os.environ) == before


@pytest.mark.parametrize("name", ["score", "append", "score_many", "model"])
def test_threads_that_need_a_program_at_once_load_it_once(
    ranker: Ranker, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    create, loaded, all_are_here = programs.create_session, list[str](), Barrier(8)

    def count(graph: Path, *arguments: Any) -> Any:
        loaded.append(graph.name)
        return create(graph, *arguments)

    monkeypatch.setattr(programs, "create_session", count)

    def use(_: int) -> Any:
        all_are_here.wait()
        return ranker.engine.programs.session(name)

    with ThreadPoolExecutor(8) as pool:
        sessions = set(pool.map(use, range(8)))
    assert len(sessions) == 1
    assert loaded == [f"{name}.onnx"]


@pytest.mark.parametrize("asked", ["rank", "rank_batch", "candidates", "user", "users"])
def test_a_program_is_loaded_when_it_is_first_needed(
    tiny_bundle: Path, ids: list[str], monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    create, loaded = programs.create_session, list[str]()

    def count(graph: Path, *arguments: Any) -> Any:
        loaded.append(graph.stem)
        return create(graph, *arguments)

    monkeypatch.setattr(programs, "create_session", count)
    ranker = Ranker.load(tiny_bundle, provider="cpu")
    assert loaded == ["encode"]
    calls: dict[str, tuple[Callable[[], object], list[str]]] = {
        "rank": (lambda: ranker.rank(ids[:2]), ["score"]),
        "rank_batch": (lambda: ranker.rank_batch([ids[:2]] * 8), ["score_many"]),
        "candidates": (lambda: ranker.rank(ids[:2], candidates=ids), []),
        "user": (lambda: ranker.user(ids[:2]).rank(), ["score"]),
        "users": (lambda: ranker.users([ids[:2]]).rank(), ["append", "score"]),
    }
    call, expected = calls[asked]
    call()
    assert loaded[1:] == expected


def test_onnxruntime_tells_nobody_that_it_runs(tmp_path: Path) -> None:
    code = "import os, ranklet; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    for given, expected in ((None, "1"), ("0", "0")):  # who wants it may have it
        home = tmp_path / expected
        home.mkdir()
        variables = {**os.environ, "HOME": str(home)}
        variables.pop("ORT_DISABLE_TELEMETRY", None)
        if given is not None:
            variables["ORT_DISABLE_TELEMETRY"] = given
        command = [sys.executable, "-c", code]
        found = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
        assert found.stdout.split() == [expected]
    assert not list((tmp_path / "1").iterdir())
