"""A bundle appears whole, says what it is, and holds nothing local; or it does not appear."""

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from ranklet import Manifest, Ranker
from ranklet.bundle.folder import map_table, read_trending
from ranklet.bundle.manifest import CODE_BITS, FILE_NAMES, MANIFEST, WEIGHTS
from ranklet.errors import BundleError, InputError, ParityError, RunError
from ranklet.verify import verify
from ranklet_cli.group import cli
from ranklet_export import export, scorer
from ranklet_export.export import Settings, export_bundle, export_random
from ranklet_export.parity import SCORE_TOLERANCE
from ranklet_training.runs.checkpoint import Run, write_run, write_tensors

REPLACE = Settings(replace=True)

# The bundle.


def test_the_table_is_in_the_file_once_where_the_manifest_says(
    any_ranker: Ranker, tiny_run: Run
) -> None:
    manifest, folder = any_ranker.manifest, any_ranker.path
    kind = np.float16 if manifest.precision == "fp16" else np.float32
    rows = (tiny_run.load_model().table() * 4).numpy().astype(kind)  # the root of the width
    data = (folder / WEIGHTS).read_bytes()
    assert data.count(rows.tobytes()) == 1
    assert data.index(rows.tobytes()) == manifest.table.offset
    np.testing.assert_array_equal(map_table(folder / WEIGHTS, manifest.table), rows)


def test_nothing_local_is_in_any_file_of_the_bundle(tiny_bundle: Path, tiny_run: Run) -> None:
    names = {path.name for path in tiny_bundle.iterdir()}
    assert names <= FILE_NAMES | {MANIFEST}
    for path in tiny_bundle.iterdir():
        data = path.read_bytes()
        for local in (Path.cwd(), tiny_run.path, tiny_bundle.parent):
            assert str(local).encode() not in data, path.name


def test_the_golden_answers_are_those_of_the_model_and_of_the_ranker(
    any_ranker: Ranker, tiny_run: Run
) -> None:
    golden = json.loads((any_ranker.path / "golden.json").read_text())
    assert {len(answer["history"]) for answer in golden} == {1, 2, 5, 20}
    model = tiny_run.load_model()
    tolerance = SCORE_TOLERANCE[any_ranker.manifest.precision]
    for answer in golden:
        history = any_ranker.vocabulary.index(answer["history"])
        scores = model.serve(torch.from_numpy(history)[None], model.table()) @ model.table()[1:].T
        best = scores[0].topk(10)
        assert any_ranker.vocabulary.ids(best.indices.numpy() + 1) == answer["items"]
        assert answer["scores"] == pytest.approx(best.values.tolist(), abs=1e-5)
        ranking = any_ranker.rank(answer["history"], exclude_seen=False)
        assert np.abs(ranking.scores - answer["scores"]).max() < tolerance


def test_a_bundle_of_every_precision_is_verified(any_ranker: Ranker) -> None:
    report = verify(any_ranker.path, provider="cpu")
    assert report.max_score_difference < SCORE_TOLERANCE[any_ranker.manifest.precision]


def test_manifest_and_card_say_what_was_exported(any_ranker: Ranker, tiny_run: Run) -> None:
    manifest, folder = any_ranker.manifest, any_ranker.path
    assert (manifest.format, manifest.items, manifest.max_length, manifest.width) == (6, 60, 20, 16)
    assert manifest.training == tiny_run.config.to_dict()
    assert manifest.data == tiny_run.data
    assert manifest.parity["max_score_difference"] < SCORE_TOLERANCE[manifest.precision]
    assert (manifest.rounding is not None) == (manifest.precision in CODE_BITS)
    assert bool(manifest.gate) == (manifest.precision != "fp32")
    card = (folder / "README.md").read_text()
    assert "ranks 60 items for a history of up to 20 events" in card
    assert f"width 16, 2 blocks, 2 head(s), {manifest.precision}," in card
    assert f"digest `{manifest.data['digest'][:16]}`" in card
    assert "Not evaluated" in card
    assert manifest.gate_text in card
    counts = tiny_run.catalogue["training_events"].to_numpy()
    shares = np.fromfile(folder / "popularity.f32", "<f4")
    np.testing.assert_allclose(shares, counts / counts.sum(), rtol=1e-6)
    recent, trending = (
        tiny_run.catalogue["recent_events"].to_numpy(),
        read_trending(folder, manifest),
    )
    assert trending is not None
    np.testing.assert_allclose(trending, recent / recent.sum(), rtol=1e-6)


