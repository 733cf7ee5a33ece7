"""An event log is read right, or refused with the row, the value and what to do."""

import datetime
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranklet.bundle.vocabulary import Vocabulary
from ranklet.errors import DataError
from ranklet_training.data import digest as digests
from ranklet_training.data.columns import MISSING
from ranklet_training.data.digest import frame_digest
from ranklet_training.data.events import Events, read_events
from ranklet_training.data.rows import Columns

SMALL = pl.DataFrame(
    {
        "user_id": [2, 1, 2, 1],
        "item_id": [7, 8, 9, 7],
        "timestamp": [50, 40, 30, 20],
    }
)
HEADER = "user_id,item_id,timestamp"


class OnlyStream:
    """A table of which nothing but the Arrow stream is known."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self.frame = frame

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self.frame.__arrow_c_stream__(requested_schema)


def write_gzip(frame: pl.DataFrame, path: Path) -> None:
    path.write_bytes(gzip.compress(frame.write_csv().encode()))


WRITERS: dict[str, Callable[[pl.DataFrame, Path], None]] = {
    ".parquet": lambda frame, path: frame.write_parquet(path),
    ".csv": lambda frame, path: frame.write_csv(path),
    ".csv.gz": write_gzip,
    ".jsonl": lambda frame, path: frame.write_ndjson(path),
    ".ndjson": lambda frame, path: frame.write_ndjson(path),
}


def read_csv(folder: Path, text: str | bytes, **options: object) -> Events:
    path = folder / "log.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_events(path, **options)  # type: ignore[arg-type]  # the options of read_events


def read_lines(folder: Path, *rows: object) -> Events:
    path = folder / "log.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return read_events(path)


def event(user: object = 1, item: object = 2, timestamp: object = 3) -> dict[str, object]:
    return {"user_id": user, "item_id": item, "timestamp": timestamp}


def frame_of(**columns: list[object] | pl.Series) -> pl.DataFrame:
    return pl.DataFrame({"user_id": [1, 1], "item_id": [2, 3], "timestamp": [4, 5]} | columns)


# What is read


def test_events_are_sorted_by_user_and_time_and_counted() -> None:
    events = read_events(SMALL)
    assert events.frame.rows() == [(1, 7, 20), (1, 8, 40), (2, 9, 30), (2, 7, 50)]
    assert (events.users, events.items, events.rows_read, events.dropped) == (2, 3, 4, {})


def test_equal_times_keep_the_order_of_the_file() -> None:
    items = [5, 3, 9, 1, 7] * 200
    log = pl.DataFrame({"user_id": [1] * 1000, "item_id": items, "timestamp": [0] * 1000})
    assert read_events(log).frame["item_id"].to_list() == items


def test_the_summary_names_counts_drops_and_times() -> None:
    summary = read_events(pl.concat([SMALL, SMALL]), duplicates="exact").summary()
    assert summary == (
        "2 users, 3 items, 4 events of 8 rows (dropped: 4 exact duplicates), "
        "time 20 to 50 (numbers of an unknown unit)"
    )


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_gives_the_same_events(tmp_path: Path, suffix: str) -> None:
    log = SMALL.with_columns(event=pl.lit("view"), rating=pl.Series([1.5, 2, None, 4]))
    WRITERS[suffix](log, tmp_path / f"log{suffix}")
    events = read_events(tmp_path / f"log{suffix}")
    assert events.frame.equals(read_events(log).frame)
    assert events.digest == read_events(log).digest


def test_an_arrow_table_is_read_and_a_path_of_text_with_brackets(tmp_path: Path) -> None:
    assert read_events(OnlyStream(SMALL)).digest == read_events(SMALL).digest
    SMALL.write_parquet(tmp_path / "log[1].parquet")
    assert read_events(str(tmp_path / "log[1].parquet")).rows_read == 4


def test_columns_are_mapped(tmp_path: Path) -> None:
    columns = Columns(user="who", item="what", timestamp="when", event="how", rating="stars")
    events = read_csv(tmp_path, "when,who,what,stars,how,more\n3,a,b,5,buy,x\n", columns=columns)
    assert events.frame.rows(named=True) == [
        {"user_id": "a", "item_id": "b", "timestamp": 3, "event": "buy", "rating": 5.0}
    ]
    columns = Columns(event=None, rating=None)
    events = read_csv(tmp_path, f"{HEADER},event,rating\na,b,3,buy,5\n", columns=columns)
    assert events.frame.columns == ["user_id", "item_id", "timestamp"]


@pytest.mark.parametrize(
    ("text", "row", "blank"),
    [
        (f"\ufeff{HEADER}\na,b,3\n", ("a", "b", 3), 0),
        (f"{HEADER}\r\na,b,3\r\n", ("a", "b", 3), 0),
        (f"{HEADER}\na,b,3", ("a", "b", 3), 0),
        (f"{HEADER}\n\na,b,3\n\n\n", ("a", "b", 3), 3),
        (f'{HEADER}\n"a","b","3"\n', ("a", "b", 3), 0),
        (f"{HEADER}\na,b, 3 \n", ("a", "b", 3), 0),
        (f"{HEADER}\na, 7, 3\n", ("a", 7, 3), 0),
        (f"{HEADER}\na, b, 3\n", ("a", " b", 3), 0),
        (f'{HEADER}\n"a\nb","c,""d""",3\n', ("a\nb", 'c,"d"', 3), 0),
    ],
    ids=[
        "bom",
        "crlf",
        "no last newline",
        "blank lines",
        "quotes",
        "spaces",
        "integer",
        "text",
        "quoted newline",
    ],
)
def test_csv_dialects_are_read(tmp_path: Path, text: str, row: Any, blank: int) -> None:
    events = read_csv(tmp_path, text)
    assert events.frame.rows() == [row]
    assert events.dropped.get("blank lines", 0) == blank


