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

import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ranklet import attribute_values as read
from ranklet.attributes import Arrays, Attributes, Categories, Numbers
from ranklet.bundle.manifest import ITEM
from ranklet.engine.engine import Engine, Floats
from ranklet.engine.sessions import ORT_ERRORS
from ranklet.errors import BundleError, InputError

TITLE = "title"
WORD = re.compile(r"[^\W_]+")
MOST_WORDS, BUCKETS, GRAMS = 60, 1 << 15, (3, 4)
FEWEST = 2  # items that have a category, for it to be a feature
QUANTILES = 20
AT_ONCE = 64  # items of a run of item.onnx: its arrays stay in the caches

Pairs = tuple[Sequence[int], Sequence[float]]  # codes from 0 and weights of a field
Cells = Mapping[str, Sequence[object]]  # columns of a table


class Ragged(NamedTuple):
    """Codes and weights of items; item i, from 0, has those from ``ends[i - 1]`` to ``ends[i]``."""

    codes: NDArray[np.int64]
    weights: NDArray[np.float32]
    ends: NDArray[np.int64]


def words(text: str, *, is_title: bool) -> Iterable[str]:
    """Yield the words of a text, and of a title their parts."""
    for word in WORD.findall(text.lower())[:MOST_WORDS]:
        yield word
        if is_title:
            whole = f"<{word}>"
            for size in GRAMS:
                yield from (whole[at : at + size] for at in range(len(whole) - size + 1))


class ItemFeatures:
    """The features of a catalogue: ``encode`` makes codes and weights of any table of items."""

    def __init__(self, attributes: Attributes) -> None:
        """Use attributes whose features were learned, see ``learn``."""
        self._fields = list[tuple[str, Callable[[object, str], Pairs], int]]()
        self.count = 1  # of codes
        for name in attributes.kinds:
            read_cell, size = _FIELDS[attributes.kinds[name]](attributes, name)
            self._fields.append((name, read_cell, self.count))
            self.count += size

    def encode(self, columns: Cells, count: int) -> Ragged:
        """Return the codes and weights of ``count`` items; columns that are absent have no value.

        Raises:
            InputError: A value is not of the kind of its attribute.
        """
        codes, weights = [list[int]() for _ in range(count)], [list[float]() for _ in range(count)]
        for name, read_cell, first in self._fields:
            if name not in columns:
                continue
            for row, cell in enumerate(read.column(columns[name], name, count)):
                own, values = read_cell(cell, f"{name}[{row}]")
                length = sum(value * value for value in values) ** 0.5
                if length:
                    codes[row] += [first + code for code in own]
                    weights[row] += [value / length for value in values]
        return Ragged(
            np.array([code for row in codes for code in row], dtype=np.int64),
            np.array([value for row in weights for value in row], dtype=np.float32),
            np.cumsum([len(row) for row in codes], dtype=np.int64),
        )


def learn(attributes: Attributes, columns: Cells) -> Attributes:
    """Return attributes with the features of their catalogue: what ``ItemFeatures`` needs.

    Args:
        attributes: Of all items.
        columns: Texts and vectors of the items, which attributes do not keep.

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
    edges = np.quantile(numbers, shares) if len(numbers) else np.zeros(0)
    return {"edges": np.unique(edges)}


def _learn_text(name: str, cells: Sequence[object]) -> Arrays:
    items = Counter[int]()  # that have a bucket
    count = 0
    for row, cell in enumerate(cells):
        found = _buckets(read.text(cell, f"{name}[{row}]"), is_title=name == TITLE)
        items.update(found.keys())
        count += bool(found)
    buckets = np.array(sorted(items), dtype=np.int32)
    having = np.array([items[bucket] for bucket in buckets.tolist()])
    return {"buckets": buckets, "idf": np.log((1 + count) / having).astype(np.float32)}


def _learn_vector(name: str, cells: Sequence[object]) -> Arrays:
    first = next((cell for cell in cells if not read.is_missing(cell)), ())
    width = len(np.atleast_1d(np.asarray(first)))
    total = np.zeros(width)
    for row, cell in enumerate(cells):
        total += _unit(read.vector(cell, f"{name}[{row}]", width))
    return {"mean": (total / max(1, len(cells))).astype(np.float32)}


def _buckets(text: str, *, is_title: bool) -> Counter[int]:
    """Return how often the words of each bucket occur."""
    return Counter(zlib.crc32(word.encode()) % BUCKETS for word in words(text, is_title=is_title))


def _unit(vector: Floats) -> Floats:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


# For each kind, the function that makes pairs of a cell, and the number of its codes.
_Field = tuple[Callable[[object, str], Pairs], int]


def _category_field(attributes: Attributes, name: str) -> _Field:
    column = attributes.column(name)
    assert isinstance(column, Categories)
    seen = attributes.features[name]["seen"].tolist()
    place_of = {code: place for place, code in enumerate(seen)}
    of_cell = read.categories if column.kind == "categories" else read.single_category

    def pairs(cell: object, where: str) -> Pairs:
        codes = [column.code(value) for value in of_cell(cell, where)]
        places = [place_of[code] for code in codes if code in place_of]
        return places, [1.0] * len(places)

    return pairs, len(seen)


def _number_field(attributes: Attributes, name: str) -> _Field:
    edges = attributes.features[name]["edges"]

    def pairs(cell: object, where: str) -> Pairs:
        value = read.number(cell, where)
        if np.isnan(value):
            return (), ()
        return [int(np.searchsorted(edges, value, side="right"))], [1.0]

    return pairs, len(edges) + 1


def _text_field(attributes: Attributes, name: str) -> _Field:
    arrays = attributes.features[name]
    place_of = {bucket: place for place, bucket in enumerate(arrays["buckets"].tolist())}
    idf = arrays["idf"].tolist()

    def pairs(cell: object, where: str) -> Pairs:
        found = _buckets(read.text(cell, where), is_title=name == TITLE)
        counts = {place_of[bucket]: n for bucket, n in found.items() if bucket in place_of}
        return list(counts), [(1 + math.log(n)) * idf[place] for place, n in counts.items()]

    return pairs, len(idf)


def _vector_field(attributes: Attributes, name: str) -> _Field:
    mean = attributes.features[name]["mean"]

    def pairs(cell: object, where: str) -> Pairs:
        if read.is_missing(cell):
            return (), ()
        return range(len(mean)), (_unit(read.vector(cell, where, len(mean))) - mean).tolist()

    return pairs, len(mean)


_FIELDS: dict[str, Callable[[Attributes, str], _Field]] = {
    "category": _category_field,
    "categories": _category_field,
    "number": _number_field,
    "text": _text_field,
    "vector": _vector_field,
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
