"""Event logs, checked and sorted.

* Events are sorted by user, then time; events of one user with equal times keep the file's order.
* Rows without user, item or time are dropped and counted.
* The digest covers the sorted content, independent of file format and order of users.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from ranklet.errors import DataError
from ranklet.time_gaps import unit_by_size
from ranklet.values import show
from ranklet_training.data.columns import (
    TEXT,
    likely_column,
    show_type,
    whole_numbers,
    without_missing,
)
from ranklet_training.data.ids import IdType, check_choice, describe_ids, parse_ids
from ranklet_training.data.kinds import (
    count_kinds,
    describe_counts,
    kinds_of_ratings,
    read_rating_kinds,
)
from ranklet_training.data.tables import ArrowStream, Table, listed, open_table, refuse
from ranklet_training.data.times import NAMES, describe_rounding, in_unit, read_times, show_time

DuplicatePolicy = Literal["none", "exact", "consecutive"]

_HASHED_ROWS = 1 << 18  # strings joined at a time, so that hashing doesn't double the memory
_MANY_TIES = 0.5  # share of the neighbouring events of a user with equal times, worth a note


@dataclass(frozen=True)
class Columns:
    """Column names of a log.

    ``event`` and ``rating`` are optional under their default names: they are left out if the log
    lacks them, or holds something else there. None or "" leaves them out, too.
    """

    user: str = "user_id"
    item: str = "item_id"
    timestamp: str = "timestamp"
    event: str | None = "event"
    rating: str | None = "rating"

    def __post_init__(self) -> None:
        names = [name for name in vars(self).values() if name]
        for name in names:
            if names.count(name) > 1:
                raise DataError(f"column {show(name)} is mapped twice; give each its own: {self}")


@dataclass(frozen=True)
class Events:
    """Event log ``user_id, item_id, timestamp[, event][, rating]``, sorted by user and time.

    Timestamps are in ``time_unit``: s, ms, us or ns since 1970, or "" if it is not known.
    """

    frame: pl.DataFrame
    users: int
    items: int
    rows_read: int
    dropped: dict[str, int]
    digest: str
    time_unit: str
    is_dates: bool  # the unit is certain; that of numbers follows from their size
    notes: list[str]  # on columns, ids, times and ties

    @property
    def span(self) -> tuple[float, float]:
        """Return the first and the last time."""
        time = pl.col("timestamp")
        first, last = self.frame.select(first=time.min(), last=time.max()).row(0)
        return first, last

    @property
    def reading(self) -> dict[str, str]:
        """Return the time unit and id types, to read another log like this one."""
        types = {
            f"{name}_type": "string" if self.frame[name].dtype == pl.String else "int64"
            for name in ("user_id", "item_id")
        }
        is_recent = {unit_by_size(time) for time in self.span} == {self.time_unit}
        return {
            "time_unit": self.time_unit,
            # The unit to refuse others by; dates of simulators, near 1970, can't be told apart.
            "checked_unit": self.time_unit if is_recent else "",
            **types,
        }

    def summary(self) -> str:
        """Return one line on the events and the dropped rows."""
        first, last = (show_time(time, self.time_unit) for time in self.span)
        unit = NAMES[self.time_unit]
        if self.time_unit:
            unit = f"dates, in {unit}" if self.is_dates else f"{unit}, by their size"
        return (
            f"{self.users:,} users, {self.items:,} items, {len(self.frame):,} events "
            f"of {self.rows_read:,} rows (dropped: {_counts(self.dropped) or 'none'}), "
            f"time {first} to {last} ({unit})"
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
    rating_kinds: str = "",
    like: Mapping[str, str] | None = None,
) -> Events:
    """Read, check and sort an event log from any source of ``open_table``.

    ``duplicates`` are dropped: ``exact`` keeps the first event of equal user, item, time and event
    type, ``consecutive`` the first of successive events of a user on the same item. ``id_type``
    ``auto`` keeps the type of the source; csv ids become int64 if each is an integer in its
    shortest form, so "007" stays text.

    ``rating_kinds`` makes event kinds of ratings, like ``like=4,ok=3,low=0``: names with their
    lowest ratings, best first. A rating below all of them has no kind.

    ``like`` is ``Events.reading`` of the log of a training. Ids get its types if all of them fit,
    and times get its unit, rounded down after sorting. Times that can't be converted stay as they
    are, with a note; ``check_time_unit`` refuses them for models that use times.

    Raises:
        DataError: The log is missing, damaged or empty, or holds a wrong value.
        InputError: ``rating_kinds`` has another form.
    """
    check_choice("duplicates", duplicates, DuplicatePolicy)
    like = like or {}
    table = open_table(source, [[columns.user], [columns.item]])
    names = {"user_id": columns.user, "item_id": columns.item, "timestamp": columns.timestamp}
    for ours, theirs in (("event", columns.event), ("rating", columns.rating)):
        if theirs and (theirs in table.names or theirs != ours):
            names[ours] = theirs
    raw = table.collect(names, lambda ours: _mapping_advice(ours, table.names))
    labels = {ours: table.label(theirs) for ours, theirs in names.items()}
    ids, id_notes = _parse_both_ids(raw, labels, id_type, like, is_text=table.is_text)
    original = read_times(raw["timestamp"], labels["timestamp"])
    times, unit_note = in_unit(original, like.get("time_unit"), labels["timestamp"])
    optional, left_out = _parse_optional(raw, names, labels)
    if rating_kinds:
        optional["event"] = _rated_kinds(optional, rating_kinds, labels)
    read = {**ids, "timestamp": times.values, **optional, "order": original.values}
    frame, lacking = _complete(pl.DataFrame(read), raw)
    if frame.is_empty():
        raise DataError(f"{table.name} has no row with user, item and time: {_counts(lacking)}")
    frame = frame.sort("user_id", "order", maintain_order=True).drop("order")
    kept = _drop_duplicates(frame, duplicates)
    repeats = {f"{duplicates} duplicates": len(frame) - len(kept)}
    dropped = {"blank lines": table.blank_lines, **lacking, **repeats}
    used = [theirs for ours, theirs in names.items() if ours in kept.columns]
    notes = [_describe_columns(table, used, columns), *left_out, *id_notes, unit_note]
    notes.append(describe_rounding(raw["timestamp"]))
    if len(counts := count_kinds(kept)) > 1:
        notes.append(f"kinds of events: {describe_counts(counts)}")
    if times.unit == original.unit:  # else rounding makes ties that were none
        notes.append(_describe_ties(kept))
    return Events(
        frame=kept,
        users=kept["user_id"].n_unique(),
        items=kept["item_id"].n_unique(),
        rows_read=len(raw) + table.blank_lines,
        dropped={reason: count for reason, count in dropped.items() if count},
        digest=frame_digest(kept),
        time_unit=times.unit,
        is_dates=times.is_dates,
        notes=[note for note in notes if note],
    )


def check_time_unit(events: Events, unit: str | None) -> None:
    """Raise DataError if times are not in the unit of a model that uses them; None: any unit."""
    if unit is not None and events.time_unit != unit:
        raise DataError(
            f"the times of the log are {NAMES[events.time_unit]}, and the model uses times, in its "
            f"training {NAMES[unit]}: give times in that unit, since 1970 if it is known, or dates"
        )


def _parse_both_ids(
    raw: pl.DataFrame,
    labels: Mapping[str, str],
    id_type: IdType,
    like: Mapping[str, str],
    *,
    is_text: bool,
) -> tuple[dict[str, pl.Series], list[str]]:
    """Return the ids of users and items, in the types of ``like`` where they fit, and notes."""
    ids, notes = {}, []
    for name in ("user_id", "item_id"):
        known = like.get(f"{name}_type")
        kind: IdType = id_type if known is None else "string" if known == "string" else "auto"
        ids[name] = parse_ids(raw[name], labels[name], kind, is_text or known is not None)
        notes += describe_ids(raw[name], ids[name], name)
    return ids, notes


def _parse_optional(
    raw: pl.DataFrame, names: Mapping[str, str], labels: Mapping[str, str]
) -> tuple[dict[str, pl.Series], list[str]]:
    """Return event types and ratings, and notes on those that hold something else.

    DataError: a column that was asked for by its own name holds something else.
    """
    read, left_out = {}, []
    for name, parse in (("event", _event_types), ("rating", _ratings)):
        try:
            if name in names:
                read[name] = parse(raw[name], labels[name])
        except DataError as error:
            if names[name] != name:
                raise
            left_out.append(f"{name} is left out: {error}")
    return read, left_out


def _rated_kinds(
    read: Mapping[str, pl.Series], rating_kinds: str, labels: Mapping[str, str]
) -> pl.Series:
    """Return the kinds of events by their ratings."""
    bounds = read_rating_kinds(rating_kinds)
    if "event" in read:
        raise DataError(
            f"{labels['event']} holds the kinds of events, which ratings would replace: pass "
            '--event-column "", or no --rating-kinds'
        )
    if "rating" not in read:
        raise DataError("--rating-kinds makes kinds of ratings, and the log has no rating column")
    return kinds_of_ratings(read["rating"], bounds)


def _complete(frame: pl.DataFrame, raw: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return the rows that have user, item and time, and the number of the others by reason."""
    lacking = {}
    is_kept = pl.repeat(value=True, n=len(frame), eager=True)
    for name in ("user_id", "item_id", "timestamp"):
        rows = (is_kept & frame[name].is_null()).arg_true()
        if len(rows):
            first = f"row {rows[0] + 1}: {show(raw[name][rows[0]])}"
            lacking[f"rows without {name}, first {first}"] = len(rows)
            is_kept &= frame[name].is_not_null()
    return frame.filter(is_kept), lacking


