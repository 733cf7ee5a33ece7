"""An event log in, one clean, sorted frame out.

* Events are sorted by user, then time; events of one user with equal times keep the file's order.
* The digest covers the sorted content, so the file format and the order of users don't change it.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import polars as pl

from ranklet.errors import DataError
from ranklet.values import show
from ranklet_training.data.tables import ArrowStream, open_table, refuse

DuplicatePolicy = Literal["none", "exact", "consecutive"]
IdType = Literal["auto", "int64", "string"]

_CANONICAL_INTEGER = r"^(0|-?[1-9][0-9]*)$"
_WHOLE_FLOAT = r"^-?[0-9]+\.0$"  # what pandas makes of integers once a value was missing
_HASHED_ROWS = 1 << 18  # strings joined at a time, so that hashing doesn't double the memory
_MAPPING = "give a column this name, or map one: --{}-column NAME of train, in Python Columns"
_TIME_ADVICE = "give numbers (such as unix seconds), or a date or datetime column"


@dataclass(frozen=True)
class Columns:
    """The names of the columns in the log.

    ``event`` and ``rating`` are used if present; a name other than the default must be present.
    """

    user: str = "user_id"
    item: str = "item_id"
    timestamp: str = "timestamp"
    event: str | None = "event"
    rating: str | None = "rating"

    def __post_init__(self) -> None:
        """Refuse a column that would be read twice."""
        names = [name for name in vars(self).values() if name is not None]
        for name in names:
            if names.count(name) > 1:
                raise DataError(f"column {name!r} is mapped twice; give each its own: {self}")


@dataclass(frozen=True)
class Events:
    """A checked log, ``user_id, item_id, timestamp[, event][, rating]``, by user and time."""

    frame: pl.DataFrame
    users: int
    items: int
    rows_read: int
    dropped: dict[str, int]
    digest: str

    def summary(self) -> str:
        """Say in one line what was read and what was dropped."""
        times = self.frame["timestamp"].sort()
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items())
        return (
            f"{self.users:,} users, {self.items:,} items, {len(self.frame):,} events "
            f"of {self.rows_read:,} rows (dropped: {reasons or 'none'}), "
            f"time {times[0]} to {times[-1]}"
        )


def frame_digest(frame: pl.DataFrame) -> str:
    """Return the SHA-256 of names, types and values in row order, however the frame is chunked."""
    digest = hashlib.sha256()
    for column in frame:
        _hash_column(digest, column)
    return digest.hexdigest()


def read_events(
    source: str | Path | ArrowStream,
    columns: Columns = Columns(),
    *,
    duplicates: DuplicatePolicy = "none",
    id_type: IdType = "auto",
) -> Events:
    """Read, check and sort an event log.

    Args:
        source: A .parquet, .csv, .csv.gz, .jsonl or .ndjson file, or a table with the Arrow stream
            interface.
        columns: What the columns are called in ``source``.
        duplicates: ``exact`` keeps the first of events with the same user, item, time (and kind);
            ``consecutive`` keeps the first of a user's events on one item directly after another.
        id_type: ``auto`` keeps the type that the source has. A csv file has none: there, ids are
            int64 if every one is an integer in its shortest form, so "007" stays text.

    Raises:
        DataError: The log is missing, damaged or empty, or holds values that can't be used.
    """
    if duplicates not in get_args(DuplicatePolicy):
        choices = ", ".join(get_args(DuplicatePolicy))
        raise DataError(f"duplicates {duplicates!r} is unknown; choose from {choices}")
    table = open_table(source, [[columns.user], [columns.item]])
    wanted = {"user_id": columns.user, "item_id": columns.item, "timestamp": columns.timestamp}
    for ours, theirs in (("event", columns.event), ("rating", columns.rating)):
        if theirs is not None and (theirs in table.names or theirs != ours):
            wanted[ours] = theirs
    raw = table.collect(wanted, _MAPPING)
    read = {
        "user_id": _ids(raw["user_id"], table.label(columns.user), id_type, table.is_text),
        "item_id": _ids(raw["item_id"], table.label(columns.item), id_type, table.is_text),
        "timestamp": _timestamps(raw["timestamp"], table.label(columns.timestamp), table.is_text),
    }
    if "event" in raw:
        read["event"] = _kinds(raw["event"], table.label(wanted["event"]))
    if "rating" in raw:
        read["rating"] = _ratings(raw["rating"], table.label(wanted["rating"]), table.is_text)
    frame = pl.DataFrame(read).sort("user_id", "timestamp", maintain_order=True)
    kept = _drop_duplicates(frame, duplicates)
    dropped = {"blank lines": table.blank_lines, f"{duplicates} duplicates": len(raw) - len(kept)}
    return Events(
        frame=kept,
        users=kept["user_id"].n_unique(),
        items=kept["item_id"].n_unique(),
        rows_read=len(raw) + table.blank_lines,
        dropped={reason: count for reason, count in dropped.items() if count},
        digest=frame_digest(kept),
    )


def read_items(
    source: str | Path | ArrowStream,
    *,
    item_column: str = "item_id",
    id_type: IdType = "auto",
) -> pl.DataFrame:
    """Read an item file: unique ``item_id`` first, ``title`` as text, other columns as they are.

    Args:
        source: As ``read_events`` takes it.
        item_column: The column of ids, if the file has it, else ``item_id`` is.
        id_type: ``auto`` looks at this file alone: pass that of the events so that ids match.

    Raises:
        DataError: The file is missing, damaged or empty, or holds values that can't be used.
    """
    columns = [[item_column], ["item_id"]]
    table = open_table(source, columns, texts=["title"], infer_types=True)
    if item_column not in table.names and "item_id" in table.names:
        item_column = "item_id"
    others = [name for name in table.names if name != item_column]
    if "item_id" in others:
        raise DataError(f"{table.name}: 'item_id' is there beside {item_column!r}; rename one")
    raw = table.collect(
        {"item_id": item_column} | {name: name for name in others},
        "give the column of ids this name, or say --item-column NAME, in Python item_column",
    )
    label = table.label(item_column)
    item_ids = _ids(raw["item_id"], label, id_type, table.is_text)
    refuse(
        ~item_ids.is_first_distinct(),
        item_ids,
        label,
        "repeats an earlier id",
        "keep one row for each item",
    )
    if "title" in others:
        raw = raw.with_columns(_titles(raw["title"], table.label("title")))
    return raw.with_columns(item_ids)


def note_unmatched(events: Events, items: pl.DataFrame, name: str) -> str:
    """Return a line on items of the log that an item file has no row for, "" if it has all.

    Args:
        events: The log.
        items: From ``read_items``, with ids of the type of the log's.
        name: Of the item file.

    Raises:
        DataError: It has a row for none of them.
    """
    known = events.frame.select("item_id").unique()
    lacking = known.join(items, on="item_id", how="anti")["item_id"].sort()
    if lacking.is_empty():
        return ""
    first = show(lacking[0])
    if len(lacking) == len(known):
        raise DataError(
            f"none of the {len(known):,} items of the log has a row in {name}, first {first}; "
            f"{name} has ids like {show(items['item_id'][0])}: write both alike"
        )
    return f"{name} has no row for {len(lacking):,} of {len(known):,} items, first {first}"


def _titles(values: pl.Series, label: str) -> pl.Series:
    """Return titles as text, numbers among them as they are written."""
    if values.dtype.is_nested() or values.dtype in (pl.Binary, pl.Object):
        example = show(values.drop_nulls().head(1).to_list())
        raise DataError(f"{label} holds {values.dtype}, such as {example}; titles are text")
    return values.cast(pl.String)


def _refuse_missing(values: pl.Series, label: str) -> None:
    refuse(values.is_null(), values, label, "has no value", "fill it in or remove the row")


def _ids(values: pl.Series, label: str, id_type: IdType, is_text: bool) -> pl.Series:
    """Return ids as int64 or text, without a change of meaning."""
    if id_type not in get_args(IdType):
        choices = ", ".join(get_args(IdType))
        raise DataError(f"id_type {id_type!r} is unknown; choose from {choices}")
    _refuse_missing(values, label)
    if values.dtype.is_integer():
        numbers = values.cast(pl.Int64, strict=False)
        refuse(numbers.is_null(), values, label, "exceeds int64", "write the ids as text")
        return numbers.cast(pl.String) if id_type == "string" else numbers
    if values.dtype not in (pl.String, pl.Categorical, pl.Enum):
        raise DataError(
            f"{label} holds {values.dtype}, such as {values[0]!r}; ids are integers or text: "
            "convert the column"
        )
    texts = values.cast(pl.String)
    refuse(texts == "", texts, label, "is an empty id", "fill it in or remove the row")
    if id_type == "string" or (id_type == "auto" and not is_text):
        return texts
    if is_text and texts.str.contains(_WHOLE_FLOAT).all():
        raise DataError(
            f"{label} holds floats, such as {show(texts[0])}; ids are integers or text: convert "
            "the column, or keep them as text (--id-type string)"
        )
    numbers = texts.cast(pl.Int64, strict=False)
    no_number = numbers.is_null() | ~texts.str.contains(_CANONICAL_INTEGER)
    if id_type == "int64":
        refuse(no_number, texts, label, "is not an int64 id", "read the ids as text (string)")
    return texts if no_number.any() else numbers


def _numbers(values: pl.Series, label: str, is_text: bool, advice: str) -> pl.Series:
    """Return int64 where every value fits, else float64; nulls stay."""
    if is_text:
        texts = values.str.strip_chars()
        numbers = texts.cast(pl.Int64, strict=False)
        if numbers.null_count() > values.null_count():
            numbers = texts.cast(pl.Float64, strict=False)
        bad = numbers.is_null() & values.is_not_null()
        refuse(bad, values, label, "is not a number", advice)
    elif values.dtype.is_integer():
        numbers = values.cast(pl.Int64, strict=False)
        bad = numbers.is_null() & values.is_not_null()
        refuse(bad, values, label, "exceeds int64", "use a smaller unit of time")
    elif values.dtype.is_float() or values.dtype.is_decimal() or values.dtype == pl.Null:
        numbers = values.cast(pl.Float64)
    else:
        example = values.drop_nulls().head(1).to_list()
        raise DataError(f"{label} holds {values.dtype}, such as {example}; {advice}")
    if numbers.dtype.is_float():
        # -0.0 would give another digest than 0.0.
        numbers = numbers + 0.0
        refuse(~numbers.is_finite(), numbers, label, "is not finite", "remove the row")
    return numbers


def _timestamps(values: pl.Series, label: str, is_text: bool) -> pl.Series:
    """Return int64 where no precision is lost, else float64.

    Dates become epoch microseconds; what is finer is cut, and then the file's order decides.
    """
    _refuse_missing(values, label)
    if values.dtype in (pl.Date, pl.Datetime):
        return values.dt.epoch("us")
    numbers = _numbers(values, label, is_text, _TIME_ADVICE)
    exact = numbers.dtype.is_float() and ((numbers.floor() == numbers) & (numbers.abs() <= 2**53))
    return numbers.cast(pl.Int64) if isinstance(exact, pl.Series) and exact.all() else numbers


def _kinds(values: pl.Series, label: str) -> pl.Series:
    _refuse_missing(values, label)
    if values.dtype not in (pl.String, pl.Categorical, pl.Enum):
        raise DataError(f"{label} holds {values.dtype}; kinds of events are text: convert it")
    return values.cast(pl.String)


def _ratings(values: pl.Series, label: str, is_text: bool) -> pl.Series:
    """Return float64; a row without a rating is an event that nobody rated."""
    return _numbers(values, label, is_text, "ratings are numbers: convert it").cast(pl.Float64)


def _drop_duplicates(frame: pl.DataFrame, policy: DuplicatePolicy) -> pl.DataFrame:
    if policy == "exact":
        key = [name for name in frame.columns if name != "rating"]
        return frame.unique(key, keep="first", maintain_order=True)
    if policy == "consecutive":
        same = [pl.col(name) == pl.col(name).shift(1) for name in ("user_id", "item_id")]
        return frame.filter(~pl.all_horizontal(same).fill_null(value=False))
    return frame


def _hash_column(digest: "hashlib._Hash", column: pl.Series) -> None:
    """Add a column to the digest; lengths come before texts and lists, so that none can merge."""
    digest.update(f"{column.name}\0{column.dtype}\0{len(column)}\0".encode())
    if column.null_count():
        digest.update(column.is_null().cast(pl.UInt8).to_numpy().tobytes())
        column = column.drop_nulls()
    if isinstance(column.dtype, pl.List):
        digest.update(column.list.len().cast(pl.Int64).to_numpy().astype("<i8").tobytes())
        # Empty lists would explode to nulls.
        _hash_column(digest, column.filter(column.list.len() > 0).explode().alias("item"))
    elif column.dtype == pl.String:
        digest.update(column.str.len_bytes().cast(pl.Int64).to_numpy().astype("<i8").tobytes())
        for piece in column.to_frame().iter_slices(_HASHED_ROWS):
            digest.update("".join(piece.to_series().to_list()).encode())
    else:
        values = column.cast(pl.Float64 if column.dtype.is_float() else pl.Int64).to_numpy()
        digest.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
