"""Masks of attention, and lookup tables by the age of an event."""

import numpy as np
from numpy.typing import NDArray


def by_age(values: NDArray[np.float32], hidden: float) -> NDArray[np.float32]:
    """Return the lookup table of values by age for ``AppendEncoder._place``.

    A row that holds no event yet is younger than the newest one. After that every age stands twice,
    for rows before and behind the newest event, where the array has gone round.
    """
    missing = np.full_like(values[1:], hidden)
    return np.concatenate([missing, values, values])


def causal_mask(
    hidden: float, window: int, queries: int, keys: int, begin: int = 0
) -> NDArray[np.float32]:
    """Return the mask of queries from place ``begin`` on, (1, 1, queries, keys).

    The last query stands beside the last key; keys whose place is below 0 do not exist. A query
    sees ``window`` keys, its own included; ``hidden`` is added where it may not look, 0 elsewhere.
    """
    places = begin + np.arange(queries)
    of_keys = begin + queries - keys + np.arange(keys)
    age = places[:, None] - of_keys
    is_seen = (age >= 0) & (age < window) & (of_keys >= 0)
    return np.where(is_seen, 0, hidden).astype(np.float32)[None, None]
