"""Judge a run or a bundle by the same questions: full ranking, seen items masked, ties pessimistic.

Beside the model stand what it must beat: popularity, and what most often followed the last item.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ranklet.errors import RunError
from ranklet.ranker import Ranker
from ranklet_training.checkpoint import Model
from ranklet_training.metrics import CUTOFFS, Metrics, all_metrics, pessimistic_ranks
from ranklet_training.model import SequenceModel
from ranklet_training.seed import SeedModel
from ranklet_training.sequences import Sequences, pad
from ranklet_training.split import Cases, Split

Histories = list[NDArray[np.int64]]
# Scores of all items for each history, (B, items + 1); column 0 is padding and ignored.
Scorer = Callable[[Histories], NDArray[np.float32]]
BATCH = 256


def target_ranks(scorer: Scorer, cases: Cases, *, mask_seen: bool) -> NDArray[np.int64]:
    """Return the rank of every question's answer among all items.

    Args:
        scorer: The model.
        cases: Questions.
        mask_seen: Leave out every item of the whole history, except the answer itself.
    """
    ranks = np.zeros(len(cases), dtype=np.int64)
    for rows in _batches(cases):
        histories = [cases.histories[row] for row in rows]
        scores = np.array(scorer(histories), dtype=np.float32)
        targets = cases.targets[rows]
        scores[:, 0] = -np.inf
        if mask_seen:
            kept = np.take_along_axis(scores, targets[:, None], axis=1)
            for row, history in zip(scores, histories, strict=True):
                row[history] = -np.inf
            np.put_along_axis(scores, targets[:, None], kept, axis=1)
        ranks[rows] = pessimistic_ranks(scores, targets)
    return ranks


def model_scorer(model: Model, training: Sequences) -> Scorer:
    """Score with torch weights, as the runtime does it.

    Items that the catalogue lacks are dropped; where nothing is left, popularity answers.
    """
    with torch.no_grad():
        table = model.table()
    popularity = training.counts(table.shape[0] - 1)

    def score(histories: Histories) -> NDArray[np.float32]:
        known = [history[history > 0] for history in histories]
        is_cold = np.array([not len(history) for history in known])
        anything = np.ones(1, dtype=np.int64)  # in the place of nothing; its scores are not used
        filled = [history if len(history) else anything for history in known]
        padded = torch.from_numpy(pad(filled, model.config.max_length))
        with torch.no_grad():
            user, _ = model.serve(padded, model.empty_state(len(known)), table)
            scores: NDArray[np.float32] = (user @ table.T).numpy()
        scores[is_cold] = popularity
        return scores

    return score


def popularity_scorer(training: Sequences, items: int) -> Scorer:
    """Score every item by how often it occurs in training."""
    counts = training.counts(items).astype(np.float32)
    return lambda histories: np.tile(counts, (len(histories), 1))


def markov_scorer(training: Sequences, items: int) -> Scorer:
    """Score by how often an item directly followed the last one; popularity breaks ties."""
    users = np.repeat(np.arange(len(training)), training.lengths)
    same = users[1:] == users[:-1]
    before, after = training.items[:-1][same], training.items[1:][same]
    order = np.argsort(before, kind="stable")
    before, after = before[order], after[order]
    counts = training.counts(items)
    backoff = (counts / (counts.sum() + 1)).astype(np.float32)  # always below one transition

    def score(histories: Histories) -> NDArray[np.float32]:
        scores = np.tile(backoff, (len(histories), 1))
        for row, history in zip(scores, histories, strict=True):
            begin, end = np.searchsorted(before, [history[-1], history[-1] + 1])
            np.add.at(row, after[begin:end], 1)
        return scores

    return score


def bundle_ranks(
    ranker: Ranker, split: Split, cases: Cases, *, mask_seen: bool
) -> NDArray[np.int64]:
    """Return the same ranks as ``target_ranks``, asked of a bundle through its public interface.

    Only the first places are asked for: an answer beyond them, or tied with what may lie beyond,
    gets the last rank, which no metric tells from its true one.
    """
    first = max(CUTOFFS) + 1
    items = len(split.vocabulary)
    ranks = np.full(len(cases), items + 1, dtype=np.int64)
    for rows in _batches(cases):
        known = [history[history > 0] for history in (cases.histories[row] for row in rows)]
        answers = [split.vocabulary.ids(t[t > 0]) for t in cases.targets[rows, None]]
        histories = [split.vocabulary.ids(history) for history in known]
        exclude = None
        if mask_seen:
            pairs = zip(histories, answers, strict=True)
            exclude = [[i for i in dict.fromkeys(history) if i not in a] for history, a in pairs]
        rankings = ranker.rank_batch(histories, k=first, exclude=exclude)
        for row, ranking, answer in zip(rows, rankings, answers, strict=True):
            found = [place for place, item in enumerate(ranking.items) if item in answer]
            if not found:
                continue
            score = ranking.scores[found[0]]
            if score > ranking.scores[-1] or len(ranking.items) < first:
                ranks[row] = (ranking.scores >= score).sum()
    return ranks


def evaluate(
    models: dict[str, Model | Ranker], split: Split, *, on: str = "test"
) -> dict[str, Any]:
    """Return one table: every model and the two baselines, masked and unmasked.

    Args:
        models: By the name that its row gets.
        split: Of the same kind as the models were trained on.
        on: ``"test"`` or ``"validation"``.

    Returns:
        ``{"protocol": ..., "users": ..., "rows": [{"model", "masked": {...}, "unmasked": {...}}]}``
    """
    cases: Cases = getattr(split, on)
    items = len(split.vocabulary)
    rows = []
    for name, model in models.items():
        size = len(model) if isinstance(model, Ranker) else model.items.item.shape[0] - 1
        if size != items:
            raise RunError(
                f"{name} knows {size} items and the events have {items}: "
                "evaluate it on the events that it was trained on"
            )
        rows.append({"model": name, **_masked_and_unmasked(model, split, cases)})
    for name, scorer in (
        ("last-item Markov", markov_scorer(split.training, items)),
        ("popularity", popularity_scorer(split.training, items)),
    ):
        rows.append({"model": name, **_masked_and_unmasked(scorer, split, cases)})
    in_training = split.training.counts(items) > 0
    return {
        "protocol": f"{split.kind}, {on}, full ranking of {items} items, pessimistic ties",
        "users": len(cases),
        "cold_targets": int((~in_training[cases.targets] | (cases.targets == 0)).sum()),
        "rows": rows,
    }


def _masked_and_unmasked(
    model: Model | Ranker | Scorer, split: Split, cases: Cases
) -> dict[str, Metrics]:
    result = {}
    for name, mask_seen in (("masked", True), ("unmasked", False)):
        if isinstance(model, Ranker):
            ranks = bundle_ranks(model, split, cases, mask_seen=mask_seen)
        else:
            scorer = model
            if isinstance(model, SequenceModel | SeedModel):
                scorer = model_scorer(model, split.training)
            ranks = target_ranks(scorer, cases, mask_seen=mask_seen)
        result[name] = all_metrics(ranks)
    return result


def _batches(cases: Cases) -> Iterator[NDArray[np.int64]]:
    """Yield rows of questions, histories of similar length together."""
    order = np.argsort(cases.histories.lengths, kind="stable")
    for begin in range(0, len(order), BATCH):
        yield order[begin : begin + BATCH]
