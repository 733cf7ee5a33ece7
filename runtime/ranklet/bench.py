"""Measure how long a ranking takes on this machine: percentiles, throughput, load, memory.

* Requests are random known ids of the bundle, and go through the public ``Ranker``.
* Cases take turns in blocks, so that the noise of a shared machine hits all of them alike.
* The same requests also go straight to the session: the difference is what Python costs.
"""

import json
import operator
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ranklet import __version__
from ranklet.errors import InputError, ProviderError, RankletError
from ranklet.plots import new_figure, save_figure
from ranklet.provider import ORT_ERRORS, ORT_NAMES, Provider
from ranklet.ranker import MAX_BATCH, MAX_SCORES, Ranker, empty_state
from ranklet.vocabulary import Ids, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DEFAULT_LENGTHS = (10, 50, 200)
MIN_RUNS = 100  # fewer give no 99th percentile
WARM_UP = 10  # calls of each case before anything is timed
BLOCK = 20  # timed calls of a case before the next one has its turn
SETTLE = 3  # untimed calls at the start of a block: caches are cold, other threads still spin
REQUESTS = 16  # different requests of a case, so that no single history stays in the caches
COLD_STARTS = 3

# What a fresh process does. Its peak is read from /proc: ru_maxrss would start at the peak of the
# process that started it (Linux keeps it over exec).
COLD_START = """
import json, sys
from ranklet import Ranker
folder, provider, threads, history, k = json.loads(sys.argv[1])
Ranker.load(folder, provider=provider, threads=threads).rank(history, k=k)
try:
    with open("/proc/self/status") as file:
        print(file.read())
except OSError:
    pass
"""


@dataclass(frozen=True)
class Measurement:
    """Latency of one case. A call ranks ``batch`` histories of ``length`` events."""

    batch: int
    length: int
    threads: int
    provider: str  # the one that ran
    runs: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float
    users_per_second: float  # batch / mean
    session_p50_ms: float  # the bare runs of the graph inside such a call


@dataclass(frozen=True)
class Load:
    """What opening the bundle costs in this process, which has imported onnxruntime."""

    threads: int
    provider: str
    load_ms: float  # digests are checked
    rss_mb: float | None  # by how much the resident set grew; None without /proc


