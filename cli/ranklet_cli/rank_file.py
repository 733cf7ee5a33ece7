"""Batch ranking: one row for every history of a file.

* JSON lines are streamed: ``{"history": [...], "user_id": ..., "kinds": [...],
  "times": [...], "now": ..., "candidates": [...], "exclude": [...], "seen_recently": [...]}``,
  where only the history is required. A row
  of a pipe is ranked as soon as it comes, so that a program can ask and wait for the answer.
* An event log, in any format that training reads, gives one history per user. It is read with the
  options of the training log, and needs polars.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from types import NoneType
from typing import Any

from ranklet.errors import DataError, InputError
from ranklet.extras import pip_install
from ranklet.files.json_lines import read_json_lines
from ranklet.ranker import Ranker
from ranklet.ranking import Ranking
from ranklet.values import show
from ranklet_cli.answers import ranking_row
from ranklet_cli.open import read_log
from ranklet_cli.options import note
from ranklet_cli.rankings import Write

STDIN = Path("-")
ROWS_AT_ONCE = 1024
# Arguments of ``Ranker.rank_batch`` that have a value for each history.
LISTS = ("kinds", "times", "now", "candidates", "exclude", "seen_recently")
KEYS = {"user_id", "history", *LISTS}


def rank_file(
    ranker: Ranker,
    source: Path,
    write: Write,
    *,
    on_progress: Callable[[int], None] = lambda rows: None,
    **options: Any,
) -> int:
    """Rank every history of a file, in its order, and return their number.

    ``source`` holds JSON lines or an event log; ``STDIN`` holds JSON lines. ``write`` receives
    user_id and ``ranking_row`` of each history, ``on_progress`` the number of finished
    histories. ``options`` are other arguments of ``Ranker.rank``.

    Raises:
        DataError: A row can't be read; the message names it.
        InputError: A history can't be ranked; the message names it.
    """

    def rank(rows: list[dict[str, Any]]) -> list[Ranking]:
        lists: dict[str, Any] = {
            name: [row.get(name) for row in rows]
            for name in LISTS
            if any(row.get(name) is not None for row in rows)
        }
        return ranker.rank_batch([row["history"] for row in rows], **lists, **options)

    ranker.rank([], **options)  # an option that can't be used is no error of the first history
    total, rows = 0, read_histories(ranker, source)
    count = ROWS_AT_ONCE if source.is_file() or source.is_dir() else 1  # of a pipe
    while block := list(islice(rows, count)):
        try:
            rankings = rank(block)
        except InputError:
            for number, row in enumerate(block, total + 1):  # one by one, to name the failing one
                try:
                    rank([row])
                except InputError as error:
                    reason = str(error).replace("[0]", "", 1)  # the index in a batch of one
                    raise InputError(f"{_name(source)}, history {number}: {reason}") from error
            raise
        write(
            [
                {"user_id": row.get("user_id"), **ranking_row(ranking)}
                for row, ranking in zip(block, rankings, strict=True)
            ]
        )
        total += len(block)
        on_progress(total)
    return total


def _name(source: Path) -> str:
    return "stdin" if source == STDIN else str(source)


def read_histories(ranker: Ranker, source: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of JSON lines, or the users of an event log."""
    if source == STDIN:
        if sys.stdin is None:
            raise DataError("stdin is closed; pass a file")
        yield from _check_rows(ranker, read_json_lines(sys.stdin.buffer, "stdin"), "stdin")
        return
    if not source.name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson")):
        yield from _read_event_log(ranker, source)
        return
    rows = read_json_lines(source)
    first = next(rows, None)
    if first is None:
        return
    if _is_event(ranker, first[1]):
        yield from _read_event_log(ranker, source)
    else:
        yield from _check_rows(ranker, chain([first], rows), str(source))


def _is_event(ranker: Ranker, row: dict[str, Any]) -> bool:
    """Return whether a row is an event of a log, not a history."""
    reading = ranker.manifest.data.get("reading", {})
    columns = {reading.get(f"{name}_column", f"{name}_id") for name in ("user", "item")}
    return "history" not in row and columns <= row.keys()


def _check_rows(
    ranker: Ranker, rows: Iterable[tuple[int, dict[str, Any]]], name: str
) -> Iterator[dict[str, Any]]:
    for number, row in rows:
        if not isinstance(row.get("history"), list):
            hint = "; pass an event log as a file of its own" if _is_event(ranker, row) else ""
            raise DataError(f'{name}, line {number}: expected {{"history": [...]}}{hint}')
        if unknown := set(row) - KEYS:
            raise DataError(
                f"{name}, line {number}: unknown keys {show(sorted(unknown))}; "
                f"there are {sorted(KEYS)}"
            )
        if type(user := row.get("user_id")) not in (int, str, NoneType):
            raise DataError(
                f"{name}, line {number}: user_id is {show(user)}; it is text or a whole number"
            )
        yield row


def _read_event_log(ranker: Ranker, source: Path) -> Iterator[dict[str, Any]]:
    """Read a log with the options of the training log, without columns that ranking ignores."""
    reading = dict(ranker.manifest.data.get("reading", {}))
    if not ranker.kinds and reading.get("duplicates") != "exact":
        reading |= {"event_column": None, "rating_kinds": ""}
    if not reading.get("rating_kinds"):
        reading["rating_column"] = None
    try:
        frame = read_log(source, reading, uses_times=ranker.uses_times).frame
    except ModuleNotFoundError as error:
        raise InputError(
            f"{source} can't be read without {error.name}: {pip_install('train')}, or pass "
            "histories as JSON lines"
        ) from error
    if ranker.vocabulary.is_text:  # a log without recorded types may have integers
        frame = frame.cast({"item_id": str})
    if ranker.uses_times:
        frame = frame.cast({"timestamp": int})  # without fractions of a unit
    is_text = str(frame["item_id"].dtype) == "String"
    has_kinds = bool(ranker.kinds) and "event" in frame.columns
    known = set(ranker.kinds)
    if has_kinds and (strange := sorted(set(frame["event"].drop_nulls()) - known)):
        note(f"{source}: the bundle lacks {len(strange)} kinds of events, first {show(strange[0])}")
    columns = ["item_id", "timestamp", *(["event"] if has_kinds else [])]
    users = frame.group_by("user_id", maintain_order=True).agg(columns)
    for user, history, times, *kinds in users.iter_rows():
        yield {
            "user_id": user,
            "history": ranker.vocabulary.parse(history) if is_text else history,
            "times": times if ranker.uses_times else None,
            "kinds": [kind if kind in known else None for kind in kinds[0]] if kinds else None,
        }