def test_a_run_that_did_not_count_recent_events_has_none(exported: Any) -> None:
    ranker = exported().ranker
    assert "recent_events" not in exported().run.catalogue
    assert read_trending(ranker.path, ranker.manifest) is None


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_bundle_that_picks_in_two_levels_ranks_as_its_model(
    precision: Any, random_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorer, "TWO_LEVELS_FROM", 1)
    monkeypatch.setattr(scorer, "TWO_LEVELS_OF_MANY_FROM", 1)
    run = random_run(items=3000, blocks=0, heads=1)  # 47 chunks
    export_bundle(run.path, tmp_path / "bundle", Settings(precision=precision))
    ranker, model = Ranker.load(tmp_path / "bundle", provider="cpu"), run.load_model()
    histories = np.random.default_rng(0).integers(1, 3001, (20, 7))
    table = model.table()
    user = model.serve(torch.from_numpy(histories), table)
    for history, scores in zip(histories, user @ table.T, strict=True):
        scores[0] = scores[history] = -torch.inf
        for k in (5, 2990):
            found = ranker.rank(ranker.vocabulary.ids(history), k=k, exclude_seen=True)
            expected = scores.sort(descending=True).values[:k].numpy()
            assert np.abs(found.scores - expected).max() < SCORE_TOLERANCE[precision]
            places = ranker.vocabulary.index(found.items)
            assert np.abs(scores[places].numpy() - expected).max() < SCORE_TOLERANCE[precision]


# Refusals, and what a failure leaves: nothing.


