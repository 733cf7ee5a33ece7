"""The command line: exit status, messages, and one JSON document on stdout."""

import errno
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner, Result

from ranklet.bundle import Manifest
from ranklet_cli import cli
from ranklet_cli.training import PRESET_NAMES
from ranklet_training.data.simulator import Simulation
from ranklet_training.runs.checkpoint import Run, locked
from ranklet_training.runs.presets import PRESETS

COMMANDS = [
    *("data", "train", "tune", "evaluate", "compare"),
    *("export", "verify", "inspect", "rank", "bench"),
]
TINY = ["--set", "width=16", "--set", "max_length=20", "--set", "epochs=1"]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def ask(*arguments: object) -> Any:
    """Call with --json and read the one document on stdout."""
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def log(world: Simulation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    world.events.write_parquet(folder / "events.parquet")
    world.items.write_parquet(folder / "items.parquet")
    return folder / "events.parquet"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str) -> None:
    result = call(command, "--help")
    assert result.exit_code == 0
    assert "Example" in result.stdout
    assert "--json" in result.stdout


def test_every_command_is_checked() -> None:
    assert sorted(cli.commands) == sorted(COMMANDS)


def test_help_names_every_preset() -> None:
    assert tuple(PRESETS) == PRESET_NAMES
    assert ", ".join(PRESETS) in " ".join(call("train", "--help").stdout.split())


def test_help_works_without_torch_and_loads_none_of_it() -> None:
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom ranklet_cli import cli\n"
        "for c in cli.commands: assert CliRunner().invoke(cli, [c, '--help']).exit_code == 0\n"
        "assert not {'torch', 'polars', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_package_is_named_with_the_extra_to_install(log: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nsys.modules['polars'] = None\n"
        f"sys.argv = ['ranklet', 'train', {str(log)!r}, '--out', {str(tmp_path / 'run')!r}]\n"
        "from ranklet_cli.main import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "polars is not installed: pip install 'ranklet[train]'" in done.stderr


def test_synthetic_data_names_the_best_possible_hit_rate(tmp_path: Path) -> None:
    result = call("data", "synthetic", tmp_path)
    assert result.exit_code == 0
    assert "best HR@10 that any model can reach: 0." in result.stdout


def test_train_evaluate_export_rank(log: Path, tmp_path: Path) -> None:
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    items = log.with_name("items.parquet")
    trained = ask("train", log, "--items", items, "--out", run, *TINY)
    assert trained["settings"]["model"]["width"] == 16
    judged = ask("evaluate", run, log)
    assert json.loads((run / "evaluation.json").read_text()) == judged
    assert ask("export", run, bundle)["opset"] == 23
    ranked = ask("evaluate", bundle, log)
    for a, b in zip(judged["rows"], ranked["rows"], strict=True):
        assert a["masked"] == pytest.approx(b["masked"], abs=5e-5)
        assert a["unmasked"] == pytest.approx(b["unmasked"], abs=5e-5)
    manifest = ask("inspect", bundle)
    assert manifest["quality"] == judged
    card = (bundle / "README.md").read_text()
    assert f"{judged['rows'][0]['masked']['NDCG@10']:.4f}" in card
    assert call("inspect", bundle).exit_code == 0


def test_a_run_that_was_started_from_python_is_evaluated(tiny_bundle: Path, log: Path) -> None:
    assert call("evaluate", tiny_bundle, log).exit_code == 0


def test_a_finished_run_is_not_trained_over(tiny_run: Run, log: Path) -> None:
    result = call("train", log, "--out", tiny_run.path)
    assert result.exit_code == 6
    assert "already holds a run" in result.stderr


