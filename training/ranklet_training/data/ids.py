"""Ids of users and items: int64 or text, without loss."""

from typing import Literal, get_args

import polars as pl

from ranklet.errors import DataError
from ranklet.values import show
from ranklet_training.data.columns import TEXT, show_type, whole_numbers, without_missing
from ranklet_training.data.tables import refuse

IdType = Literal["auto", "int64", "string"]

_CANONICAL_INTEGER = r"^(0|-?[1-9][0-9]*)$"
_INVISIBLE = r"\p{Cf}"  # such as a zero-width space or a byte order mark
_LEADING_ZEROS = r"^0+([0-9]+)$"
_WHOLE_FLOAT = r"^(-?[0-9]+)\.0+$"  # how pandas writes integers of a column with a missing value


def check_choice(name: str, value: str, choices: object) -> None:
    """Refuse a value that is none of the choices of a Literal."""
    if value not in get_args(choices):
        raise DataError(f"{name} {value!r} is unknown; choose from {', '.join(get_args(choices))}")


def read_ids(
    values: pl.Series, label: str, id_type: IdType = "auto", is_text: bool = False
) -> pl.Series:
    """Return ids as int64 or text, without loss; see ``parse_ids``. Missing ids are refused."""
    missing = without_missing(values).is_null()
    refuse(missing, values, label, "has no value", "fill it in or remove the row")
    return parse_ids(values, label, id_type, is_text)


def parse_ids(values: pl.Series, label: str, id_type: IdType, is_text: bool) -> pl.Series:
    """Return ids as int64 or text, without loss; missing ones are null.

    ``auto`` keeps the type of the source. Text without a type (``is_text``) becomes int64 if each
    id is an integer in its shortest form, so "007" stays text; spaces around it do not count.
    Whole floats are integers, since pandas writes integers so beside a missing one.

    Raises:
        DataError: An id is neither text nor an integer, or not of ``id_type``.
    """
    check_choice("id_type", id_type, IdType)
    values = without_missing(values)
    if values.dtype == pl.Null:
        return values.cast(pl.Int64)
    if values.dtype.is_numeric():
        numbers, lost = whole_numbers(values)
        advice = "write the ids as text, or as integers (floats are exact up to 2^53)"
        problem = "exceeds int64" if values.dtype.is_integer() else "is no integer"
        refuse(lost, values, label, problem, advice)
        return numbers.cast(pl.String) if id_type == "string" else numbers
    if values.dtype != pl.String:
        example = show(values.drop_nulls().head(1).to_list())
        raise DataError(
            f"{label} holds {show_type(values.dtype)}, such as {example}; ids are integers or "
            "text: convert the column"
        )
    if id_type == "string" or (id_type == "auto" and not is_text):
        return values
    shortest = values.str.strip_chars()
    if _are_whole_floats(shortest).any():
        shortest = shortest.str.replace(_WHOLE_FLOAT, "$1")
    numbers = shortest.cast(pl.Int64, strict=False)
    no_number = values.is_not_null() & (
        numbers.is_null() | ~shortest.str.contains(_CANONICAL_INTEGER)
    )
    if id_type == "int64":
        refuse(no_number, values, label, "is not an int64 id", "read the ids as text (string)")
    return values if no_number.any() else numbers


def _are_whole_floats(texts: pl.Series) -> pl.Series:
    points = texts.str.contains(".", literal=True)  # quick, and as a rule there are none
    return points & texts.str.contains(_WHOLE_FLOAT) if points.any() else points


def describe_ids(raw: pl.Series, ids: pl.Series, name: str) -> list[str]:
    """Return notes on ids that were read as other ids.

    ``raw`` is the column before ``parse_ids``, ``name`` is what the ids are called.
    """
    if ids.dtype == pl.String:
        return []
    if raw.dtype.is_float():
        return [f"{name}: ids are floats, read as integers (12.0 as 12)"]
    if raw.dtype in TEXT and (whole := _are_whole_floats(raw.cast(pl.String))).any():
        example = raw.filter(whole)[0]
        return [f"{name}: {whole.sum():,} ids such as {show(example)} are read as integers"]
    return []


def describe_similar(ids: pl.Series, name: str) -> list[str]:
    """Return a note on text ids that look like others; ``name`` is what the ids are called."""
    unique = ids.drop_nulls().unique().sort()
    plain = unique.str.normalize("NFKC").str.replace_all(_INVISIBLE, "").str.strip_chars()
    plain = plain.str.to_lowercase().str.replace(_WHOLE_FLOAT, "$1")
    plain = plain.str.replace(_LEADING_ZEROS, "$1")
    alike = plain.is_duplicated()
    if not alike.any():
        return []
    first = unique.filter(plain == plain.filter(alike)[0])
    return [
        f"{name}: {alike.sum():,} ids differ from others only in case, spaces, leading zeros, "
        f"'.0' or Unicode form, such as {show(first[0])} and {show(first[1])}; they stay "
        "different ids"
    ]
