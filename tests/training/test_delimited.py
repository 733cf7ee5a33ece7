"""Text of any dialect is read with all its rows, as the csv module reads it, or refused by row."""

import csv
import gzip
import io
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranklet.errors import DataError
from ranklet_training.data import delimited
from ranklet_training.data.delimited import Delimited
from ranklet_training.data.events import read_events

HEADER = "user_id,item_id,timestamp"
FIELDS = st.text("ab1,;\"'\n \t", max_size=5)
WANTED = ("user_id", "item_id")


def read(folder: Path, content: str | bytes, name: str = "log.csv") -> Delimited:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Delimited(path, WANTED)


def column(text: Delimited, name: str) -> list[str | None]:
    return text.read([name], {}, infer_types=False)[name].to_list()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (['15" tv', "desk", '15" tv', "x"], ['15" tv', "desk", '15" tv', "x"]),
        (['"a ""b"" c"', "desk", '"d,e"', '"f\ng"'], ['a "b" c', "desk", "d,e", "f\ng"]),
        (["5'11\"", '"desk"', 'a"b"c', '"x, ""y"""'], ["5'11\"", "desk", 'a"b"c', 'x, "y"']),
        ([' "a"', "b", "c", "d"], [' "a"', "b", "c", "d"]),
        (['""', '""""', "c", "d"], [None, '"', "c", "d"]),
    ],
    ids=["bare", "quoted", "both", "after a space", "empty"],
)
def test_no_quote_swallows_a_row(tmp_path: Path, fields: list[str], expected: list[str]) -> None:
    rows = "".join(f"u{row},{row},{row},{field}\n" for row, field in enumerate(fields))
    text = read(tmp_path, f"{HEADER},query\n{rows}")
    assert text.rows == len(fields)
    values = text.read(["query"], {}, infer_types=False)["query"].replace("", None)
    assert values.to_list() == expected
    assert column(text, "user_id") == ["u0", "u1", "u2", "u3"]


@settings(max_examples=300, deadline=None)
@given(
    rows=st.lists(st.lists(FIELDS, min_size=2, max_size=2), max_size=8),
    are_quoted=st.booleans(),
    block=st.integers(1, 40),
)
def test_rows_are_those_of_the_csv_module(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], are_quoted: bool, block: int
) -> None:
    """Text that is written without quotes where it needs them is read alike, or refused."""
    output = io.StringIO()
    if are_quoted:
        csv.writer(output, lineterminator="\n").writerows([["a", "b"], *rows])
    else:
        output.write("".join(",".join(row) + "\n" for row in [["a", "b"], *rows]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "_BLOCK", block)
        try:
            text = read(tmp_path_factory.mktemp("csv"), output.getvalue())
            found = text.read(["a", "b"], {}, infer_types=False) if text.rows else None
        except DataError:
            with pytest.raises((csv.Error, ValueError)):
                check(output.getvalue())
            return
    expected = check(output.getvalue())
    assert text.rows == len(expected)
    assert (found.fill_null("").rows() if found is not None else []) == expected


def check(text: str) -> list[tuple[str, str]]:
    """Return rows of two fields by the csv module; too long rows are errors, short ones filled."""
    rows = list(csv.reader(io.StringIO(text, newline="\n"), strict=True))[1:]
    if any(len(row) > 2 for row in rows):
        raise ValueError("too many fields")
    return [(*row, *[""] * (2 - len(row))) for row in rows]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f'{HEADER}\n1,2,3\n1,"2,3\n1,2,3\n', "can't be read in row 2: unexpected end of data; a"),
        (f'{HEADER}\n1,2,3\n\n"1"x,2,3\n', "can't be read in row 2: ',' expected after '\"'"),
        (f'{HEADER}\n1,"2,3\n1,2",3\n1,"2,3\n', "can't be read in row 2: unexpected end"),
        (f"{HEADER}\n1,2,3,4\n", "has 4 fields in row 1, and the header names 3: '1,2,3,4'"),
        (f'{HEADER}\n1,2,3\n1,2",3,4\n', "has 4 fields in row 2"),
        (f"{HEADER}\n1,2,3\n\0,2,3\n", "has a NUL in line 3"),
        (f"{HEADER}\n1,2,3\n".encode("utf-16-le"), "has a NUL in line 1; save it as plain UTF-8"),
        (f"{HEADER}\n1,2,3\né,2,3\n".encode("latin-1"), "is not UTF-8 in line 3; save it as UTF-8"),
        (f'{HEADER}\n1,2"\r4,3\n', "can't be read in row 1: new-line character seen"),
        (f"{HEADER}\n" + "x" * 10**5 + ",2,3,4\n", r"has 4 fields in row 1, .*100,008 characters"),
    ],
)
def test_what_can_not_be_read_is_named_by_row(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        read_events(path)
    assert len(str(caught.value)) < 600


def test_line_breaks_inside_quotes_are_told(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f'{HEADER},query\n1,2,3,"\n1,2,4,"\n1,2,5,"a\nb"\n1,2,6,""')
    events = read_events(path)
    assert events.rows_read == 3
    assert events.notes[0].endswith("; 2 line breaks are inside quotes and end no row")


def test_a_short_row_has_no_value_in_the_columns_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f"{HEADER},query\n1,2,3,a\n1,2,4\n1,2\n1,2,5,b\n")
    events = read_events(path)
    assert events.frame["timestamp"].to_list() == [3, 4, 5]
    assert events.dropped == {"rows without timestamp, first row 3: None": 1}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("last", ["", "END"], ids=["unended", "ended"])
