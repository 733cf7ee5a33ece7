"""Frames and arrays in files, for logs larger than memory."""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import polars as pl
from filelock import FileLock
from numpy.typing import NDArray

from ranklet.files.atomic import append, atomic_folder

Arrays = Mapping[str, NDArray[Any]]


class StoredFrames:
    """Frames of a folder, in the order of their names, that are read one at a time."""

    def __init__(self, folder: Path) -> None:
        """Take a folder of Arrow files."""
        self.folder = folder

    def __iter__(self) -> Iterator[pl.DataFrame]:
        for scan in self.scan():
            yield scan.collect()

    def scan(self) -> Iterator[pl.LazyFrame]:
        """Open one frame after the other."""
        for path in sorted(self.folder.glob("*.arrow")):
            yield pl.scan_ipc(path)


Frames = Sequence[pl.DataFrame] | StoredFrames  # pieces of one frame


def columns_of(pieces: Frames, name: str) -> Iterator[pl.Series]:
    """Yield a column of each piece."""
    if isinstance(pieces, StoredFrames):
        for scan in pieces.scan():
            yield scan.select(name).collect()[name]
    else:
        yield from (piece[name] for piece in pieces)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill; it is whole or absent, and what killed processes left goes."""
    for torn in folder.parent.glob(f".{folder.name}.*.tmp"):
        shutil.rmtree(torn)
    with atomic_folder(folder) as new:
        yield new


def store_frame(path: Path, frame: pl.DataFrame) -> None:
    """Write a frame into a new Arrow file."""
    with path.open("xb") as file:
        frame.write_ipc(file)


def concatenate(parts: Iterable[Arrays], folder: Path | None = None) -> dict[str, NDArray[Any]]:
    """Return the arrays of all parts, one after the other by name, in memory or in a folder.

    A folder that is there holds them already; else it is written whole or not at all. Its files
    ``NAME.DTYPE`` are flat and little-endian.
    """
    if folder is None:
        first, *others = parts
        if not others:
            return dict(first)
        return {name: np.concatenate([first[name], *(o[name] for o in others)]) for name in first}
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            with new_folder(folder) as new:
                for part in parts:
                    for name, array in part.items():
                        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
                        append(new / f"{name}.{array.dtype}", little.tobytes())
    return {path.stem: _map(path) for path in folder.iterdir()}


def _map(path: Path) -> NDArray[Any]:
    dtype = np.dtype(path.suffix[1:]).newbyteorder("<")
    if not path.stat().st_size:  # which can't be mapped
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r")


def scratch_array(parts: Iterable[NDArray[Any]], folder: Path) -> NDArray[Any]:
    """Return the arrays one after the other in a file without a name, which vanishes with it."""
    with TemporaryFile(dir=folder) as file:
        for part in parts:
            file.write(part.tobytes())
        file.flush()
        return np.memmap(file, part.dtype, mode="r+")
