"""Features of items: attributes as codes and weights, and rows of the item table made from them.

A field is an attribute; the weights of a field have length 1, and a field without a value has none.

    category, categories   a code for each value that two items have; all weigh the same
    number                 a code for each of 20 quantile buckets
    text                   a code for each used bucket of hashed words, weighed by tf-idf; words of
                           letters and digits, in lower case, the first 60; of a title also the
                           3- and 4-grams of <word>
    vector                 a code for each component, which is the weight

Code 0 is no feature. What a field learned from its catalogue lies in attributes.bin.
"""

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ranklet import attribute_values as read
from ranklet.attributes import Arrays, Attributes, Categories, Numbers
from ranklet.bundle.manifest import ITEM, LEARNED
from ranklet.engine.engine import Engine, Floats
from ranklet.engine.sessions import ORT_ERRORS
from ranklet.errors import BundleError, InputError
from ranklet.values import show

TITLE = "title"
WORD = re.compile(r"[^\W_]+")
MOST_WORDS, BUCKETS, GRAMS = 60, 1 << 15, (3, 4)
FEWEST = 2  # items that have a category, for it to be a feature
QUANTILES = 20
AT_ONCE = 64  # items of a run of item.onnx: its arrays stay in the caches

SMALLEST = 1e-12  # length of a vector that is not zero

# Items from 0, codes of an attribute from 0, and their weights.
Triples = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]
Cells = Mapping[str, Sequence[object]]  # columns of a table


class Ragged(NamedTuple):
    """Codes and weights of items; item i, from 0, has those from ``ends[i - 1]`` to ``ends[i]``."""

    codes: NDArray[np.int64]
    weights: NDArray[np.float32]
    ends: NDArray[np.int64]


@lru_cache(maxsize=1 << 16)
def _buckets_of(word: str, *, is_title: bool) -> tuple[int, ...]:
    """Return the buckets of a word, and in a title those of its parts."""
    whole, parts = f"<{word}>", [word]
    for size in GRAMS if is_title else ():
        parts += [whole[at : at + size] for at in range(len(whole) - size + 1)]
    return tuple(zlib.crc32(part.encode()) % BUCKETS for part in parts)


class ItemFeatures:
    """The features of a catalogue: ``encode`` makes codes and weights of any table of items."""

    def __init__(self, attributes: Attributes) -> None:
        """Use attributes whose features were learned, see ``learn``."""
        self._attributes = attributes
        self.codes_of = dict[str, slice]()  # of each attribute
        self.count = 1  # of codes
        for name, kind in attributes.kinds.items():
            array, *others = (attributes.features[name][key] for key in LEARNED[kind])
            of_words = kind != "text" or not len(array) or 0 <= array.min() <= array.max() < BUCKETS
            if not of_words or any(len(array) != len(other) for other in others):
                raise BundleError(
                    f"the features of attribute {show(name)} do not fit together: the bundle is "
                    "damaged; copy it again"
                )
            first, self.count = self.count, self.count + len(array)
            self.count += kind == "number"  # edges lie between the buckets
            self.codes_of[name] = slice(first, self.count)

    def encode(self, columns: Cells, count: int) -> Ragged:
        """Return the codes and weights of ``count`` items; columns that are absent have no value.

        Raises:
            InputError: A value is not of the kind of its attribute.
        """
        triples = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
        for name, kind in self._attributes.kinds.items():
            if name in columns:
                cells = read.column(columns[name], name, count)
                items, codes, weights = _ENCODERS[kind](self._attributes, name, cells)
                lengths = np.bincount(items, weights**2, minlength=count)
                lengths = np.sqrt(np.maximum(lengths, SMALLEST))
                triples.append((items, codes + self.codes_of[name].start, weights / lengths[items]))
        items, codes, weights = (np.concatenate(parts) for parts in zip(*triples, strict=True))
        order = np.argsort(items, kind="stable")
        ends = np.cumsum(np.bincount(items, minlength=count), dtype=np.int64)
        return Ragged(codes[order], weights[order].astype(np.float32), ends)


def learn(attributes: Attributes, columns: Cells) -> Attributes:
    """Return attributes with the features of their catalogue: what ``ItemFeatures`` needs.

    Args:
        attributes: Of all items.
        columns: Texts and vectors of the items or of some, which attributes do not keep.

    Raises:
        InputError: A value is not of the kind of its attribute.
    """
    features = dict[str, Arrays]()
    for name, kind in attributes.kinds.items():
        cells = columns.get(name, ())
        if kind == "text":
            features[name] = _learn_text(name, cells)
        elif kind == "vector":
            features[name] = _learn_vector(name, cells)
        else:
            features[name] = _learn_column(attributes.column(name))
    return attributes.with_features(features)


def _learn_column(column: Categories | Numbers) -> Arrays:
    if isinstance(column, Categories):
        seen = np.flatnonzero(np.bincount(column.codes) >= FEWEST)
        return {"seen": seen.astype(np.int32)}
    numbers = column.numbers[~np.isnan(column.numbers)]
    shares = np.arange(1, QUANTILES) / QUANTILES
    return {"edges": np.unique(np.quantile(numbers, shares)) if len(numbers) else np.zeros(0)}


def _learn_text(name: str, cells: Sequence[object]) -> Arrays:
    items, buckets, _ = _count_words(name, cells)
    having = np.bincount(buckets, minlength=BUCKETS)  # items that have a bucket
    used = np.flatnonzero(having)
    idf = np.log((1 + len(np.unique(items))) / having[used])
    return {"buckets": used.astype(np.int32), "idf": idf.astype(np.float32)}


