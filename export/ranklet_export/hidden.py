"""Score that hides an event from the first block, worked out from the items of a catalogue."""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ranklet.bundle.manifest import NEVER

Floats = NDArray[np.float32]
# All hidden events together weigh at most exp(-17) = 4e-8 of a visible one: below float32.
HIDDEN_BELOW = 17
# From exp(-87) on exponentials are denormal; scores of trained models spread over some 15.
LOWEST_SCORE = -70


def hidden_score(parts: Iterable[tuple[Floats, Floats]], heads: int, events: int) -> float:
    """Return the score that hides an event from the first block, ``NEVER`` if none is high enough.

    An event always sees itself, so a hidden one weighs at most exp(``hidden_score`` + gap) of what
    it sees, where the gap is between the two scores, and fewer than ``events`` are hidden. Rotation
    keeps lengths, and turns an event and itself alike:
    score(i, j) - score(i, i) <= (|q_i| max |k| - <q_i, k_i>) / sqrt(d). What hidden events add is
    their weight times their values, which are taken to be as large as those of the others.

    Args:
        parts: Queries and keys of the first block for all items, (rows, D) each, in pieces.
        heads: Of the block.
        events: The most events of a history, padding included.
    """
    sizes = []
    for pair in parts:
        query, key = (part.reshape(len(part), heads, -1) for part in pair)
        own = np.einsum("nhd,nhd->nh", query, key)
        sizes.append((np.linalg.norm(query, axis=2), np.linalg.norm(key, axis=2), own))
    depth = query.shape[2]
    asking, asked, own = (np.concatenate(part) for part in zip(*sizes, strict=True))
    gap = max(0.0, float((asking * asked.max(axis=0) - own).max()) / depth**0.5)
    score = -math.ceil(gap + HIDDEN_BELOW + math.log(events))
    return float(score) if score >= LOWEST_SCORE else NEVER
