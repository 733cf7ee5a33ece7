"""The results of a benchmark as flat rows of plain values, and their comparison with older ones.

* Times are in milliseconds. Every row names its call, so that a table of rows needs nothing else.
* A comparison takes the p50 of a call as the median of the medians of its blocks; resampled blocks
  (bootstrap) give the interval. That is the noise inside a run, but runs differ by more: in six
  runs of one bundle on two busy cores, half of 90 ratios were off by up to 2 %, one in ten by 6 %
  to 10 %, and 36 intervals left 1 out. So a call is faster or slower only where the whole interval
  lies beyond ``SAME``: 3 of 90.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ranklet.errors import InputError
from ranklet.machine import Machine

REPORT_FORMAT = 2  # since then an appended event is not a user's first
RESAMPLES = 2000
INTERVAL = (2.5, 97.5)  # percentiles
SAME = 0.05  # relative difference of two runs that means nothing


@dataclass(frozen=True)
class Setting:
    """A call: ``batch`` histories of ``length`` events, the best ``k`` of ``items``."""

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
        """Return the name of the call, which two reports share even if the bundle was replaced."""
        bundle = f"{self.items:,} random items {self.precision}" if self.is_random else "BUNDLE"
        return (
            f"{bundle}, batch {self.batch}, {self.length} events, top {self.k}, "
            f"{count_threads(self.threads)} on {self.provider}"
        )


def count_threads(threads: int) -> str:
    """Return a number of threads in words."""
    return f"{threads} thread{'s' if threads > 1 else ''}"


@dataclass(frozen=True)
class Measurement(Setting):
    """Back-to-back calls, each sent after the answer to the one before."""

    runs: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    p99_9_ms: float | None  # None: fewer than 1000 runs
    mean_ms: float
    users_per_second: float  # batch / mean
    session_p50_ms: float  # bare calls of the engine
    read_bytes: int  # see ``limit.least_bytes``
    limit_ms: float | None  # these bytes over the bandwidth; None on CUDA, which has its own memory
    blocks_ms: list[float]  # median of each block


@dataclass(frozen=True)
class Waiting(Setting):
    """Calls that arrive as a Poisson process and queue.

    Times count from arrival. They are medians over rounds of the percentiles of each round.
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
    """Medians of the stages of one request; they add up to ``rank_ms``."""

    rank_ms: float
    lookup_ms: float  # ids to indices
    encode_ms: float  # history to user vector
    score_ms: float  # scores and top-k
    ids_ms: float  # indices to ids
    python_ms: float  # the rest


@dataclass(frozen=True)
class Append(Setting):
    """One more event after ``length`` events, the last of which was appended, too."""

    append_p50_ms: float  # append and rank on a kept state
    rank_p50_ms: float  # rank the whole history
    blocks_ms: list[float]  # of append


@dataclass(frozen=True)
class BundleFacts:
    """A bundle that was timed."""

    path: str  # that of random weights is gone
    items: int
    precision: str
    is_random: bool
    format: int
    bytes: int
    cold_start_ms: float  # a fresh process, from its start to its end: import, load, rank once
    cold_start_peak_mb: float | None  # resident; None without /proc


@dataclass(frozen=True)
class Load:
    """The cost of opening a bundle in this process, which has imported onnxruntime."""

    items: int
    precision: str
    is_random: bool
    threads: int
    provider: str
    load_ms: float  # with digests checked
    rss_mb: float | None  # growth of the resident set; free memory is used first; None: no /proc


@dataclass(frozen=True)
class Bandwidth:
    """Read speed of main memory."""

    threads: int
    gb_per_second: float


@dataclass(frozen=True)
class Change:
    """A call beside the same call of an older report."""

    case: str
    old_p50_ms: float
    new_p50_ms: float
    ratio: float  # new / old
    low: float  # 95 % interval of the ratio
    high: float
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """A report beside an older one."""

    path: str
    ranklet: str  # version of the older one
    warnings: list[str]
    changes: list[Change]
    only_new: list[str]  # calls that the older report lacks
    only_old: list[str]


@dataclass(frozen=True)
class BenchReport:
    """All results of ``benchmark``, and the machine they hold for."""

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


ROWS = {
    "bandwidths": Bandwidth,
    "bundles": BundleFacts,
    "loads": Load,
    "measurements": Measurement,
    "waiting": Waiting,
    "stages": Stages,
    "appends": Append,
}


def read_report(path: str | Path) -> BenchReport:
    """Read the output of ``ranklet bench --json``, without its comparison.

    Raises:
        InputError: The file is no report, or one of another version.
    """
    try:
        document = json.loads(Path(path).read_bytes())
        version = document["report_format"]
        rows: dict[str, Any] = {
            name: [row(**values) for values in document[name]] for name, row in ROWS.items()
        }
        report = BenchReport(**{**document, **rows, "comparison": None})
        blocks = _blocks(report).values()
        is_whole = report.bundles and all(medians and min(medians) > 0 for medians in blocks)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a report of ranklet bench --json: {error!r}") from error
    if version != REPORT_FORMAT or not is_whole:
        raise InputError(
            f"{path} has report format {version}, and this version compares {REPORT_FORMAT}: "
            "run ranklet bench --json with this version there, too"
        )
    return report


def compare(new: BenchReport, old: BenchReport, path: str | Path) -> Comparison:
    """Compare the calls that two reports share; ``path`` is that of the older one.

    ``only_new`` and ``only_old`` list rankings only: an appended event comes with its ranking.
    """
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
    """Return the meaning of an interval of a ratio, in words."""
    if high < 1 / (1 + SAME):
        return "faster"
    return "slower" if low > 1 + SAME else "no difference"


def _blocks(report: BenchReport) -> dict[str, list[float]]:
    """Return the medians of the blocks of every call, by its name."""
    ranks = {row.name: row.blocks_ms for row in report.measurements}
    return ranks | {f"{row.name}, appended": row.blocks_ms for row in report.appends}


def _warnings(new: BenchReport, old: BenchReport) -> list[str]:
    """Return the differences of machine and bundle that spoil the comparison."""
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