def test_other_columns_of_json_lines_are_ignored_whatever_they_hold(tmp_path: Path) -> None:
    rows = [event() | {"page": 1}, event() | {"page": [1]}, event() | {"page": {"a": "b"}}]
    assert read_lines(tmp_path, *rows).frame.columns == ["user_id", "item_id", "timestamp"]


# Ids


@pytest.mark.parametrize(
    ("ids", "dtype"),
    [
        (["1", "-2", "0"], pl.Int64),
        (["9223372036854775807", "-9223372036854775808"], pl.Int64),
        (["9223372036854775808", "1"], pl.String),
        (["007", "1"], pl.String),
        (["1", "x"], pl.String),
        (["+1", "2"], pl.String),
        (["-0", "2"], pl.String),
        (["1.0", "x"], pl.String),
    ],
)
def test_csv_ids_become_integers_only_if_nothing_is_lost(
    tmp_path: Path, ids: list[str], dtype: pl.DataType
) -> None:
    text = HEADER + "".join(f"\n{name},1,{row}" for row, name in enumerate(ids))
    users = read_csv(tmp_path, text).frame["user_id"]
    assert users.dtype == dtype
    assert sorted(users.cast(pl.String).to_list()) == sorted(ids)


@pytest.mark.parametrize("id_type", ["auto", "int64"])
def test_whole_floats_of_a_csv_are_integers(tmp_path: Path, id_type: Any) -> None:
    text = f"{HEADER}\n25.0,1,1\n7,1,2\n7.0,1,3"
    events = read_csv(tmp_path, text, id_type=id_type)
    assert events.frame["user_id"].to_list() == [7, 7, 25]
    assert "user_id: 2 ids such as '25.0' are read as integers" in events.notes
    kept = read_csv(tmp_path, text, id_type="string")
    assert kept.frame["user_id"].to_list() == ["25.0", "7", "7.0"]
    assert "user_id: 2 ids differ from others only in case, spaces, leading zeros" in kept.notes[1]


