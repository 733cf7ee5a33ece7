"""Files of rankings: the format is that of the name; ids on the command line are exact."""

import csv
import gzip
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from commands import call
from ranklet import Ranker
from ranklet.bundle.folder import describe_files
from ranklet.bundle.manifest import Manifest

USERS = [("a", ["i01", "i02"]), ("b,c", []), ('d"\n', ["no"])]


@pytest.fixture
def histories(tmp_path: Path) -> Path:
    rows = [json.dumps({"user_id": user, "history": history}) for user, history in USERS]
    (tmp_path / "h.jsonl").write_text("\n".join(rows))
    return tmp_path / "h.jsonl"


@pytest.fixture
def expected(tiny_ranker: Ranker) -> list[dict[str, Any]]:
    rankings = tiny_ranker.rank_batch([history for _, history in USERS], k=3)
    return [
        {"user_id": user, "items": r.items, "scores": np.round(r.scores, 5).tolist()}
        for (user, _), r in zip(USERS, rankings, strict=True)
    ]


def ranked(bundle: Path, source: Path, output: Path) -> bytes:
    result = call("rank", bundle, "--input", source, "--output", output, "-k", 3)
    assert result.exit_code == 0, result.output
    return output.read_bytes()


@pytest.mark.parametrize("name", ["o.jsonl", "O.NDJSON", "o.jsonl.gz", "o"])
def test_json_lines_have_an_object_for_each_history(
    name: str, tiny_bundle: Path, histories: Path, tmp_path: Path, expected: list[dict[str, Any]]
) -> None:
    content = ranked(tiny_bundle, histories, tmp_path / name)
    if name.endswith(".gz"):
        content = gzip.decompress(content)
    rows = [json.loads(line) for line in content.splitlines()]
    assert list(rows[0]) == ["user_id", "items", "scores", "unknown", "cold", "exact"]
    for row, wanted in zip(rows, expected, strict=True):
        assert row["items"] == wanted["items"]
        assert row["user_id"] == wanted["user_id"]
        assert row["scores"] == pytest.approx(wanted["scores"], abs=2e-5)
    assert [row["cold"] for row in rows] == [False, True, True]


@pytest.mark.parametrize("name", ["o.csv", "o.csv.gz"])
def test_csv_has_a_row_for_each_ranked_item(
    name: str, tiny_bundle: Path, histories: Path, tmp_path: Path, expected: list[dict[str, Any]]
) -> None:
    content = ranked(tiny_bundle, histories, tmp_path / name)
    if name.endswith(".gz"):
        content = gzip.decompress(content)
    rows = list(csv.DictReader(content.decode().splitlines(keepends=True)))
    assert [(row["user_id"], row["rank"], row["item"]) for row in rows] == [
        (wanted["user_id"], str(rank), item)
        for wanted in expected
        for rank, item in enumerate(wanted["items"], 1)
    ]
    scores = [score for wanted in expected for score in wanted["scores"]]
    assert [float(row["score"]) for row in rows] == pytest.approx(scores, abs=2e-5)
    assert b"\r" not in content


def test_parquet_has_lists(
    tiny_bundle: Path, histories: Path, tmp_path: Path, expected: list[dict[str, Any]]
) -> None:
    ranked(tiny_bundle, histories, tmp_path / "o.parquet")
    table = pl.read_parquet(tmp_path / "o.parquet")
    assert dict(table.schema) == {
        "user_id": pl.String,
        "items": pl.List(pl.String),
        "scores": pl.List(pl.Float32),
        "unknown": pl.Int64,
        "cold": pl.Boolean,
        "exact": pl.Boolean,
    }
    assert table["user_id"].to_list() == [user for user, _ in USERS]
    assert table["items"].to_list() == [wanted["items"] for wanted in expected]


@pytest.mark.parametrize("users", [[1, None, 3], [None, None, None]])
def test_parquet_takes_numbers_and_missing_users(
    users: list[int | None], tiny_bundle: Path, tmp_path: Path
) -> None:
    source = tmp_path / "h.ndjson"
    source.write_text("".join(json.dumps({"user_id": u, "history": []}) + "\n" for u in users))
    ranked(tiny_bundle, source, tmp_path / "o.parquet")
    column = pl.read_parquet(tmp_path / "o.parquet")["user_id"]
    assert column.to_list() == users
    assert column.dtype == (pl.Int64 if users[0] else pl.String)


@pytest.mark.parametrize("name", ["o.jsonl", "o.csv", "o.parquet"])
def test_no_history_gives_a_file_without_rankings(
    name: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "h.jsonl").touch()
    ranked(tiny_bundle, tmp_path / "h.jsonl", tmp_path / name)
    assert len(pl.read_parquet(tmp_path / name) if name == "o.parquet" else []) == 0


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="this system has no /dev/full")
@pytest.mark.parametrize("name", ["o", "o.jsonl", "o.jsonl.gz", "o.csv", "o.csv.gz", "o.parquet"])
def test_a_full_disk_is_named_with_the_file(
    name: str, tiny_bundle: Path, histories: Path, tmp_path: Path
) -> None:
    (tmp_path / name).symlink_to("/dev/full")
    result = call("rank", tiny_bundle, "--input", histories, "--output", tmp_path / name)
    assert result.exit_code == 1
    assert result.stderr == f"Error: {tmp_path / name}: No space left on device\n"


