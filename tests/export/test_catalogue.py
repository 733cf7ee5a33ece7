"""A saved catalogue answers as a slow sort of all its scores does, and needs no torch."""

import json
import math
import multiprocessing
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
import torch
from numpy.typing import NDArray

from ranklet import BundleError, InputError, Manifest, Ranker
from ranklet.attributes import Attributes
from ranklet.bundle.folder import Opened, describe_files, read_bias, read_popularity, read_titles
from ranklet.bundle.manifest import BIAS, NEVER, WEIGHTS
from ranklet.files.atomic import sha256
from ranklet.golden import ask_model
from ranklet.item_features import learn
from ranklet.verify import verify
from ranklet_export import rewrite
from ranklet_export.catalogue import Changes, changes_of, save_catalogue
from ranklet_export.export import Settings, export_bundle
from ranklet_export.parity import SCORE_TOLERANCE
from ranklet_training.runs.checkpoint import Model, Run, write_run

Floats = NDArray[np.float32]
Exported = Any  # of conftest
FP32, INT8 = Settings(precision="fp32"), Settings(precision="int8")
CASES: dict[str, tuple[Settings, dict[str, Any]]] = {
    "int8": (INT8, {}),
    "fp32, window": (FP32, {"blocks": 3, "attention_window": 3}),
    "compact, gated, one head": (
        Settings(compact=True),
        {"block": "gated", "heads": 1, "activation": "swiglu"},
    ),
    "fp16, gated, two heads": (Settings(precision="fp16"), {"block": "gated", "scoring": "dot"}),
    "int4": (Settings(precision="int4", allow_drop=1), {}),
    "times": (FP32, {"time_gaps": True}),
    "kinds": (INT8, {"kinds": "use"}),
    "no blocks": (INT8, {"blocks": 0}),
    "one block": (INT8, {"blocks": 1, "heads": 1, "activation": "swiglu"}),
    "seed": (INT8, {"kind": "seed", "heads": 1}),
}
# Before, between and behind the known ones, in no order.
NEW = ["z", "i00007b", "a", "i00", "i00059x", "é"]
GONE = ["i00001", "i00030"]


def draw(model: Model, count: int, seed: int = 0) -> torch.Tensor:
    """Return new rows of a model's item table, alike in size to those that are there."""
    table, generator = model.table(), torch.Generator().manual_seed(seed)
    rows = torch.randn(count, table.shape[1], generator=generator)
    return rows / rows.norm(dim=1, keepdim=True) * table[1:].norm(dim=1).mean()


def served(model: Model, rows: torch.Tensor) -> Floats:
    """Return rows as the item table of a bundle has them."""
    scale = 1.0 if model.config.kind == "seed" else model.config.width**0.5
    scaled: Floats = (rows * scale).numpy()
    return scaled


class Reference:
    """All scores of a catalogue by the torch model, sorted by score and then by id."""

    def __init__(self, model: Model, ids: list[Any], table: torch.Tensor) -> None:
        self.model, self.ids, self.table = model, ids, table
        self.bias = dict.fromkeys(ids, 0.0)

    def rank(self, history: list[Any], k: int) -> list[tuple[Any, float]]:
        places = torch.tensor([[self.ids.index(item) + 1 for item in history]])
        gaps = (torch.zeros_like(places), torch.zeros_like(places[:, 0]))
        kinds = (torch.zeros_like(places), torch.eye(self.model.kinds + 1)[:1])  # unknown, any
        with torch.no_grad():
            user = self.model.serve(
                places,
                self.table,
                gaps if self.model.config.time_gaps else None,
                kinds if self.model.kinds else None,
            )
        scores = (user[0] @ self.table[1:].T).tolist()
        pairs = [
            (item, score + self.bias[item]) for item, score in zip(self.ids, scores, strict=True)
        ]
        shown = [pair for pair in pairs if pair[1] > -1e30]
        return sorted(shown, key=lambda pair: (-pair[1], pair[0]))[:k]


def same(found: Any, expected: list[tuple[Any, float]], tolerance: float) -> None:
    """Compare a ranking; items may change places only where scores tie."""
    scores = np.array([score for _, score in expected])
    off = np.abs(found.scores - scores)
    assert off.max() <= tolerance, f"off by {off.max():.1e}"
    right = dict(expected)
    for item, score in zip(found.items, found.scores, strict=True):
        assert item not in right or abs(right[item] - score) <= tolerance
        assert item in right or abs(scores[-1] - score) <= tolerance


