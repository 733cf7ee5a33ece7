"""Logs on the command line: units, types of ids, unknown items, columns, and what is said."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from commands import call, run
from ranklet import Ranker
from ranklet.bundle.manifest import Manifest
from ranklet_training.events import Columns, Events, read_events, read_items
from ranklet_training.runs.checkpoint import read_run

TINY = ["--set", "width=16", "--set", "max_length=16", "--set", "epochs=1"]


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    random = np.random.default_rng(0)
    users, events = 40, 12
    return pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(users), events),
            "item_id": random.integers(1, 31, users * events),
            "timestamp": 1_700_000_000 + random.permutation(users * events) * 1000,
        }
    )


@pytest.fixture(scope="module")
def timed(log: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log of seconds, a run that uses times, and its bundle."""
    folder = tmp_path_factory.mktemp("timed")
    log.write_csv(folder / "log.csv")
    run(
        *("train", folder / "log.csv", "--out", folder / "run", *TINY, "--set", "time_gaps=true"),
    )
    run("export", folder / "run", folder / "bundle", "--allow-drop", 1)
    return folder


def rank(bundle: Path, source: Path, *options: object) -> tuple[list[Any], str]:
    result = run("rank", bundle, "--input", source, "-k", 3, *options)
    return [json.loads(line) for line in result.stdout.splitlines()], result.stderr


def test_the_unit_of_times_is_kept_in_run_and_bundle_and_shown(timed: Path) -> None:
    reading = read_run(timed / "run").data["reading"]
    assert (reading["time_unit"], reading["user_id_type"], reading["item_id_type"]) == (
        *("s", "int64", "int64"),
    )
    assert Ranker.load(timed / "bundle", provider="cpu").time_unit == "s"
    shown = run("inspect", timed / "bundle").stdout
    assert "times    in s since 1970; the model uses them\n" in shown
    assert "* Times: in s since 1970.\n" in (timed / "bundle" / "README.md").read_text()


def test_a_bundle_of_an_older_version_tells_no_unit_and_takes_any(
    timed: Path, log: pl.DataFrame, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(timed / "bundle", old)
    manifest = Manifest.read(old)
    reading = {k: v for k, v in manifest.data["reading"].items() if k != "time_unit"}
    Manifest(**{**vars(manifest), "data": {**manifest.data, "reading": reading}}).write(old)
    assert Ranker.load(old, provider="cpu").time_unit == ""
    assert "times    in an unknown unit; the model uses them\n" in run("inspect", old).stdout
    log.with_columns(pl.col("timestamp") % 1000).write_csv(tmp_path / "log.csv")
    assert len(rank(old, tmp_path / "log.csv")[0]) == 40


@pytest.mark.parametrize("form", ["dates", "text", "ms", "ns", "csv"])
def test_a_log_in_another_unit_gives_the_same_answers(
    form: str, timed: Path, log: pl.DataFrame, tmp_path: Path
) -> None:
    dates = log.with_columns(pl.from_epoch("timestamp"))
    frames = {
        "dates": dates,
        "text": dates.with_columns(pl.col("timestamp").dt.strftime("%Y-%m-%dT%H:%M:%SZ")),
        "ms": log.with_columns(pl.col("timestamp") * 10**3),
        "ns": log.with_columns(pl.col("timestamp") * 10**9),
    }
    source = tmp_path / ("log.csv" if form == "csv" else "log.parquet")
    dates.write_csv(source) if form == "csv" else frames[form].write_parquet(source)
    assert rank(timed / "bundle", source)[0] == rank(timed / "bundle", timed / "log.csv")[0]
    for model in ("run", "bundle"):
        result = run("evaluate", timed / model, source)
        assert "these are not the events" not in result.stderr


def test_plain_numbers_are_refused_by_a_model_that_uses_times(
    timed: Path, log: pl.DataFrame, tmp_path: Path
) -> None:
    log.with_columns(pl.col("timestamp") % 1000).write_csv(tmp_path / "log.csv")
    for arguments in (("rank", timed / "bundle", "--input"), ("evaluate", timed / "run")):
        result = call(*arguments, tmp_path / "log.csv")
        assert result.exit_code == 4
        assert "the times of the log are numbers of an unknown unit" in result.stderr


def test_times_of_a_request_in_another_unit_are_refused(timed: Path, tmp_path: Path) -> None:
    first, last = 1_700_000_000, 1_700_000_100
    right = run("rank", timed / "bundle", "--history", "1,2", "--times", f"{first},{last}")
    assert "1 unknown" not in right.stdout
    milliseconds = [first * 1000, last * 1000]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"history": [1, 2], "times": milliseconds}))
    for options, time in (
        (["--history", "1,2", "--times", ",".join(map(str, milliseconds))], first * 1000),
        (["--history", "1,2", "--times", f"{first},{last}", "--now", last * 10**9], last * 10**9),
        (["--history", "1,2", "--times", f"{first},{last * 1000}"], last * 1000),
        (["--input", tmp_path / "rows.jsonl"], first * 1000),
    ):
        result = call("rank", timed / "bundle", *options)
        assert result.exit_code == 4
        unit = "ns" if "--now" in options else "ms"
        assert f"holds {time}, which is in {unit} by its size" in result.stderr
        assert "the times of this bundle are in s since 1970" in result.stderr


