"""The whole benchmark: check what is asked for, open the bundles, time, report."""

import operator
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import get_args

from ranklet import __version__
from ranklet.bundle import Precision
from ranklet.errors import InputError
from ranklet.machine import machine
from ranklet.provider import Provider
from ranklet.vocabulary import show
from ranklet_cli.bench.bundles import (
    COLD_STARTS,
    OpenBundle,
    check_export,
    describe_bundle,
    make_random,
    open_bundle,
    random_histories,
)
from ranklet_cli.bench.cases import BLOCK, Case
from ranklet_cli.bench.limit import memory_bandwidths
from ranklet_cli.bench.report import REPORT_FORMAT, BenchReport, Measurement, Waiting
from ranklet_cli.bench.single import AppendTimer, StageTimer
from ranklet_cli.bench.waiting import ROUNDS, WaitTimer

DEFAULT_LENGTHS = (10, 50, 200)
DEFAULT_LOADS = (50, 80)
MIN_RUNS = 100  # fewer give no 99th percentile
SINGLE_RUNS = 200  # of what only medians are told of
BLOCKS_A_NOTE = 5

Note = Callable[[str], None]


@dataclass(frozen=True)
class _Sweep:
    """What was asked for, checked."""

    provider: Provider
    batches: list[int]
    lengths: list[int] | None  # None: the defaults that the bundle takes
    threads: list[int]
    ks: list[int]
    catalogues: list[tuple[int, str | None]]  # items and precision, None: that of the bundle
    loads: list[int]
    runs: int
    seed: int


def benchmark(
    path: str | Path,
    *,
    provider: Provider = "auto",
    batches: Sequence[int] = (1,),
    lengths: Sequence[int] | None = None,
    threads: Sequence[int] = (1,),
    ks: Sequence[int] = (10,),
    catalogues: Sequence[int] = (),
    precisions: Sequence[str] = (),
    loads: Sequence[int] = DEFAULT_LOADS,
    runs: int = 1000,
    seed: int = 0,
    on_progress: Note | None = None,
) -> BenchReport:
    """Time rankings of a bundle, every combination of what is given as several.

    All bundles are in memory at once, each for every count of threads.

    Args:
        path: Folder of the bundle.
        provider: As in ``Ranker.load``.
        batches: Histories of one call.
        lengths: Events of each history; by default 10, 50 and 200, or the most that the bundle
            takes where that is less.
        threads: Threads of one ranking.
        ks: Items to return.
        catalogues: Time bundles of so many items, too: random weights of the bundle's shape, made
            in a temporary folder.
        precisions: Of these bundles; by default that of the bundle.
        loads: How busy the server is while requests wait in line, in percent; may be empty.
        runs: Timed calls of each combination, at least 100; 1000 give p99.9.
        seed: Of the random histories and arrivals.
        on_progress: Called with a line of text now and then.

    Raises:
        InputError: A value can't be used; the message names it.
        BundleError: The bundle is missing or damaged.
        ProviderError: CUDA was asked for and does not run.
    """
    note = on_progress or (lambda text: None)
    sweep = _Sweep(
        provider=provider,
        batches=_check_all("batch", batches),
        lengths=None if lengths is None else _check_all("length", lengths),
        threads=_check_all("threads", threads),
        ks=_check_all("k", ks),
        catalogues=_check_catalogues(catalogues, precisions),
        loads=_check_loads(loads),
        runs=_check("runs", runs, MIN_RUNS),
        seed=_check("seed", seed, 0),
    )
    note(f"loading {path}")
    bundle = open_bundle(Path(path), provider, sweep.threads)
    lengths = _fit_lengths(sweep.lengths, bundle.ranker.manifest.max_length)
    # A file that is mapped can't be removed everywhere.
    with tempfile.TemporaryDirectory("-ranklet-bench", ignore_cleanup_errors=True) as folder:
        others = list(_open_random(bundle, sweep, Path(folder), note))
        return _measure([bundle, *others], lengths, sweep, note)


def _open_random(
    bundle: OpenBundle, sweep: _Sweep, folder: Path, note: Note
) -> Iterator[OpenBundle]:
    manifest = bundle.ranker.manifest
    for items, precision in sweep.catalogues:
        chosen = precision or manifest.precision
        note(f"making a bundle of {items:,} items, {chosen}")
        made = make_random(manifest, items, chosen, folder)
        yield open_bundle(made, sweep.provider, sweep.threads, is_random=True)


