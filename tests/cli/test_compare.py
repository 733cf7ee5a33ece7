"""``ranklet compare``: two runs, a run and a bundle, or the log of an online test."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from click.testing import CliRunner, Result

from ranklet_cli.group import cli
from ranklet_training.data.simulator import Simulation
from ranklet_training.data.split import Split
from ranklet_training.judge.compare import compare_models
from ranklet_training.judge.outcomes import OUTCOME_METRICS
from ranklet_training.runs.checkpoint import Run, read_run, read_tensors, write_tensors

# New users are odd, old ones even.
LOG = pl.DataFrame(
    [
        {"user_id": user, "variant": variant, "shown": [5, 7, 9], "clicked": [7] * (user % 3 > 0)}
        for user in range(60)
        for variant in ("new" if user % 2 else "old",)
    ],
    schema_overrides={"clicked": pl.List(pl.Int64)},
)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["compare", *(str(argument) for argument in arguments)])


@pytest.fixture(scope="module")
def folder(world: Simulation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compare")
    world.events.write_parquet(path / "events.parquet")
    world.events.slice(1).write_parquet(path / "fewer.parquet")
    LOG.write_parquet(path / "log.parquet")
    fewer = LOG.filter((pl.col("user_id") < 41) | (pl.col("user_id") % 2 == 0))
    joined = pl.col("shown", "clicked").cast(pl.List(pl.String)).list.join("|")
    fewer.with_columns(joined).write_csv(path / "log.csv")
    return path


@pytest.fixture(scope="module")
def other_run(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny run with noise on its weights."""
    path = shutil.copytree(tiny_run.path, tmp_path_factory.mktemp("others") / "other")
    weights, metadata = read_tensors(path / "best.safetensors")
    random = torch.Generator().manual_seed(0)
    for name, weight in weights.items():
        if weight.is_floating_point():
            weights[name] = weight + 0.05 * torch.randn(weight.shape, generator=random)
    write_tensors(path / "best.safetensors", weights, metadata)
    return read_run(path)


def test_compare_prints_a_table_of_two_runs(tiny_run: Run, other_run: Run, folder: Path) -> None:
    result = call(tiny_run.path, other_run.path, folder / "events.parquet")
    assert result.exit_code == 0, result.output
    assert (
        f"A = {tiny_run.path.name}, B = other; 10,000 bootstrap samples of users, paired, seed 0"
        in result.stdout
    )
    lines = result.stdout.splitlines()
    assert sum(line.endswith((" yes", " no")) for line in lines) == 9
    assert "significant at 5 % after Holm's correction over 9 metrics" in lines[-1]
    read, columns = result.stderr.splitlines()
    assert read.startswith("150 users, 60 items, ")
    assert columns == "columns: user_id, item_id, timestamp, rating"


def test_compare_prints_the_document_that_the_library_returns(
    tiny_run: Run, other_run: Run, folder: Path, split: Split
) -> None:
    result = call(tiny_run.path, other_run.path, folder / "events.parquet", "--json")
    a, b = (run.load_model() for run in (tiny_run, other_run))
    expected = compare_models(a, b, split, names=(tiny_run.path.name, "other"))
    assert json.loads(result.stdout) == asdict(expected)


def test_compare_takes_a_run_and_a_bundle_of_one_name(
    tiny_run: Run, tiny_bundle: Path, folder: Path, tmp_path: Path
) -> None:
    plot = tmp_path / "forest.png"
    options = ["--on", "validation", "--resamples", 1000, "--seed", 4, "--plot", plot, "--json"]
    run = shutil.copytree(tiny_run.path, tmp_path / tiny_bundle.name)
    result = call(run, tiny_bundle, folder / "events.parquet", *options)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["a"], found["b"]) == (str(run), str(tiny_bundle))
    assert (found["resamples"], found["seed"]) == (1000, 4)
    assert {row["p"] for row in found["rows"]} == {1.0}
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert f"wrote {plot}" in result.stderr