def test_dates_near_1970_are_not_checked_by_their_size(log: pl.DataFrame, tmp_path: Path) -> None:
    days = (pl.col("timestamp") - 1_699_000_000).cast(pl.Int64) * 10**6
    simulated = log.with_columns(days.cast(pl.Datetime("us")))
    simulated.write_parquet(tmp_path / "log.parquet")
    trained, bundle = tmp_path / "run", tmp_path / "bundle"
    run("train", tmp_path / "log.parquet", "--out", trained, *TINY, "--set", "time_gaps=true")
    run("export", trained, bundle, "--allow-drop", 1)
    ranked = run("rank", bundle, "--input", tmp_path / "log.parquet", "-k", 1).stdout
    assert len(ranked.splitlines()) == log["user_id"].n_unique()


def test_models_whose_times_differ_in_unit_are_not_compared(
    timed: Path, log: pl.DataFrame, tmp_path: Path
) -> None:
    log.with_columns(pl.col("timestamp") * 1000).write_csv(tmp_path / "ms.csv")
    run(
        *("train", tmp_path / "ms.csv", "--out", tmp_path / "run-ms", *TINY),
        *("--set", "time_gaps=true"),
    )
    run("train", tmp_path / "ms.csv", "--out", tmp_path / "order", *TINY)
    result = call("compare", timed / "run", tmp_path / "run-ms", timed / "log.csv")
    assert "different units (run s, run-ms ms)" in result.stderr
    assert result.exit_code == 4
    # A model of the order alone takes the unit of the other one.
    run("compare", tmp_path / "order", timed / "run", timed / "log.csv", "--resamples", 1000)


def test_fractions_of_a_unit_are_left_out(timed: Path, log: pl.DataFrame, tmp_path: Path) -> None:
    log.with_columns(pl.col("timestamp") + 0.25).write_csv(tmp_path / "log.csv")
    ranked, _ = rank(timed / "bundle", tmp_path / "log.csv")
    assert ranked == rank(timed / "bundle", timed / "log.csv")[0]


def test_every_command_says_what_it_read_and_dropped(timed: Path, tmp_path: Path) -> None:
    lines = (timed / "log.csv").read_text().splitlines()
    (tmp_path / "log.csv").write_text("\n".join([*lines, "1,NULL,1700000000", "2,7,None"]))
    said = (
        "480 events of 482 rows (dropped: 1 rows without item_id, first row 481: 'NULL', "
        "1 rows without timestamp, first row 482: 'None'), time 2023-11-14 22:13:20 to "
    )
    for arguments in (
        ("rank", timed / "bundle", "--input", tmp_path / "log.csv", "-k", 1),
        ("evaluate", timed / "run", tmp_path / "log.csv"),
        ("train", tmp_path / "log.csv", "--out", tmp_path / "run", *TINY),
        ("train", tmp_path / "log.csv", "--out", tmp_path / "run", "--resume"),
    ):
        assert said in run(*arguments).stderr


