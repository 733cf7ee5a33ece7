"""Judge a run or a bundle by the same questions: full ranking, seen items masked, ties pessimistic.

Beside the model stand what it must beat: popularity, and what most often followed the last item.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ranklet.errors import RunError
from ranklet.ranker import Ranker
from ranklet.time_gaps import UNKNOWN, buckets_before, gap_buckets
from ranklet.bundle.vocabulary import Vocabulary
from ranklet.values import show
from ranklet_training.data.sequences import Sequences, pad
from ranklet_training.data.split import Cases, Split
from ranklet_training.judge.metrics import (
    CUTOFFS,
    Metrics,
    Ranks,
    all_metrics,
    hit_rate,
    ndcg,
    ranks_of_targets,
)
from ranklet_training.judge.plots import new_figure, save_figure
from ranklet_training.model.model import SequenceModel
from ranklet_training.model.seed import SeedModel
from ranklet_training.runs.checkpoint import Model

# Scores of all items for each question, (B, items + 1); column 0 is padding and ignored.
Scorer = Callable[[Cases], NDArray[np.float32]]
BATCH = 256
LARGEST_BATCH = 1 << 26  # scores at a time, 256 MB
# Histories of these lengths and more, up to the next, are a slice of the evaluation.
LENGTHS = (1, 5, 10, 20, 50, 100, 200)


@dataclass(frozen=True)
class Answers:
    """What a model said to Q questions."""

    ranks: NDArray[np.int64]  # of the right items among all, from 1, ties pessimistic, (Q,)
    mean_ranks: NDArray[np.float64]  # the same, but the mean of the places that a tie takes
    top: NDArray[np.int64]  # the best items, 0 where there was none, (Q, K)


def answer(
    scorer: Scorer, cases: Cases, *, mask_seen: bool, top: int = 0, items: int = 1
) -> Answers:
    """Rank all items for every question.

    Args:
        scorer: The model.
        cases: Questions.
        items: Size of the catalogue, if it is so large that batches must be small.
        mask_seen: Leave out every item of the whole history, except the answer itself.
        top: How many of the best items to keep.
    """
    ranks = np.zeros(len(cases), dtype=np.int64)
    mean_ranks = np.zeros(len(cases))
    best = np.zeros((len(cases), top), dtype=np.int64)
    for rows in _batches(cases, items):
        asked = cases.take(rows)
        histories, targets = list(asked.histories), asked.targets
        scores = np.array(scorer(asked), dtype=np.float32)
        scores[:, 0] = -np.inf
        if mask_seen:
            kept = np.take_along_axis(scores, targets[:, None], axis=1)
            row_of = np.repeat(np.arange(len(rows)), [len(history) for history in histories])
            scores[row_of, np.concatenate(histories)] = -np.inf
            np.put_along_axis(scores, targets[:, None], kept, axis=1)
        ranks[rows], mean_ranks[rows] = ranks_of_targets(scores, targets)
        if top:
            values, found = torch.from_numpy(scores).topk(min(top, scores.shape[1] - 1))
            best[rows, : found.shape[1]] = torch.where(values > -torch.inf, found, 0).numpy()
    return Answers(ranks, mean_ranks, best)


def model_scorer(model: Model, training: Sequences) -> Scorer:
    """Score with torch weights, as the runtime does it.

    Items that the catalogue lacks are dropped; where nothing is left, popularity answers.
    """
    with torch.no_grad():
        table = model.table()
    popularity = training.counts(table.shape[0] - 1)

    def score(cases: Cases) -> NDArray[np.float32]:
        known = [row > 0 for row in cases.histories]
        histories = [row[keep] for row, keep in zip(cases.histories, known, strict=True)]
        is_cold = np.array([not len(history) for history in histories])
        anything = np.ones(1, dtype=np.int64)  # in the place of nothing; its scores are not used
        filled = [history if len(history) else anything for history in histories]
        length = model.config.max_length
        padded = torch.from_numpy(pad(filled, length))
        gaps = None
        if model.config.time_gaps:
            since, until = _gaps(cases, known)
            gaps = (torch.from_numpy(pad(since, length)), torch.from_numpy(until))
        with torch.no_grad():
            user = model.serve(padded, table, gaps)
            scores: NDArray[np.float32] = (user @ table.T).numpy()
        scores[is_cold] = popularity
        return scores

    return score


def _gaps(
    cases: Cases, known: list[NDArray[np.bool_]]
) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Return the buckets before each known event and until the question, of every case."""
    assert cases.target_times is not None
    since, until = [], np.full(len(cases), UNKNOWN, dtype=np.int64)
    for row, keep in enumerate(known):
        times = cases.times(row)[keep]
        since.append(buckets_before(times) if len(times) else np.array([UNKNOWN]))
        if len(times):
            until[row] = gap_buckets(cases.target_times[row] - times[-1:])[0]
    return since, until


