"""Attributes of items: conditions equal a slow reference, and damaged bytes are named."""

import datetime
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ranklet import BundleError, InputError, Manifest
from ranklet.attributes import Attributes, Categories
from ranklet.bundle import folder
from ranklet.bundle.folder import describe_files
from ranklet.bundle.manifest import ATTRIBUTES, Kind

KINDS: dict[str, Kind] = {
    "brand": "category",
    "tags": "categories",
    "price": "number",
    "about": "text",
    "photo": "vector",
}
TABLE: dict[str, list[Any]] = {
    "brand": ["HP", None, "7", "A|B", 7],
    "tags": [["b", "a"], "a|c", [], None, {"c"}],
    "price": [1.5, "2,5", "NULL", float("nan"), 3],
}


@pytest.fixture
def attributes() -> Attributes:
    return Attributes.empty(KINDS).with_items(TABLE, np.arange(1, 6), 5)


@pytest.fixture
def stored(tmp_path: Path, tiny_ranker: Any) -> Callable[[Attributes], Attributes]:
    """Write attributes to a file and read them again."""

    def store(attributes: Attributes) -> Attributes:
        written = attributes.write(tmp_path)
        manifest: Manifest = replace(
            tiny_ranker.manifest,
            items=attributes.items,
            attributes=written,
            files=describe_files(tmp_path),
        )
        return Attributes.read(tmp_path, manifest)

    return store


def met(attributes: Attributes, name: str, condition: object) -> list[int]:
    mask = attributes.matches(name, condition)
    assert len(mask) == attributes.items + 1
    return np.flatnonzero(mask).tolist()


@pytest.mark.parametrize("is_stored", [False, True])
@pytest.mark.parametrize(
    ("name", "condition", "expected"),
    [
        ("brand", "HP", [1]),
        ("brand", 7, [3, 5]),
        ("brand", ("7", "A|B", "unheard of"), [3, 4, 5]),
        ("brand", "unheard of", []),
        ("brand", [], []),
        ("tags", "a", [1, 2]),
        ("tags", {"b", "c"}, [1, 2, 5]),
        ("price", 3, [5]),
        ("price", [1.5, 2.5], [1, 2]),
        ("price", (2, None), [2, 5]),
        ("price", (None, 2.5), [1, 2]),
        ("price", (2.5, 2.5), [2]),
        ("price", (None, None), [1, 2, 5]),
        ("price", (3, 1), []),
    ],
)
def test_a_condition_is_met_by_the_items_that_have_the_value(
    attributes: Attributes,
    stored: Any,
    name: str,
    condition: object,
    expected: list[int],
    is_stored: bool,
) -> None:
    of = stored(attributes) if is_stored else attributes
    assert met(of, name, condition) == expected


