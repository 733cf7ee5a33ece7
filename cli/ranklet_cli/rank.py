"""``ranklet rank``: rank items with a bundle."""

import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from ranklet.errors import InputError
from ranklet.files.atomic import atomic_file
from ranklet.ranker import Ranker
from ranklet_cli.options import FILE, FOLDER, PATH, choice, json_flag, note, print_json, session
from ranklet_cli.rank_file import rank_file, ranking_row


@click.command()
@click.argument("bundle", type=FOLDER)
@click.option("--history", metavar="ID,ID,...", help="Item ids, oldest first.")
@click.option("--times", metavar="T,T,...", help="Times of the events of --history.")
@click.option("--now", type=int, metavar="T", help="Time of the ranking.")
@click.option("--input", "source", type=FILE, help="File of histories: jsonl, csv or parquet.")
@click.option(
    "--output", type=PATH, help="JSON lines of the rankings of --input.  [default: stdout]"
)
@click.option("-k", default=10, help="Number of items to return.")
@click.option("--candidates", type=FILE, help="Rank only these items: one id a line.")
@click.option("--exclude", type=FILE, help="Never return these items: one id a line.")
@click.option("--exclude-seen", is_flag=True, help="Never return items of the history.")
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
      ranklet rank models/ml-100k --history 50,181 --exclude-seen
      ranklet rank models/ml-100k --input histories.jsonl --output ranked.jsonl
    """
    if (history is None) == (source is None):
        raise click.UsageError("pass either --history or --input")
    if source is None and output is not None:
        raise click.UsageError("--output belongs to --input: with --history, redirect stdout")
    if source is not None:
        if candidates or exclude or times is not None or now is not None:
            raise click.UsageError(
                "with --input, candidates, exclude, times and now are keys of the rows"
            )
        if as_json and output is None:
            raise click.UsageError("--json with --input needs --output: stdout holds one document")
    ranker = Ranker.load(bundle, provider=provider, threads=threads)
    if source is not None:
        return _rank_file(ranker, source, output, as_json, **request)
    parts = [part.strip() for part in (history or "").split(",")]
    ids = ranker.vocabulary.parse([part for part in parts if part])
    request |= {
        "times": None if times is None else _read_times(times),
        "now": now,
        "candidates": _read_ids(ranker, candidates),
        "exclude": _read_ids(ranker, exclude),
    }
    ranker.rank(ids, **request)  # untimed: the first call also allocates memory
    begin = time.perf_counter()
    ranking = ranker.rank(ids, **request)
    milliseconds = (time.perf_counter() - begin) * 1e3
    titles, row = ranker.titles(ranking.items), ranking_row(ranking)
    if as_json:
        timing = {"provider": ranker.provider, "milliseconds": round(milliseconds, 4)}
        return print_json({"items": ranking.items, "titles": titles, **row, **timing})
    if ids:
        click.echo("after " + ", ".join(ranker.titles(ids)))
    rows = zip(ranking.items, titles, row["scores"], strict=True)
    for place, (item, title, score) in enumerate(rows, 1):
        click.echo(f"{place:3}  {score:8.4f}  {title}" + (f"  ({item})" if title != item else ""))
    exact = "" if ranking.exact else ", not proven equal to fp32"
    cold = ", no known event: these are popular" if ranking.cold else ""
    click.echo(
        f"{milliseconds:.3f} ms on {ranker.provider}, {threads} thread(s), {len(ranker):,} items; "
        f"{ranking.unknown} unknown ids{cold}{exact}"
    )


def _read_times(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part]
    except ValueError as error:
        raise InputError(f"--times takes whole numbers, got {text!r}") from error


def _read_ids(ranker: Ranker, path: Path | None) -> list[str] | list[int] | None:
    """Read one id a line, with a note on ids outside the catalogue."""
    if path is None:
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error}; save it as UTF-8") from error
    ids = ranker.vocabulary.parse(filter(None, map(str.strip, lines)))
    indices = ranker.vocabulary.index(ids, str(path)).tolist()
    if unknown := [item for item, index in zip(ids, indices, strict=True) if not index]:
        note(f"{path}: the catalogue lacks {len(unknown)} of {len(ids)} ids, first {unknown[0]!r}")
    return ids


def _rank_file(
    ranker: Ranker, source: Path, output: Path | None, as_json: bool, **request: Any
) -> None:
    """Rank a file of histories; an output file appears whole or not at all."""
    if output is not None and output.exists() and output.samefile(source):
        raise click.UsageError("--output is the file of --input: choose another")
    begin = time.perf_counter()

    def show(rows: int) -> None:
        rate = rows / (time.perf_counter() - begin)
        if sys.stderr.isatty():
            click.echo(f"\r{rows:,} histories, {rate:,.0f}/s", err=True, nl=False)

    with nullcontext(sys.stdout.buffer) if output is None else atomic_file(output) as file:
        rows = rank_file(ranker, source, file, on_progress=show, **request)
    seconds = time.perf_counter() - begin
    if as_json:
        print_json({"histories": rows, "seconds": round(seconds, 3), "output": str(output)})
    else:
        note(f"\r{rows:,} histories in {seconds:.2f} s on {ranker.provider}")
