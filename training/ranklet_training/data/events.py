"""Event logs and item files, checked and sorted.

* Events are sorted by user, then time; events of one user with equal times keep the file's order.
* The digest covers the sorted content, independent of file format and order of users.
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
_WHOLE_FLOAT = r"^-?[0-9]+\.0$"  # how pandas writes integers of a column with a missing value
_HASHED_ROWS = 1 << 18  # strings joined at a time, so that hashing doesn't double the memory
_MAPPING = "give a column this name, or map one: --{}-column NAME of train, in Python Columns"
_TIME_ADVICE = "give numbers (such as unix seconds), or a date or datetime column"


@dataclass(frozen=True)
class Columns:
    """Column names of a log; ``event`` and ``rating`` are optional under their default names."""

    user: str = "user_id"
    item: str = "item_id"
    timestamp: str = "timestamp"
    event: str | None = "event"
    rating: str | None = "rating"

    def __post_init__(self) -> None:
        names = [name for name in vars(self).values() if name is not None]
        for name in names:
            if names.count(name) > 1:
                raise DataError(f"column {name!r} is mapped twice; give each its own: {self}")


@dataclass(frozen=True)
class Events:
    """Event log ``user_id, item_id, timestamp[, event][, rating]``, sorted by user and time."""

    frame: pl.DataFrame
    users: int
    items: int
    rows_read: int
    dropped: dict[str, int]
    digest: str

    def summary(self) -> str:
        """Return one line on the events and the dropped rows."""
        times = self.frame["timestamp"].sort()
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items())
        return (
            f"{self.users:,} users, {self.items:,} items, {len(self.frame):,} events "
            f"of {self.rows_read:,} rows (dropped: {reasons or 'none'}), "
            f"time {times[0]} to {times[-1]}"
        )


def frame_digest(frame: pl.DataFrame) -> str:
    """Return the SHA-256 of names, types and values in row order, independent of chunks."""
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
    """Read, check and sort an event log from any source of ``open_table``.

    ``duplicates`` are dropped: ``exact`` keeps the first event of equal user, item, time and event
    type, ``consecutive`` the first of successive events of a user on the same item. ``id_type``
    ``auto`` keeps the type of the source; csv ids become int64 if each is an integer in its
    shortest form, so "007" stays text.

    Raises:
        DataError: The log is missing, damaged or empty, or holds a wrong value.
    """
    _check_choice("duplicates", duplicates, DuplicatePolicy)
    table = open_table(source, [[columns.user], [columns.item]])
    names = {"user_id": columns.user, "item_id": columns.item, "timestamp": columns.timestamp}
    for ours, theirs in (("event", columns.event), ("rating", columns.rating)):
        if theirs is not None and (theirs in table.names or theirs != ours):
            names[ours] = theirs
    raw, is_text = table.collect(names, _MAPPING), table.is_text
    labels = {ours: table.label(theirs) for ours, theirs in names.items()}
    read = {n: read_ids(raw[n], labels[n], id_type, is_text) for n in ("user_id", "item_id")}
    read["timestamp"] = _timestamps(raw["timestamp"], labels["timestamp"], is_text)
    if "event" in raw:
        read["event"] = _event_types(raw["event"], labels["event"])
    if "rating" in raw:  # null: an event without a rating
        advice = "ratings are numbers: convert it"
        ratings = _numbers(raw["rating"], labels["rating"], is_text, advice)
        read["rating"] = ratings.cast(pl.Float64)
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
    source: str | Path | ArrowStream, *, item_column: str = "item_id", id_type: IdType = "auto"
) -> pl.DataFrame:
    """Read an item file: unique ``item_id`` first, ``title`` as text, other columns unchanged.

    The column of ids is ``item_column``, or ``item_id`` if the file lacks it. ``id_type`` ``auto``
    depends on this file alone: pass the type of the log's ids so that both match. Errors are as in
    ``read_events``.
    """
    ids = [[item_column], ["item_id"]]
    table = open_table(source, ids, texts=["title"], infer_types=True)
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
    item_ids = read_ids(raw["item_id"], label, id_type, table.is_text)
    repeats = ~item_ids.is_first_distinct()
    refuse(repeats, item_ids, label, "repeats an earlier id", "keep one row for each item")
    if "title" in others:
        titles = raw["title"]
        if titles.dtype.is_nested() or titles.dtype in (pl.Binary, pl.Object):
            holds = f"{titles.dtype}, such as {show(titles.drop_nulls().head(1).to_list())}"
            raise DataError(f"{table.label('title')} holds {holds}; titles are text")
        raw = raw.with_columns(titles.cast(pl.String))
    return raw.with_columns(item_ids)


def note_unmatched(events: Events, items: pl.DataFrame, name: str) -> str:
    """Return a line on items of the log without a row in an item file, "" if there are none.

    ``items`` are from ``read_items``, with ids of the log's type; ``name`` is that of the file.
    DataError: no item of the log has a row.
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


def _check_choice(name: str, value: str, choices: object) -> None:
    if value not in get_args(choices):
        raise DataError(f"{name} {value!r} is unknown; choose from {', '.join(get_args(choices))}")


def _refuse_missing(values: pl.Series, label: str) -> None:
    refuse(values.is_null(), values, label, "has no value", "fill it in or remove the row")


def read_ids(
    values: pl.Series, label: str, id_type: IdType = "auto", is_text: bool = False
) -> pl.Series:
    """Return ids as int64 or text, without loss."""
    _check_choice("id_type", id_type, IdType)
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
    """Return int64 if every value fits, else float64; nulls stay."""
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
        numbers = numbers + 0.0  # turns -0.0, which would change the digest, into 0.0
        refuse(~numbers.is_finite(), numbers, label, "is not finite", "remove the row")
    return numbers


def _timestamps(values: pl.Series, label: str, is_text: bool) -> pl.Series:
    """Return int64 if that is exact, else float64; dates become epoch microseconds, truncated."""
    _refuse_missing(values, label)
    if values.dtype in (pl.Date, pl.Datetime):
        return values.dt.epoch("us")
    numbers = _numbers(values, label, is_text, _TIME_ADVICE)
    if ((numbers.floor() == numbers) & (numbers.abs() <= 2**53)).all():
        return numbers.cast(pl.Int64)
    return numbers


def _event_types(values: pl.Series, label: str) -> pl.Series:
    _refuse_missing(values, label)
    if values.dtype not in (pl.String, pl.Categorical, pl.Enum):
        raise DataError(f"{label} holds {values.dtype}; event types are text: convert it")
    return values.cast(pl.String)


def _drop_duplicates(frame: pl.DataFrame, policy: DuplicatePolicy) -> pl.DataFrame:
    if policy == "exact":
        key = [name for name in frame.columns if name != "rating"]
        return frame.unique(key, keep="first", maintain_order=True)
    if policy == "consecutive":
        same = [pl.col(name) == pl.col(name).shift(1) for name in ("user_id", "item_id")]
        return frame.filter(~pl.all_horizontal(same).fill_null(value=False))
    return frame


def _hash_column(digest: "hashlib._Hash", column: pl.Series) -> None:
    """Add a column to the digest; texts and lists are preceded by their lengths."""
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