@pytest.mark.parametrize(
    ("name", "condition", "message"),
    [
        ("color", "red", "no attribute is called 'color'; there are 'brand', 'tags', 'price'"),
        ("about", "red", "attribute 'about' is a text, which is not kept for each item"),
        ("photo", [1.0], "attribute 'photo' is a vector"),
        ("brand", None, "condition 'brand' is None; pass a value"),
        ("brand", {"a": 1}, r"condition 'brand' is \{'a': 1\} \(dict\); categories are text"),
        ("price", (1, 2, 3), r"\(1, 2, 3\); a range is \(low, high\)"),
        ("price", "cheap", r"condition 'price' is 'cheap' \(str\), not a finite number"),
        ("price", None, "condition 'price' is None; pass a number"),
        ("price", True, r"True \(bool\), not a finite number"),
    ],
)
def test_a_condition_that_can_not_be_met_is_named(
    attributes: Attributes, name: str, condition: object, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        attributes.matches(name, condition)


def test_new_items_add_values_and_known_items_keep_theirs(
    attributes: Attributes, stored: Any
) -> None:
    table = {"tags": [["z"], "b|new"], "price": [9, None], "color": ["red", "blue"]}
    grown = attributes.with_items(table, np.array([6, 1]), 7)
    for of in (grown, stored(grown)):
        assert met(of, "tags", "z") == [6]
        assert met(of, "tags", ["b", "new"]) == [1]
        assert met(of, "tags", "c") == [2, 5]
        assert met(of, "price", (0, None)) == [2, 5, 6]
        assert met(of, "brand", "HP") == [1]
        names = of.values("tags")
        assert [
            [names[code] for code in row] for row in of.codes("tags", np.array([1, 6, 7, 2]))
        ] == [
            ["b", "new"],
            ["z"],
            [],
            ["a", "c"],
        ]
    assert met(attributes, "price", 9) == []
    assert grown.names == ["brand", "tags", "price"]
    with pytest.raises(InputError, match="'price' holds numbers"):
        grown.codes("price", np.array([1]))


def test_conditions_equal_a_slow_reference_after_many_changes(stored: Any) -> None:
    draw = random.Random(0)
    items: dict[int, dict[str, Any]] = {}
    attributes = Attributes.empty({"tags": "categories", "price": "number"})
    for size in (0, 3, 3, 20, 50):
        places = draw.sample(range(1, size + 1), draw.randint(0, size))
        places += range(attributes.items + 1, size + 1)
        places = list(dict.fromkeys(places))
        rows = [
            {
                "tags": draw.sample("abcdefg", draw.randint(0, 3)),
                "price": draw.choice([None, draw.randint(0, 9)]),
            }
            for _ in places
        ]
        items.update(zip(places, rows, strict=True))
        columns = {name: [row[name] for row in rows] for name in ("tags", "price")}
        attributes = attributes.with_items(columns, np.array(places, dtype=np.int64), size)
        if size == 20:
            attributes = stored(attributes)
        for _ in range(20):
            tags, low = draw.sample("abcdefgh", 2), draw.randint(0, 9)
            has = [i for i, row in sorted(items.items()) if {*tags} & {*row["tags"]}]
            assert met(attributes, "tags", tags) == has
            costs = [i for i, row in sorted(items.items()) if row["price"] is not None]
            costs = [i for i in costs if low <= items[i]["price"] <= low + 3]
            assert met(attributes, "price", (low, low + 3)) == costs


def test_a_column_of_another_length_or_type_is_named(attributes: Attributes) -> None:
    for table, message in [
        ({"price": [1]}, "column 'price' has 1 values for 2 items"),
        ({"price": "12"}, "column 'price' is '12'; pass a list"),
        ({"price": [1, "dear"]}, r"price\[1\] is 'dear'"),
        ({"brand": ["a", ["b"]]}, r"brand\[1\] is \['b'\] \(list\); categories are"),
    ]:
        with pytest.raises(InputError, match=message):
            attributes.with_items(table, np.array([6, 7]), 7)


def test_dates_are_days_and_categories_of_their_text() -> None:
    day = datetime.date(1970, 1, 11)
    kinds: dict[str, Kind] = {"out": "number", "day": "category"}
    table = {"out": [day, datetime.datetime(1970, 1, 12, 12)], "day": [day, None]}
    attributes = Attributes.empty(kinds).with_items(table, np.array([1, 2]), 2)
    assert met(attributes, "out", (day, 10)) == [1]
    assert met(attributes, "out", 11.5) == [2]
    assert met(attributes, "day", "1970-01-11") == [1]


@pytest.mark.parametrize("name", ["codes", "ends", "value_ends"])
def test_damaged_arrays_are_named(
    attributes: Attributes, stored: Any, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "MAPPED_FROM", 0)
    mapped = stored(attributes)
    array = attributes.write(tmp_path)[1].arrays[name]
    with (tmp_path / ATTRIBUTES).open("r+b") as file:
        file.seek(array.offset + 3)
        file.write(b"\x7f")
    with pytest.raises(BundleError, match="arrays of 'tags' do not fit together"):
        mapped.matches("tags", "a")
    assert met(mapped, "brand", "HP") == [1]


def test_arrays_outside_their_file_are_named(
    attributes: Attributes, tmp_path: Path, tiny_ranker: Any
) -> None:
    written = attributes.write(tmp_path)
    (tmp_path / ATTRIBUTES).write_bytes(b"")
    files = tiny_ranker.manifest.files | describe_files(tmp_path)
    written = [replace(attribute, arrays={**attribute.arrays}) for attribute in written]
    manifest = replace(tiny_ranker.manifest, files=files, attributes=written, new_items=None)
    manifest = replace(manifest, programs={**manifest.programs})
    manifest.programs.pop("item")
    with pytest.raises(ValueError, match=r"'codes' of 'brand' lies outside attributes\.bin"):
        manifest._check()
    lacking = replace(written[2], arrays={})
    with pytest.raises(ValueError, match=r"attribute 'price' without \['numbers'\]"):
        replace(manifest, attributes=[lacking])._check()


def test_a_million_items_are_matched_in_milliseconds() -> None:
    items, brands = 1_000_000, 5_000
    attributes = Attributes.empty({"brand": "category"})
    names = [str(brand) for brand in range(brands)]
    attributes = attributes.with_items({"brand": names}, np.arange(1, brands + 1), items)
    column = attributes.column("brand")
    assert isinstance(column, Categories)
    codes = np.arange(items, dtype=np.int32) % brands
    ends = np.arange(1, items + 1, dtype=np.int32)
    column = replace(column, codes=codes, ends=ends)
    large = Attributes(items, attributes.kinds, {"brand": column}, attributes.features)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        mask = large.matches("brand", ["7", "4999"])
        times.append(time.perf_counter() - begin)
    assert mask.sum() == 2 * items / brands
    assert min(times) < 0.02  # 1 ms on one thread of an idle machine
