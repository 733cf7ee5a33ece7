"""A bundle appears whole, says what it is, and holds nothing local; or it does not appear."""

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from click.testing import CliRunner

from ranklet import Manifest, Ranker
from ranklet.bundle.folder import map_table
from ranklet.bundle.manifest import CODE_BITS, FILE_NAMES, MANIFEST, WEIGHTS
from ranklet.errors import BundleError, InputError, ParityError, RunError
from ranklet.verify import verify
from ranklet_cli.group import cli
from ranklet_export import export, scorer
from ranklet_export.export import Settings, export_bundle, export_random
from ranklet_training.data.split import Split
from ranklet_training.runs.checkpoint import Questions, Run, read_run, write_run, write_tensors
from ranklet_training.runs.presets import configure

SCORE_TOLERANCE = 1e-4  # scores reach 14, where float32 has steps of 1e-6
REPLACE = Settings(replace=True)

# The bundle.


def test_the_table_is_in_the_file_once_where_the_manifest_says(
    any_ranker: Ranker, tiny_run: Run
) -> None:
    manifest, folder = any_ranker.manifest, any_ranker._opened.folder
    kind = np.float16 if manifest.precision == "fp16" else np.float32
    rows = (tiny_run.load_model().table() * 4).numpy().astype(kind)  # the root of the width
    data = (folder / WEIGHTS).read_bytes()
    assert data.count(rows.tobytes()) == 1
    assert data.index(rows.tobytes()) == manifest.table.offset
    np.testing.assert_array_equal(map_table(folder, manifest), rows)


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
    golden = json.loads((any_ranker._opened.folder / "golden.json").read_text())
    assert {len(answer["history"]) for answer in golden} == {1, 2, 5, 20}
    model = tiny_run.load_model()
    tolerance = 3e-2 if any_ranker.manifest.precision == "fp16" else SCORE_TOLERANCE
    for answer in golden:
        history = any_ranker.vocabulary.index(answer["history"])
        scores = model.serve(torch.from_numpy(history)[None], model.table()) @ model.table()[1:].T
        best = scores[0].topk(10)
        assert any_ranker.vocabulary.ids(best.indices.numpy() + 1) == answer["items"]
        assert answer["scores"] == pytest.approx(best.values.tolist(), abs=1e-5)
        ranking = any_ranker.rank(answer["history"])
        assert np.abs(ranking.scores - answer["scores"]).max() < tolerance


def test_the_manifest_says_what_was_exported(tiny_bundle: Path, tiny_run: Run) -> None:
    manifest = Manifest.read(tiny_bundle)
    assert (manifest.format, manifest.items, manifest.max_length, manifest.width) == (6, 60, 20, 16)
    assert manifest.id_type == "string"
    assert manifest.training == tiny_run.config.to_dict()
    assert manifest.data == tiny_run.data
    assert manifest.parity["max_score_difference"] < SCORE_TOLERANCE


def test_the_manifest_says_how_precise_it_is(any_ranker: Ranker) -> None:
    manifest = any_ranker.manifest
    assert manifest.table.type == ("<f2" if manifest.precision == "fp16" else "<f4")
    assert (manifest.rounding is not None) == (manifest.precision in CODE_BITS)
    figures = {"questions", "overlap", "same", "proven", "fp32", manifest.precision, "drop"}
    assert set(manifest.gate) == (set() if manifest.precision == "fp32" else figures)


def test_the_model_card_says_what_the_manifest_does(any_ranker: Ranker) -> None:
    manifest = any_ranker.manifest
    card = (any_ranker._opened.folder / "README.md").read_text()
    assert "ranks 60 items for a history of up to 20 events" in card
    assert f"width 16, 2 blocks, 2 head(s), {manifest.precision}," in card
    assert f"digest `{manifest.data['digest'][:16]}`" in card
    assert "Not evaluated" in card
    assert manifest.gate_text in card
    assert [line.split()[1] for line in card.splitlines() if line.startswith("| 1")] == ["10"]