def _learn_vector(name: str, cells: Sequence[object]) -> Arrays:
    first = next((cell for cell in cells if not read.is_missing(cell)), ())
    _, units = _units(name, cells, len(np.atleast_1d(np.asarray(first))))
    return {"mean": units.sum(axis=0) / max(1, len(units))}


def _count_words(name: str, cells: Sequence[object]) -> Triples:
    """Return the items, the buckets of their words, and how often each occurs."""
    found, lengths, is_title = list[int](), list[int](), name == TITLE
    for row, cell in enumerate(cells):
        before = len(found)
        for word in WORD.findall(read.text(cell, f"{name}[{row}]").lower())[:MOST_WORDS]:
            found += _buckets_of(word, is_title=is_title)
        lengths.append(len(found) - before)
    keys = np.repeat(np.arange(len(cells)), lengths) * BUCKETS + np.array(found, dtype=np.int64)
    keys, counts = np.unique(keys, return_counts=True)
    return keys // BUCKETS, keys % BUCKETS, counts.astype(np.float64)


def _units(name: str, cells: Sequence[object], width: int) -> tuple[NDArray[np.int64], Floats]:
    """Return the items that have a vector, and the vectors at length 1."""
    items = [row for row, cell in enumerate(cells) if not read.is_missing(cell)]
    vectors = [read.vector(cells[row], f"{name}[{row}]", width) for row in items]
    array = np.array(vectors, dtype=np.float32).reshape(-1, width)
    lengths = np.maximum(np.linalg.norm(array, axis=1, keepdims=True), SMALLEST)
    return np.array(items, dtype=np.int64), array / lengths


def _encode_categories(attributes: Attributes, name: str, cells: Sequence[object]) -> Triples:
    column = attributes.column(name)
    assert isinstance(column, Categories)
    seen = attributes.features[name]["seen"].tolist()
    place_of = {code: place for place, code in enumerate(seen)}
    pairs = [
        (row, place)
        for row, cell in enumerate(cells)
        for value in column.read(cell, f"{name}[{row}]")
        if (code := column.code(value)) is not None and (place := place_of.get(code)) is not None
    ]
    items, places = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return items, places, np.ones(len(items))


def _encode_numbers(attributes: Attributes, name: str, cells: Sequence[object]) -> Triples:
    numbers = np.array([read.number(cell, f"{name}[{row}]") for row, cell in enumerate(cells)])
    items = np.flatnonzero(~np.isnan(numbers))
    edges = attributes.features[name]["edges"]
    return items, np.searchsorted(edges, numbers[items], side="right"), np.ones(len(items))


def _encode_text(attributes: Attributes, name: str, cells: Sequence[object]) -> Triples:
    items, buckets, counts = _count_words(name, cells)
    used, idf = (attributes.features[name][key] for key in LEARNED["text"])
    place_of = np.full(BUCKETS, -1)
    place_of[used] = np.arange(len(used))
    places = place_of[buckets]
    known = places >= 0
    places = places[known]
    return items[known], places, (1 + np.log(counts[known])) * idf[places]


def _encode_vectors(attributes: Attributes, name: str, cells: Sequence[object]) -> Triples:
    mean = attributes.features[name]["mean"]
    items, units = _units(name, cells, len(mean))
    centred = units - mean
    return (
        np.repeat(items, len(mean)),
        np.tile(np.arange(len(mean)), len(items)),
        centred.astype(np.float64).ravel(),
    )


_ENCODERS: dict[str, Callable[[Attributes, str, Sequence[object]], Triples]] = {
    "category": _encode_categories,
    "categories": _encode_categories,
    "number": _encode_numbers,
    "text": _encode_text,
    "vector": _encode_vectors,
}


class ItemEncoder:
    """item.onnx of a bundle: rows of the item table for items that training never saw."""

    def __init__(self, engine: Engine, attributes: Attributes) -> None:
        """Load item.onnx.

        Raises:
            InputError: The bundle has none.
            BundleError: It can't be loaded.
        """
        if ITEM not in engine.manifest.programs:
            raise InputError(
                "this bundle knows no attributes of items, so it can't place new ones by them: "
                "pass vectors, or train with --items and export again"
            )
        self.features = ItemFeatures(attributes)
        self._session, self._width = engine.programs.session(ITEM), engine.manifest.width

    def rows(self, columns: Cells, count: int) -> tuple[Floats, NDArray[np.bool_]]:
        """Return the rows of items, (count, D), and whether any of their values is known.

        The row of an item without a known value is that of an average item.

        Raises:
            InputError: A value is not of the kind of its attribute.
        """
        codes, weights, ends = self.features.encode(columns, count)
        counts = np.diff(ends, prepend=0)
        rows = np.zeros((count, self._width), dtype=np.float32)
        order = np.argsort(counts, kind="stable")  # items with as many codes go together
        for begin in range(0, count, AT_ONCE):
            part = order[begin : begin + AT_ONCE]
            shape = (len(part), max(1, int(counts[part].max())))
            is_code = np.arange(shape[1]) < counts[part, None]
            places = (ends - counts)[part, None] + np.arange(shape[1])
            own, values = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
            own[is_code], values[is_code] = codes[places[is_code]], weights[places[is_code]]
            try:
                rows[part] = self._session.run(["row"], {"codes": own, "weights": values})[0]
            except ORT_ERRORS as error:
                raise BundleError(f"{ITEM} can't be run: {error}") from error
        return rows, counts > 0
