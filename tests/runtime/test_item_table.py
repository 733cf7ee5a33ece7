"""Item tables in every form that callers have become the same columns."""

import math
import re
from typing import Any

import numpy as np
import polars as pl
import pytest

from ranklet import InputError
from ranklet.bundle.vocabulary import Vocabulary
from ranklet.item_table import check_ids, read_item_table

TEXT = Vocabulary(["a", "b"])
NUMBERS = Vocabulary(np.array([1, 2], dtype=np.int64))
COLUMNS: dict[str, list[Any]] = {
    "item_id": ["a", "new", "x"],
    "title": ["Älpha", None, "X"],
    "price": [1.5, None, 3.0],
    "tags": [["u", "v"], None, []],
}
ROWS = [
    {"item_id": "a", "title": "Älpha", "price": 1.5, "tags": ["u", "v"]},
    {"item_id": "new", "price": math.nan},
    {"item_id": "x", "title": "X", "price": 3.0, "tags": []},
]
FORMS: dict[str, Any] = {
    "dict of lists": COLUMNS,
    "dict of arrays": {
        **COLUMNS,
        "item_id": np.array(["a", "new", "x"]),
        "price": np.array([1.5, np.nan, 3.0], dtype=np.float32),
    },
    "list of dicts": ROWS,
    "tuple of dicts": tuple(ROWS),
    "polars": pl.DataFrame(COLUMNS),
}


@pytest.mark.parametrize("table", FORMS.values(), ids=FORMS)
def test_every_form_gives_the_same_columns(table: Any) -> None:
    ids, titles, columns = read_item_table(table, TEXT)
    assert ids == ["a", "new", "x"]
    assert titles == ["Älpha", None, "X"]
    assert columns == {"price": [1.5, None, 3.0], "tags": [["u", "v"], None, []]}
    assert all(type(value) in (float, type(None)) for value in columns["price"])


def test_tables_of_other_libraries_are_taken_by_what_they_can_do() -> None:
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    frame = pandas.DataFrame(
        {"item_id": ["a", "new", "x"], "title": ["Älpha", None, "X"], "price": [1.5, None, 3]}
    )
    frame["count"] = frame["price"].astype("Float64")  # whose missing value is no number
    expected = {"price": [1.5, None, 3.0], "count": [1.5, None, 3.0]}
    for table in (frame, pyarrow.Table.from_pandas(frame)):
        ids, titles, columns = read_item_table(table, TEXT)
        assert (ids, titles, columns) == (["a", "new", "x"], ["Älpha", None, "X"], expected)


def test_the_caller_keeps_a_table_as_it_was() -> None:
    table = {name: list(column) for name, column in COLUMNS.items()}
    read_item_table(table, TEXT)
    assert table == COLUMNS


def test_ids_have_the_type_of_the_catalogue_and_columns_other_names() -> None:
    ids, titles, columns = read_item_table(
        {"sku": np.array([7, 1], dtype=np.uint8), "name": [1917, "b"], "title": ["x", "y"]},
        NUMBERS,
        item_column="sku",
        title_column="name",
    )
    assert ids == [7, 1]
    assert type(ids[0]) is int
    assert titles == ["1917", "b"]
    assert columns == {"title": ["x", "y"]}


def test_a_table_without_rows_has_no_items() -> None:
    assert read_item_table([], TEXT) == ([], None, {})
    assert read_item_table({"item_id": [], "price": []}, TEXT) == ([], None, {"price": []})


BAD: dict[str, tuple[Any, str]] = {
    "text": ("items.csv", "items is 'items.csv'; pass a dict of columns, a list of dicts, or a"),
    "number": (7, "items is 7; pass a dict of columns"),
    "no rows of dicts": ([["a"]], r"items[0] is ['a']; pass a dict of columns"),
    "no ids": ({"sku": ["a"]}, "items have no column 'item_id', only sku"),
    "nothing": ({}, "items have no column 'item_id', only "),
    "missing id": ([{"item_id": "a"}, {"price": 3}], "item_id[1] is None (NoneType); this bundle"),
    "empty id": ({"item_id": ["a", ""]}, "item_id[1] is empty; give every item an id"),
    "integer id": ({"item_id": ["a", 7]}, "item_id[1] is 7 (int); this bundle has text item ids"),
    "half a character": ({"item_id": ["\ud800"]}, "item_id[0] is '\\ud800', which is not valid"),
    "id twice": ({"item_id": [*"abca"]}, "item_id[3] is 'a', which stands in item_id[0] already"),
    "text as ids": ({"item_id": "abc"}, "column 'item_id' is 'abc'; pass a list or an array"),
    "one number": (
        {"item_id": ["a"], "price": np.float32(3)},
        "column 'price' is 3.0; pass a list or an array",
    ),
    "lengths": (
        {"item_id": ["a", "c"], "price": [1]},
        "column 'price' has 1 values for 2 items",
    ),
    "title": ({"item_id": ["a"], "title": [["x"]]}, "title[0] is ['x']; a title is text"),
    "half a title": ({"item_id": ["a"], "title": ["\ud800"]}, "title[0] is '\\ud800', which is"),
    "name": ({"item_id": ["a"], 7: [1]}, "items have a column 7; names of columns are text"),
    "long": ([{"item_id": "a"}, "x" * 10**6], "items[1] is 'xxx"),
}


@pytest.mark.parametrize(("table", "message"), BAD.values(), ids=BAD)
def test_what_is_no_table_of_items_is_named(table: Any, message: str) -> None:
    with pytest.raises(InputError, match="^" + re.escape(message)) as caught:
        read_item_table(table, TEXT)
    assert len(str(caught.value)) < 300


def test_ids_of_integers_are_checked_too() -> None:
    for ids, message in (
        (["NEW-7"], r"ids\[0\] is 'NEW-7' \(str\); this bundle has integer item ids"),
        ([1.5], r"ids\[0\] is 1\.5 \(float\); this bundle has integer item ids"),
        ([2**63], r"ids\[0\] is 9223372036854775808, which is outside int64"),
        ([3, 4, 3], r"ids\[2\] is 3, which stands in ids\[0\] already"),
    ):
        with pytest.raises(InputError, match=message):
            check_ids(NUMBERS, ids, "ids")