def test_popularity_is_the_share_of_training_events(tiny_bundle: Path, tiny_run: Run) -> None:
    counts = tiny_run.catalogue["training_events"].to_numpy()
    found = np.fromfile(tiny_bundle / "popularity.f32", "<f4")
    np.testing.assert_allclose(found, counts / counts.sum(), rtol=1e-6)


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
            assert np.abs(found.scores - expected).max() < SCORE_TOLERANCE
            places = ranker.vocabulary.index(found.items)
            assert np.abs(scores[places].numpy() - expected).max() < SCORE_TOLERANCE


# Held-out questions, which the gate asks.


def test_a_run_keeps_its_validation_questions(tiny_run: Run, split: Split) -> None:
    questions = tiny_run.read_questions()
    assert questions is not None
    assert questions.targets is not None
    latest = [history[history > 0][-20:].tolist() for history in split.validation.histories]
    expected = [
        (history, target)
        for history, target in zip(latest, split.validation.targets.tolist(), strict=True)
        if history
    ]
    histories = [history.tolist() for history in questions.histories]
    found = zip(histories, questions.targets.tolist(), strict=True)
    assert sorted(found) == sorted(expected)


def test_questions_are_read_as_they_were_written(tiny_run: Run, tmp_path: Path) -> None:
    run = replace(tiny_run, path=tmp_path)
    assert run.read_questions() is None  # an older run
    histories = [np.array([3]), np.array([1, 2, 60]), np.array([5, 5])]
    run.write_questions(Questions(histories, np.array([7, 8, 9])))
    found = run.read_questions()
    assert found is not None
    assert found.targets is not None
    assert [history.tolist() for history in found.histories] == [[3], [1, 2, 60], [5, 5]]
    assert found.targets.tolist() == [7, 8, 9]


# Refusals, and what a failure leaves: nothing.