@dataclass(frozen=True)
class BenchReport:
    """All that ``benchmark`` found, and where."""

    bundle: str
    bundle_bytes: int
    items: int
    precision: str
    ranklet: str  # version
    machine: dict[str, str | int]
    k: int
    load: list[Load]
    cold_start_ms: float  # a fresh process, from its start to its end: import, load, rank once
    cold_start_peak_mb: float | None  # resident; None without /proc
    measurements: list[Measurement]

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, dicts, texts and numbers, for JSON."""
        return asdict(self)


def machine() -> dict[str, str | int]:
    """Return what a timing depends on; ``gpu`` is there only where CUDA may run."""
    has_affinity = hasattr(os, "sched_getaffinity")
    facts: dict[str, str | int] = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1,
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
    if ORT_NAMES["cuda"] in onnxruntime.get_available_providers() and (gpu := _gpu_model()):
        facts["gpu"] = gpu
    return facts


def describe_machine() -> str:
    """Return the facts of ``machine`` in one line."""
    return _machine_line(machine())


def benchmark(
    path: str | Path,
    *,
    provider: Provider = "auto",
    batches: Sequence[int] = (1,),
    lengths: Sequence[int] | None = None,
    threads: Sequence[int] = (1,),
    k: int = 10,
    runs: int = 200,
    seed: int = 0,
    on_progress: Callable[[str], None] | None = None,
) -> BenchReport:
    """Time rankings of a bundle, every combination of batch, length and threads.

    Args:
        path: Folder of the bundle.
        provider: As in ``Ranker.load``.
        batches: Histories of one call.
        lengths: Events of each history; by default 10, 50 and 200, or the most that the bundle
            takes where that is less.
        threads: Threads of one ranking.
        k: Items to return.
        runs: Timed calls of each combination, at least 100.
        seed: Of the random histories.
        on_progress: Called with a line of text now and then.

    Raises:
        InputError: A number can't be used; the message names it.
        BundleError: The bundle is missing or damaged.
        ProviderError: CUDA was asked for and does not run.
    """
    note = on_progress or (lambda text: None)
    batches, threads = _check_all("batch", batches), _check_all("threads", threads)
    runs, k, seed = _check("runs", runs, MIN_RUNS), _check("k", k), _check("seed", seed, 0)
    folder = Path(path)
    note(f"loading {folder}")
    loaded = [_load(folder, provider, count) for count in threads]
    rankers = {load.threads: ranker for ranker, load in loaded}
    ranker = rankers[threads[0]]
    lengths = _check_lengths(lengths, ranker.manifest.max_length)
    history = _random_histories(ranker, 1, lengths[0], seed)[0]
    note(f"starting {COLD_STARTS} fresh processes")
    settings = [str(folder), ranker.provider, threads[0], history, k]
    starts = [_cold_start(json.dumps(settings)) for _ in range(COLD_STARTS)]
    cold_start_ms, peak_mb = min(starts, key=lambda start: start[0])

    cases = [
        _Case(rankers[count], batch, length, count, k, seed)
        for batch, length, count in product(batches, lengths, threads)
    ]
    for case in cases:
        case.warm_up(WARM_UP)
    for begin in range(0, runs, BLOCK):
        note(f"timing {len(cases)} cases, {begin} of {runs} calls each")
        for case in cases:
            case.time_block(begin, min(begin + BLOCK, runs))
    manifest = ranker.manifest
    return BenchReport(
        bundle=str(folder),
        bundle_bytes=sum(file.size for file in manifest.files.values()),
        items=len(ranker),
        precision=manifest.precision,
        ranklet=__version__,
        machine=machine(),
        k=k,
        load=[load for _, load in loaded],
        cold_start_ms=cold_start_ms,
        cold_start_peak_mb=peak_mb,
        measurements=[case.measurement() for case in cases],
    )


def format_table(report: BenchReport) -> str:
    """Return a report as text for a terminal, the machine on top."""
    lines = [
        _machine_line(report.machine),
        f"{report.bundle}: {report.items:,} items, {report.precision}, "
        f"{report.bundle_bytes / 1e6:.1f} MB, k {report.k}, ranklet {report.ranklet}",
        *(
            f"load on {load.provider}, {load.threads} thread(s): {load.load_ms:.1f} ms"
            + (f", {load.rss_mb:+.1f} MB resident" if load.rss_mb is not None else "")
            for load in report.load
        ),
        f"cold start (new process: import, load, rank once): {report.cold_start_ms:.0f} ms"
        + (f", peak {report.cold_start_peak_mb:.0f} MB" if report.cold_start_peak_mb else ""),
        "",
    ]
    header = ["batch", "length", "threads", "provider", "runs"]
    header += ["p50 ms", "p95 ms", "p99 ms", "mean ms", "session p50", "users/s"]
    rows = [header]
    for m in report.measurements:
        times = (m.p50_ms, m.p95_ms, m.p99_ms, m.mean_ms, m.session_p50_ms)
        texts = [str(value) for value in (m.batch, m.length, m.threads, m.provider, m.runs)]
        rows.append([*texts, *(f"{value:.3f}" for value in times), f"{m.users_per_second:,.0f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        lines.append("  ".join(text.rjust(n) for text, n in zip(row, widths, strict=True)))
    return "\n".join(lines)


def plot(report: BenchReport, path: str | Path) -> None:
    """Draw latency against length, a line for each batch and thread count, up to p95 as a band.

    Raises:
        InputError: As ``plots.check_plot``.
    """
    figure, axes = new_figure(path)
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    found = report.measurements
    _draw_lines(axes, found)
    if max(m.p50_ms for m in found) > 20 * min(m.p50_ms for m in found):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0)
    axes.set_xticks(sorted({m.length for m in found}))
    axes.set_xlabel("history length (events)")
    axes.set_ylabel("latency of one call (ms): median, band up to p95")
    axes.legend(frameon=False)
    title = f"{Path(report.bundle).resolve().name}: top {report.k} of {report.items:,} items"
    axes.set_title(f"{title} on {found[0].provider}", loc="left", fontweight="bold", pad=30)
    where = _machine_line(report.machine).replace(", Python", "\nPython")
    axes.text(0, 1.02, where, transform=axes.transAxes, fontsize=8, color="0.35")
    save_figure(figure, path)


def _draw_lines(axes: "Axes", measurements: list[Measurement]) -> None:
    for batch, threads in dict.fromkeys((m.batch, m.threads) for m in measurements):
        line = [m for m in measurements if (m.batch, m.threads) == (batch, threads)]
        line.sort(key=lambda m: m.length)
        lengths, p50, p95 = zip(*((m.length, m.p50_ms, m.p95_ms) for m in line), strict=True)
        label = f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}"
        (drawn,) = axes.plot(lengths, p50, marker="o", markersize=5, linewidth=1.8, label=label)
        color = drawn.get_color()
        if len(line) > 1:
            axes.fill_between(lengths, p50, p95, color=color, alpha=0.15, linewidth=0)
        else:  # a band of one point can't be seen
            axes.vlines(lengths, p50, p95, color=color, alpha=0.4, linewidth=4)


@dataclass
class _Case:
    """One combination: its requests, the session inputs they become, and its times in ns."""

    ranker: Ranker
    batch: int
    length: int
    threads: int
    k: int
    seed: int
    times: list[int] = field(default_factory=list)
    session_times: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.requests = [
            _random_histories(self.ranker, self.batch, self.length, self.seed + number)
            for number in range(REQUESTS)
        ]
        self.inputs = [_session_inputs(self.ranker, rows, self.k) for rows in self.requests]

    def rank(self, number: int) -> None:
        histories = self.requests[number % REQUESTS]
        if self.batch == 1:
            self.ranker.rank(histories[0], k=self.k)
        else:
            self.ranker.rank_batch(histories, k=self.k)

    def run_session(self, number: int) -> None:
        session = self.ranker._session
        try:
            for inputs in self.inputs[number % REQUESTS]:
                session.run(["items", "scores", "user"], inputs)
        except ORT_ERRORS as error:
            raise ProviderError(f"onnxruntime failed: {error}") from error

    def warm_up(self, calls: int) -> None:
        for number in range(calls):
            self.rank(number)
            self.run_session(number)

    def time_block(self, begin: int, end: int) -> None:
        for call, times in ((self.rank, self.times), (self.run_session, self.session_times)):
            for number in range(SETTLE):
                call(begin + number)
            for number in range(begin, end):
                start = time.perf_counter_ns()
                call(number)
                times.append(time.perf_counter_ns() - start)

    def measurement(self) -> Measurement:
        milliseconds = np.array(self.times) / 1e6
        p50, p95, p99 = np.percentile(milliseconds, [50, 95, 99]).tolist()
        mean = float(milliseconds.mean())
        return Measurement(
            batch=self.batch,
            length=self.length,
            threads=self.threads,
            provider=self.ranker.provider,
            runs=len(self.times),
            p50_ms=p50,
            p95_ms=p95,
            p99_ms=p99,
            mean_ms=mean,
            users_per_second=1e3 * self.batch / mean,
            session_p50_ms=float(np.median(self.session_times)) / 1e6,
        )


def _random_histories(ranker: Ranker, batch: int, length: int, seed: int) -> list[Ids]:
    indices = np.random.default_rng([seed, batch, length]).integers(
        1, len(ranker) + 1, (batch, length)
    )
    return [ranker.vocabulary.ids(row) for row in indices]


def _session_inputs(ranker: Ranker, histories: list[Ids], k: int) -> list[dict[str, NDArray[Any]]]:
    """Return what the graph gets for histories of one length: one dict a run, as in ``Ranker``."""
    indices = np.stack([ranker.vocabulary.index(history) for history in histories])
    size = max(1, min(MAX_BATCH, MAX_SCORES // len(ranker)))
    parts = [indices[begin : begin + size] for begin in range(0, len(indices), size)]
    count = np.array(min(k, len(ranker)), dtype=np.int64)
    inputs: list[dict[str, NDArray[Any]]] = []
    for part in parts:
        times = {"since": np.zeros_like(part), "until": np.zeros_like(part[:, 0])}
        told = times if ranker.uses_times else {}
        inputs.append(
            {"history": part, "k": count, **told, **empty_state(ranker.manifest, len(part))}
        )
    return inputs


def _load(folder: Path, provider: Provider, threads: int) -> tuple[Ranker, Load]:
    before, start = _memory_mb(_status(), "VmRSS"), time.perf_counter()
    ranker = Ranker.load(folder, provider=provider, threads=threads)
    seconds, after = time.perf_counter() - start, _memory_mb(_status(), "VmRSS")
    grown = None if before is None or after is None else after - before
    return ranker, Load(threads, ranker.provider, seconds * 1e3, grown)


def _cold_start(settings: str) -> tuple[float, float | None]:
    """Return milliseconds and peak megabytes of a process that starts, loads and ranks once."""
    command = [sys.executable, "-c", COLD_START, settings]
    start = time.perf_counter()
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    milliseconds = (time.perf_counter() - start) * 1e3
    if child.returncode != 0:
        reason = (child.stderr.strip() or f"exit status {child.returncode}").splitlines()[-1]
        raise RankletError(f"a fresh {sys.executable} can't rank: {reason}")
    return milliseconds, _memory_mb(child.stdout, "VmHWM")


def _status() -> str:
    try:
        return Path("/proc/self/status").read_text()
    except OSError:
        return ""


def _memory_mb(status: str, name: str) -> float | None:
    """Find a figure in the text of /proc/self/status, which counts in KiB."""
    for line in status.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    return None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpu_model() -> str:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip().partition("\n")[0]


def _machine_line(facts: dict[str, str | int]) -> str:
    gpu = f", {facts['gpu']}" if "gpu" in facts else ""
    return (
        f"{facts['cpu']}, {facts['cores']} logical cores{gpu}, {facts['os']}, "
        f"Python {facts['python']}, numpy {facts['numpy']}, onnxruntime {facts['onnxruntime']}"
    )


def _check(name: str, value: object, least: int = 1) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # anything may come from outside
    except TypeError as error:
        raise InputError(f"{name} must be an integer, got {show(value)}") from error
    if isinstance(value, bool) or number < least:
        raise InputError(f"{name} must be an integer of at least {least}, got {show(value)}")
    return number


def _check_all(name: str, values: Sequence[int]) -> list[int]:
    """Return the numbers, each once."""
    if isinstance(values, str | bytes) or not hasattr(values, "__iter__"):
        raise InputError(f"{name} must be a list of positive integers, got {show(values)}")
    numbers = list(dict.fromkeys(_check(name, value) for value in values))
    if not numbers:
        raise InputError(f"{name} is an empty list: pass at least one number")
    return numbers


def _check_lengths(lengths: Sequence[int] | None, maximum: int) -> list[int]:
    if lengths is None:
        return list(dict.fromkeys(min(length, maximum) for length in DEFAULT_LENGTHS))
    numbers = _check_all("length", lengths)
    if (longest := max(numbers)) > maximum:
        raise InputError(f"length {longest} is above the maximum of this bundle, {maximum}")
    return numbers
