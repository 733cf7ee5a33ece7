"""Bundles of random weights, to size hardware before there is data."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ranklet import Ranker
from ranklet.errors import BundleError, InputError
from ranklet.verify import verify
from ranklet_cli.group import cli
from ranklet_export import export
from ranklet_export.export import Settings, export_random

SHAPE = "items=12,width=16,blocks=1,heads=1,length=9,feed_forward=1"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("random") / "bundle"
    export_random(SHAPE, path)
    return path


def test_the_items_are_called_by_numbers(bundle: Path) -> None:
    ranker = Ranker.load(bundle, provider="cpu")
    assert sorted(ranker.vocabulary.all_ids, key=int) == [str(n) for n in range(1, 13)]
    assert sorted(ranker.rank(["7", "12"], k=12).items, key=int) == [str(n) for n in range(1, 13)]


def test_the_shape_is_the_one_that_was_asked_for(bundle: Path) -> None:
    manifest = Ranker.load(bundle, provider="cpu").manifest
    assert (manifest.items, manifest.width, manifest.max_length) == (12, 16, 9)
    model = manifest.training["model"]
    assert (model["blocks"], model["heads"], model["feed_forward"]) == (1, 1, 1)


def test_random_weights_pass_the_gate_of_int8(bundle: Path) -> None:
    manifest = Ranker.load(bundle, provider="cpu").manifest
    assert manifest.precision == "int8"
    assert manifest.gate["overlap"] == 1


def test_a_random_bundle_says_that_nobody_trained_it(bundle: Path) -> None:
    assert "nobody trained these weights" in (bundle / "README.md").read_text()
    assert verify(bundle, provider="cpu").items == 12


WRONG = {
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


@pytest.mark.parametrize(("shape", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_shape_that_can_not_be_is_named(shape: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        export_random(shape, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="exists: choose another folder"):
        export_random(SHAPE, tmp_path)


def test_the_command_line_makes_the_same_one(bundle: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["export", "--random", SHAPE, str(tmp_path / "b"), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["bytes"] == sum(path.stat().st_size for path in (tmp_path / "b").iterdir())
    first, again = (Ranker.load(path, provider="cpu").manifest for path in (bundle, tmp_path / "b"))
    assert (report["precision"], report["opset"]) == (first.precision, first.opset)
    for name in ("model.onnx", "encoder.onnx", "model.onnx.data", "golden.json"):
        assert first.files[name] == again.files[name]
    ranked = CliRunner().invoke(cli, ["rank", str(tmp_path / "b"), "--history", "1,2", "--json"])
    assert len(json.loads(ranked.stdout)["items"]) == 10


def test_the_command_line_hands_its_options_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def remember(*arguments: object) -> None:
        asked.append(arguments)
        raise InputError("enough")

    monkeypatch.setattr(export, "export_random", remember)
    options = ["--precision", "fp16", "--compact", "--opset", "20", "--allow-drop", "0.1"]
    arguments = ["export", "--random", SHAPE, str(tmp_path), *options, "--replace"]
    assert CliRunner().invoke(cli, arguments).exit_code == 4
    settings = Settings(20, "fp16", compact=True, allow_drop=0.1, replace=True)
    assert asked == [(SHAPE, tmp_path, settings)]


@pytest.mark.parametrize(
    "arguments",
    [["bundle"], ["run", "bundle", "--random", SHAPE], ["--random", SHAPE, "a", "b", "c"]],
    ids=["no run", "run and random", "three paths"],
)
def test_the_command_line_takes_a_run_or_random_weights(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli, ["export", *arguments])
    assert result.exit_code == 2
    assert "pass a RUN and a BUNDLE, or --random and a BUNDLE" in result.stderr


def test_the_command_line_names_a_wrong_shape(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["export", "--random", "items=x", str(tmp_path / "bundle")])
    assert result.exit_code == 4
    assert "got 'items=x'" in result.stderr
