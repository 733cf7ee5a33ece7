"""Columns of an item file get a kind, and those that take part in training become features."""

import datetime
from typing import Any

import polars as pl
import pytest

from ranklet.errors import DataError, InputError
from ranklet_training.data.attributes import (
    attribute_kinds,
    describe_attributes,
    parse_kinds,
    read_attributes,
)
from ranklet_training.data.features import build_features

MANY = range(101)


def items(values: Any, dtype: Any = None) -> pl.DataFrame:
    return pl.DataFrame({"x": pl.Series(values, dtype=dtype)})


@pytest.mark.parametrize(
    ("values", "dtype", "kind"),
    [
        (["b", None, "a"], None, "category"),
        (["b", "a"], pl.Categorical, "category"),
        ([True, False], None, "category"),
        ([1, 2, 2, None], None, "category"),
        ([1.0, 2.0, float("nan")], None, "category"),  # as pandas writes whole numbers
        (["1", "2", "NULL"], None, "category"),
        (list(MANY) * 10, None, "category"),  # each is of ten items
        (list(MANY), None, "number"),
        ([1.5, float("nan"), None], None, "number"),
        (["1,5", "2", "n/a"], None, "number"),
        ([datetime.date(2024, 5, 1)], None, "number"),
        ([datetime.datetime(2024, 5, 1, 12)], None, "number"),
        ([["a", "b"], ["c", None]], pl.Array(pl.String, 2), "categories"),
        ([[1, 2], [2, 3]], pl.Array(pl.Int64, 2), "categories"),
        ([["a"], ["b"]], pl.List(pl.Categorical), "categories"),
        (["drama|war", "war", "drama"], None, "categories"),
        ([[0.1, 0.2]], pl.Array(pl.Float32, 2), "vector"),
        ([[0.1, 0.2], None], None, "vector"),
        (["one two three four", "five six seven eight"], None, "text"),
        ([f"a title of {n}" for n in MANY], None, "text"),
    ],
)
def test_the_kind_of_a_column_is_inferred(values: Any, dtype: Any, kind: str) -> None:
    assert attribute_kinds(items(values, dtype), {}) == {"x": kind}


@pytest.mark.parametrize(
    ("values", "dtype", "reason"),
    [
        ([datetime.timedelta(1)], None, "holds Duration"),
        ([datetime.time(1)], None, "holds Time"),
        ([[[1]]], None, "holds List"),
        ([{"a": 1}], None, "holds Struct"),
        ([b"a"], None, "holds Binary"),
        ([[b"a"]], None, "holds List"),
        ([object()], pl.Object, "holds Object"),
        ([None, None], None, "no value"),
        ([[], []], pl.List(pl.String), "no value"),
        ([[0.1], [0.1, 0.2]], None, "lists of numbers of several lengths"),
        ([f"https://a.b/{n}.jpg" for n in MANY], None, "each value is of one item"),
    ],
)
def test_a_column_that_is_no_attribute_is_named_with_its_reason(
    values: Any, dtype: Any, reason: str
) -> None:
    frame = items(values, dtype)
    assert attribute_kinds(frame, {}) == {}
    line = describe_attributes(frame, {})
    assert line.startswith(f"attributes: none; not used: x ({reason}")
    assert line.endswith("(others: --attributes NAME:KIND,...)")
    with pytest.raises(DataError, match=r"'x' is no attribute of the items; .*--attributes x:cat"):
        build_features(frame, {}, ["x"])


def test_kinds_are_chosen_and_columns_left_out() -> None:
    frame = pl.DataFrame({"item_id": [1], "title": ["A"], "price": [1], "color": ["red"]})
    chosen = parse_kinds(" price:number, color:none,")
    kinds = attribute_kinds(frame, chosen)
    assert kinds == {"title": "text", "price": "number"}
    assert describe_attributes(frame, kinds) == (
        "attributes: title text, price number; not used: color (as chosen) "
        "(others: --attributes NAME:KIND,...)"
    )
    with pytest.raises(InputError, match=r"NAME:KIND, with one of category, .*; got 'price:float'"):
        parse_kinds("price:float")
    with pytest.raises(DataError, match=r"no attribute column 'prize' .* there are title, price"):
        attribute_kinds(frame, {"prize": "number"})


def test_values_of_another_kind_are_named() -> None:
    with pytest.raises(DataError, match=r"attribute x\[1\] is 'dear' .*choose another kind"):
        read_attributes(items(["1", "dear"]), {"x": "number"})


def test_names_of_features_and_messages_are_bounded() -> None:
    wide = pl.DataFrame({f"column {number}": [1] for number in range(3000)})
    with pytest.raises(DataError, match=r"no feature column 'x' .* and 2,980 more") as caught:
        build_features(wide, {}, ["x"])
    assert len(str(caught.value)) < 500
    line = describe_attributes(wide, attribute_kinds(wide, {}))
    assert len(line) < 1000


def test_titles_of_another_name_are_suggested() -> None:
    frame = pl.DataFrame({"item_id": [1], "product_name": ["A"]})
    assert describe_attributes(frame, {"product_name": "category"}) == (
        "attributes: product_name category (others: --attributes NAME:KIND,...); 'product_name' "
        "may hold titles: read them with --title-column 'product_name'"
    )
