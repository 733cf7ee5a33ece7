"""The digest of a log: SHA-256 of its content, independent of file format and chunks."""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import polars as pl

from ranklet_training.data.stored import Frames, columns_of

_HASHED_ROWS = 1 << 18  # strings joined at a time, so that hashing doesn't double the memory


def frame_digest(frame: pl.DataFrame | Frames) -> str:
    """Return the SHA-256 of names, types and values in row order, independent of chunks.

    Frames count as one; their columns are hashed one after the other.
    """
    digest, pieces = hashlib.sha256(), [frame] if isinstance(frame, pl.DataFrame) else frame
    for name in next(iter(pieces)).columns:
        _hash_column(digest, pieces, name)
    return digest.hexdigest()


def _hash_column(digest: "hashlib._Hash", pieces: Frames, name: str) -> None:
    """Add a column to the digest; texts and lists are preceded by their lengths."""
    sizes = [(len(column), column.null_count()) for column in columns_of(pieces, name)]
    rows, nulls = np.sum(sizes, axis=0)
    dtype = next(columns_of(pieces, name)).dtype
    digest.update(f"{name}\0{dtype}\0{rows}\0".encode())
    if nulls:
        _hash_arrays(digest, (c.is_null().cast(pl.UInt8) for c in columns_of(pieces, name)))

    def columns() -> Iterator[pl.Series]:
        return (column.drop_nulls() for column in columns_of(pieces, name))

    if isinstance(dtype, pl.List):
        _hash_arrays(digest, (column.list.len().cast(pl.Int64) for column in columns()))
        # Empty lists would explode to nulls.
        values = [c.filter(c.list.len() > 0).explode().to_frame("item") for c in columns()]
        _hash_column(digest, values, "item")
    elif dtype == pl.String:
        _hash_arrays(digest, (column.str.len_bytes().cast(pl.Int64) for column in columns()))
        for column in columns():
            for part in column.to_frame().iter_slices(_HASHED_ROWS):
                digest.update("".join(part.to_series().to_list()).encode())
    else:
        wide = pl.Float64 if dtype.is_float() else pl.Int64
        _hash_arrays(digest, (column.cast(wide) for column in columns()))


def _hash_arrays(digest: "hashlib._Hash", columns: Iterable[pl.Series]) -> None:
    for column in columns:
        array = column.to_numpy()
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
