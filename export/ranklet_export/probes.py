"""Choice of the clusters that an index reads: the fewest that lose next to nothing."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranklet.bundle.manifest import Index, Manifest
from ranklet.bundle.vocabulary import ItemId
from ranklet.errors import PrecisionError
from ranklet.ranker import Ranker
from ranklet.ranking import Ranking

Indices = NDArray[np.int64]

TOP = 10
LEAST_RECALL, MOST_LOST = 0.95, 0.005  # of the best items of a scan; of its NDCG@10 and HR@10
FEWEST, MOST, MOST_SCORES = 256, 2_000, 1 << 28  # questions, and scores of all together
ROOM_OF_POOL, LARGEST = 2, 1 / 3  # places for each item of the pool; share of the clusters
UNMEASURED = 1 / 50  # of the clusters of random weights, about what a million items need


def choose_probes(
    manifest: Manifest,
    serve: Callable[[Manifest], Ranker],
    histories: Sequence[Indices],
    targets: Indices | None = None,
    kinds: Sequence[Indices] | None = None,
) -> Index:
    """Return the index of a bundle with the fewest probes that pass, without seen items.

    Random weights have nothing to find: their index reads ``UNMEASURED`` of the clusters. Where the
    bundle lifts items by points of its own, its requests scan: 0 probes.

    Args:
        manifest: Of the bundle; its index says any number of probes.
        serve: Returns a ranker by another manifest of the bundle.
        histories: Questions, by item index.
        targets: The item that came next in each, if they were held out.
        kinds: The kinds of the events of each; None: unknown.

    Raises:
        PrecisionError: No number of probes passes that takes less time than a scan.
    """
    assert manifest.index
    ranker = serve(manifest)
    if ranker.engine.bias.max() > 0:
        return replace(manifest.index, probes=0, figures={"share": 1.0})
    if not manifest.data["events"]:
        probes = max(1, round(UNMEASURED * manifest.index.clusters))
        return _index(manifest, probes, {})
    count = min(MOST, max(FEWEST, MOST_SCORES // manifest.items))
    ids, names = ranker.vocabulary.ids, np.array([None, *ranker.kinds])
    asked: dict[str, Any] = {"histories": list(map(ids, histories[:count]))}
    asked |= {"k": TOP, "exclude_seen": True}
    if kinds is not None:
        asked["kinds"] = [names[row] for row in kinds[:count]]
    next_items = None if targets is None else ids(targets[:count])
    best = ranker.rank_batch(**asked, exact=True)
    for probes in _ladder(manifest):
        index = _index(manifest, probes, {})
        found = serve(replace(manifest, index=index)).rank_batch(**asked)
        figures = _compare(found, best, next_items)
        losses = [1 - figures.get(name, 1.0) for name in ("NDCG@10", "HR@10")]
        if figures["recall@10"] >= LEAST_RECALL and max(losses) <= MOST_LOST:
            return _index(manifest, probes, figures)
    raise PrecisionError(
        f"an index that reads {probes:,} of {manifest.index.clusters:,} clusters finds "
        f"{figures['recall@10']:.2%} of the best {TOP} of a scan on {len(best):,} histories, and "
        f"NDCG@10 and HR@10 drop by {losses[0]:.2%} and {losses[1]:.2%}; {LEAST_RECALL:.0%} and "
        f"drops of {MOST_LOST:.1%} are needed: make the bundle without an index"
    )


def _index(manifest: Manifest, probes: int, figures: dict[str, Any]) -> Index:
    """Return the index with so many probes, and the share of the items that they read."""
    assert manifest.index
    share = min(1.0, probes * manifest.index.size / manifest.items)
    return replace(manifest.index, probes=probes, figures={**figures, "share": share})


def draw_histories(
    shares: NDArray[Any], longest: int, how_many: int = 256
) -> list[NDArray[np.int64]]:
    """Draw histories of popular items, by item index, in place of held-out ones.

    Args:
        shares: What part of the events each item has, (items,), or numbers in proportion.
        longest: The most events of a history.
        how_many: Histories.
    """
    random = np.random.default_rng(0)
    chances = np.asarray(shares, dtype=np.float64) / np.sum(shares, dtype=np.float64)
    lengths = random.integers(1, longest + 1, how_many)
    return [random.choice(len(chances), n, p=chances) + 1 for n in lengths]


def _ladder(manifest: Manifest) -> list[int]:
    """Return those of 1, 2, 3, 4, 6, 8, 12, ... that may do: enough to fill the pool, at least one.

    With fewer the runtime would read more than the index says.
    """
    assert manifest.index
    clusters, size = manifest.index.clusters, manifest.index.size
    least = min(clusters, -(-ROOM_OF_POOL * manifest.pool.size(TOP) // size))
    steps = (number << power for power in range(clusters.bit_length()) for number in (2, 3))
    return [least, *(step for step in steps if least < step <= LARGEST * clusters)]


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
        shown, before = (_gains(rankings, targets) for rankings in (found, best))
        for name in shown:
            figures[name] = shown[name] / before[name] if before[name] else 1.0
    return figures


def _gains(rankings: list[Ranking], targets: Sequence[ItemId]) -> dict[str, float]:
    """Return NDCG@10 and HR@10 of rankings, summed up over the questions."""
    places = [
        list(ranking.items).index(target) if target in ranking.items else TOP
        for ranking, target in zip(rankings, targets, strict=True)
    ]
    hits = np.array([place for place in places if place < TOP])
    return {"NDCG@10": float((1 / np.log2(2 + hits)).sum()), "HR@10": float(len(hits))}