def test_other_events_than_those_of_training_are_noted(
    tiny_run: Run, other_run: Run, folder: Path
) -> None:
    result = call(tiny_run.path, other_run.path, folder / "fewer.parquet")
    assert result.exit_code == 0, result.output
    for name in (tiny_run.path.name, "other"):
        assert f"these are not the events that {name} was trained on" in result.stderr


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ({}, {"split": "time"}, "on the leave-one-out split and changed on the time split"),
        (
            {"split": "k-fold"},
            {"split": "k-fold", "fold": 1},
            "on the k-fold 0 of 5 split and changed on the k-fold 1 of 5 split",
        ),
    ],
    ids=["kind", "fold"],
)
def test_models_of_different_splits_are_refused(
    ours: dict[str, Any],
    theirs: dict[str, Any],
    message: str,
    tiny_run: Run,
    folder: Path,
    tmp_path: Path,
) -> None:
    for name, change in (("same", ours), ("changed", theirs)):
        shutil.copytree(tiny_run.path, tmp_path / name)
        document = json.loads((tmp_path / name / "config.json").read_text())
        document["train"].update(change)
        (tmp_path / name / "config.json").write_text(json.dumps(document))
    result = call(tmp_path / "same", tmp_path / "changed", folder / "events.parquet")
    assert result.exit_code == 4
    assert message in result.stderr


def test_compare_prints_a_table_of_an_online_test(folder: Path) -> None:
    result = call("--log", folder / "log.parquet", "--control", "old")
    assert result.exit_code == 0, result.output
    assert "control old: 30 users" in result.stdout
    assert "treatment new: 30 users" in result.stdout
    assert "sample ratio: chi-square 0.000, p 1.0000: as planned" in result.stdout
    assert "significant at 5 % after Holm's correction over 4 metrics" in result.stdout
    assert all(metric in result.stdout for metric in OUTCOME_METRICS)


def test_a_mismatch_is_loud_and_the_exit_status_stays_0(folder: Path) -> None:
    arguments = ["--log", folder / "log.csv", "--ratio", "1:4", "--control", "old"]
    result = call(*arguments)
    assert result.exit_code == 0
    for part in (result.stdout, result.stderr):
        assert "SAMPLE RATIO MISMATCH: 30 to 20 users where 20.0% were planned in control" in part
        assert "The results cannot be trusted" in part
    assert result.stdout.splitlines()[-1].startswith("THESE RESULTS CANNOT BE TRUSTED")
    assert json.loads(call(*arguments, "--json").stdout)["sample_ratio"]["mismatch"] is True


def test_excluded_users_are_noted(tmp_path: Path) -> None:
    both = LOG[1:2].with_columns(variant=pl.lit("old"))
    pl.concat([LOG, both]).write_ndjson(tmp_path / "log.jsonl")
    result = call("--log", tmp_path / "log.jsonl", "--json")
    assert "1 users saw both variants and are left out" in result.stderr
    assert json.loads(result.stdout)["users_in_both"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give A, B and EVENTS, or --log"),
        (["."], "give A, B and EVENTS, or --log"),
        (["--log", __file__, "--on", "test"], "--log takes neither A, B and EVENTS nor --on"),
        (["--log", __file__, "."], "--log takes neither A, B and EVENTS nor --on"),
        ([".", ".", "x", "--control", "a"], "--control and --ratio belong to --log"),
        ([".", ".", "x", "--ratio", "1:1"], "--control and --ratio belong to --log"),
        (["--log", __file__, "--ratio", "2"], "'2' is not a ratio like 1:1"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(arguments: list[str], message: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_log_that_is_not_usable_ends_with_status_4(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,variant,shown,clicked\n1,a,5,9\n")
    result = call("--log", path)
    assert result.exit_code == 4
    assert "not shown in row 1: ['9']" in result.stderr


def test_a_plot_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    result = call("--log", __file__, "--plot", tmp_path / "forest.pgn")
    assert result.exit_code == 4
    assert "must end in one of" in result.stderr
