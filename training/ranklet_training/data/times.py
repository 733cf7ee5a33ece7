"""Times of events: numbers, dates and ISO text as exact numbers of a known unit, if it is known."""

from dataclasses import dataclass, replace
from decimal import Decimal

import numpy as np
import polars as pl

from ranklet.errors import DataError
from ranklet.time_gaps import EARLIEST, LATEST, SCALES
from ranklet.values import show
from ranklet_training.data.columns import show_type, whole_numbers, without_missing
from ranklet_training.data.tables import refuse

NAMES = {
    **{"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"},
    "": "numbers of an unknown unit",
}

_ISO = (
    r"^\d{4}-\d{2}-\d{2}(?:[T ]([01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:[.,]\d{1,9}0*)?)?"
    r"(?:Z| ?UTC|[+-](?:[01]\d|2[0-3])(?::?[0-5]\d)?)?)?$"
)
_TOO_FINE = "has more digits than float64 keeps"
_FINER = "write whole numbers of a smaller unit, such as nanoseconds"
ADVICE = "give numbers, such as unix seconds, or dates like 2024-05-01 or 2024-05-01T12:00:00Z"


@dataclass(frozen=True)
class Times:
    """Column of times, int64 if that is exact, else float64; missing ones are null."""

    values: pl.Series
    unit: str
    is_dates: bool  # the unit is certain


def read_times(values: pl.Series, label: str) -> Times:
    """Read a column of times; dates become microseconds, or nanoseconds if they have them.

    Dates without a zone are UTC. Numbers have the unit that puts all of them between 1980 and 2100.

    Raises:
        DataError: A value is no time, exceeds int64, or would lose digits.
    """
    values = without_missing(values)
    if values.dtype == pl.String:
        values = values.str.strip_chars()
        first = values.drop_nulls().head(1)
        if first.str.contains(_ISO).any():
            return _parse_dates(values, label)
        numbers = _parse_numbers(values, label)
    elif values.dtype == pl.Date:
        return Times(values.cast(pl.Int64) * (86_400 * SCALES["us"]), "us", is_dates=True)
    elif isinstance(values.dtype, pl.Datetime):
        return _dates(values.cast(pl.Int64), values.dtype.time_unit, label)
    elif values.dtype.is_numeric() or values.dtype == pl.Null:
        numbers = _numbers(values, label)
    else:
        example = show(values.drop_nulls().head(1).to_list())
        raise DataError(f"{label} holds {show_type(values.dtype)}, such as {example}; {ADVICE}")
    return Times(numbers, _unit_by_size(numbers, label), is_dates=False)


def in_unit(times: Times, unit: str | None, label: str) -> tuple[Times, str]:
    """Return times in the unit of a model, rounded down, and a note if that can't be done.

    None is a model that does not tell its unit, "" one of plain numbers.

    Raises:
        DataError: A time exceeds int64 in that unit.
    """
    if unit is None or unit == times.unit:
        return times, ""
    if unit not in NAMES:
        raise DataError(f"time unit {show(unit)} is unknown; there are {', '.join(SCALES)}")
    if not times.is_dates and unit == "":
        return replace(times, unit=""), ""
    if unit and times.unit:
        return replace(times, values=convert(times.values, times.unit, unit, label), unit=unit), ""
    example = show(times.values.drop_nulls().head(1).to_list())
    return times, (
        f"times are {NAMES[times.unit]}, such as {example}, and the model was trained on "
        f"{NAMES[unit]}: only their order counts"
    )


def convert(times: pl.Series, unit: str, to: str, label: str) -> pl.Series:
    """Return times of one unit in another, rounded down; DataError: one exceeds int64."""
    factor, divisor = SCALES[to] // SCALES[unit], SCALES[unit] // SCALES[to]
    is_float = times.dtype.is_float()
    if divisor > 1:
        return (times / divisor).floor().cast(pl.Int64) if is_float else times // divisor
    limit = (2**63 - 1) // factor
    too_large = ~times.is_between(-limit, limit)
    refuse(too_large, times, label, f"exceeds int64 in {NAMES[to]}", "use a coarser unit")
    return times * factor