@pytest.mark.parametrize(
    "ids",
    [
        pl.Series([2.0, 2**53 - 1, None], dtype=pl.Float64),
        pl.Series([2.0, 2**53 - 1, float("nan")], dtype=pl.Float64),
        pl.Series([2, 2**53 - 1, None], dtype=pl.Decimal(38, 0)),
        pl.Series([2, 2**53 - 1, None], dtype=pl.Int128),
    ],
    ids=["null", "nan", "decimal", "int128"],
)
def test_whole_numbers_of_any_type_are_integer_ids(ids: pl.Series) -> None:
    log = pl.DataFrame({"user_id": [1, 1, 1], "item_id": ids, "timestamp": [1, 2, 3]})
    assert read_events(log).frame["item_id"].to_list() == [2, 2**53 - 1]
    assert read_events(log, id_type="string").frame["item_id"].to_list() == ["2", str(2**53 - 1)]


@pytest.mark.parametrize(
    ("ids", "dtype"),
    [
        *(([1, 100], dtype) for dtype in (pl.Int8, pl.UInt16, pl.UInt64, pl.Int64)),
        *((["1", "b"], dtype) for dtype in (pl.String, pl.Categorical, pl.Enum(["1", "b"]))),
    ],
)
def test_every_type_of_integers_and_text_is_read(ids: list[Any], dtype: pl.DataType) -> None:
    log = frame_of(user_id=pl.Series(ids, dtype=dtype))
    assert read_events(log).frame["user_id"].to_list() == ids


def test_typed_text_stays_text() -> None:
    log = frame_of(user_id=["1", "2"])
    assert read_events(log).frame["user_id"].dtype == pl.String
    assert read_events(log, id_type="int64").frame["user_id"].dtype == pl.Int64
    assert read_events(SMALL, id_type="string").frame["user_id"].dtype == pl.String


def test_forced_integers_name_the_row_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'user_id' is not an int64 id in row 2: '007'"):
        read_csv(tmp_path, f"{HEADER}\n1,2,3\n007,2,3\n", id_type="int64")


# Times


def test_dates_and_datetimes_become_epoch_microseconds() -> None:
    day = datetime.date(1970, 1, 2)
    noon = datetime.datetime(1970, 1, 2, 12, tzinfo=datetime.UTC)
    assert read_events(frame_of(timestamp=[day, day])).frame["timestamp"][0] == 86_400_000_000
    assert read_events(frame_of(timestamp=[noon, noon])).frame["timestamp"][0] == 129_600_000_000


def test_integral_floats_become_integers_and_fractions_are_kept(tmp_path: Path) -> None:
    times = read_events(frame_of(timestamp=[881250949.0, 0.0])).frame["timestamp"]
    assert times.dtype == pl.Int64
    assert times.to_list() == [0, 881250949]
    times = read_csv(tmp_path, f"{HEADER}\na,b,0.5\na,c,-1\n").frame["timestamp"]
    assert times.to_list() == [-1.0, 0.5]


# Duplicates


def test_exact_duplicates_keep_the_first() -> None:
    log = frame_of(item_id=[2, 2], timestamp=[4, 4], rating=[1.0, 5.0])
    events = read_events(log, duplicates="exact")
    assert events.frame["rating"].to_list() == [1.0]
    assert events.dropped == {"exact duplicates": 1}
    other_type = log.with_columns(event=pl.Series(["view", "buy"]))
    assert read_events(other_type, duplicates="exact").dropped == {}
    assert len(read_events(log).frame) == 2  # no policy drops nothing


def test_consecutive_duplicates_are_of_one_user_and_in_order_of_time() -> None:
    times = [1, 4, 2, 5, 0]
    log = pl.DataFrame({"user_id": [1, 1, 1, 1, 2], "item_id": [7, 8, 7, 7, 7], "timestamp": times})
    events = read_events(log, duplicates="consecutive")
    assert events.frame.rows() == [(1, 7, 1), (1, 8, 4), (1, 7, 5), (2, 7, 0)]
    assert events.dropped == {"consecutive duplicates": 1}


# Digests


