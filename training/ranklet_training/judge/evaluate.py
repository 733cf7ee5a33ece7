"""Evaluation of runs and bundles by full ranking of held-out targets, with pessimistic ties.

Baselines are popularity, the most frequent followers of the last item, and the user's own events
again.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ranklet.errors import DataError
from ranklet.ranker import Ranker
from ranklet.values import show
from ranklet_training.data.sequences import Ints, Mask, Sequences
from ranklet_training.data.split import Cases, Split
from ranklet_training.judge import metrics
from ranklet_training.judge.metrics import (
    CUTOFFS,
    MISS,
    Metrics,
    Ranks,
    all_metrics,
    ranks_of_targets,
)
from ranklet_training.judge.plots import new_figure, save_figure
from ranklet_training.judge.subjects import (
    AnyModel,
    CommonCases,
    Scorer,
    Subject,
    common_cases,
    find_items,
    subject_of,
)

BATCH = 256
LARGEST_BATCH = 1 << 26  # scores of a batch, 256 MB
LENGTHS = (1, 5, 10, 20, 50, 100, 200)  # lower ends of the slices by history length
# What seen items do to a ranking, in the words of tables and cards.
MASKED = "seen items masked, a repeated answer is a miss"
UNMASKED = "seen items not masked"
AGAIN = "again, then popularity"  # where seen items are masked, popularity alone is left of it
SERVED = {True: "as served: seen items excluded", False: "as served: seen items included"}


@dataclass(frozen=True)
class TargetRanks:
    """Ranks of the targets of Q cases, from 1, ``MISS`` if never shown, and the best K items."""

    ranks: Ints  # ties pessimistic, (Q,)
    mean_ranks: NDArray[np.float64]  # mean of the places of a tie, (Q,)
    shown: Ints  # ties by item index, as the runtime shows them, (Q,)
    top: Ints  # padded with 0, (Q, K)

    @classmethod
    def of_misses(cls, cases: int, top: int) -> "TargetRanks":
        """Return the ranks before any ranking."""
        ranks = np.full(cases, MISS)
        return cls(ranks, ranks.astype(np.float64), ranks.copy(), np.zeros((cases, top), np.int64))

    def each(self) -> tuple[Ranks, Ranks, Ranks]:
        """Return the three kinds of ranks."""
        return self.ranks, self.mean_ranks, self.shown


def rank_targets(
    model: Ranker | Scorer,
    cases: Cases,
    *,
    mask_seen: bool,
    top: int = 0,
    among: Ints | None = None,
    items: int = 1,
) -> TargetRanks:
    """Rank all items for each case by a loaded bundle or by scores.

    Args:
        model: The bundle or the scorer.
        cases: In the item indices of its catalogue.
        mask_seen: Leave out every item of the whole history; an answer among them is a miss.
        top: The number of best items to keep.
        among: Rank only the items of these indices.
        items: The size of the catalogue, which limits the batches of a scorer.
    """
    if isinstance(model, Ranker):
        return _rank_by_bundle(model, cases, mask_seen, top, among)
    return _rank_by_scorer(model, cases, mask_seen, top, among, items)


def rank_common(
    common: CommonCases, name: str, subject: Subject, *, mask_seen: bool, top: int = 0
) -> TargetRanks:
    """Rank by one of the models of common cases; options as ``rank_targets``."""
    return rank_targets(
        subject.model,
        common.cases_of(name),
        mask_seen=mask_seen,
        top=top,
        among=common.among_of(name),
        items=len(subject.vocabulary),
    )


def _rank_by_scorer(
    scorer: Scorer, cases: Cases, mask_seen: bool, top: int, among: Ints | None, items: int
) -> TargetRanks:
    answers = TargetRanks.of_misses(len(cases), top)
    for rows in _batches(cases, items):
        batch = cases.take(rows)
        scores = np.array(scorer(batch), dtype=np.float32)
        if among is not None:
            is_left_out = np.ones(scores.shape[1], dtype=bool)
            is_left_out[among] = False
            scores[:, is_left_out] = -np.inf
        scores[:, 0] = -np.inf
        if mask_seen:
            row_of = np.repeat(np.arange(len(rows)), batch.histories.lengths)
            scores[row_of, batch.histories.items] = -np.inf
        for values, found in zip(
            answers.each(), ranks_of_targets(scores, batch.targets), strict=True
        ):
            values[rows] = found
        if top:
            best, items_of = torch.from_numpy(scores).topk(min(top, scores.shape[1] - 1))
            kept = torch.where(best > -torch.inf, items_of, 0).numpy()
            answers.top[rows, : items_of.shape[1]] = kept
    return answers


def _rank_by_bundle(
    ranker: Ranker, cases: Cases, mask_seen: bool, top: int, among: Ints | None
) -> TargetRanks:
    """Rank by a bundle through its public interface.

    Only the first places are ranked. A target beyond them, or tied with an item that may be beyond
    them, is a miss, which no metric distinguishes from the true rank.
    """
    first, answers = max(*CUTOFFS, top) + 1, TargetRanks.of_misses(len(cases), top)
    ids_of, options = ranker.vocabulary.ids, dict[str, Any](k=first, exclude_seen=mask_seen)
    if among is not None:
        options["eligible"] = ranker.eligible(ids_of(among))
    for rows in _batches(cases):
        batch = cases.take(rows).drop_unknown()
        histories = [ids_of(history) for history in batch.histories]
        if ranker.uses_times and batch.target_times is not None:
            assert batch.histories.times is not None
            times = np.split(batch.histories.times, batch.histories.offsets[1:-1])
            options |= {"times": times, "now": batch.target_times}
        if ranker.kinds and batch.histories.kinds is not None:
            kinds = np.array([None, *ranker.kinds])[batch.histories.kinds]
            options["kinds"] = np.split(kinds, batch.histories.offsets[1:-1])
        rankings = ranker.rank_batch(histories, **options)
        for row, ranking, target in zip(rows, rankings, batch.targets, strict=True):
            shown = ranker.vocabulary.index(ranking.items)
            answers.top[row, : len(shown[:top])] = shown[:top]
            places = np.flatnonzero(shown == target)  # a target of index 0 is never shown
            if not len(places):
                continue
            answers.shown[row] = places[0] + 1
            score = ranking.scores[places[0]]
            if score > ranking.scores[-1] or len(shown) < first:
                rank = np.count_nonzero(ranking.scores >= score)
                above = np.count_nonzero(ranking.scores > score)
                answers.ranks[row], answers.mean_ranks[row] = rank, (above + 1 + rank) / 2
    return answers


def _batches(cases: Cases, items: int = 1) -> Iterator[Ints]:
    """Yield rows of cases in batches of similar history length."""
    order = np.argsort(cases.histories.lengths, kind="stable")
    size = max(1, min(BATCH, LARGEST_BATCH // items))
    for begin in range(0, len(order), size):
        yield order[begin : begin + size]


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


def again_scorer(training: Sequences, items: int) -> Scorer:
    """Return the baseline of repeats: recency and number of the user's own events, then popularity.

    An item of the history scores the sum of age^-0.5 over its events, where the latest event of the
    user has age 1 and the event before it age 2. That is the base-level activation of ACT-R with
    its usual exponent (Anderson and Schooler, "Reflections of the Environment in Memory", 1991),
    which was the best of 12 forms on validation of jdata-demo and yelp-multifeedback, on average.
    """
    below = (-1 / (1 + training.counts(items))).astype(np.float32)  # rises with the popularity

    def score(cases: Cases) -> NDArray[np.float32]:
        scores = np.tile(below, (len(cases), 1))
        for row, history in zip(scores, cases.histories, strict=True):
            row[history] = 0
            np.add.at(row, history, np.arange(len(history), 0, -1) ** -0.5)
        return scores

    return score


def evaluate(models: Mapping[str, AnyModel], split: Split, *, on: str = "test") -> dict[str, Any]:
    """Return the table of metrics of models, by name, and of the three baselines.

    The table has

    * ``protocol`` and ``protocols``: what the figures are, in words;
    * ``items``: the number of ranked items;
    * ``users``: the number of cases; ``repeats`` of their answers are in the history, and
      ``advice`` is a sentence on them;
    * ``cold_targets``: answers without a training event;
    * ``unknown``: of each model, the answers and the history events that its catalogue lacks;
    * ``left_out``: answers that are not asked because not every model knows them;
    * ``slices`` and ``slices_protocol``: name to number of users, and what their figures are;
    * ``target_popularity``: mean training events of the targets;
    * ``rows``: the models.

    A row has

    * ``model``, ``exclude_seen``: its name, and its default;
    * ``served``: every metric of the default, ties in the order in which they are shown;
    * ``masked`` and ``unmasked``: every metric, ties pessimistic;
    * ``mean_ties``: HR@10 and NDCG@10 by mean ranks; a difference shows collapsed scores;
    * ``slices``: HR@10 and NDCG@10 of cold targets and by history length;
    * ``coverage``: share of the catalogue in the first 10 of any user;
    * ``popularity``: mean training events of the items in the first 10 (the average
      recommendation popularity of Abdollahpouri et al., 2019).

    The last four are of the default, ties pessimistic. Baselines have the default of the first
    model. Models of different catalogues rank the items that all know (``subjects``).

    RunError: a model knows no item of the split. DataError: nothing is held out.
    """
    subjects = {name: subject_of(name, model, split) for name, model in models.items()}
    common = common_cases(subjects, split, held_out(split, on))
    cases, counts = common.cases, split.training.counts(len(split.vocabulary))
    default = next(iter(subjects.values())).exclude_seen if subjects else True
    baselines = {
        "last-item Markov": markov_scorer(split.training, len(split.vocabulary)),
        AGAIN: again_scorer(split.training, len(split.vocabulary)),
        "popularity": popularity_scorer(split.training, len(split.vocabulary)),
    }
    judged = subjects | {
        name: Subject(scorer, split.vocabulary, default) for name, scorer in baselines.items()
    }
    is_cold = (counts[cases.targets] == 0) | (cases.targets == 0)
    slices = {"cold targets": is_cold, **_length_slices(cases)}
    slices = {name: rows for name, rows in slices.items() if rows.any()}
    rows = [
        {"model": name, **_figures(name, subject, split, common, counts, slices)}
        for name, subject in judged.items()
    ]
    defaults = {subject.exclude_seen for subject in judged.values()}
    served = SERVED[default] if len(defaults) == 1 else "as served by the default of each"
    return {
        "protocol": f"{split.kind}, {on}{asked_about(split)}, full ranking of {common.items} "
        "items, pessimistic ties (as shown, where served)",
        "protocols": {"served": served, "masked": MASKED, "unmasked": UNMASKED},
        "items": common.items,
        "users": len(cases),
        "repeats": int(cases.is_repeat.sum()),
        "advice": _advice(cases, rows[0]),
        "cold_targets": int(is_cold.sum()),
        "unknown": common.unknown,
        "left_out": common.left_out,
        "target_popularity": float(counts[cases.targets].mean()),
        "slices_protocol": served,
        "slices": {name: int(rows.sum()) for name, rows in slices.items()},
        "rows": rows,
    }


def asked_about(split: Split) -> str:
    """Return the kind of the targets as text, empty for any kind."""
    return f", targets of kind {show(split.target)}" if split.target else ""


def _advice(cases: Cases, row: dict[str, Any]) -> str:
    """Return a sentence on the repeats, and on the default that fits them."""
    masked, unmasked = row["masked"]["NDCG@10"], row["unmasked"]["NDCG@10"]
    better, worse = ("excluded", "included") if masked >= unmasked else ("included", "excluded")
    figures = sorted((masked, unmasked), reverse=True)
    return (
        f"{cases.repeats:.1%} of the answers are repeats ({cases.is_repeat.sum():,} of "
        f"{len(cases):,}): NDCG@10 of {row['model']} is {figures[0]:.4f} with seen items {better} "
        f"and {figures[1]:.4f} with them {worse}. The default that fits: seen items {better}"
    )


def held_out(split: Split, on: str) -> Cases:
    """Return the cases of ``"test"`` or ``"validation"``; DataError: there are none."""
    cases: Cases = getattr(split, on)
    if not len(cases):
        raise DataError(f"the {split.kind} split of these events leaves no {on} case to predict")
    return cases


def _length_slices(cases: Cases) -> dict[str, Mask]:
    place = np.searchsorted(LENGTHS, cases.histories.lengths, side="right") - 1
    names = [f"{low}-{high - 1} events" for low, high in pairwise(LENGTHS)]
    return {name: place == index for index, name in enumerate([*names, f"{LENGTHS[-1]}+ events"])}


def _figures(
    name: str,
    subject: Subject,
    split: Split,
    common: CommonCases,
    counts: Ints,
    slices: dict[str, Mask],
) -> dict[str, Any]:
    masked, unmasked = (
        rank_common(common, name, subject, mask_seen=mask_seen, top=10)
        for mask_seen in (True, False)
    )
    served = masked if subject.exclude_seen else unmasked
    shown = find_items(subject.vocabulary, split.vocabulary)[served.top[served.top > 0]]
    return {
        "exclude_seen": subject.exclude_seen,
        "served": all_metrics(served.shown),
        "masked": all_metrics(masked.ranks),
        "unmasked": all_metrics(unmasked.ranks),
        "mean_ties": _main_metrics(served.mean_ranks),
        "slices": {name: _main_metrics(served.ranks[rows]) for name, rows in slices.items()},
        "coverage": len(np.unique(served.top[served.top > 0])) / common.items,
        "popularity": float(counts[shown].mean()) if len(shown) else 0.0,
    }


def _main_metrics(ranks: Ranks) -> Metrics:
    return {"HR@10": metrics.hit_rate(ranks, 10), "NDCG@10": metrics.ndcg(ranks, 10)}


def plot_evaluation(table: dict[str, Any], path: str | Path) -> None:
    """Draw NDCG@10 as grouped bars: a group per slice, a colour per model."""
    figure, axes = new_figure(path)
    users = {"all": table["users"], **table["slices"]}
    width = 0.8 / len(table["rows"])
    for place, row in enumerate(table["rows"]):
        values = [row["served"]["NDCG@10"], *(v["NDCG@10"] for v in row["slices"].values())]
        left = np.arange(len(users)) + (place - (len(table["rows"]) - 1) / 2) * width
        axes.bar(left, values, width, label=row["model"])
    labels = [f"{name}\n({count:,})" for name, count in users.items()]
    axes.set_xticks(np.arange(len(users)), labels, fontsize=8)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel(f"NDCG@10, {table['protocols']['served']}")
    axes.legend(frameon=False)
    axes.set_title(table["protocol"], loc="left", fontsize=10)
    save_figure(figure, path)
