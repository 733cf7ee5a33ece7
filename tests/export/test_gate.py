"""A precision passes where ranking stays as good; else nothing is left, or fp32."""

import logging
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from ranklet import Ranker
from ranklet.errors import ParityError, PrecisionError
from ranklet_cli.group import cli
from ranklet_export.export import Settings, export_bundle, popular_histories
from ranklet_export.gate import check_ranking
from ranklet_training.runs.checkpoint import Model, Questions, Run, read_tensors, write_tensors


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
    path = tmp_path_factory.mktemp("coarse") / "run"
    shutil.copytree(random_run(blocks=0, scoring="dot").path, path)
    weights, _ = read_tensors(path / "best.safetensors")
    weights["items.item"][1:] *= 0.1
    weights["items.item"][1:, 0] = 40
    write_tensors(path / "best.safetensors", weights, {})
    return path


def test_the_figures_are_those_of_a_slow_count(
    any_ranker: Ranker, tiny_model: Model, questions: Questions
) -> None:
    table, precision = tiny_model.table(), any_ranker.manifest.precision
    figures = check_ranking(any_ranker, tiny_model, table, questions, 1)
    assert questions.targets is not None
    gains = []
    for history, target in zip(questions.histories, questions.targets.tolist(), strict=True):
        scores = (table @ tiny_model.serve(torch.from_numpy(history)[None], table)[0]).tolist()
        left = set(range(1, 61)) - set(history.tolist())
        rank = 1 + sum(scores[item] > scores[target] for item in left) if target in left else 11
        gains.append(1 / math.log2(rank + 1) if rank <= 10 else 0)
    assert figures["questions"] == len(gains)
    assert figures["fp32"]["NDCG@10"] == pytest.approx(np.mean(gains), abs=1e-9)
    assert figures["fp32"]["HR@10"] == pytest.approx(np.mean(np.array(gains) > 0), abs=1e-9)
    drop = 1 - figures[precision]["NDCG@10"] / figures["fp32"]["NDCG@10"]
    assert figures["drop"] == pytest.approx(drop, abs=1e-9)
    assert 1 >= figures["overlap"] >= figures["same"] > 0.8
    if precision == "fp32":
        assert (figures["same"], figures["proven"], figures["drop"]) == (1, 1, 0)
    untold = check_ranking(any_ranker, tiny_model, table, replace(questions, targets=None), 1)
    assert untold["drop"] == pytest.approx(1 - figures["overlap"])
    assert "fp32" not in untold


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


@pytest.mark.parametrize("count", [7, 11, 13, 150])
def test_another_model_fails_the_gate_but_for_the_drop_that_the_message_names(
    count: int, tiny_ranker: Ranker, tiny_model: Model, questions: Questions
) -> None:
    asked = tiny_ranker, tiny_model, tiny_model.table().flip(0)
    some = Questions(questions.histories[:count], None)
    message = rf"int8 loses .* of the best 10 on {count} drawn .*: choose --precision fp32, or"
    with pytest.raises(PrecisionError, match=message) as caught:
        check_ranking(*asked, some, 0.005)
    found = re.search(r"--allow-drop ([\d.]+)", str(caught.value))
    assert found is not None
    check_ranking(*asked, some, float(found[1]))


def test_a_drop_above_the_limit_leaves_nothing(coarse_run: Path, tmp_path: Path) -> None:
    arguments = ["export", str(coarse_run), str(tmp_path / "bundle"), "--precision", "int8"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == ParityError.exit_code
    assert re.search(r"int8 loses .* of the best 10 .* more than 0\.50%: choose", result.stderr)
    assert list(tmp_path.iterdir()) == []
    result = CliRunner().invoke(cli, [*arguments, "--allow-drop", "1"])
    assert result.exit_code == 0, result.output
    manifest = Ranker.load(tmp_path / "bundle", provider="cpu").manifest
    assert (manifest.precision, manifest.gate["drop"] > 0.05) == ("int8", True)
    assert manifest.gate_text in result.stdout
    assert manifest.gate_text.startswith("int8 on 256 drawn histories: ")


def test_auto_falls_back_to_fp32_and_says_so(
    coarse_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="ranklet_export"):
        report = export_bundle(coarse_run, tmp_path / "bundle", Settings(precision="auto"))
    assert (report.precision, report.gate) == ("fp32", {})
    assert Ranker.load(tmp_path / "bundle", provider="cpu").manifest.precision == "fp32"
    (warning,) = [r.getMessage() for r in caplog.records if r.name.startswith("ranklet_export")]
    assert warning.startswith("int8 does not pass, so this bundle is fp32: int8 loses")
