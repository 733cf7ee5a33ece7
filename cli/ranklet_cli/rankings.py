"""Files of rankings, in the format that the name says.

    .jsonl, .ndjson   one object for each history: user_id, items, scores, unknown, cold, exact, and
                      explanation if that was asked for
    .csv              one row for each ranked item: user_id, rank (from 1), item, score
    .parquet          one row for each history, as in JSON lines; items and scores are lists

JSON lines and csv are compressed where the name ends in ``.gz``. A name without a suffix, a pipe
and stdout receive JSON lines.
"""

import csv
import gzip
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO

from ranklet.errors import InputError
from ranklet.files.atomic import atomic_file

Row = dict[str, Any]  # a history, as in JSON lines
Write = Callable[[list[Row]], None]
TABLES = (".csv", ".csv.gz", ".parquet")  # they have columns, and none for explanations


@contextmanager
def open_rankings(path: Path | None, id_type: str) -> Iterator[Write]:
    """Give a function that writes rows into a new file, which is whole or absent, or to stdout.

    Args:
        path: The file; None is stdout.
        id_type: Type of the item ids, ``"string"`` or ``"int64"``.

    Raises:
        InputError: The name has another suffix, or the format can't hold a user_id.
    """
    with ExitStack() as stack:
        if path is None:
            yield stack.enter_context(_json_lines(sys.stdout.buffer, id_type))
            return
        compressed = path.suffix.lower() == ".gz"
        suffix = Path(path.stem if compressed else path.name).suffix.lower()
        make = FORMATS.get(suffix)
        if make is None or (compressed and suffix in ("", ".parquet")):
            raise InputError(
                f"{path}: rankings are written as .jsonl, .jsonl.gz, .csv, .csv.gz or .parquet"
            )
        file: Any = stack.enter_context(atomic_file(path))
        if compressed:
            file = stack.enter_context(gzip.GzipFile("", "wb", fileobj=file, mtime=0))
        yield stack.enter_context(make(file, id_type))


@contextmanager
def _json_lines(file: BinaryIO, _: str) -> Iterator[Write]:
    def write(rows: list[Row]) -> None:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        file.flush()

    yield write


@contextmanager
def _csv(file: BinaryIO, _: str) -> Iterator[Write]:
    text = TextIOWrapper(file, "utf-8", newline="")
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["user_id", "rank", "item", "score"])

    def write(rows: list[Row]) -> None:
        for row in rows:
            if row["user_id"] is None:
                raise InputError("csv needs a user_id in every row of --input")
            pairs = zip(row["items"], row["scores"], strict=True)
            lines.writerows([row["user_id"], rank, *pair] for rank, pair in enumerate(pairs, 1))

    yield write
    text.detach()  # flushes, and leaves the file open


@contextmanager
def _parquet(file: BinaryIO, id_type: str) -> Iterator[Write]:
    import polars as pl

    item = pl.String if id_type == "string" else pl.Int64
    schema: dict[str, Any] = {"items": pl.List(item), "scores": pl.List(pl.Float32)}
    schema |= {"unknown": pl.Int64, "cold": pl.Boolean, "exact": pl.Boolean}
    users: list[Any] = []
    parts = [pl.DataFrame(schema=schema)]

    def write(rows: list[Row]) -> None:
        users.extend(row["user_id"] for row in rows)
        parts.append(pl.DataFrame([[row[n] for row in rows] for n in schema], schema=schema))

    yield write
    kind = pl.Int64 if any(isinstance(user, int) for user in users) else pl.String
    try:
        column = pl.Series("user_id", users, dtype=kind)
    except (TypeError, OverflowError) as error:
        raise InputError(
            "user_id has several types, or exceeds int64, and a column of parquet has one: write "
            "every user_id as text"
        ) from error
    data = BytesIO()  # polars would write errors of its own into a file
    pl.concat(parts).insert_column(0, column).write_parquet(data)
    file.write(data.getbuffer())


FORMATS = {
    "": _json_lines,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _csv,
    ".parquet": _parquet,
}
