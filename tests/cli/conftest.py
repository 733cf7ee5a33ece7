"""An event log on disk, and benchmarks that do not take long."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ranklet_cli.bench import timers
from ranklet_training.data.simulator import Simulation


@pytest.fixture(scope="session")
def log(world: Simulation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    world.events.write_parquet(folder / "events.parquet")
    world.items.write_parquet(folder / "items.parquet")
    return folder / "events.parquet"


@pytest.fixture(scope="module", autouse=True)
def few_arrivals() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timers, "MOST", timers.FEWEST)
        yield
