"""A ranker travels by the path and the digest of its bundle."""

import copy
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ranklet import BundleError, InputError, Manifest, Ranker

ELSEWHERE = (
    "import pickle, sys; ranker = pickle.load(sys.stdin.buffer)\n"
    "ranking = ranker.rank(sys.argv[1:], k=5, where='few')\n"
    "print(ranker.provider, ranker.engine.threads, *ranking.items)"
)


def sent(ranker: Ranker) -> Any:
    return pickle.loads(pickle.dumps(ranker))


TAKES = pytest.mark.parametrize(
    "take", [sent, copy.copy, copy.deepcopy], ids=["pickle", "", "deep"]
)


def test_a_ranker_answers_alike_in_another_process(tiny_bundle: Path, ids: list[str]) -> None:
    ranker = Ranker.load(tiny_bundle, provider="cpu", threads=2)
    ranker.define("few", ids[10:20])
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *ids[:3]],
        input=pickle.dumps(ranker),
        capture_output=True,
        check=True,
    )
    expected = ranker.rank(ids[:3], k=5, where="few").items
    assert done.stdout.decode().split() == ["cpu", "2", *map(str, expected)]


@TAKES
def test_a_copy_answers_alike_and_goes_its_own_way(
    ranker: Ranker, ids: list[str], take: Callable[[Ranker], Ranker]
) -> None:
    ranker.define("few", ids[10:20])
    first, second = take(ranker), take(ranker)
    expected = ranker.rank(ids[:3]).items
    first.remove_items(expected[:1])
    first.define("few", ids[:10])
    for other in (ranker, second):
        assert other.rank(ids[:3]).items == expected
        assert set(other.rank(ids[:3], where="few").items) <= {*ids[10:20]}
    assert first.rank(ids[:3]).items[0] == expected[1]
    assert sent(second).rank(ids[:3]).items == expected


@TAKES
@pytest.mark.parametrize(
    "edit",
    [
        lambda ranker, ids: ranker.remove_items(ids[:1]),
        lambda ranker, ids: ranker.retitle({ids[0]: "other"}),
        lambda ranker, ids: ranker.add_items({"item_id": ["new"]}, like={"new": ids[:1]}),
        lambda ranker, ids: ranker.add_items({"item_id": ids[:1], "maker": ["other"]}),
    ],
    ids=["removed", "retitled", "added", "other attributes"],
)
def test_a_ranker_with_another_catalogue_than_its_bundle_is_refused(
    ranker: Ranker, ids: list[str], edit: Any, take: Callable[[Ranker], Ranker]
) -> None:
    edit(ranker, ids)
    with pytest.raises(InputError, match=r"items were added, removed or retitled .* and load that"):
        take(ranker)


def test_another_bundle_or_none_at_the_path_is_refused(bundle: Path, sign: Any) -> None:
    pickled = pickle.dumps(Ranker.load(bundle, provider="cpu"))
    manifest = Manifest.read(bundle)
    sign(bundle, manifest, exclude_seen=not manifest.exclude_seen)
    digest = Manifest.read(bundle).digest
    with pytest.raises(BundleError, match=f"{digest}, not {manifest.digest} as where the ranker"):
        pickle.loads(pickled)
    shutil.rmtree(bundle)
    with pytest.raises(BundleError, match=str(bundle)):
        pickle.loads(pickled)


def test_a_bundle_is_opened_once_in_a_process(ranker: Ranker) -> None:
    assert sent(ranker).engine is sent(ranker).engine
    assert sent(ranker).engine is not ranker.engine
    assert np.shares_memory(sent(ranker).engine.table, sent(ranker).engine.table)
