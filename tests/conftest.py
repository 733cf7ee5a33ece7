"""What tests of several rooms share: a small world, a run trained on it, and its bundle."""

import os
from pathlib import Path

import pytest
import torch

from ranklet import Ranker
from ranklet_export.export import export_bundle
from ranklet_training.checkpoint import Run
from ranklet_training.events import Events, read_events
from ranklet_training.presets import RunConfig, configure
from ranklet_training.simulator import Simulation, simulate
from ranklet_training.split import Split, split_events
from ranklet_training.train import start_run, train

ROOT = Path(__file__).parents[1]

# One thread, so that parallel test processes do not fight over the cores, and so that a child
# process with OMP_NUM_THREADS=1 computes the same bits.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# A model that trains in a second and still has every part: two blocks, two heads, features.
TINY = {
    "width": 16,
    "heads": 2,
    "feed_forward": 2,
    "max_length": 20,
    "dropout": 0.1,
    "epochs": 2,
    "targets_per_step": 256,
    "features": "genres,maker",
}


@pytest.fixture(scope="session")
def world() -> Simulation:
    return simulate(users=150, items=60, clusters=4, mean_length=15, seed=3)


@pytest.fixture(scope="session")
def events(world: Simulation) -> Events:
    return read_events(world.events)


@pytest.fixture(scope="session")
def split(events: Events) -> Split:
    return split_events(events.frame)


@pytest.fixture(scope="session")
def tiny_config() -> RunConfig:
    return configure(TINY)


@pytest.fixture(scope="session")
def tiny_run(
    world: Simulation,
    events: Events,
    split: Split,
    tiny_config: RunConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    """A trained run; tests must not write into it."""
    path = tmp_path_factory.mktemp("runs") / "tiny"
    run = start_run(path, tiny_config, events, split, world.items)
    return train(run, split, show_progress=False).run


@pytest.fixture(scope="session")
def tiny_bundle(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of ``tiny_run``; tests must not write into it."""
    bundle = tmp_path_factory.mktemp("bundles") / "tiny"
    export_bundle(tiny_run.path, bundle)
    return bundle


@pytest.fixture(scope="session")
def tiny_ranker(tiny_bundle: Path) -> Ranker:
    return Ranker.load(tiny_bundle, provider="cpu")


@pytest.fixture(scope="session")
def shipped_bundle() -> Path:
    return ROOT / "models" / "ml-100k"


@pytest.fixture(scope="session", params=["ml-100k", "ml-1m"])
def any_shipped_bundle(request: pytest.FixtureRequest) -> Path:
    return ROOT / "models" / str(request.param)
