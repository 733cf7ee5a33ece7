"""Ids of any container and number type are found, and all that is no id is refused by name."""

import sys
import unicodedata
from pathlib import Path
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


def read_only(values: list[int]) -> NDArray[np.int64]:
    array = np.array(values)
    array.flags.writeable = False
    return array


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
    "numpy integers": [np.int64(200), np.uint8(3), np.int32(1)],
    "mixed integers": [200, np.uint64(3), 1],
    "int64": np.array([200, 3, 1]),
    "int32": np.array([200, 3, 1], dtype=np.int32),
    "uint8": np.array([200, 3, 1], dtype=np.uint8),
    "uint64": np.array([200, 3, 1], dtype=np.uint64),
    "big-endian": np.array([200, 3, 1], dtype=">i8"),
    "big-endian unsigned": np.array([200, 3, 1], dtype=">u2"),
    "non-contiguous": np.array([200, 0, 3, 0, 1, 0])[::2],
    "reversed": np.array([1, 3, 200])[::-1],
    "read-only": read_only([200, 3, 1]),
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
    "tuple": ("a", "b", "7"),
    "generator": (text for text in ("a", "b", "7")),
    "unicode array": np.array(["a", "b", "7"]),
    "numpy texts": list(np.array(["a", "b", "7"])),
    "object array": np.array(["a", "b", "7"], dtype=object),
    "polars": pl.Series(["a", "b", "7"]),
    "array-like": ArrayLike(np.array(["a", "b", "7"])),
    "non-contiguous": np.array(["a", "x", "b", "x", "7", "x"])[::2],
}


@pytest.mark.parametrize("ids", TEXT_CONTAINERS.values(), ids=TEXT_CONTAINERS)
def test_texts_are_found_in_any_container(ids: Any) -> None:
    assert TEXTS.index(ids).tolist() == [3, 0, 2]


@pytest.mark.parametrize(("item", "index"), [("7", 2), (np.str_("a"), 3), ("\u00e9", 4)])
def test_one_text_is_found_alone(item: str, index: int) -> None:
    assert TEXTS.find(item) == index


@pytest.mark.parametrize("item", ["8", "", "\ud800", 7, None, [], ["7"], b"7"])
def test_what_is_no_text_of_the_catalogue_is_left_to_the_way_of_many(item: Any) -> None:
    assert TEXTS.find(item) is None


def test_numbers_are_left_to_the_way_of_many() -> None:
    assert NUMBERS.find(7) is None
    assert NUMBERS.find("7") is None


def test_a_memory_mapped_array_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.array([200, 3, 1]))
    mapped = np.load(tmp_path / "ids.npy", mmap_mode="r")
    assert NUMBERS.index(mapped).tolist() == [5, 0, 2]


@pytest.mark.parametrize("vocabulary", [NUMBERS, TEXTS], ids=["numbers", "texts"])
@pytest.mark.parametrize(
    "ids", [[], (), np.array([]), np.array([], dtype=np.int64), pl.Series([])], ids=type
)
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
    "numpy number": (np.int64(200), r"history has shape \(\)"),
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


@pytest.mark.parametrize("vocabulary", [NUMBERS, TEXTS], ids=["numbers", "texts"])
@pytest.mark.parametrize(("ids", "message"), NO_SEQUENCES.values(), ids=NO_SEQUENCES)
def test_what_is_no_flat_sequence_of_ids_is_refused(
    vocabulary: Vocabulary, ids: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        vocabulary.index(ids)


NO_INTEGERS: dict[str, tuple[Any, str]] = {
    "None": (None, "None (NoneType)"),
    "text": ("2", "'2' (str)"),
    "float": (2.0, "2.0 (float)"),
    "NaN": (float("nan"), "nan (float)"),
    "bool": (True, "True (bool)"),
    "numpy bool": (np.bool_(True), "True (bool)"),
    "numpy float": (np.float32(2), "2.0 (float32)"),
    "duration": (np.timedelta64(2), "(timedelta64)"),
    "bytes": (b"2", "b'2' (bytes)"),
    "list": ([2], "[2] (list)"),
    "dict": ({}, "{} (dict)"),
    "array": (np.array([2]), "(ndarray)"),
}


@pytest.mark.parametrize(("item", "message"), NO_INTEGERS.values(), ids=NO_INTEGERS)
def test_a_value_that_is_no_integer_is_named_with_its_place(item: Any, message: str) -> None:
    with pytest.raises(InputError, match=r"^history\[1\] is .*integer item ids") as caught:
        NUMBERS.index([1, item, None])
    assert message in str(caught.value)


NO_TEXTS: dict[str, tuple[Any, str]] = {
    "None": (None, "None (NoneType)"),
    "int": (7, "7 (int)"),
    "numpy int": (np.int64(7), "7 (int64)"),
    "float": (7.0, "7.0 (float)"),
    "NaN": (float("nan"), "nan (float)"),
    "bool": (False, "False (bool)"),
    "bytes": (b"7", "b'7' (bytes)"),
    "list": (["7"], "['7'] (list)"),
    "dict": ({}, "{} (dict)"),
}


@pytest.mark.parametrize(("item", "message"), NO_TEXTS.values(), ids=NO_TEXTS)
def test_a_value_that_is_no_text_is_named_with_its_place(item: Any, message: str) -> None:
    with pytest.raises(InputError, match=r"^history\[1\] is .*text item ids") as caught:
        TEXTS.index(["a", item, None])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "ids", [np.array([7]), pl.Series([7]), np.array([7], dtype=object)], ids=type
)
def test_arrays_of_integers_are_no_texts(ids: Any) -> None:
    with pytest.raises(InputError, match=r"history\[0\] is 7 \(int\); .* text item ids"):
        TEXTS.index(ids)