def _counts(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in dropped.items() if count)


def _mapping_advice(ours: str, names: list[str]) -> str:
    option = f"--{ours.removesuffix('_id')}-column"
    if likely := likely_column(ours, names):
        return f"is it {show(likely)}? Map it: {option} {likely!r} of train, in Python Columns"
    return f"give a column this name, or map one: {option} NAME of train, in Python Columns"


def _describe_columns(table: Table, used: list[str], columns: Columns) -> str:
    """Return a line on the columns that are read, and on the others."""
    unread = [name for name in table.names if name not in used]
    line = f"columns: {listed(used)}"
    if unread:
        line += f"; not read: {listed(unread)}"
    if table.quoted_breaks:
        line += f"; {table.quoted_breaks:,} line breaks are inside quotes and end no row"
    if columns.event in (None, "", *table.names):
        return line
    if likely := likely_column("event", unread):
        line += f"; {show(likely)} may hold event types: read them with --event-column {likely!r}"
    return line


def _describe_ties(frame: pl.DataFrame) -> str:
    """Return a note if most events of users have the time of the event before."""
    is_same_user = frame["user_id"] == frame["user_id"].shift(1)
    is_tie = (is_same_user & (frame["timestamp"] == frame["timestamp"].shift(1))).fill_null(False)
    if int(is_tie.sum()) <= _MANY_TIES * int(is_same_user.sum()):
        return ""
    count = (is_tie | is_tie.shift(-1, fill_value=False)).sum()
    return (
        f"{count:,} of {len(frame):,} events share their time with another event of the same user: "
        "the file's order decides among equal times"
    )


