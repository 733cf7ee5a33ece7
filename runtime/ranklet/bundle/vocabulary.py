"""Vocabulary: item ids to item indices and back; index 0 is padding, the rest follow the ids.

Ids are int64 or UTF-8 text, compared exactly: "007", "7" and 7 are three different ids. Ids that
were added to a loaded catalogue come behind the sorted ones, in the order of their addition.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from copy import copy
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ranklet.bundle.damage import outside
from ranklet.errors import BundleError, InputError
from ranklet.forks import cached_property
from ranklet.values import Ids, choice, flat, integers, kind, plain, show

ItemId: TypeAlias = int | str
Unknown: TypeAlias = Literal["skip", "error"]  # what to do with ids that the catalogue lacks

REASON = "this bundle has integer item ids"
REMEMBERED = 1 << 16  # ids of a large catalogue
INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")  # as it is written; its user checks int64


class Texts(Sequence[str]):
    """Sorted texts on disk: one mapped blob of UTF-8, and the end of each text.

    A list of ten million texts and a dict of them take 1.3 GB. A search of the blob takes up to ten
    microseconds for an id instead, once: recent ids are cached.
    """

    def __init__(self, blob: memoryview, ends: memoryview) -> None:
        """Use a blob and the int64 ends of its texts."""
        self._blob, self._ends = blob, ends
        self._found: dict[str, int] = {}

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self._ends)

    def __getitem__(self, place: Any) -> Any:  # noqa: ANN401 (Sequence allows slices)
        """Return one text, or a list of them."""
        places = range(len(self))[place]
        if isinstance(places, range):
            return [self[place] for place in places]
        try:
            return self._raw(places).decode()
        except UnicodeDecodeError as error:
            raise BundleError(f"text {places} of the catalogue is not UTF-8: {error}") from error

    def get(self, text: Any) -> int | None:  # noqa: ANN401 (as dict.get)
        """Return the index of a text, counted from 1; None if it is not there."""
        index = self._found.get(text)
        if index is not None:
            return index
        if not isinstance(text, str):
            return None
        try:
            target = text.encode()
        except UnicodeEncodeError:
            return None
        place = bisect_left(range(len(self)), target, key=self._raw)
        if place == len(self) or self._raw(place) != target:
            return None
        if len(self._found) >= REMEMBERED:
            self._found = {}
        self._found[text] = place + 1
        return place + 1

    def _raw(self, place: int) -> bytes:
        start = self._ends[place - 1] if place else 0
        return bytes(self._blob[start : self._ends[place]])


class Joined(Sequence[str]):
    """Two sequences of ids, one behind the other, neither of them copied."""

    def __init__(self, first: Sequence[str], second: Sequence[str]) -> None:
        self._first, self._second = first, second

    def __len__(self) -> int:
        """Return the number of ids of both."""
        return len(self._first) + len(self._second)

    def __getitem__(self, place: Any) -> Any:  # noqa: ANN401 (Sequence allows slices)
        """Return one id, or a list of them."""
        places = range(len(self))[place]
        if isinstance(places, range):
            return [self[place] for place in places]
        size = len(self._first)
        return self._first[places] if places < size else self._second[places - size]


class Vocabulary:
    """The item ids of a catalogue; ``index`` and ``ids`` convert many at once."""

    def __init__(self, ids: NDArray[np.int64] | Sequence[str]) -> None:
        """Take ids that are unique and sorted (numbers by value, text by its UTF-8 bytes)."""
        self.is_text = not isinstance(ids, np.ndarray)
        self._numbers = np.asarray([] if self.is_text else ids, dtype=np.int64).view()
        self._numbers.flags.writeable = False  # they are shown as ``all_ids``
        self._texts: Sequence[str] = []
        if self.is_text:
            self._texts = ids if isinstance(ids, Texts) else list(ids)
        self.sorted = len(self._texts) if self.is_text else len(self._numbers)  # ids of the bundle
        self._added: list[Any] = []
        self._index_of_added: dict[Any, int] = {}

    def __len__(self) -> int:
        """Return the number of items, without padding."""
        return self.sorted + len(self._added)

    def grown(self, ids: Sequence[ItemId]) -> "Vocabulary":
        """Return a vocabulary with new ids of its type behind its own; this one stays as it is."""
        other = copy(self)
        other._added = [*self._added, *ids]
        other._index_of_added = {item: self.sorted + n for n, item in enumerate(other._added, 1)}
        return other

    @property
    def id_type(self) -> str:
        """Return the type of ids: ``"string"`` or ``"int64"``."""
        return "string" if self.is_text else "int64"

    @property
    def all_ids(self) -> NDArray[np.int64] | Sequence[str]:
        """Return every id in index order, starting with that of index 1."""
        if not self._added:
            return self._texts if self.is_text else self._numbers
        if self.is_text:
            return Joined(self._texts, self._added)
        return np.append(self._numbers, np.array(self._added, dtype=np.int64))

    def index(
        self, ids: Ids, name: str = "history", *, unknown: Unknown = "skip"
    ) -> NDArray[np.int64]:
        """Return the index of each id, 0 where the catalogue does not have it.

        A catalogue of integers does not have text such as ``"NEW-7"``; text that is an integer, as
        ``"7"``, is refused, since 7 may be meant.

        Args:
            ids: A list, tuple or one-dimensional array; never changed.
            name: The name of the ids in messages.
            unknown: ``"error"`` raises if the catalogue lacks an id.

        Raises:
            InputError: An id is not of this catalogue's type, or ``ids`` is not a flat sequence.
        """
        if type(unknown) is not str or unknown != "skip":
            unknown = choice(unknown, "unknown", ("skip", "error"))
        items = ids if type(ids) is list else flat(ids, name)
        indices = (
            self._index_texts(items, name) if self.is_text else self._index_numbers(items, name)
        )
        if self._added:
            for place in np.flatnonzero(indices == 0).tolist():
                indices[place] = self._index_of_added.get(plain(items[place]), 0)
        if unknown == "error" and not indices.all():
            place = int(indices.argmin())
            raise InputError(
                f"{name}[{place}] is {show(items[place])}, which the catalogue does not have: "
                "drop it, or pass unknown='skip'"
            )
        return indices

    def find(self, item: object) -> int | None:
        """Return the index of a known text id, None for all else."""
        text = item if type(item) is str else plain(item)
        if type(text) is not str or not self.is_text:
            return None
        return self._index_of.get(text) or self._index_of_added.get(text)

    def ids(self, indices: NDArray[np.int64]) -> list[str] | list[int]:
        """Return the ids that belong to indices between 1 and the number of items.

        Raises:
            BundleError: An index is not: a graph answers outside of its catalogue.
        """
        places = indices.tolist()
        if places and min(places) < 1:
            raise outside(min(places))
        try:
            return self._ids(indices, places)
        except IndexError as error:
            raise outside(max(places)) from error

    def _ids(self, indices: NDArray[np.int64], places: list[int]) -> list[str] | list[int]:
        if self._added and (indices > self.sorted).any():
            last, added = self.sorted, self._added
            every: list[Any] = [
                added[i - last - 1]
                if i > last
                else (self._texts[i - 1] if self.is_text else int(self._numbers[i - 1]))
                for i in places
            ]
            return every
        if self.is_text:
            return [self._texts[index - 1] for index in places]
        numbers: list[int] = self._numbers[indices - 1].tolist()
        return numbers

    def parse(self, texts: Iterable[str]) -> list[Any]:
        """Return ids for ``index`` from text, as on a command line.

        A catalogue of int64 ids takes 7 from "7"; "007", "1_0" and "x" stay text, which it lacks.
        """
        if self.is_text:
            return list(texts)
        return [int(text) if _is_int64(text) else text for text in texts]

    @cached_property
    def _index_of(self) -> "dict[str, int] | Texts":
        if isinstance(self._texts, Texts):
            return self._texts
        return {text: index for index, text in enumerate(self._texts, 1)}

    def _index_texts(self, ids: list[Any] | NDArray[Any], name: str) -> NDArray[np.int64]:
        ids = ids if isinstance(ids, list) else ids.tolist()
        try:
            return np.fromiter(map(self._index_of.get, ids), np.int64, len(ids))
        except Exception:  # an id that is unknown, or can't be one: its methods may raise anything
            return self._index_each(ids, name)

    def _index_each(self, ids: list[Any], name: str) -> NDArray[np.int64]:
        texts = [item if type(item) is str else plain(item) for item in ids]
        indices = [(type(text) is str and self._index_of.get(text)) or 0 for text in texts]
        for place in [place for place, index in enumerate(indices) if not index]:
            _check_text(ids[place], f"{name}[{place}]")
        return np.array(indices, dtype=np.int64)

    def _index_numbers(self, ids: list[Any] | NDArray[Any], name: str) -> NDArray[np.int64]:
        if isinstance(ids, list):
            try:
                values = integers(ids, name, REASON)
            except InputError:
                is_other = [type(item) is str and not _is_int64(item) for item in map(plain, ids)]
                if not any(is_other):
                    raise
                pairs = zip(ids, is_other, strict=True)
                indices = self._index_numbers([0 if other else i for i, other in pairs], name)
                return np.where(is_other, 0, indices)
        else:
            values = ids
        # uint64 beyond int64 can't be an id of the catalogue; casting would turn it into one.
        if values.dtype.kind == "u" and (too_large := values > 2**63 - 1).any():
            place = int(too_large.argmax())
            raise InputError(f"{name}[{place}] is {values[place]}, which is outside int64")
        values = values.astype(np.int64)  # also brings foreign byte orders home
        places = np.searchsorted(self._numbers, values)
        places[places == len(self._numbers)] = 0
        return np.where(self._numbers[places] == values, places + 1, 0)


def _is_int64(text: str) -> bool:
    return bool(INTEGER.fullmatch(text)) and -(2**63) <= int(text) < 2**63


def _check_text(item: object, place: str) -> None:
    text = plain(item)
    if type(text) is not str:
        raise InputError(f"{place} is {show(item)} ({kind(item)}); this bundle has text item ids")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{place} is {show(item)}, which is not valid Unicode: {error.reason}"
        ) from error
