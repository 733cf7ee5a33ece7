"""Item features, single- or multi-valued, as codes of an embedding."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ranklet.errors import DataError


@dataclass(frozen=True)
class Feature:
    """Feature of all items as a ragged array: item i has codes[offsets[i]:offsets[i + 1]].

    Row 0 is padding and empty. ``values[code]`` is the text of a code.
    """

    name: str
    values: list[str]
    codes: NDArray[np.int64]
    offsets: NDArray[np.int64]


def build_feature(items: pl.DataFrame, name: str) -> Feature:
    """Encode a column of an item frame, whose rows are in index order.

    A list column is multi-valued, any other column single-valued. Nulls are items without a value.
    DataError: the column is missing or has no value.
    """
    if name not in items.columns:
        raise DataError(f"no feature column {name!r} among the items; there are {items.columns}")
    column = items[name]
    if isinstance(column.dtype, pl.List):
        lists = column.cast(pl.List(pl.String)).to_list()
    else:
        lists = [[] if value is None else [value] for value in column.cast(pl.String).to_list()]
    rows: list[list[str]] = [[], *([v for v in row or [] if v is not None] for row in lists)]
    values = sorted({value for row in rows for value in row})
    if not values:
        raise DataError(f"feature column {name!r} holds no value for any item of the catalogue")
    code_of = {value: code for code, value in enumerate(values)}
    codes = np.array([code_of[value] for row in rows for value in row], dtype=np.int64)
    return Feature(name, values, codes, np.cumsum([0, *map(len, rows[:-1])], dtype=np.int64))
