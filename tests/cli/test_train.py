"""``ranklet data``, ``train``, ``tune`` and ``evaluate``: options, messages, what is written."""

import errno
import json
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner, Result

from ranklet_cli.group import cli
from ranklet_cli.options import PRESET_NAMES
from ranklet_training.data.simulator import Simulation
from ranklet_training.runs.checkpoint import Run, locked
from ranklet_training.runs.presets import PRESETS

TINY = ["--set", "width=16", "--set", "max_length=20", "--set", "epochs=1"]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def ask(*arguments: object) -> Any:
    """Call with --json and read the one document on stdout."""
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_help_names_every_preset() -> None:
    assert tuple(PRESETS) == PRESET_NAMES
    assert ", ".join(PRESETS) in " ".join(call("train", "--help").stdout.split())


def test_synthetic_data_names_the_best_possible_hit_rate(tmp_path: Path) -> None:
    result = call("data", "synthetic", tmp_path)
    assert result.exit_code == 0
    assert "best HR@10 that any model can reach: 0." in result.stdout


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

    monkeypatch.setattr("ranklet_cli.evaluate.atomic_write", refuse)
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "features=mood"], "no feature column 'mood'"),
        (["--set", "features=training_events", "--items", "ITEMS"], "no feature can be called"),
        (["--preset", "seed"], "learns from ratings"),
    ],
)
@pytest.mark.parametrize("exists", [False, True])
def test_a_refused_training_leaves_nothing(
    arguments: list[str], message: str, exists: bool, world: Simulation, tmp_path: Path
) -> None:
    log, items = tmp_path / "log.parquet", tmp_path / "items.parquet"
    world.events.drop("rating").write_parquet(log)
    world.items.write_parquet(items)
    out = tmp_path / "new" / "run"
    if exists:
        out.mkdir(parents=True)
    before = set(tmp_path.rglob("*"))
    given = [str(items) if word == "ITEMS" else word for word in arguments]
    result = call("train", log, "--out", out, *TINY, *given)
    assert result.exit_code in (4, 6)
    assert message in result.stderr
    assert set(tmp_path.rglob("*")) == before


def test_the_settings_that_are_told_are_those_that_are_used(log: Path, tmp_path: Path) -> None:
    result = call("train", log, "--out", tmp_path / "run", *TINY, "--json")
    assert result.exit_code == 0
    used = {
        k: v for part in json.loads(result.stdout)["settings"].values() for k, v in part.items()
    }
    from_data, chosen = (
        line for line in result.stderr.splitlines() if "width=" in line or "heads=" in line
    )
    assert chosen == "chosen: width=16, max_length=20, epochs=1"
    told = dict(pair.split("=") for pair in from_data.split(": ")[1].split(", "))
    assert not {"width", "max_length", "epochs"} & set(told)
    assert {name: str(used[name]) for name in told} == told


def test_settings_come_from_a_toml_file_and_single_ones_win(log: Path, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('width = 24\nmax_length = 10\nepochs = 1\nsplit = "time"\n')
    trained = ask(
        "train", log, "--out", tmp_path / "run", "--config", file, "--set", "max_length=12"
    )
    assert trained["settings"]["model"]["width"] == 24
    assert trained["settings"]["model"]["max_length"] == 12
    assert trained["settings"]["train"]["split"] == "time"