def popularity_scorer(training: Sequences, items: int) -> Scorer:
    """Score every item by how often it occurs in training."""
    counts = training.counts(items).astype(np.float32)
    return lambda cases: np.tile(counts, (len(cases), 1))


def markov_scorer(training: Sequences, items: int) -> Scorer:
    """Score by how often an item directly followed the last one; popularity breaks ties."""
    users = np.repeat(np.arange(len(training)), training.lengths)
    same = users[1:] == users[:-1]
    before, after = training.items[:-1][same], training.items[1:][same]
    order = np.argsort(before, kind="stable")
    before, after = before[order], after[order]
    counts = training.counts(items)
    backoff = (counts / (counts.sum() + 1)).astype(np.float32)  # always below one transition

    def score(cases: Cases) -> NDArray[np.float32]:
        scores = np.tile(backoff, (len(cases), 1))
        for row, history in zip(scores, cases.histories, strict=True):
            begin, end = np.searchsorted(before, [history[-1], history[-1] + 1])
            np.add.at(row, after[begin:end], 1)
        return scores

    return score


def answer_by_bundle(
    ranker: Ranker, split: Split, cases: Cases, *, mask_seen: bool, top: int = 0
) -> Answers:
    """Ask the same of a bundle through its public interface.

    Only the first places are asked for: an answer beyond them, or tied with what may lie beyond,
    gets the last rank, which no metric tells from its true one.
    """
    first = max(*CUTOFFS, top) + 1
    ranks = np.full(len(cases), len(split.vocabulary) + 1, dtype=np.int64)
    mean_ranks = ranks.astype(np.float64)
    best = np.zeros((len(cases), top), dtype=np.int64)
    index_of = split.vocabulary.index
    for rows in _batches(cases):
        asked = cases.take(rows)
        known = [history > 0 for history in asked.histories]
        answers = [split.vocabulary.ids(t[t > 0]) for t in asked.targets[:, None]]
        histories = [
            split.vocabulary.ids(history[keep])
            for history, keep in zip(asked.histories, known, strict=True)
        ]
        when: dict[str, Any] = {}
        if ranker.uses_times and asked.target_times is not None:
            times = [asked.times(row)[keep] for row, keep in enumerate(known)]
            when = {"times": times, "now": asked.target_times}
        exclude = None
        if mask_seen:
            pairs = zip(histories, answers, strict=True)
            exclude = [[i for i in dict.fromkeys(history) if i not in a] for history, a in pairs]
        rankings = ranker.rank_batch(histories, k=first, exclude=exclude, **when)
        for row, ranking, right in zip(rows, rankings, answers, strict=True):
            kept = ranking.items[:top]
            best[row, : len(kept)] = index_of(kept)
            found = [place for place, item in enumerate(ranking.items) if item in right]
            if not found:
                continue
            score = ranking.scores[found[0]]
            if score > ranking.scores[-1] or len(ranking.items) < first:
                ranks[row] = np.count_nonzero(ranking.scores >= score)
                above = np.count_nonzero(ranking.scores > score)
                mean_ranks[row] = (above + 1 + ranks[row]) / 2
    return Answers(ranks, mean_ranks, best)


def check_catalogue(
    name: str, model: Model | Ranker, split: Split, vocabulary: Vocabulary | None = None
) -> None:
    """Refuse a model that knows other items than the events.

    Args:
        name: Of the model, for the message.
        model: A torch model or a loaded bundle, which knows its ids.
        split: Of the events.
        vocabulary: Of a torch model, if it is at hand: without it only sizes are compared.

    Raises:
        RunError: The catalogues differ.
    """
    todo = "take the events that it was trained on"
    items = len(split.vocabulary)
    size = len(model) if isinstance(model, Ranker) else model.items.item.shape[0] - 1
    if size != items:
        raise RunError(f"{name} knows {size} items and the events have {items}: {todo}")
    known = model.vocabulary if isinstance(model, Ranker) else vocabulary
    if known is None:
        return
    for own, other in zip(known.all_ids, split.vocabulary.all_ids, strict=True):
        if own != other:
            raise RunError(
                f"{name} knows the item {show(own)} where the events have {show(other)}: {todo}"
            )