@st.composite
def logs_without_ties(draw: st.DrawFn) -> pl.DataFrame:
    ids = st.text(min_size=1, max_size=9).filter(lambda text: text.strip() not in MISSING)
    pairs = st.tuples(ids, st.integers(-(2**53), 2**53))
    keys = draw(st.lists(pairs, unique=True, min_size=1, max_size=20))
    items = draw(st.lists(ids, min_size=len(keys), max_size=len(keys)))
    users, times = [user for user, _ in keys], [time for _, time in keys]
    return pl.DataFrame({"user_id": users, "item_id": items, "timestamp": times})


@settings(max_examples=30, deadline=None)
@given(log=logs_without_ties(), seed=st.integers(0, 2**32 - 1))
def test_shuffled_rows_without_ties_have_the_same_digest(log: pl.DataFrame, seed: int) -> None:
    shuffled = log.sample(fraction=1, shuffle=True, seed=seed)
    assert read_events(shuffled).digest == read_events(log).digest


@settings(max_examples=30, deadline=None)
@given(log=logs_without_ties(), row=st.integers(0, 19), column=st.sampled_from(SMALL.columns))
def test_any_changed_value_has_another_digest(log: pl.DataFrame, row: int, column: str) -> None:
    values = log[column].to_list()
    row %= len(values)
    values[row] = values[row] + (1 if column == "timestamp" else "~")
    changed = log.with_columns(pl.Series(column, values))
    assert read_events(changed).digest != read_events(log).digest


def test_chunks_do_not_change_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    log = frame_of(user_id=["a", "bc"])
    whole = read_events(log).digest
    monkeypatch.setattr(digests, "_HASHED_ROWS", 1)
    pieces = pl.concat([log[:1], log[1:]], rechunk=False)
    assert frame_digest(read_events(pieces).frame) == whole


def test_texts_and_lists_cannot_merge_in_the_digest() -> None:
    def digest(values: list[object]) -> str:
        return frame_digest(pl.DataFrame({"x": values}))

    columns: list[list[object]] = [
        ["ab", "c"], ["a", "bc"], ["a", None, "bc"], ["a", "", "bc"],
        [["a", "b"], ["c"]], [["a"], ["b", "c"]],
        [["a"], [], ["b", "c"]], [["a"], None, ["b", "c"]],
    ]  # fmt: skip
    assert len({digest(values) for values in columns}) == len(columns)


