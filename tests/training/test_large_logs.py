"""A log that is sorted in files gives what it gives in memory: events, splits, batches, weights."""

import multiprocessing
import os
import resource
import signal
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.testing import assert_array_equal

from ranklet.errors import DataError
from ranklet_training.data import large_logs, sequences
from ranklet_training.data.events import Events, read_events
from ranklet_training.data.large_logs import is_large, read_large_events
from ranklet_training.data.rows import Columns
from ranklet_training.data.sequences import Batch, Sequences, epoch_batches
from ranklet_training.data.split import Split, SplitKind, split_events
from ranklet_training.data.stored import StoredFrames

ROWS, USERS, ITEMS = 400, 40, 25
SPLITS: list[SplitKind] = ["leave-one-out", "time", "k-fold", "none"]
Change = Callable[[pl.DataFrame], pl.DataFrame]


@pytest.fixture(autouse=True)
def _tiny_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_logs, "PART_ROWS", 75)
    monkeypatch.setattr(large_logs, "_SAMPLED", 10)
    monkeypatch.setattr(sequences, "BLOCK", 50)


def log_of(seed: int = 0) -> pl.DataFrame:
    """Return a log with ties, repeats, and rows that lack something."""
    random = np.random.default_rng(seed)
    begin = 1_700_000_000
    frame = pl.DataFrame(
        {
            "user_id": random.integers(0, USERS, ROWS) ** 2,
            "item_id": random.integers(1, ITEMS, ROWS),
            "timestamp": begin + random.integers(0, 60, ROWS) * 86_400,
            "event": random.choice(["view", "cart", "buy"], ROWS),
            "rating": random.integers(1, 6, ROWS) / 1.0,
        }
    )
    lacks = pl.int_range(ROWS) % 41 == 5
    return frame.with_columns(pl.when(~lacks).then(pl.col("item_id", "rating")))


def write_parts(frame: pl.DataFrame, folder: Path) -> Path:
    """Write a folder of parts of which none is as large as another, and one is empty."""
    folder.mkdir()
    for number, begin in enumerate([0, 3, 60, 61, 61, 200]):
        end = [3, 60, 61, 61, 200, ROWS][number]
        frame[begin:end].write_parquet(folder / f"part-{number}.parquet")
    return folder


def write_two(folder: Path, first: dict[str, Any], second: dict[str, Any]) -> Path:
    """Write two parts of a log with other columns."""
    folder.mkdir()
    log_of()[:50].with_columns(**first).write_parquet(folder / "a.parquet")
    log_of()[50:].with_columns(**second).write_parquet(folder / "b.parquet")
    return folder


def one(row: int, value: Any, other: Any = None) -> pl.Expr:
    return pl.when(pl.int_range(pl.len()) == row).then(pl.lit(value)).otherwise(pl.lit(other))


