"""Times keep their order, exactness and unit, or are refused with the row and what to write."""

import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranklet.errors import DataError
from ranklet_training.data.events import check_time_unit, read_events
from ranklet_training.data.times import Times, describe_rounding, in_unit, read_times, show_time

NOON = 1_714_564_800  # 2024-05-01 12:00:00 UTC
BEFORE = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def read(values: list[Any], dtype: Any = None) -> Times:
    return read_times(pl.Series("timestamp", values, dtype=dtype), "column 'timestamp'")


def log_of(times: pl.Series | list[Any]) -> pl.DataFrame:
    return pl.DataFrame({"user_id": 1, "item_id": range(len(times)), "timestamp": times})


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [
        ("2024-05-01", (NOON - 43_200) * 10**6),
        ("2024-05-01 12:00", NOON * 10**6),
        ("2024-05-01 12:00:00", NOON * 10**6),
        ("2024-05-01T12:00:00", NOON * 10**6),
        (" 2024-05-01T12:00:00 ", NOON * 10**6),
        ("2024-05-01T12:00:00Z", NOON * 10**6),
        ("2024-05-01 12:00:00 UTC", NOON * 10**6),
        ("2024-05-01 12:00:00+00", NOON * 10**6),
        ("2024-05-01T14:30:00+02:30", NOON * 10**6),
        ("2024-05-01T14:30:00+0230", NOON * 10**6),
        ("2024-05-01T06:30:00-05:30", NOON * 10**6),
        ("2024-05-01T12:00-00:30", (NOON + 1800) * 10**6),
        ("2024-05-01T12:00:00.5", NOON * 10**6 + 500_000),
        ("2024-05-01T12:00:00,000001Z", NOON * 10**6 + 1),
        ("2024-05-01T12:00:00.123456000", NOON * 10**6 + 123_456),
        ("1969-12-31T23:59:59.9", -100_000),
        ("0001-01-01", -62_135_596_800 * 10**6),
    ],
)
def test_iso_dates_are_read(text: str, microseconds: int) -> None:
    times = read([None, text])
    assert times.values.to_list() == [None, microseconds]
    assert (times.unit, times.is_dates) == ("us", True)


@settings(max_examples=100, deadline=None)
@given(
    st.datetimes(datetime.datetime(1700, 1, 1), datetime.datetime(2250, 1, 1)),
    st.integers(-14 * 60, 14 * 60),
)
def test_dates_of_any_zone_are_those_of_the_standard_library(
    at: datetime.datetime, minutes: int
) -> None:
    zone = datetime.timezone(datetime.timedelta(minutes=minutes))
    local = at.replace(tzinfo=datetime.UTC).astimezone(zone)
    expected = (at - datetime.datetime(1970, 1, 1)) // datetime.timedelta(microseconds=1)
    assert read([local.isoformat()]).values.to_list() == [expected]
    assert read([local]).values.to_list() == [expected]


