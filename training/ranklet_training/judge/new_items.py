"""New items: how they are best ranked, measured on items held out as if training had not seen them.

A tenth of the trained items get rows made from their features by a map that is fitted without them,
and all items are ranked for held-out questions. What is chosen:

* the largest bias of their scores with the best NDCG@10 of all questions, within its error;
  ``BEHIND`` where it is not clearly better than not to show them;
* whether they count as events of a history: where they are shown, and NDCG@10 of the histories that
  have some is not lower by more than its error.

The model did train with the held-out items: its other weights know of them, so HR of held-out items
is higher here than that of items which really are new.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ranklet.attributes import Attributes
from ranklet.bundle.manifest import BEHIND
from ranklet.item_features import ItemFeatures, Ragged
from ranklet_training.data.features import read_features
from ranklet_training.data.sequences import Ints, pad
from ranklet_training.judge.metrics import MISS
from ranklet_training.model.ridge import ItemMap, fit_map
from ranklet_training.runs.checkpoint import Model, Questions, Run

HELD_OUT = 0.1  # share of the trained items
BIASES = (1.0, 0.5, 0.0, -0.25, -0.5, -0.75, -1.0, -1.5, -2.0, -3.0, -4.0)  # of scores
# Standard errors by which a bias must gain, and by which a larger one may be below the best: the
# best of a flat curve is a matter of chance, and new items that are shown get events.
CLEAR, SAME = 2.0, 0.5
TOP = 10
FEWEST, MOST_SCORES = 256, 1 << 26  # questions, and scores of all together: some seconds
BATCH = 256

Gains = NDArray[np.float64]  # NDCG@10 of each question


@dataclass(frozen=True)
class CatalogueFeatures:
    """The attributes of a catalogue, its features, and what maps them to rows of the item table."""

    attributes: Attributes
    features: Ragged
    own: Tensor  # feature embeddings of the model, (features, D), zeros without one

    def fit(self, table: Tensor, events: Ints) -> ItemMap:
        """Return the map to the rows of a table, (items + 1, D), of the items with events."""
        return fit_map(self.features, table[1:], events, self.own)


def read_catalogue(run: Run, model: Model) -> CatalogueFeatures:
    """Return the features of the catalogue of a run."""
    attributes, features = read_features(run.catalogue, run.attribute_kinds)
    places = ItemFeatures(attributes).codes_of
    own = torch.zeros(ItemFeatures(attributes).count, run.config.model.width)
    if model.items.feature is not None:
        begin = 1
        for name in run.config.train.feature_names:
            size = places[name].stop - places[name].start
            own[places[name]] = model.items.feature.weight.detach()[begin : begin + size]
            begin += size
    return CatalogueFeatures(attributes, features, own)


def measure_new_items(
    model: Model,
    catalogue: CatalogueFeatures,
    events: Ints,
    questions: Questions,
    *,
    masked: bool,
    target: int = 0,
) -> dict[str, Any]:
    """Return ``bias`` and ``in_histories`` for a bundle, and the ``figures`` that decided.

    Args:
        model: The model in evaluation mode.
        catalogue: The features of its items.
        events: Training events of each item, (items,).
        questions: Held-out histories, and the items that came next.
        masked: Seen items are left out of rankings.
        target: The index of the kind of events that the model is asked for, 0 for any. Kinds and
            times of the events are unknown to it.
    """
    assert questions.targets is not None
    table, is_new = model.table(), np.zeros(len(events) + 1, dtype=np.bool_)
    known = np.flatnonzero((events > 0) & (np.diff(catalogue.features.ends, prepend=0) > 0))
    drawn = np.random.default_rng(0).permutation(known)[: max(1, int(HELD_OUT * len(known)))]
    is_new[drawn + 1] = True
    item_map = catalogue.fit(table, np.where(is_new[1:], 0, events))
    rows = item_map.directions(catalogue.features) * scale_of(table, events)
    table = torch.where(torch.from_numpy(is_new)[:, None], torch.cat([table[:1], rows]), table)

    kept = [row for row, items in enumerate(questions.histories) if not is_new[items].all()]
    kept = kept[: max(FEWEST, MOST_SCORES // len(table))]
    whole = [questions.histories[row] for row in kept]
    without = [items[~is_new[items]] for items in whole]
    targets, is_cold = questions.targets[kept], is_new[questions.targets[kept]]
    ask = _Questions(model, table, is_new, targets, masked, target)

    ranks = ask.ranks(without, (-np.inf, *BIASES))
    gains = [_gains(row) for row in ranks]
    most = max(gains[1:], key=np.mean)
    best = next(place for place, gain in enumerate(gains) if place and _error(gain, most) >= -SAME)
    bias, is_clear = BIASES[best - 1], _error(gains[best], gains[0]) > CLEAR
    inside = _gains(ask.ranks(whole, (bias,))[0])
    moved = np.array([len(a) > len(b) for a, b in zip(whole, without, strict=True)])
    return {
        "bias": bias if is_clear else BEHIND,
        "in_histories": is_clear and _error(inside[moved], gains[best][moved]) >= -SAME,
        "figures": {
            "questions": len(kept),
            "held_out_items": len(drawn),
            "cold_questions": int(is_cold.sum()),
            "best_bias": bias,
            "cold": {f"HR@{k}": _mean(ranks[best][is_cold] <= k) for k in (TOP, 50)},
            "warm_NDCG@10": _pair(gains, best, ~is_cold),
            "all_NDCG@10": _pair(gains, best, np.ones(len(kept), dtype=np.bool_)),
            "share_of_top_10": ask.share(without, bias),
            "in_histories_NDCG@10": {
                "without": _mean(gains[best][moved]),
                "with": _mean(inside[moved]),
            },
        },
    }


def _error(one: Gains, other: Gains) -> float:
    """Return by how many standard errors one is better."""
    change = one - other
    error = float(change.std()) / len(change) ** 0.5 if len(change) else 0.0
    return float(change.mean()) / error if error else 0.0


def scale_of(table: Tensor, events: Ints) -> float:
    """Return the length of a row of a new item: the mean of those that were trained."""
    return float(table[1:][torch.from_numpy(events > 0)].norm(dim=1).mean())


class _Questions:
    """Rankings of all items, some of which are new."""

    def __init__(
        self,
        model: Model,
        table: Tensor,
        is_new: NDArray[np.bool_],
        targets: Ints,
        masked: bool,
        target: int,
    ) -> None:
        self.model, self.table, self.targets, self.masked = model, table, targets, masked
        self.is_new, self.asked = torch.from_numpy(is_new), torch.zeros(model.kinds + 1)
        self.asked[target] = 1

    def ranks(self, histories: list[Ints], biases: tuple[float, ...]) -> Ints:
        """Return the ranks of the targets with each bias of new items, (biases, questions)."""
        found = np.full((len(biases), len(histories)), MISS)
        for begin in range(0, len(histories), BATCH):
            scores = self._scores(histories[begin : begin + BATCH])
            targets = torch.from_numpy(self.targets[begin : begin + BATCH])[:, None]
            for row, bias in zip(found, biases, strict=True):
                biased = torch.where(self.is_new, scores + bias, scores)
                own = biased.gather(1, targets)
                ranks = (biased >= own).sum(dim=1)
                row[begin : begin + BATCH] = ranks.where(own[:, 0] > -torch.inf, MISS).numpy()
        return found

    def share(self, histories: list[Ints], bias: float) -> float:
        """Return the share of new items among the best 10."""
        shares = list[float]()
        for begin in range(0, len(histories), BATCH):
            scores = self._scores(histories[begin : begin + BATCH])
            best = torch.where(self.is_new, scores + bias, scores).topk(min(TOP, scores.shape[1]))
            shares += self.is_new[best.indices].float().mean(dim=1).tolist()
        return _mean(np.array(shares))

    def _scores(self, histories: list[Ints]) -> Tensor:
        padded = torch.from_numpy(pad(histories, self.model.config.max_length))
        unknown = torch.zeros_like(padded)
        gaps = (unknown, unknown[:, 0]) if self.model.config.time_gaps else None
        kinds = (unknown, self.asked.expand(len(padded), -1)) if self.model.kinds else None
        with torch.no_grad():
            scores = self.model.serve(padded, self.table, gaps, kinds) @ self.table.T
        scores[:, 0] = -torch.inf
        if self.masked:
            for row, items in zip(scores, histories, strict=True):
                row[torch.from_numpy(items)] = -torch.inf
        return scores


def _gains(ranks: Ints) -> Gains:
    return np.where(ranks <= TOP, 1 / np.log2(1.0 + ranks), 0)


def _pair(gains: list[Gains], best: int, rows: NDArray[np.bool_]) -> dict[str, float]:
    return {"not_shown": _mean(gains[0][rows]), "shown": _mean(gains[best][rows])}


def _mean(values: NDArray[Any]) -> float:
    return round(float(values.mean()), 5) if len(values) else 0.0
