"""Codes choose, 32-bit scores decide, and what is called exact is."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from ranklet import BundleError, Manifest, Ranker
from ranklet.bundle import CODE_BITS, describe_files
from ranklet.graph import SMALLEST_BATCH
from ranklet_export.export import Settings, export_bundle
from ranklet_training.runs.checkpoint import (
    Model,
    Run,
    read_run,
    read_tensors,
    write_run,
    write_tensors,
)

ITEMS, CLUSTERS = 120, 6
SCORE_TOLERANCE = 1e-4  # scores reach 14, where float32 has steps of 1e-6


@pytest.fixture(scope="module")
def clustered_run(random_run: Callable[..., Run], build_once: Callable[..., Path]) -> Run:
    """A run whose items lie in six clusters: inside of one, codes can't tell who is best."""
    source = random_run(ITEMS, blocks=1, heads=1)

    def make(path: Path) -> None:
        path.mkdir()
        write_run(Run(path, source.config, source.data, {}, source.catalogue))
        weights, _ = read_tensors(source.path / "best.safetensors")
        torch.manual_seed(0)
        centers = torch.randn(CLUSTERS, 16)[torch.arange(ITEMS) % CLUSTERS]
        weights["items.item"][1:] = centers + 3e-3 * torch.randn(ITEMS, 16)
        write_tensors(path / "best.safetensors", weights, {})

    return read_run(build_once("clustered-run", make))


@pytest.fixture(scope="module", params=CODE_BITS)
def clustered(
    request: pytest.FixtureRequest, clustered_run: Run, build_once: Callable[..., Path]
) -> Ranker:
    settings = Settings(precision=request.param, allow_drop=1)
    bundle = build_once(
        f"clustered-{request.param}",
        lambda path: export_bundle(clustered_run.path, path, settings),
    )
    return Ranker.load(bundle, provider="cpu")


@pytest.fixture(scope="module")
def scores(clustered_run: Run) -> NDArray[np.float32]:
    """Scores of all items by plain torch, (histories, items)."""
    return scores_of(clustered_run.load_model(), HISTORIES)


def scores_of(model: Model, histories: NDArray[np.int64]) -> NDArray[np.float32]:
    table = model.table()
    user = model.serve(torch.from_numpy(histories), table)
    return (user @ table[1:].T).numpy()


HISTORIES = np.random.default_rng(0).integers(1, ITEMS + 1, (300, 5))


def loss_of(ranker: Ranker, items: list[Any], scores: NDArray[np.float32]) -> float:
    """Return by how much the best items left out are better than the worst that is in."""
    inside = ranker.vocabulary.index(items) - 1
    return float(np.delete(scores, inside).max(initial=-np.inf) - scores[inside].min())


@pytest.mark.parametrize("smallest", [1, 8, 32])
@pytest.mark.parametrize("k", [1, 3, 10, 20, 40, 100])
@pytest.mark.parametrize("together", [True, False], ids=["batch", "alone"])
def test_what_is_called_exact_has_the_best_items(
    together: bool,
    k: int,
    smallest: int,
    clustered: Ranker,
    scores: NDArray[np.float32],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clustered.graphs, "smallest_pool", smallest)
    histories = [clustered.vocabulary.ids(row) for row in HISTORIES]
    if together:
        found = clustered.rank_batch(histories, k=k)
    else:
        found = [clustered.rank(history, k=k) for history in histories]
    for ranking, expected in zip(found, scores, strict=True):
        if ranking.exact:
            assert loss_of(clustered, ranking.items, expected) <= SCORE_TOLERANCE