def test_resume_with_another_setting_names_both_values(log: Path, tmp_path: Path) -> None:
    assert call("train", log, "--out", tmp_path / "run", *TINY).exit_code == 0
    again = call("train", log, "--out", tmp_path / "run", "--resume", "--set", "width=32")
    assert again.exit_code == 6
    assert "width was 16, now 32" in again.stderr
    assert call("train", log, "--out", tmp_path / "run", "--resume").exit_code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--items", __file__],
        ["--user-column", "person"],
        ["--rating-column", "rating"],  # the default, but said
        ["--id-type", "string"],
        ["--duplicates", "exact"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_resume_refuses_options_that_the_run_decides(
    arguments: list[str], log: Path, tmp_path: Path
) -> None:
    result = call("train", log, "--out", tmp_path, "--resume", *arguments)
    assert result.exit_code == 2
    assert f"{arguments[0]} does not go with --resume" in result.stderr


@pytest.mark.parametrize("resume", [[], ["--resume"]], ids=["start", "resume"])
def test_one_process_at_a_time_trains_a_run(resume: list[str], log: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    if resume:
        assert call("train", log, "--out", run, *TINY).exit_code == 0
    with locked(run / "run.lock", "taken"):
        result = call("train", log, "--out", run, *TINY, *resume)
    assert result.exit_code == 6
    assert f"another process trains {run}" in result.stderr
    assert call("train", log, "--out", run, *TINY, *resume).exit_code == 0


def test_a_folder_of_other_files_gets_no_run(log: Path) -> None:
    before = sorted(log.parent.iterdir())
    result = call("train", log, "--out", log.parent)
    assert result.exit_code == 6
    assert "is not empty and holds no run" in result.stderr
    assert sorted(log.parent.iterdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [["train", "LOG", "--out", ""], ["tune", "LOG", "--out", ""], ["data", "synthetic", ""]],
)
def test_an_empty_name_is_no_folder_to_write_into(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.exit_code == 2
    assert "the name is empty" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_is_missed_before_a_folder_is_made(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    result = call("train", log, "--out", tmp_path / "run", "--tensorboard")
    assert result.exit_code == 4
    assert "pip install tensorboard" in result.stderr
    assert not (tmp_path / "run").exists()


def test_items_are_found_by_the_column_of_the_log_and_counted(
    world: Simulation, tmp_path: Path
) -> None:
    log, items, run = tmp_path / "log.csv", tmp_path / "items.csv", tmp_path / "run"
    world.events.rename({"item_id": "film"}).write_csv(log)
    names = world.items.select(film="item_id", title=pl.int_range(pl.len()))
    names[1:].write_csv(items)
    arguments = ["train", log, "--items", items, "--item-column", "film", "--out", run, *TINY]
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    assert f"{items} has no row for 1 of " in result.stderr
    assert call("export", run, tmp_path / "bundle", "--precision", "fp32").exit_code == 0
    names.with_columns(film=pl.format("x{}", "title")).write_csv(items)
    lost = call(*arguments, "--out", tmp_path / "other")
    assert lost.exit_code == 4
    assert f"has a row in {items}" in lost.stderr
    assert not (tmp_path / "other").exists()


def test_a_table_that_can_not_be_kept_is_printed(
    tiny_run: Run, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, _: bytes) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("ranklet.files.atomic.atomic_write", refuse)
    result = call("evaluate", tiny_run.path, log, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["rows"]
    assert f"not kept in {tiny_run.path / 'evaluation.json'}: Permission denied" in result.stderr


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError("Unable to allocate 9 TiB"), "not enough memory: Unable to allocate 9 TiB"),
        (MemoryError(), "not enough memory: try smaller settings"),
        (
            RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
            "not enough memory: you tried 9 bytes",
        ),
    ],
    ids=["numpy", "python", "torch"],
)
def test_memory_that_is_not_there_is_one_line(
    error: Exception, message: str, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr("ranklet_training.runs.train.train", fail)
    result = call("train", log, "--out", tmp_path / "run", *TINY)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == f"Error: {message}"


@pytest.mark.parametrize("command", ["train", "tune"])
def test_an_origin_that_is_not_utf_8_is_kept_all_the_same(
    command: str, world: Simulation, tmp_path: Path
) -> None:
    world.events.write_parquet(tmp_path / "events.parquet")
    (tmp_path / "SOURCE.md").write_bytes("von José".encode("latin-1"))
    options = ["--trials", 1, "--search", "width=16,8"] if command == "tune" else []
    report = ask(command, tmp_path / "events.parquet", "--out", tmp_path / "out", *TINY, *options)
    config = json.loads((Path(report["run"]) / "config.json").read_text())
    assert config["data"]["source"] == "von Jos\ufffd"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "widht=3"], "no setting is called 'widht'"),
        (["--set", "width"], "--set takes KEY=VALUE"),
        (["--set", "width=x"], "width must be int, got 'x'"),
        (["--set", "dropout=1"], r"dropout must be in \[0, 1\), got 1.0"),
        (["--preset", "huge"], "there is no preset 'huge'"),
        (["--user-column", "person"], "person"),
    ],
)
def test_bad_settings_are_named(
    arguments: list[str], message: str, log: Path, tmp_path: Path
) -> None:
    result = call("train", log, "--out", tmp_path / "run", *arguments)
    assert result.exit_code == 4
    assert message.replace("\\", "") in result.stderr
    assert not (tmp_path / "run").exists()


