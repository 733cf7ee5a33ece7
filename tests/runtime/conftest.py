"""Bundles that are made from the tiny one by rewriting some of its bytes."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ranklet import Manifest, Ranker, Ranking
from ranklet.bundle import describe_files
from ranklet_export.export import Settings, export_bundle
from ranklet_training.runs.checkpoint import Run, write_run, write_tensors


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
def tied_run(tiny_run: Run, build_once: Callable[..., Path]) -> Run:
    """The tiny run with five different item rows in turn, so that all scores are tied."""
    without_features = replace(tiny_run.config.train, features="")
    config = replace(tiny_run.config, train=without_features)

    def make(path: Path) -> None:
        path.mkdir()
        run = replace(tiny_run, path=path, config=config)
        write_run(run)
        names = run.build_model().state_dict()
        weights = {k: v for k, v in tiny_run.load_model().state_dict().items() if k in names}
        places = 1 + torch.arange(len(run.vocabulary)) % 5
        weights["items.item"] = torch.cat(
            [weights["items.item"][:1], weights["items.item"][places]]
        )
        write_tensors(path / "best.safetensors", weights, {})

    return replace(tiny_run, path=build_once("tied-run", make), config=config)


@pytest.fixture(scope="session", params=["fp32", "int8", "int4"])
def tied_ranker(
    request: pytest.FixtureRequest, tied_run: Run, build_once: Callable[..., Path]
) -> Ranker:
    settings = Settings(precision=request.param, allow_drop=1)  # ties count as losses
    bundle = build_once(
        f"tied-{request.param}", lambda path: export_bundle(tied_run.path, path, settings)
    )
    return Ranker.load(bundle, provider="cpu")


@pytest.fixture(scope="session")
def ids(tiny_ranker: Ranker) -> list[str]:
    """All ids of the tiny bundle, in index order."""
    return [str(item) for item in tiny_ranker.vocabulary.all_ids]


# A batch of another shape sums in another order. Scores reach 14, where float32 has steps of 1e-6.
SCORE_TOLERANCE = 1e-4


@pytest.fixture(scope="session")
def same_order() -> Callable[[Ranking, Ranking], None]:
    return _assert_same_order


def _assert_same_order(
    found: Ranking, expected: Ranking, tolerance: float = SCORE_TOLERANCE
) -> None:
    """Items may change places only where their scores differ by less than the tolerance."""
    assert len(found.items) == len(expected.items)
    difference = np.abs(found.scores - expected.scores).max(initial=0)
    assert difference <= tolerance, f"scores differ by {difference}"
    expected_score = dict(zip(expected.items, expected.scores.tolist(), strict=True))
    last = expected.scores[-1] if len(expected.scores) else 0
    moved = [expected_score.get(item, last) for item in found.items]
    difference = np.abs(np.array(moved) - expected.scores).max(initial=0)
    assert difference <= 2 * tolerance, f"an item moved over a gap of {difference}"
