"""The example ranks as the ranker does, and knows nothing of ranklet."""

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ranklet import Ranker
from ranklet.bundle.manifest import FORMAT

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "plain_onnxruntime.py"
SHIPPED = ["ml-100k", "ml-1m"]
SCORE_TOLERANCE = 1e-4


@pytest.fixture(scope="session", params=["tiny", *SHIPPED])
def any_bundle(request: pytest.FixtureRequest, tiny_bundle: Path) -> Path:
    bundle = tiny_bundle if request.param == "tiny" else ROOT / "models" / str(request.param)
    if json.loads((bundle / "manifest.json").read_text())["format"] != FORMAT:
        pytest.skip(f"{bundle} is to be exported again")
    return bundle


def test_the_example_gives_the_golden_answers_and_cuts_long_histories(
    any_bundle: Path, run_example: Any
) -> None:
    for answer in json.loads((any_bundle / "golden.json").read_text()):
        items, scores = run_example(any_bundle, answer["history"])
        assert items == [str(item) for item in answer["items"]]
        assert scores == pytest.approx(answer["scores"], abs=SCORE_TOLERANCE)
    ranker = Ranker.load(any_bundle, provider="cpu")
    size = ranker.manifest.max_length + 7
    history = ranker.vocabulary.ids(np.random.default_rng(0).integers(1, len(ranker) + 1, size))
    items, scores = run_example(any_bundle, ["no such item", *history])
    ranking = ranker.rank(history, exclude_seen=False)
    assert items == [str(item) for item in ranking.items]
    assert scores == pytest.approx(ranking.scores.tolist(), abs=SCORE_TOLERANCE)


def test_the_example_is_short_and_imports_numpy_and_onnxruntime_alone() -> None:
    text = EXAMPLE.read_text()
    assert len([line for line in text.splitlines() if line.strip()]) <= 32
    tree = ast.walk(ast.parse(text))
    modules = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in tree
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert modules == {"json", "sys", "pathlib", "numpy", "onnxruntime"}