def texts(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(
        "user " + pl.col("user_id").cast(pl.String), item_id=pl.col("item_id").cast(pl.String)
    )


def dates(frame: pl.DataFrame) -> pl.DataFrame:
    """Give the last rows nanoseconds, which make them the unit of all."""
    nanoseconds = pl.col("timestamp") * 10**9 + pl.when(pl.int_range(ROWS) > 350).then(7).otherwise(
        0
    )
    return frame.with_columns(nanoseconds.cast(pl.Datetime("ns")).alias("timestamp"))


def fractions(frame: pl.DataFrame) -> pl.DataFrame:
    """Give only some parts fractions of a second."""
    return frame.with_columns(
        pl.col("timestamp") + pl.when(pl.int_range(ROWS) > 350).then(0.5).otherwise(0.0)
    )


def plain(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.drop("event", "rating")


def same(frame: pl.DataFrame) -> pl.DataFrame:
    return frame


@pytest.fixture(params=[same, texts, dates, fractions, plain])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_parts(request.param(log_of()), tmp_path / "log")


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "exact": {"duplicates": "exact"},
    "consecutive": {"duplicates": "consecutive"},
    "text": {"id_type": "string"},
    "like": {"like": {"time_unit": "s", "user_id_type": "string"}},
    "columns": {"columns": Columns(event=None, rating=None)},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_log_sorted_in_files_has_the_same_events(log: Path, options: dict[str, Any]) -> None:
    large, small = read_large_events(log, **options), read_events(log, **options)
    assert isinstance(large.pieces, StoredFrames)
    assert len([*large.pieces]) > 3
    assert large.frame.equals(small.frame)
    assert large.item_ids.equals(small.item_ids)
    facts = {field.name for field in fields(Events)} - {"pieces", "item_ids", "dropped"}
    assert {name: getattr(large, name) for name in facts} == {
        name: getattr(small, name) for name in facts
    }
    assert list(large.dropped.values()) == list(small.dropped.values())
    assert large.reading == small.reading


def test_ratings_make_kinds_and_a_column_of_other_values_is_left_out(tmp_path: Path) -> None:
    log = write_two(tmp_path / "log", {"rating": pl.lit("4")}, {"rating": one(80, "x", "3")})
    large, small = read_large_events(log), read_events(log)
    assert large.frame.equals(small.frame)
    assert any("rating is left out: " in note for note in large.notes)
    log = write_two(tmp_path / "rated", {}, {})
    options: dict[str, Any] = {"rating_kinds": "good=4,bad=2", "columns": Columns(event=None)}
    large, small = read_large_events(log, **options), read_events(log, **options)
    assert large.frame.equals(small.frame)
    assert large.frame["event"].unique().sort().to_list() == [None, "bad", "good"]


def test_the_files_of_an_address_are_read_in_order(tmp_path: Path) -> None:
    log = write_parts(log_of(), tmp_path / "log")
    (log / "part-5.parquet").rename(log / "part-10.parquet")  # after part-4, by its number
    for name in ("_tmp.parquet", ".part.parquet", "_delta_log/0.parquet"):
        (log / name).parent.mkdir(exist_ok=True)
        log_of(1).write_parquet(log / name)
    (log / "_metadata").touch()
    assert read_large_events(f"file://{log}/").digest == read_events(log).digest
    chosen = read_large_events(f"file://{log}/_t*.parquet")
    assert chosen.digest == read_events(log_of(1)).digest
    with pytest.raises(DataError, match=r"nowhere/ can't be read: .*; check the address"):
        read_large_events(f"file://{tmp_path}/nowhere/")
    (tmp_path / "empty").mkdir()
    log_of()[:0].write_parquet(tmp_path / "empty" / "part.parquet")
    with pytest.raises(DataError, match="empty/ holds no rows"):
        read_large_events(f"file://{tmp_path}/empty/")


def test_pieces_hold_whole_users_in_order(log: Path) -> None:
    users = [
        piece["user_id"].unique(maintain_order=True) for piece in read_large_events(log).pieces
    ]
    whole = pl.concat(users)
    assert whole.is_sorted()
    assert whole.is_unique().all()


def arrays_of(split: Split) -> dict[str, Any]:
    """Return all arrays of a split by name."""
    parts: dict[str, Sequences] = {
        "training": split.training,
        "validation": split.validation.histories,
        "test": split.test.histories,
    }
    found = {
        f"{part}.{name}": getattr(histories, name)
        for part, histories in parts.items()
        for name in ("items", "offsets", "ratings", "times", "kinds")
    }
    for part, cases in (("validation", split.validation), ("test", split.test)):
        found |= {f"{part}.targets": cases.targets, f"{part}.target_times": cases.target_times}
        found[f"{part}.is_repeat"] = cases.is_repeat
    return found


@pytest.mark.parametrize("target", ["", "buy"])
@pytest.mark.parametrize("kind", SPLITS)
def test_a_log_sorted_in_files_is_split_alike(tmp_path: Path, kind: SplitKind, target: str) -> None:
    log = write_parts(log_of(), tmp_path / "log")
    large = split_events(read_large_events(log).pieces, kind, target=target)
    small = split_events(read_events(log).frame, kind, target=target)
    assert isinstance(large.training.items, np.memmap)
    for name, array in arrays_of(small).items():
        found = arrays_of(large)[name]
        assert (found is None) == (array is None), name
        if array is not None:
            assert_array_equal(found, array, strict=True, err_msg=name)
    assert list(large.vocabulary.all_ids) == list(small.vocabulary.all_ids)
    assert (large.instants, large.kinds, large.notes) == (small.instants, small.kinds, small.notes)


def batches_of(split: Split, windows: Any) -> Iterator[Batch]:
    for epoch in range(2):
        yield from epoch_batches(
            split.training,
            windows=windows,
            length=5,
            targets=16,
            seed=3,
            epoch=epoch,
            with_gaps=True,
            with_kinds=True,
        )


@pytest.mark.parametrize("windows", ["all", "last"])
def test_a_log_sorted_in_files_gives_the_same_batches(tmp_path: Path, windows: str) -> None:
    log = write_parts(log_of(), tmp_path / "log")
    large = batches_of(split_events(read_large_events(log).pieces), windows)
    small = batches_of(split_events(read_events(log).frame), windows)
    for found, expected in zip(large, small, strict=True):
        for field in fields(Batch):
            assert_array_equal(
                getattr(found, field.name), getattr(expected, field.name), strict=True
            )


def test_files_of_a_log_are_used_again_while_the_log_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, cache = write_parts(log_of(), tmp_path / "log"), tmp_path / "cache"
    first = read_large_events(log, cache=cache)
    arrays = arrays_of(split_events(first.pieces))
    sorted_logs = []
    sort_log = large_logs._sort_log
    monkeypatch.setattr(large_logs, "_sort_log", lambda *a: (sorted_logs.append(a), sort_log(*a)))
    again = read_large_events(log, cache=cache, like=first.reading)  # as a resumed training reads
    assert not sorted_logs
    assert_array_equal(split_events(again.pieces).training.items, arrays["training.items"])
    read_large_events(log, cache=cache, duplicates="exact")
    read_large_events(log, cache=cache)
    os.utime(log / "part-2.parquet")
    assert read_large_events(log, cache=cache).digest == first.digest
    assert len(sorted_logs) == 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("000001.arrow", None),
        ("000001.arrow", b"short"),
        ("item_ids.parquet", None),
        ("events.json", b"{"),
        ("events.json", None),
    ],
)
def test_files_that_are_damaged_are_made_again(
    tmp_path: Path, name: str, content: bytes | None
) -> None:
    log, cache = write_parts(log_of(), tmp_path / "log"), tmp_path / "cache"
    read_large_events(log, cache=cache)
    path = cache / "log" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    again, expected = read_large_events(log, cache=cache), read_events(log)
    assert again.digest == expected.digest
    assert pl.concat(again.pieces).equals(expected.frame)


