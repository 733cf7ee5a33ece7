"""``ranklet rank``: one history or a file of them, and the messages about bad input."""

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner

from commands import ask, call
from ranklet.bundle.manifest import Manifest
from ranklet_cli.group import cli
from ranklet_training.data.simulator import Simulation

TINY = ["--set", "width=16", "--set", "max_length=20", "--set", "epochs=1"]
GOOD = b'{"history": []}\n'


def test_rank_prints_titles_scores_and_latency(tiny_bundle: Path) -> None:
    result = call("rank", tiny_bundle, "--history", "", "-k", 3)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 4
    assert "no known item, so these are the most popular" in result.stdout
    assert " ms on cpu" in result.stdout


def test_rank_reads_candidates_and_exclusions(tiny_bundle: Path, tmp_path: Path) -> None:
    best = ask("rank", tiny_bundle, "--history", "", "-k", 4)["items"]
    (tmp_path / "wanted").write_text("\n".join(best))
    (tmp_path / "unwanted").write_text(best[0] + "\n")
    options = ["--candidates", tmp_path / "wanted", "--exclude", tmp_path / "unwanted"]
    ranked = ask("rank", tiny_bundle, "--history", "", *options)
    assert ranked["items"] == best[1:]


def test_rank_of_an_event_log_equals_rank_of_its_histories(
    tiny_bundle: Path, log: Path, world: Simulation, tmp_path: Path
) -> None:
    histories = world.events.sort("user_id", "timestamp", maintain_order=True)
    lines = [
        json.dumps({"user_id": user, "history": items})
        for user, items in histories.group_by("user_id", maintain_order=True)
        .agg("item_id")
        .iter_rows()
    ]
    (tmp_path / "h.jsonl").write_text("\n".join(lines))
    for source, name in ((log, "a"), (tmp_path / "h.jsonl", "b")):
        report = ask("rank", tiny_bundle, "--input", source, "--output", tmp_path / name)
        assert report["histories"] == len(lines)
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()