def test_nanoseconds_are_kept_where_they_are() -> None:
    times = read(["2024-05-01T12:00:00.000000001Z", "2024-05-01T12:00:00Z"])
    assert (times.values[0], times.unit) == (NOON * 10**9 + 1, "ns")
    for nanosecond, unit in ((1, "ns"), (1000, "us")):
        column = pl.Series([NOON * 10**9 + nanosecond]).cast(pl.Datetime("ns"))
        times = read_times(column, "")
        assert (times.values[0] * 10**9 // BEFORE[unit], times.unit) == (column.cast(int)[0], unit)


@pytest.mark.parametrize(
    "dates",
    [
        pl.Series([NOON * 1000]).cast(pl.Datetime("ms")),
        pl.Series([NOON * 10**6]).cast(pl.Datetime("us", "America/New_York")),
        pl.Series([NOON * 10**9]).cast(pl.Datetime("ns", "UTC")),
    ],
)
def test_datetimes_of_any_unit_and_zone_are_equal(dates: pl.Series) -> None:
    assert read_times(dates, "").values.to_list() == [NOON * 10**6]


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        (
            ["2024-05-01", "2024-02-30"],
            None,
            "is not an ISO date in row 2: '2024-02-30'; give numbers",
        ),
        (
            ["2024-05-01", "2024-05-01 24:00"],
            None,
            "is not an ISO date in row 2: '2024-05-01 24:00'",
        ),
        (["2024-05-01", "2024-05-01 12:60"], None, "is not an ISO date in row 2"),
        (["2024-05-01", "2024-05-01 12:00:00.1,2.3"], None, "is not an ISO date in row 2"),
        (["2024-05-01", "2024-05-01T12:00:00é"], None, "is not an ISO date in row 2"),
        (["2024-05-01", "2024-05-01T12:00:00.1234567891"], None, "is not an ISO date in row 2"),
        (["2024-05-01", "17"], None, "is not an ISO date in row 2: '17'"),
        (["17", "2024-05-01"], None, "is neither a number nor an ISO date in row 2: '2024-05-01'"),
        (["05/01/2024"], None, "is neither a number nor an ISO date in row 1: .* like 2024-05-01"),
        (["May 1, 2024"], None, "is neither a number"),
        (["2024-05-01T12:00Z", "2024-05-01T12:00"], None, "has a zone, unlike others in row 1"),
        (["9999-01-01T00:00:00.000000001"], None, "exceeds int64 in nanoseconds in row 1"),
        (["1", "inf"], None, "is not finite in row 2: 'inf'"),
        (["1", "9223372036854775808"], None, r"exceeds int64 in row 2: Decimal\('9223"),
        (["1.5", "1700000000.123456788", "1700000000.123456789"], None, "more digits .* row 2"),
        (["1.0000000002", "2", "1.0000000001"], None, "more digits than float64 keeps in row 1"),
        (["1" * 30, "1" * 29 + "0"], None, "more digits than float64 keeps in row 1"),
        (
            [NOON, NOON * 1000],
            None,
            "is in milliseconds by its size, and others in seconds, in row",
        ),
        (["2024-05-01T12:00+25:00"], None, "is neither a number nor an ISO date"),
        ([1, 2**63], pl.UInt64, "exceeds int64 in row 2: 9223372036854775808"),
        ([1, 2**100], pl.Int128, "exceeds int64 in row 2: 1267650600228229401496703205376"),
        ([Decimal(2**63)], pl.Decimal(38, 0), "exceeds int64 in row 1"),
        ([True], None, "holds Boolean, such as"),
        ([datetime.timedelta(1)], None, "holds Duration"),
        ([datetime.time(1)], None, "holds Time"),
        ([[1]], None, "holds List"),
        ([float("inf")], None, "is not finite in row 1"),
    ],
)
def test_what_is_no_time_is_named(values: list[Any], dtype: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(values, dtype)


LARGE = 1_700_000_006_000_000_000  # float64 rounds it to multiples of 256


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([Decimal(LARGE + 1), Decimal(LARGE)], pl.Decimal(38, 0)),
        ([Decimal(LARGE + 1), Decimal(LARGE)], pl.Decimal(38, 3)),
        ([LARGE + 1, LARGE], pl.Int128),
        ([LARGE + 1, LARGE], pl.UInt64),
        ([f"{LARGE + 1}", f"{LARGE}"], pl.String),
        ([f"{LARGE + 1}.0", f"{LARGE}"], pl.String),
    ],
)
def test_wide_numbers_keep_their_order(values: list[Any], dtype: Any) -> None:
    events = read_events(log_of(pl.Series(values, dtype=dtype)))
    assert events.frame["timestamp"].to_list() == [LARGE, LARGE + 1]
    assert events.time_unit == "ns"


