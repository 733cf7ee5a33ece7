"""Bundles of random weights, and bundles that are made from them by rewriting some bytes."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ranklet import Manifest, Ranker, Ranking
from ranklet.bundle.folder import describe_files, read_vocabulary, write_catalogue
from ranklet.time_gaps import UNKNOWN
from ranklet_export import encoders
from ranklet_export.export import Settings, export_bundle
from ranklet_training.model.seed import SeedModel
from ranklet_training.runs.checkpoint import (
    Model,
    Run,
    read_run,
    read_tensors,
    write_run,
    write_tensors,
)

Indices = NDArray[np.int64]
ITEMS = 60
INT8 = Settings(precision="int8")
PRECISIONS = ["fp32", "fp16", "int8", "int4"]
# A batch of another shape sums in another order. Scores reach 14, where float32 has steps of 1e-6.
SCORE_TOLERANCE = 1e-4


def _sign(bundle: Path, manifest: Manifest, **changes: object) -> None:
    """Write a manifest, changed, with the sizes and digests that the files have now."""
    values: dict[str, Any] = {**vars(manifest), **changes, "files": describe_files(bundle)}
    Manifest(**values).write(bundle)


@pytest.fixture(scope="session")
def sign() -> Any:
    return _sign


@pytest.fixture(scope="session")
def tiny_bundle(exported: Callable[..., Any], build_once: Callable[..., Path]) -> Path:
    """Two blocks, two heads, int8, titles, trending items; at most 12 events.

    Tests must not write into it.
    """

    def make(path: Path) -> None:
        shutil.copytree(exported(INT8).ranker.path, path)
        manifest = Manifest.read(path)
        titles = [f"Title {number}" for number in range(ITEMS)]
        popularity = np.random.default_rng(0).permutation(ITEMS).astype(np.float32) // 2 / ITEMS
        trending = popularity[::-1]
        write_catalogue(path, read_vocabulary(path, manifest), titles, popularity, trending)
        _sign(path, manifest)

    return build_once("tiny-with-titles-and-trends", make)


@pytest.fixture(scope="session")
def tiny_ranker(tiny_bundle: Path) -> Ranker:
    """The tiny bundle of this folder: a session holds that of other folders, too."""
    return Ranker.load(tiny_bundle, provider="cpu")


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, to be damaged."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture
def ranker(tiny_bundle: Path) -> Ranker:
    """The tiny bundle, loaded anew."""
    return Ranker.load(tiny_bundle, provider="cpu")


@pytest.fixture(scope="session")
def ids(tiny_ranker: Ranker) -> list[str]:
    """All ids of the tiny bundle, in index order."""
    return [str(item) for item in tiny_ranker.vocabulary.all_ids]


@pytest.fixture(scope="session")
def number_bundle(tiny_bundle: Path, build_once: Callable[..., Path]) -> Path:
    """The tiny bundle with the int64 ids -30, -27, ... in place of its texts."""

    def make(path: Path) -> None:
        shutil.copytree(tiny_bundle, path)
        manifest = Manifest.read(path)
        (path / "items.utf8").unlink()
        (path / "items.ends.i64").unlink()
        (np.arange(manifest.items, dtype="<i8") * 3 - 30).tofile(path / "items.i64")
        _sign(path, manifest, id_type="int64")

    return build_once("numbers", make)


@pytest.fixture(scope="session")
def number_ranker(number_bundle: Path) -> Ranker:
    return Ranker.load(number_bundle, provider="cpu")


@pytest.fixture(scope="session", params=PRECISIONS)
def any_precision(request: pytest.FixtureRequest, exported: Callable[..., Any]) -> Ranker:
    """A model without a block in every precision: they differ in what scores the catalogue."""
    ranker: Ranker = exported(Settings(precision=request.param, allow_drop=1), blocks=0).ranker
    return ranker


@pytest.fixture(scope="session")
def with_rows(
    random_run: Callable[..., Run], build_once: Callable[..., Path]
) -> Callable[..., Run]:
    """Make a run without a block whose item rows are others: ``with_rows(name, rows)``."""

    def make(name: str, rows: Callable[[Tensor], Tensor], items: int = ITEMS) -> Run:
        source = random_run(items, blocks=0)

        def write(path: Path) -> None:
            path.mkdir()
            write_run(Run(path, source.config, source.data, {}, source.catalogue))
            weights, _ = read_tensors(source.path / "best.safetensors")
            weights["items.item"][1:] = rows(weights["items.item"][1:].clone())
            write_tensors(path / "best.safetensors", weights, {})

        return read_run(build_once(f"{name}-run", write))

    return make


@pytest.fixture(scope="session", params=["fp32", "int8", "int4"])
def tied_ranker(
    request: pytest.FixtureRequest, with_rows: Callable[..., Run], build_once: Callable[..., Path]
) -> Ranker:
    """Five different item rows in turn, so that all scores are tied."""
    run = with_rows("tied", lambda rows: rows[torch.arange(ITEMS) % 5])
    settings = Settings(precision=request.param, allow_drop=1)  # ties count as losses
    name = f"tied-{request.param}"
    return Ranker.load(
        build_once(name, lambda path: export_bundle(run.path, path, settings)), provider="cpu"
    )


@pytest.fixture(scope="session")
def long_model(exported: Callable[..., Any]) -> Any:
    """A model whose histories are cut into chunks of 4 events from 16 events on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoders, "CHUNK_EVENTS", 4)
        return exported(INT8, attention_window=5, max_length=40)


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
    assert (found.unknown, found.cold) == (expected.unknown, expected.cold)