def test_a_failure_leaves_alone_what_else_is_in_the_folder(tmp_path: Path) -> None:
    log, other = write_parts(log_of(), tmp_path / "log"), tmp_path / "cache" / "thesis.txt"
    other.parent.mkdir()
    other.write_text("a thesis")
    with pytest.raises(DataError, match="nobody"):
        read_large_events(log, Columns(user="nobody"), cache=other.parent)
    assert [path.name for path in other.parent.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("read", [read_events, read_large_events])
def test_a_folder_with_the_name_of_a_column_gives_no_values(
    tmp_path: Path, read: Callable[[Path], Events]
) -> None:
    log = write_parts(
        log_of().with_columns(pl.col("user_id").cast(pl.String)), tmp_path / "user_id"
    )
    assert read(log).reading["user_id_type"] == "string"


def killed(log: Path, cache: Path, pieces: int) -> None:
    """Read a log, and be killed after some pieces."""
    large_logs.PART_ROWS = 75
    store_frame, stored = large_logs.store_frame, []

    def store(path: Path, frame: pl.DataFrame) -> None:
        store_frame(path, frame)
        stored.append(path)
        if len(stored) == pieces:
            os.kill(os.getpid(), signal.SIGKILL)

    large_logs.store_frame = store
    read_large_events(log, cache=cache)


def limited(log: Path, cache: Path, most_bytes: int) -> None:
    """Read a log where no file may be larger than some bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    try:
        split_events(read_large_events(log, cache=cache).pieces)
    except OSError as error:
        os._exit(0 if str(cache) in f"{error.filename}: {error.strerror}" else 3)


def run(function: Callable[..., None], *arguments: Any) -> int | None:
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.parametrize("pieces", [1, 9])
def test_a_killed_process_leaves_nothing_that_is_taken_for_a_log(
    tmp_path: Path, pieces: int
) -> None:
    log, cache = write_parts(log_of(), tmp_path / "log"), tmp_path / "cache"
    assert run(killed, log, cache, pieces) == -signal.SIGKILL
    (torn,) = cache.glob(".log.*.tmp")
    assert read_large_events(log, cache=cache).digest == read_events(log).digest
    assert not torn.exists()


@pytest.mark.parametrize("most_bytes", [100, 4000])
def test_a_full_disk_is_an_error_that_names_a_file_and_leaves_none(
    tmp_path: Path, most_bytes: int
) -> None:
    log, cache = write_parts(log_of(), tmp_path / "log"), tmp_path / "new" / "cache"
    assert run(limited, log, cache, most_bytes) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


# What is refused, and what is large.


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    log = write_parts(log_of(), tmp_path / "log")
    part = log / "part-4.parquet"
    part.write_bytes(part.read_bytes()[:200] + b"PAR1")
    with pytest.raises(DataError, match=r"part-4\.parquet can't be read"):
        read_large_events(log, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("first", "second", "columns", "words"),
    [
        (
            {},
            {"user_id": pl.lit("x")},
            Columns(),
            "column user_id is Int64 and String in different parts; write one type",
        ),
        (
            {},
            {"timestamp": pl.lit(1_700_000_000_000)},
            Columns(),
            "are seconds in .*a.parquet and milliseconds in .*b.parquet: write one unit",
        ),
        (
            {},
            {"timestamp": pl.from_epoch("timestamp")},
            Columns(),
            "are seconds in .*a.parquet and dates in .*b.parquet: write one unit",
        ),
        (
            {"timestamp": pl.lit(2**60 + 1)},
            {"timestamp": pl.lit(0.5)},
            Columns(),
            "column timestamp is Int64 and Float64 in different parts; write one type",
        ),
        (
            {"stars": pl.lit(None, pl.String)},
            {"stars": one(80, "x")},
            Columns(rating="stars"),
            "b.parquet from row 76: column 'stars' is not a number in row 6: 'x'",
        ),
        ({}, {}, Columns(timestamp="when"), "column 'when' is missing"),
    ],
    ids=["ids", "units", "dates", "rounding", "rating", "missing"],
)
def test_parts_that_do_not_fit_are_named(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], columns: Columns, words: str
) -> None:
    log = write_two(tmp_path / "log", first, second)
    with pytest.raises(DataError, match=words):
        read_large_events(log, columns)


def test_a_part_with_times_of_no_known_unit_makes_all_of_them_plain_numbers(tmp_path: Path) -> None:
    log = write_two(tmp_path / "log", {}, {"timestamp": pl.col("timestamp") - 1_700_000_000})
    for like in ({}, {"time_unit": "ms"}):
        large, small = read_large_events(log, like=like), read_events(log, like=like)
        assert large.time_unit == small.time_unit == ""
        assert large.frame.equals(small.frame)


def test_a_log_without_a_complete_row_is_refused(tmp_path: Path) -> None:
    log = write_parts(log_of().with_columns(item_id=pl.lit(None, pl.Int64)), tmp_path / "log")
    words = "no row with user, item and time: 400 rows without item_id, first row 1: None of .*-0"
    with pytest.raises(DataError, match=words):
        read_large_events(log)


def test_only_much_parquet_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = write_parts(log_of(), tmp_path / "log")
    size = sum(path.stat().st_size for path in log.iterdir())
    log_of().write_csv(tmp_path / "log.csv")
    monkeypatch.setattr(large_logs, "LARGE_BYTES", size)
    assert not is_large(log)
    monkeypatch.setattr(large_logs, "LARGE_BYTES", size - 1)
    assert is_large(log)
    monkeypatch.setattr(large_logs, "LARGE_BYTES", 1)
    assert is_large(log / "part-0.parquet")
    assert not is_large(tmp_path / "log.csv")
    assert not is_large(tmp_path / "nothing.parquet")


def test_a_temporary_folder_ends_with_the_events(tmp_path: Path) -> None:
    events = read_large_events(write_parts(log_of(), tmp_path / "log"))
    assert isinstance(events.pieces, StoredFrames)
    folder, split = events.pieces.folder, split_events(events.pieces)
    assert folder.exists()
    del events
    assert not folder.exists()
    assert split.training.items.max() == ITEMS - 1  # still mapped


@pytest.mark.parametrize("column", ["event", "user_id"])
def test_columns_of_folder_names_are_read(tmp_path: Path, column: str) -> None:
    for (value,), rows in log_of().group_by(column, maintain_order=True):
        folder = tmp_path / f"{column}={value}"
        folder.mkdir()
        rows.drop(column).write_parquet(folder / "part.parquet")
    assert read_large_events(tmp_path).digest == read_events(tmp_path).digest