@pytest.mark.parametrize(
    ("values", "dtype", "step"),
    [
        ([NOON, 5], pl.Float32, "128"),
        ([NOON * 10**9, 5, None], pl.Float64, "256"),
        ([2**24, 5], pl.Float32, "2"),
        ([2**24 - 1, 5], pl.Float32, ""),
        ([NOON * 1000, 0.5], pl.Float64, ""),
        ([None, float("nan")], pl.Float64, ""),
        ([NOON * 10**9], pl.Int64, ""),
    ],
)
def test_floats_that_round_times_are_told(values: list[Any], dtype: Any, step: str) -> None:
    note = describe_rounding(pl.Series(values, dtype=dtype))
    assert bool(note) == bool(step)
    assert f"multiples of {step}" in note or not step


def test_fractions_stay_as_long_as_they_differ() -> None:
    for values in (["1.5", "1e3"], [Decimal("1.5"), Decimal(1000)], [1.5, 1000.0]):
        assert read(values).values.to_list() == [1.5, 1000.0]
    assert read(["1.70E+09", "-0.0"]).values.to_list() == [1_700_000_000, 0]
    assert read(["1.50", "1.5", "01.5", "15e-1"]).values.to_list() == [1.5] * 4
    assert read(["1e300", "2"]).values.to_list() == [1e300, 2.0]


@pytest.mark.parametrize("unit", BEFORE)
def test_numbers_have_the_unit_of_their_calendar(unit: str) -> None:
    scale, first, last = BEFORE[unit], 315_532_800, 4_102_444_800  # 1980 and 2100
    assert read([first * scale, last * scale]).unit == unit
    assert read([first * scale - 1, last * scale]).unit == ""
    assert read([first * scale, last * scale + 1]).unit == ""
    assert read([0, NOON]).unit == read([0, NOON, NOON * 1000]).unit == read([None]).unit == ""


@pytest.mark.parametrize(
    ("unit", "to", "value", "expected"),
    [
        ("s", "ms", NOON, NOON * 1000),
        ("ms", "s", NOON * 1000 + 999, NOON),
        ("ns", "s", NOON * 10**9 - 1, NOON - 1),
        ("us", "ns", -1, -1000),
        ("us", "s", -1, -1),
        ("s", "us", NOON, NOON * 10**6),
    ],
)
def test_units_are_converted_exactly_or_rounded_down(
    unit: str, to: str, value: int, expected: int
) -> None:
    times, note = in_unit(Times(pl.Series([value, None]), unit, is_dates=True), to, "")
    assert (times.values.to_list(), times.unit, note) == ([expected, None], to, "")


def test_a_time_that_a_finer_unit_can_not_hold_is_named() -> None:
    with pytest.raises(DataError, match="exceeds int64 in nanoseconds in row 2: 9999999999999"):
        in_unit(Times(pl.Series([1, 9_999_999_999_999]), "s", is_dates=True), "ns", "")


def test_a_unit_that_is_not_known_is_named() -> None:
    with pytest.raises(DataError, match="time unit 'min' is unknown; there are s, ms, us, ns"):
        in_unit(Times(pl.Series([1]), "s", is_dates=True), "min", "")


def test_order_is_that_of_the_original_unit() -> None:
    later_first = [NOON * 1000 + 700, NOON * 1000 + 300]
    events = read_events(log_of(later_first), like={"time_unit": "s"})
    assert events.frame["item_id"].to_list() == [1, 0]
    assert events.frame["timestamp"].to_list() == [NOON, NOON]
    assert not [note for note in events.notes if "the file's order decides" in note]


def test_a_log_in_another_unit_has_the_digest_of_the_training_log(tmp_path: Path) -> None:
    seconds = read_events(log_of([NOON, NOON + 1]))
    assert seconds.reading["time_unit"] == "s"
    assert "time 2024-05-01 12:00:00 to 2024-05-01 12:00:01 (seconds, by their size)" in (
        seconds.summary()
    )
    dates = log_of([NOON, NOON + 1]).with_columns(pl.from_epoch("timestamp"))
    dates.write_csv(tmp_path / "log.csv")
    dates.write_ndjson(tmp_path / "log.jsonl")
    others = [log_of([NOON * scale, (NOON + 1) * scale]) for scale in BEFORE.values()]
    for source in (dates, tmp_path / "log.csv", tmp_path / "log.jsonl", *others):
        events = read_events(source, like=seconds.reading)
        assert events.digest == seconds.digest
        check_time_unit(events, "s")
    summary = read_events(tmp_path / "log.csv").summary()
    assert "time 2024-05-01 12:00:00 to 2024-05-01 12:00:01 (dates, in microseconds)" in summary


