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

from ranklet import Manifest, Ranker
from ranklet.bundle import CODE_BITS, map_table
from ranklet.errors import BundleError, InputError, ParityError, RunError
from ranklet_export import export, head
from ranklet_export.export import Settings, export_bundle
from ranklet_export.graph import WrittenGraphs
from ranklet_training.data.split import Split
from ranklet_training.runs.checkpoint import (
    Model,
    Questions,
    Run,
    read_run,
    write_run,
    write_tensors,
)
from ranklet_training.runs.presets import configure

SCORE_TOLERANCE = 1e-4  # scores reach 14, where float32 has steps of 1e-6
REPLACE = Settings(replace=True)

# The bundle.


def test_the_table_is_in_the_file_once_where_the_manifest_says(
    tiny_bundle: Path, tiny_run: Run
) -> None:
    manifest, model = Manifest.read(tiny_bundle), tiny_run.load_model()
    rows = (model.table() * 4).numpy()  # the root of the width
    data = (tiny_bundle / "model.onnx.data").read_bytes()
    assert data.count(rows.tobytes()) == 1
    assert data.index(rows.tobytes()) == manifest.table.offset
    np.testing.assert_array_equal(map_table(tiny_bundle, manifest), rows)


def test_the_table_of_fp16_is_rounded_once(any_ranker: Ranker, tiny_run: Run) -> None:
    is_half = any_ranker.manifest.precision == "fp16"
    kind = np.float16 if is_half else np.float32
    expected = (tiny_run.load_model().table() * 4).numpy().astype(kind)
    np.testing.assert_array_equal(
        map_table(any_ranker._opened.folder, any_ranker.manifest), expected
    )


def test_the_working_folder_is_in_no_file_of_the_bundle(tiny_bundle: Path, tiny_run: Run) -> None:
    for path in tiny_bundle.iterdir():
        data = path.read_bytes()
        for local in (Path.cwd(), tiny_run.path, tiny_bundle.parent):
            assert str(local).encode() not in data, path.name


def test_the_ranker_gives_the_golden_answers(tiny_bundle: Path, tiny_ranker: Ranker) -> None:
    golden = json.loads((tiny_bundle / "golden.json").read_text())
    assert {len(answer["history"]) for answer in golden} >= {1, 2, 20}
    for answer in golden:
        ranking = tiny_ranker.rank(answer["history"], k=10)
        assert list(ranking.items) == answer["items"]
        assert np.abs(ranking.scores - answer["scores"]).max() < SCORE_TOLERANCE


def test_the_manifest_says_what_was_exported(tiny_bundle: Path, tiny_run: Run) -> None:
    manifest = Manifest.read(tiny_bundle)
    assert (manifest.items, manifest.max_length, manifest.width, manifest.opset) == (60, 20, 16, 23)
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


