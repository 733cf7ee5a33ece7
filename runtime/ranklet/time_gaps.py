"""Buckets of the time between events, the same in training and ranking.

Buckets grow by powers of two (as in HSTU, Zhai et al., ICML 2024), so that seconds, hours and years
have buckets of their own, whatever the unit of the timestamps.
"""

import numpy as np
from numpy.typing import NDArray

BUCKETS = 48  # enough for gaps of 4,000 years in milliseconds
UNKNOWN = 0  # no earlier event, or unknown times


def gap_buckets(gaps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return 1 + floor(log2(1 + gap)), at most BUCKETS - 1; a negative gap counts as 0."""
    _, exponents = np.frexp(np.maximum(gaps, 0) + 1.0)
    return np.minimum(exponents, BUCKETS - 1).astype(np.int64)


def buckets_before(times: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the bucket of the gap before each event of one history, UNKNOWN for the first."""
    # A difference beyond int64 wraps in it, and is right in uint64.
    gaps = np.minimum(np.diff(times).astype(np.uint64), 2**63 - 1).astype(np.int64)
    return np.concatenate([np.full(min(1, len(times)), UNKNOWN), gap_buckets(gaps)])


def bucket_until(now: int, last: int) -> int:
    """Return the bucket of the gap from the last event to now, exact for any int64."""
    return int(gap_buckets(np.array([min(now - last, 2**63 - 1)], dtype=np.int64))[0])