@pytest.mark.parametrize("ids", [np.array(["7"]), pl.Series(["7"])], ids=type)
def test_arrays_of_texts_are_no_integers(ids: Any) -> None:
    with pytest.raises(InputError, match=r"history\[0\] is '7' \(str\); .* integer item ids"):
        NUMBERS.index(ids)


@pytest.mark.parametrize("number", [-1, 0, 2**62, INT64.max - 1, INT64.min + 1, 6])
def test_an_integer_that_is_no_id_has_index_zero(number: int) -> None:
    assert NUMBERS.index([number]).tolist() == [0]


def test_the_smallest_and_the_largest_integer_can_be_ids() -> None:
    assert LIMITS.index([INT64.max, INT64.min, 0, -1]).tolist() == [4, 1, 3, 2]


@pytest.mark.parametrize("number", [2**63, 2**64 - 1, -(2**63) - 1, 10**30, np.uint64(2**63)])
def test_an_integer_outside_int64_is_named(number: int) -> None:
    with pytest.raises(InputError, match=rf"history\[1\] is {number}, which is outside int64"):
        LIMITS.index([0, number])


@pytest.mark.parametrize("dtype", ["<u8", ">u8"])
@pytest.mark.parametrize("number", [2**63, 2**64 - 1])
def test_an_unsigned_integer_outside_int64_is_not_wrapped(dtype: str, number: int) -> None:
    with pytest.raises(InputError, match=rf"history\[1\] is {number}, which is outside int64"):
        LIMITS.index(np.array([0, number], dtype=dtype))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="older Pythons write any integer")
@pytest.mark.parametrize("vocabulary", [NUMBERS, TEXTS], ids=["numbers", "texts"])
def test_an_integer_too_long_to_be_written_is_refused(vocabulary: Vocabulary) -> None:
    with pytest.raises(InputError, match=r"history\[0\] is an integer of thousands of digits"):
        vocabulary.index([10**5000])


def test_leading_zeros_count() -> None:
    assert TEXTS.index(["7", "007", "07"]).tolist() == [2, 1, 0]


def test_composed_and_decomposed_letters_are_different_ids() -> None:
    composed, decomposed = "\u00e9", unicodedata.normalize("NFD", "\u00e9")
    assert TEXTS.index([composed, decomposed]).tolist() == [4, 0]


@pytest.mark.parametrize("text", ["a\0", "\0a", "A", " a", "a ", "", "\ufeffa"])
def test_text_is_compared_exactly(text: str) -> None:
    assert TEXTS.index([text]).tolist() == [0]


def test_an_id_may_hold_any_character() -> None:
    texts = ["", "\0", "\n", "a\0b", "\U0001f600"]
    assert Vocabulary(texts).index(texts).tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_a_lone_surrogate_is_no_text(text: str) -> None:
    with pytest.raises(InputError, match=r"history\[1\] is '.*', which is not valid Unicode"):
        TEXTS.index(["a", text])


def test_an_id_of_a_megabyte_is_found() -> None:
    text = "x" * 2**20
    assert Vocabulary(["a", text]).index([text]).tolist() == [2]


def test_a_message_quotes_only_the_start_of_a_long_id() -> None:
    with pytest.raises(InputError, match=r"1,048,578 characters\), which the") as caught:
        TEXTS.index(["x" * 2**20], unknown="error")
    assert len(str(caught.value)) < 300


UNKNOWN = {
    "list": (TEXTS, ["a", "b"], "'b'"),
    "generator": (TEXTS, (text for text in "ab"), "'b'"),
    "unicode array": (TEXTS, np.array(["a", "b"]), "'b'"),
    "int list": (NUMBERS, [1, 3], "3"),
    "int array": (NUMBERS, np.array([1, 3], dtype=np.uint8), "3"),
    "int generator": (NUMBERS, (number for number in (1, 3)), "3"),
}


@pytest.mark.parametrize(("vocabulary", "ids", "value"), UNKNOWN.values(), ids=UNKNOWN)
def test_an_unknown_id_is_named_in_the_error(vocabulary: Vocabulary, ids: Any, value: str) -> None:
    with pytest.raises(InputError, match=rf"^seen\[1\] is {value}, which the catalogue does not"):
        vocabulary.index(ids, "seen", unknown="error")


