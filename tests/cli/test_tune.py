"""``ranklet tune``: one document, the command that trains the best, and wrong options."""

import json
from pathlib import Path

import pytest

from commands import call
from ranklet_training.data.simulator import Simulation

SMALL = {"width": 8, "blocks": 1, "max_length": 20, "dropout": 0.2, "epochs": 2}
TINY = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
SEARCH = ["--search", "dropout=0.1..0.5", "--search", "width=4,8"]


@pytest.fixture(scope="module")
def log(world: Simulation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "events.parquet"
    world.events.rename({"user_id": "who"}).write_parquet(path)
    return path


def test_tune_prints_one_document_whose_next_command_trains_the_best(
    log: Path, tmp_path: Path
) -> None:
    reading = ["--user-column", "who"]
    study = ["tune", log, "--out", tmp_path / "study", "--trials", 2, *TINY, *SEARCH, *reading]
    result = call(*study, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [trial["number"] for trial in found["trials"]] == [0, 1]
    assert found["base"] == found["trials"][0]
    assert (tmp_path / "study" / "study.png").exists()
    words = found["next"].replace("RUN", str(tmp_path / "run")).split()
    trained = call(*words[1:], "--json")
    assert trained.exit_code == 0, trained.output
    again = json.loads(trained.stdout)
    assert again["settings"] == found["settings"]
    assert again["validation"]["NDCG@10"] == pytest.approx(found["best"]["value"], abs=1e-5)
    evaluated = call("evaluate", found["run"], log)  # the trial's run knows how its log was read
    assert evaluated.exit_code == 0, evaluated.output
    table = call(*study)
    assert table.exit_code == 0, table.output
    lines = table.stdout.splitlines()
    assert lines[0].split() == ["trial", "NDCG@10", "dropout", "width"]
    assert f"{found['best']['value']:.4f}" in lines[1]
    assert lines[-1] == f"next: {found['next']}"


def test_resume_needs_a_study(log: Path, tmp_path: Path) -> None:
    study = ["tune", log, "--out", tmp_path / "study", "--user-column", "who", *TINY, *SEARCH]
    result = call(*study, "--resume", "--trials", 1)
    assert result.exit_code == 6
    assert "study holds no study: start it without --resume" in result.stderr
    assert list(tmp_path.iterdir()) == []
    assert call(*study, "--trials", 1).exit_code == 0
    assert call(*study, "--trials", 1, "--resume").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--search", "width"], "--search takes KEY=SPEC"),
        (["--search", "widht=4,8"], "no setting is called 'widht'"),
        (["--preset", "huge"], "there is no preset 'huge'"),
    ],
)
def test_wrong_options_are_named_and_nothing_is_written(
    arguments: list[str], message: str, log: Path, tmp_path: Path
) -> None:
    result = call("tune", log, "--out", tmp_path / "study", "--user-column", "who", *arguments)
    assert result.exit_code == 4
    assert message in result.stderr
    assert not (tmp_path / "study").exists()
