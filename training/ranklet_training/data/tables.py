"""Tables from files, folders of parts and Arrow streams; errors name column, row and value.

Errors count data rows from 1, without the header and blank lines of text. Only syntax errors count
lines.
"""

import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import polars as pl
from polars.exceptions import PanicException, PolarsError

from ranklet.errors import DataError
from ranklet.files.atomic import atomic_write
from ranklet.values import show
from ranklet_training.data.columns import EXACT, TEXT, show_type, whole_numbers
from ranklet_training.data.delimited import Delimited
from ranklet_training.data.json_rows import read_rows
from ranklet_training.data.parquet_pages import check_pages

_TEXT = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
_JSON = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
SUFFIXES = (".parquet", *_TEXT, *_JSON)
NUMBERS = (int, float)
_DIGITS = re.compile("([0-9]+)")
LISTED = 20  # names in a message
_EXPECTED = "expected one row for each event, item or request"


class ArrowStream(Protocol):
    """Table with the Arrow stream interface: polars, pandas, pyarrow, duckdb."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Return the table as a capsule that holds a C stream."""


Read = Callable[[list[str]], pl.DataFrame]  # some columns of a source


class Table:
    """Opened source, whose columns are not checked yet."""

    def __init__(
        self,
        name: str,
        names: list[str],
        read: Read,
        *,
        is_text: bool = False,
        quoted_breaks: int = 0,
    ) -> None:
        """Take the names of the columns, and the function that reads some of them."""
        self.name, self.names, self.read = name, names, read
        self.is_text = is_text  # csv, which has no types
        self.quoted_breaks = quoted_breaks  # line breaks inside quotes, which end no row
        self.blank_lines = 0

    def label(self, column: str) -> str:
        """Return the name of a column for messages."""
        return f"{self.name}: column {show(column)}"

    def collect(self, names: dict[str, str], advice: Callable[[str], str]) -> pl.DataFrame:
        """Return the columns ``names`` (new name to source column) without blank lines.

        ``advice`` returns the end of the error on a missing column.
        """
        if not self.names:
            raise DataError(f"{self.name} holds no rows; {_EXPECTED}")
        for ours, theirs in names.items():
            if theirs not in self.names:
                raise DataError(
                    f"{self.label(theirs)} is missing (columns: {listed(self.names)}); "
                    + advice(ours)
                )
            if self.names.count(theirs) > 1 or f"{theirs}_duplicated_0" in self.names:
                raise DataError(f"{self.label(theirs)} is there twice; rename one of them")
        with named(self.name):
            frame = self.read(list(names.values()))
        frame = frame.select(pl.col(theirs).alias(ours) for ours, theirs in names.items())
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
    """Open a file or folder of parts with a suffix of SUFFIXES, or a table with an Arrow stream.

    The columns of each group of ``ids`` share one type: polars would turn 7 into "7" in mixed JSON.
    ``lists`` are the id columns that hold lists. Text files and JSON lines keep ``texts`` as
    written; ``infer_types`` infers the types of the other columns of text files. The parts of a
    folder follow each other in the order of their names.

    Raises:
        DataError: The source is missing, damaged or empty, or the ids of a group differ in type.
    """
    if not isinstance(source, str | Path):
        name = type(source).__name__
        if not hasattr(source, "__arrow_c_stream__"):
            raise DataError(f"can't read a {name}; pass a path or a table with the Arrow interface")
        with named(name):
            return lazy_table(name, pl.DataFrame(source).lazy())
    path = Path(source)
    if not path.is_dir():
        return _open_file(path, ids, lists, texts, infer_types)
    parts = [
        _open_file(part, ids, lists, texts, infer_types, is_part=True) for part in parts_of(path)
    ]
    names = list(dict.fromkeys(name for part in parts for name in part.names))
    of_folders = columns_of_folders(parts, {column for group in ids for column in group})
    read = partial(read_parts, str(path), parts, of_folders)
    breaks = sum(part.quoted_breaks for part in parts)
    return Table(str(path), names, read, is_text=parts[0].is_text, quoted_breaks=breaks)


