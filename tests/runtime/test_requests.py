"""Requests that can't be right are refused by name, and others answered whatever their k."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ranklet import InputError, ProviderError, Ranker

# Unknown ids


def test_unknown_ids_are_counted(tiny_ranker: Ranker, ids: list[str]) -> None:
    assert tiny_ranker.rank(["x", ids[0], "y", "x"]).unknown == 3


def test_unknown_ids_change_nothing(tiny_ranker: Ranker, ids: list[str]) -> None:
    found = tiny_ranker.rank(["x", ids[0], "y", ids[1], "z"], k=60)
    expected = tiny_ranker.rank(ids[:2], k=60)
    assert (found.items, found.scores.tolist()) == (expected.items, expected.scores.tolist())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (list, r"history\[1\] is 'nowhere', which the catalogue does not have"),
        (iter, r"history\[1\] is 'nowhere', which the catalogue does not have"),
        (np.array, r"history\[1\] is 'nowhere', which the catalogue does not have"),
    ],
    ids=["list", "iterator", "array"],
)
def test_an_unknown_item_is_named_in_the_error(
    tiny_ranker: Ranker, ids: list[str], make: Callable[[list[str]], Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        tiny_ranker.rank(make([ids[0], "nowhere"]), unknown="error")


def test_an_unknown_candidate_is_named_in_the_error(tiny_ranker: Ranker, ids: list[str]) -> None:
    with pytest.raises(InputError, match=r"candidates\[1\] is 'nowhere', which the catalogue"):
        tiny_ranker.rank(ids[:1], candidates=[ids[0], "nowhere"], unknown="error")


def test_an_unknown_item_of_a_batch_is_named_with_its_row(
    tiny_ranker: Ranker, ids: list[str]
) -> None:
    with pytest.raises(InputError, match=r"histories\[2\]\[1\] is 'nowhere'"):
        tiny_ranker.rank_batch([ids[:1], [], [ids[0], "nowhere"]], unknown="error")


@pytest.mark.parametrize("argument", ["candidates", "exclude"])
def test_a_wrong_value_in_a_row_of_a_batch_is_named_with_its_row(
    tiny_ranker: Ranker, ids: list[str], argument: str
) -> None:
    options: dict[str, Any] = {argument: [None, [ids[0], None]]}
    with pytest.raises(InputError, match=rf"{argument}\[1\]\[1\] is None \(NoneType\)"):
        tiny_ranker.rank_batch([ids[:1], ids[:1]], **options)


@pytest.mark.parametrize("argument", ["candidates", "exclude"])
def test_a_wrong_value_in_a_list_is_named(
    tiny_ranker: Ranker, ids: list[str], argument: str
) -> None:
    options: dict[str, Any] = {argument: [ids[0], 5]}
    with pytest.raises(InputError, match=rf"^{argument}\[1\] is 5 \(int\)"):
        tiny_ranker.rank(ids[:1], **options)


def test_what_to_do_with_unknown_ids_is_one_of_two(tiny_ranker: Ranker) -> None:
    with pytest.raises(InputError, match="unknown must be 'skip' or 'error', got 'raise'"):
        tiny_ranker.rank([], unknown="raise")  # type: ignore[arg-type]


@pytest.mark.parametrize("k", [3, 60, 61])
def test_an_iterator_of_items_is_a_history(any_model: Any, k: int) -> None:
    history = ["i00003", "nowhere", "i00009"]
    found = any_model.ranker.rank(iter(history), k=k)
    assert found.items == any_model.ranker.rank(history, k=k).items
    assert (found.unknown, found.cold) == (1, False)


# k

NO_K = {
    "zero": (0, "k must be at least 1, got 0"),
    "negative": (-1, "k must be at least 1, got -1"),
    "numpy zero": (np.int64(0), "k must be at least 1, got 0"),
    "True": (True, "k must be a positive integer, got True"),
    "numpy True": (np.bool_(True), "k must be a positive integer, got True"),
    "None": (None, "k must be a positive integer, got None"),
    "text": ("5", "k must be a positive integer, got '5'"),
    "float": (3.0, r"k must be a positive integer, got 3\.0"),
    "NaN": (float("nan"), "k must be a positive integer, got nan"),
    "list": ([5], r"k must be a positive integer, got \[5\]"),
    "array": (np.array([5, 6]), r"k must be a positive integer, got array"),
    "very negative": (-(2**62), "k must be at least 1, got -4611686018427387904"),
    "thousands of digits": (-(10**5000), "k must be at least 1, got "),
}


@pytest.mark.parametrize("history", ["known", "cold"])
@pytest.mark.parametrize(("k", "message"), NO_K.values(), ids=NO_K)
def test_k_that_is_no_positive_integer_is_refused(
    tiny_ranker: Ranker, ids: list[str], history: str, k: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        tiny_ranker.rank(ids[:2] if history == "known" else [], k=k)


@pytest.mark.parametrize("k", [0, None, True])
def test_k_is_checked_for_a_batch_of_nothing(tiny_ranker: Ranker, k: Any) -> None:
    with pytest.raises(InputError, match="k must be"):
        tiny_ranker.rank_batch([], k=k)


@pytest.mark.parametrize("k", [np.int64(3), np.uint8(3), np.array(3)], ids=lambda k: type(k))
def test_numpy_integers_are_good_for_k(tiny_ranker: Ranker, ids: list[str], k: Any) -> None:
    assert len(tiny_ranker.rank(ids[:2], k=k).items) == 3


@pytest.mark.parametrize(
    "k", [60, 61, 2**31, 2**32 + 3, 2**62, 2**64, 10**5000], ids=lambda k: f"{k.bit_length()} bits"
)
@pytest.mark.parametrize("options", ["none", "candidates", "exclude"])
@pytest.mark.parametrize("history", ["known", "cold"])
def test_k_beyond_the_catalogue_gives_all_there_is(
    tiny_ranker: Ranker, ids: list[str], k: int, options: str, history: str
) -> None:
    arguments: dict[str, Any] = {
        "none": {},
        "candidates": {"candidates": ids},
        "exclude": {"exclude": ["nowhere"]},
    }[options]
    found = tiny_ranker.rank(ids[:2] if history == "known" else [], k=k, **arguments)
    assert sorted(map(str, found.items)) == sorted(ids)


@pytest.mark.parametrize("k", [1, 2, 30, 59])
def test_a_smaller_k_gives_the_start_of_the_ranking(
    tiny_ranker: Ranker, ids: list[str], k: int
) -> None:
    assert tiny_ranker.rank(ids[:9], k=k).items == tiny_ranker.rank(ids[:9], k=60).items[:k]


# The rest


def break_sessions(patch: pytest.MonkeyPatch, ranker: Ranker) -> None:
    class Broken:
        def run(self, names: list[str], inputs: dict[str, Any], _: object = None) -> None:
            raise RuntimeError("out of memory")

        def io_binding(self) -> None:
            raise RuntimeError("out of memory")

    for name in ("session", "plain", "encoder", "append"):
        patch.setitem(vars(ranker.graphs), name, Broken())
    for runs in ranker.appender._idle.runs.values():
        for run in runs:
            patch.setattr(run.bound, "run", Broken().io_binding)


@pytest.mark.parametrize("asked", ["rank", "rank_batch", "candidates", "user", "users"])
def test_an_error_of_onnxruntime_is_named(
    tiny_bundle: Path, ids: list[str], monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    ranker = Ranker.load(tiny_bundle, provider="cpu")

    break_sessions(monkeypatch, ranker)
    calls: dict[str, Callable[[], object]] = {
        "rank": lambda: ranker.rank(ids[:2]),
        "rank_batch": lambda: ranker.rank_batch([ids[:2], ids[:1]]),
        "candidates": lambda: ranker.rank(ids[:2], candidates=ids),
        "user": lambda: ranker.user(ids[:2]).rank(),
        "users": lambda: ranker.users([ids[:2], ids[:1]]).rank(),
    }
    with pytest.raises(ProviderError, match="onnxruntime failed on cpu: out of memory"):
        calls[asked]()


@pytest.mark.parametrize("new", [1, 4])
def test_a_user_outlives_an_error_of_onnxruntime(
    tiny_bundle: Path, ids: list[str], monkeypatch: pytest.MonkeyPatch, new: int
) -> None:
    ranker = Ranker.load(tiny_bundle, provider="cpu")
    user, expected = ranker.user(ids[:30]), ranker.user(ids[:30])
    for ranked in (user, expected):
        ranked.rank()
        if new == 1:  # the state is in a ring when it fails
            ranked.append(ids[29])
            ranked.rank()
        ranked.extend(ids[30 : 30 + new])

    with monkeypatch.context() as patch:
        break_sessions(patch, ranker)
        for _ in range(2):
            with pytest.raises(ProviderError, match="out of memory"):
                user.rank()
    assert user.rank(60).items == expected.rank(60).items


def test_the_length_is_the_number_of_items(tiny_ranker: Ranker) -> None:
    assert len(tiny_ranker) == 60


def test_a_ranker_says_what_it_is(tiny_ranker: Ranker, tiny_bundle: Path) -> None:
    expected = f"Ranker({str(tiny_bundle)!r}, items=60, provider='cpu')"
    assert repr(tiny_ranker) == expected


def test_rankings_can_be_compared_without_an_error(tiny_ranker: Ranker, ids: list[str]) -> None:
    found = tiny_ranker.rank(ids[:2])
    assert found in [tiny_ranker.rank(ids[:3]), found]


def test_a_title_stands_for_its_item(tiny_ranker: Ranker, ids: list[str]) -> None:
    assert tiny_ranker.find(tiny_ranker.titles([ids[7]])[0].upper()) == [ids[7]]


def test_an_unknown_item_has_its_id_for_a_title(tiny_ranker: Ranker) -> None:
    assert tiny_ranker.titles(["nowhere"]) == ["nowhere"]


def test_titles_may_be_asked_for_with_any_sequence(tiny_ranker: Ranker, ids: list[str]) -> None:
    expected = tiny_ranker.titles(ids[:3])
    assert tiny_ranker.titles(iter(ids[:3])) == expected  # type: ignore[arg-type]
    assert tiny_ranker.titles(np.array(ids[:3])) == expected  # type: ignore[arg-type]


class Tensor:
    """What numpy refuses with an error of its own, as it does tensors with gradients."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")


