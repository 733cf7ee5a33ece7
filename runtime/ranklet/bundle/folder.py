"""Bundle folder: its arrays in index order, and a guard against replacement while it is open.

    weights.bin                     the tensors of all graphs; mapped, not read
    items.i64                       int64 ids, or
    items.utf8 + items.ends.i64     text ids: one blob, and where each id ends in it
    titles.utf8 + titles.ends.i64   names for people, optional
    popularity.f32                  share of the training events of each item
    attributes.bin                  categories and numbers of each item, optional
    bias.f32                        added to the score of each item, optional; -3e38: never ranked
    silent.i64                      indices of items that do not count in histories, optional
    trending.f32                    share of the last training events of each item, optional

Arrays are raw and little-endian: their names say the type, the manifest the number of items.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ranklet.bundle.manifest import (
    BIAS,
    FILE_NAMES,
    NEVER,
    POPULARITY,
    SILENT,
    TRENDING,
    File,
    Manifest,
    Table,
)
from ranklet.bundle.vocabulary import Texts, Vocabulary
from ranklet.errors import BundleError
from ranklet.files.atomic import recover, sha256

TEXTS_SEARCHED = 1 << 17  # ids or titles; more are searched in their blob
MAPPED_FROM = 1 << 26  # bytes; a smaller file is read, so that nobody can change it afterwards


class Opened:
    """An opened bundle folder: files that are read later must be those of the time of opening.

    Attributes:
        folder: Its absolute path, links resolved.
        files: Those of the manifest; a file that was replaced by an equal one is accepted.
    """

    def __init__(self, path: Path) -> None:
        """Record the identity of every file.

        Raises:
            BundleError: The path is impossible.
        """
        try:
            self.folder = path.resolve()
            recover(self.folder)
        except (OSError, RuntimeError, ValueError) as error:  # loops of links, NUL, long names
            raise BundleError(f"{path} is damaged or no path: {error}") from error
        self.files: dict[str, File] = {}
        self._then = {name: self._identity(name) for name in FILE_NAMES}

    @contextmanager
    def unchanged(self, *names: str) -> Iterator[Path]:
        """Yield the folder, to read these files from.

        Raises:
            BundleError: One of them was replaced or removed before or during that, or can't be
                read.
        """
        self.check(*names)
        try:
            yield self.folder
        except (OSError, BundleError) as error:
            self.check(*names)  # the reason of much else
            if isinstance(error, BundleError):
                raise
            reason = f"{error.filename or self.folder} can't be read: {error.strerror}"
            raise BundleError(reason) from error
        self.check(*names)

    def check(self, *names: str) -> None:
        """Raise BundleError if one of these files was replaced or removed."""
        for name in names:
            now = self._identity(name)
            if now != self._then[name] and not (now and self._is_copy(name)):
                raise BundleError(
                    f"{self.folder / name} was replaced or removed since the bundle was opened: "
                    "load it again"
                )
            self._then[name] = now

    def _identity(self, name: str) -> tuple[int, ...] | None:
        try:
            status = (self.folder / name).stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    def _is_copy(self, name: str) -> bool:
        try:
            return name in self.files and sha256(self.folder / name) == self.files[name].sha256
        except OSError:
            return False


def describe_files(folder: Path) -> dict[str, File]:
    """Return size and digest of every file of a bundle, for its manifest."""
    paths = sorted(path for path in folder.iterdir() if path.name in FILE_NAMES)
    return {path.name: File(path.stat().st_size, sha256(path)) for path in paths}


def write_catalogue(
    folder: Path,
    vocabulary: Vocabulary,
    titles: Sequence[str] | None,
    popularity: NDArray[np.float32],
    trending: NDArray[np.float32] | None = None,
) -> None:
    """Write ids, titles, popularity and trending, all in index order."""
    if vocabulary.is_text:
        _write_texts(folder, "items", [str(text) for text in vocabulary.all_ids])
    else:
        write_array(folder / "items.i64", np.asarray(vocabulary.all_ids), "<i8")
    if titles is not None:
        _write_texts(folder, "titles", titles)
    write_array(folder / POPULARITY, popularity, "<f4")
    if trending is not None:
        write_array(folder / TRENDING, trending, "<f4")


def write_array(path: Path, array: NDArray[Any], dtype: str) -> None:
    """Write an array in a little-endian type; unlike ``tofile``, a full disk is an OSError."""
    path.write_bytes(np.ascontiguousarray(array, dtype=dtype).data)


def read_vocabulary(folder: Path, manifest: Manifest) -> Vocabulary:
    """Read the ids of a bundle."""
    if manifest.id_type == "string":
        texts = _read_texts(folder, "items", manifest.items)
        if isinstance(texts, list) and texts != sorted({*texts}):
            raise BundleError(f"{folder / 'items.utf8'} is not sorted, so ids would not be found")
        return Vocabulary(texts)
    numbers = _read_array(folder / "items.i64", "<i8", manifest.items).astype(np.int64)
    if (numbers[1:] <= numbers[:-1]).any():
        raise BundleError(f"{folder / 'items.i64'} is not sorted, so ids would not be found")
    return Vocabulary(numbers)


def read_titles(folder: Path, manifest: Manifest) -> Sequence[str] | None:
    """Read the titles of a bundle, None if it has none."""
    if "titles.utf8" not in manifest.files:
        return None
    return _read_texts(folder, "titles", manifest.items)


def read_popularity(folder: Path, manifest: Manifest) -> NDArray[np.float32]:
    """Read the share of training events of each item, (items,)."""
    return _read_shares(folder / POPULARITY, manifest.items)


def read_trending(folder: Path, manifest: Manifest) -> NDArray[np.float32] | None:
    """Read the share of the last training events of each item, (items,); None: not known."""
    if TRENDING not in manifest.files:
        return None
    return _read_shares(folder / TRENDING, manifest.items)


def _read_shares(path: Path, count: int) -> NDArray[np.float32]:
    shares = _read_array(path, "<f4", count).astype(np.float32)
    if not np.isfinite(shares).all():
        raise BundleError(f"{path} holds NaN or infinity")
    return shares


def read_bias(folder: Path, manifest: Manifest) -> NDArray[np.float32] | None:
    """Read what is added to the score of each item, (items,), None where nothing is."""
    if BIAS not in manifest.files:
        return None
    bias = _read_array(folder / BIAS, "<f4", manifest.items).astype(np.float32)
    if not (np.abs(bias) <= -np.float32(NEVER)).all():
        raise BundleError(f"{folder / BIAS} holds NaN, infinity or numbers beyond {NEVER}")
    return bias


def read_silent(folder: Path, manifest: Manifest) -> NDArray[np.bool_] | None:
    """Read which indices from 0 do not count in histories, (items + 1,); None: all count."""
    if SILENT not in manifest.files:
        return None
    try:
        items = np.fromfile(folder / SILENT, "<i8")
    except OSError as error:
        raise BundleError(f"{folder / SILENT} can't be read: {error}") from error
    if (
        not len(items)
        or items.nbytes != manifest.files[SILENT].size
        or items.min() < 1
        or items.max() > manifest.items
    ):
        raise BundleError(f"{folder / SILENT} holds no item indices of this catalogue")
    silent = np.zeros(manifest.items + 1, dtype=np.bool_)
    silent[items] = True
    return silent


def map_table(file: Path | BinaryIO, table: Table) -> NDArray[np.floating]:
    """Map the item table, (items + 1, width): nothing is read before a row is used."""
    shape = (table.rows, table.columns)
    try:
        return np.memmap(file, table.type, "r", offset=table.offset, shape=shape)
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} can't be read: {error}") from error


def _write_texts(folder: Path, name: str, texts: Sequence[str]) -> None:
    encoded = [text.encode() for text in texts]
    (folder / f"{name}.utf8").write_bytes(b"".join(encoded))
    ends = np.cumsum([len(text) for text in encoded])
    write_array(folder / f"{name}.ends.i64", ends, "<i8")


def _read_texts(folder: Path, name: str, count: int) -> Sequence[str]:
    """Read texts; many are searched in their blob."""
    ends = _read_array(folder / f"{name}.ends.i64", "<i8", count)
    path = folder / f"{name}.utf8"
    blob = read_or_map(path, "u1").data
    if ends[0] < 0 or ends[-1] != len(blob) or (ends[1:] < ends[:-1]).any():
        raise BundleError(f"{path} and its ends do not fit together")
    if count > TEXTS_SEARCHED:
        return Texts(blob, ends.data)
    texts, places = bytes(blob), [0, *ends.tolist()]
    try:
        return [texts[a:b].decode() for a, b in pairwise(places)]
    except UnicodeDecodeError as error:
        raise BundleError(f"{path} is not UTF-8: {error}") from error


def _read_array(path: Path, dtype: str, count: int) -> NDArray[Any]:
    array = read_or_map(path, dtype)
    if len(array) != count:
        raise BundleError(f"{path} holds {len(array)} numbers for {count} items")
    return array


def read_or_map(path: Path, dtype: str) -> NDArray[Any]:
    """Read the array of a small file, or map that of a large one."""
    try:
        if path.stat().st_size < MAPPED_FROM:
            return np.frombuffer(path.read_bytes(), dtype)
        return np.memmap(path, dtype, "r")
    except ValueError as error:
        raise BundleError(f"{path} is damaged: {error}") from error
