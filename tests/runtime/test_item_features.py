"""Features of items are those of a slow computation from the definition."""

import math
import re
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ranklet import InputError, Ranker
from ranklet.attributes import Attributes
from ranklet.bundle.manifest import Kind
from ranklet.item_features import ItemEncoder, ItemFeatures, learn
from ranklet_export.export import export_random

TITLES = ["Red Shoe", "red shoes, RED!", None, "blue_hat"]
KINDS: dict[str, Kind] = {
    "title": "text",
    "tags": "categories",
    "price": "number",
    "photo": "vector",
}
TABLE: dict[str, list[Any]] = {
    "title": TITLES,
    "tags": [["a", "b"], "b|c", ["a", "b"], []],
    "price": [1, 2, None, 40],
    "photo": [[3.0, 4.0], None, [0.0, 2.0], [0.0, 0.0]],
}


@pytest.fixture
def attributes() -> Attributes:
    attributes = Attributes.empty(KINDS).with_items(TABLE, np.arange(1, 5), 4)
    return learn(attributes, TABLE)


def rows(attributes: Attributes, table: dict[str, list[Any]], count: int) -> list[dict[int, float]]:
    """Return the weight of each code of each item."""
    codes, weights, ends = ItemFeatures(attributes).encode(table, count)
    pairs = list(zip(codes.tolist(), weights.tolist(), strict=True))
    return [dict(pairs[a:b]) for a, b in zip([0, *ends], ends, strict=False)]


def buckets(title: str | None) -> Counter[int]:
    """Return the buckets of a title: its words, and 3- and 4-grams of <word>."""
    found = Counter[int]()
    for word in re.findall(r"[a-z0-9]+", (title or "").lower()):
        whole = f"<{word}>"
        grams = [whole[i : i + n] for n in (3, 4) for i in range(len(whole) - n + 1)]
        found.update(zlib.crc32(part.encode()) % 2**15 for part in [word, *grams])
    return found


def test_words_of_a_title_weigh_by_tf_idf_at_length_one(attributes: Attributes) -> None:
    of_items = [buckets(title) for title in TITLES]
    used = sorted(set().union(*of_items))
    having = {bucket: sum(bucket in found for found in of_items) for bucket in used}
    for found, expected in zip(rows(attributes, {"title": TITLES}, 4), of_items, strict=True):
        weights = {
            1 + used.index(bucket): (1 + math.log(count)) * math.log(4 / having[bucket])
            for bucket, count in expected.items()
        }
        length = math.sqrt(sum(weight**2 for weight in weights.values()))
        assert found == pytest.approx({c: w / length for c, w in weights.items()}, rel=1e-6)
    assert rows(attributes, {"title": ["quux"]}, 1) == [{}]


def test_only_categories_that_two_items_have_are_features(attributes: Attributes) -> None:
    first = 1 + len(attributes.features["title"]["buckets"])
    a, b = first, first + 1
    half = pytest.approx(0.5**0.5)
    assert rows(attributes, {"tags": TABLE["tags"]}, 4) == [
        {a: half, b: half},
        {b: 1},
        {a: half, b: half},
        {},
    ]
    assert rows(attributes, {"tags": [{"b"}, "new"]}, 2) == [{b: 1}, {}]


def test_numbers_fall_into_quantile_buckets() -> None:
    numbers = list(range(1000))
    table = {"price": numbers}
    kinds: dict[str, Kind] = {"price": "number"}
    attributes = learn(Attributes.empty(kinds).with_items(table, np.arange(1, 1001), 1000), {})
    assert ItemFeatures(attributes).count == 21
    found = rows(attributes, {"price": [-5, 0, 49, 50, 999, 1e9, "nan"]}, 7)
    assert found == [{1: 1}, {1: 1}, {1: 1}, {2: 1}, {20: 1}, {20: 1}, {}]


def test_vectors_are_centred_at_length_one(attributes: Attributes) -> None:
    first = ItemFeatures(attributes).codes_of["photo"].start
    units = np.array([[0.6, 0.8], [0, 1], [0, 0]])
    centred = units[0] - units.mean(axis=0)
    centred /= np.linalg.norm(centred)
    expected = {first: centred[0], first + 1: centred[1]}
    assert rows(attributes, {"photo": [[30.0, 40.0], None]}, 2) == [
        pytest.approx(expected, rel=1e-5),
        {},
    ]


def test_fields_stand_beside_each_other(attributes: Attributes) -> None:
    whole = rows(attributes, TABLE, 4)
    for name in KINDS:
        for row, part in zip(whole, rows(attributes, {name: TABLE[name]}, 4), strict=True):
            assert part.items() <= row.items()
    assert sum(map(len, whole)) == sum(
        len(row) for name in KINDS for row in rows(attributes, {name: TABLE[name]}, 4)
    )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"title": [["a"]]}, r"title\[0\] is \['a'\] \(list\), not text"),
        ({"photo": [[1.0]]}, r"photo\[0\] has shape \(1,\); vectors of it have 2 numbers"),
        ({"photo": [[1.0, math.inf]]}, r"photo\[0\] holds NaN or infinity"),
        ({"photo": ["x"]}, r"photo\[0\] is 'x', not a vector"),
        ({"price": ["dear"]}, r"price\[0\] is 'dear'"),
        ({"tags": ["a", "b"]}, "column 'tags' has 2 values for 1 items"),
    ],
)
def test_a_value_of_another_kind_is_named(
    attributes: Attributes, table: dict[str, list[Any]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ItemFeatures(attributes).encode(table, 1)


# item.onnx


def encoder(bundle: Path) -> ItemEncoder:
    ranker = Ranker.load(bundle, provider="cpu")
    return ItemEncoder(ranker.engine, Attributes.read(bundle, ranker.manifest))


def test_rows_have_the_length_of_trained_rows_alone_and_in_a_batch(tiny_bundle: Path) -> None:
    made = encoder(tiny_bundle)
    table = {"maker": ["maker 1", None, "maker 5", "unheard of"] * 40}
    together, known = made.rows(table, 160)
    assert known.tolist() == [True, False, True, False] * 40
    assert np.abs(together[1] - together[3]).max() == 0  # an average item
    assert np.linalg.norm(together, axis=1) == pytest.approx(4, rel=1e-5)  # the root of the width
    for row in range(4):
        alone, _ = made.rows({name: [cells[row]] for name, cells in table.items()}, 1)
        assert np.abs(alone[0] - together[row]).max() < 1e-5
    assert made.rows({}, 0)[0].shape == (0, 16)


def test_a_bundle_without_attributes_says_so(tmp_path: Path) -> None:
    export_random("items=20,width=8,blocks=1,length=5", tmp_path / "bundle")
    with pytest.raises(InputError, match=r"knows no attributes of items.*train with --items"):
        encoder(tmp_path / "bundle")
