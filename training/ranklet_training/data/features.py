"""Features of items that take part in training, as codes of an embedding and their weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ranklet.attribute_values import is_missing
from ranklet.attributes import Attributes
from ranklet.errors import DataError
from ranklet.item_features import ItemFeatures, Ragged
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
    attributes, (codes, weights, ends) = read_features(items, {name: kinds[name] for name in names})
    for name in names:
        if all(map(is_missing, cells(items[name]))):
            raise DataError(
                f"feature column {show(name)} holds no value for any item of the catalogue"
            )
    return Features(
        ItemFeatures(attributes).count, codes, weights, np.concatenate([[0, 0], ends[:-1]])
    )


def read_features(items: pl.DataFrame, kinds: Kinds) -> tuple[Attributes, Ragged]:
    """Return the attributes of an item frame, and its codes and weights by all of them."""
    attributes = read_attributes(items, kinds)
    columns = {name: cells(items[name]) for name in kinds}
    return attributes, ItemFeatures(attributes).encode(columns, len(items))
