"""Odd values: of every type that a caller may pass by mistake, and objects that lie or raise."""

import datetime
import enum
import itertools
from array import array
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

BASES: tuple[type, ...] = (object, str, int, float, list, tuple, dict, bytes, np.ndarray)
ERRORS = (ValueError, RuntimeError, KeyError, ZeroDivisionError, AttributeError, MemoryError)
SPECIAL = (
    *("__repr__", "__str__", "__bool__", "__len__", "__iter__", "__getitem__", "__contains__"),
    *("__eq__", "__hash__", "__lt__", "__le__", "__gt__", "__index__", "__int__", "__float__"),
    *("__array__", "__fspath__", "__format__", "__length_hint__", "__getattr__", "__class__"),
    *("items", "keys", "get", "tolist", "to_list", "to_pylist", "columns", "dtype", "shape"),
)
LIES: tuple[object, ...] = (None, -1, 2**62, "text", 1.5, NotImplemented, [[]], np.zeros(2))


def hostile(rng: np.random.Generator) -> object:
    """Return an object of which some methods raise or lie."""
    base = BASES[rng.integers(len(BASES))]
    methods: dict[str, Any] = {}
    for name in rng.choice(SPECIAL, rng.integers(1, 4), replace=False).tolist():
        methods[name] = _method(rng, endless=name == "__getitem__")
    if rng.integers(4) == 0:
        methods["__class__"] = property(lambda _: (str, int, list, dict)[rng.integers(4)])
    if "__eq__" in methods:
        methods.setdefault("__hash__", lambda _: 0)
    kind: Any = type("Hostile", (base,), methods)
    return kind(()) if base is np.ndarray else kind()


def _method(rng: np.random.Generator, *, endless: bool) -> Callable[..., Any]:
    """Return a method that raises or lies; ``endless``: a lie would never end."""
    error, lie = ERRORS[rng.integers(len(ERRORS))], LIES[rng.integers(len(LIES))]
    is_error = endless or bool(rng.integers(2))

    def method(*_: object, **__: object) -> object:
        if is_error:
            raise error("made to fail")
        return lie

    return method


def deep(value: object, levels: int = 5000) -> object:
    """Return a value inside many lists."""
    for _ in range(levels):
        value = [value]
    return value


def deep_dict(levels: int = 5000) -> object:
    """Return a dict inside many dicts."""
    value: object = {}
    for _ in range(levels):
        value = {"a": value}
    return value


def endless_self() -> list[Any]:
    """Return a list that holds itself."""
    value: list[Any] = []
    value.append(value)
    return value


def failing() -> Iterator[str]:
    """Yield one id, then fail."""
    yield "1"
    raise OSError("the source of the events is gone")


class Text(str):
    """A subclass of text."""


class Colour(str, enum.Enum):
    """A text that is a member of an enumeration."""

    RED = "1"


class Count(enum.IntEnum):
    """A number that is a member of an enumeration."""

    ONE = 1


