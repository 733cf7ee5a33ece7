"""A benchmark times what it says: every case, the provider that ran, and the same request."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from ranklet import InputError, Manifest, ProviderError, Ranker, RankletError
from ranklet import bench as bench_module
from ranklet import ranker as ranker_module
from ranklet.bench import (
    BenchReport,
    benchmark,
    describe_machine,
    format_table,
    machine,
    plot,
)
from ranklet.plots import check_plot
from ranklet.provider import ORT_NAMES

HAS_CUDA = ORT_NAMES["cuda"] in onnxruntime.get_available_providers()
PNG = b"\x89PNG\r\n\x1a\n"
EXACT = 1e-9


@pytest.fixture(scope="module")
def notes() -> list[str]:
    return []


@pytest.fixture(scope="module")
def report(tiny_bundle: Path, notes: list[str]) -> BenchReport:
    return benchmark(
        tiny_bundle,
        provider="cpu",
        batches=(1, 3),
        lengths=(2, 5),
        threads=(1, 2),
        runs=100,
        on_progress=notes.append,
    )


def test_every_combination_is_measured_once(report: BenchReport) -> None:
    cases = {(m.batch, m.length, m.threads) for m in report.measurements}
    assert cases == {(b, n, t) for b in (1, 3) for n in (2, 5) for t in (1, 2)}
    assert len(report.measurements) == 8
    assert {m.runs for m in report.measurements} == {100}


def test_percentiles_are_positive_and_ordered(report: BenchReport) -> None:
    for m in report.measurements:
        assert 0 < m.p50_ms <= m.p95_ms <= m.p99_ms, m
        assert m.session_p50_ms > 0


def test_throughput_is_the_batch_over_the_mean(report: BenchReport) -> None:
    for m in report.measurements:
        assert m.users_per_second * m.mean_ms / 1e3 == pytest.approx(m.batch, rel=EXACT)


def test_the_report_names_the_bundle_and_what_ran(report: BenchReport, tiny_bundle: Path) -> None:
    manifest = Manifest.read(tiny_bundle)
    assert report.bundle == str(tiny_bundle)
    assert report.items == manifest.items
    assert report.bundle_bytes == sum((tiny_bundle / f).stat().st_size for f in manifest.files)
    assert {m.provider for m in report.measurements} == {"cpu"}
    assert [(load.threads, load.provider) for load in report.load] == [(1, "cpu"), (2, "cpu")]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_loads_and_cold_starts_have_a_time_and_memory(report: BenchReport) -> None:
    assert all(load.load_ms > 0 and load.rss_mb is not None for load in report.load)
    assert report.cold_start_ms > report.load[0].load_ms
    # numpy and onnxruntime take 46 MB; this process has torch too, and must not be counted.
    assert report.cold_start_peak_mb is not None
    assert 30 < report.cold_start_peak_mb < 150


def test_a_report_survives_json(report: BenchReport) -> None:
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    assert report.to_dict()["measurements"][0]["batch"] == 1


def test_progress_is_told(report: BenchReport, notes: list[str]) -> None:
    assert report.bundle in notes[0]
    assert notes[-1] == "timing 8 cases, 80 of 100 calls each"


def test_the_table_has_the_machine_on_top_and_aligned_rows(report: BenchReport) -> None:
    lines = format_table(report).splitlines()
    assert lines[0] == describe_machine()
    rows = lines[lines.index("") + 1 :]
    assert len(rows) == 1 + len(report.measurements)
    assert len({len(row) for row in rows}) == 1
    assert rows[1].split()[:5] == ["1", "2", "1", "cpu", "100"]


def test_default_lengths_end_at_the_maximum_of_the_bundle(tiny_bundle: Path) -> None:
    report = benchmark(tiny_bundle, provider="cpu", batches=(1, 1), k=1000, runs=100)
    assert [m.length for m in report.measurements] == [10, 20]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lengths": (5, 21)}, "length 21 is above the maximum of this bundle, 20"),
        ({"lengths": ()}, "length is an empty list"),
        ({"lengths": (0,)}, "length must be an integer of at least 1, got 0"),
        ({"batches": (1, -2)}, "batch must be an integer of at least 1, got -2"),
        ({"batches": 4}, "batch must be a list of positive integers, got 4"),
        ({"batches": "4"}, "batch must be a list of positive integers, got '4'"),
        ({"threads": (1.5,)}, r"threads must be an integer, got 1\.5"),
        ({"threads": (True,)}, "threads must be an integer of at least 1, got True"),
        ({"k": 0}, "k must be an integer of at least 1, got 0"),
        ({"runs": 99}, "runs must be an integer of at least 100, got 99"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"provider": "tpu"}, "provider must be 'auto', 'cpu' or 'cuda', got 'tpu'"),
    ],
    ids=lambda value: "-".join(map(str, *value.items())) if isinstance(value, dict) else "",
)
def test_a_number_that_cannot_be_used_is_named(
    tiny_bundle: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        benchmark(tiny_bundle, **values)


@pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has CUDA")
def test_cuda_is_refused_where_it_does_not_run(tiny_bundle: Path) -> None:
    with pytest.raises(ProviderError, match="provider 'cuda' is not active"):
        benchmark(tiny_bundle, provider="cuda")


@pytest.mark.cuda
@pytest.mark.skipif(not HAS_CUDA, reason="this onnxruntime has no CUDA")
def test_a_report_of_cuda_names_the_gpu(tiny_bundle: Path) -> None:
    report = benchmark(tiny_bundle, provider="cuda", lengths=(5,), runs=100)
    assert report.measurements[0].provider == "cuda"
    assert str(report.machine["gpu"]) in format_table(report)


@pytest.mark.parametrize(("batch", "length"), [(1, 4), (5, 3)], ids=["alone", "in three runs"])
def test_the_bare_session_gets_what_a_ranking_gives_it(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, batch: int, length: int
) -> None:
    ranker = Ranker.load(tiny_bundle, provider="cpu")
    for module in (bench_module, ranker_module):
        monkeypatch.setattr(module, "MAX_SCORES", 2 * len(ranker))  # two rows a run
    case = bench_module._Case(ranker, batch, length, threads=1, k=7, seed=3)
    calls: list[tuple[list[str], dict[str, Any]]] = []

    class Recorder:
        def run(self, outputs: list[str], inputs: dict[str, Any]) -> list[Any]:
            calls.append((outputs, inputs))
            return session.run(outputs, inputs)

    session, ranker._session = ranker._session, Recorder()
    case.rank(0)
    public, calls = calls, []
    case.run_session(0)
    assert len(public) == len(calls) == -(-batch // 2)
    for (outputs, expected), (found_outputs, found) in zip(public, calls, strict=True):
        assert found_outputs == outputs
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_a_fresh_process_loads_no_heavy_package(
    tiny_bundle: Path, tiny_ranker: Ranker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heavy = ("torch", "onnx", "polars", "click", "matplotlib")
    for name in heavy:  # found before the real ones
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / name)!r}, 'x').close()")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    history = tiny_ranker.vocabulary.ids(np.array([1, 2]))
    bench_module._cold_start(json.dumps([str(tiny_bundle), "cpu", 1, history, 10]))
    assert [name for name in heavy if (tmp_path / name).exists()] == []


def test_a_fresh_process_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RankletError, match=r"can't rank: .*BundleError: .* is not a bundle"):
        bench_module._cold_start(json.dumps([str(tmp_path), "cpu", 1, [], 10]))


def test_the_machine_line_holds_every_fact() -> None:
    line = describe_machine()
    assert "\n" not in line
    assert all(str(fact) in line for fact in machine().values())
    assert machine()["onnxruntime"] == onnxruntime.__version__


@pytest.mark.parametrize("batches", [{1}, {1, 3}], ids=["one batch", "two batches"])
@pytest.mark.parametrize("lengths", [{2}, {2, 5}], ids=["one length", "two lengths"])
def test_a_plot_is_a_png(
    report: BenchReport, tmp_path: Path, batches: set[int], lengths: set[int]
) -> None:
    pytest.importorskip("matplotlib", reason="plots are an extra")
    chosen = [m for m in report.measurements if m.batch in batches and m.length in lengths]
    plot(replace(report, measurements=chosen), tmp_path / "latency.png")
    assert (tmp_path / "latency.png").read_bytes().startswith(PNG)
    assert [path.name for path in tmp_path.iterdir()] == ["latency.png"]


def test_latencies_far_apart_are_drawn(report: BenchReport, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots are an extra")
    slow = replace(report.measurements[0], batch=64, p50_ms=900.0, p95_ms=1000.0)
    plot(replace(report, measurements=[*report.measurements, slow]), tmp_path / "latency.PNG")
    assert (tmp_path / "latency.PNG").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("latency", "must end in one of .*png.*, got ''"),
        ("latency.xyz", "must end in one of .*png.*, got 'xyz'"),
        ("nowhere/latency.png", "the folder .*nowhere does not exist"),
    ],
)
def test_a_plot_that_cannot_be_written_is_refused(tmp_path: Path, name: str, message: str) -> None:
    pytest.importorskip("matplotlib", reason="plots are an extra")
    with pytest.raises(InputError, match=message):
        check_plot(tmp_path / name)


def test_a_plot_without_matplotlib_says_what_to_install(
    report: BenchReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"pip install 'ranklet\[plots\]'"):
        plot(report, tmp_path / "latency.png")
