"""An event log on disk."""

from pathlib import Path

import pytest

from ranklet_training.data.simulator import Simulation


@pytest.fixture(scope="session")
def log(world: Simulation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    world.events.write_parquet(folder / "events.parquet")
    world.items.write_parquet(folder / "items.parquet")
    return folder / "events.parquet"
