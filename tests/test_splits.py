"""Every split, preset and precision goes from a log to a ranking by the commands."""

import json
from pathlib import Path

import polars as pl
import pytest

from commands import run
from ranklet import Manifest
from ranklet_training.data.simulator import simulate
from ranklet_training.runs.presets import PRESETS

PRECISIONS = ["int8", "fp32", "fp16", "int4"]
SHAPE = [f"--set={pair}" for pair in ("width=8", "max_length=8", "epochs=1")]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with items that come up late, so that a split by time has new items as answers."""
    events = simulate(users=40, items=30, clusters=3, mean_length=9, seed=5).events
    late = pl.col("timestamp") > events["timestamp"].quantile(0.85)
    item = pl.when(late).then("new-" + pl.col("item_id")).otherwise("item_id")
    path = tmp_path_factory.mktemp("log") / "events.parquet"
    events.with_columns(item_id=item).write_parquet(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "split"),
    [
        *((preset, "leave-one-out") for preset in PRESETS),
        *(("default", split) for split in ("time", "k-fold", "none")),
    ],
)
def test_a_log_is_trained_evaluated_exported_verified_and_ranked(
    preset: str, split: str, log: Path, tmp_path: Path
) -> None:
    trained = tmp_path / "run"
    run("train", log, "--out", trained, "--preset", preset, *SHAPE, f"--set=split={split}")
    if split != "none":
        table = json.loads(run("evaluate", trained, log, "--json").stdout)
        assert table["users"] > 0
        assert (table["unknown"]["run"]["targets"] > 0) == (split in ("time", "k-fold"))
    for precision in PRECISIONS:
        bundle = tmp_path / precision
        run("export", trained, bundle, "--precision", precision, "--allow-drop", 1)
        run("verify", bundle)
        gate = Manifest.read(bundle).gate
        assert bool(gate) == (precision != "fp32")
        assert ("fp32" in gate) == (precision != "fp32" and split != "none")  # with answers
        ranking = json.loads(run("rank", bundle, "--history", "i01,i02", "--json").stdout)
        assert len(ranking["items"]) == 10