def evaluate(
    models: dict[str, Model | Ranker], split: Split, *, on: str = "test"
) -> dict[str, Any]:
    """Return one table: every model and the two baselines, from every side.

    Args:
        models: By the name that its row gets.
        split: Of the same kind as the models were trained on.
        on: ``"test"`` or ``"validation"``.

    Returns:
        ``protocol``, ``users``, ``cold_targets``, ``slices`` (name to number of users),
        ``target_popularity`` (mean training events of the right items) and ``rows``, each with

        * ``model``, ``masked`` and ``unmasked``: every metric, seen items left out or not;
        * ``mean_ties``: HR@10 and NDCG@10 by mean ranks; where they differ, scores collapse;
        * ``slices``: HR@10 and NDCG@10 of cold targets and by length of the history;
        * ``coverage``: share of the catalogue in anybody's first 10;
        * ``popularity``: mean training events of the items in the first 10 (the average
          recommendation popularity of Abdollahpouri et al., 2019).
    """
    cases: Cases = getattr(split, on)
    items = len(split.vocabulary)
    counts = split.training.counts(items)
    for name, model in models.items():
        check_catalogue(name, model, split)
    is_cold = (counts[cases.targets] == 0) | (cases.targets == 0)
    slices = {"cold targets": is_cold, **_length_slices(cases)}
    slices = {name: rows for name, rows in slices.items() if rows.any()}
    judged: dict[str, Model | Ranker | Scorer] = {
        **models,
        "last-item Markov": markov_scorer(split.training, items),
        "popularity": popularity_scorer(split.training, items),
    }
    return {
        "protocol": f"{split.kind}, {on}, full ranking of {items} items, pessimistic ties",
        "users": len(cases),
        "cold_targets": int(is_cold.sum()),
        "target_popularity": float(counts[cases.targets].mean()),
        "slices": {name: int(rows.sum()) for name, rows in slices.items()},
        "rows": [
            {"model": name, **_figures(model, split, cases, counts, slices)}
            for name, model in judged.items()
        ],
    }


def plot_evaluation(table: dict[str, Any], path: str | Path) -> None:
    """Draw NDCG@10 of every slice, a group of bars for each, a colour for each model.

    Raises:
        InputError: As ``plots.check_plot``.
    """
    figure, axes = new_figure(path)
    names = ["all", *table["slices"]]
    users = [table["users"], *table["slices"].values()]
    width = 0.8 / len(table["rows"])
    for place, row in enumerate(table["rows"]):
        values = [row["masked"]["NDCG@10"], *(v["NDCG@10"] for v in row["slices"].values())]
        left = np.arange(len(names)) + (place - (len(table["rows"]) - 1) / 2) * width
        axes.bar(left, values, width, label=row["model"])
    labels = [f"{name}\n({count:,})" for name, count in zip(names, users, strict=True)]
    axes.set_xticks(np.arange(len(names)), labels, fontsize=8)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("NDCG@10, seen items masked")
    axes.legend(frameon=False)
    axes.set_title(table["protocol"], loc="left", fontsize=10)
    save_figure(figure, path)


def _length_slices(cases: Cases) -> dict[str, NDArray[np.bool_]]:
    place = np.searchsorted(LENGTHS, cases.histories.lengths, side="right") - 1
    names = [
        *(f"{low}-{high - 1} events" for low, high in pairwise(LENGTHS)),
        f"{LENGTHS[-1]}+ events",
    ]
    return {name: place == index for index, name in enumerate(names)}


def _figures(
    model: Model | Ranker | Scorer,
    split: Split,
    cases: Cases,
    counts: NDArray[np.int64],
    slices: dict[str, NDArray[np.bool_]],
) -> dict[str, Any]:
    unmasked = answer_of(model, split, cases, mask_seen=False)
    masked = answer_of(model, split, cases, mask_seen=True, top=10)
    shown = masked.top[masked.top > 0]
    return {
        "masked": all_metrics(masked.ranks),
        "unmasked": all_metrics(unmasked.ranks),
        "mean_ties": _main_metrics(masked.mean_ranks),
        "slices": {name: _main_metrics(masked.ranks[rows]) for name, rows in slices.items()},
        "coverage": len(np.unique(shown)) / (len(counts) - 1),
        "popularity": float(counts[shown].mean()),
    }


def _main_metrics(ranks: Ranks) -> Metrics:
    return {"HR@10": hit_rate(ranks, 10), "NDCG@10": ndcg(ranks, 10)}


def answer_of(
    model: Model | Ranker | Scorer, split: Split, cases: Cases, *, mask_seen: bool, top: int = 0
) -> Answers:
    """Ask a model of any kind."""
    if isinstance(model, Ranker):
        return answer_by_bundle(model, split, cases, mask_seen=mask_seen, top=top)
    if isinstance(model, SequenceModel | SeedModel):
        model = model_scorer(model, split.training)
    items = len(split.vocabulary)
    return answer(model, cases, mask_seen=mask_seen, top=top, items=items)


def _batches(cases: Cases, items: int = 1) -> Iterator[NDArray[np.int64]]:
    """Yield rows of questions, histories of similar length together."""
    order = np.argsort(cases.histories.lengths, kind="stable")
    size = max(1, min(BATCH, LARGEST_BATCH // items))
    for begin in range(0, len(order), size):
        yield order[begin : begin + size]
