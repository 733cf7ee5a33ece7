"""Rows of JSON lines: no number loses digits, and ids have one type."""

from collections.abc import Collection, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from ranklet.attribute_values import MISSING
from ranklet.errors import DataError
from ranklet.files.json_lines import read_json_lines
from ranklet.values import show
from ranklet_training.data.columns import EXACT

FEW_DIGITS = 16  # with the point: any of them is a float64 of its own


def _plain(value: Any) -> Any:  # noqa: ANN401 (any value of JSON)
    """Return None for a missing id, and an integer for a whole float, as pandas may write it."""
    if isinstance(value, str) and value.strip() in MISSING:
        return None
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) <= EXACT
    return int(value) if is_whole else value


def _write_out(rows: list[dict[str, Any]], long: set[str]) -> None:
    """Make all numbers text, as in a csv file, where a column has some of too many digits."""
    cells = ((name, value) for row in rows for name, value in row.items())
    for name in {name for name, value in cells if isinstance(value, str) and value in long}:
        for row in rows:
            if type(value := row.get(name)) in (int, float):
                row[name] = repr(value)


def _parse_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of JSON lines, in which no number loses digits."""
    long = set[str]()

    def number(text: str) -> float | str:
        """Return a number, or as text one of more digits than float64 keeps."""
        value = float(text)
        if len(text) <= FEW_DIGITS or Decimal(text) == Decimal(repr(value)):
            return value
        long.add(text)
        return text

    rows = [row for _, row in read_json_lines(path, parse_float=number)]
    if not rows:
        raise DataError(f"{path} holds no rows; expected one row for each event, item or request")
    if long:
        _write_out(rows, long)
    return rows


def read_rows(
    path: Path, ids: Sequence[Sequence[str]], lists: Collection[str]
) -> list[dict[str, Any]]:
    """Read JSON lines and check the types of ids, which polars would convert."""
    rows = _parse_rows(path)
    for group in ids:
        first_of: dict[type, str] = {}
        for number, row in enumerate(rows, start=1):
            for column in group:
                value = row[column] = _plain(row.get(column))
                if value is not None and isinstance(value, list) != (column in lists):
                    expected = "a list of ids" if column in lists else "text or an integer"
                    raise DataError(
                        f"{path}: column {show(column)} holds in row {number} {show(value)}, which "
                        f"is not {expected}"
                    )
                for part in value if isinstance(value, list) else [value]:
                    if part is not None and type(part) not in first_of:
                        first_of[type(part)] = f"{show(part)} in row {number}"
        if len(first_of) > 1:
            raise DataError(
                f"{path}: column {' or '.join(map(show, group))} mixes types: "
                f"{' and '.join(first_of.values())}; write all ids as text, or all as integers"
            )
    return rows