@pytest.fixture(scope="module")
def saved(
    exported: Callable[..., Exported], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Exported, Ranker, Reference]]:
    """Add to and remove from a bundle in two steps; return it, its ranker and the reference."""
    made: dict[str, tuple[Exported, Ranker, Reference]] = {}

    def make(name: str) -> tuple[Exported, Ranker, Reference]:
        if name in made:
            return made[name]
        how, settings = CASES[name]
        old = exported(how, **settings)
        folder = tmp_path_factory.mktemp("saved")
        rows = draw(old.model, len(NEW))
        bias = -np.arange(len(NEW), dtype=np.float32) / 8
        ids = [*old.ranker.ids, *NEW]
        reference = Reference(old.model, ids, torch.cat([old.model.table(), rows]))
        reference.bias |= {
            **dict(zip(NEW, bias.tolist(), strict=True)),
            **dict.fromkeys(GONE, NEVER),
        }
        first = Changes(NEW[:4], served(old.model, rows[:4]), bias[:4], removed=GONE[:1])
        save_catalogue(old.ranker.path, first, folder / "first")
        second = Changes(NEW[4:], served(old.model, rows[4:]), bias[4:], removed=GONE[1:])
        save_catalogue(folder / "first", second, folder / "second")
        made[name] = old, Ranker.load(folder / "second", provider="cpu"), reference
        return made[name]

    return make


# These have every part between them, and tests of export have the same models.
USUAL = {"int8", "fp32, window", "compact, gated, one head", "times"}
each_case = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in USUAL else pytest.mark.slow) for name in CASES],
)


@each_case
def test_a_saved_catalogue_answers_as_a_slow_sort_of_all_scores_does(
    name: str, saved: Callable[..., Any]
) -> None:
    old, ranker, reference = saved(name)
    tolerance = SCORE_TOLERANCE[ranker.manifest.precision]
    assert list(ranker.ids) == sorted(reference.ids)
    histories = [["i00005"], ["i00001", "i00012", "i00059"], NEW, ["é", "i00007b", "i00002"] * 3]
    for history in histories:
        expected = reference.rank(history, 10)
        same(ranker.rank(history, exclude_seen=False), expected, tolerance)
        user = ranker.user(history[:-1])
        user.rank()
        user.append(history[-1])
        same(user.rank(exclude_seen=False), expected, tolerance)
        model = ask_model(ranker.engine.programs, ranker.vocabulary, history, 10)
        same(model, expected, tolerance)
    many = ranker.rank_batch(histories * 3, exclude_seen=False)  # by score_many.onnx
    for found, history in zip(many, histories * 3, strict=True):
        same(found, reference.rank(history, 10), tolerance)
    if old.ranker.manifest.precision == "int8":
        assert list(ranker.manifest.programs) == list(old.ranker.manifest.programs)


@each_case
def test_a_saved_catalogue_is_a_whole_bundle(name: str, saved: Callable[..., Any]) -> None:
    old, ranker, _ = saved(name)
    folder, before, manifest = ranker.path, old.ranker.manifest, ranker.manifest
    report = verify(folder, provider="cpu")
    assert manifest.items == len(old.ranker) + len(NEW)
    assert report.items == manifest.items - len(GONE)
    assert report.golden == 6  # five, and one of the latest items
    assert manifest.quality == before.quality
    assert manifest.gate == before.gate
    assert [
        {key: change[key] for key in ("added", "removed", "retitled")}
        for change in manifest.data["changes"]
    ] == [{"added": 4, "removed": 1, "retitled": 0}, {"added": 2, "removed": 1, "retitled": 0}]
    digest = json.loads((old.ranker.path / "manifest.json").read_bytes())["digest"]
    assert manifest.data["changes"][0]["from"] == digest
    assert "6 added, 2 removed, 0 retitled items" in (folder / "README.md").read_text()
    popularity = dict(zip(ranker.ids, read_popularity(folder, manifest).tolist(), strict=True))
    assert popularity == {
        **dict(
            zip(
                old.ranker.ids,
                read_popularity(old.ranker.path, before).tolist(),
                strict=True,
            )
        ),
        **dict.fromkeys(NEW, 0),
    }