# What is refused


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("user,item_id,timestamp\n1,2,3\n", r"'user_id' is missing \(columns: user, .*--user-col"),
        (f"{HEADER},user_id\n1,2,3,4\n", "'user_id' is there twice"),
        (f"{HEADER}\n", "holds no rows"),
        ("", r"is empty \(0 bytes\)"),
        ("\ufeff\n\n", "holds no rows"),
        ("user_id, item_id\n1, 2\n", "'item_id' is missing .*--item-column ' item_id'"),
        (
            f'{HEADER}\n1,"",3\n',
            "no row with user, item and time: 1 rows without item_id, first row",
        ),
        (f"{HEADER}\n1,2\n", "1 rows without timestamp, first row 1: None"),
        (f"{HEADER}\n1,2,3\n1,2,2024-01-01\n", "neither a number nor an ISO date in row 2: '2024-"),
        (f"{HEADER}\n1,2,3\n1,2,inf\n", "'timestamp' is not finite in row 2: 'inf'"),
    ],
)
def test_a_bad_csv_file_is_named(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_csv(tmp_path, text)


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (frame_of(user_id=[1.0, 2.5]), "'user_id' is no integer in row 2: 2.5; write the ids as"),
        (frame_of(user_id=[1.0, 2.0**53]), "'user_id' is no integer in row 2: 9007"),
        (frame_of(item_id=[True, False]), "'item_id' holds Boolean"),
        (frame_of(item_id=[None, None]), "2 rows without item_id, first row 1: None"),
        (frame_of(item_id=["nan", ""]), "2 rows without item_id, first row 1: 'nan'"),
        (frame_of(user_id=pl.Series([1, 2**63], dtype=pl.UInt64)), "exceeds int64 in row 2: 92233"),
        (
            frame_of(timestamp=["2024-01-01", "1"]),
            "'timestamp' is not an ISO date in row 2: '1'; give num",
        ),
        (frame_of(timestamp=[1.0, float("inf")]), "'timestamp' is not finite in row 2: inf"),
    ],
)
def test_bad_columns_are_named(tmp_path: Path, log: pl.DataFrame, words: str) -> None:
    log.write_parquet(tmp_path / "log.parquet")
    for source in (tmp_path / "log.parquet", log):
        with pytest.raises(DataError, match=words):
            read_events(source)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([event(), event(user="1")], "'user_id' mixes types: 1 in row 1 and '1' in row 2"),
        ([event(item=1), event(item=2.5)], "'item_id' mixes types: 1 in row 1 and 2.5 in row 2"),
        ([event(timestamp={"at": 3})], "'timestamp' holds Struct"),
        ([event(timestamp=2**60 + 1), event(timestamp=0.5)], "would be rounded .* in row 1: 1.15"),
        ([event(user=2**63)], "'user_id' exceeds int64"),
        ([event(timestamp=float("nan"))], "line 1 is not JSON: NaN is no number of JSON"),
        ([event(user=[1])], r"'user_id' holds in row 1 \[1\], which is not text or an integer"),
        ([event(), [1, 2, 3]], r"line 2 is not an object: \[1, 2, 3\]; write one object a line"),
        ([], "is empty"),
    ],
)
def test_bad_json_lines_are_named(tmp_path: Path, rows: list[object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_lines(tmp_path, *rows)


CUT = gzip.compress(f"{HEADER}\n".encode() + b"1,2,3\n" * 9999, mtime=0)[:60]
DAMAGED = "can't be read: .*check that it is complete"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("log.parquet", b"not parquet at all", DAMAGED),
        ("log.parquet", b"PAR1 and damaged PAR1", DAMAGED),
        ("log.csv.gz", b"\x1f\x8b damaged", DAMAGED),
        ("log.csv.gz", CUT, DAMAGED),
        ("log.jsonl", f"{json.dumps(event())}\n\n{{oops\n".encode(), ", line 3 is not JSON"),
        ("log.xlsx", b"x", r"has an unknown type.*\.parquet, \.csv"),
        ("none.csv", None, "is not a file"),
    ],
)
def test_a_file_that_can_not_be_read_is_named(
    tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}.*{words}"):
        read_events(tmp_path / name)


def test_a_panic_of_polars_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def panic(self: pl.LazyFrame) -> pl.DataFrame:
        raise pl.exceptions.PanicException("called `Option::unwrap()` on a `None` value")

    monkeypatch.setattr(pl.LazyFrame, "collect", panic)
    with pytest.raises(DataError, match=r"DataFrame can't be read: called `Option::unwrap"):
        read_events(SMALL)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(DataError, match="can't read a list"):
        read_events([1, 2])  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(DataError, match=r"'stars' is missing .*--rating-column NAME"):
        read_events(SMALL, Columns(rating="stars"))
    with pytest.raises(DataError, match="'a' is mapped twice"):
        Columns(user="a", item="a")
    with pytest.raises(DataError, match="duplicates 'all' is unknown; choose from none, exact"):
        read_events(SMALL, duplicates="all")  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(DataError, match="id_type 'text' is unknown; choose from auto"):
        read_events(SMALL, id_type="text")  # type: ignore[arg-type]  # the mistake under test


# Missing values


@pytest.mark.parametrize("word", sorted(MISSING))
@pytest.mark.parametrize("name", ["user_id", "item_id", "timestamp"])
def test_words_for_missing_are_no_values(tmp_path: Path, word: str, name: str) -> None:
    log = pl.DataFrame({"user_id": ["1", "2"], "item_id": ["3", "4"], "timestamp": ["5", "6"]})
    lacking = pl.concat([log, log[:1].with_columns(pl.lit(word).alias(name))])
    WRITERS[".csv"](lacking, tmp_path / "log.csv")
    WRITERS[".jsonl"](lacking, tmp_path / "log.jsonl")
    for source in (tmp_path / "log.csv", tmp_path / "log.jsonl", lacking):
        events = read_events(source)
        assert events.frame["user_id"].cast(str).to_list() == ["1", "2"]
        ((reason, count),) = events.dropped.items()
        assert reason.startswith(f"rows without {name}, first row 3: ")
        assert (count, events.rows_read) == (1, 3)
    assert read_events(tmp_path / "log.csv").frame[name].dtype == pl.Int64


