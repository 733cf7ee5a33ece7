"""Values from outside: shown in one short line, and named where their own methods fail."""

import enum
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import polars as pl
import pytest

from ranklet import InputError, Ranker
from ranklet.values import bounded, choice, flag, mapping, plain, reading, show, whole

SOME = ["i00001", "i00002"]


def deep(levels: int) -> list[Any]:
    """Return a list inside of many lists."""
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


class Failing:
    """An object of which every method fails."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"{name} fails")

    def _fail(self, *_: object) -> Any:
        raise ZeroDivisionError("made to fail")

    __repr__ = __bool__ = __len__ = __iter__ = __eq__ = __hash__ = __float__ = _fail
    __index__ = __lt__ = __le__ = __gt__ = __contains__ = __getitem__ = __array__ = _fail


class FailingText(str):
    """A text of which the methods that compare fail."""

    __eq__ = __hash__ = __str__ = __repr__ = Failing.__repr__  # type: ignore[assignment]


class FailingNumber(int):
    """A number of which the methods that compare fail."""

    __eq__ = __hash__ = __lt__ = __le__ = __int__ = Failing.__repr__  # type: ignore[assignment]


class Colour(str, enum.Enum):
    """A text that is a member of an enumeration."""

    RED = "red"


SHOWN: dict[str, tuple[Any, str]] = {
    "text": ("a\nb", "'a\\nb'"),
    "numpy": (np.int64(5), "5"),
    "long": ("x" * 1000, "'" + "x" * 79 + "... (1,002 characters)"),
    "digits": (10**5000, "an integer of thousands of digits"),
    "deep": (deep(5000), "a list"),
    "failing": (Failing(), "a Failing"),
    "lines": (np.zeros((2, 2)), "array([[0., 0.], [0., 0.]])"),
    "half a character": ("\ud800", "'\\ud800'"),
    "a duration without a unit": (np.timedelta64(50), "np.timedelta64(50)"),
}


@pytest.mark.parametrize(("value", "expected"), SHOWN.values(), ids=SHOWN)
def test_any_value_is_shown_in_one_short_line(value: Any, expected: str) -> None:
    assert show(value) == expected


PLAIN: dict[str, tuple[Any, Any]] = {
    "numpy text": (np.str_("a"), "a"),
    "member of texts": (Colour.RED, "red"),
    "text that fails": (FailingText("a"), "a"),
    "number that fails": (FailingNumber(5), 5),
    "numpy integer": (np.uint64(2**64 - 1), 2**64 - 1),
    "numpy float": (np.float32(0.5), 0.5),
    "numpy truth value": (np.bool_(True), True),
    "truth value": (True, True),
}


@pytest.mark.parametrize(("value", "expected"), PLAIN.values(), ids=PLAIN)
def test_texts_and_numbers_become_those_of_python(value: Any, expected: Any) -> None:
    found = plain(value)
    assert type(found) is type(expected)
    assert found == expected


@pytest.mark.parametrize(
    "value", [Decimal(1), Fraction(1), 1j, [1], np.timedelta64(1, "s")], ids=type
)
def test_all_else_stays_what_it_is(value: Any) -> None:
    assert plain(value) is value


def test_what_methods_of_a_value_raise_names_the_value() -> None:
    with pytest.raises(InputError, match=r"^boost can't be read: KeyError: 'x'$"), reading("boost"):
        raise KeyError("x")
    with pytest.raises(InputError, match=r"^where is wrong$"), reading("boost"):
        raise InputError("where is wrong")
    with pytest.raises(KeyboardInterrupt), reading("boost"):
        raise KeyboardInterrupt


ODD: dict[str, Any] = {
    "array": np.array(["skip", "error"]),
    "series": pl.Series([1, 2]),
    "digits": 10**5000,
    "deep": deep(5000),
    "failing": Failing(),
    "failing text": FailingText("x"),
    "duration": np.timedelta64(50),
    "decimal": Decimal("nan"),
    "complex": 1j,
    "bytes": memoryview(b"1"),
}
OPTIONS: dict[str, Callable[[Ranker, Any], object]] = {
    "unknown": lambda r, v: r.rank(SOME, unknown=v),
    "unknown of a filter": lambda r, v: r.eligible(SOME, unknown=v),
    "exclude_seen": lambda r, v: r.rank(SOME, exclude_seen=v),
    "cold": lambda r, v: r.rank(SOME, cold=v),
    "skip": lambda r, v: r.rank(SOME, skip=v),
    "diversity": lambda r, v: r.rank(SOME, diversity=v),
    "min_score": lambda r, v: r.rank(SOME, min_score=v),
    "penalty": lambda r, v: r.rank(SOME, seen_recently=SOME, penalty=v),
    "at_most": lambda r, v: r.rank(SOME, at_most=v),
    "where": lambda r, v: r.rank(SOME, where=v),
    "boost": lambda r, v: r.rank(SOME, boost=v),
    "eligible": lambda r, v: r.rank(SOME, eligible=v),
    "trending": lambda r, v: r.popular(trending=v),
    "provider": lambda r, v: Ranker.load(r.path, provider=v),
    "threads": lambda r, v: Ranker.load(r.path, threads=v),
    "check_digests": lambda r, v: Ranker.load(r.path, check_digests=v),
    "warm_up": lambda r, v: Ranker.load(r.path, warm_up=v),
    "name of a filter": lambda r, v: r.define(v, SOME),
    "like": lambda r, v: r.add_items({"item_id": ["new"]}, like=v),
    "bias": lambda r, v: r.add_items({"item_id": ["new"]}, like={"new": SOME}, bias=v),
    "title": lambda r, v: r.retitle({SOME[0]: v}),
    "place of an explanation": lambda r, v: r.rank(SOME, explain=True).explanation.reasons(v),  # type: ignore[union-attr]
}
# Those that can be used: a large number, and a text that says what it is.
GOOD = [("exclude_seen", "digits"), ("trending", "digits"), ("skip", "digits")]
GOOD += [("check_digests", "digits"), ("warm_up", "digits")]
GOOD += [("name of a filter", "failing text"), ("title", "failing text")]


@pytest.mark.parametrize("value", ODD, ids=str)
@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_an_odd_option_is_refused_by_name(tiny_ranker: Ranker, option: str, value: str) -> None:
    if (option, value) not in GOOD:
        with pytest.raises(InputError) as caught:
            OPTIONS[option](tiny_ranker, ODD[value])
        assert 5 < len(str(caught.value)) < 500


@pytest.mark.parametrize(("option", "value"), GOOD, ids=str)
def test_a_value_is_taken_for_what_its_type_says(ranker: Ranker, option: str, value: str) -> None:
    OPTIONS[option](ranker, ODD[value])


def gone() -> Iterator[str]:
    """Yield an event; the next one can't be had."""
    yield SOME[0]
    raise OSError("the source is gone")


