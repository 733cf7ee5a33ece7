"""A training in several processes is that in one, up to the order of sums, and ends as one."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from process_work import launch, train_runs
from ranklet_training import launch as launching
from ranklet_training import processes
from ranklet_training.data.simulator import Simulation
from ranklet_training.model.model import Dropout, reset_dropout
from ranklet_training.runs.checkpoint import read_tensors
from ranklet_training.runs.presets import PRESETS

TESTS = Path(__file__).parents[1]
SMALL: dict[str, Any] = {
    "width": 8,
    "heads": 1,
    "blocks": 2,
    "max_length": 20,
    "dropout": 0.2,
    "epochs": 2,
    "targets_per_step": 200,
    "checkpoint_steps": 3,
    "warmup_steps": 4,
    "kinds": "ignore",
}
SAMPLED = {"loss": "sampled-softmax", "negatives": 20}
SETTINGS: dict[str, dict[str, Any]] = {
    "softmax": {"l1": 0.01, "l2": 0.01, "time_gaps": True},
    "features": {"features": "genres,maker", **SAMPLED},
    "lazy": {"lazy_rows": True, "scoring": "dot", **SAMPLED},
    "gbce": {"loss": "gbce", "negatives": 5, "heads": 2, "block": "gated"},
    "few rows": {"targets_per_step": 30, "epochs": 1, "learning_rate": 1e-3},
    "kinds": {"kinds": "auto", "epochs": 1},
    "seed": {**PRESETS["seed"], "width": 8},
}
LOSS, WEIGHT = 1e-5, 1e-4  # largest differences: sums of float32 in another order
BFLOAT16 = 0.02  # products of 8 bits
posix = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


def losses(path: Path) -> list[float]:
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def difference(one: Path, other: Path) -> float:
    """Return the largest difference of two checkpoints: weights, moments and steps."""
    found, expected = (read_tensors(path / "last.safetensors")[0] for path in (one, other))
    assert found.keys() == expected.keys()
    return max(float((found[name] - expected[name]).abs().max()) for name in expected)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs of all settings, trained in one process."""
    folder = tmp_path_factory.mktemp("alone")
    train_runs({str(folder / name): {**SMALL, **chosen} for name, chosen in SETTINGS.items()})
    return folder


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same runs, trained in several processes."""
    folder = tmp_path_factory.mktemp("together")
    runs = {str(folder / name): {**SMALL, **chosen} for name, chosen in SETTINGS.items()}
    assert launch(request.param, "train_runs", json.dumps(runs)) == 0
    return folder


@pytest.mark.parametrize("name", SETTINGS)
def test_several_processes_train_as_one(name: str, alone: Path, together: Path) -> None:
    assert losses(together / name) == pytest.approx(losses(alone / name), abs=LOSS)
    assert difference(together / name, alone / name) < WEIGHT
    config, expected = (
        json.loads((p / name / "config.json").read_text()) for p in (together, alone)
    )
    assert config["data"]["seen"] == pytest.approx(expected["data"]["seen"], abs=0.02)
    assert config["data"].keys() == expected["data"].keys()
    assert {file.name for file in (together / name).iterdir()} == {
        file.name for file in (alone / name).iterdir()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["softmax", "lazy"])
def test_a_training_goes_on_with_another_number_of_processes(name: str, tmp_path: Path) -> None:
    settings = {**SMALL, **SETTINGS[name], "epochs": 3}
    runs = {str(tmp_path / "run"): settings}
    train_runs({str(tmp_path / "whole"): settings})
    assert launch(2, "stop_runs", json.dumps(runs)) != 0
    with pytest.raises(Exception, match="stopped"):
        train_runs(runs, stop=True)
    assert len(losses(tmp_path / "run")) == 2
    assert launch(2, "train_runs", json.dumps(runs)) == 0
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), abs=LOSS)
    assert difference(tmp_path / "run", tmp_path / "whole") < WEIGHT


@pytest.mark.slow
def test_the_same_number_of_processes_resumes_to_the_same_bits(tmp_path: Path) -> None:
    cut, whole = (json.dumps({str(tmp_path / name): SMALL}) for name in ("cut", "whole"))
    assert launch(2, "stop_runs", cut) != 0
    assert launch(2, "train_runs", cut) == launch(2, "train_runs", whole) == 0
    assert difference(tmp_path / "cut", tmp_path / "whole") == 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this torch sees no GPU")
@pytest.mark.parametrize("name", ["softmax", "lazy"])
def test_a_gpu_trains_as_the_cpu(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("gpu", "cpu"):
        runs = {str(tmp_path / place): {**SMALL, **SETTINGS[name]}}
        assert launch(1, "train_runs", json.dumps(runs)) == 0
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), rel=BFLOAT16)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_a_lookup_in_shards_is_one_in_the_whole_table(count: int) -> None:
    assert launch(count, "look_up") == 0


@pytest.mark.parametrize("first", [0, 1, 3])
def test_a_process_drops_what_one_process_drops_in_its_rows(first: int) -> None:
    dropout, x = Dropout(0.5).train(), torch.ones(5, 3, 7)
    reset_dropout(dropout, 1, 2)
    whole = dropout(x)
    reset_dropout(dropout, 1, 2, first)
    assert torch.equal(dropout(x[first:]), whole[first:])


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_shares_are_all_rows_once(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "count", lambda: count)
    for rows in range(20):
        taken = []
        for number in range(count):
            monkeypatch.setattr(processes, "rank", lambda number=number: number)
            taken += np.arange(rows)[processes.share(rows)].tolist()
        assert taken == list(range(rows))


# Ends.


@pytest.fixture(scope="module")
def log(world: Simulation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "events.parquet"
    world.events.write_parquet(path)
    return path


TINY = [f"--set={name}={value}" for name, value in SMALL.items()]


@pytest.mark.slow
def test_a_failure_of_one_process_ends_all_with_its_error(log: Path, tmp_path: Path) -> None:
    code = "import sys, process_work; sys.exit(process_work.launch(2, *sys.argv[1:]))"
    command = [sys.executable, "-c", code, "fail_in_the_second", "train", log]
    done = subprocess.run(
        [*command, "--out", tmp_path / "run", *TINY],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
    )
    assert done.returncode == 6
    assert done.stderr.splitlines()[-1] == "Error: no third step"
    assert done.stderr.count("Error") == 1
    assert done.stdout == ""


@pytest.mark.parametrize("status", [3, 200, 255])
def test_a_status_that_is_no_signal_is_that_of_the_launcher(status: int) -> None:
    assert launching.launch(1, [sys.executable, "-c", f"raise SystemExit({status})"]) == status


@pytest.mark.slow
def test_what_all_processes_refuse_is_said_once(log: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ranklet_cli", "train", log.parent / "none.parquet"]
    command += ["--out", tmp_path / "run", "--nproc", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 4
    assert re.fullmatch(r"Error: .*none\.parquet.*\n", done.stderr)


def children(process: subprocess.Popen[bytes]) -> list[int]:
    """Return the training processes of a launcher, in their order."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    names = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in found}
    return [int(pid) for pid, name in names.items() if "ranklet_cli" in name]


