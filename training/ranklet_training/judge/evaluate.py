"""Evaluation of runs and bundles by full ranking of held-out targets, with pessimistic ties.

Baselines are popularity and the most frequent followers of the last item.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ranklet.bundle.vocabulary import Vocabulary
from ranklet.errors import RunError
from ranklet.ranker import Ranker
from ranklet.time_gaps import UNKNOWN, gap_buckets
from ranklet.values import show
from ranklet_training.data.sequences import Ints, Mask, Sequences, pad
from ranklet_training.data.split import Cases, Split
from ranklet_training.judge import metrics
from ranklet_training.judge.metrics import CUTOFFS, Metrics, Ranks, all_metrics, ranks_of_targets
from ranklet_training.judge.plots import new_figure, save_figure
from ranklet_training.model.model import SequenceModel
from ranklet_training.model.seed import SeedModel
from ranklet_training.runs.checkpoint import Model

# Scores of all items for each case, (B, items + 1); column 0 is padding and ignored.
Scorer = Callable[[Cases], NDArray[np.float32]]
AnyModel = Model | Ranker | Scorer
BATCH = 256
LARGEST_BATCH = 1 << 26  # scores of a batch, 256 MB
LENGTHS = (1, 5, 10, 20, 50, 100, 200)  # lower ends of the slices by history length


@dataclass(frozen=True)
class TargetRanks:
    """Ranks of the targets of Q cases, and the best K items."""

    ranks: Ints  # among all items, from 1, ties pessimistic, (Q,)
    mean_ranks: NDArray[np.float64]  # mean of the places of a tie, (Q,)
    top: Ints  # padded with 0, (Q, K)


def rank_targets(
    model: AnyModel, split: Split, cases: Cases, *, mask_seen: bool, top: int = 0
) -> TargetRanks:
    """Rank all items for each case by a torch model, a loaded bundle or a scorer.

    ``mask_seen`` excludes every item of the whole history, except the target itself; ``top`` is the
    number of best items to keep.
    """
    if isinstance(model, Ranker):
        return rank_by_bundle(model, split, cases, mask_seen=mask_seen, top=top)
    if isinstance(model, SequenceModel | SeedModel):
        model = model_scorer(model, split.training)
    items = len(split.vocabulary)
    return rank_by_scorer(model, cases, mask_seen=mask_seen, top=top, items=items)


def rank_by_scorer(
    scorer: Scorer, cases: Cases, *, mask_seen: bool, top: int = 0, items: int = 1
) -> TargetRanks:
    """Rank all items by scores; options as ``rank_targets``, ``items`` limits the batch."""
    ranks = np.zeros(len(cases), dtype=np.int64)
    mean_ranks = np.zeros(len(cases))
    best = np.zeros((len(cases), top), dtype=np.int64)
    for rows in _batches(cases, items):
        batch = cases.take(rows)
        targets = batch.targets
        scores = np.array(scorer(batch), dtype=np.float32)
        scores[:, 0] = -np.inf
        if mask_seen:
            kept = np.take_along_axis(scores, targets[:, None], axis=1)
            row_of = np.repeat(np.arange(len(rows)), batch.histories.lengths)
            scores[row_of, batch.histories.items] = -np.inf
            np.put_along_axis(scores, targets[:, None], kept, axis=1)
        ranks[rows], mean_ranks[rows] = ranks_of_targets(scores, targets)
        if top:
            values, items_of = torch.from_numpy(scores).topk(min(top, scores.shape[1] - 1))
            best[rows, : items_of.shape[1]] = torch.where(values > -torch.inf, items_of, 0).numpy()
    return TargetRanks(ranks, mean_ranks, best)


def rank_by_bundle(
    ranker: Ranker, split: Split, cases: Cases, *, mask_seen: bool, top: int = 0
) -> TargetRanks:
    """Rank by a bundle through its public interface; options as ``rank_targets``.

    Only the first places are ranked. A target beyond them, or tied with an item that may be beyond
    them, gets the last rank, which no metric distinguishes from the true rank.
    """
    first = max(*CUTOFFS, top) + 1
    ranks = np.full(len(cases), len(split.vocabulary) + 1, dtype=np.int64)
    mean_ranks = ranks.astype(np.float64)
    best = np.zeros((len(cases), top), dtype=np.int64)
    ids_of = split.vocabulary.ids
    for rows in _batches(cases):
        batch = cases.take(rows).drop_unknown()
        targets = [ids_of(target[target > 0]) for target in batch.targets[:, None]]
        histories = [ids_of(history) for history in batch.histories]
        options: dict[str, Any] = {}
        if ranker.uses_times and batch.target_times is not None:
            assert batch.histories.times is not None
            times = np.split(batch.histories.times, batch.histories.offsets[1:-1])
            options = {"times": times, "now": batch.target_times}
        if mask_seen:
            pairs = zip(histories, targets, strict=True)
            options["exclude"] = [[i for i in dict.fromkeys(h) if i not in t] for h, t in pairs]
        rankings = ranker.rank_batch(histories, k=first, **options)
        for row, ranking, target in zip(rows, rankings, targets, strict=True):
            kept = ranking.items[:top]
            best[row, : len(kept)] = split.vocabulary.index(kept)
            scored = zip(ranking.items, ranking.scores, strict=True)
            score = next((score for item, score in scored if item in target), None)
            if score is not None and (score > ranking.scores[-1] or len(ranking.items) < first):
                ranks[row] = np.count_nonzero(ranking.scores >= score)
                above = np.count_nonzero(ranking.scores > score)
                mean_ranks[row] = (above + 1 + ranks[row]) / 2
    return TargetRanks(ranks, mean_ranks, best)


def _batches(cases: Cases, items: int = 1) -> Iterator[Ints]:
    """Yield rows of cases in batches of similar history length."""
    order = np.argsort(cases.histories.lengths, kind="stable")
    size = max(1, min(BATCH, LARGEST_BATCH // items))
    for begin in range(0, len(order), size):
        yield order[begin : begin + size]


def model_scorer(model: Model, training: Sequences) -> Scorer:
    """Return the scorer of a torch model, which treats histories as the runtime.

    Items outside the catalogue are dropped; popularity scores histories without known items.
    """
    with torch.no_grad():
        table = model.table()
    popularity = training.counts(table.shape[0] - 1)
    length = model.config.max_length

    def score(cases: Cases) -> NDArray[np.float32]:
        known = cases.drop_unknown()
        is_cold = known.histories.lengths == 0
        any_item = np.ones(1, dtype=np.int64)  # for cold histories, whose scores are replaced
        filled = [history if len(history) else any_item for history in known.histories]
        gaps = _gaps(known, length) if model.config.time_gaps else None
        with torch.no_grad():
            user = model.serve(torch.from_numpy(pad(filled, length)), table, gaps)
            scores: NDArray[np.float32] = (user @ table.T).numpy()
        scores[is_cold] = popularity
        return scores

    return score


def _gaps(cases: Cases, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return buckets before each event (B, T) and between the last event and the target (B,)."""
    histories = cases.histories
    assert histories.times is not None
    assert cases.target_times is not None
    since = pad(np.split(histories.gaps, histories.offsets[1:-1]), length)
    until = np.full(len(cases), UNKNOWN, dtype=np.int64)
    rows = np.flatnonzero(histories.lengths)
    last_times = histories.times[histories.offsets[rows + 1] - 1]
    until[rows] = gap_buckets(cases.target_times[rows] - last_times)
    return torch.from_numpy(since), torch.from_numpy(until)