def test_items_of_another_type_are_unknown(timed: Path, tmp_path: Path) -> None:
    rows = ["1,1,1700000000", "1,NEW-7,1700000001", "1,007,1700000002", "2,5,1700000000"]
    (tmp_path / "today.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    ranked, said = rank(timed / "bundle", tmp_path / "today.csv")
    assert [(row["user_id"], row["unknown"]) for row in ranked] == [(1, 2), (2, 0)]
    assert "2 events of items that the catalogue lacks" in said
    result = call("rank", timed / "bundle", "--input", tmp_path / "today.csv", "--unknown", "error")
    assert result.exit_code == 4
    assert "is 'NEW-7', which the catalogue does not have" in result.stderr


def test_a_typed_history_may_hold_unknown_text(timed: Path) -> None:
    result = run("rank", timed / "bundle", "--history", "1,NEW-7,007")
    assert "2 unknown ids" in result.stdout
    assert "after 1, NEW-7, 007" in result.stdout
    result = call("rank", timed / "bundle", "--history", "1,NEW-7", "--unknown", "error")
    assert result.exit_code == 4
    assert "history[1] is 'NEW-7', which the catalogue does not have" in result.stderr


def test_a_run_of_text_ids_reads_digits_as_text(log: pl.DataFrame, tmp_path: Path) -> None:
    log.cast({"user_id": str, "item_id": str}).write_parquet(tmp_path / "text.parquet")
    log.write_csv(tmp_path / "log.csv")
    run("train", tmp_path / "text.parquet", "--out", tmp_path / "run", *TINY)
    assert read_run(tmp_path / "run").data["reading"]["item_id_type"] == "string"
    result = run("evaluate", tmp_path / "run", tmp_path / "log.csv")
    assert "these are not the events" not in result.stderr


def test_columns_that_are_not_needed_do_not_block_a_training(
    log: pl.DataFrame, tmp_path: Path
) -> None:
    path = tmp_path / "log.csv"
    log.with_columns(rating=pl.lit("5 stars"), event_type=pl.lit("view")).write_csv(path)
    result = run("train", path, "--out", tmp_path / "run", *TINY)
    assert "rating is left out: " in result.stderr
    assert "not read: rating, event_type; 'event_type' may hold event types" in result.stderr
    result = run("train", path, "--out", tmp_path / "none", *TINY, "--rating-column", "")
    assert "left out" not in result.stderr
    result = call("train", path, "--out", tmp_path / "seed", "--preset", "seed")
    assert result.exit_code == 6
    assert "the seed model learns from ratings" in result.stderr


def test_ratings_that_are_partly_missing_train_all_but_the_seed_model(
    log: pl.DataFrame, tmp_path: Path
) -> None:
    path = tmp_path / "log.parquet"
    log.with_columns(rating=pl.Series([float("nan"), 4.0] * 240)).write_parquet(path)
    run("train", path, "--out", tmp_path / "run", *TINY)
    assert read_run(tmp_path / "run").data["rating_mean"] is None
    result = call("train", path, "--out", tmp_path / "seed", "--preset", "seed")
    assert result.exit_code == 6
    assert "one that lacks values: give every event a rating" in result.stderr


def test_the_columns_of_an_item_file_are_told(log: pl.DataFrame, tmp_path: Path) -> None:
    log.write_csv(tmp_path / "log.csv")
    names = pl.DataFrame({"item_id": range(1, 201), "name": "A", "price": range(200)})
    names.write_csv(tmp_path / "items.csv", separator=";")
    arguments = ["train", tmp_path / "log.csv", "--items", tmp_path / "items.csv", *TINY]
    result = run(*arguments, "--out", tmp_path / "run", "--set", "features=price")
    assert "attributes: name category, price number (others: --attributes" in result.stderr
    assert "'name' may hold titles: read them with --title-column 'name'" in result.stderr
    assert read_run(tmp_path / "run").attribute_kinds == {"name": "category", "price": "number"}
    chosen = ["--attributes", "price:category", "--title-column", "name"]
    run(*arguments, "--out", tmp_path / "named", *chosen)
    assert read_run(tmp_path / "named").attribute_kinds == {"title": "text", "price": "category"}
    result = run(*arguments, "--out", tmp_path / "none", "--attributes", "price:none")
    assert "not used: price (as chosen)" in result.stderr
    assert read_run(tmp_path / "named").catalogue["title"][0] == "A"


def test_programs_of_the_first_address_find_the_readers() -> None:
    from ranklet_training.data import events, items

    assert (Columns, Events, read_events) == (events.Columns, events.Events, events.read_events)
    assert read_items is items.read_items
