"""Ids of any container and number type are found, and all that is no id is refused by name."""

import sys
import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ranklet.bundle import vocabulary as vocabulary_module
from ranklet.bundle.vocabulary import Texts, Vocabulary
from ranklet.errors import BundleError, InputError

NUMBERS = Vocabulary(np.array([-5, 1, 2, 7, 200], dtype=np.int64))
LIMITS = Vocabulary(np.array([-(2**63), -1, 0, 2**63 - 1], dtype=np.int64))
TEXTS = Vocabulary(["007", "7", "a", "\u00e9"])
INT64 = np.iinfo(np.int64)
BOTH = pytest.mark.parametrize("vocabulary", [NUMBERS, TEXTS], ids=["numbers", "texts"])


class ArrayLike:
    """An array of another library, of which numpy knows only ``__array__``."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array

    def __array__(self, dtype: object = None, copy: bool | None = None) -> NDArray[Any]:
        return self.array


INTEGER_CONTAINERS = {
    "list": [200, 3, 1],
    "tuple": (200, 3, 1),
    "generator": (number for number in (200, 3, 1)),
    "mixed integers": [np.int64(200), np.uint64(3), 1],
    "int64": np.array([200, 3, 1]),
    "uint8": np.array([200, 3, 1], dtype=np.uint8),
    "uint64": np.array([200, 3, 1], dtype=np.uint64),
    "big-endian": np.array([200, 3, 1], dtype=">i8"),
    "big-endian unsigned": np.array([200, 3, 1], dtype=">u2"),
    "non-contiguous": np.array([200, 0, 3, 0, 1, 0])[::2],
    "read-only": np.broadcast_to(np.array([200, 3, 1]), (3,)),
    "object": np.array([200, 3, 1], dtype=object),
    "polars": pl.Series([200, 3, 1]),
    "array-like": ArrayLike(np.array([200, 3, 1], dtype=np.int16)),
    "masked, nothing hidden": np.ma.array([200, 3, 1]),
}


@pytest.mark.parametrize("ids", INTEGER_CONTAINERS.values(), ids=INTEGER_CONTAINERS)
def test_integers_are_found_in_any_container(ids: Any) -> None:
    assert NUMBERS.index(ids).tolist() == [5, 0, 2]


TEXT_CONTAINERS = {
    "list": ["a", "b", "7"],
    "generator": (text for text in ("a", "b", "7")),
    "unicode array": np.array(["a", "b", "7"]),
    "numpy texts": list(np.array(["a", "b", "7"])),
    "object array": np.array(["a", "b", "7"], dtype=object),
    "polars": pl.Series(["a", "b", "7"]),
    "array-like": ArrayLike(np.array(["a", "b", "7"])),
}


@pytest.mark.parametrize("ids", TEXT_CONTAINERS.values(), ids=TEXT_CONTAINERS)
def test_texts_are_found_in_any_container(ids: Any) -> None:
    assert TEXTS.index(ids).tolist() == [3, 0, 2]


def test_one_text_is_found_alone_and_all_else_is_left_to_the_way_of_many() -> None:
    assert [TEXTS.find(item) for item in ("7", np.str_("a"), "\u00e9")] == [2, 3, 4]
    for item in ("8", "", "\ud800", 7, None, [], ["7"], b"7"):
        assert TEXTS.find(item) is None
    assert NUMBERS.find(7) is NUMBERS.find("7") is None


@BOTH
@pytest.mark.parametrize("ids", [[], (), np.array([]), pl.Series([])], ids=type)
def test_nothing_gives_nothing(vocabulary: Vocabulary, ids: Any) -> None:
    assert vocabulary.index(ids).shape == (0,)


NO_SEQUENCES = {
    "text": ("200", r"history is the text '200'; pass a list of ids, like \['200'\]"),
    "bytes": (b"200", "history is the text b'200'"),
    "bytearray": (bytearray(b"200"), "history is the text bytearray"),
    "dict": ({200: 1}, "history is a dict, which has no order"),
    "set": ({200}, "history is a set, which has no order"),
    "frozenset": (frozenset([200]), "history is a frozenset"),
    "None": (None, "history is None; pass a list"),
    "number": (200, "history is 200; pass a list"),
    "0-d": (np.array(200), r"history has shape \(\)"),
    "2-d": (np.array([[200]]), r"history has shape \(1, 1\)"),
    "3-d": (np.zeros((2, 0, 3), dtype=np.int64), r"history has shape \(2, 0, 3\)"),
    "float": (np.array([200.0]), "history has dtype float64"),
    "bool": (np.array([True]), "history has dtype bool"),
    "bytes array": (np.array([b"200"]), r"history has dtype \|S3"),
    "dates": (np.array(["2024-01-01"], dtype="M8[D]"), "history has dtype datetime64"),
    "records": (np.zeros(1, dtype=[("id", int)]), "history has dtype"),
    "masked": (np.ma.array([200, 1], mask=[True, False]), "history has masked values"),
    "polars with null": (pl.Series([200, None]), "history has dtype float64"),
}


@BOTH
@pytest.mark.parametrize(("ids", "message"), NO_SEQUENCES.values(), ids=NO_SEQUENCES)
def test_what_is_no_flat_sequence_of_ids_is_refused(
    vocabulary: Vocabulary, ids: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        vocabulary.index(ids)


# Of either type, and of one alone.
NO_IDS = [
    (None, "None (NoneType)"),
    (7.0, "7.0 (float)"),
    (float("nan"), "nan (float)"),
    (True, "True (bool)"),
    (np.bool_(True), "True (bool)"),
    (np.float32(2), "2.0 (float32)"),
    (np.timedelta64(2), "(timedelta64)"),
    (b"7", "b'7' (bytes)"),
    ([7], "[7] (list)"),
    ({}, "{} (dict)"),
    (np.array([2]), "(ndarray)"),
]
NO_INTEGERS, NO_TEXTS = [("2", "'2' (str)")], [(7, "7 (int)"), (np.int64(7), "7 (int64)")]


@pytest.mark.parametrize(
    ("vocabulary", "kind", "item", "message"),
    [
        *((NUMBERS, "integer", *row) for row in NO_IDS + NO_INTEGERS),
        *((TEXTS, "text", *row) for row in NO_IDS + NO_TEXTS),
    ],
)
def test_a_value_of_another_type_is_named_with_its_place(
    vocabulary: Vocabulary, kind: str, item: Any, message: str
) -> None:
    first = 1 if vocabulary is NUMBERS else "a"
    with pytest.raises(InputError, match=rf"^history\[1\] is .*{kind} item ids") as caught:
        vocabulary.index([first, item, None])
    assert message in str(caught.value)


@pytest.mark.parametrize("make", [np.array, pl.Series], ids=["numpy", "polars"])
def test_arrays_of_another_type_are_refused(make: Any) -> None:
    with pytest.raises(InputError, match=r"history\[0\] is 7 \(int\); .* text item ids"):
        TEXTS.index(make([7]))
    with pytest.raises(InputError, match=r"history\[0\] is '7' \(str\); .* integer item ids"):
        NUMBERS.index(make(["7"]))


def test_the_smallest_and_the_largest_integer_can_be_ids() -> None:
    assert LIMITS.index([INT64.max, INT64.min, 0, -1]).tolist() == [4, 1, 3, 2]
    assert NUMBERS.index([INT64.max, INT64.min, 0, 6]).tolist() == [0] * 4


@pytest.mark.parametrize("number", [2**63, 2**64 - 1, -(2**63) - 1, 10**30, np.uint64(2**63)])
def test_an_integer_outside_int64_is_named_and_not_wrapped(number: int) -> None:
    makes = [list]
    if 0 < number < 2**64:
        makes += [lambda ids: np.array(ids, "<u8"), lambda ids: np.array(ids, ">u8")]
    for make in makes:
        with pytest.raises(InputError, match=rf"history\[1\] is {number}, which is outside int64"):
            LIMITS.index(make([0, number]))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="older Pythons write any integer")
@BOTH
def test_an_integer_too_long_to_be_written_is_refused(vocabulary: Vocabulary) -> None:
    with pytest.raises(InputError, match=r"history\[0\] is an integer of thousands of digits"):
        vocabulary.index([10**5000])


def test_text_is_compared_exactly() -> None:
    assert TEXTS.index(["7", "007", "07"]).tolist() == [2, 1, 0]
    assert TEXTS.index(["\u00e9", unicodedata.normalize("NFD", "\u00e9")]).tolist() == [4, 0]
    for text in ("a\0", "\0a", "A", " a", "a ", "", "\ufeffa"):
        assert TEXTS.index([text]).tolist() == [0]


def test_an_id_may_hold_any_character_and_be_long() -> None:
    texts = ["", "\0", "\n", "a\0b", "x" * 2**20, "\U0001f600"]
    assert Vocabulary(texts).index(texts).tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_a_lone_surrogate_is_no_text(text: str) -> None:
    with pytest.raises(InputError, match=r"history\[1\] is '.*', which is not valid Unicode"):
        TEXTS.index(["a", text])


def test_a_message_quotes_only_the_start_of_a_long_id() -> None:
    with pytest.raises(InputError, match=r"1,048,578 characters\), which the") as caught:
        TEXTS.index(["x" * 2**20], unknown="error")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("make", [list, iter, np.array], ids=["list", "iterator", "array"])
def test_an_unknown_id_is_named_in_the_error(make: Any) -> None:
    for vocabulary, ids, value in ((TEXTS, ["a", "b"], "'b'"), (NUMBERS, [1, 3], "3")):
        with pytest.raises(InputError, match=rf"^seen\[1\] is {value}, which the catalogue does"):
            vocabulary.index(make(ids), "seen", unknown="error")


@pytest.mark.parametrize("unknown", ["raise", "", None, True])
def test_what_to_do_with_unknown_ids_is_one_of_two(unknown: Any) -> None:
    with pytest.raises(InputError, match=f"unknown must be 'skip' or 'error', got {unknown!r}"):
        TEXTS.index([], unknown=unknown)


@given(st.sets(st.integers(INT64.min, INT64.max), min_size=1), st.data())
def test_integers_are_found_as_in_a_dictionary(numbers: set[int], data: st.DataObject) -> None:
    catalogue = sorted(numbers)
    vocabulary = Vocabulary(np.array(catalogue, dtype=np.int64))
    asked = data.draw(st.lists(st.sampled_from(catalogue) | st.integers(INT64.min, INT64.max)))
    index_of = {number: index for index, number in enumerate(catalogue, 1)}
    found = vocabulary.index(asked)
    assert found.tolist() == [index_of.get(number, 0) for number in asked]
    assert vocabulary.ids(found[found > 0]) == [number for number in asked if number in numbers]


def test_typed_ids_become_what_the_catalogue_has() -> None:
    assert NUMBERS.parse(["200", "-5"]) == [200, -5]
    assert TEXTS.parse(["007", "7"]) == ["007", "7"]
    others = ["a", "", "2.0", "9" * 5000, "9" * 19, "007", "1_0", "\u0663", " 7", "+7", "-0"]
    assert NUMBERS.parse(others) == others


def test_text_that_is_no_integer_is_an_id_that_integers_lack() -> None:
    ids = [200, "NEW-7", "007", 1, "9" * 19]
    assert NUMBERS.index(ids).tolist() == [5, 0, 0, 2, 0]
    assert NUMBERS.index(["a", "b"]).tolist() == [0, 0]
    with pytest.raises(InputError, match=r"history\[1\] is 'NEW-7', which the catalogue does not"):
        NUMBERS.index(ids, unknown="error")
    with pytest.raises(InputError, match=r"history\[2\] is 2.5 \(float\); this bundle has integer"):
        NUMBERS.index([200, "x", 2.5])
    with pytest.raises(InputError, match=r"history\[1\] is '7' \(str\); this bundle has integer"):
        NUMBERS.index(["x", "7"])


# Texts that stay in their file


def texts_of(ids: list[str]) -> Texts:
    """Return sorted ids as one blob."""
    encoded = [text.encode() for text in ids]
    ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
    return Texts(memoryview(b"".join(encoded)), ends.data)


@given(
    ids=st.sets(st.text(max_size=6), min_size=1, max_size=40),
    others=st.lists(st.text(max_size=6)),
)
def test_texts_are_found_as_in_a_dictionary(ids: set[str], others: list[str]) -> None:
    catalogue = sorted(ids, key=str.encode)
    index_of = {text: place for place, text in enumerate(catalogue, 1)}
    texts, asked = texts_of(catalogue), [*catalogue, *others, *catalogue]
    assert [texts.get(text) for text in asked] == [index_of.get(text) for text in asked]
    for vocabulary in (Vocabulary(catalogue), Vocabulary(texts)):
        assert vocabulary.index(asked).tolist() == [index_of.get(text, 0) for text in asked]
        assert vocabulary.ids(vocabulary.index(catalogue)) == catalogue
    assert (list(texts), texts[-1], texts[:2]) == (catalogue, catalogue[-1], catalogue[:2])
    with pytest.raises(IndexError, match="out of range"):
        texts[len(ids)]


def test_what_is_remembered_does_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary_module, "REMEMBERED", 5)
    ids = [f"{number:03}" for number in range(100)]
    texts = texts_of(ids)
    for _ in range(2):
        for place, text in enumerate(ids, 1):
            assert texts.get(text) == place
            assert len(texts._found) <= 5


@pytest.mark.parametrize("value", [None, 5, 5.0, b"a", ["a"], "\ud800"], ids=repr)
def test_what_is_no_text_is_named_in_a_large_catalogue(value: Any) -> None:
    with pytest.raises(InputError, match=r"history\[1\] is "):
        Vocabulary(texts_of(["a", "b"])).index(["a", value])


def test_bytes_that_are_no_text_are_named_when_they_are_shown() -> None:
    texts = Texts(memoryview(b"a\xff"), np.array([1, 2]).data)
    assert texts[0] == "a"
    with pytest.raises(BundleError, match="text 1 of the catalogue is not UTF-8"):
        Vocabulary(texts).ids(np.array([1, 2]))


def test_a_recent_text_is_not_searched_again() -> None:
    blob = bytearray(b"abc")
    texts = Texts(memoryview(blob), np.array([1, 2, 3]).data)
    assert texts.get("b") == 2
    blob[:] = b"xyz"
    assert (texts.get("b"), texts.get("c"), texts.get("y")) == (2, None, 2)


# Ids that were added to a loaded catalogue

GROWN: dict[str, tuple[Callable[[], Vocabulary], list[Any], list[Any]]] = {
    "texts": (
        lambda: Vocabulary(["a", "c"]).grown(["d"]).grown(["b", ""]),
        ["a", "c", "d", "b", ""],
        ["x"],
    ),
    "mapped texts": (lambda: Vocabulary(texts_of(["a", "c"])).grown(["b"]), ["a", "c", "b"], ["x"]),
    "numbers": (
        lambda: Vocabulary(np.array([-5, 7])).grown([9]).grown([-(2**63), 0]),
        [-5, 7, 9, -(2**63), 0],
        [8, 2**63 - 1, "NEW"],
    ),
    "nothing added": (lambda: Vocabulary(["a", "c"]), ["a", "c"], ["b"]),
}


@pytest.mark.parametrize(("make", "ids", "others"), GROWN.values(), ids=GROWN)
def test_added_ids_come_behind_the_sorted_ones_in_their_order(
    make: Callable[[], Vocabulary], ids: list[Any], others: list[Any]
) -> None:
    vocabulary = make()
    assert len(vocabulary) == len(ids)
    assert list(vocabulary.all_ids) == ids
    assert len(vocabulary.all_ids) == len(ids)
    assert (list(vocabulary.all_ids[1:]), vocabulary.all_ids[-1]) == (ids[1:], ids[-1])
    for place, item in enumerate(ids):
        assert vocabulary.all_ids[place] == item
        assert vocabulary.ids(np.array([place + 1])) == [item]
        assert vocabulary.index([item]).tolist() == [place + 1]
        assert vocabulary.find(item) == (place + 1 if vocabulary.is_text else None)
    assert vocabulary.find(others[0]) is None
    everything = np.arange(len(ids), 0, -1)
    assert vocabulary.ids(everything) == ids[::-1]
    mixed = [others[0], *ids, *others]
    assert vocabulary.index(mixed).tolist() == [0, *range(1, len(ids) + 1), *[0] * len(others)]
    with pytest.raises(InputError, match=rf"^history\[{len(ids)}\] is {others[0]!r}, which the"):
        vocabulary.index([*ids, others[0]], unknown="error")
    assert vocabulary.index(ids[::-1], unknown="error").tolist() == everything.tolist()


def test_ids_are_taken_over_as_they_are_and_as_int64() -> None:
    texts = ["a", "b"]
    vocabulary = Vocabulary(texts)
    texts[0] = "x"
    assert vocabulary.ids(np.array([1])) == ["a"]
    narrow = Vocabulary(np.array([1, 7], dtype=np.int32))
    assert isinstance(narrow.all_ids, np.ndarray)
    assert narrow.all_ids.dtype == np.int64
    assert narrow.index([2**40, 7]).tolist() == [0, 2]


def test_growing_leaves_the_vocabulary_as_it_is() -> None:
    for vocabulary, new in ((Vocabulary(["a"]), "b"), (Vocabulary(np.array([1])), 2)):
        grown = vocabulary.grown([new])
        assert (len(vocabulary), len(grown), grown.sorted) == (1, 2, 1)
        assert vocabulary.index([new]).tolist() == [0]
        assert vocabulary.id_type == grown.id_type == ("string" if new == "b" else "int64")


def test_the_ids_that_are_shown_can_not_be_written_and_those_of_the_caller_can() -> None:
    mine = np.array([1, 2])
    shown = Vocabulary(mine).all_ids
    with pytest.raises(ValueError, match="read-only"):
        shown[0] = 5  # type: ignore[index]
    mine[0] = 0
    assert Vocabulary(["a"]).index(np.array([], dtype=np.int64)).tolist() == []


def test_typed_integers_end_where_int64_ends() -> None:
    ends = [str(-(2**63)), str(2**63 - 1), "0", "-1"]
    assert NUMBERS.parse(ends) == [-(2**63), 2**63 - 1, 0, -1]
    beyond = [str(-(2**63) - 1), str(2**63), "1" * 20, "-" + "1" * 20]
    assert NUMBERS.parse(beyond) == beyond


def test_unsigned_integers_are_ids_up_to_the_largest_of_int64() -> None:
    for dtype in ("<u8", ">u8"):
        assert LIMITS.index(np.array([2**63 - 1, 0], dtype)).tolist() == [4, 3]


def test_a_surrogate_is_named_with_the_reason_of_python() -> None:
    with pytest.raises(InputError, match=r"which is not valid Unicode: surrogates not allowed$"):
        TEXTS.index(["\ud800"])


def test_a_text_that_is_an_integer_is_refused_among_others_of_its_kind() -> None:
    with pytest.raises(InputError, match=r"^seen\[0\] is '7' \(str\); this bundle has integer it"):
        NUMBERS.index(["7", "x"], "seen")
    assert NUMBERS.index(["x", 0, 200]).tolist() == [0, 0, 5]
    assert LIMITS.index(["NEW-7", 0, 1]).tolist() == [0, 3, 0]
    assert NUMBERS.index(["NEW-7", 1]).tolist() == [0, 2]
