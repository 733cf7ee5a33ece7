"""Features of items that take part in training, as codes of an embedding and their weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ranklet.errors import DataError
from ranklet.item_features import ItemFeatures
from ranklet.values import show
from ranklet_training.data.attributes import Kinds, cells, read_attributes
from ranklet_training.data.tables import listed


@dataclass(frozen=True)
class Features:
    """Features of all items as a ragged array: item i has ``codes[offsets[i] : offsets[i + 1]]``.

    Row 0 is padding and empty, and so is code 0.
    """

    count: int  # of codes, with code 0
    codes: NDArray[np.int64]
    weights: NDArray[np.float32]
    offsets: NDArray[np.int64]  # (items + 1,)


def build_features(items: pl.DataFrame, kinds: Kinds, names: Sequence[str]) -> Features:
    """Encode columns of an item frame, whose rows are in index order (``ranklet.item_features``).

    DataError: a column is missing, is no attribute, has no value, or holds values of another kind.
    """
    for name in names:
        if name not in items.columns:
            raise DataError(
                f"no feature column {show(name)} among the items; there are {listed(items.columns)}"
            )
        if name not in kinds:
            raise DataError(
                f"feature column {show(name)} is no attribute of the items; choose its kind, as in "
                f"--attributes {name}:category"
            )
    attributes = read_attributes(items, {name: kinds[name] for name in names})
    features = ItemFeatures(attributes)
    for name in names:
        column = cells(items[name])
        if not len(features.encode({name: column}, len(items)).codes):
            raise DataError(f"feature column {show(name)} holds no value that two items share")
    codes, weights, ends = features.encode({n: cells(items[n]) for n in names}, len(items))
    return Features(features.count, codes, weights, np.concatenate([[0, 0], ends[:-1]]))