@pytest.mark.parametrize("name", ["o.txt", "o.json", "o.parquet.gz", "o.gz", "o.xlsx", "o.tsv"])
def test_another_suffix_is_refused(
    name: str, tiny_bundle: Path, histories: Path, tmp_path: Path
) -> None:
    result = call("rank", tiny_bundle, "--input", histories, "--output", tmp_path / name)
    assert result.exit_code == 4
    assert f"{name}: rankings are written as .jsonl" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["h.jsonl"]


@pytest.mark.parametrize(
    ("users", "name", "reason"),
    [
        (["a", None], "o.csv", "csv needs a user_id in every row"),
        (["a", 1], "o.parquet", "user_id has several types"),
        ([2**63], "o.parquet", "exceeds int64"),
        ([1.5], "o.jsonl", "line 1: user_id is 1.5; it is text or a whole number"),
        ([True], "o.csv", "line 1: user_id is True"),
        (["a", ["b"]], "o.parquet", r"line 2: user_id is \['b'\]"),
    ],
)
def test_a_user_that_a_format_can_not_hold_is_refused(
    users: list[Any], name: str, reason: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    source = tmp_path / "h.jsonl"
    source.write_text("".join(json.dumps({"user_id": u, "history": []}) + "\n" for u in users))
    result = call("rank", tiny_bundle, "--input", source, "--output", tmp_path / name)
    assert result.exit_code == 4
    assert reason.replace("\\", "") in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["h.jsonl"]


def test_parquet_without_polars_names_the_extra(
    tiny_bundle: Path, histories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    ranked(tiny_bundle, histories, tmp_path / "o.csv")
    result = call("rank", tiny_bundle, "--input", histories, "--output", tmp_path / "o.parquet")
    assert result.exit_code == 1
    assert "polars is not installed: pip install '.[train]' in " in result.stderr
    assert not (tmp_path / "o.parquet").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_rankings_go_into_a_pipe_as_json_lines(tiny_bundle: Path, histories: Path) -> None:
    result = call("rank", tiny_bundle, "--input", histories, "--output", "/dev/null")
    assert result.exit_code == 0


# Event logs of JSON lines.


@pytest.mark.parametrize("name", ["log.jsonl", "LOG.NDJSON"])
def test_an_event_log_of_json_lines_is_ranked_as_a_log(
    name: str, tiny_bundle: Path, log: Path, tmp_path: Path
) -> None:
    pl.read_parquet(log).write_ndjson(tmp_path / name)
    assert ranked(tiny_bundle, tmp_path / name, tmp_path / "a.jsonl") == ranked(
        tiny_bundle, log, tmp_path / "b.jsonl"
    )


def test_a_row_that_is_neither_event_nor_history_is_named(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "h.jsonl").write_text('{"user_id": 1, "itme_id": 2, "timestamp": 3}\n')
    result = call("rank", tiny_bundle, "--input", tmp_path / "h.jsonl")
    assert result.exit_code == 4
    assert 'h.jsonl, line 1: expected {"history": [...]}' in result.stderr


# Exact ids.

SPACED = ["A1", "A1 ", "  ", " B", "c d", "x\u2028", "y\t", "z", "p\rq"]


@pytest.fixture(scope="session")
def spaced_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with ids that spaces tell apart."""
    bundle = tmp_path_factory.mktemp("spaced") / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    manifest = Manifest.read(tiny_bundle)
    ids = sorted([*SPACED, *(f"i{n}" for n in range(manifest.items - len(SPACED)))])
    texts = [text.encode() for text in ids]
    (bundle / "items.utf8").write_bytes(b"".join(texts))
    np.cumsum([len(text) for text in texts]).astype("<i8").tofile(bundle / "items.ends.i64")
    Manifest(**{**vars(manifest), "files": describe_files(bundle)}).write(bundle)
    return bundle


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("item", SPACED)
def test_a_file_of_ids_is_exact(item: str, end: str, spaced_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "ids").write_bytes(f"{end}{item}{end}{end}".encode())
    asked = ["rank", spaced_bundle, "--history", "", "--json", "-k", 99]
    kept = call(*asked, "--candidates", tmp_path / "ids")
    assert json.loads(kept.stdout)["items"] == [item]
    left = call(*asked, "--exclude", tmp_path / "ids")
    shown = json.loads(left.stdout)["items"]
    assert item not in shown
    assert len(shown) == len(Ranker.load(spaced_bundle)) - 1
    assert kept.stderr == left.stderr == ""


@pytest.mark.parametrize(
    ("history", "items", "stderr"),
    [
        ("A1 ,A1", ["A1 ", "A1"], ""),
        (
            "c d, z",
            ["c d", "z"],
            "--history: 1 of 2 ids are read without the spaces around them, first ' z'",
        ),
        ("z\t,,y\t", ["z", "y\t"], "first 'z\\t'"),
        (" ", [], ""),
        ("  ,B", ["  ", "B"], ""),
    ],
)
def test_a_history_is_exact_and_spaces_that_no_id_has_are_dropped_with_a_note(
    history: str, items: list[str], stderr: str, spaced_bundle: Path
) -> None:
    result = call("rank", spaced_bundle, "--history", history, "--json")
    ranking = Ranker.load(spaced_bundle).rank(items)
    answer = json.loads(result.stdout)
    assert (answer["items"], answer["unknown"]) == (ranking.items, ranking.unknown)
    assert stderr in result.stderr
    assert bool(stderr) == bool(result.stderr)