@pytest.mark.parametrize("unknown", ["raise", "", None, True])
def test_what_to_do_with_unknown_ids_is_one_of_two(unknown: Any) -> None:
    with pytest.raises(InputError, match=f"unknown must be 'skip' or 'error', got {unknown!r}"):
        TEXTS.index([], unknown=unknown)


def test_inputs_are_never_changed() -> None:
    array = np.array([200, 3, 1], dtype=">i8")
    ids = [1, 2]
    NUMBERS.index(array)
    NUMBERS.index(ids)
    assert (array.dtype, array.tolist(), ids) == (np.dtype(">i8"), [200, 3, 1], [1, 2])


@given(st.sets(st.integers(INT64.min, INT64.max), min_size=1), st.data())
def test_integer_ids_and_indices_are_inverse(numbers: set[int], data: st.DataObject) -> None:
    vocabulary = Vocabulary(np.array(sorted(numbers), dtype=np.int64))
    indices = np.array(data.draw(st.lists(st.integers(1, len(numbers)))), dtype=np.int64)
    assert (vocabulary.index(vocabulary.ids(indices)) == indices).all()


@given(st.sets(st.text(max_size=6), min_size=1, max_size=40), st.data())
def test_text_ids_and_indices_are_inverse(texts: set[str], data: st.DataObject) -> None:
    vocabulary = Vocabulary(sorted(texts, key=str.encode))
    indices = np.array(data.draw(st.lists(st.integers(1, len(texts)))), dtype=np.int64)
    assert (vocabulary.index(vocabulary.ids(indices)) == indices).all()


@given(
    st.sets(st.integers(INT64.min, INT64.max), min_size=1),
    st.lists(st.integers(INT64.min, INT64.max)),
)
def test_integers_are_found_like_in_a_dictionary(numbers: set[int], asked: list[int]) -> None:
    catalogue = sorted(numbers)
    index_of = {number: index for index, number in enumerate(catalogue, 1)}
    found = Vocabulary(np.array(catalogue, dtype=np.int64)).index(asked)
    assert found.tolist() == [index_of.get(number, 0) for number in asked]


def test_typed_ids_of_an_integer_catalogue_become_integers() -> None:
    assert NUMBERS.parse(["200", "-5"]) == [200, -5]


def test_typed_ids_of_a_text_catalogue_stay_text() -> None:
    assert TEXTS.parse(["007", "7"]) == ["007", "7"]


NO_INTEGERS = ["a", "", "2.0", "9" * 5000, "007", "1_0", "\u0663", " 7", "+7", "-0"]


@pytest.mark.parametrize("text", NO_INTEGERS, ids=range(len(NO_INTEGERS)))
def test_a_typed_id_that_is_no_integer_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="seen: this bundle has integer item ids"):
        NUMBERS.parse([text], "seen")


# Texts that stay in their file


def texts_of(ids: list[str]) -> Texts:
    """Return sorted ids as one blob."""
    encoded = [text.encode() for text in ids]
    ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
    return Texts(memoryview(b"".join(encoded)), ends.data)


sorted_ids = st.sets(st.text(max_size=6), min_size=1, max_size=40).map(
    lambda ids: sorted(ids, key=str.encode)
)


@given(ids=sorted_ids, others=st.lists(st.text(max_size=6)))
def test_texts_are_a_sequence_where_every_id_is_found_and_no_other(
    ids: list[str], others: list[str]
) -> None:
    index_of = {text: place for place, text in enumerate(ids, 1)}
    texts = texts_of(ids)
    for text in [*ids, *others, *ids]:
        assert texts.get(text) == index_of.get(text)
    assert list(texts) == ids
    assert (len(texts), texts[-1], texts[:2]) == (len(ids), ids[-1], ids[:2])
    with pytest.raises(IndexError, match="out of range"):
        texts[len(ids)]


def test_what_is_remembered_does_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary_module, "REMEMBERED", 5)
    ids = [f"{number:03}" for number in range(100)]
    texts = texts_of(ids)
    for _ in range(2):
        assert [texts.get(text) for text in ids] == list(range(1, 101))
        assert len(texts._found) <= 5


@pytest.mark.parametrize("value", [None, 5, 5.0, b"a", ["a"], "\ud800"], ids=repr)
def test_what_is_no_text_is_named_as_in_a_small_catalogue(value: Any) -> None:
    small, large = Vocabulary(["a", "b"]), Vocabulary(texts_of(["a", "b"]))
    for vocabulary in (small, large):
        with pytest.raises(InputError, match=r"history\[1\] is "):
            vocabulary.index(["a", value])


def test_bytes_that_are_no_text_are_named_when_they_are_shown() -> None:
    texts = Texts(memoryview(b"a\xff"), np.array([1, 2]).data)
    assert texts[0] == "a"
    with pytest.raises(BundleError, match="text 1 of the catalogue is not UTF-8"):
        Vocabulary(texts).ids(np.array([1, 2]))