@pytest.fixture(scope="session")
def rolling_scores() -> Callable[..., NDArray[np.float64]]:
    return _rolling_scores


def _rolling_scores(
    model: Model,
    history: NDArray[np.int64],
    since: NDArray[np.int64] | None = None,
    until: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Score every item after each event, (N, items), all at once, in float64.

    In every block an event attends to the ``max_length`` latest events, itself included, in all but
    the last one to the ``attention_window`` latest. Kinds are unknown.
    """
    model = copy.deepcopy(model).double()
    count, window = len(history), model.config.max_length
    age = torch.arange(count)[:, None] - torch.arange(count)
    may_attend = (age >= 0) & (age < window)
    table = model.table()
    if isinstance(model, SeedModel):
        x = table[history] + model.users.weight.mean(dim=0)
        key, value = model.key_value(x).chunk(2, dim=-1)
        weights = (model.query(x) @ key.T / model.config.width**0.5).masked_fill(
            ~may_attend, -torch.inf
        )
        users = model.output(weights.softmax(dim=-1) @ value)
        return np.asarray(users @ table[1:].T)
    x = table[history] * model.config.width**0.5
    unknown = np.full(count, UNKNOWN)
    if model.config.time_gaps:
        x = x + model.since(torch.from_numpy(unknown if since is None else since))
    if model.kinds:
        x = x + 8 * model.kind[0]
    for place, block in enumerate(model.each_block(), 1):
        normed = block.attention_norm(x)
        key, value = block.key_value(normed).chunk(2, dim=-1)
        if model.config.time_gaps and place == model.config.blocks:
            x = x + model.until(torch.from_numpy(unknown if until is None else until))
            normed = block.attention_norm(x)
        if model.kinds and place == model.config.blocks:
            x = x + 8 * model.objective[0]
            normed = block.attention_norm(x)
        split = [part.chunk(block.heads, dim=1) for part in (block.query(normed), key, value)]
        heads, waves = [], model.bias.waves().transpose(0, 1)
        for q, k, v, (a, b) in zip(*split, waves, strict=True):
            seen = may_attend
            if place < model.config.blocks:
                seen = may_attend & (age < (model.config.attention_window or count))
                base = model.config.rotary_base
                weights = _rotate(q, base) @ _rotate(k, base).T / q.shape[1] ** 0.5
            else:
                angles = age[..., None] * 1000.0 ** (-torch.arange(8, dtype=torch.float64) / 8)
                weights = q @ k.T / q.shape[1] ** 0.5 + angles.cos() @ a + angles.sin() @ b
            heads.append(weights.masked_fill(~seen, -torch.inf).softmax(dim=-1) @ v)
        x = block.merge(x[None], torch.stack(heads)[None])[0]
    return np.asarray(model.user(x) @ table[1:].T)


def _rotate(x: Tensor, base: float) -> Tensor:
    """Turn each pair of channels by the position times a frequency, as complex numbers."""
    half = x.shape[1] // 2
    frequencies = base ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(len(x))[:, None] * frequencies
    turned = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=1)