LISTS: dict[str, tuple[Callable[[], Any], str]] = {
    "deep": (lambda: [deep(5000)], r"history\[0\] is a list \(list\)"),
    "duration": (lambda: [np.timedelta64(50)], r"history\[0\] is np.timedelta64\(50\) "),
    "128 bits": (lambda: pl.Series([50], dtype=pl.Int128), "history "),
    "a source that fails": (gone, "history can't be read: OSError: the source is gone"),
    "failing": (Failing, "history can't be read: "),
    "failing ids": (lambda: [Failing()], r"history\[0\] is a Failing \(Failing\)"),
    "structured": (lambda: np.array([(1, 2.0)], dtype="i4,f8"), "history has dtype "),
}


@pytest.mark.parametrize(("make", "message"), LISTS.values(), ids=LISTS)
def test_an_odd_history_is_refused_by_name(
    tiny_ranker: Ranker, number_ranker: Ranker, make: Callable[[], Any], message: str
) -> None:
    for ranker in (tiny_ranker, number_ranker):
        with pytest.raises(InputError, match=f"^{message}"):
            ranker.rank(make())


def test_texts_of_other_types_count_as_their_text(tiny_ranker: Ranker) -> None:
    expected = tiny_ranker.rank(SOME)
    for history in ([np.str_(SOME[0]), FailingText(SOME[1])], iter(SOME)):
        assert tiny_ranker.rank(history).items == expected.items


def test_a_filter_of_a_generator_counts_items_that_are_added_later(ranker: Ranker) -> None:
    ranker.define("new", (item for item in [*SOME, "later"]))
    ranker.add_items({"item_id": ["later"]}, like={"later": SOME}, bias=10.0)
    assert "later" in ranker.rank(SOME, where="new").items


def test_a_kept_user_of_odd_texts_is_saved(ranker: Ranker) -> None:
    user = ranker.user([FailingText("nowhere"), SOME[0]])
    assert ranker.user().load(user.save()).unknown == 1


PATHS: dict[str, tuple[Any, str]] = {
    "number": (5, "path is 5; pass the path of a folder"),
    "bytes": (b"x", "path is b'x'; pass the path of a folder"),
    "none": (None, "path is None; pass"),
    "too long": ("x" * 100_000, "path is 'xxx.*, which is too long for a path"),
}


@pytest.mark.parametrize(("path", "message"), PATHS.values(), ids=PATHS)
def test_what_is_no_path_is_named(path: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        Ranker.load(path)


def test_checks_of_options_name_the_value_and_what_is_allowed() -> None:
    assert whole(np.int8(3), "n", 1) == 3
    assert flag(np.bool_(True), "f") is True
    assert choice(Colour.RED, "c", ("red", "blue")) == "red"
    assert bounded(np.float16(0.5), "b", 1) == 0.5
    assert mapping({np.str_("a"): 1}, "m", "pass a dict") == {"a": 1}
    with pytest.raises(InputError, match=r"^n must be a whole number from 1 to 4, got 5$"):
        whole(5, "n", 1, 4)
    with pytest.raises(InputError, match=r"^c must be 'a', 'b' or 'c', got 1$"):
        choice(1, "c", ("a", "b", "c"))
    with pytest.raises(InputError, match=r"^m has the key \(\); pass a dict$"):
        mapping({(): 1}, "m", "pass a dict")
