"""Rank many histories from a file and write one JSON line for each.

Read are JSON lines, ``{"history": [...], "user_id": ..., "candidates": [...], "exclude": [...],
"times": [...], "now": ...}`` with all but the history optional, streamed; or an event log (csv or
parquet, where polars is installed), read as the log of the bundle's training was, one history a
user.
"""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from ranklet.errors import DataError, InputError
from ranklet.files.json_lines import read_json_lines
from ranklet.ranker import Ranker
from ranklet.requests import Ranking
from ranklet.vocabulary import Unknown
from ranklet_cli.common import read_log

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

    def rank(rows: list[dict[str, Any]]) -> list[Ranking]:
        return ranker.rank_batch(
            [row["history"] for row in rows],
            times=[row.get("times") for row in rows],
            now=[row.get("now") for row in rows],
            k=k,
            candidates=[row.get("candidates") for row in rows],
            exclude=[row.get("exclude") for row in rows],
            exclude_seen=exclude_seen,
            unknown=unknown,
        )

    total, rows = 0, read_histories(ranker, source)
    while block := list(islice(rows, ROWS_AT_ONCE)):
        try:
            rankings = rank(block)
        except InputError:
            for number, row in enumerate(block, total + 1):  # alone, so that it is known which
                try:
                    rank([row])
                except InputError as error:
                    reason = str(error).replace("[0]", "", 1)  # of the one history
                    raise InputError(f"{source}, history {number}: {reason}") from error
            raise
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


def read_histories(ranker: Ranker, source: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file of histories or of an event log, see the module."""
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
    """Read a log as that of the training was read, but for what ranking does not need."""
    reading = {**ranker.manifest.data.get("reading", {}), "rating_column": None}
    if reading.get("duplicates") != "exact":
        reading["event_column"] = None
    try:
        frame = read_log(source, reading).frame
    except ModuleNotFoundError as error:
        raise InputError(
            f"{source} needs {error.name} to be read: pip install 'ranklet[train]', or pass JSON "
            "lines"
        ) from error
    if ranker.vocabulary.is_text:  # where a csv file holds integers only, they were read as such
        frame = frame.cast({"item_id": str})
    users = frame.group_by("user_id", maintain_order=True).agg("item_id", "timestamp")
    for user, history, times in users.iter_rows():
        yield {"user_id": user, "history": history, "times": times if ranker.uses_times else None}