def _open_file(
    path: Path,
    ids: Sequence[Sequence[str]],
    lists: Collection[str],
    texts: Collection[str],
    infer_types: bool,
    is_part: bool = False,
) -> Table:
    name, kind = str(path), _kind(path)
    if not path.is_file():
        raise DataError(f"{path} is not a file or folder; pass one of {', '.join(SUFFIXES)}")
    if kind is None:
        raise DataError(f"{path} has an unknown type; rename it to one of {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes); {_EXPECTED}")
    if kind in _JSON:
        rows = read_rows(path, ids, lists)
        for row in rows:
            # Numbers become text as written.
            row.update({name: str(row[name]) for name in texts if type(row.get(name)) in NUMBERS})
        names = list(dict.fromkeys(column for row in rows for column in row))
        return Table(name, names, partial(_read_objects, name, rows))
    with named(name):
        as_text = {column for group in [*ids, texts] for column in group}
        if kind == ".parquet":
            return lazy_table(name, scan_parquet(path, as_text if is_part else None))
        text = Delimited(path, as_text)
        read = partial(text.read, types=dict.fromkeys(as_text, pl.String), infer_types=infer_types)
        return Table(name, text.header, read, is_text=True, quoted_breaks=text.quoted_breaks)


def scan_parquet(path: Path, as_text: Collection[str] | None) -> pl.LazyFrame:
    """Open parquet; a part, for which ``as_text`` is not None, has the columns of its folders, too.

    polars would read 7 from ``item_id=007``: the columns ``as_text`` are kept as written.
    """
    check_pages(path)
    scan = partial(pl.scan_parquet, path, glob=False)
    if as_text is None:
        return scan(hive_partitioning=False)
    names, own = scan(hive_partitioning=True).collect_schema(), pl.read_parquet_schema(path)
    types = {n: pl.String() if n in as_text else t for n, t in names.items() if n not in own}
    return scan(hive_partitioning=True, hive_schema=types or None)


def _read_objects(name: str, rows: list[dict[str, Any]], columns: list[str]) -> pl.DataFrame:
    """Return columns of JSON lines; an integer that float64 would round is refused."""
    frame = pl.from_dicts(rows, schema=columns, infer_schema_length=None)
    for column in frame:
        if column.dtype.is_float():
            raw = [row.get(column.name) for row in rows]
            rounded = pl.Series([type(value) is int and abs(value) > EXACT for value in raw])
            label = f"{name}: column {show(column.name)}"
            refuse(rounded, column, label, "would be rounded beside floats", "write all as text")
    return frame


def lazy_table(name: str, frame: pl.LazyFrame) -> Table:
    """Return a frame as a table."""
    names = frame.collect_schema().names()
    return Table(name, names, lambda columns: frame.select(columns).collect())


def _kind(path: Path) -> str | None:
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)


def parts_of(folder: Path) -> list[Path]:
    """Return the data files of a folder as Spark, Dask and Hive write it, part.2 before part.10.

    Names that begin with a dot or an underscore are theirs: ``_SUCCESS``, checksums. Spark writes
    empty files of text for empty parts.
    """
    parts = [
        part
        for part in folder.rglob("*")
        if part.is_file()
        and not is_hidden(part.relative_to(folder).parts)
        and (part.stat().st_size or _kind(part) == ".parquet")
    ]
    if not parts:
        raise DataError(f"the folder {folder} holds no parts; {_EXPECTED}")
    parts.sort(key=lambda part: with_numbers(str(part)))
    for part in parts:
        if _kind(part) is None or _kind(part) != _kind(parts[0]):
            raise DataError(
                f"the folder {folder} holds {show(str(part.relative_to(folder)))}; the parts of a "
                f"table are files of one type: {', '.join(SUFFIXES)}"
            )
    return parts


def is_hidden(names: Iterable[str]) -> bool:
    """Return whether a part of a path below a folder is one of Spark, Dask or Hive."""
    return any(name.startswith((".", "_")) for name in names)


def with_numbers(name: str) -> list[int | str]:
    """Return a key by which part.2 is before part.10."""
    return [int(t) if t.isdigit() else t for t in _DIGITS.split(name)]


