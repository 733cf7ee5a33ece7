"""``ranklet bench``: time a bundle on this machine."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ranklet_cli.options import (
    FILE,
    FOLDER,
    PATH,
    json_option,
    note,
    print_json,
    provider_option,
)

GROUPS = {
    "Sweep; lists separated by commas, every combination": (
        *("batches", "lengths", "ks", "threads", "catalogues", "precisions"),
    ),
    "Method": ("provider", "runs", "loads"),
    "Output": ("old_path", "plot_path", "as_json"),
}


class Grouped(click.Command):
    """A command whose help has the sections of ``GROUPS``; the last takes all other options."""

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


class Numbers(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from 8.5
    """Integers separated by commas, like 1,32."""

    name = "N,N,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Read the text; click may pass a tuple that was read before."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of integers like 1,32", param, ctx)


class NumbersOrNone(Numbers):
    """Integers separated by commas, or the word none."""

    name = "N,N,...|none"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Read the text."""
        return () if value == "none" else super().convert(value, param, ctx)


NUMBERS = Numbers()


@click.command(cls=Grouped)
@click.argument("bundle", type=FOLDER)
@click.option("--batch", "batches", type=NUMBERS, default="1", help="Histories per call.")
@click.option("--length", "lengths", type=NUMBERS, help="Events per history.  [default: 10,50,200]")
@click.option("-k", "ks", type=NUMBERS, default="10", help="Number of items to return.")
@click.option(
    "--threads",
    "--thread-sweep",
    "threads",
    type=NUMBERS,
    default="1",
    help="Threads of one ranking.",
)
@click.option(
    "--catalogue",
    "catalogues",
    type=NUMBERS,
    default=(),
    help="Also time bundles of N items, with random weights of BUNDLE's shape.",
)
@click.option(
    "--precision",
    "precisions",
    metavar="P,P,...",
    help="Precisions of the --catalogue bundles: fp32, fp16, int8, int4.  [default: BUNDLE's]",
)
@provider_option
@click.option(
    "--runs", default=1000, help="Timed calls per combination, at least 100; p99.9 needs 1000."
)
@click.option(
    "--load",
    "loads",
    type=NumbersOrNone(),
    default="50,80",
    help="Server load in percent while requests arrive at random.",
)
@click.option("--compare", "old_path", type=FILE, help="Compare with an older --json report.")
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

    Reports back-to-back calls, requests that queue, the stages of a request, one more event of a
    kept user, start and load, and the lower bound that memory bandwidth sets.

    \b
    Examples:
      ranklet bench models/ml-100k --batch 1,32 --length 10,50
      ranklet bench models/ml-100k --catalogue 12000,1000000 --precision fp32,int8 --plot sizes.png
      ranklet bench models/ml-100k --json > old.json
      ranklet bench models/ml-100k --compare old.json
    """
    from ranklet_cli.bench.report import compare, read_report
    from ranklet_cli.bench.run import Sweep, benchmark
    from ranklet_cli.bench.show import format_report, plot

    if plot_path is not None:
        from ranklet_training.judge.plots import check_plot

        check_plot(plot_path)  # before minutes of timing, not after them
    old = None if old_path is None else read_report(old_path)
    chosen = tuple(precisions.split(",")) if precisions else ()
    report = benchmark(bundle, Sweep(precisions=chosen, **sweep), on_progress=note)
    if old is not None and old_path is not None:
        report = replace(report, comparison=compare(report, old, old_path))
    if plot_path is not None:
        plot(report, plot_path)
        note(f"wrote {plot_path}")
    if as_json:
        print_json(report)
    else:
        click.echo(format_report(report))
