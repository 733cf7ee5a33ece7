"""Item features, single- or multi-valued, as codes of an embedding."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ranklet.errors import DataError
from ranklet.values import show
from ranklet_training.data.columns import show_type, without_missing
from ranklet_training.data.tables import listed

FEW_VALUES, FEW_SHARE = 100, 0.1  # numbers of up to 100 values, or a tenth of the items, are kinds


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
    """Encode a column of an item frame, whose rows are in index order, as categories.

    A column of lists is multi-valued, any other column single-valued. Nulls are items without a
    value. DataError: the column is missing, has no value, or its values are no categories.
    """
    if name not in items.columns:
        raise DataError(
            f"no feature column {show(name)} among the items; there are {listed(items.columns)}"
        )
    lists = _categories(items[name]).to_list()
    rows: list[list[str]] = [[], *([v for v in row or [] if v is not None] for row in lists)]
    values = sorted({value for row in rows for value in row})
    if not values:
        raise DataError(f"feature column {show(name)} holds no value for any item of the catalogue")
    code_of = {value: code for code, value in enumerate(values)}
    codes = np.array([code_of[value] for row in rows for value in row], dtype=np.int64)
    return Feature(name, values, codes, np.cumsum([0, *map(len, rows[:-1])], dtype=np.int64))


def describe_feature(items: pl.DataFrame, name: str) -> str:
    """Return a note on a feature that looks like a measure, not like categories; else ""."""
    column = items[name]
    values = without_missing(column.explode() if column.dtype.is_nested() else column)
    if values.dtype == pl.String:  # as of a csv with NULL for a missing price, or decimal commas
        numbers = values.str.replace(",", ".", literal=True).cast(pl.Float64, strict=False)
        is_price = numbers.null_count() == values.null_count() and (numbers % 1 != 0).any()
        values = numbers if is_price else values
    count = values.drop_nulls().n_unique()
    is_measure = values.dtype.is_numeric() or values.dtype.is_temporal()
    if not is_measure or count <= max(FEW_VALUES, FEW_SHARE * len(items)):
        return ""
    return (
        f"feature {show(name)} holds {count:,} distinct values of type {values.dtype} for "
        f"{len(items):,} items, each taken as a category of its own: write ranges, such as 10-20"
    )


def _categories(column: pl.Series) -> pl.Series:
    """Return lists of text; a null is an item without a value."""
    values = column.arr.to_list() if isinstance(column.dtype, pl.Array) else column
    dtype = values.dtype.inner if isinstance(values.dtype, pl.List) else values.dtype
    dtype = pl.Series(dtype=dtype).dtype  # an instance, even if it is a class
    is_vector = dtype.is_float() and values.dtype.is_nested()
    if is_vector or dtype.is_nested() or dtype in (pl.Binary, pl.Object, pl.Duration, pl.Time):
        example = show(column.drop_nulls().head(1).to_list())
        raise DataError(
            f"feature column {show(column.name)} holds {show_type(column.dtype)}, such as "
            f"{example}; features are categories: text, integers, truth values, dates, or lists of "
            "text or integers"
        )
    values = without_missing(values)
    if isinstance(values.dtype, pl.List):
        return values.cast(pl.List(pl.String))
    return values.cast(pl.String).to_frame().select(pl.concat_list(pl.all())).to_series()
