"""A report as a picture: latency against length, and against the catalogue where that was swept."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ranklet.machine import machine_line
from ranklet_cli.bench.report import BenchReport, Measurement
from ranklet_training.judge.plots import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE = (15, 6)  # inches, of two panels
MOST_BANDS = 4  # more hide one another
DASHES = ("-", "--", ":")  # for ten lines each
BELOW = (0.5, -0.12)  # of a panel
# What tells lines apart, and how a line is named for it.
LABELS: dict[str, Callable[[Any], str]] = {
    "is_random": lambda random: "random weights" if random else "BUNDLE",
    "items": lambda items: f"{items:,} items",
    "precision": str,
    "batch": lambda batch: f"batch {batch}",
    "length": lambda length: f"{length} events",
    "k": lambda k: f"top {k}",
    "threads": lambda threads: f"{threads} thread{'s' if threads > 1 else ''}",
}
ALWAYS = ("batch", "threads")


def plot(report: BenchReport, path: str | Path) -> None:
    """Draw latency against length, a line for each kind of call; if lines are few, p95 as a band.

    Raises:
        InputError: As ``plots.check_plot``.
    """
    figure, axes = new_figure(path)
    found = report.measurements
    panels = [axes]
    if len({m.items for m in found}) > 1:
        figure.set_size_inches(*WIDE)
        grid = figure.add_gridspec(1, 2)
        axes.set_subplotspec(grid[0])
        panels.append(figure.add_subplot(grid[1], sharey=axes))
        panels[1].grid(alpha=0.25, linewidth=0.8)
        panels[1].spines[["top", "right"]].set_visible(False)
        _draw_lines(panels[1], found, "items", apart=[n for n in LABELS if n != "is_random"])
        panels[1].set_xscale("log")
        sizes = sorted({m.items for m in found})
        panels[1].set_xticks(sizes, [f"{items:,}" for items in sizes])
        panels[1].set_xticks([], minor=True)
        panels[1].set_xlabel("items in the catalogue")
    has_bands = _draw_lines(axes, found, "length", apart=list(LABELS))
    axes.set_xticks(sorted({m.length for m in found}))
    axes.set_xlabel("history length (events)")
    axes.set_ylabel(f"latency of one call (ms): median{', band up to p95' if has_bands else ''}")
    _scale_latency(axes, found)
    _write_titles(axes, report)
    save_figure(figure, path)


def _draw_lines(axes: "Axes", found: list[Measurement], x: str, apart: list[str]) -> bool:
    """Draw p50 against ``x``, a line for each combination of the settings ``apart``.

    Returns:
        Whether there are few enough for bands.
    """
    names = [name for name in apart if name != x]
    shown = [name for name in names if name in ALWAYS or len({_of(m, name) for m in found}) > 1]
    lines: dict[tuple[Any, ...], list[Measurement]] = {}
    for m in sorted(found, key=lambda m: int(_of(m, x))):
        lines.setdefault(tuple(_of(m, name) for name in names), []).append(m)
    has_bands = len(lines) <= MOST_BANDS
    for number, line in enumerate(lines.values()):
        places = [_of(m, x) for m in line]
        p50, p95 = [m.p50_ms for m in line], [m.p95_ms for m in line]
        label = ", ".join(LABELS[name](_of(line[0], name)) for name in shown)
        dashes, color = DASHES[number // 10 % len(DASHES)], f"C{number}"
        axes.plot(places, p50, f"o{dashes}", color=color, markersize=5, linewidth=1.8, label=label)
        if has_bands and len(line) > 1:
            axes.fill_between(places, p50, p95, color=color, alpha=0.15, linewidth=0)
        elif has_bands:  # a band of one point can't be seen
            axes.vlines(places, p50, p95, color=color, alpha=0.4, linewidth=4)
    if has_bands:
        axes.legend(frameon=False)
    else:
        axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=BELOW)
    return has_bands


def _scale_latency(axes: "Axes", found: list[Measurement]) -> None:
    """Take a logarithmic scale where latencies lie far apart."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    if max(m.p50_ms for m in found) <= 20 * min(m.p50_ms for m in found):
        axes.set_ylim(bottom=0)
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _write_titles(axes: "Axes", report: BenchReport) -> None:
    first = report.measurements[0]
    name = Path(report.bundle).resolve().name
    title = f"{name}: top {first.k} of {report.bundles[0].items:,} items on {first.provider}"
    axes.set_title(title, loc="left", fontweight="bold", pad=30)
    where = machine_line(report.machine).replace(", Python", "\nPython")
    axes.text(0, 1.02, where, transform=axes.transAxes, fontsize=8, color="0.35")


def _of(measurement: Measurement, name: str) -> Any:
    return getattr(measurement, name)