@pytest.fixture
def endless(log: Path, tmp_path: Path) -> Callable[[], subprocess.Popen[bytes]]:
    """Start a long training in two processes; return it after its first checkpoint."""

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "ranklet_cli", "train", log, "--out", tmp_path / "run"]
        command += [*TINY, "--set=epochs=9999", "--set=patience=9999", "--nproc=2"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while not (tmp_path / "run" / "last.safetensors").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        return process

    return start


@posix
@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_killed_process_ends_all_and_is_named(
    number: int, endless: Callable[[], subprocess.Popen[bytes]]
) -> None:
    process = endless()
    others = children(process)
    assert len(others) == 2
    os.kill(others[number], signal.SIGKILL)
    errors = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 6
    assert errors.count("Error") == 1
    message = f"Error: process {number + 1} of 2 of this training was ended by SIGKILL: resume "
    assert errors.splitlines()[-1].startswith(message)
    assert not [pid for pid in others if Path(f"/proc/{pid}").exists()]


@posix
@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_all_processes_with_a_hint(
    number: int, status: int, endless: Callable[[], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    process = endless()
    others = children(process)
    process.send_signal(number)
    errors = process.communicate(timeout=60)[1].decode().splitlines()
    assert process.returncode == status
    assert errors[-2].startswith("to go on: ranklet train ")
    assert errors[-2].endswith(" --resume --nproc 2")
    assert errors[-1] == "interrupted"
    assert sum("interrupted" in line or "to go on" in line for line in errors) == 2
    assert not [pid for pid in others if Path(f"/proc/{pid}").exists()]
    assert not [*tmp_path.rglob("*.tmp")]


@posix
@pytest.mark.slow
def test_processes_end_with_their_launcher(endless: Callable[[], subprocess.Popen[bytes]]) -> None:
    process = endless()
    others = children(process)
    process.kill()
    process.communicate()
    end = time.monotonic() + 60
    while [pid for pid in others if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
def test_torchrun_trains_as_nproc(log: Path, tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m"]
    for name, start, count in (("torchrun", torchrun, []), ("nproc", ["-m"], ["--nproc=2"])):
        command = [sys.executable, *start, "ranklet_cli", "train", log, "--out", tmp_path / name]
        subprocess.run([*command, *TINY, *count], check=True, capture_output=True, timeout=120)
    assert difference(tmp_path / "torchrun", tmp_path / "nproc") == 0
