"""Sizes in the pages of a parquet file, checked before polars reads it.

polars trusts these numbers: one flipped bit makes a count negative, and the process ends with
"memory allocation failed", which no caller can catch. Page headers are written in the compact
protocol of Thrift (https://github.com/apache/parquet-format, src/main/thrift/parquet.thrift).
"""

from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from ranklet.errors import DataError

MAGIC = b"PAR1"
_TAIL = 8  # length of the footer and MAGIC
_DEEPEST = 32  # nesting of structures; parquet.thrift needs six
Field = Any  # an integer, a truth value, a structure, a list of these, or None for the others
# Types of the compact protocol.
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12
_INTEGERS = (4, 5, 6)
# Field numbers of parquet.thrift.
_ROW_GROUPS, _COLUMNS, _META_DATA = 4, 1, 3
_VALUES, _CHUNK_BYTES, _DATA_PAGE, _DICTIONARY_PAGE = 5, 7, 9, 11
_FULL_BYTES, _PAGE_BYTES = 2, 3
_DATA, _DICTIONARY, _DATA_V2 = 5, 7, 8


def check_pages(path: Path) -> None:
    """Raise DataError if a page claims a size or a number of values that its column can't have.

    Other damage is left to polars, which names it.
    """
    if not path.stat().st_size:  # mmap refuses an empty file
        return
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        if len(data) < len(MAGIC) + _TAIL or data[-4:] != MAGIC:
            return
        footer = len(data) - _TAIL - int.from_bytes(data[-_TAIL:-4], "little")
        try:
            for group in _Thrift(data, footer).structure().get(_ROW_GROUPS, []):
                for column in group[_COLUMNS]:
                    _check_chunk(data, column[_META_DATA])
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise DataError(
                f"{path} can't be read: a page header or the footer is damaged; check that it is "
                "complete, or write it again"
            ) from error


def _check_chunk(data: mmap, chunk: dict[int, Field]) -> None:
    """Walk the pages of one column in one group of rows."""
    at = min(chunk.get(_DICTIONARY_PAGE) or chunk[_DATA_PAGE], chunk[_DATA_PAGE])
    end, left = at + chunk[_CHUNK_BYTES], chunk[_VALUES]
    while left > 0:
        page = _Thrift(data, at)
        header = page.structure()
        at = page.at + _between(header[_PAGE_BYTES], 0, end - page.at)
        most = _between(header[_FULL_BYTES], 0, 1 << 31)
        if _DICTIONARY in header:
            _between(header[_DICTIONARY][1], 0, most)
        else:
            left -= _between((header.get(_DATA) or header[_DATA_V2])[1], 0, left)


def _between(value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise ValueError(f"{value} is not between {least} and {most}")
    return value


class _Thrift:
    """Reader of the compact protocol; damage ends in IndexError or ValueError."""

    def __init__(self, data: mmap, at: int) -> None:
        self.data, self.at = data, _between(at, 0, len(data) - 1)

    def structure(self, depth: int = 0) -> dict[int, Field]:
        """Return the fields of a structure by number."""
        _between(depth, 0, _DEEPEST)
        fields: dict[int, Field] = {}
        number = 0
        while byte := self._byte():
            kind, delta = byte & 15, byte >> 4
            number = number + delta if delta else self._integer()
            fields[number] = self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Field:
        if kind in (_TRUE, _FALSE):
            return kind == _TRUE
        if kind in _INTEGERS:
            return self._integer()
        if kind == _STRUCT:
            return self.structure(depth + 1)
        if kind in (_LIST, _SET):
            return self._list(depth + 1)
        if kind in (_BYTE, _DOUBLE, _BINARY):
            size = self._varint() if kind == _BINARY else 1 if kind == _BYTE else 8
            self.at += _between(size, 0, len(self.data) - self.at)
            return None
        raise ValueError(f"type {kind} is none of parquet")

    def _list(self, depth: int) -> list[Field]:
        byte = self._byte()
        kind, size = byte & 15, byte >> 4
        size = self._varint() if size == 15 else size
        _between(size, 0, len(self.data) - self.at)  # each element takes a byte or more
        if kind in (_TRUE, _FALSE):
            return [self._byte() == _TRUE for _ in range(size)]
        return [self._value(kind, depth) for _ in range(size)]

    def _integer(self) -> int:
        zigzag = self._varint()
        return (zigzag >> 1) ^ -(zigzag & 1)

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 64, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("an integer of more than 64 bits")

    def _byte(self) -> int:
        byte = self.data[self.at]
        self.at += 1
        return byte
