"""Item files: titles and features are matched with the log, or what is wrong is named."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ranklet.errors import DataError
from ranklet_training.data.attributes import describe_attributes
from ranklet_training.data.events import read_events
from ranklet_training.data.items import match_ids, note_unmatched, read_items

SMALL = pl.DataFrame({"user_id": [2, 1], "item_id": [7, 8], "timestamp": [50, 40]})


def test_items_keep_their_other_columns_and_lists(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("title,sku,price\nA,007,1.5\nB,8,2\n")
    items = read_items(tmp_path / "items.csv", item_column="sku")
    assert items.columns == ["item_id", "title", "price"]
    assert items.rows() == [("007", "A", 1.5), ("8", "B", 2.0)]
    (tmp_path / "items.jsonl").write_text('{"item_id": 1, "genres": ["a", "b"]}\n{"item_id": 2}\n')
    assert read_items(tmp_path / "items.jsonl").rows() == [(1, ["a", "b"]), (2, None)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item_id": ["a", "b", "a"]}, "'item_id' repeats an earlier id in row 3: 'a'; keep one"),
        ({"item_id": ["a", None]}, "'item_id' has no value in row 2"),
        ({"sku": ["a"], "item_id": ["b"]}, "'item_id' is there beside 'sku'"),
        ({"id": ["a"]}, r"column 'sku' is missing .*say --item-column NAME"),
        ({"item_id": [1], "title": [["a"]]}, r"'title' holds List\(String\), such as \[\['a'\]\]"),
    ],
)
def test_wrong_items_are_named(columns: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_items(pl.DataFrame(columns), item_column="sku")


def test_items_may_be_called_as_in_the_log_or_item_id() -> None:
    for name in ("sku", "item_id"):
        items = read_items(pl.DataFrame({name: ["a"], "price": [1]}), item_column="sku")
        assert items.columns == ["item_id", "price"]


def test_titles_are_text_as_they_are_written(tmp_path: Path) -> None:
    csv, lines = tmp_path / "items.csv", tmp_path / "items.jsonl"
    csv.write_text("item_id,title\n1,007\n2,1.50\n3,\n")
    assert read_items(csv)["title"].to_list() == ["007", "1.50", None]
    lines.write_text('{"item_id": 1, "title": 300}\n{"item_id": 2, "title": 2.5}\n{"item_id": 3}')
    assert read_items(lines)["title"].to_list() == ["300", "2.5", None]
    items = read_items(pl.DataFrame({"item_id": [1, 2], "title": [1984, None]}))
    assert items["title"].to_list() == ["1984", None]


def test_an_item_file_that_matches_no_item_is_refused_and_gaps_are_counted() -> None:
    log = read_events(SMALL)
    ids = log.frame["item_id"].unique().sort()
    items = read_items(pl.DataFrame({"item_id": ids}))
    assert note_unmatched(log, items, "F") == ""
    count = len(ids)
    lacking = note_unmatched(log, items[1:], "F")
    assert lacking == f"F has no row for 1 of {count} items, first {ids[0]!r}"
    others = pl.DataFrame({"item_id": ["y"]}, schema={"item_id": pl.String})
    log_of_text = read_events(SMALL, id_type="string")
    message = f"none of the {count} items of the log has a row in F, first '.*'; F has ids like 'y'"
    with pytest.raises(DataError, match=message):
        note_unmatched(log_of_text, others, "F")


@pytest.mark.parametrize("name", ["name", "product_name", "Title"])
def test_titles_of_another_name_are_suggested_and_read(name: str) -> None:
    file = pl.DataFrame({"item_id": [1], name: ["A"], "price": [1]})
    line = describe_attributes(read_items(file), {})
    assert f"'{name}' may hold titles: read them with --title-column '{name}'" in line
    items = read_items(file, title_column=name)
    assert items.columns == ["item_id", "title", "price"]
    with pytest.raises(DataError, match=f"'titel' is missing .*is it '{name}'. Say --title-column"):
        read_items(file, title_column="titel")
    with pytest.raises(DataError, match="'title' is there beside 'name'"):
        read_items(pl.DataFrame({"item_id": [1], "name": "a", "title": "b"}), title_column="name")


@pytest.mark.parametrize(
    ("ids", "log", "expected"),
    [
        (["7", "007", "NEW-7", "8"], [7, 8], [7, 8]),
        ([7, 8], ["7", "007"], ["7", "8"]),
        (["7", "a"], ["a"], ["7", "a"]),
        ([7], [7], [7]),
    ],
)
def test_ids_of_items_get_the_type_of_the_log(
    ids: list[Any], log: list[Any], expected: list[Any]
) -> None:
    items = read_items(pl.DataFrame({"item_id": ids}))
    assert match_ids(items, pl.Series(log))["item_id"].to_list() == expected


def test_an_unmatched_file_of_another_type_is_named() -> None:
    log = read_events(SMALL)
    items = match_ids(read_items(pl.DataFrame({"item_id": ["sku-7", "sku-8"]})), pl.Series([7]))
    with pytest.raises(DataError, match="none of the 2 items of the log has a row in F, first 7"):
        note_unmatched(log, items, "F")
