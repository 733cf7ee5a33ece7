"""Tables from files and Arrow streams, with errors that name column, row and value.

Errors count data rows from 1, without the csv header and blank lines. Only syntax errors in JSON
lines count lines.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import polars as pl
from polars.exceptions import PanicException, PolarsError

from ranklet.errors import DataError
from ranklet.files.atomic import atomic_write
from ranklet.files.json_lines import read_json_lines
from ranklet.values import show

SUFFIXES = (".parquet", ".csv", ".csv.gz", ".jsonl", ".ndjson")
NUMBERS = (int, float)
_EXPECTED = "expected one row for each event, item or request"


class ArrowStream(Protocol):
    """Table with the Arrow stream interface: polars, pandas, pyarrow, duckdb."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Return the table as a capsule that holds a C stream."""


class Table:
    """Opened source, whose columns are not checked yet."""

    def __init__(
        self, source: pl.LazyFrame | list[dict[str, Any]], name: str, *, is_text: bool = False
    ) -> None:
        """Take a frame, or the objects of JSON lines."""
        self.name = name
        self.is_text = is_text  # csv, which has no types
        self.blank_lines = 0
        self._source = source
        if isinstance(source, list):
            self.names = list(dict.fromkeys(column for row in source for column in row))
            return
        with _named(name):
            self.names = source.collect_schema().names()
        if any("\0" in column for column in self.names):
            raise DataError(f"{name} is not UTF-8 text, it may be UTF-16; save it as UTF-8")

    def label(self, column: str) -> str:
        """Return the name of a column for messages."""
        return f"{self.name}: column {column!r}"

    def collect(self, names: dict[str, str], advice: str) -> pl.DataFrame:
        """Return the columns ``names`` (new name to source column) without blank lines.

        ``advice`` ends the error on a missing column; its {} stands for user, item, ...
        """
        for ours, theirs in names.items():
            if theirs not in self.names:
                raise DataError(
                    f"{self.label(theirs)} is missing (columns: {', '.join(self.names)}); "
                    + advice.format(ours.removesuffix("_id"))
                )
            if f"{theirs}_duplicated_0" in self.names:
                raise DataError(f"{self.label(theirs)} is there twice; rename one of them")
        with _named(self.name):
            source = self._source
            if isinstance(source, list):
                schema = list(names.values())
                source = pl.from_dicts(source, schema=schema, infer_schema_length=None).lazy()
            columns = [pl.col(theirs).alias(ours) for ours, theirs in names.items()]
            frame = source.select(columns).collect()
        if self.is_text:
            frame = frame.with_columns(pl.col(pl.String).replace("", None))
            rows = len(frame)
            frame = frame.filter(~pl.all_horizontal(pl.all().is_null()))
            self.blank_lines = rows - len(frame)
        if frame.is_empty():
            raise DataError(f"{self.name} holds no rows; {_EXPECTED}")
        return frame


def open_table(
    source: str | Path | ArrowStream,
    ids: Sequence[Sequence[str]],
    *,
    lists: Collection[str] = (),
    texts: Collection[str] = (),
    infer_types: bool = False,
) -> Table:
    """Open a .parquet, .csv, .csv.gz, .jsonl or .ndjson file, or a table with an Arrow stream.

    The columns of each group of ``ids`` share one type: polars would turn 7 into "7" in mixed JSON.
    ``lists`` are the id columns that hold lists. csv files and JSON lines keep ``texts`` as
    written; ``infer_types`` infers the types of the other csv columns.

    Raises:
        DataError: The source is missing, damaged or empty, or the ids of a group differ in type.
    """
    if not isinstance(source, str | Path):
        name = type(source).__name__
        if not hasattr(source, "__arrow_c_stream__"):
            raise DataError(f"can't read a {name}; pass a path or a table with the Arrow interface")
        with _named(name):
            return Table(pl.DataFrame(source).lazy(), name)
    path = Path(source)
    kind = path.name.lower()
    if not path.is_file():
        raise DataError(f"{path} is not a file; pass one of {', '.join(SUFFIXES)}")
    if not kind.endswith(SUFFIXES):
        raise DataError(f"{path} has an unknown type; rename it to one of {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes); {_EXPECTED}")
    if kind.endswith((".jsonl", ".ndjson")):
        rows = _read_rows(path, ids, lists)
        for row in rows:
            # Numbers become text as written.
            row.update({name: str(row[name]) for name in texts if type(row.get(name)) in NUMBERS})
        return Table(rows, str(path))
    with _named(str(path)):
        if kind.endswith(".parquet"):
            return Table(pl.scan_parquet(path, glob=False), str(path))
        frame = pl.scan_csv(
            path,
            glob=False,
            infer_schema=infer_types,
            infer_schema_length=None,
            schema_overrides={column: pl.String for group in [*ids, texts] for column in group},
        )
        return Table(frame, str(path), is_text=True)


def write_frame(path: Path, frame: pl.DataFrame) -> None:
    """Write a parquet file atomically."""
    buffer = BytesIO()
    frame.write_parquet(buffer)
    atomic_write(path, buffer.getvalue())


def refuse(
    bad: pl.Series, values: pl.Series, label: str, problem: str, advice: str | None = None
) -> None:
    """Raise DataError if a row is bad, with its number and value."""
    rows = bad.arg_true()
    if rows.is_empty():
        return
    value = values[int(rows[0])]
    shown = show(value.to_list() if isinstance(value, pl.Series) else value)
    more = f" (and {len(rows) - 1:,} more, next row {rows[1] + 1})" if len(rows) > 1 else ""
    raise DataError(
        f"{label} {problem} in row {rows[0] + 1}: {shown}{more}" + (f"; {advice}" if advice else "")
    )


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Turn errors and Rust panics of polars into DataError with the name of the source."""
    try:
        yield
    except DataError:
        raise
    # ValueError and TypeError come from other Arrow libraries, OverflowError from Python integers.
    except (PolarsError, PanicException, OSError, ValueError, TypeError, OverflowError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{name} can't be read: {reason}; check that it is complete, of the type that its name "
            "says, and in UTF-8"
        ) from error


def _read_rows(
    path: Path, ids: Sequence[Sequence[str]], lists: Collection[str]
) -> list[dict[str, Any]]:
    """Read JSON lines and check the types of ids, which polars would convert."""
    rows = [row for _, row in read_json_lines(path)]
    if not rows:
        raise DataError(f"{path} holds no rows; {_EXPECTED}")
    for group in ids:
        first_of: dict[type, str] = {}
        for number, row in enumerate(rows, start=1):
            for column in group:
                value = row.get(column)
                if value is not None and isinstance(value, list) != (column in lists):
                    expected = "a list of ids" if column in lists else "text or an integer"
                    raise DataError(
                        f"{path}: column {column!r} holds in row {number} {show(value)}, which is "
                        f"not {expected}"
                    )
                for part in value if isinstance(value, list) else [value]:
                    if part is not None and type(part) not in first_of:
                        first_of[type(part)] = f"{show(part)} in row {number}"
        if len(first_of) > 1:
            raise DataError(
                f"{path}: column {' or '.join(map(repr, group))} mixes types: "
                f"{' and '.join(first_of.values())}; write all ids as text, or all as integers"
            )
    return rows
