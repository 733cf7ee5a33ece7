"""Values of attributes in a table of items, read alike in training, at run time and in requests."""

import datetime
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranklet.errors import InputError
from ranklet.values import kind, show

# What writers put where there is no value: SQL and JSON, Objective-C and Oracle, DBeaver, Python,
# pandas (its whole list), R, spreadsheets, MySQL and Hive, JavaScript, Ruby, C. None of them is
# likely as an id, and rows without an id are counted and shown.
MISSING = frozenset(
    (
        *("", "NULL", "Null", "null", "(null)", "(NULL)", "[NULL]", "<null>", "<NULL>", "\\N"),
        *("None", "none", "NONE", "nil", "NIL", "undefined", "Undefined", "UNDEFINED"),
        *("nan", "NaN", "NAN", "-nan", "-NaN", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
        *("NA", "<NA>", "<na>", "NaT", "N/A", "n/a", "#N/A", "#N/A N/A", "#NA", "#VALUE!", "#REF!"),
    )
)
BETWEEN = "|"  # separates categories in one text
EPOCH = datetime.date(1970, 1, 1).toordinal()


def is_missing(value: object) -> bool:
    """Return whether a cell holds no value: None, NaN, or a word for it."""
    if isinstance(value, str):
        return value.strip() in MISSING
    return value is None or (isinstance(value, float) and math.isnan(value))


def category(value: object, name: str) -> str | None:
    """Return a category as text, None if it is missing; 7, 7.0 and "7" are one category.

    Raises:
        InputError: The value is no text, number, truth value or date.
    """
    value = value.item() if isinstance(value, np.generic) else value
    if is_missing(value):
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, int | float | datetime.date):
        return str(value)
    raise InputError(
        f"{name} is {show(value)} ({kind(value)}); categories are text, numbers, truth "
        "values or dates"
    )


def single_category(value: object, name: str) -> list[str]:
    """Return a category in a list, which is empty if it is missing."""
    found = category(value, name)
    return [] if found is None else [found]


def categories(value: object, name: str) -> list[str]:
    """Return the categories of a list, or of a text that separates them by ``|``; none twice."""
    cells = value.split(BETWEEN) if isinstance(value, str) else parts(value)
    texts = [category(cell, name) for cell in cells]
    return list(dict.fromkeys(text for text in texts if text is not None))


def parts(value: object) -> list[Any]:
    """Return the parts of a list, tuple, set or array; anything else is its only part."""
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    return list(value) if isinstance(value, list | tuple | np.ndarray) else [value]


def number(value: object, name: str) -> float:
    """Return a number, NaN if it is missing; text may have a decimal comma, dates are days.

    Raises:
        InputError: The value is no finite number.
    """
    value = value.item() if isinstance(value, np.generic) else value
    if is_missing(value):
        return math.nan
    if isinstance(value, datetime.datetime):
        seconds = (value.hour * 60 + value.minute) * 60 + value.second
        return value.toordinal() - EPOCH + seconds / 86_400
    if isinstance(value, datetime.date):
        return float(value.toordinal() - EPOCH)
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise TypeError
        found = float(value.replace(",", ".") if isinstance(value, str) else value)
    except (TypeError, ValueError, OverflowError):
        found = math.inf
    if not math.isfinite(found):
        raise InputError(f"{name} is {show(value)} ({kind(value)}), not a finite number")
    return found


def text(value: object, name: str) -> str:
    """Return a text, empty if it is missing.

    Raises:
        InputError: The value is neither a text nor a number.
    """
    if is_missing(value):
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        return str(value)
    raise InputError(f"{name} is {show(value)} ({kind(value)}), not text")


def vector(value: object, name: str, width: int) -> NDArray[np.float32]:
    """Return a vector of ``width`` numbers, of zeros if it is missing.

    Raises:
        InputError: It has another width, or holds NaN or infinity.
    """
    if is_missing(value):
        return np.zeros(width, dtype=np.float32)
    try:
        array = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is {show(value)}, not a vector of numbers") from error
    if array.shape != (width,):
        raise InputError(f"{name} has shape {array.shape}; vectors of it have {width} numbers")
    if not np.isfinite(array).all():
        raise InputError(f"{name} holds NaN or infinity")
    return array


def column(values: Sequence[object] | Any, name: str, count: int) -> list[Any]:  # noqa: ANN401
    """Return a column of a caller's table as a list of ``count`` values.

    Raises:
        InputError: It is no sequence, or of another length.
    """
    is_text = isinstance(values, str | bytes | dict | set | frozenset)
    try:
        if is_text:
            raise TypeError
        found = values.to_list() if hasattr(values, "to_list") else list(values)
    except TypeError as error:
        raise InputError(f"column {show(name)} is {show(values)}; pass a list of values") from error
    if len(found) != count:
        raise InputError(f"column {show(name)} has {len(found):,} values for {count:,} items")
    return found
