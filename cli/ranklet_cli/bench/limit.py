"""The lower bound of a call: the bytes it must read, over the memory bandwidth of this machine.

A call reads all scored weights once. It beats this bound only if they stay in a cache.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ranklet.bundle.manifest import ENCODE, SCORE, SEARCH, Manifest
from ranklet_cli.bench.report import Bandwidth

CACHE = Path("/sys/devices/system/cpu/cpu0/cache")
USUAL_CACHE = 32 << 20  # bytes, if the system reports none
LARGEST_ARRAY = 1 << 30
READS = 20  # of the array; the best one counts


def least_bytes(manifest: Manifest) -> int:
    """Return the bytes that a call must read: encoder, scorer and item biases.

    A scan reads them once for any batch, an index reads its clusters for each user.
    """
    encode, score, items = manifest.programs[ENCODE], manifest.programs[SCORE], manifest.items + 1
    scored = score.scanned_bytes
    if (index := manifest.index) and index.probes:
        items = index.probes * index.size
        scored = manifest.programs[SEARCH].scanned_bytes + items * (manifest.width + 8)
    return encode.scanned_bytes + scored + 4 * items


def memory_bandwidths(threads: Sequence[int]) -> list[Bandwidth]:
    """Measure read speed: sum an array of four times the last-level cache, by threads."""
    size = min(LARGEST_ARRAY, 4 * last_cache())
    numbers = np.ones(size // 4, dtype=np.float32)  # zeros would share one page
    return [Bandwidth(count, _read_rate(numbers, count) / 1e9) for count in threads]


def last_cache() -> int:
    """Return the size of the largest cache of a core, in bytes."""
    sizes = []
    for file in CACHE.glob("index*/size"):  # like "32768K"
        try:
            text = file.read_text().strip()
            sizes.append(int(text[:-1]) << {"K": 10, "M": 20}[text[-1]])
        except (OSError, ValueError, KeyError, IndexError):
            continue
    return max(sizes, default=USUAL_CACHE)


def _read_rate(numbers: NDArray[np.float32], threads: int) -> float:
    """Return bytes per second."""
    parts = np.array_split(numbers, threads)
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:  # numpy sums without the interpreter lock
        for _ in range(READS):
            start = time.perf_counter()
            list(pool.map(np.sum, parts))
            best = min(best, time.perf_counter() - start)
    return numbers.nbytes / best
