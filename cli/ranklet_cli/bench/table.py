"""A report as text for a terminal: the machine and the bundles on top, then a table a question."""

from collections.abc import Callable, Sequence
from typing import Any

from ranklet.machine import machine_line
from ranklet_cli.bench.comparing import SAME
from ranklet_cli.bench.report import (
    Append,
    BenchReport,
    BundleFacts,
    Comparison,
    Load,
    Measurement,
    Setting,
    Stages,
    Waiting,
)

Columns = dict[str, Callable[[Any], str]]  # heading, and the text of a row

KEYS: Columns = {
    "weights": lambda row: "random" if row.is_random else "BUNDLE",
    "items": lambda row: f"{row.items:,}",
    "precision": lambda row: row.precision,
    "threads": lambda row: str(row.threads),
    "k": lambda row: str(row.k),
    "batch": lambda row: str(row.batch),
    "events": lambda row: str(row.length),
}


def format_table(report: BenchReport) -> str:
    """Return a report as text for a terminal."""
    tables = [
        _calls(report.measurements),
        _waiting(report.waiting),
        _stages(report.stages),
        _appends(report.appends),
        _comparison(report.comparison),
    ]
    return "\n\n".join("\n".join(lines) for lines in [_head(report), *tables] if lines)


def _head(report: BenchReport) -> list[str]:
    lines = [f"{machine_line(report.machine)}, ranklet {report.ranklet}"]
    if report.bandwidths:
        speeds = [
            f"{speed.gb_per_second:.1f} GB/s with {_threads(speed.threads)}"
            for speed in report.bandwidths
        ]
        lines.append(f"memory is read at {', '.join(speeds)}")
    for bundle in report.bundles:
        place = (bundle.items, bundle.precision, bundle.is_random)
        loads = [a for a in report.loads if (a.items, a.precision, a.is_random) == place]
        lines += _bundle(bundle, loads)
    return lines


def _bundle(bundle: BundleFacts, loads: list[Load]) -> list[str]:
    name = "random weights" if bundle.is_random else bundle.path
    peak = f", peak {bundle.cold_start_peak_mb:.0f} MB" if bundle.cold_start_peak_mb else ""
    lines = [
        f"{name}: {bundle.items:,} items, {bundle.precision}, {bundle.bytes / 1e6:.1f} MB, "
        f"format {bundle.format}",
        f"  cold start (new process: import, load, rank once): {bundle.cold_start_ms:.0f} ms{peak}",
    ]
    for load in loads:
        grown = f", {load.rss_mb:+.1f} MB resident" if load.rss_mb is not None else ""
        where = f"load on {load.provider}, {_threads(load.threads)}"
        lines.append(f"  {where}: {load.load_ms:.1f} ms{grown}")
    return lines


def _calls(rows: list[Measurement]) -> list[str]:
    return _table(
        "one call after another, ms",
        rows,
        {
            "p50": lambda row: f"{row.p50_ms:.3f}",
            "p95": lambda row: f"{row.p95_ms:.3f}",
            "p99": lambda row: f"{row.p99_ms:.3f}",
            "p99.9": lambda row: "-" if row.p99_9_ms is None else f"{row.p99_9_ms:.3f}",
            "session p50": lambda row: f"{row.session_p50_ms:.3f}",
            "MB read": lambda row: f"{row.read_bytes / 1e6:.3f}",
            "limit": lambda row: "-" if row.limit_ms is None else f"{row.limit_ms:.3f}",
            "p50/limit": lambda row: (
                "-" if row.limit_ms is None else f"{row.p50_ms / row.limit_ms:.1f}"
            ),
            "users/s": lambda row: f"{row.users_per_second:,.0f}",
        },
        after="limit: MB read over the speed of memory; what stays in a cache is read faster",
    )


def _waiting(rows: list[Waiting]) -> list[str]:
    return _table(
        "requests at random times wait in line for one server, ms from arrival",
        rows,
        {
            "load": lambda row: f"{row.load_percent} %",
            "calls/s": lambda row: f"{row.offered_per_second:,.0f}",
            "busy": lambda row: f"{row.busy_percent:.0f} %",
            "p50": lambda row: f"{row.p50_ms:.3f}",
            "p95": lambda row: f"{row.p95_ms:.3f}",
            "p99": lambda row: f"{row.p99_ms:.3f}",
        },
    )


def _stages(rows: list[Stages]) -> list[str]:
    return _table(
        "where the time of one request goes, p50 in us",
        rows,
        {
            "rank": lambda row: f"{1e3 * row.rank_ms:.0f}",
            "= lookup": lambda row: f"{1e3 * row.lookup_ms:.1f}",
            "+ encode": lambda row: f"{1e3 * row.encode_ms:.1f}",
            "+ score, top-k": lambda row: f"{1e3 * row.score_ms:.1f}",
            "+ ids": lambda row: f"{1e3 * row.ids_ms:.1f}",
            "+ rest of Python": lambda row: f"{1e3 * row.python_ms:.1f}",
        },
    )


def _appends(rows: list[Append]) -> list[str]:
    return _table(
        "one more event, p50 in ms",
        rows,
        {
            "append, rank": lambda row: f"{row.append_p50_ms:.3f}",
            "rank all": lambda row: f"{row.rank_p50_ms:.3f}",
            "ratio": lambda row: f"{row.rank_p50_ms / row.append_p50_ms:.1f}",
        },
    )


def _comparison(found: Comparison | None) -> list[str]:
    if found is None:
        return []
    rows = [["p50 was", "is", "new/old", "95 % of it", "", "call"]]
    for change in found.changes:
        times = [f"{change.old_p50_ms:.3f}", f"{change.new_p50_ms:.3f}", f"{change.ratio:.3f}"]
        interval = f"{change.low:.3f} to {change.high:.3f}"
        rows.append([*times, interval, change.verdict, change.case])
    return [
        f"compared with {found.path} of ranklet {found.ranklet}, ms",
        *(f"warning: {warning}" for warning in found.warnings),
        *_align(rows, left=2),
        f"no difference: not surely more than {100 * SAME:.0f} %, by which runs differ",
        *(f"new here: {case}" for case in found.only_new),
        *(f"not timed here: {case}" for case in found.only_old),
    ]


def _table(
    title: str, rows: Sequence[Setting], columns: Columns, *, after: str | None = None
) -> list[str]:
    """Return a table; what is the same in all rows goes into its title."""
    if not rows:
        return []
    texts = {name: [text(row) for row in rows] for name, text in KEYS.items()}
    shown = [name for name in KEYS if name == "events" or len(set(texts[name])) > 1]
    first = rows[0]
    same = {
        "items": f"{first.items:,} items",
        "precision": first.precision,
        "threads": _threads(first.threads),
        "k": f"top {first.k}",
        "batch": f"batch {first.batch}",
    }
    told = ", ".join(text for name, text in same.items() if name not in shown)
    cells = [texts[name] for name in shown] + [
        [text(row) for row in rows] for text in columns.values()
    ]
    lines = _align([[*shown, *columns], *map(list, zip(*cells, strict=True))])
    return [f"{title} ({told})" if told else title, *lines, *([after] if after else [])]


def _align(rows: list[list[str]], *, left: int = 0) -> list[str]:
    """Return rows as lines, columns to the right but the last ``left`` ones."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    first_left = len(widths) - left
    return [
        "  ".join(
            text.rjust(width) if place < first_left else text.ljust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"
