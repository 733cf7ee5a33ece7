"""Simulated event logs with a known best possible ranking.

Users have a taste over clusters of items. The next item of a user is drawn, among the arrived items
that are new to this user, from a mixture of

* a Markov step: each item has a few followers, most of them from its own cluster, and
* a fresh choice: the cluster of the last item or a cluster by taste, then an item by popularity.

The probabilities give the best ranking at the last event of a user. It depends on taste and arrival
times, which a model can only estimate: an upper bound.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ranklet.errors import DataError
from ranklet_training.data.sequences import Ints, Mask

Floats = NDArray[np.float64]
TOP = 10  # best_hit_rate is HR@10

_FOLLOW = 0.5  # share of Markov steps
_FOLLOWERS = (0.6, 0.3, 0.1)  # probabilities of an item's followers, in a Markov step
_STAY = 0.4  # share of fresh choices that stay in the cluster of the last item
_ZIPF = 0.8  # exponent of popularity, as of films and songs
_SHORTEST = 5  # fewest events of a user, so that leave-one-out leaves a history
_START = 1_700_000_000  # unix seconds
_SPAN = 180 * 86_400  # seconds that the log covers
_ARRIVAL = 0.8  # share of the span after which the late items arrive
_GENRES = ("action", "comedy", "crime", "drama", "fantasy", "history", "horror", "music")
_MAKERS = ("Amber", "Birch", "Cedar", "Delta", "Ember", "Fjord", "Grove", "Heron", "Iris", "Juno")


@dataclass(frozen=True)
class Simulation:
    """Simulated log and items, and the best ranking, which no model beats on average."""

    events: pl.DataFrame  # user_id, item_id, timestamp, rating; by time over all users
    items: pl.DataFrame  # item_id, title, genres, maker
    best_hit_rate: float  # HR@10 of the oracle in expectation, leave-one-out, seen items masked
    oracle: pl.DataFrame  # user_id, item_ids: the ten likeliest at the last event, best first


@dataclass(frozen=True)
class _World:
    cluster_of: Ints  # (items,)
    popularity: Floats  # (items,), sums to 1 within a cluster
    followers: Ints  # (items, len(_FOLLOWERS))
    late_from: int  # items with this index or a higher one arrive late

    def weights(self, last: Ints, taste: Floats, seen: Mask, has_late: Mask) -> Floats:
        """Return the unnormalised probability of each next item; ``last`` is -1 at the start."""
        rows = np.arange(len(last))
        started = last >= 0
        mixture = taste * np.where(started, 1 - _STAY, 1.0)[:, None]  # (users, clusters)
        mixture[rows[started], self.cluster_of[last[started]]] += _STAY
        weights: Floats = mixture[:, self.cluster_of] * self.popularity
        weights *= np.where(started, 1 - _FOLLOW, 1.0)[:, None]  # (users, items)
        for place, share in enumerate(_FOLLOWERS):
            weights[rows[started], self.followers[last[started], place]] += _FOLLOW * share
        weights[seen] = 0.0
        weights[~has_late, self.late_from :] = 0.0
        return weights


def simulate(
    *,
    users: int = 2000,
    items: int = 500,
    clusters: int = 10,
    mean_length: float = 30,
    late_items: float = 0.05,
    seed: int = 0,
) -> Simulation:
    """Simulate a log; equal arguments give equal logs.

    Users have ``mean_length`` events on average, before limits of 5 and of half of the items. The
    share ``late_items`` of the items arrives after 80 % of the time.
    """
    if not (users >= 1 and clusters >= 1 and items >= max(clusters, 2 * _SHORTEST)):
        raise DataError(
            f"can't simulate {users} users, {items} items, {clusters} clusters: have at least one "
            f"user, and {2 * _SHORTEST} items and no fewer than clusters"
        )
    if not (0 <= late_items <= 0.5 and _SHORTEST <= mean_length < np.inf):
        raise DataError(
            f"can't simulate late_items={late_items}, mean_length={mean_length}: "
            f"late_items lies in [0, 0.5], mean_length is at least {_SHORTEST}"
        )
    random = np.random.default_rng(seed)
    world = _draw_world(random, items, clusters, late_from=items - int(items * late_items))
    # At most half of the early items, so that a user always has a choice left.
    lengths = _SHORTEST + random.geometric(1 / (mean_length - _SHORTEST + 1), users) - 1
    lengths = np.sort(np.minimum(lengths, world.late_from // 2).clip(_SHORTEST))[::-1]
    times = _draw_times(random, lengths)
    # Sparse tastes; the floor keeps every item possible for every user.
    taste = 0.95 * random.dirichlet(np.full(clusters, 0.3), users) + 0.05 / clusters
    chosen, top, mass = _draw_items(random, world, taste, lengths, times)

    happens = np.arange(times.shape[1]) < lengths[:, None]  # (users, longest)
    by_time = np.argsort(times[happens], kind="stable")
    user, item = np.nonzero(happens)[0][by_time], chosen[happens][by_time]
    # Random names hide that users are sorted by length.
    user_ids = _names("u", random.permutation(users))
    item_ids = _names("i", np.arange(items))
    liking = taste[user, world.cluster_of[item]] / taste.max(axis=1)[user]
    columns = {
        "user_id": user_ids[user],
        "item_id": item_ids[item],
        "timestamp": times[happens][by_time],
        "rating": np.rint(2.5 + 2 * liking + random.normal(0, 0.7, len(user))).clip(1, 5),
    }
    best = {"user_id": user_ids.tolist(), "item_ids": [item_ids[row].tolist() for row in top]}
    described = _describe(random, world, item_ids)
    oracle = pl.DataFrame(best).sort("user_id")
    return Simulation(pl.DataFrame(columns), described, float(mass.mean()), oracle)


def _names(prefix: str, numbers: Ints) -> NDArray[np.str_]:
    width = len(str(len(numbers)))
    return np.array([f"{prefix}{number + 1:0{width}}" for number in numbers.tolist()])


def _draw_world(random: np.random.Generator, items: int, clusters: int, late_from: int) -> _World:
    cluster_of = random.permutation(np.arange(items) % clusters)
    popularity = random.permutation(np.arange(1, items + 1) ** -_ZIPF)
    popularity /= np.bincount(cluster_of, popularity)[cluster_of]
    followers = random.integers(items, size=(items, len(_FOLLOWERS)))
    for cluster in range(clusters):
        members = np.flatnonzero(cluster_of == cluster)
        home = random.random((len(members), len(_FOLLOWERS))) < 0.8
        followers[members] = np.where(home, random.choice(members, home.shape), followers[members])
    return _World(cluster_of, popularity, followers, late_from)


def _draw_times(random: np.random.Generator, lengths: Ints) -> Ints:
    """Return unix seconds, (users, longest), strictly increasing; rows end in padding."""
    longest = int(lengths.max())
    begin = random.uniform(0, 0.9, len(lengths))
    end = begin + random.uniform(0.1, 1, len(lengths)) * (1 - begin)
    happens = np.arange(longest) < lengths[:, None]
    shares = np.where(happens, random.random(happens.shape), np.inf)
    shares.sort(axis=1)
    shares[np.isinf(shares)] = 1.0
    seconds = (_SPAN * (begin[:, None] + shares * (end - begin)[:, None])).astype(np.int64)
    return _START + seconds + np.arange(longest)  # a second more each: no ties within a user


def _draw_items(
    random: np.random.Generator, world: _World, taste: Floats, lengths: Ints, times: Ints
) -> tuple[Ints, Ints, Floats]:
    """Return items (users, longest), the best ten at the last event, and their probability."""
    users, items = len(lengths), len(world.cluster_of)  # users by length, from long to short
    chosen = np.full(times.shape, -1)
    seen = np.zeros((users, items), np.bool_)
    top = np.empty((users, min(TOP, items)), np.int64)
    mass = np.empty(users)
    last = np.full(users, -1)
    for step in range(times.shape[1]):
        active = int((lengths > step).sum())
        has_late = times[:active, step] >= _START + _ARRIVAL * _SPAN
        weights = world.weights(last[:active], taste[:active], seen[:active], has_late)
        sums = np.cumsum(weights, axis=1)
        drawn = (sums <= random.random((active, 1)) * sums[:, -1:]).sum(axis=1)
        ends = lengths[:active] == step + 1
        best = np.argsort(-weights[ends], axis=1, kind="stable")[:, :TOP]
        top[:active][ends] = best
        likeliest = np.take_along_axis(weights[ends], best, axis=1)
        mass[:active][ends] = likeliest.sum(axis=1) / sums[ends, -1]
        chosen[:active, step] = last[:active] = drawn
        seen[np.arange(active), drawn] = True
    return chosen, top, mass


def _describe(random: np.random.Generator, world: _World, ids: NDArray[np.str_]) -> pl.DataFrame:
    """Return items with noisy features of their clusters."""
    genres, makers, titles = [], [], []
    for number, cluster in enumerate(world.cluster_of.tolist()):
        # A cluster has two genres and shares one with the next cluster.
        own = {_GENRES[cluster % len(_GENRES)], _GENRES[(cluster + 1) % len(_GENRES)]}
        if random.random() < 0.2:
            own.add(_GENRES[random.integers(len(_GENRES))])
        guest = random.random() < 0.2
        maker = _MAKERS[random.integers(len(_MAKERS)) if guest else cluster % len(_MAKERS)]
        genres.append(sorted(own))
        makers.append(maker)
        titles.append(f"{maker}'s {' '.join(sorted(own))} {number + 1}")
    columns = {"item_id": ids.tolist(), "title": titles, "genres": genres, "maker": makers}
    return pl.DataFrame(columns)