@each_case
def test_weights_stand_once_and_known_items_keep_every_row(
    name: str, saved: Callable[..., Any]
) -> None:
    old, ranker, _ = saved(name)
    of_known = ranker.vocabulary.index(list(old.ranker.ids))
    for program in ranker.manifest.programs.values():
        tensors = {}
        for each in (old.ranker, ranker):
            folder = each.path
            graph = onnx.load(folder / program.file).graph
            tensors[each] = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        before, after = tensors[old.ranker], tensors[ranker]
        if program.file.startswith("score"):
            continue
        assert list(before) == list(after)
        for tensor in before:
            if before[tensor].shape == after[tensor].shape and tensor != "first_mask":
                np.testing.assert_array_equal(before[tensor], after[tensor])
    np.testing.assert_array_equal(
        ranker.engine.table[of_known], old.ranker.engine.table[1 : len(of_known) + 1]
    )
    sizes = [(each.path / WEIGHTS).stat().st_size for each in (old.ranker, ranker)]
    assert sizes[1] < 1.3 * sizes[0] + 8192


# The score that hides events from the first block.


def test_a_new_item_that_asks_louder_lowers_the_score_that_hides_events(
    exported: Callable[..., Exported], tmp_path: Path
) -> None:
    old = exported(FP32, blocks=3, attention_window=3)
    rows = draw(old.model, 4000, seed=5)
    loudest = save_and_hide(old, rows, tmp_path / "loud")
    before = hidden_in(old.ranker.path, "append")
    assert loudest <= before
    assert all(hidden_in(tmp_path / "loud", name) == loudest for name in ("encode", "append"))


def save_and_hide(old: Exported, rows: torch.Tensor, target: Path) -> float:
    ids = [f"n{number}" for number in range(len(rows))]
    save_catalogue(old.ranker.path, Changes(ids, served(old.model, rows)), target)
    return hidden_in(target, "append")


def hidden_in(bundle: Path, program: str) -> float:
    graph = onnx.load(bundle / f"{program}.onnx").graph
    mask = next(t for t in graph.initializer if t.name == "first_mask")
    return float(onnx.numpy_helper.to_array(mask).min())


# Ids and titles


def with_integer_ids(run: Run, path: Path) -> Run:
    """Return a run whose ids are even integers from 2 on."""
    catalogue_of_run = run.catalogue.with_columns(
        pl.Series("item_id", range(2, 2 * len(run.catalogue) + 2, 2))
    )
    path.mkdir()
    changed = replace(run, path=path, catalogue=catalogue_of_run)
    write_run(changed)
    shutil.copy(run.path / "best.safetensors", path)
    return changed


def test_integer_ids_stay_sorted_by_value(random_run: Callable[..., Run], tmp_path: Path) -> None:
    run = with_integer_ids(random_run(), tmp_path / "run")
    export_bundle(run.path, tmp_path / "old", INT8)
    model, new = run.load_model(), [-7, 5, 10**12, 3]
    rows = draw(model, len(new))
    save_catalogue(tmp_path / "old", Changes(new, served(model, rows)), tmp_path / "new")
    ranker, old_ids = Ranker.load(tmp_path / "new"), run.catalogue["item_id"].to_list()
    assert ranker.ids.tolist() == sorted([*old_ids, *new])  # type: ignore[union-attr]
    reference = Reference(model, [*old_ids, *new], torch.cat([model.table(), rows]))
    for history in ([4, 120], [5, -7, 2]):
        same(ranker.rank(history, exclude_seen=False), reference.rank(history, 10), 1e-4)


def test_equal_scores_are_sorted_by_id(exported: Callable[..., Exported], tmp_path: Path) -> None:
    old = exported(INT8)
    twin = np.asarray(old.ranker.engine.table[old.ranker.vocabulary.index(["i00020"])])
    changes = Changes(["i00019b", "zz"], twin.repeat(2, axis=0))
    save_catalogue(old.ranker.path, changes, tmp_path / "new")
    ranking = Ranker.load(tmp_path / "new").rank(["i00003"], k=62, exclude_seen=False)
    place = ranking.items.index("i00020")  # type: ignore[arg-type]
    assert ranking.items[place - 1 : place + 2] == ["i00019b", "i00020", "zz"]