def test_line_ends_and_encodings_do_not_matter(
    tmp_path: Path, encoding: str, end: str, last: str
) -> None:
    lines = f"{HEADER}\né,1,2\nb,'x',3{last}".replace("END", "\n").replace("\n", end)
    text = read(tmp_path, lines.encode(encoding))
    assert text.rows == 2
    assert column(text, "user_id") == ["é", "b"]
    assert column(text, "timestamp") == ["2", "3"]


@pytest.mark.parametrize("separator", [*",;\t|"], ids=["comma", "semicolon", "tab", "bar"])
@pytest.mark.parametrize("name", ["log.csv", "log.tsv", "LOG.CSV"])
@pytest.mark.parametrize("said", [True, False], ids=["said", "found"])
def test_the_separator_is_found(tmp_path: Path, separator: str, name: str, said: bool) -> None:
    line = f"sep={separator}\n" if said else ""
    other = "a;b,c" if separator in "\t|" else "a|b\tc"
    content = f"{line}{HEADER},{other}\n1,2,3,4\n".replace(",", separator)
    text = read(tmp_path, content, name)
    assert text.separator == separator
    assert column(text, "timestamp") == ["3"]


def test_the_header_with_the_wanted_columns_decides(tmp_path: Path) -> None:
    text = read(tmp_path, "user_id;item_id;price, in cents, with tax, at night\n1;2;3\n")
    assert text.header == ["user_id", "item_id", "price, in cents, with tax, at night"]
    assert column(read(tmp_path, "item_id\na;b\n"), "item_id") == ["a;b"]
    assert column(read(tmp_path, "item_id\na,b\n", "log.tsv"), "item_id") == ["a,b"]


def test_compressed_text_is_read(tmp_path: Path) -> None:
    content = gzip.compress(f"{HEADER}\n1,2,3\n".encode())
    for name in ("log.csv.gz", "log.tsv.gz", "LOG.CSV.GZ"):
        assert column(read(tmp_path, content + content, name), "item_id")[0] == "2"


def test_decimal_commas_are_named(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id;item_id;timestamp;rating\n1;2;3;4,5\n1;3;4;5,0\n")
    (note,) = (note for note in read_events(path).notes if note.startswith("rating"))
    assert "'rating' is not a number in row 1: '4,5'" in note
    assert "like 4 or 4.5" in note


def test_rows_that_polars_would_lose_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = read(tmp_path, f"{HEADER}\n1,2,3\n1,2,3\n")
    monkeypatch.setattr(pl, "read_csv", lambda *_, **__: pl.DataFrame({"user_id": ["1"]}))
    with pytest.raises(DataError, match="has 2 rows, but polars reads 1"):
        column(text, "user_id")
