"""Memory pages of large tables on Linux: huge ones for what is scanned, few for what is looked up.

* onnxruntime packs the table that it scans into pages of 4 KiB, whose address translation takes
  half the time of the scan; pages of 2 MiB avoid it (10M items, 1 thread: 58 ms, then 35 ms).
* While it packs, the mapped table is resident beside its copy (10M items: a peak of 1.5 GB), unless
  pages that were read are dropped meanwhile (0.9 GB).
* Each row that is looked up in a mapped file makes up to 2 MiB of the page cache around it
  resident. The kernel takes that back only when memory is short.

All of this is advice to the kernel: no result depends on it, and systems that do not know it (no
Linux, or one older than 6.1) ignore it.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from ranklet.forks import ProcessLock

DONT_NEED, PAGE_OUT, COLLAPSE = 4, 21, 25  # of madvise(2)
LARGE = 1 << 24  # bytes; smaller regions gain nothing
FORGET_EVERY = 0.02  # seconds, in which up to 100 MB are read

Region = tuple[int, int]  # address, bytes

# Held while a huge file is mapped, so that each reader knows its own mapping.
MAPPING = ProcessLock()


def use_huge_pages(before: list[Region]) -> None:
    """Put large memory that was allocated since ``before = regions("")`` into huge pages."""
    for start, size in regions(""):
        at, end = start, start + size
        for old, old_size in sorted(before):  # old memory may lie inside: regions grow together
            if at < old + old_size and old < end:
                _collapse(at, old)
                at = old + old_size
        _collapse(at, end)


def _collapse(start: int, end: int) -> None:
    if end - start >= LARGE:
        advise((start, end - start), COLLAPSE)


def forget_pages(mapped: list[Region]) -> None:
    """Drop mapped files from the resident set; they stay in the page cache.

    Only for read-only mappings that certainly still exist: other memory becomes zeros.
    """
    for region in mapped:
        advise(region, DONT_NEED)


@contextmanager
def kept_out(path: str) -> Iterator[None]:
    """Page a file out again and again while this thread is busy reading its mapping.

    Unlike ``forget_pages``, this is harmless if the mapping ends and other memory takes its place.
    The kernel obeys the owner of the file and those who may write to it.
    """
    is_read = Event()

    def page_out() -> None:
        while not is_read.wait(FORGET_EVERY):
            for region in regions(path):
                advise(region, PAGE_OUT)

    thread = Thread(target=page_out, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_read.set()
        thread.join()


@contextmanager
def new_regions(path: str) -> Iterator[list[Region]]:
    """Yield a list; on exit it holds the regions of a file that this thread has mapped inside."""
    found: list[Region] = []
    with MAPPING.lock:
        before = regions(path)
        yield found
        for start, size in regions(path):
            if all(start + size <= old or old + old_size <= start for old, old_size in before):
                found.append((start, size))


def regions(path: str) -> list[Region]:
    """Return the large regions of a mapped file; with no path, those of anonymous memory."""
    if sys.platform != "linux":
        return []
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        addresses, _, _, _, _, *name = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in addresses.split("-"))
        if end - start >= LARGE and "".join(name) == path:
            found.append((start, end - start))
    return found


def advise(region: Region, advice: int) -> None:
    """Call madvise(2); a kernel that does not know the advice ignores it."""
    import ctypes  # for large tables alone

    start, size = region
    ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), advice)
