"""Clusters of items, and the choice of how many of them are read."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from commands import ask, run
from ranklet import BundleError, InputError, Manifest, Ranker, golden
from ranklet.bundle.manifest import MANIFEST
from ranklet.errors import PrecisionError
from ranklet.golden import check_golden
from ranklet.verify import verify
from ranklet_export import probes as probes_module
from ranklet_export.catalogue import Changes, save_catalogue
from ranklet_export.clusters import assign, cluster
from ranklet_export.export import Settings, export_bundle, export_random
from ranklet_export.probes import draw_histories
from ranklet_training.runs.checkpoint import Run, read_run, read_tensors, write_run, write_tensors

INDEX = Settings(precision="int8", allow_drop=1, index="clusters")
ITEMS, GROUPS = 3000, 100


@pytest.fixture(scope="session")
def grouped_run(random_run: Callable[..., Run], build_once: Callable[..., Path]) -> Run:
    """A run whose item rows lie in groups: items n, n + 100, n + 200, ... are alike."""
    source = random_run(ITEMS, blocks=0)

    def make(path: Path) -> None:
        path.mkdir()
        write_run(Run(path, source.config, source.data, {}, source.catalogue))
        weights, _ = read_tensors(source.path / "best.safetensors")
        rows = weights["items.item"][1:].clone()
        near = rows[torch.arange(ITEMS) % GROUPS] + 0.4 * rows.roll(1, dims=0)
        weights["items.item"][1:] = near
        write_tensors(path / "best.safetensors", weights, {})

    return read_run(build_once("groups-run", make))


@pytest.fixture(scope="session")
def indexed(grouped_run: Run, build_once: Callable[..., Path]) -> Path:
    """Tests must not write into it."""
    return build_once("groups", lambda path: export_bundle(grouped_run.path, path, INDEX))


def draw(items: int, width: int = 8) -> np.ndarray:
    table = np.random.default_rng(0).normal(size=(items + 1, width)).astype(np.float32)
    table[0] = 0
    return table


@pytest.mark.parametrize("items", [1, 16, 17, 500, 5000])
def test_every_item_is_in_one_cluster(items: int) -> None:
    clusters = cluster(draw(items))
    found = clusters.members[clusters.members > 0]
    assert sorted(found.tolist()) == list(range(1, items + 1))
    assert len(clusters.members) * clusters.members.shape[1] >= items


def test_items_of_a_cluster_stand_by_rising_index_and_its_centroid_is_their_mean() -> None:
    table = draw(2000)
    clusters = cluster(table)
    for members, centroid in zip(clusters.members, clusters.centroids, strict=True):
        items = members[members > 0]
        assert (np.diff(items) > 0).all()
        assert not members[len(items) :].any()
        if len(items):
            assert np.abs(table[items].mean(axis=0) - centroid).max() < 1e-5


def test_rows_that_are_all_the_same_fill_one_cluster_after_another() -> None:
    clusters = cluster(np.ones((1001, 4), dtype=np.float32))
    assert np.count_nonzero(clusters.members) == 1000


def test_a_row_goes_to_the_nearest_centroid_with_room_and_the_nearest_rows_stay() -> None:
    rows = np.array([[0.0], [0.1], [0.2], [0.3], [5.0]], dtype=np.float32)
    centroids = np.array([[0.0], [4.0], [9.0]], dtype=np.float32)
    parts = [part.tolist() for part in assign(rows, centroids, 2)]
    assert parts == [[0, 1], [3, 4], [2]]  # 0.2 and 0.3 are late; 5.0 and then 0.3 are nearer to 4


def test_clusters_are_the_same_every_time_and_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    first = cluster(draw(3000))
    monkeypatch.setattr("ranklet_export.clusters.PRODUCTS_AT_ONCE", 1 << 12)
    again = cluster(draw(3000))
    assert (first.members == again.members).all()


def test_the_fewest_probes_that_pass_are_chosen(indexed: Path) -> None:
    manifest = Manifest.read(indexed)
    index = manifest.index
    assert index
    assert index.figures["recall@10"] >= 0.95
    assert index.figures["share"] == index.probes * index.size / ITEMS
    assert "NDCG@10" not in index.figures  # nothing was held out
    ranker = Ranker.load(indexed, provider="cpu")
    shares = np.arange(ITEMS, 0, -1)  # the events of the items, see ``random_run``
    histories = [ranker.vocabulary.ids(row) for row in draw_histories(shares, manifest.max_length)]
    found, best = (
        ranker.rank_batch(histories, exclude_seen=True, exact=exact) for exact in (False, True)
    )
    shared = [len({*a.items} & {*b.items}) / 10 for a, b in zip(found, best, strict=True)]
    assert np.mean(shared) == pytest.approx(index.figures["recall@10"])


def test_held_out_targets_are_compared_too(indexed: Path) -> None:
    ranker = Ranker.load(indexed, provider="cpu")
    questions = [np.array([item]) for item in range(1, 300, 3)]
    histories = [ranker.vocabulary.ids(row) for row in questions]
    best = ranker.rank_batch(histories, exclude_seen=True, exact=True)
    targets = [ranking.items[place % 10] for place, ranking in enumerate(best)]
    index = probes_module.choose_probes(
        ranker.manifest, lambda _: ranker, questions, ranker.vocabulary.index(targets)
    )
    found = ranker.rank_batch(histories, exclude_seen=True)
    gains = [
        sum(
            1 / np.log2(2 + ranking.items.index(target)) if target in ranking.items else 0.0
            for ranking, target in zip(rankings, targets, strict=True)
        )
        for rankings in (found, best)
    ]
    assert index.figures["NDCG@10"] == pytest.approx(gains[0] / gains[1])


def test_an_index_that_finds_too_little_is_refused_with_its_figures(
    random_run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes_module, "LEAST_RECALL", 1.01)
    run = random_run(ITEMS, blocks=0)
    with pytest.raises(PrecisionError, match=r"finds \d+\.\d+% of the best 10 .* without an index"):
        export_bundle(run.path, tmp_path / "bundle", INDEX)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4"])
def test_an_index_needs_codes_of_8_bits(precision: str) -> None:
    with pytest.raises(InputError, match=f"the precision is {precision}"):
        Settings(precision=precision, index="clusters")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="got 'trees'"):
        Settings(index="trees")  # type: ignore[arg-type]


def test_random_weights_have_an_index_that_nobody_measured(tmp_path: Path) -> None:
    shape = "items=2000,width=16,blocks=1,heads=1,length=10"
    export_random(shape, tmp_path / "bundle", INDEX)
    manifest = Manifest.read(tmp_path / "bundle")
    assert manifest.index
    assert [*manifest.index.figures] == ["share"]
    assert "which nobody measured" in manifest.index_text
    verify(tmp_path / "bundle", provider="cpu")


def test_a_manifest_without_an_index_is_that_of_earlier_versions(shipped_bundle: Path) -> None:
    document = json.loads((shipped_bundle / MANIFEST).read_bytes())
    manifest = Manifest.read(shipped_bundle, check_digests=False)
    assert "index" not in document
    assert manifest.digest == document["digest"]


def test_golden_answers_tell_an_index_that_finds_too_little(
    indexed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranker = Ranker.load(indexed, provider="cpu")
    check_golden(ranker)
    monkeypatch.setattr(golden, "LEAST_FOUND", 1.5)
    with pytest.raises(BundleError, match=r"search.onnx finds \d+ of \d+ golden items"):
        check_golden(ranker, with_model=False)


def test_a_saved_catalogue_has_an_index_of_its_items(indexed: Path, tmp_path: Path) -> None:
    ranker = Ranker.load(indexed, provider="cpu")
    history = ["i00010", "i00110"]
    best = ranker.rank(history, exact=True).items
    row = ranker.item_vectors(best[:1])
    changes = Changes(ids=["i00000x"], rows=row, removed=best[1:3])
    manifest = save_catalogue(indexed, changes, tmp_path / "saved")
    assert manifest.index
    assert manifest.index.figures["recall@10"] >= 0.95
    saved = Ranker.load(tmp_path / "saved", provider="cpu")
    ranking = saved.rank(history)
    assert "i00000x" in ranking.items[:2]
    assert not {*best[1:3]} & {*ranking.items}
    verify(tmp_path / "saved", provider="cpu")


def test_the_command_line_makes_shows_and_passes_by_an_index(
    grouped_run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "bundle"
    made = run("export", grouped_run.path, path, "--index", "clusters", "--allow-drop", 1)
    text = Manifest.read(path).index_text
    assert text in made.output
    assert text in run("inspect", path).output
    assert f"{text[0].upper()}{text[1:]}." in (path / "README.md").read_text()
    run("verify", path)
    for exact in ([], ["--exact"]):
        ranking = ask("rank", path, "--history", "i00010,i00110", *exact)
        assert ranking["exact"] == bool(exact)
        run("similar", path, "i00010", *exact)