# Each call makes the value anew: generators can be read once.
PLAIN: tuple[Callable[[], Any], ...] = (
    *(lambda v=v: v for v in (None, True, False, 0, 1, -1, 2, 10, 2**31, 2**63, 2**64, -(2**63))),
    *(lambda v=v: v for v in (10**5000, -(10**5000), 0.0, 0.5, 1.0, -1.5, 1e308, 5e-324)),
    *(lambda v=v: v for v in (float("nan"), float("inf"), -float("inf"), 1j)),
    *(lambda v=v: v for v in ("", "1", "50", "x", "!", "!x", "\0", "a\ud800", "x" * 100_000)),
    *(lambda v=v: v for v in ("skip", "error", "cpu", "popular", "é", "e\u0301", "007", " 1 ")),
    *(lambda v=v: v for v in (b"", b"1", b"\xff", bytearray(b"1"), memoryview(b"12"))),
    *(lambda v=v: v for v in ([], (), {}, set(), frozenset(), ["1"], ("1", "2"), {"1"}, {"1": 1})),
    *(lambda v=v: v for v in ([None], [[]], [["1"]], [1], ["1", 2], [True], [1.0], {None: 1})),
    *(lambda v=v: v for v in ([{}], [{"item_id": "new"}], {"item_id": ["new"]}, {1: 2}, {(): []})),
    *(lambda v=v: v for v in ([("x", 1)], [({}, 1.0)], (1, 2), (None, None), ("a", "b", "c"))),
    *(lambda v=v: v for v in (Decimal(1), Decimal("nan"), Fraction(1, 3), Fraction(2), range(3))),
    *(lambda v=v: v for v in (Text("1"), Colour.RED, Count.ONE, np.str_("1"), np.bytes_(b"1"))),
    *(lambda v=v: v for v in (np.int8(1), np.uint64(2**64 - 1), np.float16(1), np.bool_(True))),
    *(lambda v=v: v for v in (np.longdouble(1), np.complex64(1), np.timedelta64(50))),
    *(lambda v=v: v for v in (np.timedelta64(5, "D"), np.datetime64("2020"), np.datetime64("NaT"))),
    *(lambda v=v: v for v in (datetime.date(2020, 1, 1), datetime.timedelta(1), datetime.time())),
    *(lambda v=v: v for v in (Path("x"), object(), object, len, Ellipsis, NotImplemented, enum)),
    *(lambda v=v: v for v in (ValueError("x"), type("T" * 10_000, (), {})(), slice(3))),
    lambda: (item for item in ["1", "50"]),
    lambda: iter([]),
    lambda: map(str, [1, 2]),
    lambda: (1 / 0 for _ in range(1)),
    failing,
    lambda: itertools.repeat("1", 3),
    lambda: itertools.chain(["1"], [2]),
    deep_dict,
    endless_self,
    lambda: deep("1"),
    lambda: deep(1, 200),
    lambda: tuple([deep("1", 2000)]),
    lambda: array("q", [1, 2]),
    lambda: array("d", [1.5]),
    lambda: memoryview(np.arange(3)),
    lambda: np.array(5),
    lambda: np.array("skip"),
    lambda: np.array([]),
    lambda: np.array([1, 2], dtype=">i8"),
    lambda: np.array([1, 2**64 - 1], dtype=np.uint64),
    lambda: np.array(["1", "50"]),
    lambda: np.array([b"1"]),
    lambda: np.array(["1", None, 3], dtype=object),
    lambda: np.array([[1, 2]]),
    lambda: np.zeros((0, 3)),
    lambda: np.array([1.0, np.nan]),
    lambda: np.array([True]),
    lambda: np.array([(1, 2.0)], dtype="i4,f8"),
    lambda: np.array(["2020"], dtype="datetime64[s]"),
    lambda: np.array([5], dtype="timedelta64"),
    lambda: np.ma.array([1, 2], mask=[True, False]),
    lambda: np.ma.masked,
    lambda: np.arange(2).view(type("Mine", (np.ndarray,), {})),
    lambda: np.broadcast_to(np.array(1), (3,)),
    lambda: np.array([1, 2, 3])[::-1],
    lambda: np.arange(9724, dtype=np.float32),
    lambda: np.full(9724, np.nan),
    lambda: np.zeros((1, 64), dtype=np.float64),
    lambda: np.array([endless_self(), None], dtype=object),
    lambda: pl.Series([50]),
    lambda: pl.Series([50], dtype=pl.Int128),
    lambda: pl.Series(["50", None]),
    lambda: pl.Series([[1], [2]]),
    lambda: pl.Series([1.5, None]),
    lambda: pl.Series([Decimal(1)]),
    lambda: pl.Series([object()], dtype=pl.Object),
    lambda: pl.Series(["a"], dtype=pl.Categorical),
    lambda: pl.Series([datetime.datetime(2020, 1, 1)]),
    lambda: pl.Series([], dtype=pl.Null),
    lambda: pl.DataFrame({"item_id": ["new"], "title": [None]}),
    lambda: pl.DataFrame({"item_id": [1, 2], "x": [{"a": 1}, None]}),
    lambda: pl.DataFrame(),
    lambda: pl.LazyFrame({"item_id": ["new"]}),
    lambda: pl.col("item_id"),
)


def odd(rng: np.random.Generator) -> Any:
    """Return an odd value, perhaps inside a container."""
    value = hostile(rng) if rng.integers(3) == 0 else PLAIN[rng.integers(len(PLAIN))]()
    wrap = rng.integers(12)
    if wrap == 0:
        return [value]
    if wrap == 1:
        return ["1", value, "50"]
    if wrap == 2:
        return (value, value)
    if wrap == 3:
        return {"x": value}
    if wrap == 4:
        try:
            return {value: 1.0}
        except Exception:
            return [[value]]
    if wrap == 5:
        return [(value, 1.0)]
    if wrap == 6:
        try:
            return np.array([value, None], dtype=object)
        except Exception:
            return [value]
    return value
