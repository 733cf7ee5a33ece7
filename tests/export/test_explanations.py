"""The card says how far attention agrees with the drops of scores."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ranklet import Ranker
from ranklet.bundle.manifest import Manifest
from ranklet.explanation import EXAMINED, Effects
from ranklet_export.explanations import _correlation, _found, measure_explanations
from ranklet_training.runs.checkpoint import Questions, Run


def effects_of(attention: list[float], drops: list[float]) -> Effects:
    """Return the effects of all events on two items, whose mean drops are these."""
    shares, examined = np.array(attention, np.float32), np.argsort(-np.array(attention))
    both = np.array([drops, drops], np.float32)[:, examined]
    both[0] += 1
    both[1] -= 1
    return Effects(shares, examined, both)


def test_the_rank_correlation_is_that_of_scipy() -> None:
    random = np.random.default_rng(0)
    for ties in (False, True):
        attention, drops = random.random(20), random.normal(size=20)
        if ties:
            attention, drops = attention.round(1), drops.round(0)
        effects = effects_of(attention.tolist(), drops.tolist())
        expected = stats.spearmanr(attention, drops).statistic
        assert _correlation(effects, effects.drops) == pytest.approx(expected, abs=1e-6)
    assert _correlation(effects_of([0.5, 0.5], [1, 2]), np.array([[1, 2]])) == 0


def test_the_largest_drops_are_looked_for_among_the_examined_events() -> None:
    attention = np.linspace(1, 0, 12).tolist()  # the first are examined
    drops = [0.0] * 12
    drops[0], drops[EXAMINED - 1], drops[EXAMINED] = 3, 2, 1
    assert _found(effects_of(attention, drops)) == pytest.approx(2 / 3)


def test_the_manifest_and_the_card_say_how_far_attention_agrees(
    tiny_run: Run, tiny_bundle: Path
) -> None:
    figures = Manifest.read(tiny_bundle).explanation
    ranker, questions = Ranker.load(tiny_bundle, provider="cpu"), tiny_run.read_questions()
    assert questions is not None
    assert figures == pytest.approx(measure_explanations(ranker, questions), abs=1e-6)
    assert figures["held_out"]
    fewest, median, most = (figures[f"{name}_events"] for name in ("fewest", "median", "most"))
    assert EXAMINED < fewest <= median <= most == 20
    card = (tiny_bundle / "README.md").read_text()
    assert f"{figures['found']:.0%} of the 3 largest drops" in card


def test_short_histories_have_nothing_to_find(exported: Any, tiny_ranker: Ranker) -> None:
    assert measure_explanations(tiny_ranker, Questions([np.arange(1, EXAMINED + 1)], None)) == {}
    bundle = exported(blocks=1, max_length=1).ranker
    assert bundle.manifest.explanation == {}
