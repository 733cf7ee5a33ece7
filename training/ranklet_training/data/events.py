"""Event logs, checked and sorted.

The digest covers the sorted content, independent of file format and order of users.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import polars as pl

from ranklet.errors import DataError
from ranklet.time_gaps import unit_by_size
from ranklet.values import show
from ranklet_training.data.columns import likely_column
from ranklet_training.data.digest import frame_digest
from ranklet_training.data.ids import IdType, describe_similar
from ranklet_training.data.kinds import count_kinds, describe_counts
from ranklet_training.data.rows import (
    COLUMNS,
    Columns,
    DuplicatePolicy,
    Facts,
    Options,
    check_complete,
    check_rows,
    counted,
    order_rows,
    reasons_of,
)
from ranklet_training.data.stored import Frames, columns_of
from ranklet_training.data.tables import ArrowStream, Table, listed, open_table
from ranklet_training.data.times import NAMES, show_time

_MANY_TIES = 0.5  # share of the neighbouring events of a user with equal times, worth a note


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
            f"of {self.rows_read:,} rows (dropped: {counted(self.dropped) or 'none'}), "
            f"time {first} to {last} ({unit})"
        )


def read_events(
    source: str | Path | ArrowStream,
    columns: Columns = COLUMNS,
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
    dropped = {"blank lines": table.blank_lines, **reasons_of(facts.lacking), **repeats}
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
