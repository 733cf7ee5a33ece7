"""``ranklet bench``: time a bundle on this machine."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from ranklet_cli.options import FILE, FOLDER, PATH, json_flag, note, print_json, provider


def numbers(text: str) -> tuple[int, ...]:
    """Read integers separated by commas."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list of integers like 1,32") from error


def numbers_or_none(text: str) -> tuple[int, ...]:
    """Read integers separated by commas, or the word none."""
    return () if text == "none" else numbers(text)


number_list = partial(click.option, type=numbers, metavar="N,N,...")


@click.command()
@click.argument("bundle", type=FOLDER)
@number_list("--batch", "batches", default="1", help="Number of histories in one call.")
@number_list("--length", "lengths", help="Events in a history.  [default: 10,50,200]")
@number_list("-k", "ks", default="10", help="Number of items to return.")
@number_list("--threads", "--thread-sweep", "threads", default="1", help="Threads for one ranking.")
@number_list(
    "--catalogue",
    "catalogues",
    help="Also time bundles of N items with the shape of BUNDLE and random weights.",
)
@click.option(
    "--precision",
    "precisions",
    metavar="P,P,...",
    help="Precisions of --catalogue bundles: fp32, fp16, int8, int4.  [default: as BUNDLE]",
)
@provider
@click.option(
    "--runs", default=1000, help="Timed calls of each combination, at least 100; p99.9 needs 1000."
)
@click.option(
    "--load",
    "loads",
    type=numbers_or_none,
    metavar="N,N,...|none",
    default="50,80",
    help="Also time requests that come at random times and keep the CPU this busy, in percent.",
)
@click.option("--compare", "old_path", type=FILE, help="Compare with an older report of --json.")
@click.option(
    "--plot",
    "plot_path",
    type=PATH,
    help="Draw latency against history length and catalogue size into this .png.",
)
@json_flag
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
    kept user, cold start and load, and the lower bound that memory bandwidth sets. Lists of numbers
    form a sweep: every combination is timed.

    \b
    Examples:
      ranklet bench models/ml-latest-small --batch 1,32 --length 10,50
      ranklet bench models/ml-latest-small --catalogue 12000,1000000 --plot sizes.png
      ranklet bench models/ml-latest-small --json > old.json
      ranklet bench models/ml-latest-small --compare old.json
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
        return print_json(report)
    click.echo(format_report(report))