def test_rows_without_a_value_are_counted_by_column_in_the_summary(tmp_path: Path) -> None:
    text = f"{HEADER}\n1,NULL,3\n,nan,3\n1,2,3\n1, ,4\n1,2,#N/A\n\n"
    summary = read_csv(tmp_path, text).summary()
    assert (
        "1 events of 6 rows (dropped: 1 blank lines, 1 rows without user_id, first row 2: None, "
        "2 rows without item_id, first row 1: 'NULL', "
        "1 rows without timestamp, first row 5: '#N/A')"
    ) in summary


def test_missing_numbers_of_pandas_are_dropped() -> None:
    nan = float("nan")
    log = frame_of(user_id=[1.0, nan]).vstack(frame_of(user_id=[1.0, 2.0], timestamp=[None, 5]))
    events = read_events(log.with_columns(pl.col("timestamp").cast(pl.Float64)))
    assert events.frame.rows() == [(1, 2, 4), (2, 3, 5)]
    assert sum(events.dropped.values()) == 2


def test_json_lines_of_pandas_hold_whole_floats_and_nulls(tmp_path: Path) -> None:
    events = read_lines(tmp_path, event(item=12.0), event(item=None), event(item=7))
    assert events.frame["item_id"].to_list() == [12, 7]


def test_the_row_of_an_error_counts_rows_that_lack_values(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'timestamp' is neither .* in row 3: 'x'"):
        read_csv(tmp_path, f"{HEADER}\nNULL,2,3\n1,,3\n1,2,x\n1,2,3\n")


# Types of a training


@pytest.mark.parametrize("dtype", [pl.Int64, pl.String])
def test_ids_have_the_types_of_the_training_if_they_can(tmp_path: Path, dtype: Any) -> None:
    trained = read_events(SMALL.cast({"item_id": dtype}))
    SMALL.write_csv(tmp_path / "log.csv")
    sources = (
        tmp_path / "log.csv",
        SMALL,
        SMALL.cast({"item_id": pl.String, "user_id": pl.String}),
    )
    for source in sources:
        assert read_events(source, like=trained.reading).digest == trained.digest


def test_an_id_that_is_no_integer_makes_all_ids_text(tmp_path: Path) -> None:
    trained = read_events(SMALL)
    events = read_csv(tmp_path, f"{HEADER}\n1,7,1\n1,NEW-7,2\n1,007,3\n", like=trained.reading)
    assert events.frame["item_id"].to_list() == ["7", "NEW-7", "007"]
    catalogue = Vocabulary(np.array([7, 8, 9]))
    assert catalogue.index(catalogue.parse(events.frame["item_id"])).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("ids", "count"),
    [
        *[(["A1", "a1", "b"], 2), (["a", " a", "a "], 3), (["1.0", "1", "x"], 2)],
        *[
            (["caf\u00e9", "cafe\u0301", "b"], 2),
            (["a", "a\u200b", "b"], 2),
            (["012", "12", "0"], 2),
        ],
        (["a", "b", "c"], 0),
    ],
)
def test_ids_that_are_nearly_equal_stay_apart_and_are_told(ids: list[str], count: int) -> None:
    log = pl.DataFrame({"user_id": [1, 1, 1], "item_id": ids, "timestamp": [1, 2, 3]})
    events = read_events(log)
    assert events.items == 3
    notes = [
        note for note in events.notes if f"item_id: {count} ids differ from others only" in note
    ]
    assert len(notes) == bool(count)


