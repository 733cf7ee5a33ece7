"""``ranklet rank``: rank items with a bundle."""

import sys
import time
from pathlib import Path
from typing import Any

import click

from ranklet.errors import InputError
from ranklet.ranker import Ranker
from ranklet.values import show
from ranklet_cli.ids import exact_ids, read_ids
from ranklet_cli.options import (
    FILE,
    FOLDER,
    INPUT,
    OUTPUT,
    choice,
    json_flag,
    note,
    print_json,
    session,
)
from ranklet_cli.rank_file import STDIN, rank_file, ranking_row
from ranklet_cli.rankings import open_rankings

LINE_SECONDS = 60.0  # between lines of progress where stderr is no terminal


@click.command()
@click.argument("bundle", type=FOLDER)
@click.option(
    "--history",
    metavar="ID,ID,...",
    help="Item ids, oldest first, exactly as written between commas. Ids that hold a comma need "
    "--input.",
)
@click.option("--times", metavar="T,T,...", help="Times of the events of --history.")
@click.option("--now", type=int, metavar="T", help="Time of the ranking.")
@click.option(
    "--input",
    "source",
    type=INPUT,
    help='Histories as JSON lines {"history": [ID, ...], "user_id": ...}, or an event log in any '
    "format of train. '-' reads JSON lines from stdin and answers each at once.",
)
@click.option(
    "--output",
    type=OUTPUT,
    help="File of the rankings of --input: .jsonl and .parquet have a row for each history, .csv "
    "has a row for each ranked item (user_id, rank, item, score).  [default: JSON lines on stdout]",
)
@click.option("-k", default=10, help="Number of items to return.")
@click.option("--candidates", type=FILE, help="Rank only these items: one id a line.")
@click.option("--exclude", type=FILE, help="Never return these items: one id a line.")
@click.option(
    "--exclude-seen/--include-seen",
    default=None,
    help="Never return items of the history, or let them in.  [default: as the bundle says, see "
    "ranklet inspect]",
)
@choice("--unknown", "skip|error", help="How to treat ids that are not in the catalogue.")
@session
@json_flag
def rank(
    bundle: Path,
    history: str | None,
    times: str | None,
    now: int | None,
    source: Path | None,
    output: Path | None,
    candidates: Path | None,
    exclude: Path | None,
    provider: Any,
    threads: int,
    as_json: bool,
    **request: Any,
) -> None:
    """Rank items for a --history, or for every history of an --input file.

    \b
    Examples:
      ranklet rank models/ml-latest-small --history 1,2571 --exclude-seen
      ranklet rank models/ml-latest-small --input histories.jsonl --output ranked.jsonl
    """
    of_rows = (candidates, exclude, times, now)
    if output == STDIN:  # '-' is stdout there
        output = None
    _check_options(history, source, output, of_rows, as_json=as_json)
    ranker = Ranker.load(bundle, provider=provider, threads=threads)
    if source is not None:
        return _rank_file(ranker, source, output, as_json, **request)
    ids = exact_ids(ranker.vocabulary, (history or "").split(","), "--history")
    request |= {
        "times": None if times is None else _read_times(times),
        "now": now,
        "candidates": candidates and read_ids(ranker.vocabulary, candidates),
        "exclude": exclude and read_ids(ranker.vocabulary, exclude),
    }
    ranker.rank(ids, **request)  # untimed: the first call also allocates memory
    begin = time.perf_counter()
    ranking = ranker.rank(ids, **request)
    milliseconds = (time.perf_counter() - begin) * 1e3
    titles, row = ranker.titles(ranking.items), ranking_row(ranking)
    if as_json:
        timing = {"provider": ranker.provider, "milliseconds": round(milliseconds, 4)}
        return print_json({**row, "titles": titles, **timing})
    if ids:
        click.echo("after " + ", ".join(ranker.titles(ids)))
    rows = zip(ranking.items, titles, row["scores"], strict=True)
    for place, (item, title, score) in enumerate(rows, 1):
        click.echo(
            f"{place:3}  {score:8.4f}  {title}" + (f"  ({item})" if title != str(item) else "")
        )
    exact = "" if ranking.exact else ", not proven equal to fp32"
    cold = ", no known item, so these are the most popular" if ranking.cold else ""
    click.echo(
        f"{milliseconds:.3f} ms on {ranker.provider}, {threads} thread(s), {len(ranker):,} items; "
        f"{ranking.unknown} unknown ids{cold}{exact}"
    )


def _check_options(
    history: str | None,
    source: Path | None,
    output: Path | None,
    of_rows: tuple[object, ...],
    *,
    as_json: bool,
) -> None:
    """Refuse options that do not go together, and an answer that nobody can read."""
    if (history is None) == (source is None):
        raise click.UsageError("pass either --history or --input")
    if source is None and output is not None:
        raise click.UsageError("--output belongs to --input: with --history, redirect stdout")
    if source is not None and any(value is not None for value in of_rows):
        raise click.UsageError(
            "with --input, candidates, exclude, times and now are keys of the rows"
        )
    if source is not None and as_json and output is None:
        raise click.UsageError("--json with --input needs --output: stdout holds one document")
    if output is None and sys.stdout is None:
        raise InputError("stdout is closed, and there is no --output")


def _read_times(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part]
    except ValueError as error:
        raise InputError(f"--times takes whole numbers, got {show(text)}") from error


def _rank_file(
    ranker: Ranker, source: Path, output: Path | None, as_json: bool, **request: Any
) -> None:
    """Rank a file of histories; an output file appears whole or not at all."""
    if output is not None and source != STDIN and output.exists() and output.samefile(source):
        raise click.UsageError("--output is the file of --input: choose another")
    start, unknown = time.perf_counter(), 0
    shown = start
    is_terminal = sys.stderr.isatty()

    def show_progress(rows: int) -> None:
        nonlocal shown
        now = time.perf_counter()
        if now - shown > (0.1 if is_terminal else LINE_SECONDS):
            shown = now
            text = f"{rows:,} histories, {rows / (now - start):,.0f}/s"
            click.echo(f"\r{text}" if is_terminal else text, err=True, nl=not is_terminal)

    with open_rankings(output, ranker.vocabulary.id_type) as write:

        def write_and_count(block: list[dict[str, Any]]) -> None:
            nonlocal unknown
            unknown += sum(row["unknown"] for row in block)
            write(block)

        rows = rank_file(ranker, source, write_and_count, on_progress=show_progress, **request)
    seconds = time.perf_counter() - start
    if as_json:
        print_json({"histories": rows, "seconds": round(seconds, 3), "output": str(output)})
    else:
        begin = "\r" if is_terminal else ""
        lacking = f"; {unknown:,} events of items that the catalogue lacks" if unknown else ""
        note(f"{begin}{rows:,} histories in {seconds:.2f} s on {ranker.provider}{lacking}")