def test_plain_numbers_are_no_unit_of_a_model() -> None:
    plain = read_events(log_of([1, 2]), like={"time_unit": "s"})
    assert plain.time_unit == ""
    note = "times are numbers of an unknown unit, such as [1], and the model was trained on seconds"
    assert plain.notes[-1].startswith(note)
    with pytest.raises(DataError, match=r"the log are numbers of an unknown unit, .*seconds"):
        check_time_unit(plain, "s")
    check_time_unit(plain, None)  # an old run does not tell


def test_dates_are_no_plain_numbers_of_a_model() -> None:
    numbers = read_events(log_of([NOON, NOON + 1]), like={"time_unit": ""})
    check_time_unit(numbers, "")
    dates = log_of([NOON, NOON + 1]).with_columns(pl.from_epoch("timestamp"))
    with pytest.raises(DataError, match="times of the log are microseconds, and the model uses"):
        check_time_unit(read_events(dates, like={"time_unit": ""}), "")


@pytest.mark.parametrize(
    ("time", "unit", "shown"),
    [
        (NOON, "s", "2024-05-01 12:00:00"),
        (NOON + 0.5, "s", "2024-05-01 12:00:00"),
        (NOON * 10**9 + 1, "ns", "2024-05-01 12:00:00"),
        (-1, "us", "1969-12-31 23:59:59"),
        (7, "", "7"),
        (2**62, "us", "148108-"),
    ],
)
def test_times_of_a_known_unit_are_shown_as_dates(time: float, unit: str, shown: str) -> None:
    assert show_time(time, unit).removeprefix("+").startswith(shown)


def test_ties_are_told_if_most_events_have_them() -> None:
    tied = {"user_id": [1, 1, 1, 2, 2], "item_id": [1, 2, 3, 4, 5], "timestamp": [1, 1, 1, 1, 2]}
    note = "3 of 5 events share their time with another event of the same user: the file's order"
    assert read_events(pl.DataFrame(tied)).notes[-1].startswith(note)
    tied["timestamp"] = [1, 1, 2, 1, 2]
    assert not [note for note in read_events(pl.DataFrame(tied)).notes if "share" in note]


LONG: dict[str, tuple[list[str], str | list[int]]] = {
    "digits that tie": (["1700000000.1234567892", "1700000000.1234567891"], "has more digits than"),
    "exponents that tie": (["1.7000000000000000001e18", "1.7e18"], "has more digits than"),
    "digits that do not": (["1700000000.50000000001", "1700000000.25"], [8, 7]),
    "a whole one": (["1700000002.0000000000000", "1700000001"], [8, 7]),
}


@pytest.mark.parametrize(("times", "expected"), LONG.values(), ids=LONG)
@pytest.mark.parametrize("name", ["log.csv", "log.jsonl"])
def test_times_of_many_digits_keep_their_order_or_are_refused(
    tmp_path: Path, name: str, times: list[str], expected: str | list[int]
) -> None:
    rows = [f'{{"user_id":1,"item_id":{7 + n},"timestamp":{t}}}' for n, t in enumerate(times)]
    if name.endswith("csv"):
        rows = ["user_id,item_id,timestamp", *(f"1,{7 + n},{t}" for n, t in enumerate(times))]
    (tmp_path / name).write_text("\n".join(rows) + "\n")
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            read_events(tmp_path / name)
    else:
        assert read_events(tmp_path / name).frame["item_id"].to_list() == expected
