"""Rank many histories from a file and write one JSON line for each.

Read are JSON lines, ``{"history": [...], "user_id": ..., "candidates": [...], "exclude": [...],
"times": [...], "now": ...}`` with all but the history optional, streamed; or an event log (csv or
parquet, where polars is installed) with the columns user_id, item_id and timestamp, one history a
user.
"""

import gzip
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from ranklet.errors import DataError, InputError
from ranklet.ranker import Ranker
from ranklet.vocabulary import Unknown

ROWS_AT_ONCE = 1024
KEYS = {"user_id", "history", "times", "now", "candidates", "exclude"}


def rank_file(
    ranker: Ranker,
    source: Path,
    output: BinaryIO,
    *,
    k: int = 10,
    exclude_seen: bool = False,
    unknown: Unknown = "skip",
    on_progress: Callable[[int], None] = lambda rows: None,
) -> int:
    """Rank every history of a file, in its order, a thousand at once.

    Args:
        ranker: A loaded bundle.
        source: ``.jsonl``, ``.csv``, ``.csv.gz`` or ``.parquet``.
        output: Gets one JSON line for each history: user_id, items, scores, unknown, cold,
            exact.
        k: As in ``Ranker.rank``.
        exclude_seen: As in ``Ranker.rank``.
        unknown: As in ``Ranker.rank``.
        on_progress: Called with how many histories were just done.

    Returns:
        How many histories were ranked.

    Raises:
        DataError: A row can't be read; the message names it.
        InputError: A history can't be ranked.
    """
    total, rows = 0, read_histories(source, with_times=ranker.uses_times)
    while block := list(islice(rows, ROWS_AT_ONCE)):
        try:
            rankings = ranker.rank_batch(
                [row["history"] for row in block],
                times=[row.get("times") for row in block],
                now=[row.get("now") for row in block],
                k=k,
                candidates=[row.get("candidates") for row in block],
                exclude=[row.get("exclude") for row in block],
                exclude_seen=exclude_seen,
                unknown=unknown,
            )
        except InputError as error:
            raise InputError(f"{source}, rows from {total + 1} on: {error}") from error
        for row, ranking in zip(block, rankings, strict=True):
            line = {
                "user_id": row.get("user_id"),
                "items": ranking.items,
                "scores": [round(float(score), 6) for score in ranking.scores],
                "unknown": ranking.unknown,
                "cold": ranking.cold,
                "exact": ranking.exact,
            }
            output.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        total += len(block)
        on_progress(len(block))
    return total


def read_histories(source: Path, *, with_times: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file of histories or of an event log, see the module.

    Args:
        source: The file.
        with_times: An event log also tells when its events happened.
    """
    if not source.is_file():
        raise DataError(f"{source} does not exist")
    name = source.name.removesuffix(".gz")
    if name.endswith((".jsonl", ".ndjson")):
        yield from _read_json_lines(source)
    elif name.endswith((".csv", ".parquet")):
        for row in _read_event_log(source):
            yield row if with_times else {**row, "times": None}
    else:
        raise DataError(f"{source} is not .jsonl, .csv, .csv.gz or .parquet")


def _read_json_lines(source: Path) -> Iterator[dict[str, Any]]:
    opener = gzip.open if source.suffix == ".gz" else open
    with opener(source, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{source}, line {number} is not JSON: {error}") from error
            if not isinstance(row, dict) or not isinstance(row.get("history"), list):
                raise DataError(f'{source}, line {number}: expected {{"history": [...]}}')
            if unknown := set(row) - KEYS:
                raise DataError(
                    f"{source}, line {number}: unknown keys {sorted(unknown)}; "
                    f"there are {sorted(KEYS)}"
                )
            yield row


def _read_event_log(source: Path) -> Iterator[dict[str, Any]]:
    try:
        from ranklet_training.events import read_events
    except ModuleNotFoundError as error:
        raise InputError(
            f"{source} needs {error.name} to be read: pip install 'ranklet[train]', or pass JSON "
            "lines"
        ) from error
    users = (
        read_events(source)
        .frame.group_by("user_id", maintain_order=True)
        .agg("item_id", "timestamp")
    )
    for user, history, times in users.iter_rows():
        yield {"user_id": user, "history": history, "times": times}
