"""Choice of the clusters that an index reads: the fewest that lose next to nothing."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranklet.bundle.manifest import Index, Manifest
from ranklet.bundle.vocabulary import ItemId
from ranklet.engine.engine import MOST_PROBED
from ranklet.errors import PrecisionError
from ranklet.ranker import Ranker
from ranklet.ranking import Ranking
from ranklet.values import Ids
from ranklet_training.judge.metrics import hit_rate, ndcg

TOP = 10
LEAST_RECALL, MOST_LOST = 0.95, 0.005  # of the best items of a scan; of its NDCG@10 and HR@10
FEWEST, MOST, MOST_SCORES = 256, 2_000, 1 << 28  # questions, and scores of all together
UNMEASURED = 1 / 50  # of the clusters of random weights, about what a million items need


def choose_probes(
    manifest: Manifest,
    serve: Callable[[Manifest], Ranker],
    histories: Sequence[Ids],
    targets: Sequence[ItemId] | None = None,
    kinds: Sequence[Any] | None = None,
) -> Index:
    """Return the index of a bundle with the fewest probes that pass, without seen items.

    Args:
        manifest: Of the bundle; its index says any number of probes.
        serve: Returns a ranker by another manifest of the bundle.
        histories: Questions, by item ids.
        targets: The item that came next in each, if they were held out.
        kinds: The kinds of the events of each; None: unknown.

    Raises:
        PrecisionError: No number of probes passes that takes less time than a scan.
    """
    assert manifest.index
    count = min(MOST, max(FEWEST, MOST_SCORES // manifest.items))
    asked: dict[str, Any] = {"histories": histories[:count], "k": TOP, "exclude_seen": True}
    asked["kinds"] = kinds and kinds[:count]
    best = serve(manifest).rank_batch(**asked, exact=True)
    for probes in _ladder(manifest.index.clusters):
        index = replace(manifest.index, probes=probes)
        found = serve(replace(manifest, index=index)).rank_batch(**asked)
        figures = _compare(found, best, targets and targets[:count])
        losses = [1 - figures.get(name, 1.0) for name in ("NDCG@10", "HR@10")]
        if figures["recall@10"] >= LEAST_RECALL and max(losses) <= MOST_LOST:
            return replace(index, figures=figures | {"share": share(index, manifest.items)})
    raise PrecisionError(
        f"an index that reads {probes:,} of {manifest.index.clusters:,} clusters finds "
        f"{figures['recall@10']:.2%} of the best {TOP} of a scan on {len(best):,} histories, and "
        f"NDCG@10 and HR@10 drop by {losses[0]:.2%} and {losses[1]:.2%}; {LEAST_RECALL:.0%} and "
        f"drops of {MOST_LOST:.1%} are needed: make the bundle without an index"
    )


def unmeasured(index: Index, items: int) -> Index:
    """Return the index of weights that nobody trained: there is nothing to find."""
    index = replace(index, probes=max(1, round(UNMEASURED * index.clusters)))
    return replace(index, figures={"share": share(index, items)})


def share(index: Index, items: int) -> float:
    """Return the share of the items that a request reads."""
    return min(1.0, index.probes * index.size / items)


def draw_histories(
    shares: NDArray[Any], longest: int, how_many: int = 256, seed: int = 0
) -> list[NDArray[np.int64]]:
    """Draw histories of popular items, by item index, in place of held-out ones.

    Args:
        shares: What part of the events each item has, (items,), or numbers in proportion.
        longest: The most events of a history.
        how_many: Histories.
        seed: Of the numbers.
    """
    random = np.random.default_rng(seed)
    chances = np.asarray(shares, dtype=np.float64) / np.sum(shares, dtype=np.float64)
    lengths = random.integers(1, longest + 1, how_many)
    return [random.choice(len(chances), n, p=chances) + 1 for n in lengths]


def _ladder(clusters: int) -> list[int]:
    """Return 1, 2, 3, 4, 6, 8, 12, ... up to the most that are read, at least 1."""
    steps = (number << power for power in range(clusters.bit_length()) for number in (2, 3))
    return [1, *(step for step in steps if step <= MOST_PROBED * clusters)]


def _compare(
    found: list[Ranking], best: list[Ranking], targets: Sequence[ItemId] | None
) -> dict[str, Any]:
    """Return recall, and what is left of NDCG and HR, of rankings beside those of a scan."""
    # An item that scores as the last of the best is one of them.
    shares = [
        np.mean(one.scores >= other.scores[-1]) if len(other.items) else 1.0
        for one, other in zip(found, best, strict=True)
    ]
    figures: dict[str, Any] = {"questions": len(best), "recall@10": float(np.mean(shares))}
    if targets is not None:
        ranks, exact = (_ranks(rankings, targets) for rankings in (found, best))
        for name, metric in {"NDCG@10": ndcg, "HR@10": hit_rate}.items():
            before = metric(exact, TOP)
            figures[name] = metric(ranks, TOP) / before if before else 1.0
    return figures


def _ranks(rankings: list[Ranking], targets: Sequence[ItemId]) -> NDArray[np.int64]:
    """Return the rank of each target, TOP + 1 where it is not shown."""
    return np.array(
        [
            [*ranking.items, target].index(target) + 1 if target in ranking.items else TOP + 1
            for ranking, target in zip(rankings, targets, strict=True)
        ]
    )
