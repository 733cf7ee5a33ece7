"""Memory pages of tables on Linux: huge ones for what is scanned, few for what is looked up.

* onnxruntime packs the table that it scans into pages of 4 KiB, whose address translation takes
  half the time of the scan; pages of 2 MiB avoid it (10M items, 1 thread: 58 ms, then 35 ms).
* While it packs, the mapped table is resident beside its copy (10M items: a peak of 1.5 GB), unless
  pages that were read are dropped meanwhile (0.9 GB).
* Each row that is looked up in a mapped file makes up to 2 MiB of the page cache around it
  resident. The kernel takes that back only when memory is short.

All of this is advice to the kernel: no result depends on it, and systems that do not know it (no
Linux, or one older than 6.1) ignore it.

The mappings of a small file are put on a copy in memory: who overwrites the file would change
answers otherwise, and who truncates it would end the process (SIGBUS).
"""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Event, Thread
from typing import Any, BinaryIO, NamedTuple
from weakref import finalize

from ranklet.forks import ProcessLock

DONT_NEED, PAGE_OUT, COLLAPSE = 4, 21, 25  # of madvise(2)
LARGE = 1 << 24  # bytes; smaller regions gain nothing
MAP_PRIVATE_FIXED = 0x12  # of mmap(2)
FORGET_EVERY = 0.02  # seconds, in which up to 100 MB are read

Region = tuple[int, int]  # address, bytes

# Held while a huge file is mapped, so that each reader knows its own mapping.
MAPPING = ProcessLock()


class Mapping(NamedTuple):
    """A line of /proc/self/maps."""

    start: int
    size: int
    rights: str  # as "rw-p"
    offset: int  # in the file


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
    return [(each.start, each.size) for each in _mappings(path) if each.size >= LARGE]


def _mappings(path: str) -> list[Mapping]:
    if sys.platform != "linux":
        return []
    try:
        lines = os.fsdecode(Path("/proc/self/maps").read_bytes()).split("\n")[:-1]
    except OSError:
        return []
    found = []
    for line in lines:
        if not line.endswith(path):
            continue
        addresses, rights, offset, _, _, *name = line.split(maxsplit=5)
        if "".join(name) == path:
            start, end = (int(address, 16) for address in addresses.split("-"))
            found.append(Mapping(start, end - start, rights, int(offset, 16)))
    return found


class Copy:
    """A copy of a small file in memory, which Linux has (memfd_create)."""

    def __init__(self, path: Path) -> None:
        """Read the file; AttributeError or OSError: the system has no such copies."""
        self.descriptor = os.memfd_create(path.name)
        finalize(self, os.close, self.descriptor)
        with path.open("rb") as file, open(self.descriptor, "wb", closefd=False) as copy:
            shutil.copyfileobj(file, copy)

    def open(self) -> BinaryIO:
        """Return the copy as a file."""
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        return open(self.descriptor, "rb", closefd=False)


@contextmanager
def mapped_to(copy: Copy | None, path: str) -> Iterator[None]:
    """On exit, put what this thread has mapped of a file onto its copy, at the same addresses."""
    if copy is None:
        yield
        return
    with MAPPING.lock:
        before = {mapping.start for mapping in _mappings(path)}
        yield
        for mapping in _mappings(path):
            if mapping.start not in before and "p" in mapping.rights:
                _map(mapping, copy.descriptor)


def _map(place: Mapping, descriptor: int) -> None:
    """Call mmap(2)."""
    import ctypes

    rights = sum(1 << bit for bit, right in enumerate("rwx") if right in place.rights)
    call, how = _system().mmap, (rights, MAP_PRIVATE_FIXED, descriptor, place.offset)
    if call(place.start, place.size, *how) != place.start:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def advise(region: Region, advice: int) -> None:
    """Call madvise(2); a kernel that does not know the advice ignores it."""
    _system().madvise(*region, advice)


@cache
def _system() -> Any:  # noqa: ANN401 (a library)
    """Return the C library, loaded once: each ``CDLL`` is a reference cycle."""
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        *[ctypes.c_int] * 3,
        ctypes.c_long,
    ]
    library.mmap.restype = ctypes.c_void_p
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return library
