"""Delimited text (csv, tsv) of any dialect, every row of it or an error.

* The separator is found from the header: comma, semicolon, tab or bar; Excel's ``sep=;`` counts.
* Lines end with LF, CR LF or, in the whole file, CR. UTF-16 with a byte order mark is read, too.
* A quote inside an unquoted field is a character, as in pandas. polars would take it for the start
  of a quoted part and swallow rows, so such files are rewritten by the csv module first.
* Rows are counted here, independently of polars.
"""

import csv
import gzip
import io
import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
import polars as pl
from polars.exceptions import PolarsError

from ranklet.errors import DataError
from ranklet.values import show

_SEPARATORS = ",;\t|"
_HEADER_BYTES = 1 << 20
_BLOCK = 1 << 24  # bytes of which the quotes are checked at a time
_QUOTE, _LF, _CR = b'"\n\r'
_QUOTES = "a field that starts with a quote ends with one, and quotes inside it are doubled"


class Delimited:
    """Text of a file, regular csv from its header on."""

    def __init__(self, path: Path, wanted: Collection[str]) -> None:
        """Read a file; the separator is the one that separates most of the ``wanted`` columns.

        Raises:
            DataError: The text is damaged; the message names the row or line.
        """
        self.name, name = str(path), path.name.lower().removesuffix(".gz")
        self.content = _read_text(path)
        likely = _SEPARATORS
        if said := re.match(rb'"?sep=(.)"?\r?\n', self.content, re.IGNORECASE):
            likely, self.content = said[1].decode(), self.content[said.end() :]
        elif name.endswith(".tsv"):
            likely = "\t" + likely
        headers = {separator: _header(self.content, separator) for separator in likely}
        self.separator, self.header = max(
            headers.items(), key=lambda found: (len({*found[1]} & {*wanted}), len(found[1]))
        )
        lines = _count_lines(self.content, self.separator)
        if lines is None:
            self.content = self._rewritten()
            lines = _count_lines(self.content, self.separator)
            assert lines is not None
        self.rows = lines - 1  # with blank ones
        ends = self.content.count(b"\n") + (not self.content.endswith(b"\n"))
        self.quoted_breaks = ends - lines

    def read(
        self, columns: list[str], types: Mapping[str, type[pl.DataType]], *, infer_types: bool
    ) -> pl.DataFrame:
        """Return columns; those without a type are text, or of an inferred type.

        Raises:
            DataError: A row can't be read.
        """
        try:
            frame = pl.read_csv(
                self.content,
                columns=columns,
                separator=self.separator,
                infer_schema=infer_types,
                infer_schema_length=None,
                schema_overrides={name: types[name] for name in columns if name in types},
            )
        except PolarsError:
            for _ in self._fields():  # names the row
                pass
            raise
        if len(frame) != self.rows:
            raise DataError(f"{self.name} has {self.rows:,} rows, but polars reads {len(frame):,}")
        return frame

    def _rewritten(self) -> bytes:
        text = io.StringIO()
        csv.writer(text, delimiter=self.separator, lineterminator="\n").writerows(self._fields())
        return text.getvalue().encode()

    def _fields(self) -> Iterator[list[str]]:
        """Yield the fields of the header and of each row, by the csv module."""
        try:
            text = self.content.decode()
        except UnicodeDecodeError as error:
            line = self.content.count(b"\n", 0, error.start) + 1
            raise DataError(f"{self.name} is not UTF-8 in line {line}; save it as UTF-8") from error
        lines = io.StringIO(text, newline="\n")
        row = 0  # without blank lines
        try:
            for fields in csv.reader(lines, delimiter=self.separator, strict=True):
                if len(fields) > len(self.header):
                    raise DataError(
                        f"{self.name} has {len(fields):,} fields in row {row}, and the header "
                        f"names {len(self.header):,}: {show(self.separator.join(fields))}"
                    )
                yield fields
                row += bool(fields)
        except csv.Error as error:
            raise DataError(
                f"{self.name} can't be read in row {row}: {error}; {_QUOTES}"
            ) from error


def _read_text(path: Path) -> bytes:
    """Return UTF-8 without byte order mark, empty first lines, and CR alone as line ends."""
    content = path.read_bytes()
    if path.name.lower().endswith(".gz"):
        content = gzip.decompress(content)
    if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        content = content.decode("utf-16").encode()
    content = content.removeprefix(BOM_UTF8).lstrip(b"\r\n")
    if b"\0" in content:
        line = content.count(b"\n", 0, content.index(b"\0")) + 1
        raise DataError(f"{path} has a NUL in line {line}; save it as plain UTF-8 text")
    first_end = re.search(rb"\r\n?|\n", content)
    is_cr = first_end is not None and first_end[0] == b"\r"
    return content.replace(b"\r", b"\n") if is_cr else content


def _header(content: bytes, separator: str) -> list[str]:
    text = content[:_HEADER_BYTES].decode(errors="replace")
    try:
        return next(csv.reader(io.StringIO(text, newline="\n"), delimiter=separator), [])
    except csv.Error:  # longer than any header
        return []


def _count_lines(content: bytes, separator: str) -> int | None:
    """Return the number of lines, None if a quote neither encloses a field nor is doubled in one.

    The quotes of such regular text alternate between opening and closing.
    """
    is_unended = not content.endswith(b"\n")
    if b'"' not in content:
        return content.count(b"\n") + is_unended
    data = np.frombuffer(content, np.uint8)
    before = np.array([ord(separator), _LF, _QUOTE], np.uint8)
    after = np.array([ord(separator), _LF, _QUOTE, _CR], np.uint8)
    lines, is_quoted = int(is_unended), 0
    for start in range(0, len(data), _BLOCK):
        quotes = start + np.flatnonzero(data[start : start + _BLOCK] == _QUOTE)
        opens, closes = quotes[is_quoted::2], quotes[1 - is_quoted :: 2]
        if not (
            np.isin(data[opens[opens > 0] - 1], before).all()
            and np.isin(data[closes[closes < len(data) - 1] + 1], after).all()
        ):
            return None
        ends = start + np.flatnonzero(data[start : start + _BLOCK] == _LF)
        lines += int(np.count_nonzero((np.searchsorted(quotes, ends) + is_quoted) % 2 == 0))
        is_quoted = (is_quoted + len(quotes)) % 2
    return None if is_quoted else lines