def test_a_set_will_do_where_order_means_nothing(tiny_ranker: Ranker, ids: list[str]) -> None:
    some, history = set(ids[3:9]), ids[:2]
    for kind in (set, frozenset):
        found = tiny_ranker.rank(history, k=60, exclude=kind(some))
        assert found.items == tiny_ranker.rank(history, k=60, exclude=ids[3:9]).items
        found = tiny_ranker.rank_batch([history], candidates=[kind(some)])[0]
        assert found.items == tiny_ranker.rank(history, candidates=ids[3:9]).items
        found = tiny_ranker.rank(history, k=60, eligible=tiny_ranker.eligible(kind(some)))
        assert set(found.items) == some
    with pytest.raises(InputError, match="history is a set, which has no order"):
        tiny_ranker.rank(some)


STRANGE: dict[str, tuple[Callable[[Ranker], object], str]] = {
    "history": (lambda r: r.rank(Tensor()), r"history is no array of item ids: Can't call"),  # type: ignore[arg-type]
    "exclude_seen": (
        lambda r: r.rank([], exclude_seen=np.array([1, 2])),  # type: ignore[arg-type]
        r"exclude_seen must be True or False, got array\(\[1, 2\]\)",
    ),
    "exclude_seen of a batch": (
        lambda r: r.rank_batch([[]], exclude_seen=[1]),  # type: ignore[arg-type]
        r"exclude_seen must be True or False, got \[1\]",
    ),
    "exclude_seen of a user": (
        lambda r: r.user().rank(exclude_seen="no"),  # type: ignore[arg-type]
        "exclude_seen must be True or False, got 'no'",
    ),
    "exclude_seen of users": (
        lambda r: r.users([[]]).rank(exclude_seen=None),  # type: ignore[arg-type]
        "exclude_seen must be True or False, got None",
    ),
    "titles": (lambda r: r.titles("50"), "items is the text '50'; pass a list of ids"),
    "find": (lambda r: r.find(None), "text is None; pass a part of a title"),  # type: ignore[arg-type]
    "items": (lambda r: r.users([[]]).append(None), "items is None; pass a list"),  # type: ignore[arg-type]
    "text": (lambda r: r.users([[], []]).append("12"), "items is the text '12'"),
    "times": (lambda r: r.users([[]]).append([None], times=5), "times is 5; pass a list"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize(("ask", "message"), STRANGE.values(), ids=STRANGE)
def test_a_strange_argument_is_named(
    tiny_ranker: Ranker, ask: Callable[[Ranker], object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ask(tiny_ranker)


@pytest.mark.parametrize("number", [-1, 1, 61, 2**31, 2**62, -(2**63)])
def test_an_integer_that_is_no_id_is_unknown(number_ranker: Ranker, number: int) -> None:
    assert number_ranker.rank([number]).unknown == 1