def test_titles_are_given_to_new_and_known_items_and_stay_elsewhere(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    old = Ranker.load(tiny_bundle)
    first, second = old.vocabulary.ids(np.array([1, 2]))
    before = dict(zip(old.ids, old.titles(list(old.ids)), strict=True))
    changes = Changes(
        ["0new", "1new"],
        np.asarray(old.engine.table[1:3]),
        titles={"0new": "Näw", first: "Old"},
        removed=[second],
    )
    save_catalogue(tiny_bundle, changes, tmp_path / "new")
    ranker = Ranker.load(tmp_path / "new")
    found = dict(zip(ranker.ids, ranker.titles(list(ranker.ids)), strict=True))
    assert found == {**before, "0new": "Näw", "1new": "1new", first: "Old"}
    assert ranker.manifest.data["changes"][0]["retitled"] == 1


def test_a_bundle_without_titles_gets_them(
    exported: Callable[..., Exported], tmp_path: Path
) -> None:
    folder = exported(FP32).ranker.path
    save_catalogue(folder, Changes(titles={"i00003": "Three"}), tmp_path / "new")
    ranker = Ranker.load(tmp_path / "new")
    assert ranker.titles(["i00003", "i00004"]) == ["Three", "i00004"]
    assert not (tmp_path / "new" / BIAS).exists()


# Attributes


BRANDS = [f"b{number % 7}" for number in range(60)]
PRICES = [None if number % 5 == 0 else number / 2 for number in range(60)]
TAGS = [[f"t{part}" for part in range(number % 4)] for number in range(60)]


@pytest.fixture
def with_attributes(tiny_bundle: Path, tmp_path: Path) -> Path:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "attributes"))
    columns = {"brand": BRANDS, "price": PRICES, "tags": TAGS}
    kinds: Any = {"brand": "category", "price": "number", "tags": "categories"}
    every = learn(Attributes.empty(kinds).with_items(columns, np.arange(1, 61), 60), columns)
    manifest = replace(Manifest.read(bundle), attributes=every.write(bundle))
    replace(manifest, files=describe_files(bundle)).write(bundle)
    return bundle


def values_of(bundle: Path) -> dict[str, dict[Any, Any]]:
    """Return the values of every attribute by the ids of items."""
    ranker = Ranker.load(bundle)
    attributes, ids = Attributes.read(bundle, ranker.manifest), list(ranker.ids)
    places = np.arange(1, len(ids) + 1)
    prices: Any = attributes.column("price")
    found: dict[str, dict[Any, Any]] = {
        "price": dict(zip(ids, prices.numbers.tolist(), strict=True))
    }
    for name in ("brand", "tags"):
        values, codes = attributes.values(name), attributes.codes(name, places)
        found[name] = {i: [values[c] for c in own] for i, own in zip(ids, codes, strict=True)}
    return found


def test_attributes_follow_their_items_to_new_places(with_attributes: Path, tmp_path: Path) -> None:
    ranker = Ranker.load(with_attributes)
    ids = list(ranker.ids)
    table = {
        "item_id": ["zz", "aa", ids[3]],
        "brand": ["new brand", "b1", "b6"],
        "price": [9.5, None, 4],
        "tags": ["t1|x", [], ["y"]],
    }
    vectors = np.asarray(ranker.engine.table[[7, 8, 9]])
    ranker.add_items(table, vectors=vectors)
    save_catalogue(with_attributes, changes_of(ranker._serving), tmp_path / "new")
    found = values_of(tmp_path / "new")
    brands = {item: [brand] for item, brand in zip(ids, BRANDS, strict=True)}
    assert found["brand"] == {**brands, "zz": ["new brand"], "aa": ["b1"], ids[3]: ["b6"]}
    tags = dict(zip(ids, TAGS, strict=True))
    assert found["tags"] == {**tags, "zz": ["t1", "x"], "aa": [], ids[3]: ["y"]}
    prices = dict(zip(ids, [math.nan if p is None else p for p in PRICES], strict=True))
    np.testing.assert_equal(found["price"], {**prices, "zz": 9.5, "aa": math.nan, ids[3]: 4})
    # The answers are those of the ranker that had them added, filtered, too.
    new = Ranker.load(tmp_path / "new")
    for where in (None, {"brand": ["new brand", "b1"]}, {"price": (3, 10), "tags": "t1"}):
        for history in ([ids[0]], ids[5:9]):
            expected = ranker.rank(history, k=20, where=where)
            answer = new.rank(history, k=20, where=where)
            assert answer.items == expected.items
            np.testing.assert_allclose(answer.scores, expected.scores, atol=1e-4)


