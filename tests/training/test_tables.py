"""A folder of parts is one table, whatever Spark, Dask or pandas put beside and into them."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ranklet.errors import DataError
from ranklet_training.data.events import read_events
from ranklet_training.data.items import read_items
from ranklet_training.data.rows import Columns

LOG = pl.DataFrame(
    {"user_id": [1, 1, 2, 2], "item_id": [7, 8, 9, 7], "timestamp": [10, 10, 10, 10]}
)


def gzipped(frame: pl.DataFrame, path: Path) -> None:
    path.write_bytes(gzip.compress(frame.write_ndjson().encode()))


WRITERS: dict[str, Callable[[pl.DataFrame, Path], object]] = {
    ".snappy.parquet": lambda frame, path: frame.write_parquet(path),
    ".csv": lambda frame, path: frame.write_csv(path),
    ".tsv": lambda frame, path: frame.write_csv(path, separator="\t"),
    ".json.jsonl": lambda frame, path: frame.write_ndjson(path),
    ".jsonl.gz": gzipped,
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_parts_follow_each_other_in_the_order_of_their_names(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / f"events{suffix}"
    folder.mkdir()
    for part in (1, 0):
        WRITERS[suffix](LOG[2 * part : 2 * part + 2], folder / f"part-0000{part}{suffix}")
    (folder / "_SUCCESS").touch()
    (folder / f".part-00000{suffix}.crc").write_bytes(b"crc")
    (folder / "_metadata").write_bytes(b"PAR1")
    assert read_events(folder).frame.equals(read_events(LOG).frame)  # ties keep the file's order


def test_a_partitioned_folder_has_the_columns_of_its_names(tmp_path: Path) -> None:
    for place, kind in enumerate(("view", "buy")):
        (tmp_path / f"event={kind}" / "date=2024-05-01").mkdir(parents=True)
        part = LOG[2 * place : 2 * place + 2].drop("timestamp")
        part.write_parquet(tmp_path / f"event={kind}" / "date=2024-05-01" / "part-0.parquet")
    events = read_events(tmp_path, Columns(timestamp="date"))
    assert events.frame["event"].to_list() == ["view", "view", "buy", "buy"]
    assert events.frame["timestamp"].unique().to_list() == [1_714_521_600_000_000]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ([[1, 2], [3.0, None]], [1, 2, 3]),
        ([[None, None], [3, 4]], [3, 4]),
        ([["a", "b"], [None, None]], ["a", "b"]),
        ([pl.Series([1, 2], dtype=pl.Int32), [3, 4]], [1, 2, 3, 4]),
        ([pl.Series(["a", "b"], dtype=pl.Categorical), ["c", "d"]], ["a", "b", "c", "d"]),
    ],
    ids=["floats", "nulls first", "nulls last", "integers", "texts"],
)
def test_parts_of_pandas_may_differ_in_type(
    tmp_path: Path, columns: list[Any], expected: list[Any]
) -> None:
    for part, items in enumerate(columns):
        log = pl.DataFrame({"user_id": 1, "item_id": items, "timestamp": [2 * part, 2 * part + 1]})
        log.write_parquet(tmp_path / f"{part}.parquet")
    assert read_events(tmp_path).frame["item_id"].to_list() == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["7", "12"], [7, 12]),
        (["7", "007"], ["007", "7"]),
        (["2", "x"], ["2", "x"]),
        (["7", "__HIVE_DEFAULT_PARTITION__"], [7]),
    ],
)
def test_ids_in_the_names_of_folders_lose_nothing(
    tmp_path: Path, names: list[str], expected: list[Any]
) -> None:
    for name in names:
        folder = tmp_path / "day=2024-05-01" / f"item_id={name}"
        folder.mkdir(parents=True)
        LOG.drop("item_id").write_parquet(folder / "0.parquet")
    events = read_events(tmp_path)
    assert events.frame["item_id"].unique().sort().to_list() == expected
    assert events.frame["item_id"].len() + sum(events.dropped.values()) == len(names) * len(LOG)


def test_parts_may_have_times_of_different_zones(tmp_path: Path) -> None:
    for part, zone in enumerate(("Asia/Tokyo", "UTC", "America/Lima")):
        times = pl.Series("timestamp", [part, part + 10]).cast(pl.Datetime("ms", zone))
        log = pl.DataFrame({"user_id": 1, "item_id": [part, part + 10]}).with_columns(times)
        log.write_parquet(tmp_path / f"{part}.parquet")
    assert read_events(tmp_path).frame["item_id"].to_list() == [0, 1, 2, 10, 11, 12]
    plain = times.dt.replace_time_zone(None)
    log.with_columns(plain).write_parquet(tmp_path / "plain.parquet")
    with pytest.raises(DataError, match=r"'timestamp' is Datetime.*zone='UTC'.* and .*zone=None"):
        read_events(tmp_path)


@pytest.mark.parametrize("suffix", [".csv", ".snappy.parquet"])
def test_a_part_without_any_of_the_columns_is_named(tmp_path: Path, suffix: str) -> None:
    WRITERS[suffix](LOG, tmp_path / f"0{suffix}")
    other = LOG.rename({"user_id": "u", "item_id": "i", "timestamp": "t"})
    WRITERS[suffix](other.select("u", "i", "t"), tmp_path / f"1{suffix}")
    with pytest.raises(DataError, match=r"has none of the columns user_id, .* the same head"):
        read_events(tmp_path)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([1, 2], ["1", "x"], "'item_id' is Int64 and String in different parts; write one type"),
        ([2**53 + 1, 2], [1.5, None], "'item_id' is Int64 and Float64 in different parts"),
        ([1, 2], [[1], [2]], r"'item_id' .*List"),
    ],
)
def test_parts_that_do_not_fit_are_named(
    tmp_path: Path, first: list[Any], second: list[Any], message: str
) -> None:
    for part, items in enumerate((first, second)):
        log = pl.DataFrame({"user_id": 1, "item_id": items, "timestamp": [1, 2]})
        log.write_parquet(tmp_path / f"{part}.parquet")
    with pytest.raises(DataError, match=message):
        read_events(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "the folder .* holds no parts"),
        (["_SUCCESS", ".part-0.parquet.crc"], "the folder .* holds no parts"),
        (["part-0.parquet", "notes.txt"], "the folder .* holds 'notes.txt'; the parts of a table"),
        (
            ["part-0.parquet", "part-1.csv"],
            "the folder .* holds 'part-1.csv'; the parts of a table",
        ),
        (["README.md"], "the folder .* holds 'README.md'"),
        (["part-0.parquet", "part-1.parquet"], r"part-1.parquet is empty \(0 bytes\)"),
    ],
)
def test_a_folder_that_is_no_table_is_named(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        is_text = name.endswith((".csv", ".txt", ".md"))
        (tmp_path / name).write_text("user_id,item_id,timestamp\n1,2,3\n" if is_text else "")
        if name == "part-0.parquet":
            LOG.write_parquet(tmp_path / name)
    with pytest.raises(DataError, match=message):
        read_events(tmp_path)


def test_an_item_file_may_be_a_folder_of_parts(tmp_path: Path) -> None:
    (tmp_path / "0.csv").write_text("item_id,title\n7,A\n")
    (tmp_path / "1.csv").write_text("item_id;title\n8;B\n")
    assert read_items(tmp_path).rows() == [(7, "A"), (8, "B")]


def test_compressed_json_lines_are_read(tmp_path: Path) -> None:
    gzipped(LOG, tmp_path / "log.jsonl.gz")
    assert read_events(tmp_path / "log.jsonl.gz").digest == read_events(LOG).digest
    path = tmp_path / "cut.ndjson.gz"
    path.write_bytes((tmp_path / "log.jsonl.gz").read_bytes()[:-9])
    with pytest.raises(DataError, match="can't be read"):
        read_events(path)


@pytest.mark.parametrize("name", ["log.csv", "log.tsv.gz", "log.jsonl", "log.parquet"])
def test_content_of_another_type_is_named(tmp_path: Path, name: str) -> None:
    other = tmp_path / ("x.jsonl" if name == "log.parquet" else "x.parquet")
    LOG.write_ndjson(other) if name == "log.parquet" else LOG.write_parquet(other)
    other.rename(tmp_path / name)
    with pytest.raises(DataError, match=name) as caught:
        read_events(tmp_path / name)
    assert len(str(caught.value)) < 700


def test_numbers_and_words_of_json_lines_do_not_mix_types(tmp_path: Path) -> None:
    rows = [(1, 7.0), (1, "NULL"), (1, 8), (1, None)]
    lines = [{"user_id": u, "item_id": i, "timestamp": t} for t, (u, i) in enumerate(rows)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert read_events(tmp_path / "log.jsonl").frame["item_id"].to_list() == [7, 8]


def test_parts_are_counted_and_not_spelled(tmp_path: Path) -> None:
    for part in (10, 2, 1):
        log = pl.DataFrame({"user_id": 1, "item_id": [part], "timestamp": [0]})
        log.write_parquet(tmp_path / f"part.{part}.parquet")
    assert read_events(tmp_path).frame["item_id"].to_list() == [1, 2, 10]


def test_empty_parts_of_spark_hold_no_rows(tmp_path: Path) -> None:
    (tmp_path / "part-00000.csv").touch()
    (tmp_path / "part-00001.csv").write_text("user_id,item_id,timestamp\n1,2,3\n")
    (tmp_path / "part-00002.csv").write_text("user_id,item_id,timestamp\n")
    assert read_events(tmp_path).frame.rows() == [(1, 2, 3)]


def test_a_column_that_a_part_lacks_is_null_in_it(tmp_path: Path) -> None:
    LOG[:2].write_ndjson(tmp_path / "0.jsonl")
    LOG[2:].with_columns(rating=pl.lit(4)).write_ndjson(tmp_path / "1.jsonl")
    assert read_events(tmp_path).frame["rating"].to_list() == [None, None, 4.0, 4.0]
    LOG[2:].drop("item_id").write_ndjson(tmp_path / "2.jsonl")
    assert read_events(tmp_path).dropped == {"rows without item_id, first row 5: None": 2}