def test_a_bad_row_is_named_and_leaves_no_output(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "h.jsonl").write_text('{"history": []}\n{"histroy": []}\n')
    result = call(
        "rank", tiny_bundle, "--input", tmp_path / "h.jsonl", "--output", tmp_path / "out"
    )
    assert result.exit_code == 4
    assert "line 2" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["h.jsonl"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("h.jsonl", GOOD + b'{"history": ["\xe9"]}', "h.jsonl, line 2 is not UTF-8"),
        (
            "h.jsonl",
            GOOD + b'{"history": [], "user_id": "\\ud800"}',
            "h.jsonl, line 2 holds '\\ud800'",
        ),
        ("h.jsonl", GOOD + b'{"history": ' + b"[" * 99_999, "h.jsonl, line 2 is nested too deeply"),
        ("h.jsonl.gz", GOOD, "h.jsonl.gz can't be read: Not a gzipped file"),
        ("h.jsonl.gz", gzip.compress(GOOD * 9999)[:-9], "Compressed file ended before"),
        ("h.csv.gz", b"\x1f\x8b damaged", "h.csv.gz can't be read"),
        ("h.txt", b"x", "h.txt has an unknown type"),
    ],
    ids=["not UTF-8", "half a pair", "deep", "not gzip", "cut off", "damaged csv", "type"],
)
def test_a_file_that_can_not_be_ranked_is_one_line_and_no_output(
    name: str, content: bytes, words: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    result = call("rank", tiny_bundle, "--input", tmp_path / name, "--output", tmp_path / "out")
    assert result.exit_code == 4
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_event_log_on_stdin_is_named(tiny_bundle: Path) -> None:
    line = '{"user_id": "u1", "item_id": "i01", "timestamp": 1}\n'
    command = ["rank", str(tiny_bundle), "--input", "-"]
    result = CliRunner().invoke(cli, command, input=line)
    assert result.exit_code == 4
    words = 'expected {"history": [...]}; pass an event log as a file of its own\n'
    assert result.stderr == f"Error: stdin, line 1: {words}"


def test_a_dash_as_output_is_stdout(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "h.jsonl").write_bytes(GOOD)
    result = call("rank", tiny_bundle, "--input", "h.jsonl", "--output", "-")
    assert json.loads(result.stdout)["cold"]
    assert [path.name for path in tmp_path.iterdir()] == ["h.jsonl"]


def test_histories_may_begin_with_a_byte_order_mark(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "H.JSONL").write_bytes(b"\xef\xbb\xbf" + GOOD)
    report = ask("rank", tiny_bundle, "--input", tmp_path / "H.JSONL", "--output", tmp_path / "out")
    assert report["histories"] == 1


def test_a_log_is_ranked_the_way_the_bundle_read_its_own(world: Simulation, tmp_path: Path) -> None:
    log, run, bundle = tmp_path / "log.csv", tmp_path / "run", tmp_path / "bundle"
    world.events.select(
        person=pl.col("user_id").str.replace("u", "00"),
        item_id=pl.col("item_id").str.replace("i0*", "") + "5",
        timestamp="timestamp",
        stars="rating",
    ).write_csv(log)
    reading = ["--user-column", "person", "--rating-column", "stars", "--id-type", "string"]
    ask("train", log, "--out", run, *TINY, *reading)
    ask("export", run, bundle, "--precision", "fp32")
    pl.read_csv(log, infer_schema=False).drop("stars").write_csv(log)  # ranking needs no ratings

    def rank() -> list[Any]:
        ask("rank", bundle, "--input", log, "--output", tmp_path / "out")
        return [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]

    ranked = rank()
    assert len(ranked) == world.events["user_id"].n_unique()
    assert {row["user_id"][:2] for row in ranked} == {"00"}
    assert not any(row["unknown"] or row["cold"] for row in ranked)

    # Nor do ids need to be said to be text: those of the bundle are.
    manifest = Manifest.read(bundle)
    said = {**manifest.data, "reading": {**manifest.data["reading"], "id_type": "auto"}}
    Manifest(**{**vars(manifest), "data": said}).write(bundle)
    assert rank() == ranked


def test_ids_that_the_catalogue_lacks_are_counted_and_the_first_is_named(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    best = ask("rank", tiny_bundle, "--history", "", "-k", 3)["items"]
    file = tmp_path / "ids"
    file.write_bytes("\ufeff{}\r\n\r\n {} \r\n{}\t\r\nno\u2028\r\n\r\nnone".format(*best).encode())
    asked = ["rank", tiny_bundle, "--history", "", "--json"]
    kept = call(*asked, "--candidates", file)
    assert json.loads(kept.stdout)["items"] == best
    assert kept.stderr == (
        f"{file}: 2 of 5 ids are read without the spaces around them, first ' {best[1]} '\n"
        f"{file}: the catalogue lacks 2 of 5 ids, first 'no\\u2028'\n"
    )
    left = call(*asked, "--exclude", file)
    assert not set(best) & set(json.loads(left.stdout)["items"])
    assert left.stderr == kept.stderr
    file.write_text("\n".join(best))
    assert call(*asked, "--candidates", file).stderr == ""
    file.write_bytes(b"\xe9")
    bad = call(*asked, "--candidates", file)
    assert bad.exit_code == 4
    assert f"{file} is not UTF-8" in bad.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either --history or --input"),
        (["--history", "1", "--input", __file__], "either --history or --input"),
        (["--history", "1", "--output", "out"], "--output belongs to --input"),
        (["--input", __file__, "--now", "1"], "are keys of the rows"),
        (["--input", __file__, "--json"], "--json with --input needs --output"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    arguments: list[str], message: str, tiny_bundle: Path
) -> None:
    result = call("rank", tiny_bundle, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