def fail_in(place: str, error: BaseException, patch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    patch.setattr(export, place, fail)


@pytest.mark.parametrize(
    "place", ["check_parity", "check_ranking", "write_catalogue", "model_card", "export_graphs"]
)
def test_an_export_that_fails_leaves_nothing_behind(
    place: str, tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = (
        ParityError("scores differ") if place == "check_parity" else OSError(errno.ENOSPC, "full")
    )
    fail_in(place, error, monkeypatch)
    with pytest.raises(type(error), match=r"scores differ|full"):
        export_bundle(tiny_run.path, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_replacement_that_fails_leaves_the_old_bundle(
    tiny_run: Run, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    fail_in("check_parity", ParityError("scores differ"), monkeypatch)
    with pytest.raises(ParityError, match="scores differ"):
        export_bundle(tiny_run.path, bundle, REPLACE)
    assert list(tmp_path.iterdir()) == [bundle]
    Manifest.read(bundle)


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


def test_a_run_that_never_reached_its_first_epoch_is_refused(tiny_run: Run, tmp_path: Path) -> None:
    run = replace(tiny_run, path=tmp_path / "run")
    run.path.mkdir()
    write_run(run)
    with pytest.raises(RunError, match=r"best\.safetensors is missing"):
        export_bundle(run.path, tmp_path / "bundle")


def test_weights_that_are_not_finite_are_refused_by_name(tiny_run: Run, tmp_path: Path) -> None:
    run = replace(tiny_run, path=tmp_path / "run")
    run.path.mkdir()
    write_run(run)
    weights = dict(tiny_run.load_model().state_dict())
    weights["norm.bias"] = torch.full_like(weights["norm.bias"], torch.nan)
    write_tensors(run.path / "best.safetensors", weights, {})
    with pytest.raises(ParityError, match=r"weight norm\.bias holds NaN or infinity"):
        export_bundle(run.path, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_catalogue_of_one_item_and_histories_of_one_event_export(
    tiny_run: Run, tmp_path: Path
) -> None:
    config = configure({"width": 8, "blocks": 1, "max_length": 1, "feed_forward": 1})
    catalogue = pl.DataFrame({"item_id": [7], "training_events": [3]})
    run = Run(tmp_path / "run", config, tiny_run.data, {}, catalogue)
    run.path.mkdir()
    write_run(run)
    model = run.build_model()
    model.init_weights()
    write_tensors(run.path / "best.safetensors", dict(model.state_dict()), {})
    assert read_run(run.path).read_questions() is None
    assert export_bundle(run.path, tmp_path / "bundle").precision == "int8"
    assert list(Ranker.load(tmp_path / "bundle", provider="cpu").rank([7, 7, 7]).items) == [7]
    assert verify(tmp_path / "bundle", provider="cpu").golden == 1


# Random weights, to size hardware before there is data.

SHAPE = "items=12,width=16,blocks=1,heads=1,length=9,feed_forward=1"


@pytest.fixture(scope="module")
def random_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("random") / "bundle"
    export_random(SHAPE, path)
    return path


def test_a_random_bundle_has_the_shape_that_was_asked_for(random_bundle: Path) -> None:
    ranker = Ranker.load(random_bundle, provider="cpu")
    manifest, model = ranker.manifest, ranker.manifest.training["model"]
    assert (manifest.items, manifest.width, manifest.max_length) == (12, 16, 9)
    assert (model["blocks"], model["heads"], model["feed_forward"]) == (1, 1, 1)
    assert (manifest.precision, manifest.gate["overlap"]) == ("int8", 1)
    numbers = [str(n) for n in range(1, 13)]
    assert sorted(ranker.rank(["7", "12"], k=12).items, key=int) == numbers


def test_a_random_bundle_says_that_nobody_trained_it(random_bundle: Path) -> None:
    assert "nobody trained these weights" in (random_bundle / "README.md").read_text()
    assert verify(random_bundle, provider="cpu").items == 12


def test_the_command_line_makes_the_same_random_bundle(random_bundle: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["export", "--random", SHAPE, str(tmp_path / "b"), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["bytes"] == sum(
        p.stat().st_size for p in (tmp_path / "b").iterdir()
    )
    first, again = (Manifest.read(path) for path in (random_bundle, tmp_path / "b"))
    same = set(first.files) - {"README.md"}  # which tells the latency
    assert {name: first.files[name] for name in same} == {name: again.files[name] for name in same}


WRONG_SHAPES = {
    "no items": ("width=16", "a random bundle needs items=..., up to 100,000,000; got 'width=16'"),
    "nothing": ("", "''"),
    "zero items": ("items=0,width=16", "needs items=.*got 'items=0,width=16'"),
    "negative items": ("items=-5", "needs items=.*got 'items=-5'"),
    "items as words": ("items=many", "needs items=.*got 'items=many'"),
    "too many items": ("items=100000001", "needs items=.*got 'items=100000001'"),
    "foreign digits": ("items=\u0661\u0662", "needs items="),
    "unknown": ("items=9,widht=3", "'widht'"),
    "twice": ("items=9,items=8", "twice"),
    "length twice": ("items=9,length=8,max_length=7", "twice"),
    "a setting of training": ("items=9,epochs=3", "'epochs'"),
    "another kind": ("items=9,kind=seed", "'kind'"),
    "no value": ("items=9,width", "width must be int, got ''"),
    "trailing comma": ("items=9,", "''"),
    "not divisible": ("items=9,width=16,heads=3", "width must be divisible by 2 . heads, got 16"),
    "no length": ("items=9,length=0", "max_length must be at least 1, got 0"),
    "text": ("items=9,blocks=two", "blocks must be int, got 'two'"),
}


@pytest.mark.parametrize(("shape", "message"), WRONG_SHAPES.values(), ids=WRONG_SHAPES)
def test_a_shape_that_can_not_be_is_named(shape: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        export_random(shape, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []
