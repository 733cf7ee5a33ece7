"""Attacks by what the files hold: weights, ids, titles, shares and golden answers."""

import json
from typing import Any

import numpy as np

from attacks.bundle import Bundle, attack


def _attribute(bundle: Bundle, **arrays: np.ndarray[Any, Any]) -> None:
    """Give the items a category whose arrays are these, instead of one of right ones."""
    items = bundle.manifest["items"]
    whole = {
        "codes": np.zeros(items, "<i4"),
        "ends": np.arange(1, items + 1, dtype="<i4"),
        "values": np.frombuffer(b"ab", np.uint8),
        "value_ends": np.array([1, 2], "<i8"),
        **arrays,
    }
    data, places = b"", {}
    for name, array in whole.items():
        places[name] = {"offset": len(data), "count": len(array), "type": array.dtype.str}
        data += array.tobytes() + bytes(-array.nbytes % 8)
    bundle.write("attributes.bin", data)
    attribute = {"name": "maker", "kind": "category", "arrays": places}
    bundle.manifest["attributes"] = [attribute]
    bundle.sign()


def _golden(bundle: Bundle, answers: Any) -> None:  # noqa: ANN401
    bundle.write("golden.json", json.dumps(answers).encode())
    bundle.sign()


@attack
def weights_of_nan(bundle: Bundle) -> None:
    """One NaN in the item table ranks its item first for everyone."""
    with bundle.array("weights.bin", "<f4") as weights:
        weights[64 * 7] = np.nan
    bundle.sign()


@attack
def weights_of_infinity(bundle: Bundle) -> None:
    """The last weight of a row is infinite."""
    with bundle.array("weights.bin", "<f4") as weights:
        weights[64 * 5 - 1] = -np.inf
    bundle.sign()


@attack
def ids_that_are_not_sorted(bundle: Bundle) -> None:
    """Ids in another order: ties, filters and look-ups of a large catalogue go wrong in silence."""
    ends = np.fromfile(bundle.folder / "items.ends.i64", "<i8")
    blob = (bundle.folder / "items.utf8").read_bytes()
    first, second = blob[: ends[0]], blob[ends[0] : ends[1]]
    bundle.write("items.utf8", second + first + blob[ends[1] :])
    with bundle.array("items.ends.i64", "<i8") as array:
        array[0] = len(second)
    bundle.sign()


@attack
def ids_twice(bundle: Bundle) -> None:
    """Two items of one id: an event of one would count for the other."""
    blob = bytearray((bundle.folder / "items.utf8").read_bytes())
    ends = np.fromfile(bundle.folder / "items.ends.i64", "<i8")
    same = next(n for n in range(1, 100) if ends[n] - ends[n - 1] == ends[n + 1] - ends[n])
    blob[ends[same] : ends[same + 1]] = blob[ends[same - 1] : ends[same]]
    bundle.write("items.utf8", bytes(blob))
    bundle.sign()


@attack
def ids_that_end_before_they_begin(bundle: Bundle) -> None:
    """Ends that fall: a slice from 9 to 3 is empty, and one from -3 counts from the end."""
    with bundle.array("items.ends.i64", "<i8") as ends:
        ends[5] = -(2**63)
    bundle.sign()


@attack
def ids_that_end_behind_their_file(bundle: Bundle) -> None:
    """The last id ends behind the blob."""
    with bundle.array("items.ends.i64", "<i8") as ends:
        ends[-1] = 2**62
    bundle.sign()


@attack
def ids_that_are_not_utf8(bundle: Bundle) -> None:
    """An id that is no text."""
    with bundle.array("items.utf8", "|u1") as blob:
        blob[3] = 0xFF
    bundle.sign()


@attack
def titles_that_are_not_utf8(bundle: Bundle) -> None:
    """A title that is no text: it raises when it is first shown."""
    with bundle.array("titles.utf8", "|u1") as blob:
        blob[1_000] = 0xFF
    bundle.sign()


@attack
def titles_of_another_number(bundle: Bundle) -> None:
    """Titles of fewer items than there are."""
    ends = (bundle.folder / "titles.ends.i64").read_bytes()
    bundle.write("titles.ends.i64", ends[:-8])
    bundle.sign()


@attack
def popularity_of_nan(bundle: Bundle) -> None:
    """A share that is NaN would sort last or first, as numpy likes."""
    with bundle.array("popularity.f32", "<f4") as shares:
        shares[3] = np.nan
    bundle.sign()


@attack
def popularity_of_another_number(bundle: Bundle) -> None:
    """Shares of fewer items than there are."""
    bundle.write("popularity.f32", bytes(4))
    bundle.sign()


@attack
def boost_of_infinity(bundle: Bundle) -> None:
    """A bias of infinity puts an item first, and -infinity makes NaN of every sum."""
    bias = np.zeros(bundle.manifest["items"], "<f4")
    bias[0], bias[1] = np.inf, -np.inf
    bundle.write("bias.f32", bias.tobytes())
    bundle.sign()


@attack
def silent_items_that_are_not_there(bundle: Bundle) -> None:
    """Items that do not count in histories: 0, the last one, and one behind it."""
    silent = np.array([0, 10**6, -1], "<i8")
    bundle.write("silent.i64", silent.tobytes())
    bundle.sign()


@attack
def silent_items_of_half_a_number(bundle: Bundle) -> None:
    """A file of numbers that ends inside one."""
    bundle.write("silent.i64", np.array([1], "<i8").tobytes() + b"\1\2\3")
    bundle.sign()


@attack
def categories_that_are_not_there(bundle: Bundle) -> None:
    """A code behind all categories, and one below zero."""
    codes = np.zeros(bundle.manifest["items"], "<i4")
    codes[0], codes[1] = 2**31 - 1, -1
    _attribute(bundle, codes=codes)


@attack
def categories_that_end_behind_all(bundle: Bundle) -> None:
    """The categories of an item end behind the codes."""
    ends = np.arange(1, bundle.manifest["items"] + 1, dtype="<i4")
    ends[-1] = 2**31 - 1
    _attribute(bundle, ends=ends)


@attack
def categories_that_are_floats(bundle: Bundle) -> None:
    """Codes of another type, which can be no index."""
    _attribute(bundle, codes=np.full(bundle.manifest["items"], np.nan, "<f4"))


@attack
def categories_that_are_not_utf8(bundle: Bundle) -> None:
    """A category that is no text."""
    _attribute(bundle, values=np.frombuffer(b"\xff\xfe", np.uint8))


@attack
def golden_answers_of_nothing(bundle: Bundle) -> None:
    """A golden answer for a history without an event."""
    _golden(bundle, [{"history": [], "items": ["1"], "scores": [1]}])


@attack
def golden_answers_of_another_form(bundle: Bundle) -> None:
    """Golden answers that are numbers, texts and null."""
    _golden(bundle, [None, 1, "x", {"history": {"a": 1}, "items": 5, "scores": "x"}])


@attack
def golden_answers_of_huge_numbers(bundle: Bundle) -> None:
    """A score of 400 digits, which is no float."""
    _golden(bundle, [{"history": ["50"], "items": ["50"], "scores": [10**400]}])


@attack
def golden_answers_nested_deeply(bundle: Bundle) -> None:
    """Golden answers nested deeper than the stack."""
    bundle.write("golden.json", b"[" * 100_000)
    bundle.sign()


@attack
def golden_answers_of_megabytes(bundle: Bundle) -> None:
    """Golden answers behind many blanks, which a reader of JSON takes into memory."""
    bundle.write("golden.json", b" " * (1 << 24) + b"[]")
    bundle.sign()