@pytest.mark.parametrize(
    "place", ["check_parity", "check_ranking", "write_catalogue", "model_card", "export_graphs"]
)
def test_an_export_that_fails_leaves_nothing_behind_and_the_old_bundle_as_it_was(
    place: str, tiny_run: Run, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = (
        ParityError("scores differ") if place == "check_parity" else OSError(errno.ENOSPC, "full")
    )

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(export, place, fail)
    old = Path(shutil.copytree(tiny_bundle, tmp_path / "old"))
    for bundle in (tmp_path / "new", old):
        with pytest.raises(type(error), match=r"scores differ|full"):
            export_bundle(tiny_run.path, bundle, REPLACE)
    assert list(tmp_path.iterdir()) == [old]
    Manifest.read(old)


def test_an_existing_folder_is_refused(tiny_run: Run, tmp_path: Path) -> None:
    for make in (
        lambda: export_bundle(tiny_run.path, tmp_path),
        lambda: export_random("", tmp_path),
    ):
        with pytest.raises(BundleError, match="exists: choose another folder, or replace it"):
            make()


OLDER = '{"format": 5, "items": 1, "files": {}}'
STRANGERS: dict[str, tuple[dict[str, str], str]] = {
    "no manifest": ({"thesis.tex": "precious"}, "is not a bundle, so it is not replaced"),
    "manifest of another program": ({"manifest.json": '{"name": "my app"}'}, "is not a bundle"),
    "list": ({"manifest.json": "[1]"}, "is not a bundle"),
    "no JSON": ({"manifest.json": "{"}, "is not a bundle"),
    "notes in a bundle": (
        {"manifest.json": OLDER, "thesis.tex": "precious"},
        "it holds 'thesis.tex', which is no part of a bundle",
    ),
}


@pytest.mark.parametrize(("files", "message"), STRANGERS.values(), ids=STRANGERS)
def test_what_others_keep_is_not_replaced(
    tiny_run: Run, tmp_path: Path, files: dict[str, str], message: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(BundleError, match=message):
        export_bundle(tiny_run.path, tmp_path, REPLACE)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


@pytest.mark.parametrize("settings", [Settings(), REPLACE], ids=["new", "replace"])
def test_what_appeared_during_an_export_stays(
    tiny_run: Run, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, real = tmp_path / "bundle", export.model_card

    def late(*arguments: Any) -> str:
        bundle.mkdir()
        (bundle / "thesis.tex").write_text("precious")
        return real(*arguments)

    monkeypatch.setattr(export, "model_card", late)
    with pytest.raises(BundleError, match=r"bundle (exists|is not a bundle)"):
        export_bundle(tiny_run.path, bundle, settings)
    assert [path.name for path in tmp_path.rglob("*")] == ["bundle", "thesis.tex"]


def test_a_bundle_behind_a_link_is_replaced_where_it_lies(
    tiny_run: Run, tiny_bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "v1")
    (tmp_path / "v1" / "README.md").write_text("old")
    (tmp_path / "current").symlink_to("v1")
    export_bundle(tiny_run.path, tmp_path / "current", REPLACE)
    assert {path.name for path in tmp_path.iterdir()} == {"current", "v1"}
    assert (tmp_path / "current").is_symlink()
    assert (tmp_path / "v1" / "README.md").read_text() != "old"
    Manifest.read(tmp_path / "v1")


@pytest.mark.parametrize("text", ["{", "[1]", "{}", '{"rows": [1]}'])
def test_a_damaged_evaluation_is_named(tiny_run: Run, tmp_path: Path, text: str) -> None:
    run = shutil.copytree(tiny_run.path, tmp_path / "run")
    (run / "evaluation.json").write_text(text)
    with pytest.raises(RunError, match=r"evaluation\.json is damaged .*: evaluate the run again"):
        export_bundle(run, tmp_path / "bundle")


WRONG_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "precision": (
        {"precision": "int2"},
        "precision must be auto or one of fp32, .*, int4, got 'int2'",
    ),
    "negative drop": ({"allow_drop": -0.1}, "allow_drop must be from 0 to 1, got -0.1"),
    "large drop": ({"allow_drop": 1.5}, "allow_drop must be from 0 to 1, got 1.5"),
    "drop NaN": ({"allow_drop": float("nan")}, "allow_drop must be from 0 to 1, got nan"),
}


@pytest.mark.parametrize(("values", "message"), WRONG_SETTINGS.values(), ids=WRONG_SETTINGS)
def test_settings_that_no_bundle_can_have_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Settings(**values)


def test_weights_that_are_missing_or_not_finite_are_named(tiny_run: Run, tmp_path: Path) -> None:
    run = replace(tiny_run, path=tmp_path / "run")
    run.path.mkdir()
    write_run(run)
    with pytest.raises(RunError, match=r"best\.safetensors is missing"):
        export_bundle(run.path, tmp_path / "bundle")
    weights = dict(tiny_run.load_model().state_dict())
    weights["norm.bias"] = torch.full_like(weights["norm.bias"], torch.nan)
    write_tensors(run.path / "best.safetensors", weights, {})
    with pytest.raises(ParityError, match=r"weight norm\.bias holds NaN or infinity"):
        export_bundle(run.path, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == [run.path]


# Random weights, to size hardware before there is data.


def test_random_weights_of_a_shape_are_exported_alike(tmp_path: Path) -> None:
    shape = "items=12,width=16,blocks=0,length=9,feed_forward=1"
    export_random(shape, tmp_path / "a")
    command = ["export", "--random", shape, str(tmp_path / "b"), "--json"]
    result = CliRunner().invoke(cli, command)
    sizes = [path.stat().st_size for path in (tmp_path / "b").iterdir()]
    assert json.loads(result.stdout)["bytes"] == sum(sizes)
    manifest, again = (Manifest.read(tmp_path / name) for name in "ab")
    same = set(manifest.files) - {"README.md"}  # which tells the latency
    assert all(manifest.files[name] == again.files[name] for name in same)
    assert (manifest.items, manifest.width, manifest.max_length) == (12, 16, 9)
    assert (manifest.precision, manifest.gate["overlap"]) == ("int8", 1)
    assert manifest.training["model"]["blocks"] == 0
    assert "nobody trained these weights" in (tmp_path / "a" / "README.md").read_text()
    assert verify(tmp_path / "a", provider="cpu").items == 12
    ranked = Ranker.load(tmp_path / "a", provider="cpu").rank(["7", "12"], k=12).items
    assert sorted(ranked, key=int) == [str(n) for n in range(1, 13)]


def test_a_catalogue_may_have_one_item(tmp_path: Path) -> None:
    export_random("items=1,width=16,blocks=0,length=9,feed_forward=1", tmp_path / "bundle")
    assert Ranker.load(tmp_path / "bundle", provider="cpu").rank(["1"] * 3, k=10).items == ["1"]
    assert verify(tmp_path / "bundle", provider="cpu").golden > 0


WRONG_SHAPES = {
    "no items": ("width=16", "a random bundle needs items=..., up to 100,000,000; got 'width=16'"),
    "nothing": ("", "''"),
    "zero items": ("items=0,width=16", "needs items=.*got 'items=0,width=16'"),
    "too many items": ("items=100000001", "needs items=.*got 'items=100000001'"),
    "unknown": ("items=9,widht=3", "'widht'"),
    "twice": ("items=9,items=8", "twice"),
    "a setting of training": ("items=9,epochs=3", "'epochs'"),
    "another kind": ("items=9,kind=seed", "'kind'"),
    "no value": ("items=9,width", "width must be int, got ''"),
    "not divisible": ("items=9,width=16,heads=3", "width must be divisible by 2 . heads, got 16"),
    "no length": ("items=9,length=0", "max_length must be at least 1, got 0"),
}


@pytest.mark.parametrize(("shape", "message"), WRONG_SHAPES.values(), ids=WRONG_SHAPES)
def test_a_shape_that_can_not_be_is_named(shape: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        export_random(shape, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []
