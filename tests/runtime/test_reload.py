"""A ranker takes another bundle while it answers, and its kept users go on."""

import gc
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ranklet import BundleError, Manifest, Ranker, RankletError
from ranklet_export.catalogue import Changes, save_catalogue
from ranklet_export.export import Settings, export_random

THREADS = 8


@pytest.fixture(scope="module")
def versions(build_once: Callable[..., Path]) -> list[Path]:
    """Two bundles of other weights; the second lacks the first 9 items, and has 20 more."""

    def build(items: int, seed: int) -> Path:
        def make(path: Path) -> None:
            shape = f"items={items},width=16,blocks=2,heads=1,length=20"
            export_random(shape, path, Settings(precision="int8"), seed=seed)

        return build_once(f"version-{items}-{seed}", make)

    return [build(300, 0), build(320, 1)]


def answers(path: Path, histories: list[list[str]]) -> tuple[str, list[Any]]:
    ranker = Ranker.load(path, provider="cpu")
    found = [ranker.rank(history, k=7) for history in histories]
    return ranker.manifest.digest, [(r.items, r.scores.tolist()) for r in found]


def traffic(versions: list[Path], reloads: int) -> None:
    random = np.random.default_rng(0)
    histories = [[str(i) for i in random.integers(1, 300, n)] for n in (1, 4, 19)]
    expected = dict(answers(path, histories) for path in versions)
    ranker = Ranker.load(versions[0], provider="cpu")
    is_over, seen, faults = threading.Event(), set[str](), list[object]()

    def ask(number: int) -> None:
        user, calls = ranker.user(histories[2][:5]), 0
        try:
            while not is_over.is_set() or not calls:
                calls += 1
                place = (number + calls) % 3
                found = ranker.rank(histories[place], k=7)
                if (found.items, found.scores.tolist()) != expected[found.bundle][place]:
                    faults.append((found.bundle, place, found.items))
                seen.add(found.bundle)
                user.append(histories[2][calls % 19])
                assert len(user.rank(k=3).items) == 3
                time.sleep(0.002)  # else the threads share one processor with the reload
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for number in range(reloads):
        ranker.reload(versions[(number + 1) % 2])
    is_over.set()
    for thread in threads:
        thread.join()
    assert faults == []
    assert seen == {*expected}


def test_no_answer_is_mixed_of_two_bundles(versions: list[Path]) -> None:
    traffic(versions, 5)


@pytest.mark.slow
def test_no_answer_of_many_reloads_is_mixed(versions: list[Path]) -> None:
    traffic(versions, 40)


def test_a_bad_bundle_is_refused_and_the_old_one_stays(
    versions: list[Path], tmp_path: Path
) -> None:
    ranker = Ranker.load(versions[0], provider="cpu")
    before = ranker.rank(["4", "5"], k=5)
    bad = Path(shutil.copytree(versions[1], tmp_path / "bad"))
    golden = (bad / "golden.json").read_text(encoding="utf-8")
    for damage in ("truncated", "golden", "missing"):
        if damage == "truncated":
            (bad / "weights.bin").write_bytes(b"x")
        elif damage == "golden":
            shutil.rmtree(bad)
            shutil.copytree(versions[1], bad)
            other = golden.replace('"items"', '"others"', 1)
            (bad / "golden.json").write_text(other, encoding="utf-8")
        else:
            shutil.rmtree(bad)
        with pytest.raises(BundleError):
            ranker.reload(bad)
        after = ranker.rank(["4", "5"], k=5)
        assert (after.items, after.bundle) == (before.items, before.bundle)


def test_an_answer_that_differs_from_the_golden_one_refuses_a_bundle(
    versions: list[Path], tmp_path: Path, sign: Any
) -> None:
    bad = Path(shutil.copytree(versions[1], tmp_path / "bad"))
    swapped = (versions[0] / "golden.json").read_bytes()
    (bad / "golden.json").write_bytes(swapped)
    sign(bad, Manifest.read(versions[1]))
    ranker = Ranker.load(versions[0], provider="cpu")
    digest = ranker.manifest.digest
    with pytest.raises(BundleError, match="golden answer 0 differs"):
        ranker.reload(bad)
    assert ranker.manifest.digest == digest


def test_a_replaced_folder_is_reloaded_from_its_own_path(
    versions: list[Path], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(versions[0], tmp_path / "bundle"))
    ranker = Ranker.load(path, provider="cpu")
    path.rename(tmp_path / "old")
    shutil.copytree(versions[1], path)
    ranker.reload()
    assert len(ranker) == 320
    assert ranker.rank(["4"]).bundle == Manifest.read(versions[1]).digest


def test_kept_users_filters_and_removed_items_follow(versions: list[Path]) -> None:
    ranker = Ranker.load(versions[0], provider="cpu")
    ranker.define("some", ["3", "4", "310"])
    eligible = ranker.eligible(["5", "315"])
    ranker.remove_items(["7"])
    user = ranker.user(["1", "310", "2", "nowhere"])
    users = ranker.users([["1", "310"], [], ["9"]])
    assert (len(user), user.unknown) == (2, 2)
    user.rank(), users.rank()
    one = users[0]
    ranker.reload(versions[1])
    assert user.rank(k=5).items == ranker.rank(["1", "310", "2"], k=5).items
    assert (len(user), user.unknown) == (3, 1)
    assert one.rank(k=5).items == ranker.rank(["1", "310"], k=5).items
    users.append([None, "8", None])
    expected = ranker.rank_batch([["1", "310"], ["8"], ["9"]], k=5)
    assert [r.items for r in users.rank(k=5)] == [r.items for r in expected]
    assert {*ranker.rank(["1"], where="some").items} == {"3", "4", "310"}
    assert {*ranker.rank(["1"], eligible=eligible).items} == {"5", "315"}
    assert "7" not in ranker.rank(["1"], k=320).items
    assert len(ranker) == 319


def test_an_engine_that_nothing_uses_is_freed_without_the_garbage_collector(
    versions: list[Path],
) -> None:
    gc.collect()
    gc.disable()
    try:
        ranker = Ranker.load(versions[0], provider="cpu")
        ids = list(ranker.ids[-10:])
        for path in (*versions, *versions):
            engine = weakref.ref(ranker.engine)
            users, user = ranker.users([[ids[0]], ids]), ranker.user(ids)
            users.append(ids[:2])
            assert len(users.rank()) == len(ranker.rank_batch([ids, ids]))
            user.rank(diversity=0.2)
            ranker.similar(ids[0])
            ranker.reload(path)
            assert engine() is not None  # of users that have not ranked since
            user.rank()
            del users
            assert engine() is None
    finally:
        gc.enable()


def test_an_item_that_a_new_bundle_ranks_again_stays_ranked(
    versions: list[Path], tmp_path: Path
) -> None:
    save_catalogue(versions[0], Changes(removed=["7", "8"]), tmp_path / "less")
    ranker = Ranker.load(tmp_path / "less", provider="cpu")
    ranker.remove_items(["9"])
    assert len(ranker) == 297
    ranker.reload(versions[0])
    assert {*ranker.rank(["1"], k=300).items} == {*ranker.ids} - {"9"}


def test_times_of_a_kept_user_follow(
    exported: Callable[..., Any], build_once: Callable[..., Path]
) -> None:
    path = exported(time_gaps=True).ranker.path
    ranker = Ranker.load(path, provider="cpu")
    ids, times = [*map(str, ranker.ids[:4])], [10, 20, 400, 9000]
    user = ranker.user([*ids[:2], "later", *ids[2:]], times=[10, 20, 30, 400, 9000])
    before = user.rank(k=9, now=10_000)
    ranker.reload()
    after = user.rank(k=9, now=10_000)
    assert after.items == before.items == ranker.rank(ids, times=times, now=10_000, k=9).items
    assert after.scores == pytest.approx(before.scores, abs=1e-4)


def test_a_reload_fails_by_name_for_what_is_no_bundle(versions: list[Path], tmp_path: Path) -> None:
    ranker = Ranker.load(versions[0], provider="cpu")
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(RankletError, match="is not a bundle"):
            ranker.reload(path)
    begin = time.perf_counter()
    assert ranker.rank(["4"]).items
    assert time.perf_counter() - begin < 1