def read_parts(
    name: str, parts: list[Table], of_folders: Collection[str], columns: list[str]
) -> pl.DataFrame:
    """Return columns of all parts; those that a part lacks are null in it, as in JSON lines.

    Ids ``of_folders`` like ``user_id=7`` are integers if each is one in its shortest form.
    """
    frames = []
    for part in parts:
        own = [column for column in columns if column in part.names]
        if not own:
            raise DataError(
                f"{part.name} has none of the columns {listed(columns)} (columns: "
                f"{listed(part.names)}); every part needs the same header"
            )
        frame = part.read(own)
        lacking = [pl.lit(None).alias(column) for column in columns if column not in part.names]
        frames.append(frame.with_columns(lacking).select(columns))
    table = _concat(frames, name)
    return table.with_columns(
        _shortest_integers(table[column]) for column in columns if column in of_folders
    )


def columns_of_folders(parts: Sequence[Table], columns: Set[str]) -> set[str]:
    """Return those of some columns that folder names of parts give, such as ``user_id=7``."""
    pieces = {piece for part in parts for piece in Path(part.name).parts if "=" in piece}
    return {piece.partition("=")[0] for piece in pieces} & columns


def _shortest_integers(values: pl.Series) -> pl.Series:
    """Return text as integers if that changes none of it."""
    numbers = values.cast(pl.Int64, strict=False)
    return numbers if numbers.cast(pl.String).eq_missing(values.cast(pl.String)).all() else values


def _concat(frames: list[pl.DataFrame], name: str) -> pl.DataFrame:
    """Return the rows of all parts; no number becomes text or loses digits."""
    columns = []
    for raw in zip(*frames, strict=True):
        parts = tuple(map(_in_utc, raw))
        types = list(dict.fromkeys(part.dtype for part in parts))
        if len(types) > 1:
            parts = tuple(map(_integers_again, parts))
        has_floats = any(part.dtype.is_float() for part in parts)
        would_round = has_floats and any(
            whole_numbers(part.cast(pl.Float64))[1].any()
            for part in parts
            if part.dtype.is_integer()
        )
        if would_round or len({_type_group(part.dtype) for part in parts} - {""}) > 1:
            shown = " and ".join(map(show_type, types[:3]))
            raise DataError(
                f"{name}: column {show(parts[0].name)} is {shown} in different parts; "
                "write one type"
            )
        column = pl.concat([part.to_frame() for part in parts], how="vertical_relaxed")
        columns.append(column.to_series())
    return pl.DataFrame(columns)


def _in_utc(part: pl.Series) -> pl.Series:
    """Return times of any zone in UTC, so that they can follow each other."""
    has_zone = isinstance(part.dtype, pl.Datetime) and part.dtype.time_zone
    return part.dt.convert_time_zone("UTC") if has_zone else part


def _integers_again(part: pl.Series) -> pl.Series:
    """Return integers that pandas wrote as floats, since some are missing, as integers."""
    if not part.dtype.is_numeric():
        return part
    numbers, lost = whole_numbers(part)
    return part if lost.any() else numbers


def _type_group(dtype: pl.DataType) -> str:
    """Return a name for types that can follow each other in a column, "" for nulls alone."""
    if dtype == pl.Null:
        return ""
    if dtype in TEXT:
        return "text"
    if dtype.is_temporal():
        return f"time {getattr(dtype, 'time_zone', None)}"
    return "number" if dtype.is_numeric() else str(dtype)


def listed(names: Iterable[str]) -> str:
    """Return names for a message, in bounded length."""
    names = list(names)
    shown = [f"{name[:60]}..." if len(name) > 60 else name or "''" for name in names[:LISTED]]
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return ", ".join(shown) + more


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
def named(name: str) -> Iterator[None]:
    """Turn errors and Rust panics of polars and gzip into DataError with the name of the source."""
    try:
        yield
    except DataError:
        raise
    # ValueError and TypeError come from other Arrow libraries, OverflowError from Python integers.
    except (
        *(PolarsError, PanicException, OSError, ValueError, TypeError, OverflowError),
        *(EOFError, zlib.error),
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{name} can't be read: {reason[:300]}; check that it is complete, of the type that "
            "its name says, and in UTF-8"
        ) from error
