"""``evaluate`` and ``compare`` over newer logs, and of models whose catalogues differ."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from commands import ask, call, run
from ranklet import Ranker
from ranklet_training.data.simulator import simulate

TINY = ["--preset", "zero-block", "--set=width=16", "--set=max_length=20", "--set=epochs=1"]
FOUR_DIGITS = 5e-5


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with new items in every tenth of it, and the ids 0, 1, 2, ..."""
    events = simulate(users=200, items=50, clusters=4, mean_length=14, seed=4).events
    tenth = pl.int_range(pl.len()) * 10 // pl.len()
    number = pl.col("item_id").str.slice(1).cast(pl.Int64)
    item = pl.when((number % 3 == 0) & (number % 10 < tenth)).then(number + 50).otherwise(number)
    path = tmp_path_factory.mktemp("logs") / "newer.parquet"
    events.with_columns(item_id=item).write_parquet(path)
    return path


@pytest.fixture(scope="module")
def older(newer: Path) -> Path:
    """The first seven tenths of the log."""
    events = pl.read_parquet(newer)
    events.head(len(events) * 7 // 10).write_parquet(newer.with_name("older.parquet"))
    return newer.with_name("older.parquet")


@pytest.fixture(scope="module")
def models(newer: Path, older: Path) -> dict[str, Path]:
    """A bundle of the older log and a run of the newer one, split by time."""
    folder = newer.parent
    for name, log in (("old", older), ("new", newer)):
        run("train", log, "--out", folder / name, *TINY, "--set=split=time")
    run("export", folder / "old", folder / "old-bundle", "--precision", "fp32")
    run("export", folder / "new", folder / "new-bundle", "--precision", "fp32")
    return {name: folder / name for name in ("old", "new", "old-bundle", "new-bundle")}


def questions(log: Path, since: int) -> list[tuple[list[int], int]]:
    """Return history and answer of the first event of each user since an instant."""
    asked = []
    events = pl.read_parquet(log).sort("user_id", "timestamp", maintain_order=True)
    for _, user in events.group_by("user_id", maintain_order=True):
        later = user.filter(pl.col("timestamp") >= since)
        if len(later):
            history = user.filter(pl.col("timestamp") < later["timestamp"][0])
            asked.append((history["item_id"].to_list(), later["item_id"][0]))
    return [(history, answer) for history, answer in asked if history]


def ndcg(ranker: Ranker, asked: list[tuple[list[int], int]], **options: Any) -> float:
    gains = []
    for history, answer in asked:
        shown = ranker.rank(history, **options).items
        gains.append(1 / np.log2(2 + shown.index(answer)) if answer in shown else 0.0)
    return float(np.mean(gains))


@pytest.mark.parametrize("kind", ["old", "old-bundle"])
def test_a_newer_log_is_split_where_the_training_ended(
    kind: str, models: dict[str, Path], newer: Path
) -> None:
    result = run("evaluate", models[kind], newer, "--json")
    table, ranker = json.loads(result.stdout), Ranker.load(models["old-bundle"], provider="cpu")
    asked = questions(newer, ranker.manifest.data["instants"][1])
    known = {*ranker.vocabulary.all_ids.tolist()}  # type: ignore[union-attr]
    assert table["users"] == len(asked)
    assert table["unknown"][kind] == {
        "targets": sum(answer not in known for _, answer in asked),
        "history_events": sum(item not in known for history, _ in asked for item in history),
    }
    assert table["unknown"][kind]["targets"] > 0
    served = table["rows"][0]["served"]["NDCG@10"]
    assert served == pytest.approx(ndcg(ranker, asked), abs=FOUR_DIGITS)
    assert f"these are not the events that {kind} was trained on\n" in result.stderr
    assert "may have been in its training" not in result.stderr
    assert f"{kind} does not know" in run("evaluate", models[kind], newer).stdout
    assert not (models["old"] / "evaluation.json").exists()
    if kind == "old":
        assert "evaluation.json: these are not the events of the run" in result.stderr


@pytest.mark.parametrize("kind", ["", "-bundle"], ids=["runs", "bundles"])
def test_models_of_two_catalogues_rank_what_both_know(
    kind: str, models: dict[str, Path], newer: Path
) -> None:
    names = [f"old{kind}", f"new{kind}"]
    result = run("compare", *(models[name] for name in names), newer, "--json")
    found = json.loads(result.stdout)
    rankers = [Ranker.load(models[f"{name}-bundle"], provider="cpu") for name in ("old", "new")]
    common = sorted(set.intersection(*({*r.vocabulary.all_ids.tolist()} for r in rankers)))  # type: ignore[union-attr]
    since = max(ranker.manifest.data["instants"][1] for ranker in rankers)
    asked = questions(newer, since)
    kept = [(history, answer) for history, answer in asked if answer in common]
    assert found["left_out"] == len(asked) - len(kept) > 0
    assert found["users"] == len(kept)
    assert f"full ranking of {len(common)} items that both know, seen items" in found["protocol"]
    mask = rankers[0].exclude_seen
    assert ("seen items masked" in found["protocol"]) is mask
    row = next(row for row in found["rows"] if row["metric"] == "NDCG@10")
    options = {"candidates": common, "exclude_seen": mask}
    expected = [ndcg(ranker, kept, **options) for ranker in rankers]
    assert [row["a"], row["b"]] == pytest.approx(expected, abs=FOUR_DIGITS)
    assert f"trained up to different times; test targets are from {since} on" in result.stderr
    text = run("compare", *(models[name] for name in names), newer).stdout
    assert f"{found['left_out']} answers are left out, which not every model knows" in text


def test_models_of_two_catalogues_stand_in_one_table(models: dict[str, Path], newer: Path) -> None:
    table = ask("evaluate", models["new"], newer, "--beside", models["old-bundle"])
    compared = ask("compare", models["new"], models["old-bundle"], newer)
    assert table["users"] == compared["users"]
    assert table["left_out"] == compared["left_out"]
    kind = "masked" if table["rows"][0]["exclude_seen"] else "unmasked"
    row = next(row for row in compared["rows"] if row["metric"] == "NDCG@10")
    found = [row[kind]["NDCG@10"] for row in table["rows"][:2]]
    assert found == pytest.approx([row["a"], row["b"]], abs=1e-9)
    assert not (models["new"] / "evaluation.json").exists()


def test_numbers_are_found_in_a_log_of_text(
    models: dict[str, Path], newer: Path, tmp_path: Path
) -> None:
    frame = pl.read_parquet(newer).with_columns(pl.col("item_id").cast(pl.String))
    frame.write_parquet(tmp_path / "text.parquet")
    for kind in ("new", "new-bundle"):
        expected = ask("evaluate", models[kind], newer)
        found = ask("evaluate", models[kind], tmp_path / "text.parquet")
        assert found["rows"][0] == expected["rows"][0]
        assert found["unknown"] == expected["unknown"]


def test_a_leave_one_out_target_of_another_log_may_have_been_in_training(
    older: Path, newer: Path, tmp_path: Path
) -> None:
    run("train", older, "--out", tmp_path / "run", *TINY)
    result = run("evaluate", tmp_path / "run", newer)
    message = "not the events that run was trained on: targets may have been in its training"
    assert message in result.stderr
    assert "an answer that a model does not know is a miss" in result.stdout


def test_a_log_without_a_later_event_leaves_nothing_to_predict(
    models: dict[str, Path], older: Path
) -> None:
    result = call("evaluate", models["new"], older)
    assert result.exit_code == 4
    assert "the time split of these events leaves no test case to predict" in result.stderr