def test_attributes_of_items_that_are_added_without_them_are_missing(
    with_attributes: Path, tmp_path: Path
) -> None:
    ids = list(Ranker.load(with_attributes).ids)
    save_catalogue(with_attributes, Changes(["aa"], ROW), tmp_path / "new")
    found = values_of(tmp_path / "new")
    assert found["brand"] == {"aa": [], **{i: [b] for i, b in zip(ids, BRANDS, strict=True)}}
    assert math.isnan(found["price"]["aa"])


# Refusals


ROW = np.ones((1, 16), dtype=np.float32)
REFUSED: dict[str, tuple[Changes, str]] = {
    "known": (Changes(["i00003"], ROW), r"ids\[0\] is 'i00003', which the catalogue has already"),
    "twice": (Changes(["a", "a"], ROW.repeat(2, 0)), r"ids\[1\] is 'a', which stands in ids\[0\]"),
    "integer": (Changes([7], ROW), r"ids\[0\] is 7 \(int\); this bundle has text item ids"),
    "width": (Changes(["a"], ROW[:, :3]), r"rows has shape \(1, 3\); these items need \(1, 16\)"),
    "no rows": (Changes(["a"]), r"rows has shape \(\)|rows holds no numbers"),
    "NaN": (Changes(["a"], ROW * np.nan), r"rows\[0\]\[0\] is nan; numbers must be finite"),
    "bias": (
        Changes(["a"], ROW, np.array([np.inf], dtype=np.float32)),
        r"bias\[0\] is inf; numbers must be finite",
    ),
    "unknown removed": (Changes(removed=["a"]), r"removed\[0\] is 'a', which the catalogue does"),
    "unknown title": (Changes(titles={"a": "b"}), r"titles\[0\] is 'a', which the catalogue does"),
    "no text": (Changes(titles={"i00003": 7}), r"titles\['i00003'\] is 7; a title is text"),  # type: ignore[dict-item]
    "nothing left": (
        Changes(removed=[f"i{number:05}" for number in range(60)]),
        "no item would be left to rank",
    ),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_possible_is_refused_by_name_and_nothing_is_written(
    changes: Changes, message: str, exported: Callable[..., Exported], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        save_catalogue(exported(FP32).ranker.path, changes, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_an_existing_target_is_replaced_only_if_that_is_said(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    item = Ranker.load(bundle).vocabulary.ids(np.array([1]))
    with pytest.raises(BundleError, match="exists: choose another folder"):
        save_catalogue(bundle, Changes(removed=item), bundle)
    save_catalogue(bundle, Changes(removed=item), bundle, replace_target=True)
    bias = read_bias(bundle, Manifest.read(bundle))
    assert bias is not None
    assert bias[0] == np.float32(NEVER)
    assert not bias[1:].any()
    assert item[0] not in Ranker.load(bundle).rank([*item], k=50, exclude_seen=False).items


def test_an_older_bundle_takes_no_items_but_loses_them(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "old"))
    (bundle / "first_block.onnx").unlink()
    manifest = Manifest.read(tiny_bundle)
    programs = {n: p for n, p in manifest.programs.items() if n != "first_block"}
    replace(manifest, programs=programs, files=describe_files(bundle)).write(bundle)
    with pytest.raises(BundleError, match=r"has no first_block.onnx, which new items need: an old"):
        save_catalogue(bundle, Changes(["a"], ROW), tmp_path / "new")
    item = Ranker.load(bundle).vocabulary.ids(np.array([9]))
    save_catalogue(bundle, Changes(removed=item), tmp_path / "new")
    verify(tmp_path / "new")


# Processes


def test_torch_is_not_loaded(tiny_bundle: Path, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, numpy\n"
        "from ranklet_export.catalogue import Changes, changes_of, save_catalogue\n"
        "changes = Changes(['new'], numpy.ones((1, 16), dtype=numpy.float32))\n"
        f"save_catalogue(pathlib.Path({str(tiny_bundle)!r}), changes, "
        f"pathlib.Path({str(tmp_path / 'new')!r}))\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "polars", "click", "ranklet_training"} & set(loaded)


def save_in_place(bundle: Path, most_bytes: int | None) -> None:
    if most_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    save_catalogue(bundle, Changes(["new"], ROW), bundle, replace_target=True)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_full_disk_leaves_the_bundle_as_it_was(
    share: float, tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    save_catalogue(bundle, Changes(["new"], ROW), tmp_path / "saved")
    size = int(share * (tmp_path / "saved" / WEIGHTS).stat().st_size)
    shutil.rmtree(tmp_path / "saved")
    process = multiprocessing.get_context("spawn").Process(
        target=save_in_place, args=(bundle, size)
    )
    process.start()
    process.join()
    assert process.exitcode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert {p.name: sha256(p) for p in bundle.iterdir()} == {
        p.name: sha256(p) for p in tiny_bundle.iterdir()
    }


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_whole_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    context, seen = multiprocessing.get_context("spawn"), set()
    for step in range(12):
        process = context.Process(target=save_in_place, args=(bundle, None))
        process.start()
        while process.is_alive() and not list(tmp_path.glob(".bundle.*")):
            time.sleep(0.001)
        time.sleep(0.03 * step)
        process.kill()
        process.join()
        if not bundle.exists():  # between two renames: the old one lies beside it, whole
            (aside,) = [p for p in tmp_path.glob(".bundle.*") if (p / "manifest.json").exists()][:1]
            aside.rename(bundle)
        seen.add(verify(bundle).items)
        for path in tmp_path.glob(".bundle.*"):
            shutil.rmtree(path)
        shutil.rmtree(bundle)
        shutil.copytree(tiny_bundle, bundle)
    assert 60 in seen
    assert seen <= {60, 61}


def test_a_bundle_that_does_not_verify_is_not_left(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = rewrite._copy_weights

    def damage(old: Any, graph: Any, weights: Any, changed: Any, hidden: float) -> None:
        copy(old, graph, weights, {**changed, "table": changed["table"][::-1]}, hidden)

    monkeypatch.setattr(rewrite, "_copy_weights", damage)
    with pytest.raises(BundleError, match=r"golden answer 0 .*differs"):
        save_catalogue(tiny_bundle, Changes(["new"], ROW), tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_a_bias_that_is_no_number_is_damage(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    bias = np.zeros(60, dtype="<f4")
    bias[7] = np.nan
    bias.tofile(bundle / BIAS)
    manifest = replace(Manifest.read(tiny_bundle), files=describe_files(bundle))
    manifest.write(bundle)
    with pytest.raises(BundleError, match=r"bias.f32 holds NaN, infinity or numbers beyond"):
        Ranker.load(bundle)
    assert read_titles(Opened(bundle).folder, manifest) is not None


@pytest.mark.parametrize("in_histories", [False, True])
def test_a_saved_ranker_answers_as_the_one_that_had_the_items_added(
    exported: Callable[..., Exported], tmp_path: Path, in_histories: bool
) -> None:
    bundle = exported(INT8).ranker.path
    ranker, known = Ranker.load(bundle, provider="cpu"), [*exported(INT8).ranker.ids]
    vectors = np.random.default_rng(2).normal(size=(len(NEW), ranker.manifest.width))
    table = [{"item_id": item, "title": f"New {item}"} for item in NEW]
    ranker.add_items(table, vectors=vectors, bias=-0.25, in_histories=in_histories)
    ranker.remove_items([known[3], NEW[1]])
    save_catalogue(bundle, changes_of(ranker._serving), tmp_path / "saved")
    saved = Ranker.load(tmp_path / "saved", provider="cpu")
    verify(tmp_path / "saved", provider="cpu")
    assert len(saved) == len(ranker)
    for history in ([known[5], NEW[0], NEW[4]], [NEW[2]], [*known[:9], NEW[5]]):
        for how in ({"exclude_seen": False}, {"exclude_seen": True, "k": 70}):
            rankings = [each.rank(history, **how) for each in (ranker, saved)]
            rankings += [each.user(history).rank(**how) for each in (ranker, saved)]
            first, *others = rankings
            for other in others:
                assert (other.items, other.cold) == (first.items, first.cold)
                assert other.scores == pytest.approx(first.scores, abs=1e-4)
