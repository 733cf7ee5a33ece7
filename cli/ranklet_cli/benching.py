"""The command that times a bundle on this machine."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ranklet_cli.common import FILE, FOLDER, PATH, Numbers, cli, json_option, note, print_json

GROUPS = {
    "What to time, several values by commas, every combination": (
        *("batches", "lengths", "ks", "threads", "catalogues", "precisions"),
    ),
    "How": ("provider", "runs", "loads"),
    "What to do with it": ("old_path", "plot_path", "as_json"),
}


class Grouped(click.Command):
    """A command whose help has the sections of ``GROUPS``; the last takes what is in none."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, section by section."""
        places = {name: title for title, names in GROUPS.items() for name in names}
        *_, last = GROUPS
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in GROUPS}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections[places.get(parameter.name or "", last)].append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


class NumbersOrNone(Numbers):
    """Positive integers separated by commas, or the word none."""

    name = "N,N,...|none"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Read the text."""
        return () if value == "none" else super().convert(value, param, ctx)


@cli.command(cls=Grouped)
@click.argument("bundle", type=FOLDER)
@click.option(
    "--batch",
    "batches",
    type=Numbers(),
    default="1",
    show_default=True,
    help="Histories of a call.",
)
@click.option("--length", "lengths", type=Numbers(), help="Events.  [default: 10,50,200]")
@click.option(
    "-k", "ks", type=Numbers(), default="10", show_default=True, help="How many items to return."
)
@click.option(
    "--threads",
    "--thread-sweep",
    "threads",
    type=Numbers(),
    default="1",
    show_default=True,
    help="Threads of one ranking.",
)
@click.option(
    "--catalogue",
    "catalogues",
    type=Numbers(),
    default=(),
    help="Also bundles of so many items: random weights of BUNDLE's shape.",
)
@click.option(
    "--precision",
    "precisions",
    metavar="P,P,...",
    help="Of --catalogue's bundles: fp32, fp16, int8, int4.  [default: that of BUNDLE]",
)
@click.option(
    "--provider",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to run; cuda fails where CUDA does not run, auto may take the CPU.",
)
@click.option(
    "--runs",
    default=1000,
    show_default=True,
    help="Timed calls each, at least 100; p99.9 needs 1000.",
)
@click.option(
    "--load",
    "loads",
    type=NumbersOrNone(),
    default="50,80",
    show_default=True,
    help="Percent of its time that a server is busy while requests wait in line.",
)
@click.option(
    "--compare",
    "old_path",
    type=FILE,
    help="Name what is faster or slower than in an older --json.",
)
@click.option(
    "--plot", "plot_path", type=PATH, help="Draw latency against length and catalogue, a .png file."
)
@json_option
def bench(
    bundle: Path,
    precisions: str | None,
    old_path: Path | None,
    plot_path: Path | None,
    as_json: bool,
    **sweep: Any,
) -> None:
    """Time rankings of a BUNDLE on this machine: percentiles, throughput, load, memory.

    Told are calls one after another, requests that wait in line, the parts of a request, one more
    event of a kept user, start and load, and the least time that memory allows.

    \b
    Examples:
      ranklet bench models/ml-100k --batch 1,32 --length 10,50
      ranklet bench models/ml-100k --catalogue 12000,1000000 --precision fp32,int8 --plot sizes.png
      ranklet bench models/ml-100k --json > old.json
      ranklet bench models/ml-100k --compare old.json
    """
    from ranklet_cli.bench import benchmark, compare, format_table, plot, read_report
    from ranklet_training.judge.plots import check_plot

    if plot_path is not None:
        check_plot(plot_path)  # before minutes of timing, not after them
    old = None if old_path is None else read_report(old_path)
    kinds = precisions.split(",") if precisions else ()
    report = benchmark(bundle, precisions=kinds, on_progress=note, **sweep)
    if old is not None and old_path is not None:
        report = replace(report, comparison=compare(report, old, old_path))
    if plot_path is not None:
        plot(report, plot_path)
        note(f"wrote {plot_path}")
    if as_json:
        return print_json(report.to_dict())
    click.echo(format_table(report))
    return None
