"""What a benchmark found, as flat rows of plain values; times are in milliseconds.

Every row says which call it is about, so that a table of rows needs nothing else.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ranklet.errors import InputError
from ranklet.machine import Machine

REPORT_FORMAT = 2  # since then an appended event is not a user's first


@dataclass(frozen=True)
class Setting:
    """Which call: ``batch`` histories of ``length`` events, the best ``k`` of ``items``."""

    items: int
    precision: str
    is_random: bool  # a bundle of random weights that was made for this benchmark
    provider: str  # the one that ran
    threads: int
    batch: int
    length: int
    k: int

    @property
    def name(self) -> str:
        """Say which call it is; the same in two reports of bundles that took each other's place."""
        bundle = f"{self.items:,} random items {self.precision}" if self.is_random else "BUNDLE"
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return (
            f"{bundle}, batch {self.batch}, {self.length} events, top {self.k}, "
            f"{threads} on {self.provider}"
        )


@dataclass(frozen=True)
class Measurement(Setting):
    """Calls one after another, the next when the last is answered."""

    runs: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    p99_9_ms: float | None  # None: fewer than 1000 runs
    mean_ms: float
    users_per_second: float  # batch / mean
    session_p50_ms: float  # the bare runs of the graph inside such a call
    read_bytes: int  # that the call reads at least, see ``limit.least_bytes``
    limit_ms: float | None  # these bytes over the bandwidth; None on CUDA, whose memory is another
    blocks_ms: list[float]  # median of each block


@dataclass(frozen=True)
class Waiting(Setting):
    """Calls that arrive at random, a Poisson process, and wait in line.

    Times count from arrival. They are medians of rounds, each with percentiles of its own.
    """

    load_percent: int  # of what calls one after another get done
    arrivals: int  # in all rounds
    offered_per_second: float  # calls
    busy_percent: float  # of the time to the last answer of a round
    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Stages(Setting):
    """Medians of the parts of one request; they add up to ``rank_ms``."""

    rank_ms: float
    lookup_ms: float  # ids to indices
    encode_ms: float  # encoder.onnx
    score_ms: float  # scores and top-k: model.onnx less encoder.onnx
    ids_ms: float  # indices to ids
    python_ms: float  # all else


@dataclass(frozen=True)
class Append(Setting):
    """One more event after ``length`` events, the last of them appended, too; medians of blocks."""

    append_p50_ms: float  # append and rank on a kept state
    rank_p50_ms: float  # rank the whole history
    blocks_ms: list[float]  # of append


@dataclass(frozen=True)
class BundleFacts:
    """A bundle that was timed."""

    path: str  # random ones are gone
    items: int
    precision: str
    is_random: bool
    format: int
    bytes: int
    cold_start_ms: float  # a fresh process, from its start to its end: import, load, rank once
    cold_start_peak_mb: float | None  # resident; None without /proc


@dataclass(frozen=True)
class Load:
    """What opening a bundle costs in this process, which has imported onnxruntime."""

    items: int
    precision: str
    is_random: bool
    threads: int
    provider: str
    load_ms: float  # digests are checked
    rss_mb: (
        float | None
    )  # growth of the resident set, what was free before used first; None: no /proc


@dataclass(frozen=True)
class Bandwidth:
    """How fast this machine reads memory beyond its caches."""

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
    """All that ``benchmark`` found, and where."""

    report_format: int
    bundle: str
    ranklet: str  # version
    machine: Machine
    bandwidths: list[Bandwidth]  # of main memory; empty on CUDA
    bundles: list[BundleFacts]  # the first is ``bundle``
    loads: list[Load]
    measurements: list[Measurement]
    waiting: list[Waiting]
    stages: list[Stages]
    appends: list[Append]
    comparison: Comparison | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, dicts, texts and numbers, for JSON."""
        return asdict(self)


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
    """Read what ``ranklet bench --json`` printed.

    Raises:
        InputError: It is none, or of another version.
    """
    try:
        document = json.loads(Path(path).read_bytes())
        found = document["report_format"]
        rows: dict[str, Any] = {
            name: [kind(**row) for row in document[name]] for name, kind in ROWS.items()
        }
        report = BenchReport(**{**document, **rows, "comparison": None})
        blocks = [row.blocks_ms for row in report.measurements]
        blocks += [row.blocks_ms for row in report.appends]
        is_whole = report.bundles and all(medians and min(medians) > 0 for medians in blocks)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a report of ranklet bench --json: {error!r}") from error
    if found != REPORT_FORMAT or not is_whole:
        raise InputError(
            f"{path} has report format {found}, and this version compares {REPORT_FORMAT}: "
            "run ranklet bench --json with this version there, too"
        )
    return report