def test_settings_come_from_a_toml_file_and_single_ones_win(log: Path, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('width = 24\nmax_length = 10\nepochs = 1\nsplit = "time"\n')
    trained = ask(
        "train", log, "--out", tmp_path / "run", "--config", file, "--set", "max_length=12"
    )
    assert trained["settings"]["model"]["width"] == 24
    assert trained["settings"]["model"]["max_length"] == 12
    assert trained["settings"]["train"]["split"] == "time"


def test_rank_prints_titles_scores_and_latency(tiny_bundle: Path) -> None:
    result = call("rank", tiny_bundle, "--history", "", "-k", 3)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 4
    assert "no known event: these are popular" in result.stdout
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


GOOD = b'{"history": []}\n'


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
        ("h.txt", b"x", "h.txt has an unknown type; pass .jsonl"),
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
    assert kept.stderr == f"{file}: the catalogue lacks 2 of 5 ids, first 'no'\n"
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
    ("command", "name", "reason"),
    [
        ("rank", "nowhere/x", "No such file or directory"),
        ("rank", "file/x", "Not a directory"),
        ("export", "file/x", "Not a directory"),
    ],
)
def test_what_can_not_be_written_is_one_line_with_path_and_reason(
    command: str, name: str, reason: str, tiny_run: Run, tiny_bundle: Path, tmp_path: Path
) -> None:
    source, target = tmp_path / "h.jsonl", tmp_path / name
    (tmp_path / "file").write_bytes(GOOD)
    source.write_bytes(GOOD)
    arguments = {
        "rank": [tiny_bundle, "--input", source, "--output", target],
        "export": [tiny_run.path, target],
    }
    result = call(command, *arguments[command])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == f"Error: {target}: {reason}"


@pytest.mark.parametrize("arguments", [[], ["--history", "1", "--input", __file__]])
def test_rank_takes_one_history_or_a_file(arguments: list[str], tiny_bundle: Path) -> None:
    result = call("rank", tiny_bundle, *arguments)
    assert result.exit_code == 2
    assert "either --history or --input" in result.stderr


def test_output_belongs_to_input(tiny_bundle: Path, tmp_path: Path) -> None:
    result = call("rank", tiny_bundle, "--history", "1", "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "--output belongs to --input" in result.stderr


def test_verify_refuses_changed_golden_answers(tiny_bundle: Path, tmp_path: Path) -> None:
    import shutil

    from ranklet.bundle import Manifest, describe_files

    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    assert ask("verify", bundle)["golden"] > 0
    golden = json.loads((bundle / "golden.json").read_text())
    golden[0]["items"][0], golden[0]["items"][-1] = golden[0]["items"][-1], golden[0]["items"][0]
    (bundle / "golden.json").write_text(json.dumps(golden))
    manifest = Manifest.read(tiny_bundle)
    Manifest(**{**vars(manifest), "files": describe_files(bundle)}).write(bundle)
    result = call("verify", bundle)
    assert result.exit_code == 3
    assert "golden answer 0 differs" in result.stderr


def test_verify_asks_for_kept_users_too(tiny_bundle: Path, tmp_path: Path) -> None:
    import shutil

    import onnx

    from ranklet.bundle import Manifest, describe_files

    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    graph = onnx.load(bundle / "append.onnx", load_external_data=False)
    bias = next(t for t in graph.graph.initializer if t.name == "model.norm.bias")
    changed = onnx.numpy_helper.to_array(bias) + 0.1
    bias.CopyFrom(onnx.numpy_helper.from_array(changed, bias.name))
    (bundle / "append.onnx").write_bytes(graph.SerializeToString())
    manifest = Manifest.read(tiny_bundle)
    Manifest(**{**vars(manifest), "files": describe_files(bundle)}).write(bundle)
    result = call("verify", bundle)
    assert result.exit_code == 3
    assert "of a kept user differs on this machine" in result.stderr


def test_a_folder_that_is_no_bundle_ends_with_status_3(tmp_path: Path) -> None:
    result = call("rank", tmp_path, "--history", "1")
    assert result.exit_code == 3
    assert "is not a bundle" in result.stderr


def test_bench_writes_a_table_and_a_document(tiny_bundle: Path) -> None:
    report = ask("bench", tiny_bundle, "--length", "5", "--runs", 100)
    assert report["measurements"][0]["length"] == 5
