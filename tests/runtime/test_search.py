"""The index of clusters: its answers are those of a scan of the items that it reads."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from ranklet import BundleError, InputError, Manifest, Ranker, RankletError
from ranklet.bundle.manifest import MANIFEST, SCORE, SEARCH
from ranklet.engine.engine import Best
from ranklet_export.catalogue import Changes, save_catalogue
from ranklet_export.export import Settings, export_bundle
from ranklet_training.runs.checkpoint import Run

ITEMS, GROUPS, K, POOL = 3000, 100, 10, 32
INDEX = Settings(precision="int8", allow_drop=1, index="clusters")
HISTORIES = [
    [f"i{item:05}" for item in range(begin, begin + 40, 7)] for begin in range(0, 2900, 97)
]


def group(rows: torch.Tensor) -> torch.Tensor:
    """Put the rows around some of them: group n has the items n, n + 100, n + 200, ..."""
    return rows[torch.arange(len(rows)) % GROUPS] + 0.4 * rows.roll(1, dims=0)


@pytest.fixture(scope="session")
def grouped_run(with_rows: Callable[..., Run]) -> Run:
    return with_rows("grouped", group, ITEMS)


@pytest.fixture(scope="session")
def indexed_bundle(grouped_run: Run, build_once: Callable[..., Path]) -> Path:
    return build_once("indexed", lambda path: export_bundle(grouped_run.path, path, INDEX))


@pytest.fixture(scope="session")
def scanning(grouped_run: Run, build_once: Callable[..., Path]) -> Ranker:
    """The same run without an index."""
    settings = Settings(precision="int8", allow_drop=1)
    path = build_once("scanned", lambda path: export_bundle(grouped_run.path, path, settings))
    return Ranker.load(path, provider="cpu")


@pytest.fixture
def ranker(indexed_bundle: Path) -> Ranker:
    return Ranker.load(indexed_bundle, provider="cpu")


@pytest.fixture(scope="session")
def stored(indexed_bundle: Path) -> dict[str, NDArray[Any]]:
    """What search.onnx stores."""
    graph = onnx.load(indexed_bundle / "search.onnx").graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def users_of(ranker: Ranker) -> NDArray[np.float32]:
    return np.stack([ranker.user_vector(history) for history in HISTORIES])


def search(ranker: Ranker, user: NDArray[np.float32], probes: int, **options: Any) -> Best:
    return ranker.engine.score(user[None], K, POOL, probes=[probes], **options)


@pytest.mark.parametrize("probes", [5, 12, 30])
def test_the_graph_ranks_the_items_of_the_nearest_clusters(
    ranker: Ranker, stored: dict[str, NDArray[Any]], probes: int
) -> None:
    table = np.asarray(ranker.engine.table, dtype=np.float64)
    for user in users_of(ranker)[:10]:
        nearest = np.argsort(-(user @ stored["centroids"]), kind="stable")[:probes]
        items = np.sort(stored["members"][nearest].ravel())
        items = items[items > 0]
        scores = table[items] @ user.astype(np.float64)
        order = np.argsort(-scores, kind="stable")[:K]
        best = search(ranker, user, probes)
        assert best.items[0].tolist() == items[order].tolist()
        difference = np.abs(best.scores[0] - scores[order]).max()
        assert difference < 1e-4, f"off by {difference}"


def test_all_clusters_together_give_the_answer_of_a_scan(ranker: Ranker) -> None:
    assert ranker.manifest.index
    for user in users_of(ranker):
        found, best = (search(ranker, user, n) for n in (ranker.manifest.index.clusters, 0))
        assert (found.items == best.items).all()
        assert (found.scores == best.scores).all()


def test_exact_answers_are_those_of_a_bundle_without_an_index(
    ranker: Ranker, scanning: Ranker
) -> None:
    users = [each.users(HISTORIES[:5]) for each in (ranker, scanning)]
    pairs = [
        *zip(ranker.rank_batch(HISTORIES, exact=True), scanning.rank_batch(HISTORIES), strict=True),
        *zip(users[0].rank(exact=True), users[1].rank(), strict=True),
        (ranker.rank(HISTORIES[0], exact=True), scanning.rank(HISTORIES[0])),
        (ranker.user(HISTORIES[1]).rank(exact=True), scanning.user(HISTORIES[1]).rank()),
        (ranker.similar("i00005", exact=True), scanning.similar("i00005")),
    ]
    for found, expected in pairs:
        assert found.items == expected.items
        assert (found.scores == expected.scores).all()
        assert found.exact == expected.exact
    assert scanning.rank(HISTORIES[0], exact=True).items == scanning.rank(HISTORIES[0]).items


def test_what_an_index_finds_is_not_proven_and_nearly_all_of_the_best(ranker: Ranker) -> None:
    found, best = (ranker.rank_batch(HISTORIES, exact=exact) for exact in (False, True))
    assert not any(ranking.exact or ranking.to_dict()["exact"] for ranking in found)
    shared = [len({*a.items} & {*b.items}) / K for a, b in zip(found, best, strict=True)]
    assert np.mean(shared) > 0.9


def test_one_user_many_users_and_kept_users_get_the_same_answer(ranker: Ranker) -> None:
    batch = ranker.rank_batch(HISTORIES[:9])
    kept = ranker.users(HISTORIES[:9]).rank()
    for history, of_batch, of_kept in zip(HISTORIES, batch, kept, strict=False):
        assert ranker.rank(history).items == of_batch.items == of_kept.items


def test_requests_do_not_load_the_scan(ranker: Ranker) -> None:
    ranker.rank(HISTORIES[0], exclude_seen=True)
    ranker.rank_batch(HISTORIES[:9])
    assert SEARCH in ranker.engine.programs._sessions
    assert SCORE not in ranker.engine.programs._sessions
    ranker.reload()
    assert SCORE not in ranker.engine.programs._sessions
    ranker.rank(HISTORIES[0], exact=True)
    assert SCORE in ranker.engine.programs._sessions


@pytest.mark.parametrize("every", [2, 5, 100, 1000], ids=["50 %", "20 %", "1 %", "3 items"])
def test_filters_leave_as_many_answers_as_items(
    ranker: Ranker, scanning: Ranker, every: int
) -> None:
    some = [f"i{item:05}" for item in range(0, ITEMS, every)]
    for history in HISTORIES[:5]:
        ranking = ranker.rank(history, k=K, eligible=ranker.eligible(some), exclude_seen=False)
        best = scanning.rank(history, k=K, eligible=scanning.eligible(some), exclude_seen=False)
        assert len(ranking.items) == len(best.items) == min(K, len(some))
        assert {*ranking.items} <= {*some}
        if every >= 100:  # few items are scanned
            assert (ranking.items, ranking.exact) == (best.items, best.exact)


def test_excluded_and_seen_items_make_room_for_the_next(ranker: Ranker) -> None:
    history = HISTORIES[3]
    first = ranker.rank(history, k=20, exclude_seen=False)
    next_ones = ranker.rank(history, k=20, exclude=first.items, exclude_seen=False)
    assert len(next_ones.items) == 20
    assert not {*first.items} & {*next_ones.items}
    # Where items are excluded, more clusters are read, and no other item may be better than theirs.
    left = ranker.rank(history, k=20, exclude=first.items, exclude_seen=False, exact=True)
    assert (next_ones.scores <= left.scores + 1e-5).all()
    assert not {*ranker.rank(history, k=50, exclude_seen=True).items} & {*history}


def test_more_answers_than_the_first_clusters_hold_are_found(ranker: Ranker) -> None:
    ranking = ranker.rank(HISTORIES[2], k=700, exclude_seen=False)
    assert len({*ranking.items}) == 700
    assert (np.diff(ranking.scores) <= 0).all()


def test_points_lift_items_of_far_clusters(ranker: Ranker, scanning: Ranker) -> None:
    last = scanning.rank(HISTORIES[0], k=ITEMS, exclude_seen=False).items[-1]
    for each in (ranker, scanning):
        each.define("far", [last])
    found, best = (each.rank(HISTORIES[0], boost={"far": 1000.0}) for each in (ranker, scanning))
    assert found.items[0] == last
    assert found.items == best.items


def test_a_penalty_keeps_the_index(ranker: Ranker) -> None:
    first = ranker.rank(HISTORIES[0])
    lower = ranker.rank(HISTORIES[0], seen_recently=first.items[:1], penalty=100.0)
    assert first.items[0] not in lower.items
    assert lower.items[: K - 1] == first.items[1:]
    assert SCORE not in ranker.engine.programs._sessions


def test_points_below_0_for_most_items_lift_the_others(ranker: Ranker, scanning: Ranker) -> None:
    some = [f"i{item:05}" for item in range(0, ITEMS, 20)]
    for each in (ranker, scanning):
        each.define("some", some)
    falling = -np.log1p(np.arange(ITEMS, dtype=np.float32))
    for boost in ({"!some": -1000.0}, falling):
        for history in HISTORIES[:5]:
            found, best = (each.rank(history, boost=boost) for each in (ranker, scanning))
            assert found.items == best.items


def test_an_index_is_not_used_where_the_bundle_lifts_items_and_says_so(
    indexed_bundle: Path, ranker: Ranker, tmp_path: Path
) -> None:
    last = ranker.rank(HISTORIES[0], k=ITEMS, exact=True, exclude_seen=False).items[-1]
    for bias, is_used in ((30, False), (-1, True)):
        row, added = ranker.item_vectors([last]), np.array([bias], dtype=np.float32)
        changes = Changes(ids=["new"], rows=row, bias=added)
        target = tmp_path / str(bias)
        manifest = save_catalogue(indexed_bundle, changes, target)
        assert manifest.index
        assert (manifest.index.probes > 0) == is_used
        assert ("not used: points of the bundle" in manifest.index_text) == (not is_used)
        assert ("recall@10" in manifest.index.figures) == is_used
        saved = Ranker.load(target, provider="cpu")
        found = saved.rank(HISTORIES[0]).items
        assert (SCORE in saved.engine.programs._sessions) == (not is_used)
        assert (found[0] == "new") == (not is_used)


MEMBERS = [
    (lambda members: np.full_like(members, members[0, 0]), "answers an item twice"),
    (lambda members: members + ITEMS, "running GatherElements node"),
    (lambda members: -members, r"answers item -\d+, which is none of its catalogue"),
]


@pytest.mark.parametrize(("change", "message"), MEMBERS, ids=["one item", "beyond", "negative"])
def test_an_index_of_wrong_items_is_noticed_by_its_answers(
    indexed_bundle: Path, tmp_path: Path, change: Callable[..., Any], message: str
) -> None:
    path = Path(shutil.copytree(indexed_bundle, tmp_path / "bundle"))
    graph = onnx.load(path / "search.onnx", load_external_data=False).graph
    tensor = next(tensor for tensor in graph.initializer if tensor.name == "members")
    place = {entry.key: entry.value for entry in tensor.external_data}
    weights = np.memmap(path / place["location"], np.int32, "r+", int(place["offset"]))
    members = weights[: np.prod(tensor.dims)].reshape(tensor.dims)
    members[:] = change(members.copy())
    weights.flush()
    with pytest.raises(RankletError, match=message):
        Ranker.load(path, provider="cpu", check_digests=False).rank(HISTORIES[0])


def test_added_and_removed_items_are_those_of_a_scan(ranker: Ranker) -> None:
    best = ranker.rank(HISTORIES[0]).items
    row = ranker.item_vectors(best[:1])
    ranker.add_items({"item_id": ["new"]}, vectors=row, in_histories=False)
    ranker.remove_items(best[1:3])
    ranking = ranker.rank(HISTORIES[0])
    assert "new" in ranking.items[:2]
    assert not {*best[1:3]} & {*ranking.items}
    assert len(ranking.items) == K


def test_ties_go_to_the_lower_index(with_rows: Callable[..., Run], tmp_path: Path) -> None:
    run = with_rows("tied-groups", lambda rows: rows[torch.arange(400) % 20], 400)
    export_bundle(run.path, tmp_path / "bundle", INDEX)
    ranker = Ranker.load(tmp_path / "bundle", provider="cpu")
    assert ranker.manifest.index
    clusters = ranker.manifest.index.clusters
    for user in np.random.default_rng(0).normal(size=(20, 16)).astype(np.float32):
        found, best = (search(ranker, user, probes) for probes in (clusters, 0))
        assert (found.items == best.items).all()
        few = search(ranker, user, 4)
        assert (np.lexsort((few.items[0], -few.scores[0])) == np.arange(K)).all()


def test_a_user_of_zeros_and_one_without_numbers_are_answered_as_by_a_scan(ranker: Ranker) -> None:
    zeros = search(ranker, np.zeros(16, dtype=np.float32), 8)
    assert (zeros.scores == 0).all()
    assert len({*zeros.items[0].tolist()}) == K
    nobody = np.full(16, np.nan, dtype=np.float32)
    found, best = (search(ranker, nobody, probes) for probes in (8, 0))
    assert np.isnan(found.scores).all() == np.isnan(best.scores).all()


def test_only_a_flag_says_whether_all_items_are_scanned(ranker: Ranker) -> None:
    with pytest.raises(InputError, match=r"exact must be True or False, got 2\.5"):
        ranker.rank(HISTORIES[0], exact=2.5)  # type: ignore[arg-type]


BROKEN = [
    ({"probes": -1}, "probes=-1"),
    ({"probes": 10**6}, "probes=1000000"),
    ({"clusters": 1}, "clusters=1"),
    ({"size": 0}, "size=0"),
    ({"size": 2**50}, "size=1125899906842624"),
    ({"size": "x"}, "Index.size is 'x'"),
    ({"figures": {}}, "no 'share'"),
    (None, "index None, programs"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_an_index_that_can_not_be_is_refused(
    indexed_bundle: Path, tmp_path: Path, change: dict[str, Any] | None, message: str
) -> None:
    for file in indexed_bundle.iterdir():
        (tmp_path / file.name).symlink_to(file)
    document = json.loads((tmp_path / MANIFEST).read_bytes())
    document["index"] = change and {**document["index"], **change}
    (tmp_path / MANIFEST).unlink()
    (tmp_path / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(BundleError, match=message):
        Manifest.read(tmp_path, check_digests=False)


@pytest.mark.parametrize("how", ["exclude", "seen_recently", "skip"])
def test_what_stands_behind_many_of_the_best_is_found(ranker: Ranker, how: str) -> None:
    shares = []
    for history in HISTORIES:
        best = ranker.rank(history, k=60, exact=True).items
        named: Any = {"skip": 50} if how == "skip" else {how: best[:50]}
        if how == "seen_recently":
            named["penalty"] = 100.0
        found = ranker.rank(history, k=K, **named).items
        shares.append(len({*found} & {*best[50:]}) / K)
    assert np.mean(shares) > 0.95


def test_an_answer_does_not_depend_on_the_other_users_of_a_batch(ranker: Ranker) -> None:
    alone = [ranker.rank(history).items for history in HISTORIES]
    many = [str(item) for item in ranker.ids[:1000]]
    excluded = [[] for _ in HISTORIES] + [many]
    batch = ranker.rank_batch([*HISTORIES, HISTORIES[0]], exclude=excluded)
    assert [ranking.items for ranking in batch[:-1]] == alone
