"""JSON lines are read whole, or refused with the file, the line and what to do."""

import gzip
import io
import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from ranklet.errors import DataError
from ranklet.files.json_lines import read_json_lines


def read(folder: Path, content: bytes, name: str = "log.jsonl") -> list[tuple[int, dict[str, Any]]]:
    (folder / name).write_bytes(content)
    return list(read_json_lines(folder / name))


@pytest.mark.parametrize(
    "content",
    [
        b'{"a": 1}\n{"a": 2}\n',
        b'{"a": 1}\r\n{"a": 2}\r\n',
        b'{"a": 1}\n{"a": 2}',
        b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n',
        b'\xef\xbb\xbf{"a": 1}\n\xef\xbb\xbf{"a": 2}\n',
    ],
    ids=["plain", "crlf", "no last newline", "bom", "two files with a bom, joined"],
)
def test_dialects_are_read(tmp_path: Path, content: bytes) -> None:
    assert read(tmp_path, content) == [(1, {"a": 1}), (2, {"a": 2})]


def test_blank_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    assert read(tmp_path, b'\n  \n{"a": 1}\n\n{"a": 2}\n\n') == [(3, {"a": 1}), (5, {"a": 2})]


def test_a_separator_that_unicode_takes_for_a_line_end_stays_in_its_text(tmp_path: Path) -> None:
    row = {"a": "x\u2028y\x85z"}
    content = json.dumps(row, ensure_ascii=False).encode()
    assert read(tmp_path, content) == [(1, row)]


def test_compressed_lines_are_read(tmp_path: Path) -> None:
    assert read(tmp_path, gzip.compress(b'{"a": 1}\n'), "LOG.JSONL.GZ") == [(1, {"a": 1})]


def test_a_pair_of_surrogates_is_a_character(tmp_path: Path) -> None:
    assert read(tmp_path, b'{"a": "\\ud83d\\uDE00 \\\\ud800"}') == [
        (1, {"a": "\U0001f600 \\ud800"})
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{oops", r"is not JSON: Expecting property name .* at column 2; write one object a line"),
        (b'{"a": 1} {}', "is not JSON: Extra data at column 10"),
        (b"[1, 2]", r"is not an object: \[1, 2\]; write one object a line"),
        (b'{"a": "\xe9"}', "is not UTF-8: invalid continuation byte at byte 8; save the file as"),
        (b'{"a": {"b": "x\\udfff"}}', r"holds '\\udfff', half of a character; write all of it"),
        (b'{"\\uD800": 1}', r"holds '\\ud800', half of a character"),
        (b'{"a": ' + b"[" * 99_999, "is nested too deeply; write flat objects"),
        (b'{"a": ' + b"1" * 9999 + b"}", "has a number of thousands of digits; write a text"),
        (b'{"a": {"b": 1, "c": 1, "c": 1}}', "has the key 'c' twice; keep one of them"),
    ],
    ids=["JSON", "two", "list", "Latin-1", "surrogate", "key", "nesting", "digits", "twice"],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, words: str) -> None:
    with pytest.raises(DataError, match=rf"log\.jsonl, line 3 {words}"):
        read(tmp_path, b'{"a": 1}\n\n' + line + b"\n")


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_a_constant_that_json_lacks_is_named(tmp_path: Path, constant: str) -> None:
    words = rf"line 1 is not JSON: {constant} is no number of JSON at column \d+; write one object"
    with pytest.raises(DataError, match=words):
        read(tmp_path, b'{"a": %s}' % constant.encode())


def test_an_open_file_is_read_by_its_name_and_left_open() -> None:
    with io.BytesIO(b'{"a": 1}\n\n{"a": 2}\n{') as file:
        rows = read_json_lines(file, "stdin")
        assert [next(rows), next(rows)] == [(1, {"a": 1}), (3, {"a": 2})]
        with pytest.raises(DataError, match=r"^stdin, line 4 is not JSON"):
            next(rows)
        assert not file.closed


def test_a_file_of_utf_16_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1 is not UTF-8: invalid start byte at byte 1"):
        read(tmp_path, '{"a": 1}\n'.encode("utf-16"))


LINES = b"".join(b'{"a": %d}\n' % zlib.crc32(b"%d" % number) for number in range(50_000))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": 1}\n', "can't be read: Not a gzipped file"),
        (gzip.compress(LINES)[:-9], r"can't be read after line \d{4,}: Compressed file ended"),
        (gzip.compress(LINES)[:99] + b"\xff" * 99, "can't be read: Error -3 while decompressing"),
        (gzip.compress(LINES)[:-8] + b"\0" * 8, r"can't be read after line \d{4,}: CRC check fail"),
    ],
    ids=["not gzip", "cut off", "damaged", "another digest"],
)
def test_a_damaged_gzip_file_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(DataError, match=rf"log\.jsonl\.gz {words}.*; check that it is complete"):
        read(tmp_path, content, "log.jsonl.gz")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl can't be read: No such file or directory"):
        list(read_json_lines(tmp_path / "none.jsonl"))
