"""Input validation: each check of a caller's value once, with one message."""

import operator
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ranklet.errors import InputError

Ids: TypeAlias = Any  # a sequence or array of ids: list, tuple, numpy, Arrow, polars, pandas
IdLists: TypeAlias = Sequence[Ids] | NDArray[Any]  # one sequence of ids a row
Times: TypeAlias = Sequence[int] | NDArray[np.int64]


def show(value: object) -> str:
    """Return a value as a message quotes it, cut if it is long."""
    try:
        text = repr(value.item() if isinstance(value, np.generic) else value)
    except ValueError:  # Python refuses to write integers of more than 4,300 digits
        return "an integer of thousands of digits"
    return text if len(text) <= 100 else f"{text[:80]}... ({len(text):,} characters)"


def flat(ids: Ids, name: str) -> list[Any] | NDArray[Any]:
    """Return a flat sequence as a list or an array of integers; refuse all else by name."""
    if isinstance(ids, list):
        return ids
    if isinstance(ids, str | bytes | bytearray):
        raise InputError(f"{name} is the text {show(ids)}; pass a list of ids, like [{show(ids)}]")
    if isinstance(ids, dict | set | frozenset):
        raise InputError(f"{name} is a {type(ids).__name__}, which has no order; pass a list")
    if hasattr(ids, "__array__"):
        if np.ma.is_masked(ids):
            raise InputError(f"{name} has masked values; pass the others only")
        try:
            array = np.asarray(ids)
        except (TypeError, ValueError, RuntimeError) as error:  # as of torch, with gradients
            raise InputError(f"{name} is no array of item ids: {error}") from error
        if array.ndim != 1:
            raise InputError(f"{name} has shape {array.shape}; it must be one-dimensional")
        if array.dtype.kind not in "iuUOT" and array.size:  # an empty array is float by default
            raise InputError(f"{name} has dtype {array.dtype}; item ids are integers or text")
        return array if array.dtype.kind in "iu" else array.tolist()
    try:
        return list(ids)
    except TypeError as error:
        raise InputError(f"{name} is {show(ids)}; pass a list of item ids") from error


def whole_numbers(values: Any, name: str) -> NDArray[np.int64]:  # noqa: ANN401 (from outside)
    """Return any flat sequence of whole numbers as int64.

    Raises:
        InputError: It is no flat sequence, or holds another type.
    """
    items = flat(values, name)
    return integers(
        items if isinstance(items, list) else items.tolist(),
        name,
        "times are whole numbers, as in the training events",
    )


def whole_number(value: Any, name: str) -> int:  # noqa: ANN401 (from outside)
    """Return a whole number of 64 bits.

    Raises:
        InputError: The value is not one.
    """
    try:
        return int(whole_numbers([value], name)[0])
    except InputError as error:
        raise InputError(str(error).replace(f"{name}[0]", name, 1)) from None


def listed(ids: Ids) -> Ids:
    """Return ids as a list if they are a set: their order does not matter."""
    return list(ids) if isinstance(ids, set | frozenset) else ids


def integers(items: list[Any], name: str, reason: str) -> NDArray[np.int64]:
    """Return a list of integers as int64; ``reason`` explains why other types are refused."""
    strange = {kind for kind in set(map(type, items)) if not _is_integer(kind)}
    if strange:
        place = next(place for place, item in enumerate(items) if type(item) in strange)
        item = items[place]
        raise InputError(f"{name}[{place}] is {show(item)} ({type(item).__name__}); {reason}")
    numbers = [int(item) for item in items]
    try:
        return np.array(numbers, dtype=np.int64)
    except OverflowError as error:
        place = next(p for p, n in enumerate(numbers) if not -(2**63) <= n < 2**63)
        raise InputError(
            f"{name}[{place}] is {show(numbers[place])}, which is outside int64"
        ) from error


def _is_integer(kind: type) -> bool:
    """Exclude truth values and durations, which are integers to Python and to numpy."""
    return issubclass(kind, int | np.integer) and not issubclass(kind, bool | np.timedelta64)


def check_k(k: Any) -> int:  # noqa: ANN401 (anything may come from outside)
    """Return k, the number of items of an answer, as an integer."""
    if isinstance(k, bool | np.bool_):
        raise InputError(f"k must be a positive integer, got {show(k)}")
    try:
        number = operator.index(k)
    except TypeError as error:
        raise InputError(f"k must be a positive integer, got {show(k)}") from error
    if number < 1:
        raise InputError(f"k must be at least 1, got {show(number)}")
    return number


def bounded(value: Any, name: str, largest: float, least: float | None = None) -> float:  # noqa: ANN401
    """Return a finite number from ``least``, by default -``largest``, to ``largest``."""
    low = -largest if least is None else least
    is_number = isinstance(value, int | float | np.integer | np.floating)
    if not is_number or isinstance(value, bool) or not low <= value <= largest:
        raise InputError(f"{name} must be a number from {low:g} to {largest:g}, got {show(value)}")
    return float(value)


def whole(value: Any, name: str, least: int) -> int:  # noqa: ANN401 (from outside)
    """Return a whole number of at least ``least``, as for k."""
    try:
        count = -1 if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        count = -1
    if count < least or count < 0:
        raise InputError(f"{name} must be a whole number from {least} on, got {show(value)}")
    return count


def check_flag(exclude_seen: Any) -> None:  # noqa: ANN401 (anything may come from outside)
    """Refuse a value that is neither true nor false, such as a list of items."""
    if exclude_seen is not False and not isinstance(exclude_seen, int | np.bool_):
        raise InputError(f"exclude_seen must be True or False, got {show(exclude_seen)}")


def lists(values: Any, name: str, count: int | None = None) -> list[Any]:  # noqa: ANN401
    """Return one value for each history, ``count`` of them if that is known."""
    if isinstance(values, str | bytes | dict | set | frozenset):
        raise InputError(f"{name} is a {type(values).__name__}; pass a list of lists of ids")
    try:
        rows = list(values)
    except TypeError as error:
        raise InputError(f"{name} is {show(values)}; pass a list of lists of ids") from error
    if count is not None and len(rows) != count:
        raise InputError(
            f"{name} has {len(rows)} lists for {count} histories: pass one for each history"
        )
    return rows
