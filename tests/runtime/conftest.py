"""Bundles that are made from the tiny one by rewriting some of its bytes."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ranklet import Manifest, Ranker
from ranklet.bundle import GRAPH, describe_files, map_table


def _sign(bundle: Path, manifest: Manifest, **changes: object) -> None:
    """Write a manifest, changed, with the sizes and digests that the files have now."""
    values: dict[str, Any] = {**vars(manifest), **changes, "files": describe_files(bundle)}
    Manifest(**values).write(bundle)


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, to be damaged."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def sign() -> Any:
    return _sign


@pytest.fixture(scope="session")
def number_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with the int64 ids -30, -27, ... in place of its texts."""
    bundle = tmp_path_factory.mktemp("bundles") / "numbers"
    shutil.copytree(tiny_bundle, bundle)
    manifest = Manifest.read(bundle)
    (bundle / "items.utf8").unlink()
    (bundle / "items.offsets.npy").unlink()
    np.save(bundle / "items.npy", np.arange(manifest.items, dtype="<i8") * 3 - 30)
    _sign(bundle, manifest, id_type="int64")
    return bundle


@pytest.fixture(scope="session")
def number_ranker(number_bundle: Path) -> Ranker:
    return Ranker.load(number_bundle, provider="cpu")


@pytest.fixture(scope="session")
def tied_ranker(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Ranker:
    """A ranker whose items have only five different rows in turn, so that all scores are tied."""
    bundle = tmp_path_factory.mktemp("bundles") / "tied"
    shutil.copytree(tiny_bundle, bundle)
    manifest = Manifest.read(bundle)
    old = np.array(map_table(bundle, manifest))
    new = old.copy()
    new[1:] = old[1 + np.arange(manifest.items) % 5]
    _replace(bundle / GRAPH, old, new)
    _sign(bundle, manifest)
    assert (map_table(bundle, manifest) == new).all()
    return Ranker.load(bundle, provider="cpu")


def _replace(path: Path, old: NDArray[Any], new: NDArray[Any]) -> None:
    """Replace a matrix in a file; a graph may hold it transposed as well."""
    data = path.read_bytes()
    data = data.replace(old.tobytes(), new.tobytes()).replace(old.T.tobytes(), new.T.tobytes())
    path.write_bytes(data)


@pytest.fixture(scope="session")
def ids(tiny_ranker: Ranker) -> list[str]:
    """All ids of the tiny bundle, in index order."""
    return [str(item) for item in tiny_ranker.vocabulary.all_ids]
