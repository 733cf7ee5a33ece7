"""``ranklet train`` and ``evaluate`` on a log that is sorted in files."""

import json
from pathlib import Path
from typing import Any

import pytest

from commands import ask, call, run
from ranklet.files.atomic import sha256
from ranklet_training.data import large_logs
from ranklet_training.runs import train as training

SETTINGS = ["--set", "width=8", "--set", "max_length=10", "--set", "epochs=2"]
MADE = ("best.safetensors", "catalogue.parquet", "questions.safetensors")


@pytest.fixture
def _large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_logs, "LARGE_BYTES", 0)
    monkeypatch.setattr(large_logs, "PART_ROWS", 500)


def outcome(path: Path) -> Any:
    """Return the weights and facts of a run."""
    facts = json.loads((path / "config.json").read_text())["data"]
    return facts, {name: sha256(path / name) for name in MADE}


@pytest.fixture(scope="module")
def small(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the log in memory."""
    path = tmp_path_factory.mktemp("runs") / "small"
    run("train", log, "--items", log.with_name("items.parquet"), "--out", path, *SETTINGS)
    return path


@pytest.mark.usefixtures("_large")
def test_a_log_sorted_in_files_trains_to_the_same_bits(
    small: Path, log: Path, tmp_path: Path
) -> None:
    items = log.with_name("items.parquet")
    result = run("train", log, "--items", items, "--out", tmp_path / "run", *SETTINGS)
    files = tmp_path / "run" / "sorted_events"
    assert f"{log} is sorted in files of {files}, since" in result.stderr
    assert outcome(tmp_path / "run") == outcome(small)
    assert not files.exists()


@pytest.mark.parametrize("name", ["events", "sorted_events"])
def test_a_log_inside_the_run_folder_stays(log: Path, tmp_path: Path, name: str) -> None:
    part = tmp_path / name / "part.parquet"
    part.parent.mkdir()
    part.write_bytes(log.read_bytes())
    done = call("train", tmp_path / name, "--out", tmp_path, *SETTINGS)
    assert done.exit_code == (6 if name == "events" else 0)
    assert part.read_bytes() == log.read_bytes()


@pytest.mark.usefixtures("_large")
def test_a_stopped_training_resumes_on_the_sorted_files(
    small: Path, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, items = tmp_path / "run", log.with_name("items.parquet")
    with monkeypatch.context() as patch:
        patch.setattr(training, "_validate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert call("train", log, "--items", items, "--out", path, *SETTINGS).exit_code == 130
    assert (path / "sorted_events" / "log").is_dir()
    with monkeypatch.context() as patch:
        patch.setattr(large_logs, "_sort_log", lambda *_: pytest.fail("sorted again"))
        run("train", log, "--out", path, "--resume")
    assert outcome(path) == outcome(small)
    assert not (path / "sorted_events").exists()


@pytest.mark.usefixtures("_large")
def test_a_large_log_that_can_not_be_used_leaves_no_run(log: Path, tmp_path: Path) -> None:
    result = call("train", log, "--out", tmp_path / "new" / "run", "--user-column", "nobody")
    assert result.exit_code == 4
    assert "column 'nobody' is missing" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_large")
def test_evaluations_of_a_large_log_have_the_same_figures(
    small: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = ask("evaluate", small, log)
    monkeypatch.undo()
    assert large == ask("evaluate", small, log)


def test_an_address_in_a_store_is_read_by_parts(small: Path, log: Path, tmp_path: Path) -> None:
    items, address = log.with_name("items.parquet"), f"file://{log}"
    run("train", address, "--items", items, "--out", tmp_path / "run", *SETTINGS)
    assert outcome(tmp_path / "run") == outcome(small)
    result = call("train", f"{address}.none", "--out", tmp_path / "none")
    assert result.exit_code == 4
    assert f"Error: {address}.none can't be read" in result.stderr