def test_a_small_pool_is_sometimes_wrong_and_sometimes_exact(
    clustered: Ranker, scores: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clustered.graphs, "smallest_pool", 1)
    histories = [clustered.vocabulary.ids(row) for row in HISTORIES]
    wrong = [
        loss_of(clustered, ranking.items, expected) > SCORE_TOLERANCE
        for ranking, expected in zip(clustered.rank_batch(histories, k=3), scores, strict=True)
    ]
    exact = [ranking.exact for ranking in clustered.rank_batch(histories, k=ITEMS // CLUSTERS)]
    assert 0.1 < np.mean(wrong) < 1
    assert np.mean(exact) > 0.1


@pytest.mark.parametrize("k", [60, 61, 119, 120, 121])
def test_a_pool_of_all_items_gives_the_order_of_fp32(
    k: int, clustered: Ranker, scores: NDArray[np.float32]
) -> None:
    for row, expected in zip(HISTORIES[:40], scores, strict=False):
        ranking = clustered.rank(clustered.vocabulary.ids(row), k=k)
        places = clustered.vocabulary.index(ranking.items) - 1
        best = -np.sort(-expected)[:k]
        assert np.abs(expected[places] - best).max() <= SCORE_TOLERANCE
        assert np.abs(ranking.scores - best).max() <= SCORE_TOLERANCE
        assert ranking.exact


def test_scores_are_those_of_fp32_whatever_was_chosen(
    clustered: Ranker, scores: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clustered.graphs, "smallest_pool", 1)
    for row, expected in zip(HISTORIES, scores, strict=True):
        ranking = clustered.rank(clustered.vocabulary.ids(row), k=5)
        places = clustered.vocabulary.index(ranking.items) - 1
        assert np.abs(ranking.scores - expected[places]).max() <= SCORE_TOLERANCE


@pytest.mark.parametrize("k", [1, 10, 60])
def test_other_precisions_and_candidates_are_always_exact(
    any_ranker: Ranker, ids: list[str], k: int
) -> None:
    if any_ranker.manifest.precision not in CODE_BITS:
        assert any_ranker.rank(ids[:5], k=k).exact
        assert any_ranker.user(ids[:5]).rank(k).exact
    assert any_ranker.rank(ids[:5], k=k, candidates=ids[3:40]).exact
    assert any_ranker.rank([], k=k).exact
    assert any_ranker.rank(ids[:5], k=k, exclude=ids).exact


def test_a_pool_of_all_that_is_left_is_exact(any_ranker: Ranker, ids: list[str]) -> None:
    some = any_ranker.eligible(ids[:20])
    assert any_ranker.rank(ids[:5], k=9, exclude=ids[25:]).exact
    assert any_ranker.rank(ids[:5], k=9, eligible=some).exact
    assert any_ranker.rank(ids[:5], k=60).exact
    assert any_ranker.user(ids[:5]).rank(9, eligible=some).exact
    assert any_ranker.user(ids[:5]).rank(60).exact


def test_all_precisions_give_nearly_one_ranking(
    any_ranker: Ranker, tiny_run: Run, ids: list[str]
) -> None:
    tolerance = 3e-2 if any_ranker.manifest.precision == "fp16" else SCORE_TOLERANCE
    histories = np.random.default_rng(1).integers(1, 61, (50, 7))
    expected = scores_of(tiny_run.load_model(), histories)
    for row, scores in zip(histories, expected, strict=True):
        ranking = any_ranker.rank(any_ranker.vocabulary.ids(row), k=60)
        found = np.empty(60)
        found[any_ranker.vocabulary.index(ranking.items) - 1] = ranking.scores
        assert np.abs(found - scores).max() <= tolerance


def test_an_answer_keeps_no_batch_and_no_state(tiny_ranker: Ranker, ids: list[str]) -> None:
    users = tiny_ranker.users([ids[:40]] * 30)
    users.append(ids[:30])
    for ranking in (users.rank()[0], users[0].rank(), *tiny_ranker.rank_batch([ids[:9]] * 2)):
        user, last, floor, _ = ranking._margin or pytest.fail("nothing to prove")
        assert (user.base, user.shape) == (None, (tiny_ranker.manifest.width,))
        assert isinstance(last, float)
        assert isinstance(floor, float)
        assert "_margin" not in repr(ranking)


def test_batches_of_int8_have_a_graph_of_their_own(any_ranker: Ranker) -> None:
    graphs = any_ranker.graphs
    assert graphs.session_for(SMALLEST_BATCH - 1) is graphs.session
    has_own = graphs.session_for(SMALLEST_BATCH) is not graphs.session
    assert has_own == (any_ranker.manifest.precision == "int8")


@pytest.mark.parametrize("count", [SMALLEST_BATCH - 1, SMALLEST_BATCH, 100])
def test_a_batch_ranks_as_each_of_its_rows(clustered: Ranker, count: int) -> None:
    histories = [clustered.vocabulary.ids(row) for row in HISTORIES[:count]]
    for history, found in zip(histories, clustered.rank_batch(histories, k=5), strict=True):
        alone = clustered.rank(history, k=5)
        assert found.items == alone.items
        assert np.abs(found.scores - alone.scores).max() <= SCORE_TOLERANCE


def test_a_batch_graph_of_another_contract_is_refused(clustered_run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    export_bundle(clustered_run.path, folder, Settings(precision="int8", allow_drop=1))
    manifest = Manifest.read(folder)
    shutil.copy(folder / "encoder.onnx", folder / "batch.onnx")
    replace(manifest, files=describe_files(folder)).write(folder)
    ranker = Ranker.load(folder, provider="cpu")
    history = ranker.vocabulary.ids(HISTORIES[0])
    assert len(ranker.rank(history).items) == 10
    with pytest.raises(BundleError, match=r"batch\.onnx does not take and give what the manifest"):
        ranker.rank_batch([history] * SMALLEST_BATCH)


def test_a_batch_graph_that_computes_wrongly_is_not_used(
    clustered_run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "bundle"
    export_bundle(clustered_run.path, folder, Settings(precision="int8", allow_drop=1))
    manifest = Manifest.read(folder)
    graph = onnx.load(folder / "batch.onnx", load_external_data=False)
    shift = next(i for i in graph.graph.initializer if i.name == "head_no_shift")
    shift.CopyFrom(onnx.numpy_helper.from_array(np.array(40, dtype=np.int8), shift.name))
    (folder / "batch.onnx").write_bytes(graph.SerializeToString())
    replace(manifest, files=describe_files(folder)).write(folder)
    caplog.clear()
    ranker = Ranker.load(folder, provider="cpu")
    histories = [ranker.vocabulary.ids(row) for row in HISTORIES[:SMALLEST_BATCH]]
    found = ranker.rank_batch(histories)
    assert "batch.onnx is off by" in caplog.text
    assert [ranking.items for ranking in found] == [ranker.rank(row).items for row in histories]