# Columns that are optional


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (
            {"rating": ["3 stars", "4"]},
            "rating is left out: DataFrame: column 'rating' is not a num",
        ),
        ({"rating": [[1], [2]]}, "rating is left out: DataFrame: column 'rating' holds List"),
        ({"rating": [1.0, float("inf")]}, "rating is left out: .* is not finite in row 2"),
        ({"event": [[1], [2]]}, "event is left out: DataFrame: column 'event' holds List"),
        ({"event": [1.5, 2.0]}, "event is left out: .* event types are text or integers"),
    ],
)
def test_an_optional_column_of_other_values_is_left_out(change: Any, note: str) -> None:
    log = frame_of(**change)
    events = read_events(log)
    assert events.frame.columns == ["user_id", "item_id", "timestamp"]
    assert any(re.match(note, text) for text in events.notes)
    name = next(iter(change))
    renamed = log.rename({name: "mine"})
    with pytest.raises(DataError, match="'mine'"):  # asked for by name
        read_events(renamed, Columns(**{name: "mine"}))
    assert read_events(log, Columns(**{name: ""})).notes == [
        f"columns: user_id, item_id, timestamp; not read: {name}"
    ]


@pytest.mark.parametrize("values", [["4", "NaN"], [4.0, float("nan")], [4, None]])
def test_a_rating_that_is_missing_is_null(values: list[Any]) -> None:
    assert read_events(frame_of(rating=values)).frame["rating"].to_list() == [4.0, None]


@pytest.mark.parametrize("values", [[1, None], [1.0, float("nan")], ["1", "NULL"]])
def test_event_types_are_text_and_may_be_missing(values: list[Any]) -> None:
    assert read_events(frame_of(event=values)).frame["event"].to_list() == ["1", None]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("user_id", "userId"),
        ("user_id", "visitorid"),
        ("user_id", "Customer ID"),
        ("item_id", "movieId"),
        ("item_id", "item_id:token"),
        ("item_id", " item_id"),
        ("timestamp", "ts"),
        ("timestamp", "Event-Time"),
        ("timestamp", "created_at"),
    ],
)
def test_the_likely_column_is_suggested(ours: str, theirs: str) -> None:
    option = f"--{ours.removesuffix('_id')}-column {theirs!r}"
    with pytest.raises(DataError, match=f"'{ours}' is missing .*{theirs}.*Map it: {option}"):
        read_events(SMALL.rename({ours: theirs}))


@pytest.mark.parametrize("name", ["event_type", "action", "Kind"])
def test_a_likely_column_of_event_types_is_suggested(name: str) -> None:
    (note,) = read_events(SMALL.with_columns(pl.lit("view").alias(name))).notes
    assert note == (
        f"columns: user_id, item_id, timestamp; not read: {name}; '{name}' may hold event types: "
        f"read them with --event-column '{name}'"
    )


@pytest.mark.parametrize("name", ["user_id", "item_id", "timestamp", "event", "rating"])
def test_a_wide_struct_is_named_in_short(name: str) -> None:
    wide = pl.Series(name, [{f"field {place}": place for place in range(2000)}])
    log = pl.DataFrame({"user_id": [1], "item_id": [2], "timestamp": [3]}).with_columns(wide)
    if name in ("event", "rating"):
        text = read_events(log).notes[1]
    else:
        with pytest.raises(DataError, match=name) as caught:
            read_events(log)
        text = str(caught.value)
    assert "Struct(" in text
    assert len(text) < 500


def test_a_flood_of_columns_is_cut() -> None:
    wide = pl.DataFrame({f"{number:04}{'x' * 500}": [1] for number in range(3000)})
    with pytest.raises(DataError, match="and 2,980 more") as caught:
        read_events(wide)
    assert len(str(caught.value)) < 2000
    names = "item_id,timestamp\r" + "\r".join(f"{row},{row}" for row in range(9999))
    with pytest.raises(DataError, match="'user_id' is missing") as caught:
        read_events(pl.DataFrame({names: [1]}))
    assert len(str(caught.value)) < 2000
