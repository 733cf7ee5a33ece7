"""Event logs, checked and sorted.

* Events are sorted by user, then time; events of one user with equal times keep the file's order.
* Rows without user, item or time are dropped and counted.
* The digest covers the sorted content, independent of file format and order of users.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Literal

import numpy as np
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
from ranklet_training.data.ids import (
    IdType,
    check_choice,
    describe_ids,
    describe_similar,
    parse_ids,
)
from ranklet_training.data.kinds import (
    count_kinds,
    describe_counts,
    kinds_of_ratings,
    read_rating_kinds,
)
from ranklet_training.data.stored import Frames, columns_of
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

    pieces: Frames  # of whole users, one after the other; a log in memory is one piece
    events: int
    users: int
    item_ids: pl.Series  # distinct, sorted
    span: tuple[float, float]  # the first and the last time
    rows_read: int
    dropped: dict[str, int]
    digest: str
    time_unit: str
    is_dates: bool  # the unit is certain; that of numbers follows from their size
    notes: list[str]  # on columns, ids, times and ties

    @property
    def frame(self) -> pl.DataFrame:
        """Return all events in one frame in memory."""
        return pl.concat(self.pieces)

    @property
    def schema(self) -> pl.Schema:
        """Return the columns with their types."""
        return next(iter(self.pieces)).schema

    @property
    def items(self) -> int:
        """Return the number of items."""
        return len(self.item_ids)

    @property
    def reading(self) -> dict[str, str]:
        """Return the time unit and id types, to read another log like this one."""
        types = {
            f"{name}_type": "string" if self.schema[name] == pl.String else "int64"
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
            f"{self.users:,} users, {self.items:,} items, {self.events:,} events "
            f"of {self.rows_read:,} rows (dropped: {_counts(self.dropped) or 'none'}), "
            f"time {first} to {last} ({unit})"
        )


@dataclass(frozen=True)
class Options:
    """How a log is read, see ``read_events``."""

    columns: Columns
    duplicates: DuplicatePolicy
    id_type: IdType
    rating_kinds: str
    like: Mapping[str, str]

    def __post_init__(self) -> None:
        check_choice("duplicates", self.duplicates, DuplicatePolicy)

    def names(self, table: Table) -> dict[str, str]:
        """Return the columns of a table to read, by our name."""
        columns = self.columns
        names = {"user_id": columns.user, "item_id": columns.item, "timestamp": columns.timestamp}
        for ours, theirs in (("event", columns.event), ("rating", columns.rating)):
            if theirs and (theirs in table.names or theirs != ours):
                names[ours] = theirs
        return names


@dataclass(frozen=True)
class Facts:
    """What the rows of a log, or of a part of it, were before they were sorted."""

    read: int
    complete: int
    lacking: dict[str, tuple[int, str]]  # rows without a column: how many, and the first
    unit: str
    original_unit: str  # before the conversion to that of a training
    is_dates: bool
    notes: list[str]


def frame_digest(frame: pl.DataFrame | Frames) -> str:
    """Return the SHA-256 of names, types and values in row order, independent of chunks.

    Frames count as one; their columns are hashed one after the other.
    """
    digest, pieces = hashlib.sha256(), [frame] if isinstance(frame, pl.DataFrame) else frame
    for name in next(iter(pieces)).columns:
        _hash_column(digest, pieces, name)
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
    options = Options(columns, duplicates, id_type, rating_kinds, like or {})
    table = open_table(source, [[columns.user], [columns.item]])
    rows, facts = check_rows(table, options.names(table), options)
    check_complete(facts, table.name)
    return describe([order_rows(rows, duplicates)], facts, table, options)


def check_rows(
    table: Table, names: Mapping[str, str], options: Options
) -> tuple[pl.DataFrame, Facts]:
    """Return the rows of a table that have user, item and time, with the original time ``order``.

    ``names`` are the columns to read, by our name.
    """
    raw = table.collect(dict(names), lambda ours: _mapping_advice(ours, table.names))
    labels = {ours: table.label(theirs) for ours, theirs in names.items()}
    ids, id_notes = _parse_both_ids(raw, labels, options, is_text=table.is_text)
    original = read_times(raw["timestamp"], labels["timestamp"])
    times, unit_note = in_unit(original, options.like.get("time_unit"), labels["timestamp"])
    optional, left_out = _parse_optional(raw, names, labels)
    if options.rating_kinds:
        optional["event"] = _rated_kinds(optional, options.rating_kinds, labels)
    read = {**ids, "timestamp": times.values, **optional, "order": original.values}
    rows, lacking = _complete(pl.DataFrame(read), raw)
    return rows, Facts(
        read=len(raw) + table.blank_lines,
        complete=len(rows),
        lacking=lacking,
        unit=times.unit,
        original_unit=original.unit,
        is_dates=times.is_dates,
        notes=[*left_out, *id_notes, unit_note, describe_rounding(raw["timestamp"])],
    )


def check_complete(facts: Facts, name: str) -> None:
    """Raise DataError if no row of a log has user, item and time."""
    if not facts.complete:
        reasons = _counts(_reasons(facts.lacking))
        raise DataError(f"{name} has no row with user, item and time: {reasons}")


def order_rows(rows: pl.DataFrame, duplicates: DuplicatePolicy) -> pl.DataFrame:
    """Return rows of ``check_rows`` sorted by user and time, without duplicates."""
    rows = rows.sort("user_id", "order", maintain_order=True).drop("order")
    return _drop_duplicates(rows, duplicates)


def describe(pieces: Frames, facts: Facts, table: Table, options: Options) -> Events:
    """Return sorted events with their counts, digest and notes; ``facts`` are of all rows."""
    measures = pl.concat(map(_measure, pieces))
    first, last = measures.select(pl.col("first").min(), pl.col("last").max()).row(0)
    total = measures.drop("first", "last").cast(pl.Int64).sum().row(0, named=True)
    item_ids = distinct(columns_of(pieces, "item_id"))
    schema = next(iter(pieces)).schema
    used = [theirs for ours, theirs in options.names(table).items() if ours in schema]
    notes = [_describe_columns(table, used, options.columns), *facts.notes]
    if schema["user_id"] == pl.String:
        user_ids = pl.concat([ids.unique() for ids in columns_of(pieces, "user_id")])
        notes += describe_similar(user_ids, "user_id")
    if schema["item_id"] == pl.String:
        notes += describe_similar(item_ids, "item_id")
    if len(counts := count_kinds(pieces)) > 1:
        notes.append(f"kinds of events: {describe_counts(counts)}")
    if facts.unit == facts.original_unit:  # else rounding makes ties that were none
        notes.append(_describe_ties(**total))
    repeats = {f"{options.duplicates} duplicates": facts.complete - total["events"]}
    dropped = {"blank lines": table.blank_lines, **_reasons(facts.lacking), **repeats}
    return Events(
        pieces=pieces,
        events=total["events"],
        users=total["users"],
        item_ids=item_ids,
        span=(first, last),
        rows_read=facts.read,
        dropped={reason: count for reason, count in dropped.items() if count},
        digest=frame_digest(pieces),
        time_unit=facts.unit,
        is_dates=facts.is_dates,
        notes=[note for note in notes if note],
    )


def distinct(parts: Iterable[pl.Series]) -> pl.Series:
    """Return the distinct values of all parts, sorted."""
    unique = (part.unique() for part in parts)
    return reduce(lambda known, more: pl.concat([known, more]).unique(), unique).sort()


def _measure(piece: pl.DataFrame) -> pl.DataFrame:
    """Return numbers of sorted events, in one row.

    ``followers`` are the events that have an event of their user before them, ``ties`` those of
    them with the same time, and ``tied`` the events with the time of a neighbour.
    """
    user, time = pl.col("user_id"), pl.col("timestamp")
    is_follower = user == user.shift(1)
    is_tie = (is_follower & (time == time.shift(1))).fill_null(value=False)
    return piece.select(
        events=pl.len(),
        users=user.n_unique(),
        first=time.min(),
        last=time.max(),
        followers=is_follower.sum(),
        ties=is_tie.sum(),
        tied=(is_tie | is_tie.shift(-1, fill_value=False)).sum(),
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
    options: Options,
    *,
    is_text: bool,
) -> tuple[dict[str, pl.Series], list[str]]:
    """Return the ids of users and items, in the types of ``like`` where they fit, and notes."""
    ids, notes = {}, []
    for name in ("user_id", "item_id"):
        known = options.like.get(f"{name}_type")
        kind: IdType = (
            options.id_type if known is None else "string" if known == "string" else "auto"
        )
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


def _complete(
    frame: pl.DataFrame, raw: pl.DataFrame
) -> tuple[pl.DataFrame, dict[str, tuple[int, str]]]:
    """Return the rows that have user, item and time, and the number and the first of the others."""
    lacking = {}
    is_kept = pl.repeat(value=True, n=len(frame), eager=True)
    for name in ("user_id", "item_id", "timestamp"):
        rows = (is_kept & frame[name].is_null()).arg_true()
        if len(rows):
            lacking[name] = len(rows), f"row {rows[0] + 1}: {show(raw[name][rows[0]])}"
            is_kept &= frame[name].is_not_null()
    return frame.filter(is_kept), lacking


def _reasons(lacking: Mapping[str, tuple[int, str]]) -> dict[str, int]:
    return {f"rows without {n}, first {first}": count for n, (count, first) in lacking.items()}


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


def _describe_ties(events: int, followers: int, ties: int, tied: int, **_: int) -> str:
    """Return a note if most events of users have the time of the event before."""
    if ties <= _MANY_TIES * followers:
        return ""
    return (
        f"{tied:,} of {events:,} events share their time with another event of the same user: "
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


def _hash_column(digest: "hashlib._Hash", pieces: Frames, name: str) -> None:
    """Add a column to the digest; texts and lists are preceded by their lengths."""
    sizes = [(len(column), column.null_count()) for column in columns_of(pieces, name)]
    rows, nulls = np.sum(sizes, axis=0)
    dtype = next(columns_of(pieces, name)).dtype
    digest.update(f"{name}\0{dtype}\0{rows}\0".encode())
    if nulls:
        _hash_arrays(digest, (c.is_null().cast(pl.UInt8) for c in columns_of(pieces, name)))

    def columns() -> Iterator[pl.Series]:
        return (column.drop_nulls() for column in columns_of(pieces, name))

    if isinstance(dtype, pl.List):
        _hash_arrays(digest, (column.list.len().cast(pl.Int64) for column in columns()))
        # Empty lists would explode to nulls.
        values = [c.filter(c.list.len() > 0).explode().to_frame("item") for c in columns()]
        _hash_column(digest, values, "item")
    elif dtype == pl.String:
        _hash_arrays(digest, (column.str.len_bytes().cast(pl.Int64) for column in columns()))
        for column in columns():
            for part in column.to_frame().iter_slices(_HASHED_ROWS):
                digest.update("".join(part.to_series().to_list()).encode())
    else:
        wide = pl.Float64 if dtype.is_float() else pl.Int64
        _hash_arrays(digest, (column.cast(wide) for column in columns()))


def _hash_arrays(digest: "hashlib._Hash", columns: Iterable[pl.Series]) -> None:
    for column in columns:
        array = column.to_numpy()
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
