"""Benchmark reports as text for a terminal and as a plot."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ranklet.machine import machine_line
from ranklet_cli.bench.report import (
    SAME,
    BenchReport,
    Comparison,
    Measurement,
    Setting,
    count_threads,
)
from ranklet_cli.tables import align

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Text = Callable[[Any], str]

# Keys of rows and of plotted lines: heading of the column, label of a value.
KEYS: dict[str, tuple[str, Text]] = {
    "is_random": ("weights", lambda is_random: "random" if is_random else "BUNDLE"),
    "items": ("items", "{:,} items".format),
    "precision": ("precision", str),
    "threads": ("threads", count_threads),
    "k": ("k", "top {}".format),
    "batch": ("batch", "batch {}".format),
    "length": ("events", "{} events".format),
}


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


PERCENTILES: dict[str, Text] = {
    "p50": "{.p50_ms:.3f}".format,
    "p95": "{.p95_ms:.3f}".format,
    "p99": "{.p99_ms:.3f}".format,
}
# Field of a report, title of its table, text of each column, footnote.
TABLES: tuple[tuple[str, str, dict[str, Text], str], ...] = (
    (
        "measurements",
        "back-to-back calls, ms",
        {
            **PERCENTILES,
            "p99.9": lambda row: _number(row.p99_9_ms),
            "session p50": "{.session_p50_ms:.3f}".format,
            "MB read": lambda row: _number(row.read_bytes / 1e6),
            "limit": lambda row: _number(row.limit_ms),
            "p50/limit": lambda row: _number(row.limit_ms and row.p50_ms / row.limit_ms, 1),
            "users/s": "{.users_per_second:,.0f}".format,
        },
        "limit: MB read over the memory bandwidth; bytes in a cache are read faster",
    ),
    (
        "waiting",
        "requests at random times in the queue of one server, ms from arrival",
        {
            "load": "{.load_percent} %".format,
            "calls/s": "{.offered_per_second:,.0f}".format,
            "busy": "{.busy_percent:.0f} %".format,
            **PERCENTILES,
        },
        "",
    ),
    (
        "stages",
        "stages of one request, p50 in us",
        {
            "rank": lambda row: _number(1e3 * row.rank_ms, 0),
            "= look up ids": lambda row: _number(1e3 * row.lookup_ms, 1),
            "+ encode": lambda row: _number(1e3 * row.encode_ms, 1),
            "+ score, top-k": lambda row: _number(1e3 * row.score_ms, 1),
            "+ name items": lambda row: _number(1e3 * row.ids_ms, 1),
            "+ rest of Python": lambda row: _number(1e3 * row.python_ms, 1),
        },
        "",
    ),
    (
        "appends",
        "one more event, p50 in ms",
        {
            "append, rank": "{.append_p50_ms:.3f}".format,
            "rank all": "{.rank_p50_ms:.3f}".format,
            "ratio": lambda row: _number(row.rank_p50_ms / row.append_p50_ms, 1),
        },
        "",
    ),
)


def format_report(report: BenchReport) -> str:
    """Return a report as text: machine, bundles, then a table of each kind of result."""
    parts = [_head(report)]
    for rows, title, columns, footnote in TABLES:
        parts.append(_table(getattr(report, rows), title, columns, footnote))
    parts.append(_comparison(report.comparison))
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _head(report: BenchReport) -> list[str]:
    lines = [f"{machine_line(report.machine)}, ranklet {report.ranklet}"]
    speeds = [
        f"{b.gb_per_second:.1f} GB/s with {count_threads(b.threads)}" for b in report.bandwidths
    ]
    if speeds:
        lines.append(f"memory bandwidth: {', '.join(speeds)}")
    for bundle in report.bundles:
        place = (bundle.items, bundle.precision, bundle.is_random)
        name = "random weights" if bundle.is_random else bundle.path
        peak = f", peak {bundle.cold_start_peak_mb:.0f} MB" if bundle.cold_start_peak_mb else ""
        lines += [
            f"{name}: {bundle.items:,} items, {bundle.precision}, {bundle.bytes / 1e6:.1f} MB, "
            f"format {bundle.format}",
            f"  cold start (new process: import, load, rank once): {bundle.cold_start_ms:.0f} ms"
            f"{peak}",
        ]
        for load in report.loads:
            if (load.items, load.precision, load.is_random) == place:
                grown = f", {load.rss_mb:+.1f} MB resident" if load.rss_mb is not None else ""
                where = f"load on {load.provider}, {count_threads(load.threads)}"
                lines.append(f"  {where}: {load.load_ms:.1f} ms{grown}")
    return lines


def _table(
    rows: Sequence[Setting], title: str, columns: dict[str, Text], footnote: str
) -> list[str]:
    """Return a table, with the values that all rows share in its title."""
    if not rows:
        return []
    varying = [key for key in KEYS if key == "length" or _varies(rows, key)]
    shared = [
        label(getattr(rows[0], key))
        for key, (_, label) in KEYS.items()
        if key not in (*varying, "is_random")
    ]
    cells = [[KEYS[key][0] for key in varying] + list(columns)]
    for row in rows:
        values = {key: getattr(row, key) for key in varying}
        keys = [f"{v:,}" if type(v) is int else KEYS[key][1](v) for key, v in values.items()]
        cells.append(keys + [text(row) for text in columns.values()])
    title += f" ({', '.join(shared)})" if shared else ""
    return [title, *align(cells, left=()), *([footnote] if footnote else [])]


def _varies(rows: Sequence[Setting], key: str) -> bool:
    return len({getattr(row, key) for row in rows}) > 1


def _comparison(comparison: Comparison | None) -> list[str]:
    if comparison is None:
        return []
    rows = [["p50 was", "is", "new/old", "95 % interval", "", "call"]]
    for change in comparison.changes:
        times = [_number(change.old_p50_ms), _number(change.new_p50_ms), _number(change.ratio)]
        interval = f"{change.low:.3f} to {change.high:.3f}"
        rows.append([*times, interval, change.verdict, change.case])
    return [
        f"compared with {comparison.path} of ranklet {comparison.ranklet}, ms",
        *(f"warning: {warning}" for warning in comparison.warnings),
        *align(rows, left=(4, 5)),
        f"no difference: part of the interval is within {100 * SAME:.0f} %, the noise between runs",
        *(f"new here: {case}" for case in comparison.only_new),
        *(f"not timed here: {case}" for case in comparison.only_old),
    ]


WIDE = (15, 6)  # inches, of two panels
MOST_BANDS = 4  # more would hide one another
DASHES = ("-", "--", ":")  # for ten lines each


def plot(report: BenchReport, path: str | Path) -> None:
    """Plot latency against history length, and against catalogue size if the report has several.

    Each combination of the other settings is a line; few lines also have a band up to p95.

    Raises:
        InputError: As ``plots.check_plot``.
    """
    from ranklet_training.judge.plots import new_figure, save_figure

    figure, axes = new_figure(path)
    rows = report.measurements
    if _varies(rows, "items"):
        figure.set_size_inches(*WIDE)
        grid = figure.add_gridspec(1, 2)
        axes.set_subplotspec(grid[0])
        right = figure.add_subplot(grid[1], sharey=axes)
        right.grid(alpha=0.25, linewidth=0.8)
        right.spines[["top", "right"]].set_visible(False)
        others = [key for key in KEYS if key not in ("is_random", "items")]
        _draw_lines(right, rows, "items", others)
        right.set_xscale("log")
        sizes = sorted({row.items for row in rows})
        right.set_xticks(sizes, [f"{items:,}" for items in sizes])
        right.set_xticks([], minor=True)
        right.set_xlabel("items in the catalogue")
    has_bands = _draw_lines(axes, rows, "length", [key for key in KEYS if key != "length"])
    axes.set_xticks(sorted({row.length for row in rows}))
    axes.set_xlabel("history length (events)")
    axes.set_ylabel(f"latency of one call (ms): median{', band up to p95' if has_bands else ''}")
    _scale_latency(axes, rows)
    name, first = Path(report.bundle).resolve().name, rows[0]
    title = f"{name}: top {first.k} of {report.bundles[0].items:,} items on {first.provider}"
    axes.set_title(title, loc="left", fontweight="bold", pad=30)
    where = machine_line(report.machine).replace(", Python", "\nPython")
    axes.text(0, 1.02, where, transform=axes.transAxes, fontsize=8, color="0.35")
    save_figure(figure, path)


def _draw_lines(axes: "Axes", rows: list[Measurement], x: str, keys: list[str]) -> bool:
    """Plot p50 against ``x``, one line per combination of ``keys``; return whether with bands."""
    shown = [key for key in keys if key in ("batch", "threads") or _varies(rows, key)]
    lines: dict[tuple[Any, ...], list[Measurement]] = {}
    for row in sorted(rows, key=lambda row: int(getattr(row, x))):
        lines.setdefault(tuple(getattr(row, key) for key in keys), []).append(row)
    has_bands = len(lines) <= MOST_BANDS
    for number, line in enumerate(lines.values()):
        places = [getattr(row, x) for row in line]
        p50, p95 = [row.p50_ms for row in line], [row.p95_ms for row in line]
        label = ", ".join(KEYS[key][1](getattr(line[0], key)) for key in shown)
        dashes, color = DASHES[number // 10 % len(DASHES)], f"C{number}"
        axes.plot(places, p50, f"o{dashes}", color=color, markersize=5, linewidth=1.8, label=label)
        if has_bands and len(line) > 1:
            axes.fill_between(places, p50, p95, color=color, alpha=0.15, linewidth=0)
        elif has_bands:  # a band of one point would be invisible
            axes.vlines(places, p50, p95, color=color, alpha=0.4, linewidth=4)
    below: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.12)}
    axes.legend(frameon=False, **({} if has_bands else {"fontsize": 8, "ncols": 2, **below}))
    return has_bands


def _scale_latency(axes: "Axes", rows: list[Measurement]) -> None:
    """Set a logarithmic scale if latencies differ by more than a factor of 20."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    if max(row.p50_ms for row in rows) <= 20 * min(row.p50_ms for row in rows):
        axes.set_ylim(bottom=0)
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())