def show_time(time: float, unit: str) -> str:
    """Return a time as a date if its unit is known."""
    if not unit:
        return str(time)
    seconds = pl.Series([int(time // SCALES[unit])])
    return str(pl.from_epoch(seconds, "s").dt.to_string("%Y-%m-%d %H:%M:%S")[0])


def describe_rounding(values: pl.Series) -> str:
    """Return a note on floats so large that neighbouring whole numbers are rounded to one."""
    if not values.dtype.is_float() or (largest := values.abs().max()) is None:
        return ""
    step = np.spacing(values.head(0).to_numpy().dtype.type(largest))
    if not step > 1:
        return ""
    return (
        f"times are {values.dtype}, which rounds such large numbers to multiples of {step:.0f}: "
        "the file's order decides among times that became equal"
    )


def _unit_by_size(times: pl.Series, label: str) -> str:
    """Return the unit of which all times are dates of our age; refuse dates of several units."""
    dates = {u: times.is_between(EARLIEST * n, LATEST * n) for u, n in SCALES.items()}
    units = [unit for unit, is_date in dates.items() if is_date.any()]
    if not units or sum(is_date.sum() for is_date in dates.values()) < times.count():
        return ""
    for other in units[1:]:
        problem = f"is in {NAMES[other]} by its size, and others in {NAMES[units[0]]},"
        refuse(dates[other], times, label, problem, "write one unit")
    return units[0]


def _dates(instants: pl.Series, unit: str, label: str) -> Times:
    """Return instants in microseconds, unless they have nanoseconds."""
    if unit == "ns" and (instants % 1000 != 0).any():
        return Times(instants, "ns", is_dates=True)
    return Times(convert(instants, unit, "us", label), "us", is_dates=True)


def _parse_dates(values: pl.Series, label: str) -> Times:
    """Return the instants of ISO dates; either all have a zone, or none has."""
    text = pl.col("text")  # 2024-05-01T12:00[:00[.000]][zone]; cut at fixed places, which is fast
    day = text.str.head(10).str.to_date("%Y-%m-%d", strict=False).cast(pl.Int32).cast(pl.Int64)
    has_second = text.str.slice(16, 1) == ":"
    tail = text.str.slice(pl.when(has_second).then(19).otherwise(16))
    zone = tail.str.strip_chars_start(".,0123456789")
    fraction = tail.str.head(tail.str.len_bytes() - zone.str.len_bytes())
    nanosecond = fraction.str.strip_chars_start(".,").str.pad_end(9, "0").str.head(9)
    parsed = (
        values.alias("text")
        .to_frame()
        .select(
            minute=(day * 24 + _digits(text, 11)) * 60 + _digits(text, 14),
            second=pl.when(has_second).then(_digits(text, 17)).otherwise(0),
            nanosecond=nanosecond.cast(pl.Int64, strict=False),
            zone=zone.str.strip_chars(),
            is_iso=text.str.contains(_ISO),
        )
    )
    bad = parsed["minute"].is_null() | ~parsed["is_iso"]
    refuse(bad & values.is_not_null(), values, label, "is not an ISO date", ADVICE)
    east = {zone: _minutes_east(zone) for zone in parsed["zone"].unique().drop_nulls()}
    if "" in east and len(east) > 1:
        other = parsed["zone"] != ""
        refuse(other, values, label, "has a zone, unlike others", "give all dates a zone, or none")
    seconds = (parsed["minute"] - parsed["zone"].replace_strict(east)) * 60 + parsed["second"]
    if not (parsed["nanosecond"] % 1000 != 0).any():
        return Times(seconds * SCALES["us"] + parsed["nanosecond"] // 1000, "us", is_dates=True)
    nanoseconds = convert(seconds, "s", "ns", label) + parsed["nanosecond"]
    return Times(nanoseconds, "ns", is_dates=True)


def _digits(text: pl.Expr, start: int) -> pl.Expr:
    return text.str.slice(start, 2).cast(pl.Int64, strict=False).fill_null(0)


def _minutes_east(zone: str) -> int:
    """Return the offset of Z, UTC, +02, +0200, -05:30 or an empty zone."""
    digits = zone[1:].replace(":", "")
    if not digits.isdigit():
        return 0
    minutes = int(digits[:2]) * 60 + int(digits[2:] or 0)
    return -minutes if zone[0] == "-" else minutes


def _numbers(values: pl.Series, label: str) -> pl.Series:
    """Return numbers as int64 if that is exact, else as finite float64."""
    if values.dtype.is_decimal():
        return _exact(values, values.cast(pl.Float64), label)
    if values.dtype.is_float():
        refuse(~values.is_finite(), values, label, "is not finite", ADVICE)
        numbers, lost = whole_numbers(values)
        # Adding 0 turns -0.0, which would change the digest, into 0.0.
        return values.cast(pl.Float64) + 0.0 if lost.any() else numbers
    numbers = values.cast(pl.Int64, strict=False)
    too_large = numbers.is_null() & values.is_not_null()
    refuse(too_large, values, label, "exceeds int64", "use a coarser unit of time")
    return numbers


def _parse_numbers(values: pl.Series, label: str) -> pl.Series:
    """Return ``_numbers`` of text."""
    numbers = values.cast(pl.Int64, strict=False)
    if numbers.null_count() == values.null_count():
        return numbers
    floats = values.cast(pl.Float64, strict=False)
    is_other = floats.is_null() & values.is_not_null()
    refuse(is_other, values, label, "is neither a number nor an ISO date", ADVICE)
    refuse(~floats.is_finite(), values, label, "is not finite", ADVICE)
    decimals = values.cast(pl.Decimal(38, 9), strict=False)  # rounded to 9 places
    is_wide = decimals.null_count() > values.null_count()  # beyond 29 digits
    numbers = _numbers(floats, label) if is_wide else _exact(decimals, floats, label)
    refuse(_merged(values, numbers), values, label, _TOO_FINE, _FINER)
    return numbers


def _merged(texts: pl.Series, numbers: pl.Series) -> pl.Series:
    """Return whether a number also stands for a text of another value."""
    pairs = pl.DataFrame({"text": texts, "number": numbers}).unique()
    exact: dict[float, set[Decimal]] = {}
    for text, number in pairs.filter(pl.col("number").is_duplicated()).drop_nulls().iter_rows():
        exact.setdefault(number, set()).add(Decimal(text))
    several = [number for number, values in exact.items() if len(values) > 1]
    return numbers.is_in(pl.Series(several, dtype=numbers.dtype))


def _exact(decimals: pl.Series, floats: pl.Series, label: str) -> pl.Series:
    """Return decimals as int64 if they are whole, else as float64 if no two become equal."""
    numbers, lost = whole_numbers(decimals)
    if not lost.any():
        return numbers
    is_whole = decimals.floor() == decimals
    refuse(lost & is_whole, decimals, label, "exceeds int64", "use a coarser unit of time")
    pairs = pl.DataFrame({"decimal": decimals, "float": floats})
    merged = pairs.select(pl.col("decimal").n_unique().over("float") > 1).to_series()
    refuse(merged, decimals, label, _TOO_FINE, _FINER)
    return floats + 0.0
