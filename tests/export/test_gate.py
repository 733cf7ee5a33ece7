"""A precision passes where ranking stays as good; else nothing is left, or fp32."""

import logging
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

from ranklet import Manifest, Ranker
from ranklet.bundle.folder import describe_files
from ranklet.errors import ParityError, PrecisionError
from ranklet_cli.group import cli
from ranklet_export.export import Settings, export_bundle, popular_histories
from ranklet_export.gate import check_ranking
from ranklet_training.runs.checkpoint import Model, Questions, Run, read_tensors, write_tensors

METRIC_TOLERANCE = 1e-9


@pytest.fixture(scope="module")
def tiny_model(tiny_run: Run) -> Model:
    return tiny_run.load_model()


@pytest.fixture(scope="module")
def questions(tiny_run: Run) -> Questions:
    found = tiny_run.read_questions()
    assert found is not None
    return found


@pytest.fixture(scope="module")
def coarse_run(random_run: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose rows share one large number: a step of 8 bits is larger than all that differs."""
    source = random_run(blocks=1, heads=1, scoring="dot").path
    path = tmp_path_factory.mktemp("coarse") / "run"
    shutil.copytree(source, path)
    weights, _ = read_tensors(path / "best.safetensors")
    weights["items.item"][1:] *= 0.1
    weights["items.item"][1:, 0] = 40
    write_tensors(path / "best.safetensors", weights, {})
    return path


# Figures


def slow_figures(ranks: list[int]) -> dict[str, float]:
    gains = [1 / math.log2(rank + 1) if rank <= 10 else 0 for rank in ranks]
    hits = [rank <= 10 for rank in ranks]
    return {"NDCG@10": sum(gains) / len(ranks), "HR@10": sum(hits) / len(ranks)}


def test_the_figures_of_fp32_are_those_of_a_slow_count(
    any_ranker: Ranker, tiny_model: Model, questions: Questions
) -> None:
    table = tiny_model.table()
    figures = check_ranking(any_ranker, tiny_model, table, questions, 1)
    assert questions.targets is not None
    ranks = []
    for history, target in zip(questions.histories, questions.targets.tolist(), strict=True):
        rows = torch.from_numpy(history)[None]
        user = tiny_model.serve(rows, table)
        scores = (table @ user[0]).tolist()
        left = set(range(1, 61)) - set(history.tolist())
        better = [item for item in left if scores[item] > scores[target]]
        ranks.append(1 + len(better) if target in left else 11)
    assert figures["questions"] == len(ranks)
    assert figures["fp32"] == pytest.approx(slow_figures(ranks), abs=METRIC_TOLERANCE)


def test_fp32_loses_nothing(any_ranker: Ranker, tiny_model: Model, questions: Questions) -> None:
    figures = check_ranking(any_ranker, tiny_model, tiny_model.table(), questions, 1)
    if any_ranker.manifest.precision == "fp32":
        assert (figures["overlap"], figures["same"], figures["proven"]) == (1, 1, 1)
        assert figures["drop"] == 0
    assert figures["overlap"] >= figures["same"] > 0.8


def test_without_targets_the_overlap_counts(
    any_ranker: Ranker, tiny_model: Model, questions: Questions
) -> None:
    untold = replace(questions, targets=None)
    figures = check_ranking(any_ranker, tiny_model, tiny_model.table(), untold, 1)
    assert figures["drop"] == pytest.approx(1 - figures["overlap"])
    assert "fp32" not in figures


@pytest.mark.parametrize("left", [0, 1, 9])
def test_fewer_items_than_ten_are_no_loss(left: int, any_ranker: Ranker, tiny_model: Model) -> None:
    seen = Questions([np.arange(60 - left, 0, -1)], None)
    figures = check_ranking(any_ranker, tiny_model, tiny_model.table(), seen, 1)
    assert (figures["overlap"], figures["same"]) == (1, 1)


def test_popular_histories_hold_popular_items_and_fit() -> None:
    drawn = popular_histories(np.array([0, 90, 10, 0]), longest=7, how_many=300)
    assert drawn.targets is None
    assert {len(history) for history in drawn.histories} == set(range(1, 8))
    items = np.concatenate(drawn.histories)
    assert set(items.tolist()) == {2, 3}
    assert np.mean(items == 2) == pytest.approx(0.9, abs=0.03)  # three standard deviations


# The gate


def test_damaged_codes_fail_the_gate(
    damage: Any, tiny_bundle: Path, tiny_model: Model, questions: Questions, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    for program in ("score", "score_many"):
        model = onnx.load(bundle / f"{program}.onnx")
        damage(model.graph, "codes", lambda codes: codes.__setitem__(slice(None), codes[::-1]))
        (bundle / f"{program}.onnx").write_bytes(model.SerializeToString())
    replace(Manifest.read(tiny_bundle), files=describe_files(bundle)).write(bundle)
    ranker = Ranker.load(bundle, provider="cpu")
    with pytest.raises(PrecisionError, match=r"int8 loses .* of NDCG@10 on 150 held-out histories"):
        check_ranking(ranker, tiny_model, tiny_model.table(), questions, 0.005)


def test_a_bundle_of_another_model_fails_the_gate(
    tiny_ranker: Ranker, tiny_model: Model, questions: Questions
) -> None:
    table, untold = tiny_model.table().flip(0), replace(questions, targets=None)
    with pytest.raises(PrecisionError, match=r"int8 loses .* of the best 10 on 150 drawn"):
        check_ranking(tiny_ranker, tiny_model, table, untold, 0.005)


@pytest.mark.parametrize("count", [7, 11, 13, 150])
def test_the_drop_that_the_message_names_passes(
    count: int, tiny_ranker: Ranker, tiny_model: Model, questions: Questions
) -> None:
    asked = tiny_ranker, tiny_model, tiny_model.table().flip(0)
    some = Questions(questions.histories[:count], None)
    with pytest.raises(PrecisionError, match="choose --precision fp32, or --allow-drop") as caught:
        check_ranking(*asked, some, 0)
    found = re.search(r"--allow-drop ([\d.]+)", str(caught.value))
    assert found is not None
    check_ranking(*asked, some, float(found[1]))


def test_a_drop_above_the_limit_leaves_nothing(coarse_run: Path, tmp_path: Path) -> None:
    arguments = ["export", str(coarse_run), str(tmp_path / "bundle"), "--precision", "int8"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == ParityError.exit_code
    assert re.search(r"int8 loses .* of the best 10 .* more than 0\.50%: choose", result.stderr)
    assert list(tmp_path.iterdir()) == []


def test_auto_falls_back_to_fp32_and_says_so(
    coarse_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="ranklet_export"):
        report = export_bundle(coarse_run, tmp_path / "bundle", Settings(precision="auto"))
    assert (report.precision, report.gate) == ("fp32", {})
    assert Ranker.load(tmp_path / "bundle", provider="cpu").manifest.precision == "fp32"
    (warning,) = [r.getMessage() for r in caplog.records if r.name.startswith("ranklet_export")]
    assert warning.startswith("int8 does not pass, so this bundle is fp32: int8 loses")


def test_a_drop_that_is_allowed_passes_and_is_told(coarse_run: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    arguments = ["export", str(coarse_run), str(bundle), "--precision", "int8"]
    result = CliRunner().invoke(cli, [*arguments, "--allow-drop", "1"])
    assert result.exit_code == 0, result.output
    manifest = Ranker.load(bundle, provider="cpu").manifest
    assert manifest.precision == "int8"
    assert manifest.gate["drop"] > 0.05
    assert manifest.gate_text in result.stdout
    assert manifest.gate_text.startswith("int8 on 256 drawn histories: ")
