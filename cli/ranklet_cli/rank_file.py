"""Batch ranking: one JSON line for every history of a file.

* JSON lines are streamed: ``{"history": [...], "user_id": ..., "candidates": [...],
  "exclude": [...], "times": [...], "now": ...}``, where only the history is required.
* An event log (csv or parquet, which need polars) gives one history per user. It is read with the
  options of the training log.
"""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from ranklet.answer import Ranking
from ranklet.errors import DataError, InputError
from ranklet.files.json_lines import read_json_lines
from ranklet.ranker import Ranker
from ranklet_cli.open import read_log

ROWS_AT_ONCE = 1024
LISTS = ("times", "now", "candidates", "exclude")  # of ``Ranker.rank_batch``, one for each history
KEYS = {"user_id", "history", *LISTS}


def rank_file(
    ranker: Ranker,
    source: Path,
    output: BinaryIO,
    *,
    on_progress: Callable[[int], None] = lambda rows: None,
    **options: Any,
) -> int:
    """Rank every history of a file, in its order, and return their number.

    ``source`` is ``.jsonl``, ``.csv``, ``.csv.gz`` or ``.parquet``. ``output`` receives user_id and
    ``ranking_row`` of each history, ``on_progress`` the number of finished histories. ``options``
    are k, exclude_seen and unknown of ``Ranker.rank``.

    Raises:
        DataError: A row can't be read; the message names it.
        InputError: A history can't be ranked; the message names it.
    """

    def rank(rows: list[dict[str, Any]]) -> list[Ranking]:
        lists: dict[str, Any] = {name: [row.get(name) for row in rows] for name in LISTS}
        return ranker.rank_batch([row["history"] for row in rows], **lists, **options)

    total, rows = 0, read_histories(ranker, source)
    while block := list(islice(rows, ROWS_AT_ONCE)):
        try:
            rankings = rank(block)
        except InputError:
            for number, row in enumerate(block, total + 1):  # one by one, to name the failing one
                try:
                    rank([row])
                except InputError as error:
                    reason = str(error).replace("[0]", "", 1)  # the index in a batch of one
                    raise InputError(f"{source}, history {number}: {reason}") from error
            raise
        for row, ranking in zip(block, rankings, strict=True):
            line = {"user_id": row.get("user_id"), "items": ranking.items, **ranking_row(ranking)}
            output.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        total += len(block)
        on_progress(total)
    return total


def ranking_row(ranking: Ranking) -> dict[str, Any]:
    """Return the JSON values of a ranking, without its items."""
    return {
        "scores": [round(float(score), 6) for score in ranking.scores],
        "unknown": ranking.unknown,
        "cold": ranking.cold,
        "exact": ranking.exact,
    }


def read_histories(ranker: Ranker, source: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of JSON lines, or the users of an event log."""
    name = source.name.lower().removesuffix(".gz")
    if name.endswith((".jsonl", ".ndjson")):
        yield from _read_rows(source)
    elif name.endswith((".csv", ".parquet")):
        yield from _read_event_log(ranker, source)
    else:
        raise DataError(f"{source} has an unknown type; pass .jsonl, .csv, .csv.gz or .parquet")


def _read_rows(source: Path) -> Iterator[dict[str, Any]]:
    for number, row in read_json_lines(source):
        if not isinstance(row.get("history"), list):
            raise DataError(f'{source}, line {number}: expected {{"history": [...]}}')
        if unknown := set(row) - KEYS:
            raise DataError(
                f"{source}, line {number}: unknown keys {sorted(unknown)}; there are {sorted(KEYS)}"
            )
        yield row


def _read_event_log(ranker: Ranker, source: Path) -> Iterator[dict[str, Any]]:
    """Read a log with the options of the training log, without columns that ranking ignores."""
    reading = {**ranker.manifest.data.get("reading", {}), "rating_column": None}
    if reading.get("duplicates") != "exact":
        reading["event_column"] = None
    try:
        frame = read_log(source, reading, uses_times=ranker.uses_times).frame
    except ModuleNotFoundError as error:
        raise InputError(
            f"{source} can't be read without {error.name}: pip install 'ranklet[train]', or pass "
            "JSON lines"
        ) from error
    if ranker.vocabulary.is_text:  # a log without recorded types may have integers
        frame = frame.cast({"item_id": str})
    if ranker.uses_times:
        frame = frame.cast({"timestamp": int})  # without fractions of a unit
    is_text = str(frame["item_id"].dtype) == "String"
    users = frame.group_by("user_id", maintain_order=True).agg("item_id", "timestamp")
    for user, history, times in users.iter_rows():
        yield {
            "user_id": user,
            "history": ranker.vocabulary.parse(history) if is_text else history,
            "times": times if ranker.uses_times else None,
        }