def test_popularity_is_the_share_of_training_events(tiny_bundle: Path, tiny_run: Run) -> None:
    counts = tiny_run.catalogue["training_events"].to_numpy()
    found = np.load(tiny_bundle / "popularity.npy")
    np.testing.assert_allclose(found, counts / counts.sum(), rtol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_bundle_that_picks_in_two_levels_ranks_as_its_model(
    precision: Any, random_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "TWO_LEVELS_FROM", 1)
    monkeypatch.setattr(head, "TWO_LEVELS_OF_BATCHES_FROM", 1)
    run = random_run(items=300, blocks=1, heads=1)
    export_bundle(run.path, tmp_path / "bundle", Settings(precision=precision))
    ranker, model = Ranker.load(tmp_path / "bundle", provider="cpu"), run.load_model()
    histories = np.random.default_rng(0).integers(1, 301, (20, 7))
    table = model.table()
    user = model.serve(torch.from_numpy(histories), table)
    for history, scores in zip(histories, user @ table.T, strict=True):
        scores[0] = scores[history] = -torch.inf
        found = ranker.rank(ranker.vocabulary.ids(history), k=290, exclude_seen=True)
        expected = scores.sort(descending=True).values[:290].numpy()
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
    histories = [np.array([3]), np.array([1, 2, 60]), np.array([5, 5])]
    run.write_questions(Questions(histories, np.array([7, 8, 9])))
    found = run.read_questions()
    assert found is not None
    assert found.targets is not None
    assert [history.tolist() for history in found.histories] == [[3], [1, 2, 60], [5, 5]]
    assert found.targets.tolist() == [7, 8, 9]


def test_an_older_run_has_no_questions(tiny_run: Run, tmp_path: Path) -> None:
    assert replace(tiny_run, path=tmp_path).read_questions() is None


# Refusals, and what a failure leaves: nothing.


@pytest.fixture
def traced(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let exports of ``tiny_run`` copy the graphs that there are, in the place of tracing anew."""
    manifest = Manifest.read(tiny_bundle)

    def copy(model: Model, folder: Path, *_: object, **__: object) -> WrittenGraphs:
        for name in ("model.onnx", "encoder.onnx", "model.onnx.data"):
            shutil.copy(tiny_bundle / name, folder)
        return WrittenGraphs(49, manifest.table, manifest.rounding, manifest.masks)

    monkeypatch.setattr(export, "export_graphs", copy)


def fail_in(place: str, error: BaseException, patch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    patch.setattr(export, place, fail)


@pytest.mark.usefixtures("traced")
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


@pytest.mark.usefixtures("traced")
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
    with pytest.raises(BundleError, match="exists: choose another folder, or replace it"):
        export_bundle(tiny_run.path, tmp_path)


def test_a_folder_that_is_no_bundle_is_not_replaced(tiny_run: Run, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(BundleError, match="is not a bundle, so it is not replaced"):
        export_bundle(tiny_run.path, tmp_path, REPLACE)
    assert (tmp_path / "thesis.tex").exists()


STRANGERS: dict[str, tuple[dict[str, str], str]] = {
    "manifest of another program": ({"manifest.json": '{"name": "my app"}'}, "is not a bundle"),
    "list": ({"manifest.json": "[1]"}, "is not a bundle"),
    "no JSON": ({"manifest.json": "{"}, "is not a bundle"),
    "notes in a bundle": (
        {"manifest.json": '{"format": 5, "items": 1, "files": {}}', "thesis.tex": "precious"},
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
    (tmp_path / "current").symlink_to("v1")
    export_bundle(tiny_run.path, tmp_path / "current", REPLACE)
    assert {path.name for path in tmp_path.iterdir()} == {"current", "v1"}
    assert (tmp_path / "current").is_symlink()
    Manifest.read(tmp_path / "v1")


@pytest.mark.parametrize("text", ["{", "[1]", "{}", '{"rows": [1]}'])
def test_a_damaged_evaluation_is_named(tiny_run: Run, tmp_path: Path, text: str) -> None:
    run = shutil.copytree(tiny_run.path, tmp_path / "run")
    (run / "evaluation.json").write_text(text)
    with pytest.raises(RunError, match=r"evaluation\.json is damaged .*: evaluate the run again"):
        export_bundle(run, tmp_path / "bundle")


@pytest.mark.usefixtures("traced")
def test_a_bundle_is_replaced_on_request(tiny_run: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    (bundle / "README.md").write_text("old")
    export_bundle(tiny_run.path, bundle, REPLACE)
    assert list(tmp_path.iterdir()) == [bundle]
    assert (bundle / "README.md").read_text() != "old"


WRONG_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "opset 17": ({"opset": 17}, "opset must be from 18 to 23, got 17"),
    "opset 24": ({"opset": 24}, "opset must be from 18 to 23, got 24"),
    "precision": (
        {"precision": "int2"},
        "precision must be auto or one of fp32, .*, int4, got 'int2'",
    ),
    "negative drop": ({"allow_drop": -0.1}, "allow_drop must be from 0 to 1, got -0.1"),
    "large drop": ({"allow_drop": 1.5}, "allow_drop must be from 0 to 1, got 1.5"),
    "drop NaN": ({"allow_drop": float("nan")}, "allow_drop must be from 0 to 1, got nan"),
}


@pytest.mark.parametrize(("values", "message"), WRONG_SETTINGS.values(), ids=WRONG_SETTINGS.keys())
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
    ranking = Ranker.load(tmp_path / "bundle", provider="cpu").rank([7, 7, 7], k=10)
    assert list(ranking.items) == [7]
