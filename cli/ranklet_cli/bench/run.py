"""Benchmark of a bundle: check the sweep, open bundles, time, report."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np

from ranklet import __version__
from ranklet.bundle.manifest import Manifest, Precision
from ranklet.engine.sessions import Provider
from ranklet.errors import InputError
from ranklet.machine import machine
from ranklet.values import show
from ranklet_cli.bench import bundles, timers
from ranklet_cli.bench.bundles import OpenBundle
from ranklet_cli.bench.limit import memory_bandwidths
from ranklet_cli.bench.report import REPORT_FORMAT, BenchReport, Measurement, Waiting
from ranklet_cli.bench.timers import AppendTimer, CallTimer, StageTimer, WaitTimer

DEFAULT_LENGTHS = (10, 50, 200)
MIN_RUNS = 100  # the least number with a 99th percentile
LARGEST = 10**9  # of any number
SINGLE_RUNS = 200  # of timers that report only medians
BLOCKS_A_NOTE = 5

Note = Callable[[str], None]


@dataclass
class Sweep:
    """Combinations to time; repeated numbers of a list are dropped.

    Raises:
        InputError: A value can't be used; the message names it.
    """

    provider: Provider = "auto"
    batches: Sequence[int] = (1,)  # histories per call
    lengths: Sequence[int] | None = None  # events; None: the defaults, up to the bundle's maximum
    threads: Sequence[int] = (1,)  # of one ranking; a bundle is loaded for each number
    ks: Sequence[int] = (10,)  # items to return
    catalogues: Sequence[int] | None = None  # items of additional bundles with random weights
    precisions: Sequence[str] = ()  # of these bundles; empty: that of the bundle
    loads: Sequence[int] = (50, 80)  # percent of the throughput, for requests at random times
    runs: int = 1000  # timed calls of each combination; 1000 give p99.9
    seed: int = 0  # of random histories and arrivals

    def __post_init__(self) -> None:
        """Check every value."""
        self.batches = _check_all("batch", self.batches)
        self.lengths = None if self.lengths is None else _check_all("length", self.lengths)
        self.threads = _check_all("threads", self.threads)
        self.ks = _check_all("k", self.ks)
        self.runs = _check("runs", self.runs, MIN_RUNS)
        self.seed = _check("seed", self.seed, 0)
        self.loads = _check_all("load", self.loads) if self.loads else []
        if (most := max(self.loads, default=0)) > 99:
            raise InputError(f"load must be below 100 percent, or the queue never ends; got {most}")
        if strange := [name for name in self.precisions if name not in get_args(Precision)]:
            raise InputError(f"precision must be fp32, fp16, int8 or int4, got {show(strange[0])}")
        if self.catalogues is not None:
            self.catalogues = _check_all("catalogue", self.catalogues)
            bundles.check_export()
        elif self.precisions:
            raise InputError("precision is of random bundles: pass --catalogue, too")

    def fit_lengths(self, maximum: int) -> list[int]:
        """Return the lengths for a bundle of ``maximum`` events."""
        if self.lengths is None:
            return list(dict.fromkeys(min(length, maximum) for length in DEFAULT_LENGTHS))
        if (longest := max(self.lengths)) > maximum:
            raise InputError(f"length {longest} is above the maximum of this bundle, {maximum}")
        return list(self.lengths)


def _check(name: str, value: object, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"{name} must be an integer of at least {least}, got {show(value)}")
    if value > LARGEST:
        raise InputError(f"{name} must be at most {LARGEST:,}, got {show(value)}")
    return int(value)


def _check_all(name: str, values: Sequence[int]) -> list[int]:
    """Return unique numbers of at least 1."""
    if isinstance(values, str | bytes) or not hasattr(values, "__iter__"):
        raise InputError(f"{name} must be a list of positive integers, got {show(values)}")
    numbers = list(dict.fromkeys(_check(name, value) for value in values))
    if not numbers:
        raise InputError(f"{name} is an empty list: pass at least one number")
    return numbers


def benchmark(path: Path, sweep: Sweep, *, on_progress: Note = lambda text: None) -> BenchReport:
    """Time rankings of a bundle, and of bundles with random weights if the sweep has catalogues.

    All bundles are in memory at once, each for every number of threads. ``on_progress`` receives
    lines of text.

    Raises:
        InputError: A length exceeds the maximum of the bundle, or its model has no random weights.
        BundleError: The bundle is missing or damaged.
        ProviderError: CUDA is requested and does not run.
    """
    on_progress(f"loading {path}")
    bundle = bundles.open_bundle(path, sweep.provider, sweep.threads)
    lengths = sweep.fit_lengths(bundle.ranker.manifest.max_length)
    # Windows can't remove a mapped file.
    with tempfile.TemporaryDirectory("-ranklet-bench", ignore_cleanup_errors=True) as folder:
        others = list(_open_random(bundle.ranker.manifest, sweep, Path(folder), on_progress))
        return _measure([bundle, *others], lengths, sweep, on_progress)


def _open_random(
    manifest: Manifest, sweep: Sweep, folder: Path, note: Note
) -> Iterator[OpenBundle]:
    precisions = dict.fromkeys(sweep.precisions or [manifest.precision])
    for items, precision in product(sweep.catalogues or (), precisions):
        note(f"making a bundle of {items:,} items, {precision}")
        made = bundles.make_random(manifest, items, precision, folder)
        yield bundles.open_bundle(made, sweep.provider, sweep.threads, is_random=True)


def _measure(opened: list[OpenBundle], lengths: list[int], sweep: Sweep, note: Note) -> BenchReport:
    first = opened[0]
    note(f"starting {bundles.COLD_STARTS * len(opened)} fresh processes")
    facts = []
    for bundle in opened:
        (history,) = timers.random_histories(bundle.ranker, 1, lengths[0], sweep.seed)
        facts.append(bundles.describe_bundle(bundle, history, sweep.ks[0]))
    bandwidths = memory_bandwidths(sweep.threads) if first.ranker.provider == "cpu" else []
    calls, stages, appends = [], [], []
    for bundle, length, threads, k in product(opened, lengths, sweep.threads, sweep.ks):
        ranker = bundle.rankers[threads]
        for batch in sweep.batches:
            calls.append(CallTimer(bundle.setting(threads, batch, length, k), ranker, sweep.seed))
        alone = bundle.setting(threads, 1, length, k)
        stages.append(StageTimer(alone, ranker, sweep.seed))
        appends.append(AppendTimer(alone, ranker, sweep.seed))
    _time_in_turn(calls, [*stages, *appends], sweep.runs, note)
    rates = {bandwidth.threads: 1e9 * bandwidth.gb_per_second for bandwidth in bandwidths}
    measurements = [timer.result(rates.get(timer.setting.threads)) for timer in calls]
    return BenchReport(
        report_format=REPORT_FORMAT,
        bundle=str(first.path),
        ranklet=__version__,
        machine=machine(),
        bandwidths=bandwidths,
        bundles=facts,
        loads=[load for bundle in opened for load in bundle.loads],
        measurements=measurements,
        waiting=_let_wait(calls, measurements, sweep, note),
        stages=[timer.result() for timer in stages],
        appends=[timer.result() for timer in appends],
    )


def _time_in_turn(
    calls: list[CallTimer], singles: list[StageTimer | AppendTimer], runs: int, note: Note
) -> None:
    for begin in range(0, runs, timers.BLOCK):
        if begin % (BLOCKS_A_NOTE * timers.BLOCK) == 0:
            note(f"timing {len(calls)} combination(s), {begin} of {runs} calls each")
        count = min(timers.BLOCK, runs - begin)
        for timer in calls:
            timer.time_block(begin, count)
        for single in singles if begin < SINGLE_RUNS else ():
            single.time_block(begin, count)


def _let_wait(
    calls: list[CallTimer], measurements: list[Measurement], sweep: Sweep, note: Note
) -> list[Waiting]:
    waits = [
        WaitTimer(call, load, measurement.mean_ms)
        for load in sweep.loads
        for call, measurement in zip(calls, measurements, strict=True)
    ]
    for number in range(timers.ROUNDS if waits else 0):
        note(f"timing requests at random times, round {number + 1} of {timers.ROUNDS}")
        for wait in waits:
            wait.time_round(sweep.seed + number)
    return [wait.result() for wait in waits]
