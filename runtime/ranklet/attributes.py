"""Attributes of the items of a catalogue: categories and numbers, for conditions and limits.

    category, categories   "codes" of all items one after the other, where those of an item end
                           ("ends"), and the texts of the codes ("values", "value_ends")
    number                 "numbers", NaN where there is none

They are arrays of attributes.bin. Texts and vectors are not kept for each item: item_features.py
keeps what new items need of them, in more arrays of the same attributes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ranklet import attribute_values as read
from ranklet.bundle.folder import read_or_map
from ranklet.bundle.manifest import ATTRIBUTES, FILTERABLE, Array, Attribute, Kind, Manifest
from ranklet.bundle.vocabulary import Texts
from ranklet.errors import BundleError, InputError
from ranklet.forks import cached_property
from ranklet.values import show

Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]
Arrays = dict[str, NDArray[Any]]
ALIGNED = 8  # bytes; where an array starts in its file
FEW = 8  # codes, for which comparisons are faster than a look-up


@dataclass(frozen=True)
class Categories:
    """A column of categories; item i has ``codes[ends[i - 2] : ends[i - 1]]``."""

    kind: Literal["category", "categories"]
    codes: NDArray[np.int32]
    ends: NDArray[np.integer[Any]]  # (items,)
    sorted: Texts  # values by their UTF-8 bytes, with codes from 0
    added: dict[str, int]  # values that came later, and their codes

    @property
    def values(self) -> list[str]:
        """Return all values in the order of their codes."""
        return [*self.sorted, *self.added]

    def read(self, cell: object, name: str) -> list[str]:
        """Return the values of a cell of a table, see ``attribute_values``."""
        of_cell = read.categories if self.kind == "categories" else read.single_category
        return of_cell(cell, name)

    def code(self, value: str) -> int | None:
        """Return the code of a value, None if no item has it."""
        place = self.sorted.get(value)
        return self.added.get(value) if place is None else place - 1

    def matches(self, condition: object, name: str) -> Mask:
        """Return which items have one of the values of a condition, (items,)."""
        asked = [read.category(value, name) for value in read.parts(condition)]
        if None in asked:
            raise InputError(f"{name} is {show(condition)}; pass a value, or a list of values")
        wanted = [c for value in asked if value and (c := self.code(value)) is not None]
        if len(wanted) <= FEW:
            hit = np.zeros(len(self.codes), dtype=np.bool_)
            for code in wanted:
                hit |= self.codes == code
        else:
            is_wanted = np.zeros(len(self.sorted) + len(self.added), dtype=np.bool_)
            is_wanted[wanted] = True
            hit = is_wanted[self.codes]
        if self._is_single:
            return hit
        hits = np.zeros(len(self.codes) + 1, dtype=self.ends.dtype)
        np.cumsum(hit, out=hits[1:])
        until = hits[self.ends]
        found: Mask = until != np.concatenate([hits[:1], until[:-1]])
        return found

    @cached_property
    def _is_single(self) -> bool:
        """Return whether each item has one value."""
        return len(self.codes) == len(self.ends) and bool(
            (np.diff(self.ends, prepend=0) == 1).all()
        )

    def with_rows(self, values: list[Any], places: Indices, size: int, name: str) -> "Categories":
        """Return a column of ``size`` items in which some have other values."""
        rows = [self.read(value, f"{name}[{row}]") for row, value in enumerate(values)]
        added = dict(self.added)
        for value in dict.fromkeys(value for row in rows for value in row):
            if self.sorted.get(value) is None and value not in added:
                added[value] = len(self.sorted) + len(added)
        column = replace(self, added=added)
        before, lengths = np.diff(self.ends, prepend=0), np.zeros(size, dtype=np.int64)
        lengths[: len(before)] = before
        lengths[places - 1] = [len(row) for row in rows]
        is_new = np.zeros(size, dtype=np.bool_)
        is_new[places - 1] = True
        codes = np.zeros(lengths.sum(), dtype=np.int32)
        from_new = np.repeat(is_new, lengths)
        codes[~from_new] = self.codes[np.repeat(~is_new[: len(before)], before)]
        codes[from_new] = [column.code(v) for r in np.argsort(places) for v in rows[r]]
        kind = np.int32 if len(codes) < 2**31 else np.int64
        return replace(column, codes=codes, ends=np.cumsum(lengths).astype(kind))

    def take(self, items: Indices) -> "Categories":
        """Return the column of these items, counted from 0, in this order."""
        lengths = np.diff(self.ends, prepend=0)[items]
        ends = np.cumsum(lengths)
        shifts = np.repeat(self.ends[items] - ends, lengths)
        codes = self.codes[np.arange(len(shifts)) + shifts]
        return replace(self, codes=codes, ends=ends.astype(self.ends.dtype))

    def arrays(self, seen: Arrays) -> Arrays:
        """Return the arrays for the file; ``seen`` are codes of more arrays, renumbered alike."""
        texts = [value.encode() for value in self.values]
        order = sorted(range(len(texts)), key=texts.__getitem__)
        renumbered = np.zeros(len(texts), dtype="<i4")
        renumbered[order] = np.arange(len(order))
        return {
            "codes": renumbered[self.codes],
            "ends": self.ends,
            "values": np.frombuffer(b"".join(texts[code] for code in order), dtype=np.uint8),
            "value_ends": np.cumsum([len(texts[code]) for code in order], dtype="<i8"),
            **{key: renumbered[codes] for key, codes in seen.items()},
        }


@dataclass(frozen=True)
class Numbers:
    """A column of numbers, NaN where there is none."""

    numbers: NDArray[np.float64]  # (items,)

    def matches(self, condition: object, name: str) -> Mask:
        """Return which items have one of the numbers, or one between two ends, (items,)."""
        if isinstance(condition, tuple):
            if len(condition) != 2:
                raise InputError(f"{name} is {show(condition)}; a range is (low, high)")
            low, high = (read.number(end, name) for end in condition)
            found = ~np.isnan(self.numbers)
            if not np.isnan(low):
                found &= self.numbers >= low
            return found if np.isnan(high) else found & (self.numbers <= high)
        asked = [read.number(value, name) for value in read.parts(condition)]
        if np.isnan(asked).any():
            raise InputError(f"{name} is {show(condition)}; pass a number, or (low, high)")
        return np.isin(self.numbers, asked)

    def with_rows(self, values: list[Any], places: Indices, size: int, name: str) -> "Numbers":
        """Return a column of ``size`` items in which some have other numbers."""
        numbers = np.full(size, np.nan)
        numbers[: len(self.numbers)] = self.numbers
        numbers[places - 1] = [read.number(v, f"{name}[{row}]") for row, v in enumerate(values)]
        return Numbers(numbers)

    def take(self, items: Indices) -> "Numbers":
        """Return the column of these items, counted from 0, in this order."""
        return Numbers(self.numbers[items])


def _no_rows(kind: Kind) -> Categories | Numbers:
    if kind != "category" and kind != "categories":
        return Numbers(np.zeros(0))
    none = np.zeros(0, dtype=np.int32)
    return Categories(kind, none, none, Texts(memoryview(b""), memoryview(b"")), {})


class Attributes:
    """The attributes of a catalogue, which never change; ``with_items`` makes another one.

    Attributes:
        items: Their number; index 0 is padding, as everywhere.
        kinds: Kind of every attribute by name.
        features: Arrays of every attribute beside its column, for ``item_features``.
    """

    def __init__(
        self,
        items: int,
        kinds: Mapping[str, Kind],
        columns: Mapping[str, Categories | Numbers],
        features: Mapping[str, Arrays],
    ) -> None:
        """Take columns that are checked; those of ``read`` are checked at first use."""
        self.items, self.kinds = items, dict(kinds)
        self._columns, self.features = dict(columns), dict(features)

    @classmethod
    def empty(cls, kinds: Mapping[str, Kind]) -> "Attributes":
        """Return attributes of no item; ``with_items`` fills them."""
        columns = {name: _no_rows(kind) for name, kind in kinds.items() if kind in FILTERABLE}
        return cls(0, kinds, columns, {name: {} for name in kinds})

    @classmethod
    def read(cls, folder: Path, manifest: Manifest) -> "Attributes":
        """Map the attributes of a bundle; a column is read when it is used first.

        Raises:
            BundleError: The file can't be mapped.
        """
        return _Read(folder / ATTRIBUTES, manifest)

    @property
    def names(self) -> list[str]:
        """Return the names that conditions may have: attributes of categories and numbers."""
        return [name for name, kind in self.kinds.items() if kind in FILTERABLE]

    def column(self, name: str) -> Categories | Numbers:
        """Return a column.

        Raises:
            InputError: There is none of this name, or none of its kind.
            BundleError: Its bytes are damaged.
        """
        kind = self.kinds.get(name)
        if kind is None:
            there = f"there are {', '.join(map(show, self.names[:20]))}" if self.names else "no one"
            raise InputError(f"no attribute is called {show(name)}; {there} is kept for each item")
        if kind not in FILTERABLE:
            raise InputError(
                f"attribute {show(name)} is a {kind}, which is not kept for each item: conditions "
                "are on categories and numbers"
            )
        return self._columns[name]

    def matches(self, name: str, condition: object) -> Mask:
        """Return which items meet a condition, (items + 1,); padding never does.

        Args:
            name: A category or a number among ``names``.
            condition: Of categories, a value, or several of which one is enough (list, tuple, set).
                Of numbers, a number, a list of numbers, or a range (low, high) with both ends,
                either of which may be None. A value that no item has is met by none.

        Raises:
            InputError: No such attribute, or a condition of another type.
        """
        found = self.column(name).matches(condition, f"condition {show(name)}")
        return np.concatenate([np.zeros(1, dtype=np.bool_), found])

    def codes(self, name: str, items: Indices) -> list[list[int]]:
        """Return the codes of the categories of some items."""
        column = self._categories(name)
        starts = np.where(items > 1, column.ends[items - 2], 0).tolist()
        return [
            column.codes[a:b].tolist()
            for a, b in zip(starts, column.ends[items - 1].tolist(), strict=True)
        ]

    def values(self, name: str) -> list[str]:
        """Return the categories of an attribute in the order of their codes."""
        return self._categories(name).values

    def _categories(self, name: str) -> Categories:
        column = self.column(name)
        if not isinstance(column, Categories):
            raise InputError(f"attribute {show(name)} holds numbers, not categories")
        return column

    def with_items(
        self, columns: Mapping[str, Sequence[object]], places: Indices, size: int
    ) -> "Attributes":
        """Return attributes of ``size`` items in which some have other values.

        Args:
            columns: Values by the name of their attribute; other names are left aside. Items keep
                what is not among them, and new items have no value of it.
            places: The index of the item of each row; none twice.
            size: The number of items then, at least as many as now.

        Raises:
            InputError: A value is not of the kind of its attribute, or a column is too short.
        """
        changed = {}
        for name in self.names:
            at = places if name in columns else places[:0]
            given = read.column(columns.get(name, []), name, len(at))
            changed[name] = self.column(name).with_rows(given, at, size, name)
        return Attributes(size, self.kinds, changed, self.features)

    def take(self, items: Indices) -> "Attributes":
        """Return the attributes of these items, by index, in this order."""
        columns = {name: self.column(name).take(items - 1) for name in self.names}
        return Attributes(len(items), self.kinds, columns, self.features)

    def with_features(self, features: Mapping[str, Arrays]) -> "Attributes":
        """Return attributes with other ``features``."""
        columns = {name: self.column(name) for name in self.names}
        return Attributes(self.items, self.kinds, columns, features)

    def write(self, folder: Path) -> list[Attribute]:
        """Write attributes.bin, unless it would be empty; return what the manifest says of it."""
        written, parts, end = [], list[bytes](), 0
        for name, kind in self.kinds.items():
            arrays, places = dict(self.features[name]), dict[str, Array]()
            if kind in FILTERABLE:
                column = self.column(name)
                if isinstance(column, Categories):
                    arrays = column.arrays(arrays)
                else:
                    arrays["numbers"] = column.numbers
            for key, array in arrays.items():
                little = array.astype(array.dtype.newbyteorder("<"), copy=False)
                places[key] = Array(end, len(array), TYPES[array.dtype.kind, array.itemsize])
                parts += [little.tobytes(), bytes(-little.nbytes % ALIGNED)]
                end += little.nbytes + len(parts[-1])
            written.append(Attribute(name, kind, places))
        if end:
            (folder / ATTRIBUTES).write_bytes(b"".join(parts))
        return written


TYPES: dict[tuple[str, int], Any] = {
    ("u", 1): "|u1",
    ("i", 4): "<i4",
    ("i", 8): "<i8",
    ("f", 4): "<f4",
    ("f", 8): "<f8",
}


class _Read(Attributes):
    """Attributes of a file, whose columns are checked at first use."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Read or map the file."""
        self._path, self._arrays, features = path, dict[str, Arrays](), dict[str, Arrays]()
        try:
            file = read_or_map(path, "u1") if ATTRIBUTES in manifest.files else None
            for name, kind, places in map(_parts, manifest.attributes):
                arrays: Arrays = {
                    key: np.zeros(0, array.type)
                    if file is None
                    else file[array.offset : array.offset + array.bytes].view(array.type)
                    for key, array in places.items()
                }
                own = FILTERABLE.get(kind, ())
                self._arrays[name] = arrays
                features[name] = {key: arrays[key] for key in arrays if key not in own}
        except ValueError as error:
            raise BundleError(f"{path} is damaged: {error}") from error
        kinds = {attribute.name: attribute.kind for attribute in manifest.attributes}
        super().__init__(manifest.items, kinds, {}, features)

    def column(self, name: str) -> Categories | Numbers:
        """Return a column, checked when it is used first."""
        if name not in self._columns and self.kinds.get(name) in FILTERABLE:
            self._columns[name] = self._checked(name, self._arrays[name])
        return super().column(name)

    def _checked(self, name: str, arrays: Arrays) -> Categories | Numbers:
        kind = self.kinds[name]
        if kind != "category" and kind != "categories":
            self._require(len(arrays["numbers"]) == self.items, name)
            return Numbers(arrays["numbers"])
        codes, ends, blob, value_ends = (arrays[key] for key in FILTERABLE[kind])
        is_code = not len(codes) or (codes.min() >= 0 and codes.max() < len(value_ends))
        self._require(len(ends) == self.items and _rise(ends, len(codes)), name)
        self._require(_rise(value_ends, len(blob)) and bool(is_code), name)
        return Categories(kind, codes, ends, Texts(blob.data, value_ends.data), {})

    def _require(self, fits: bool, name: str) -> None:
        if not fits:
            raise BundleError(
                f"{self._path} is damaged: the arrays of {show(name)} do not fit together; copy "
                "the bundle again"
            )


def _parts(attribute: Attribute) -> tuple[str, Kind, dict[str, Array]]:
    return attribute.name, attribute.kind, attribute.arrays


def _rise(ends: NDArray[Any], last: int) -> bool:
    """Return whether the ends of parts rise to the length of the whole."""
    if not len(ends):
        return last == 0
    return bool(ends[0] >= 0 and ends[-1] == last and (ends[1:] >= ends[:-1]).all())
