"""Buckets of the time between events, the same in training and ranking.

Buckets grow by powers of two (as in HSTU, Zhai et al., ICML 2024), so that seconds, hours and years
have buckets of their own, whatever the unit of the timestamps.
"""

import numpy as np
from numpy.typing import NDArray

# Units of times since 1970, and how many make a second.
SCALES = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
# Numbers between 1980 and 2100 in a unit are taken for that unit; the ranges do not overlap.
EARLIEST, LATEST = 315_532_800, 4_102_444_800
BUCKETS = 48  # enough for gaps of 4,000 years in milliseconds
UNKNOWN = 0  # no earlier event, or unknown times


def unit_by_size(time: float) -> str:
    """Return the unit in which a time is between 1980 and 2100, "" if there is none."""
    return next((u for u, n in SCALES.items() if EARLIEST * n <= time <= LATEST * n), "")


def gap_buckets(gaps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return 1 + floor(log2(1 + gap)), at most BUCKETS - 1; a negative gap counts as 0."""
    _, exponents = np.frexp(np.maximum(gaps, 0) + 1.0)
    return np.minimum(exponents, BUCKETS - 1).astype(np.int64)


def buckets_before(times: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the bucket of the gap before each event of one history, UNKNOWN for the first."""
    return np.concatenate(
        [np.full(min(1, len(times)), UNKNOWN), buckets_between(times[:-1], times[1:])]
    )


def buckets_between(earlier: NDArray[np.int64], later: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the bucket of the gap between two times, or of each of many."""
    # A difference beyond int64 wraps in it, and is right in uint64.
    gaps = np.minimum((later - earlier).astype(np.uint64), 2**63 - 1).astype(np.int64)
    return gap_buckets(gaps)


def bucket_until(now: int, last: int) -> int:
    """Return the bucket of the gap from the last event to now, exact for any int64."""
    return int(gap_buckets(np.array([min(max(now - last, 0), 2**63 - 1)], dtype=np.int64))[0])
