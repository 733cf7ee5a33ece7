"""Codes choose, 32-bit scores decide, and what is called exact is."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ranklet import Manifest, Ranker
from ranklet.bundle.manifest import CODE_BITS, SCORE_MANY, Pool
from ranklet_export.export import Settings, export_bundle
from ranklet_training.runs.checkpoint import Model, Run

ITEMS, CLUSTERS = 120, 6
SCORE_TOLERANCE = 1e-4  # scores reach 14, where float32 has steps of 1e-6
HISTORIES = np.random.default_rng(0).integers(1, ITEMS + 1, (300, 5))


@pytest.fixture(scope="module")
def clustered_run(with_rows: Callable[..., Run]) -> Run:
    """A run whose items lie in six clusters: inside of one, codes can't tell who is best."""

    def rows(_: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return torch.randn(CLUSTERS, 16)[torch.arange(ITEMS) % CLUSTERS] + 3e-3 * torch.randn(
            ITEMS, 16
        )

    return with_rows("clustered", rows, ITEMS)


@pytest.fixture(scope="module", params=CODE_BITS)
def clustered(
    request: pytest.FixtureRequest,
    clustered_run: Run,
    build_once: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
    sign: Any,
) -> Callable[[int, int], Ranker]:
    """Return the bundle in few bits, with a pool of another size."""
    settings = Settings(precision=request.param, allow_drop=1)
    name = f"clustered-{request.param}"
    bundle = build_once(name, lambda path: export_bundle(clustered_run.path, path, settings))
    made: dict[Pool, Ranker] = {}

    def load(factor: int, minimum: int) -> Ranker:
        pool = Pool(factor, minimum)
        if pool not in made:
            other = tmp_path_factory.mktemp("bundles") / "bundle"
            shutil.copytree(bundle, other)
            sign(other, Manifest.read(other), pool=pool)
            made[pool] = Ranker.load(other, provider="cpu")
        return made[pool]

    return load


@pytest.fixture(scope="module")
def scores(clustered_run: Run) -> NDArray[np.float32]:
    """Scores of all items by plain torch, (histories, items)."""
    return scores_of(clustered_run.load_model(), HISTORIES)


def scores_of(model: Model, histories: NDArray[np.int64]) -> NDArray[np.float32]:
    table = model.table()
    user = model.serve(torch.from_numpy(histories), table)
    found: NDArray[np.float32] = (user @ table[1:].T).detach().numpy()
    return found


def loss_of(ranker: Ranker, items: list[Any], scores: NDArray[np.float32]) -> float:
    """Return by how much the best items left out are better than the worst that is in."""
    inside = ranker.vocabulary.index(items) - 1
    return float(np.delete(scores, inside).max(initial=-np.inf) - scores[inside].min())


@pytest.mark.parametrize("minimum", [1, 8, 32])
@pytest.mark.parametrize("k", [1, 3, 10, 20, 40, 100])
def test_what_is_called_exact_has_the_best_items(
    clustered: Any, scores: Any, k: int, minimum: int
) -> None:
    ranker = clustered(2, minimum)
    histories = [ranker.vocabulary.ids(row) for row in HISTORIES]
    together, users = ranker.rank_batch(histories, k=k), ranker.users(histories[:40])
    alone = [ranker.rank(history, k=k) for history in histories[:40]]
    for found in (together, alone, users.rank(k)):
        for ranking, expected in zip(found, scores, strict=False):
            if ranking.exact:
                assert loss_of(ranker, ranking.items, expected) <= SCORE_TOLERANCE


def test_a_small_pool_is_sometimes_wrong_and_sometimes_exact(clustered: Any, scores: Any) -> None:
    ranker = clustered(2, 1)
    histories = [ranker.vocabulary.ids(row) for row in HISTORIES]
    wrong = [
        loss_of(ranker, ranking.items, expected) > SCORE_TOLERANCE
        for ranking, expected in zip(ranker.rank_batch(histories, k=3), scores, strict=True)
    ]
    exact = [ranking.exact for ranking in ranker.rank_batch(histories, k=ITEMS // CLUSTERS)]
    assert np.mean(wrong) > 0.1
    assert np.mean(exact) > 0.1


@pytest.mark.parametrize("k", [60, 61, 119, 120, 121])
def test_a_pool_of_all_items_gives_the_order_of_fp32_and_proves_itself(
    clustered: Any, scores: Any, k: int
) -> None:
    ranker = clustered(2, 8)
    for row, expected in zip(HISTORIES[:40], scores, strict=False):
        ranking = ranker.rank(ranker.vocabulary.ids(row), k=k)
        places = ranker.vocabulary.index(ranking.items) - 1
        best = -np.sort(-expected)[:k]
        assert np.abs(expected[places] - best).max() <= SCORE_TOLERANCE
        assert np.abs(ranking.scores - best).max() <= SCORE_TOLERANCE
        assert ranking.exact


def test_scores_are_those_of_fp32_whatever_was_chosen(clustered: Any, scores: Any) -> None:
    ranker = clustered(1, 1)
    for row, expected in zip(HISTORIES, scores, strict=True):
        ranking = ranker.rank(ranker.vocabulary.ids(row), k=5)
        places = ranker.vocabulary.index(ranking.items) - 1
        assert np.abs(ranking.scores - expected[places]).max() <= SCORE_TOLERANCE


def test_excluded_items_take_no_place_of_the_pool(clustered: Any, scores: Any) -> None:
    ranker = clustered(1, 20)  # as many as a cluster has items
    for row, expected in zip(HISTORIES[:40], scores, strict=False):
        cluster = (np.arange(ITEMS) - expected.argmax()) % CLUSTERS == 0
        gone, left = np.flatnonzero(cluster) + 1, np.where(cluster, -np.inf, expected)
        history, best = ranker.vocabulary.ids(row), -np.sort(-left)[:20]
        left_ids = ranker.vocabulary.ids(np.flatnonzero(~cluster) + 1)
        for found in (
            ranker.rank(history, k=20, exclude=ranker.vocabulary.ids(gone)),
            ranker.rank(history, k=20, eligible=ranker.eligible(left_ids)),
        ):
            assert np.abs(found.scores - best).max() < 0.1


@pytest.mark.parametrize("k", [1, 10, 60])
def test_without_codes_or_a_catalogue_every_answer_is_exact(
    any_precision: Ranker, ids: list[str], k: int
) -> None:
    if any_precision.manifest.precision not in CODE_BITS:
        assert any_precision.rank(ids[:5], k=k).exact
        assert any_precision.user(ids[:5]).rank(k).exact
    assert any_precision.rank(ids[:5], k=k, candidates=ids[3:40]).exact
    assert any_precision.rank([], k=k).exact
    assert any_precision.rank(ids[:5], k=k, exclude=ids).exact


def test_a_pool_of_all_that_is_left_is_exact(any_precision: Ranker, ids: list[str]) -> None:
    some = any_precision.eligible(ids[:20])
    for options in ({"exclude": ids[25:]}, {"eligible": some}):
        assert any_precision.rank(ids[:5], k=9, **options).exact
        assert any_precision.user(ids[:5]).rank(9, **options).exact
    for k in (30, 31, 60):  # of int8, a pool of 60
        assert any_precision.rank(ids[:5], k=k).exact
        assert any_precision.rank_batch([ids[:5]] * 9, k=k)[8].exact


def test_all_precisions_give_nearly_one_ranking(
    any_precision: Ranker, exported: Callable[..., Any]
) -> None:
    ranker = any_precision
    tolerance = 3e-2 if ranker.manifest.precision == "fp16" else SCORE_TOLERANCE
    histories = np.random.default_rng(1).integers(1, 61, (50, 7))
    model = exported(Settings(precision="fp32", allow_drop=1), blocks=0).model
    for row, scores in zip(histories, scores_of(model, histories), strict=True):
        ranking = ranker.rank(ranker.vocabulary.ids(row), k=60)
        found = np.empty(60)
        found[ranker.vocabulary.index(ranking.items) - 1] = ranking.scores
        assert np.abs(found - scores).max() <= tolerance


def test_many_users_of_int8_have_a_program_of_their_own(
    any_precision: Ranker, ids: list[str]
) -> None:
    manifest = any_precision.manifest
    assert (SCORE_MANY in manifest.programs) == (manifest.precision == "int8")
    if SCORE_MANY in manifest.programs:
        least = manifest.programs[SCORE_MANY].least_users
        ranker = Ranker.load(any_precision.path, provider="cpu")
        for count in (least - 1, least):
            ranker.rank_batch([ids[:3]] * count)
            assert (SCORE_MANY in ranker.engine.programs._sessions) == (count == least)
