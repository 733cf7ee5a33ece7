"""A benchmark times every combination on the active provider, and shows the results."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from ranklet import InputError, Manifest, ProviderError, Ranker
from ranklet.engine.sessions import ORT_NAMES
from ranklet.machine import describe_machine, machine
from ranklet.user import User
from ranklet_cli.bench.report import BenchReport, Setting, compare
from ranklet_cli.bench.run import Sweep, benchmark
from ranklet_cli.bench.show import format_report, plot
from ranklet_cli.bench.timers import AppendTimer, CallTimer, bare_call

HAS_CUDA = ORT_NAMES["cuda"] in onnxruntime.get_available_providers()
PNG = b"\x89PNG\r\n\x1a\n"
EXACT = 1e-9
RUNS = 100


@pytest.fixture(scope="module")
def notes() -> list[str]:
    return []


@pytest.fixture(scope="module")
def report(tiny_bundle: Path, notes: list[str]) -> BenchReport:
    sweep = Sweep("cpu", batches=(1, 3), lengths=(2, 5), threads=(1, 2), loads=(50,), runs=RUNS)
    return benchmark(tiny_bundle, sweep, on_progress=notes.append)


def setting(ranker: Ranker, batch: int, length: int) -> Setting:
    return Setting(len(ranker), "int8", False, "cpu", 1, batch, length, k=7)


def test_every_combination_is_measured_once(report: BenchReport) -> None:
    expected = {(b, n, t) for b in (1, 3) for n in (2, 5) for t in (1, 2)}
    for rows in (report.measurements, report.waiting):
        assert {(m.batch, m.length, m.threads) for m in rows} == expected
        assert len(rows) == len(expected)
    assert {m.runs for m in report.measurements} == {RUNS}


def test_single_requests_are_taken_apart_whatever_the_batch(report: BenchReport) -> None:
    expected = [(1, n, t) for n in (2, 5) for t in (1, 2)]
    for rows in (report.stages, report.appends):
        assert [(m.batch, m.length, m.threads) for m in rows] == expected


def test_percentiles_are_positive_and_ordered(report: BenchReport) -> None:
    for m in report.measurements:
        assert 0 < m.p50_ms <= m.p95_ms <= m.p99_ms, m
        assert m.session_p50_ms > 0
    for w in report.waiting:
        assert 0 < w.p50_ms <= w.p95_ms <= w.p99_ms, w


def test_p99_9_needs_a_thousand_calls(tiny_bundle: Path, report: BenchReport) -> None:
    assert {m.p99_9_ms for m in report.measurements} == {None}
    long = benchmark(tiny_bundle, Sweep("cpu", lengths=(2,), loads=(), runs=1000))
    (measured,) = long.measurements
    assert measured.p99_9_ms is not None
    assert measured.p99_9_ms >= measured.p99_ms
    assert long.waiting == []


def test_the_median_lies_among_those_of_the_blocks(report: BenchReport) -> None:
    for m in report.measurements:
        assert len(m.blocks_ms) == RUNS / 20
        assert min(m.blocks_ms) <= m.p50_ms <= max(m.blocks_ms)
    for a in report.appends:
        assert min(a.blocks_ms) <= a.append_p50_ms <= max(a.blocks_ms)


def test_throughput_is_the_batch_over_the_mean(report: BenchReport) -> None:
    for m in report.measurements:
        assert m.users_per_second * m.mean_ms / 1e3 == pytest.approx(m.batch, rel=EXACT)


def test_requests_arrive_at_the_load_of_back_to_back_calls(report: BenchReport) -> None:
    for call, waited in zip(report.measurements, report.waiting, strict=True):
        assert call.name == waited.name
        assert waited.offered_per_second * call.mean_ms / 1e3 == pytest.approx(0.5, rel=EXACT)


def test_stages_add_up_to_the_request(report: BenchReport) -> None:
    for s in report.stages:
        parts = (s.lookup_ms, s.encode_ms, s.score_ms, s.ids_ms, s.python_ms)
        assert sum(parts) == pytest.approx(s.rank_ms, rel=EXACT)
        assert min(s.lookup_ms, s.encode_ms, s.ids_ms) > 0


def test_the_report_names_the_bundle_and_what_ran(report: BenchReport, tiny_bundle: Path) -> None:
    manifest = Manifest.read(tiny_bundle)
    (facts,) = report.bundles
    assert report.bundle == facts.path == str(tiny_bundle)
    assert (facts.items, facts.precision) == (manifest.items, "int8")
    assert (facts.format, facts.is_random) == (manifest.format, False)
    assert facts.bytes == sum((tiny_bundle / f).stat().st_size for f in manifest.files)
    assert {m.provider for m in report.measurements} == {"cpu"}
    assert [(load.threads, load.provider) for load in report.loads] == [(1, "cpu"), (2, "cpu")]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_loads_and_cold_starts_have_a_time_and_memory(report: BenchReport) -> None:
    assert all(load.load_ms > 0 and load.rss_mb is not None for load in report.loads)
    (facts,) = report.bundles
    assert facts.cold_start_ms > report.loads[0].load_ms
    # numpy and onnxruntime take 46 MB; this process has torch too, and must not be counted.
    assert facts.cold_start_peak_mb is not None
    assert 30 < facts.cold_start_peak_mb < 150


def test_progress_is_reported(report: BenchReport, notes: list[str]) -> None:
    assert report.bundle in notes[0]
    assert "timing 8 combination(s), 0 of 100 calls each" in notes
    assert notes[-1] == "timing requests at random times, round 5 of 5"


def test_the_table_has_the_machine_on_top_and_aligned_rows(report: BenchReport) -> None:
    head, *tables = format_report(report).split("\n\n")
    assert head.startswith(describe_machine())
    rows = [m for m in (report.measurements, report.waiting, report.stages, report.appends)]
    for table, measured in zip(tables, rows, strict=True):
        lines = table.splitlines()[1 : 2 + len(measured)]
        assert len({len(line) for line in lines}) == 1, table
    assert tables[0].splitlines()[2].split()[:3] == ["1", "1", "2"]


def test_values_that_all_rows_share_are_in_the_title(report: BenchReport) -> None:
    alone = replace(report, measurements=report.measurements[:1])
    title, columns, *_ = format_report(alone).split("\n\n")[1].splitlines()
    assert title.endswith("ms (60 items, int8, 1 thread, top 10, batch 1)")
    assert columns.split()[:2] == ["events", "p50"]


def test_default_lengths_end_at_the_maximum_of_the_bundle(tiny_bundle: Path) -> None:
    report = benchmark(tiny_bundle, Sweep("cpu", (1, 1), ks=(1000,), loads=(), runs=RUNS))
    assert [m.length for m in report.measurements] == [10, 20]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lengths": (5, 21)}, "length 21 is above the maximum of this bundle, 20"),
        ({"lengths": ()}, "length is an empty list"),
        ({"lengths": (0,)}, "length must be an integer of at least 1, got 0"),
        ({"batches": (10**23,)}, "batch must be at most 1,000,000,000, got 1000"),
        ({"batches": 4}, "batch must be a list of positive integers, got 4"),
        ({"batches": "4"}, "batch must be a list of positive integers, got '4'"),
        ({"threads": (1.5,)}, r"threads must be an integer of at least 1, got 1\.5"),
        ({"threads": (True,)}, "threads must be an integer of at least 1, got True"),
        ({"catalogues": (0,)}, "catalogue must be an integer of at least 1, got 0"),
        ({"precisions": ("int8",)}, "precision is of random bundles: pass --catalogue, too"),
        (
            {"catalogues": (9,), "precisions": ("int2",)},
            "precision must be fp32, fp16, int8 or int4, got 'int2'",
        ),
        ({"loads": (50, 100)}, "load must be below 100 percent, .* got 100"),
        ({"runs": 99}, "runs must be an integer of at least 100, got 99"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"provider": "tpu"}, "provider must be 'auto', 'cpu' or 'cuda', got 'tpu'"),
    ],
    ids=str,
)
def test_a_value_that_cannot_be_used_is_named(
    tiny_bundle: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        benchmark(tiny_bundle, Sweep(**values))


@pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has CUDA")
def test_cuda_is_refused_where_it_does_not_run(tiny_bundle: Path) -> None:
    with pytest.raises(ProviderError, match="provider 'cuda' is not active"):
        benchmark(tiny_bundle, Sweep("cuda"))


@pytest.mark.cuda
@pytest.mark.skipif(not HAS_CUDA, reason="this onnxruntime has no CUDA")
def test_a_report_of_cuda_names_the_gpu(tiny_bundle: Path) -> None:
    report = benchmark(tiny_bundle, Sweep("cuda", lengths=(5,), runs=RUNS))
    assert report.measurements[0].provider == "cuda"
    assert report.measurements[0].limit_ms is None
    assert str(report.machine["gpu"]) in format_report(report)


@pytest.mark.parametrize(("batch", "length"), [(1, 4), (2, 4), (5, 3)])
def test_the_bare_call_ranks_the_same_items(tiny_ranker: Ranker, batch: int, length: int) -> None:
    timer = CallTimer(setting(tiny_ranker, batch, length), tiny_ranker, seed=3)
    rankings = tiny_ranker.rank_batch(timer.requests[0], k=7, exclude_seen=False)
    items = np.concatenate([best.items for best in bare_call(tiny_ranker, timer.requests[0], 7)()])
    assert [tiny_ranker.vocabulary.ids(row) for row in items] == [r.items for r in rankings]


def test_every_append_comes_after_the_history_whose_last_event_was_appended(
    tiny_ranker: Ranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    timer = AppendTimer(setting(tiny_ranker, 1, 6), tiny_ranker, seed=3)
    events = []

    def rank(user: User, k: int, *, exclude_seen: bool) -> None:
        assert not exclude_seen
        events.append((len(user), k))

    monkeypatch.setattr(User, "rank", rank)
    timer.time_block(0, 10)
    assert events == [(6, 7), (7, 7)] * len(events[::2])
    assert [[len(part) for part in block] for block in timer.blocks] == [[10, 10]]


def test_the_limit_is_the_bytes_over_the_bandwidth(report: BenchReport) -> None:
    speeds = {speed.threads: speed.gb_per_second for speed in report.bandwidths}
    assert set(speeds) == {1, 2}
    for m in report.measurements:
        expected = m.read_bytes / (1e6 * speeds[m.threads])
        assert m.limit_ms == pytest.approx(expected, rel=EXACT)
        assert m.read_bytes == report.measurements[0].read_bytes  # whatever the batch


def test_the_machine_line_holds_every_fact() -> None:
    line = describe_machine()
    assert "\n" not in line
    assert all(str(fact) in line for fact in machine().values())
    assert machine()["onnxruntime"] == onnxruntime.__version__


@pytest.mark.parametrize("batches", [{1}, {1, 3}], ids=["one batch", "two batches"])
@pytest.mark.parametrize("lengths", [{2}, {2, 5}], ids=["one length", "two lengths"])
@pytest.mark.parametrize("items", [{60}, {60, 1000}], ids=["one catalogue", "two catalogues"])
def test_a_plot_is_a_png(
    report: BenchReport, tmp_path: Path, batches: set[int], lengths: set[int], items: set[int]
) -> None:
    pytest.importorskip("matplotlib", reason="plots are an extra")
    chosen = [m for m in report.measurements if m.batch in batches and m.length in lengths]
    sized = [replace(m, items=size, is_random=size > 60) for m in chosen for size in items]
    plot(replace(report, measurements=sized), tmp_path / "latency.png")
    assert (tmp_path / "latency.png").read_bytes().startswith(PNG)
    assert [path.name for path in tmp_path.iterdir()] == ["latency.png"]


def test_latencies_far_apart_are_drawn(report: BenchReport, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots are an extra")
    slow = replace(report.measurements[0], batch=64, p50_ms=900.0, p95_ms=1000.0)
    plot(replace(report, measurements=[*report.measurements, slow]), tmp_path / "latency.PNG")
    assert (tmp_path / "latency.PNG").read_bytes().startswith(PNG)


def test_a_plot_without_matplotlib_says_what_to_install(
    report: BenchReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"pip install '\.\[plots\]' in "):
        plot(report, tmp_path / "latency.png")


def test_a_comparison_has_a_table(report: BenchReport) -> None:
    comparison = compare(report, report, "old.json")
    *_, table = format_report(replace(report, comparison=comparison)).split("\n\n")
    lines = table.splitlines()
    assert lines[0].startswith("compared with old.json of ranklet")
    assert len(lines) == 3 + len(report.measurements) + len(report.appends)
