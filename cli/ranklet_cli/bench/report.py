"""Benchmark reports: flat rows of plain values, and their comparison with an older report.

* Times are in milliseconds. Every row names its call, so that a table of rows needs nothing else.
* A comparison takes the median of the block medians of a call as its p50 and a bootstrap over
  blocks as its interval. Runs differ by more than the noise inside a run: in six runs of one bundle
  on two busy cores, half of 90 ratios were off by up to 2 %, one in ten by 6 % to 10 %, and 36
  intervals excluded 1. A call is faster or slower only if the whole interval lies beyond ``SAME``,
  which 3 of the 90 did.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from ranklet.errors import InputError
from ranklet.machine import Machine

REPORT_FORMAT = 2  # in format 1 the appended event was the first of a user
RESAMPLES = 2000
INTERVAL = (2.5, 97.5)  # percentiles
SAME = 0.05  # largest relative difference of two runs that is noise


@dataclass(frozen=True)
class Setting:
    """Setting of a call: ``batch`` histories of ``length`` events, top ``k`` of ``items``."""

    items: int
    precision: str
    is_random: bool  # a bundle with random weights, made for this benchmark
    provider: str  # the active one
    threads: int
    batch: int
    length: int
    k: int

    @property
    def name(self) -> str:
        """Return the name of the call, the same for every version of the timed bundle."""
        bundle = f"{self.items:,} random items {self.precision}" if self.is_random else "BUNDLE"
        return (
            f"{bundle}, batch {self.batch}, {self.length} events, top {self.k}, "
            f"{count_threads(self.threads)} on {self.provider}"
        )


def count_threads(threads: int) -> str:
    """Return a number of threads with its noun."""
    return f"{threads} thread{'s' if threads > 1 else ''}"


@dataclass(frozen=True)
class Measurement(Setting):
    """Percentiles of back-to-back calls, each sent after the previous answer."""

    runs: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    p99_9_ms: float | None  # None: fewer than 1000 runs
    mean_ms: float
    users_per_second: float  # batch / mean
    session_p50_ms: float  # bare calls of the engine
    read_bytes: int  # see ``limit.least_bytes``
    limit_ms: float | None  # read_bytes over the bandwidth; None on CUDA, which has its own memory
    blocks_ms: list[float]  # median of each block


@dataclass(frozen=True)
class Waiting(Setting):
    """Latency of calls that arrive as a Poisson process and queue.

    Times count from arrival; a percentile is the median over rounds.
    """

    load_percent: int  # of the throughput of back-to-back calls
    arrivals: int  # in all rounds
    offered_per_second: float  # calls
    busy_percent: float  # of the time to the last answer of a round
    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Stages(Setting):
    """Medians of the stages of one request, with ``rank_ms`` as their sum."""

    rank_ms: float
    lookup_ms: float  # ids to indices
    encode_ms: float  # history to user vector
    score_ms: float  # scores and top-k
    ids_ms: float  # indices to ids
    python_ms: float  # the rest


@dataclass(frozen=True)
class Append(Setting):
    """Medians of one more event after ``length`` events, the last of them appended as well."""

    append_p50_ms: float  # append and rank on a kept state
    rank_p50_ms: float  # rank the whole history
    blocks_ms: list[float]  # of append


@dataclass(frozen=True)
class BundleFacts:
    """Size and cold start of a timed bundle."""

    path: str  # removed after the benchmark if weights are random
    items: int
    precision: str
    is_random: bool
    format: int
    bytes: int
    cold_start_ms: float  # lifetime of a new process: import, load, rank once
    cold_start_peak_mb: float | None  # resident; None without /proc


@dataclass(frozen=True)
class Load:
    """Load time of a bundle in this process, which has imported onnxruntime."""

    items: int
    precision: str
    is_random: bool
    threads: int
    provider: str
    load_ms: float  # including the check of digests
    rss_mb: float | None  # growth of the resident set beyond freed memory; None without /proc


@dataclass(frozen=True)
class Bandwidth:
    """Read speed of main memory."""

    threads: int
    gb_per_second: float


@dataclass(frozen=True)
class Change:
    """Latency of a call beside that of an older report."""

    case: str
    old_p50_ms: float
    new_p50_ms: float
    ratio: float  # new / old
    low: float  # 95 % interval of the ratio
    high: float
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """Comparison of a report with an older report."""

    path: str
    ranklet: str  # version of the older report
    warnings: list[str]
    changes: list[Change]
    only_new: list[str]  # rankings that the older report lacks
    only_old: list[str]


@dataclass(frozen=True)
class BenchReport:
    """Results of ``benchmark``, with the machine."""

    report_format: int
    bundle: str
    ranklet: str  # version
    machine: Machine
    bandwidths: list[Bandwidth]  # empty on CUDA
    bundles: list[BundleFacts]  # the first is ``bundle``
    loads: list[Load]
    measurements: list[Measurement]
    waiting: list[Waiting]
    stages: list[Stages]
    appends: list[Append]
    comparison: Comparison | None = None


def read_report(path: str | Path) -> BenchReport:
    """Read the output of ``ranklet bench --json``, without its comparison.

    Raises:
        InputError: The file is not a report, or it has another format.
    """
    try:
        document = json.loads(Path(path).read_bytes())
        version = document["report_format"]
        rows: dict[str, Any] = {"comparison": None}
        for name, kind in get_type_hints(BenchReport).items():
            if get_origin(kind) is list:
                rows[name] = [get_args(kind)[0](**values) for values in document[name]]
        report = BenchReport(**{**document, **rows})
        blocks = _blocks(report).values()
        is_whole = report.bundles and all(medians and min(medians) > 0 for medians in blocks)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is not a report of ranklet bench --json: {error!r}") from error
    if version != REPORT_FORMAT or not is_whole:
        raise InputError(
            f"{path} has report format {version}, and this version compares {REPORT_FORMAT}: "
            "run ranklet bench --json with this version there, too"
        )
    return report


def compare(new: BenchReport, old: BenchReport, path: str | Path) -> Comparison:
    """Compare the calls that two reports share; ``path`` is that of the older report."""
    now, then, changes = _blocks(new), _blocks(old), []
    for case in now:
        if case in then:
            ratio, low, high = ratio_interval(now[case], then[case])
            p50 = float(np.median(then[case])), float(np.median(now[case]))
            changes.append(Change(case, *p50, ratio, low, high, verdict(low, high)))
    return Comparison(
        path=str(path),
        ranklet=old.ranklet,
        warnings=_warnings(new, old),
        changes=changes,
        only_new=[row.name for row in new.measurements if row.name not in then],
        only_old=[row.name for row in old.measurements if row.name not in now],
    )


def ratio_interval(new: list[float], old: list[float]) -> tuple[float, float, float]:
    """Return new / old of the median of the blocks' medians, and its 95 % interval."""
    random = np.random.default_rng(0)
    new_p50, old_p50 = (
        np.median(random.choice(blocks, (RESAMPLES, len(blocks))), axis=1) for blocks in (new, old)
    )
    low, high = np.percentile(new_p50 / old_p50, INTERVAL).tolist()
    return float(np.median(new) / np.median(old)), low, high


def verdict(low: float, high: float) -> str:
    """Return the verdict on the interval of a ratio."""
    if high < 1 / (1 + SAME):
        return "faster"
    return "slower" if low > 1 + SAME else "no difference"


def _blocks(report: BenchReport) -> dict[str, list[float]]:
    """Return the block medians of every call, by name."""
    ranks = {row.name: row.blocks_ms for row in report.measurements}
    return ranks | {f"{row.name}, appended": row.blocks_ms for row in report.appends}


def _warnings(new: BenchReport, old: BenchReport) -> list[str]:
    """Return the differences of machine and bundle, which confound the comparison."""
    warnings = []
    facts = [
        f"{name} {old.machine.get(name)}, now {new.machine.get(name)}"
        for name in {**old.machine, **new.machine}
        if old.machine.get(name) != new.machine.get(name)
    ]
    if facts:
        warnings.append(f"another machine: {'; '.join(facts)}")
    then, now = (
        f"{b.items:,} items {b.precision} of format {b.format}"
        for b in (old.bundles[0], new.bundles[0])
    )
    if then != now:
        warnings.append(f"another BUNDLE: {then}, now {now}")
    return warnings
