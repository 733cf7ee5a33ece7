"""``ranklet data``, ``train``, ``tune`` and ``evaluate``: options, messages, what is written."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from commands import ask, call
from ranklet_cli.options import PRESET_NAMES
from ranklet_training.data.simulator import Simulation, simulate
from ranklet_training.runs.checkpoint import Run, locked, read_tensors, write_tensors
from ranklet_training.runs.presets import PRESETS

ROOT = Path(__file__).parents[2]
TINY = ["--set", "width=16", "--set", "max_length=20", "--set", "epochs=1"]


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


@pytest.mark.parametrize(("chosen", "policy"), [(None, "passive"), ("active", "active")])
def test_threads_of_the_command_line_wait_without_spinning_unless_the_user_wants_it(
    chosen: str | None, policy: str
) -> None:
    code = """
import os, ranklet_cli.group
from ranklet_cli.main import main
ranklet_cli.group.cli = lambda: print(os.environ["OMP_WAIT_POLICY"])
main()
"""
    others = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment = others | ({"OMP_WAIT_POLICY": chosen} if chosen else {})
    shown = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == policy


@pytest.mark.slow
def test_a_training_beside_other_work_on_all_cores_keeps_its_share(tmp_path: Path) -> None:
    events = tmp_path / "events.parquet"
    simulate(users=300, mean_length=20).events.write_parquet(events)
    command = [sys.executable, ROOT / "benchmarks" / "busy.py", events, "--turns", "1"]
    threads = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    printed = subprocess.run(command, env=threads, capture_output=True, text=True, check=True)
    ratio = float(printed.stdout.split()[-1])
    assert ratio > 0.15, printed.stdout  # fair is 0.5; threads that spin while they wait have 0.02


# All events.


@pytest.fixture(scope="module")
def measured(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with features and titles, and its figures."""
    run = tmp_path_factory.mktemp("measured") / "run"
    options = [
        f"--set={pair}" for pair in ("epochs=4", "features=genres", "split=time", "blocks=0")
    ]
    items = log.with_name("items.parquet")
    assert call("train", log, "--items", items, "--out", run, *TINY, *options).exit_code == 0
    assert call("evaluate", run, log).exit_code == 0
    return run


def facts_of(run: Path) -> Any:
    return json.loads((run / "config.json").read_text())


def test_final_trains_on_all_events_as_the_run_was_trained(
    measured: Path, log: Path, tmp_path: Path
) -> None:
    final, bundle = tmp_path / "final", tmp_path / "bundle"
    report = ask("train", log, "--out", final, "--final", measured)
    ours, theirs = facts_of(final), facts_of(measured)
    best = ask("train", log, "--out", measured, "--resume")["best_epoch"]
    assert (report["epochs"], report["best_epoch"]) == (best + 1, best)
    assert report["validation"] == {}
    changed = {"split": "none", "stop_after": best + 1, "kinds": "ignore"}
    assert ours["train"] == theirs["train"] | changed
    assert ours["model"] == theirs["model"]
    events = pl.read_parquet(log)
    counts = pl.read_parquet(final / "catalogue.parquet")
    assert counts["training_events"].sum() == len(events)
    assert len(counts) == events["item_id"].n_unique()
    assert counts.columns == pl.read_parquet(measured / "catalogue.parquet").columns
    assert ours["data"]["earlier"]["digest"] == theirs["data"]["digest"]
    assert ours["data"]["earlier"]["epochs"] == best + 1
    assert ours["data"]["seen"] == theirs["data"]["seen"]
    figures = [(path / "evaluation.json").read_bytes() for path in (final, measured)]
    assert figures[0] == figures[1]
    assert call("export", final, bundle).exit_code == 0
    card = " ".join((bundle / "README.md").read_text().split())
    assert "Held-out figures of the training on the earlier split (time: " in card
    assert "this bundle was trained on all events afterwards" in card
    table = json.loads(figures[0])
    assert f"{table['rows'][0]['served']['NDCG@10']:.4f}" in card
    assert "For production" not in card
    assert "histories: " in card  # the gate, on drawn histories


def test_the_card_of_a_measured_bundle_says_how_to_train_on_all_events(
    measured: Path, tmp_path: Path
) -> None:
    assert call("export", measured, tmp_path / "bundle").exit_code == 0
    card = " ".join((tmp_path / "bundle" / "README.md").read_text().split())
    assert "`ranklet train EVENTS --out FINAL --final RUN`" in card


def test_a_training_on_all_events_alone_has_no_figures(log: Path, tmp_path: Path) -> None:
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    options = [f"--set={pair}" for pair in ("epochs=2", "split=none", "blocks=0")]
    trained = call("train", log, "--out", run, *TINY, *options)
    assert trained.exit_code == 0, trained.output
    assert "2 epochs on all events, none held out" in trained.stdout
    result = call("evaluate", run, log)
    assert result.exit_code == 4
    assert "run was trained on all events, so that none is held out" in result.stderr
    assert "evaluate the run that it was made from, or train with another split" in result.stderr
    assert call("export", run, bundle).exit_code == 0
    card = (bundle / "README.md").read_text()
    assert "No held-out figures." in card
    assert " drawn histories: " in card
    assert call("evaluate", bundle, log).exit_code == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--final", "RUN", "--set", "width=8"], "--set does not go with --final"),
        (["--final", "RUN", "--preset", "small"], "--preset does not go with --final"),
        (["--final", "RUN", "--id-type", "string"], "--id-type does not go with --final"),
        (["--final", "RUN", "--resume"], "--final does not go with --resume"),
    ],
)
def test_final_takes_its_settings_from_the_run(
    arguments: list[str], message: str, measured: Path, log: Path, tmp_path: Path
) -> None:
    arguments = [str(measured) if part == "RUN" else part for part in arguments]
    result = call("train", log, "--out", tmp_path / "final", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "final").exists()


def test_final_refuses_a_run_that_has_nothing_to_give(
    measured: Path, log: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    assert call("train", log, "--out", whole, *TINY, "--set", "split=none").exit_code == 0
    again = call("train", log, "--out", tmp_path / "final", "--final", whole)
    assert again.exit_code == 6
    assert "was itself trained on all events" in again.stderr
    half = shutil.copytree(measured, tmp_path / "half")
    tensors, progress = read_tensors(half / "last.safetensors")
    write_tensors(half / "last.safetensors", tensors, {**progress, "done": False})
    unfinished = call("train", log, "--out", tmp_path / "final", "--final", half)
    assert unfinished.exit_code == 6
    assert f"the training of {half} is not finished: resume it" in unfinished.stderr
