"""``ranklet rank``: rank items with a bundle."""

import sys
import time
from pathlib import Path
from typing import Any

import click

from ranklet.errors import InputError
from ranklet.ranker import Ranker
from ranklet.values import show
from ranklet_cli.answers import print_ranking, ranking_row
from ranklet_cli.filters import filtering, read_filters, read_list, read_objective, wheres
from ranklet_cli.ids import exact_ids, read_ids
from ranklet_cli.options import (
    FILE,
    FOLDER,
    INPUT,
    OUTPUT,
    HeadedCommand,
    choice,
    json_flag,
    note,
    print_json,
    session,
    under,
)
from ranklet_cli.rank_file import LISTS, STDIN, rank_file
from ranklet_cli.rankings import TABLES, open_rankings

LINE_SECONDS = 60.0  # between lines of progress where stderr is no terminal

history_option, answer_option = under("Histories"), under("Answers")


@click.command(cls=HeadedCommand)
@click.argument("bundle", type=FOLDER)
@history_option(
    "--history",
    metavar="ID,ID,...",
    help="Item ids, oldest first, exactly as written between commas. Ids that hold a comma need "
    "--input.",
)
@history_option(
    "--kinds",
    metavar="KIND,KIND,...",
    help="Kinds of the events of --history; an empty one is unknown.",
)
@history_option("--times", metavar="T,T,...", help="Times of the events of --history.")
@history_option("--now", type=int, metavar="T", help="Time of the ranking.")
@history_option(
    "--input",
    "source",
    type=INPUT,
    help='Histories as JSON lines {"history": [ID, ...], "user_id": ...}, or an event log in any '
    "format of train. '-' reads JSON lines from stdin and answers each at once.",
)
@history_option(
    "--output",
    type=OUTPUT,
    help="File of the rankings of --input: .jsonl and .parquet have a row for each history, .csv "
    "has a row for each ranked item (user_id, rank, item, score).  [default: JSON lines on stdout]",
)
@wheres
@filtering("--candidates", type=FILE, help="Rank only these items: one id a line.")
@filtering("--exclude", type=FILE, help="Never return these items: one id a line.")
@filtering(
    "--exclude-seen/--include-seen",
    default=None,
    help="Never return items of the history, or let them in.  [default: as the bundle says, see "
    "ranklet inspect]",
)
@filtering("--min-score", type=float, help="Return only items of at least this score.")
@filtering(
    "--at-most",
    multiple=True,
    metavar="ATTRIBUTE=NUMBER",
    help="The most items of each value of an attribute, like brand=2; repeatable.",
)
@answer_option("-k", default=10, help="Number of items to return.")
@answer_option("--skip", default=0, help="Leave out so many of the best items: the next page.")
@answer_option(
    "--boost",
    multiple=True,
    metavar="WHERE:POINTS",
    help="Add points to the scores of the items of a WHERE, like new:1.2 or brand=acme:0.5; "
    "repeatable.",
)
@answer_option("--seen-recently", type=FILE, help="These items lose --penalty: one id a line.")
@answer_option("--penalty", default=1.0, help="Points that recently seen items lose.")
@answer_option(
    "--diversity", default=0.0, help="From 0, by score alone, to 1, as different as possible."
)
@answer_option(
    "--objective",
    metavar="KIND=WEIGHT,...",
    help="Rank for these kinds of events, like buy, or buy=1,view=.2.  [default: as the bundle "
    "says]",
)
@answer_option(
    "--cold",
    type=click.Choice(["popular", "trending"]),
    default="popular",
    help="Rank by popularity, or by that of the latest days, where no event is known.",
)
@answer_option("--exact", is_flag=True, help="Scan all items, though the bundle has an index.")
@answer_option("--explain", is_flag=True, help="Say which events led to each item.")
@choice("--unknown", "skip|error", help="How to treat ids that are not in the catalogue.")
@session
@json_flag
def rank(
    bundle: Path,
    history: str | None,
    source: Path | None,
    output: Path | None,
    where: tuple[str, ...],
    define: tuple[str, ...],
    boost: tuple[str, ...],
    at_most: tuple[str, ...],
    objective: str | None,
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
      ranklet rank shop --history red-lamp --where kind=desk,chair --where price=..200 --explain
    """
    if output == STDIN:  # '-' is stdout there
        output = None
    of_row = {name: request.pop(name) for name in LISTS}
    _check_options(history, source, output, of_row, as_json=as_json, explain=request["explain"])
    ranker = Ranker.load(bundle, provider=provider, threads=threads)
    request |= read_filters(ranker, where=where, define=define, boost=boost, at_most=at_most)
    request["objective"] = None if objective is None else read_objective(objective)
    if source is not None:
        return _rank_file(ranker, source, output, as_json, **_given(request))
    ids = exact_ids(ranker.vocabulary, (history or "").split(","), "--history")
    request = _given(request | _read_row(ranker, of_row))
    ranker.rank(ids, **request)  # untimed: the first call also allocates memory
    begin = time.perf_counter()
    ranking = ranker.rank(ids, **request)
    milliseconds = (time.perf_counter() - begin) * 1e3
    if as_json:
        row = {**ranking_row(ranking), "titles": ranker.titles(ranking.items)}
        timing = {"provider": ranker.provider, "milliseconds": round(milliseconds, 4)}
        return print_json({**row, **timing})
    if ids:
        click.echo("after " + ", ".join(ranker.titles(ids)))
    print_ranking(ranker, ranking)
    exact = "" if ranking.exact else ", not proven equal to fp32"
    cold = f", no known item, so these are the {COLD[request['cold']]}" if ranking.cold else ""
    click.echo(
        f"{milliseconds:.3f} ms on {ranker.provider}, {threads} thread(s), {len(ranker):,} items; "
        f"{ranking.unknown} unknown ids{cold}{exact}"
    )


COLD = {"popular": "most popular", "trending": "most popular lately"}


def _given(request: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in request.items() if value is not None}


def _read_row(ranker: Ranker, of_row: dict[str, Any]) -> dict[str, Any]:
    """Return the values of the options that a row of --input has as keys."""
    values: dict[str, Any] = {
        name: read_ids(ranker.vocabulary, of_row[name])
        for name in ("candidates", "exclude", "seen_recently")
        if of_row[name] is not None
    }
    if of_row["times"] is not None:
        values["times"] = _read_times(of_row["times"])
    if of_row["kinds"] is not None:
        values["kinds"] = [kind or None for kind in read_list(of_row["kinds"])]
    return values | {"now": of_row["now"]}


def _check_options(
    history: str | None,
    source: Path | None,
    output: Path | None,
    of_row: dict[str, Any],
    *,
    as_json: bool,
    explain: bool,
) -> None:
    """Refuse options that do not go together, and an answer that nobody can read."""
    if (history is None) == (source is None):
        raise click.UsageError("pass either --history or --input")
    if source is None and output is not None:
        raise click.UsageError("--output belongs to --input: with --history, redirect stdout")
    if source is not None and any(value is not None for value in of_row.values()):
        raise click.UsageError(f"with --input, {', '.join(of_row)} are keys of the rows")
    if source is not None and as_json and output is None:
        raise click.UsageError("--json with --input needs --output: stdout holds one document")
    if explain and output is not None and output.name.lower().endswith(TABLES):
        raise click.UsageError(f"--explain needs JSON lines, and {output.name} has columns")
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