def _event_types(values: pl.Series, label: str) -> pl.Series:
    """Return event types as text; null: an event without a type."""
    values = without_missing(values)
    if values.dtype.is_float() and not (whole := whole_numbers(values))[1].any():
        values = whole[0]
    if not (values.dtype in TEXT or values.dtype.is_integer() or values.dtype == pl.Null):
        raise DataError(
            f"{label} holds {show_type(values.dtype)}; event types are text or integers"
        )
    return values.cast(pl.String)


def _ratings(values: pl.Series, label: str) -> pl.Series:
    """Return ratings as float64; null: an event without a rating."""
    values = without_missing(values)
    if values.dtype == pl.String:
        numbers = values.str.strip_chars().cast(pl.Float64, strict=False)
    elif values.dtype.is_numeric() or values.dtype == pl.Null:
        numbers = values.cast(pl.Float64)
    else:
        example = show(values.drop_nulls().head(1).to_list())
        raise DataError(
            f"{label} holds {show_type(values.dtype)}, such as {example}; ratings are numbers"
        )
    is_other = numbers.is_null() & values.is_not_null()
    refuse(is_other, values, label, "is not a number", "write ratings as numbers, like 4 or 4.5")
    numbers = numbers + 0.0  # turns -0.0, which would change the digest, into 0.0
    refuse(~numbers.is_finite(), numbers, label, "is not finite", "remove the rating")
    return numbers


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
