"""The limit: what a call must read, and how fast this machine reads memory.

Whatever is scored passes through the processor once a call, so a call takes no less than these
bytes over the bandwidth, unless they stay in a cache.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ranklet.bundle import CHUNK, CODE_BITS, DATA, ENCODER, Manifest
from ranklet_cli.bench.report import Bandwidth

CACHE = Path("/sys/devices/system/cpu/cpu0/cache")
USUAL_CACHE = 32 << 20  # bytes, where the system does not say
LARGEST_ARRAY = 1 << 30
READS = 20  # of the array; the best one counts


def least_bytes(manifest: Manifest) -> int:
    """Return how many bytes a call reads at least, for a batch of any size once.

    They are all weights (fp16 is fp32 in memory) and the bias of every item, but for what is looked
    up row by row: the first block's rows, and of precisions that score codes, the item table.
    """
    table = manifest.table
    padded = -(-table.rows // CHUNK) * CHUNK
    data, table_bytes = manifest.files[DATA].size, padded * table.columns * _item_size(manifest)
    total = data + manifest.files[ENCODER].size + 4 * padded
    bits = CODE_BITS.get(manifest.precision, 0)
    if bits:
        total -= table_bytes
    elif manifest.precision == "fp16":
        total += table_bytes
    rows_bytes = _rows_bytes(manifest)
    codes_bytes = padded * table.columns * bits // 8
    # Not all bundles have these rows. With a few hundred items other weights may seem to be them.
    has_rows = data >= table_bytes + codes_bytes + rows_bytes
    return total - rows_bytes if has_rows else total


def _rows_bytes(manifest: Manifest) -> int:
    """Return the size of the first block's queries, keys, values and gates of every item."""
    settings = manifest.training["model"]
    if settings["kind"] != "sequence" or settings["blocks"] < 2 or settings.get("time_gaps"):
        return 0
    parts = 4 if settings.get("block") == "gated" else 3
    return manifest.table.rows * parts * manifest.table.columns * _item_size(manifest)


def _item_size(manifest: Manifest) -> int:
    return np.dtype(manifest.table.type).itemsize


def memory_bandwidths(threads: Sequence[int]) -> list[Bandwidth]:
    """Sum an array of four times the last cache with each count of threads."""
    size = min(LARGEST_ARRAY, 4 * last_cache())
    numbers = np.ones(size // 4, dtype=np.float32)  # zeros would share one page
    return [Bandwidth(count, _read_rate(numbers, count) / 1e9) for count in threads]


def last_cache() -> int:
    """Return the bytes of the largest cache of a core."""
    sizes = []
    for file in CACHE.glob("index*/size"):  # like "32768K"
        try:
            text = file.read_text().strip()
            sizes.append(int(text[:-1]) << {"K": 10, "M": 20}[text[-1]])
        except (OSError, ValueError, KeyError, IndexError):
            continue
    return max(sizes, default=USUAL_CACHE)


def _read_rate(numbers: NDArray[np.float32], threads: int) -> float:
    """Return bytes a second."""
    parts = np.array_split(numbers, threads)
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:  # numpy sums without the lock of the interpreter
        for _ in range(READS):
            start = time.perf_counter()
            list(pool.map(np.sum, parts))
            best = min(best, time.perf_counter() - start)
    return numbers.nbytes / best
