"""Fixtures of the training tests."""

import os
from pathlib import Path

import pytest

from ranklet.errors import DataError
from ranklet_training.data import datasets


@pytest.fixture(scope="session")
def recbole_wheel() -> Path:
    """The wheel that holds a copy of ml-100k, fetched once for a machine."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ranklet-tests"
    cache = Path(os.environ.get("RANKLET_TEST_CACHE", default))
    cache.mkdir(parents=True, exist_ok=True)
    wheels = list(cache.glob("recbole-1.2.1-*.whl"))
    if wheels:
        return wheels[0]
    try:
        return datasets._from_pip(str(cache))
    except DataError as error:
        pytest.skip(f"ml-100k is not at hand: {error}")
