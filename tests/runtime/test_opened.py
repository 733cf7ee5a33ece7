"""What a ranker reads later than when it was loaded is of the same bundle, or an error."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ranklet import BundleError, Ranker
from ranklet import graph as graph_module
from ranklet.files.atomic import atomic_folder
from ranklet.user import User

REPLACED = "was replaced or removed since the bundle was opened: load it again"
Late = Callable[[Ranker, list[str]], object]
# What reads a file that a plain ranking does not need.
LATE: dict[str, Late] = {
    "encoder.onnx": lambda ranker, ids: ranker.rank(ids[:2], candidates=ids[3:5]),
    "model.onnx": lambda ranker, ids: ranker.rank(ids[:2], exclude=ids[3:5]),
    "append.onnx": lambda ranker, ids: rank_twice(ranker.user(ids[:2]), ids),
    "batch.onnx": lambda ranker, ids: ranker.rank_batch([ids[:2]] * 8),
    "popularity.npy": lambda ranker, _: ranker.rank([]),
    "titles.utf8": lambda ranker, ids: ranker.titles(ids),
}


def rank_twice(user: User, ids: list[str]) -> None:
    user.rank()
    user.append(ids[5])
    user.rank()


def change_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.mark.parametrize("late", LATE.values(), ids=LATE)
def test_a_bundle_that_was_replaced_is_not_mixed_with_the_old_one(
    bundle: Path, ids: list[str], late: Late
) -> None:
    ranker = Ranker.load(bundle, provider="cpu")
    before = ranker.rank(ids[:2])
    with atomic_folder(bundle) as folder:  # as ``export --replace``
        shutil.copytree(bundle, folder, dirs_exist_ok=True)
        for name in LATE:
            change_last_byte(folder / name)
    with pytest.raises(BundleError, match=REPLACED):
        late(ranker, ids)
    assert ranker.rank(ids[:2]).items == before.items


@pytest.mark.parametrize("late", LATE.values(), ids=LATE)
def test_a_bundle_that_was_copied_anew_goes_on(bundle: Path, ids: list[str], late: Late) -> None:
    ranker = Ranker.load(bundle, provider="cpu")
    with atomic_folder(bundle) as folder:
        shutil.copytree(bundle, folder, copy_function=shutil.copyfile, dirs_exist_ok=True)
    (bundle / "README.md").write_text("Ours.")
    late(ranker, ids)


@pytest.mark.parametrize("late", LATE.values(), ids=LATE)
def test_a_bundle_that_was_removed_is_named(bundle: Path, ids: list[str], late: Late) -> None:
    ranker = Ranker.load(bundle, provider="cpu")
    shutil.rmtree(bundle)
    with pytest.raises(BundleError, match=REPLACED):
        late(ranker, ids)


def test_a_bundle_that_is_replaced_while_a_graph_loads_is_refused(
    bundle: Path, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ranker, load = Ranker.load(bundle, provider="cpu"), graph_module.create_session

    def replace_first(*arguments: object) -> object:
        change_last_byte(bundle / "model.onnx.data")
        return load(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(graph_module, "create_session", replace_first)
    with pytest.raises(BundleError, match=r"model\.onnx\.data was replaced"):
        ranker.rank(ids[:2], exclude=ids[3:5])


@pytest.mark.parametrize("late", LATE.values(), ids=LATE)
def test_the_working_directory_may_change(
    bundle: Path, ids: list[str], late: Late, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle.parent)
    ranker = Ranker.load(bundle.name, provider="cpu")
    monkeypatch.chdir("/")
    late(ranker, ids)


def test_a_link_may_point_to_another_bundle_from_now_on(
    bundle: Path, ids: list[str], tmp_path: Path
) -> None:
    link, other = tmp_path / "current", tmp_path / "other"
    shutil.copytree(bundle, other)
    link.symlink_to(bundle)
    ranker = Ranker.load(link, provider="cpu")
    link.unlink()
    link.symlink_to(other)
    assert len(ranker.rank_batch([ids[:2]] * 8)) == 8
