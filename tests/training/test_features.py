"""Features are categories; a column that holds something else is refused or told."""

import datetime
from typing import Any

import polars as pl
import pytest

from ranklet.errors import DataError
from ranklet_training.data.features import build_feature, describe_feature


def items(values: Any, dtype: Any = None) -> pl.DataFrame:
    return pl.DataFrame({"x": pl.Series(values, dtype=dtype)})


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        (["b", None, "a"], None, ["a", "b"]),
        (["b", "a"], pl.Categorical, ["a", "b"]),
        (["b", "NULL", "nan"], None, ["b"]),
        ([True, False], None, ["false", "true"]),
        ([1.5, float("nan"), None], None, ["1.5"]),
        ([datetime.date(2024, 5, 1)], None, ["2024-05-01"]),
        ([["a", "b"], ["c", None]], pl.Array(pl.String, 2), ["a", "b", "c"]),
        ([[1, 2], [2, 3]], pl.Array(pl.Int64, 2), ["1", "2", "3"]),
        ([["a"], ["b"]], pl.List(pl.Categorical), ["a", "b"]),
    ],
)
def test_columns_of_categories_become_text(values: Any, dtype: Any, expected: list[str]) -> None:
    assert build_feature(items(values, dtype), "x").values == expected


@pytest.mark.parametrize(
    ("values", "dtype", "shown"),
    [
        ([[0.1, 0.2]], pl.Array(pl.Float32, 2), "Array"),
        ([[0.1, 0.2]], None, "List(Float64)"),
        ([datetime.timedelta(1)], None, "Duration"),
        ([datetime.time(1)], None, "Time"),
        ([[[1]]], None, "List(List(Int64))"),
        ([[[1]]], pl.Array(pl.Array(pl.Int64, 1), 1), "Array"),
        ([{"a": 1}], None, "Struct"),
        ([b"a"], None, "Binary"),
        ([[b"a"]], None, "List(Binary)"),
        ([object()], pl.Object, "Object"),
    ],
)
def test_what_is_no_category_is_named(values: Any, dtype: Any, shown: str) -> None:
    with pytest.raises(DataError, match=r"feature column 'x' holds .* features are cat") as e:
        build_feature(items(values, dtype), "x")
    assert shown in str(e.value)
    assert len(str(e.value)) < 500


def test_a_missing_feature_is_named_in_bounded_length() -> None:
    wide = pl.DataFrame({f"column {number}": [1] for number in range(3000)})
    with pytest.raises(DataError, match=r"no feature column 'x' .* and 2,980 more") as caught:
        build_feature(wide, "x")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("values", "is_told"),
    [
        ([float(price) for price in range(101)], True),
        (list(range(101)), True),
        ([[tag] for tag in range(101)], True),
        ([datetime.date(2024, 1, 1) + datetime.timedelta(day) for day in range(101)], True),
        (["NULL", *(f"{price}.5" for price in range(101))], True),
        ([f"{price},5" for price in range(101)], True),
        ([str(name) for name in range(101)], False),  # names are categories
        (list(range(100)), False),
        (list(range(101)) * 10, False),  # each is of ten items
    ],
)
def test_numbers_of_many_values_are_told(values: list[Any], is_told: bool) -> None:
    note = describe_feature(items(values), "x")
    assert bool(note) == is_told
    if is_told:
        assert note.startswith("feature 'x' holds 101 distinct values of type ")
        assert "each taken as a category of its own" in note
