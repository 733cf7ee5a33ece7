"""Rows of a log, or of a part of one: read, checked and sorted.

* Rows are sorted by user, then time; rows of one user with equal times keep the file's order.
* Rows without user, item or time are dropped and counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import polars as pl

from ranklet.errors import DataError
from ranklet.values import show
from ranklet_training.data.columns import (
    TEXT,
    likely_column,
    show_type,
    whole_numbers,
    without_missing,
)
from ranklet_training.data.ids import IdType, check_choice, describe_ids, parse_ids
from ranklet_training.data.kinds import kinds_of_ratings, read_rating_kinds
from ranklet_training.data.tables import Table, refuse
from ranklet_training.data.times import describe_rounding, in_unit, read_times

DuplicatePolicy = Literal["none", "exact", "consecutive"]


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


COLUMNS = Columns()


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
        reasons = counted(reasons_of(facts.lacking))
        raise DataError(f"{name} has no row with user, item and time: {reasons}")


def order_rows(rows: pl.DataFrame, duplicates: DuplicatePolicy) -> pl.DataFrame:
    """Return rows of ``check_rows`` sorted by user and time, without duplicates."""
    rows = rows.sort("user_id", "order", maintain_order=True).drop("order")
    return _drop_duplicates(rows, duplicates)


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


def _mapping_advice(ours: str, names: list[str]) -> str:
    option = f"--{ours.removesuffix('_id')}-column"
    if likely := likely_column(ours, names):
        return f"is it {show(likely)}? Map it: {option} {likely!r} of train, in Python Columns"
    return f"give a column this name, or map one: {option} NAME of train, in Python Columns"


def reasons_of(lacking: Mapping[str, tuple[int, str]]) -> dict[str, int]:
    """Return the number of rows without a column, by a text on them."""
    return {f"rows without {n}, first {first}": count for n, (count, first) in lacking.items()}


def counted(dropped: Mapping[str, int]) -> str:
    """Return reasons with their numbers of rows as text."""
    return ", ".join(f"{count:,} {reason}" for reason, count in dropped.items() if count)


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
