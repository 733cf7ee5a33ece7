"""Input validation: each check of a caller's value once, with one message.

The methods of a value may raise anything, and lie. So its type alone says what it is, it becomes a
value of Python's or numpy's own types, and what its methods raise meanwhile is an ``InputError``.
"""

import operator
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, TracebackType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ranklet.errors import InputError, RankletError

Ids: TypeAlias = Any  # a sequence or array of ids: list, tuple, numpy, Arrow, polars, pandas
IdLists: TypeAlias = Sequence[Ids] | NDArray[Any]  # one sequence of ids a row
Times: TypeAlias = Sequence[int] | NDArray[np.int64]

LONGEST_PATH = 4096  # characters


class reading:  # noqa: N801 (used like a function)
    """Where the methods of a caller's value run: what they raise names the value."""

    def __init__(self, name: str) -> None:
        """Call the value ``name``."""
        self._name = name

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(
        self, _: type | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        """Raise an InputError from any error but one of ranklet."""
        if isinstance(error, Exception) and not isinstance(error, RankletError):
            raise InputError(f"{self._name} can't be read: {reason(error)}") from error


def show(value: object) -> str:
    """Return a value as a message quotes it, in one line, cut if it is long; it never fails."""
    try:
        return _one_line(repr(plain(value)), 100)
    except Exception:  # of its methods, or too deep; Python writes at most 4,300 digits
        return "an integer of thousands of digits" if type(value) is int else f"a {kind(value)}"


def kind(value: object) -> str:
    """Return the name of a type as a message shows it."""
    return type(value).__name__[:80]


def reason(error: BaseException) -> str:
    """Return what an error of others says, in one line, cut if it is long; it never fails."""
    try:
        return _one_line(f"{kind(error)}: {error}".removesuffix(": "), 200)
    except Exception:  # of its methods
        return kind(error)


def _one_line(text: str, most: int) -> str:
    shown = text if len(text) <= most else text[: most * 4 // 5]
    if not shown.isprintable():
        shown = " ".join("".join(c if c.isprintable() else " " for c in shown).split())
    return shown if len(text) <= most else f"{shown}... ({len(text):,} characters)"


def plain(value: Any) -> Any:  # noqa: ANN401 (from outside)
    """Return a text, number or truth value as one of Python's own; anything else as it is."""
    of = type(value)
    if issubclass(of, str):
        return str.__str__(value)
    if issubclass(of, np.bool_):
        return bool(value)
    if issubclass(of, int) and of is not bool:
        return int.__int__(value)
    if issubclass(of, np.integer) and not issubclass(of, np.timedelta64):
        return int(value)
    return float(value) if issubclass(of, np.floating) else value


def flat(ids: Ids, name: str) -> list[Any] | NDArray[Any]:
    """Return a flat sequence as a list or an array of integers; refuse all else by name."""
    of = type(ids)
    if of is list:
        return ids  # type: ignore[no-any-return]
    if issubclass(of, str | bytes | bytearray):
        raise InputError(f"{name} is the text {show(ids)}; pass a list of ids, like [{show(ids)}]")
    if issubclass(of, dict | set | frozenset):
        raise InputError(f"{name} is a {kind(ids)}, which has no order; pass a list")
    with reading(name):
        if hasattr(ids, "__array__"):
            return _array(ids, name)
        try:
            return list(ids)
        except TypeError as error:
            raise InputError(f"{name} is {show(ids)}; pass a list of item ids") from error


def _array(ids: Ids, name: str) -> list[Any] | NDArray[Any]:
    if np.ma.is_masked(ids):
        raise InputError(f"{name} has masked values; pass the others only")
    array = np.asarray(ids)
    if array.ndim != 1:
        raise InputError(f"{name} has shape {array.shape}; it must be one-dimensional")
    if array.dtype.kind not in "iuUOT" and array.size:  # an empty array is float by default
        raise InputError(f"{name} has dtype {array.dtype}; item ids are integers or text")
    return array if array.dtype.kind in "iu" else array.tolist()


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


def listed(ids: Ids, name: str) -> list[Any] | NDArray[Any]:
    """Return ids as ``flat`` does, also of a set: their order does not matter."""
    if not issubclass(type(ids), set | frozenset):
        return flat(ids, name)
    with reading(name):
        return list(ids)


def integers(items: list[Any], name: str, why: str) -> NDArray[np.int64]:
    """Return a list of integers as int64; ``why`` explains why other types are refused."""
    strange = {of for of in set(map(type, items)) if not _is_integer(of)}
    if strange:
        place = next(place for place, item in enumerate(items) if type(item) in strange)
        raise InputError(f"{name}[{place}] is {show(items[place])} ({kind(items[place])}); {why}")
    with reading(name):
        numbers = list(map(int, items))
    try:
        return np.array(numbers, dtype=np.int64)
    except OverflowError as error:
        place = next(p for p, n in enumerate(numbers) if not -(2**63) <= n < 2**63)
        raise InputError(
            f"{name}[{place}] is {show(numbers[place])}, which is outside int64"
        ) from error


def _is_integer(of: type) -> bool:
    """Exclude truth values and durations, which are integers to Python and to numpy."""
    return issubclass(of, int | np.integer) and not issubclass(of, bool | np.timedelta64)


def check_k(k: Any) -> int:  # noqa: ANN401 (anything may come from outside)
    """Return k, the number of items of an answer, as an integer."""
    number = _index(k)
    if number is None:
        raise InputError(f"k must be a positive integer, got {show(k)}")
    if number < 1:
        raise InputError(f"k must be at least 1, got {show(number)}")
    return number


def _index(value: Any) -> int | None:  # noqa: ANN401 (from outside)
    """Return a whole number, None for truth values and all else."""
    if issubclass(type(value), bool | np.bool_ | np.timedelta64):
        return None
    try:
        return int.__int__(operator.index(value))
    except Exception:  # of its methods
        return None


def bounded(value: Any, name: str, largest: float, least: float | None = None) -> float:  # noqa: ANN401
    """Return a finite number from ``least``, by default -``largest``, to ``largest``."""
    low, number = -largest if least is None else least, plain(value)
    if type(number) not in (int, float) or not low <= number <= largest:
        raise InputError(f"{name} must be a number from {low:g} to {largest:g}, got {show(value)}")
    return float(number)


def whole(value: Any, name: str, least: int, most: int | None = None) -> int:  # noqa: ANN401
    """Return a whole number of at least ``least``, as for k, and at most ``most``."""
    number = _index(value)
    if number is None or number < least or (most is not None and number > most):
        until = "on" if most is None else f"to {most}"
        raise InputError(f"{name} must be a whole number from {least} {until}, got {show(value)}")
    return number


def flag(value: Any, name: str) -> bool:  # noqa: ANN401 (anything may come from outside)
    """Return a truth value; refuse what is neither true nor false, such as a list of items."""
    if type(value) is bool:
        return value
    truth = plain(value)
    if type(truth) not in (bool, int):
        raise InputError(f"{name} must be True or False, got {show(value)}")
    return bool(truth)


def choice(value: Any, name: str, choices: Sequence[str]) -> Any:  # noqa: ANN401
    """Return one of some texts."""
    text = plain(value)
    if type(text) is not str or text not in choices:
        *others, last = map(repr, choices)
        raise InputError(f"{name} must be {', '.join(others)} or {last}, got {show(value)}")
    return text


def mapping(value: Any, name: str, usage: str) -> dict[Any, Any]:  # noqa: ANN401
    """Return a mapping whose keys are texts, whole numbers or None; ``usage`` says what to pass."""
    if not issubclass(type(value), Mapping):
        raise InputError(f"{name} is {show(value)}; {usage}")
    with reading(name):
        pairs = [(plain(key), part) for key, part in value.items()]
        if strange := [key for key, _ in pairs if type(key) not in (str, int, NoneType)]:
            raise InputError(f"{name} has the key {show(strange[0])}; {usage}")
        return dict(pairs)


def folder_path(path: Any, name: str = "path") -> Path:  # noqa: ANN401 (from outside)
    """Return the path of a folder."""
    if not issubclass(type(path), str | os.PathLike):
        raise InputError(f"{name} is {show(path)}; pass the path of a folder")
    with reading(name):
        folder = Path(path)
        if len(str(folder)) > LONGEST_PATH:
            raise InputError(f"{name} is {show(str(folder))}, which is too long for a path")
    return folder


def lists(values: Any, name: str, count: int | None = None) -> list[Any]:  # noqa: ANN401
    """Return one value for each history, ``count`` of them if that is known."""
    if issubclass(type(values), str | bytes | dict | set | frozenset):
        raise InputError(f"{name} is a {kind(values)}; pass a list of lists of ids")
    with reading(name):
        try:
            rows = list(values)
        except TypeError as error:
            raise InputError(f"{name} is {show(values)}; pass a list of lists of ids") from error
    if count is not None and len(rows) != count:
        raise InputError(
            f"{name} has {len(rows)} lists for {count} histories: pass one for each history"
        )
    return rows
