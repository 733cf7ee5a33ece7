"""Clusters of the items, for catalogues that take longer to scan than a request may take.

k-means with clusters of a limited size, in numpy (Lloyd's algorithm). It takes the rows as they
are: where a model scores by cosines they have one length, and where they do not, items of large
scores come together. A centroid is the mean of its rows, so that its product with a user is the
mean score of the cluster.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ranklet.bundle.manifest import Index

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

SEED, ROUNDS = 0, 5
SAMPLE = 32  # rows of each cluster that the centroids are learned from
ROOM = 1.1  # places in all clusters together, for each item
SMALLEST = 16  # places of a cluster
PRODUCTS_AT_ONCE = 1 << 20  # stay in the caches


@dataclass(frozen=True)
class Clusters:
    """Groups of items with like rows; every item is in one of them."""

    centroids: Floats  # (clusters, D)
    members: NDArray[np.int32]  # items by rising index, then zeros, (clusters, size)

    @property
    def index(self) -> Index:
        """Return the index of them, whose probes are not chosen yet."""
        return Index(len(self.members), self.members.shape[1], probes=1, figures={})


def cluster(table: Floats) -> Clusters:
    """Return clusters of the items of a table, (items + 1, D), about 4 sqrt(items) of them.

    A request reads the centroids and some clusters, so that both grow with the root of the items.
    """
    rows = table[1:]
    size = max(SMALLEST, round(len(rows) ** 0.5 / 4))
    count = -(-int(ROOM * len(rows)) // size)
    random = np.random.default_rng(SEED)
    drawn = random.choice(len(rows), min(len(rows), SAMPLE * count), replace=False)
    sample = rows[np.sort(drawn)]
    centroids = sample[random.choice(len(sample), count, replace=False)]
    most = -(-size * len(sample) // len(rows))
    for _ in range(ROUNDS):
        centroids = _means(sample, assign(sample, centroids, most), centroids)
    groups = assign(rows, centroids, size)
    members = np.zeros((count, size), dtype=np.int32)
    for row, group in zip(members, groups, strict=True):
        row[: len(group)] = group + 1
    return Clusters(_means(rows, groups, centroids), members)


def assign(rows: Floats, centroids: Floats, most: int) -> list[Indices]:
    """Return the rows of each centroid, at most ``most``, by rising index.

    Each row goes to the nearest centroid that has room. Where too many come, the nearest stay.
    """
    halves = np.square(centroids).sum(axis=1) / 2
    of_row, room = np.zeros(len(rows), dtype=np.int64), np.full(len(centroids), most)
    left = np.arange(len(rows))
    while len(left):
        has_room = np.flatnonzero(room)
        nearest, distances = _nearest(rows, left, centroids[has_room], halves[has_room])
        nearest = has_room[nearest]
        order = np.lexsort((distances, nearest))
        left, nearest = left[order], nearest[order]
        place = np.arange(len(left)) - np.searchsorted(nearest, nearest)
        stays = place < room[nearest]
        of_row[left[stays]] = nearest[stays]
        room -= np.bincount(nearest[stays], minlength=len(room))
        left = np.sort(left[~stays])
    ends = np.cumsum(np.bincount(of_row, minlength=len(centroids)))
    return np.split(np.argsort(of_row, kind="stable"), ends[:-1])


def _nearest(
    rows: Floats, some: Indices, centroids: Floats, halves: Floats
) -> tuple[Indices, Floats]:
    """Return the nearest centroid of some rows, and half of its squared distance."""
    nearest, distances = np.zeros(len(some), np.int64), np.zeros(len(some), np.float32)
    step = max(1, PRODUCTS_AT_ONCE // len(centroids))
    for begin in range(0, len(some), step):
        part = rows[some[begin : begin + step]]
        near = part @ centroids.T
        near -= halves
        best = near.argmax(axis=1)
        nearest[begin : begin + step] = best
        own = np.square(part).sum(axis=1) / 2
        distances[begin : begin + step] = own - near[np.arange(len(part)), best]
    return nearest, distances


def _means(rows: Floats, groups: list[Indices], centroids: Floats) -> Floats:
    """Return the means of groups of rows; an empty group keeps its centroid."""
    pairs = zip(groups, centroids, strict=True)
    return np.stack([rows[group].mean(axis=0) if len(group) else old for group, old in pairs])