def _measure(
    bundles: list[OpenBundle], lengths: list[int], sweep: _Sweep, note: Note
) -> BenchReport:
    first = bundles[0]
    note(f"starting {COLD_STARTS * len(bundles)} fresh processes")
    facts = []
    for bundle in bundles:
        (history,) = random_histories(bundle.ranker, 1, lengths[0], sweep.seed)
        facts.append(describe_bundle(bundle, history, sweep.ks[0]))
    bandwidths = memory_bandwidths(sweep.threads) if first.ranker.provider == "cpu" else []
    cases, stages, appends = _make_timers(bundles, lengths, sweep)
    _time_in_turn(cases, [*stages, *appends], sweep.runs, note)
    rates = {found.threads: 1e9 * found.gb_per_second for found in bandwidths}
    measurements = [case.measurement(rates.get(case.setting.threads)) for case in cases]
    return BenchReport(
        report_format=REPORT_FORMAT,
        bundle=str(first.path),
        ranklet=__version__,
        machine=machine(),
        bandwidths=bandwidths,
        bundles=facts,
        loads=[load for bundle in bundles for load in bundle.loads],
        measurements=measurements,
        waiting=_let_wait(cases, measurements, sweep, note),
        stages=[timer.stages() for timer in stages],
        appends=[timer.append() for timer in appends],
    )


def _make_timers(
    bundles: list[OpenBundle], lengths: list[int], sweep: _Sweep
) -> tuple[list[Case], list[StageTimer], list[AppendTimer]]:
    """Prepare every combination, and every one of single requests."""
    cases, stages, appends = [], [], []
    for bundle, length, threads, k in product(bundles, lengths, sweep.threads, sweep.ks):
        ranker = bundle.rankers[threads]
        for batch in sweep.batches:
            cases.append(Case(bundle.setting(threads, batch, length, k), ranker, sweep.seed))
        alone = bundle.setting(threads, 1, length, k)
        stages.append(StageTimer(alone, ranker, sweep.seed))
        appends.append(AppendTimer(alone, ranker, sweep.seed))
    return cases, stages, appends


def _time_in_turn(
    cases: list[Case], singles: list[StageTimer | AppendTimer], runs: int, note: Note
) -> None:
    for begin in range(0, runs, BLOCK):
        if begin % (BLOCKS_A_NOTE * BLOCK) == 0:
            note(f"timing {len(cases)} cases, {begin} of {runs} calls each")
        count = min(BLOCK, runs - begin)
        for case in cases:
            case.time_block(begin, count)
        for single in singles if begin < SINGLE_RUNS else ():
            single.time_block(begin, count)


def _let_wait(
    cases: list[Case], measurements: list[Measurement], sweep: _Sweep, note: Note
) -> list[Waiting]:
    means = [found.mean_ms for found in measurements]
    timers = [
        WaitTimer(case, load, mean)
        for load in sweep.loads
        for case, mean in zip(cases, means, strict=True)
    ]
    for number in range(ROUNDS if timers else 0):
        note(f"letting requests wait in line, round {number + 1} of {ROUNDS}")
        for timer in timers:
            timer.time_round(sweep.seed + number)
    return [timer.waiting() for timer in timers]


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


def _check_catalogues(
    catalogues: Sequence[int], precisions: Sequence[str]
) -> list[tuple[int, str | None]]:
    if strange := [kind for kind in precisions if kind not in get_args(Precision)]:
        raise InputError(f"precision must be fp32, fp16, int8 or int4, got {show(strange[0])}")
    if not catalogues:
        if precisions:
            raise InputError("precision is of random bundles: pass --catalogue, too")
        return []
    sizes = _check_all("catalogue", catalogues)
    check_export()
    return list(product(sizes, dict.fromkeys(precisions) or [None]))


def _check_loads(loads: Sequence[int]) -> list[int]:
    percents = _check_all("load", loads) if loads else []
    if percents and (most := max(percents)) > 99:
        raise InputError(f"load must be below 100 percent, or the line grows for ever; got {most}")
    return percents


def _fit_lengths(lengths: list[int] | None, maximum: int) -> list[int]:
    if lengths is None:
        return list(dict.fromkeys(min(length, maximum) for length in DEFAULT_LENGTHS))
    if (longest := max(lengths)) > maximum:
        raise InputError(f"length {longest} is above the maximum of this bundle, {maximum}")
    return lengths