def popularity_scorer(training: Sequences, items: int) -> Scorer:
    """Return the popularity baseline: scores are numbers of training events."""
    counts = training.counts(items).astype(np.float32)
    return lambda cases: np.tile(counts, (len(cases), 1))


def markov_scorer(training: Sequences, items: int) -> Scorer:
    """Return the Markov baseline: counts of direct followers of the last item, then popularity."""
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


def check_catalogue(
    name: str, model: Model | Ranker, split: Split, vocabulary: Vocabulary | None = None
) -> None:
    """Raise RunError if the catalogues of a model and of the events differ.

    A bundle has its ids; for a torch model without ``vocabulary`` only sizes are compared.
    """
    advice, items = "take the events that it was trained on", len(split.vocabulary)
    size = len(model) if isinstance(model, Ranker) else model.items.item.shape[0] - 1
    if size != items:
        raise RunError(f"{name} knows {size} items and the events have {items}: {advice}")
    known = model.vocabulary if isinstance(model, Ranker) else vocabulary
    if known is None:
        return
    for own, other in zip(known.all_ids, split.vocabulary.all_ids, strict=True):
        if own != other:
            raise RunError(
                f"{name} knows the item {show(own)} where the events have {show(other)}: {advice}"
            )


def evaluate(
    models: dict[str, Model | Ranker], split: Split, *, on: str = "test"
) -> dict[str, Any]:
    """Return the table of metrics of models, by name, and of the two baselines.

    The table has ``protocol``, ``users``, ``cold_targets``, ``slices`` (name to number of users),
    ``target_popularity`` (mean training events of the targets) and ``rows``, each with

    * ``model``, ``masked`` and ``unmasked``: every metric, with and without seen items masked;
    * ``mean_ties``: HR@10 and NDCG@10 by mean ranks; a difference shows collapsed scores;
    * ``slices``: HR@10 and NDCG@10 of cold targets and by history length;
    * ``coverage``: share of the catalogue in the first 10 of any user;
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
    judged: dict[str, AnyModel] = {
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


def _length_slices(cases: Cases) -> dict[str, Mask]:
    place = np.searchsorted(LENGTHS, cases.histories.lengths, side="right") - 1
    names = [f"{low}-{high - 1} events" for low, high in pairwise(LENGTHS)]
    return {name: place == index for index, name in enumerate([*names, f"{LENGTHS[-1]}+ events"])}


def _figures(
    model: AnyModel, split: Split, cases: Cases, counts: Ints, slices: dict[str, Mask]
) -> dict[str, Any]:
    unmasked = rank_targets(model, split, cases, mask_seen=False)
    masked = rank_targets(model, split, cases, mask_seen=True, top=10)
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
    return {"HR@10": metrics.hit_rate(ranks, 10), "NDCG@10": metrics.ndcg(ranks, 10)}


def plot_evaluation(table: dict[str, Any], path: str | Path) -> None:
    """Draw NDCG@10 as grouped bars: a group per slice, a colour per model."""
    figure, axes = new_figure(path)
    users = {"all": table["users"], **table["slices"]}
    width = 0.8 / len(table["rows"])
    for place, row in enumerate(table["rows"]):
        values = [row["masked"]["NDCG@10"], *(v["NDCG@10"] for v in row["slices"].values())]
        left = np.arange(len(users)) + (place - (len(table["rows"]) - 1) / 2) * width
        axes.bar(left, values, width, label=row["model"])
    labels = [f"{name}\n({count:,})" for name, count in users.items()]
    axes.set_xticks(np.arange(len(users)), labels, fontsize=8)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("NDCG@10, seen items masked")
    axes.legend(frameon=False)
    axes.set_title(table["protocol"], loc="left", fontsize=10)
    save_figure(figure, path)
