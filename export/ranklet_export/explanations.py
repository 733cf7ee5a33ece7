"""How far attention agrees with the drops of scores that explain a ranking."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ranklet.engine.engine import NONE, Floats, History
from ranklet.explanation import EXAMINED, Effects, explain
from ranklet.ranker import Ranker

if TYPE_CHECKING:  # its module loads torch
    from ranklet_training.runs.checkpoint import Questions

QUESTIONS, LONGEST = 64, 100  # every event of each is left out once: seconds
TOP, LARGEST = 10, 3


def measure_explanations(ranker: Ranker, questions: "Questions") -> dict[str, Any]:
    """Compare the attention to events with the mean drop of the items that are shown.

    Args:
        ranker: The ranker of the bundle.
        questions: Histories, of which the first with more than ``EXAMINED`` events count.

    Returns:
        ``questions``, whether they are ``held_out``, their ``fewest_events``, ``median_events``
        and ``most_events``; means of Spearman's rank correlation of attention with the drop,
        ``rank_correlation``, and with its size, ``size_correlation``; and ``found``: the share of
        the ``LARGEST`` drops that are by the ``EXAMINED`` events of most attention, ``by_chance``
        that of as many events drawn. Empty if all histories are short.
    """
    kinds = questions.kinds or [NONE] * len(questions.histories)
    histories = [
        History(items[-LONGEST:], kinds=of_events[-LONGEST:])
        for items, of_events in zip(questions.histories, kinds, strict=True)
        if len(items) > EXAMINED
    ][:QUESTIONS]
    if not histories:
        return {}
    effects = [_effects(ranker, history) for history in histories]
    lengths = [len(history.items) for history in histories]
    return {
        "questions": len(histories),
        "held_out": questions.targets is not None,
        "fewest_events": min(lengths),
        "median_events": float(np.median(lengths)),
        "most_events": max(lengths),
        "rank_correlation": _mean(_correlation(one, one.drops) for one in effects),
        "size_correlation": _mean(_correlation(one, np.abs(one.drops)) for one in effects),
        "found": _mean(_found(one) for one in effects),
        "by_chance": _mean(EXAMINED / length for length in lengths),
    }


def _effects(ranker: Ranker, history: History) -> Effects:
    """Return the effects of every event on the items that are shown."""
    engine, ids = ranker.engine, ranker.vocabulary.ids(history.items)
    kinds = None
    if len(history.kinds):
        kinds = np.array([None, *ranker.kinds])[history.kinds]
    shown = ranker.vocabulary.index(ranker.rank(ids, kinds=kinds, k=TOP).items)
    rows = engine.table[shown].astype(np.float32)
    return explain(engine, history, rows, len(ids))


def _mean(values: Iterable[float]) -> float:
    return float(np.mean([*values]))


def _correlation(effects: Effects, drops: Floats) -> float:
    """Return the rank correlation of attention and the mean of drops, 0 if one is constant."""
    ranks = _ranks(effects.attention[effects.examined]), _ranks(drops.mean(axis=0))
    return float(np.asarray(np.corrcoef(ranks))[0, 1]) if all(map(np.std, ranks)) else 0.0


def _ranks(values: Floats) -> NDArray[np.float64]:
    """Return the rank of each value from 1; equal values have their mean rank."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = np.cumsum(counts) - (counts - 1) / 2
    return ranks[places]


def _found(effects: Effects) -> float:
    """Return the share of the largest drops that are by the events of most attention."""
    largest = np.argsort(-effects.drops.mean(axis=0), kind="stable")[:LARGEST]
    return float(np.mean(largest < EXAMINED))  # examined events are sorted by attention
