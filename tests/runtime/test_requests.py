"""Requests are checked once and by name; candidates, exclusions and eligible items filter."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ranklet import Eligible, InputError, Ranker

SOME = ["i00001", "i00002"]
Ask = Callable[[Any], object]
Table = dict[str, tuple[Ask, str]]


class Tensor:
    """What numpy refuses with an error of its own, as it does tensors with gradients."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")


WRONG: Table = {
    "history": (lambda r: r.rank(["i00001", 5]), r"history\[1\] is 5 \(int\)"),
    "unknown": (lambda r: r.rank(["", "x"], unknown="error"), r"history\[0\] is '', which the cat"),
    "candidates": (lambda r: r.rank([], candidates=[None]), r"candidates\[0\] is None \(NoneT"),
    "exclude": (lambda r: r.rank([], exclude=["", 2.5]), r"exclude\[1\] is 2.5 \(float\)"),
    "unknown candidate": (
        lambda r: r.rank([], candidates=["x"], unknown="error"),
        r"candidates\[0\] is 'x', which the catalogue does not have",
    ),
    "eligible": (lambda r: r.eligible([5]), r"ids\[0\] is 5 \(int\)"),
    "unknown eligible": (lambda r: r.eligible(["x"], unknown="error"), r"ids\[0\] is 'x', which"),
    "of a batch": (lambda r: r.rank_batch([[], ["", 5]]), r"histories\[1\]\[1\] is 5 \(int\)"),
    "unknown of a batch": (
        lambda r: r.rank_batch([[], ["x"]], unknown="error"),
        r"histories\[1\]\[0\] is 'x', which",
    ),
    "candidates of a batch": (
        lambda r: r.rank_batch([[], []], candidates=[None, ["", None]]),
        r"candidates\[1\]\[1\] is None \(NoneType\)",
    ),
    "exclude of a batch": (
        lambda r: r.rank_batch([[]], exclude=[[b"x"]]),
        r"exclude\[0\]\[0\] is b'x' \(bytes\)",
    ),
    "of a user": (lambda r: r.user(["", 5]), r"history\[1\] is 5 \(int\)"),
    "an event": (lambda r: r.user().append(5), r"item\[0\] is 5 \(int\)"),
    "exclude of a user": (lambda r: r.user().rank(exclude=[5]), r"exclude\[0\] is 5 \(int\)"),
    "of users": (lambda r: r.users([[], ["", 5]]), r"histories\[1\]\[1\] is 5 \(int\)"),
    "what to do": (lambda r: r.rank([], unknown="raise"), "unknown must be 'skip' or 'error', got"),
    "a tensor": (lambda r: r.rank(Tensor()), "history can't be read: RuntimeError: Can't call"),
    "a set": (lambda r: r.rank({"i00001"}), "history is a set, which has no order"),
    "histories as text": (lambda r: r.rank_batch("50"), "histories is a str"),
    "histories as dict": (lambda r: r.rank_batch({"a": []}), "histories is a dict"),
    "no histories": (lambda r: r.rank_batch(None), "histories is None"),
    "a number of histories": (lambda r: r.rank_batch(np.array(5)), r"histories is array\(5\)"),
    "flat histories": (lambda r: r.rank_batch(["50"]), r"histories\[0\] is the text '50'"),
    "deep histories": (
        lambda r: r.rank_batch(np.zeros((1, 2, 3), dtype=np.int64)),
        r"histories\[0\] has shape \(2, 3\)",
    ),
    "users as text": (lambda r: r.users("50"), "histories is a str"),
    "titles": (lambda r: r.titles("50"), "items is the text '50'; pass a list of ids"),
    "find": (lambda r: r.find(None), "text is None; pass a part of a title"),
    "events": (lambda r: r.users([[]]).append(None), "items is None; pass a list"),
    "events as text": (lambda r: r.users([[], []]).append("12"), "items is the text '12'"),
    "times": (lambda r: r.users([[]]).append([None], times=5), "times is 5; pass a list"),
}


@pytest.mark.parametrize(("ask", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_value_is_named_with_its_place(tiny_ranker: Ranker, ask: Ask, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        ask(tiny_ranker)


def every_way(ranker: Ranker, history: list[str], **options: Any) -> list[Callable[[], Any]]:
    """Return the calls that rank, all of which take these options."""
    user, users = ranker.user(history), ranker.users([history])
    return [
        lambda: ranker.rank(history, **options),
        lambda: ranker.rank_batch([history], **options),
        lambda: user.rank(**options),
        lambda: users.rank(**options),
    ]


WRONG_OPTIONS: dict[str, tuple[str, Any, str]] = {
    "zero": ("k", 0, "k must be at least 1, got 0"),
    "numpy zero": ("k", np.int64(0), "k must be at least 1, got 0"),
    "True": ("k", True, "k must be a positive integer, got True"),
    "numpy True": ("k", np.bool_(True), "k must be a positive integer, got True"),
    "None": ("k", None, "k must be a positive integer, got None"),
    "text": ("k", "5", "k must be a positive integer, got '5'"),
    "float": ("k", 3.0, r"k must be a positive integer, got 3\.0"),
    "array": ("k", np.array([5, 6]), r"k must be a positive integer, got array"),
    "very negative": ("k", -(2**62), "k must be at least 1, got -4611686018427387904"),
    "thousands of digits": ("k", -(10**5000), "k must be at least 1, got "),
    "seen as list": ("exclude_seen", [1], r"exclude_seen must be True or False, got \[1\]"),
    "seen as array": (
        "exclude_seen",
        np.array([1, 2]),
        "exclude_seen must be True or False, got a",
    ),
    "seen as text": ("exclude_seen", "no", "exclude_seen must be True or False, got 'no'"),
    "ids": ("eligible", ["1"], r"eligible is a list; pass what Ranker\.eligible\(ids\) returns"),
    "text as eligible": ("eligible", "1", r"eligible is a str; pass what Ranker\.eligible\(ids\)"),
    "another's": ("eligible", Eligible, "eligible was made by another ranker: make it with this"),
}


@pytest.mark.parametrize(("name", "value", "message"), WRONG_OPTIONS.values(), ids=WRONG_OPTIONS)
def test_a_wrong_option_is_refused_everywhere_alike(
    tiny_ranker: Ranker, number_ranker: Ranker, name: str, value: Any, message: str
) -> None:
    if value is Eligible:
        value = number_ranker.eligible([0, 3, 6])
    for history in (SOME, []):
        for ask in every_way(tiny_ranker, history, **{name: value}):
            with pytest.raises(InputError, match=message):
                ask()


@pytest.mark.parametrize("k", [np.int64(3), np.uint8(3), np.array(3)], ids=lambda k: type(k))
def test_numpy_integers_are_good_for_k(tiny_ranker: Ranker, k: Any) -> None:
    assert len(tiny_ranker.rank(SOME, k=k).items) == len(tiny_ranker.user(SOME).rank(k).items) == 3


@pytest.mark.parametrize("power", [31, 32, 62, 64, 10_000])
def test_k_beyond_the_catalogue_gives_all_there_is(
    tiny_ranker: Ranker, ids: list[str], power: int
) -> None:
    options: list[dict[str, Any]] = [{}, {"candidates": ids}, {"exclude": ["x"]}]
    for asked in [*options, {"eligible": tiny_ranker.eligible(ids)}]:
        for history in (SOME, []):
            found = tiny_ranker.rank(history, k=2**power + 3, **asked)
            assert sorted(map(str, found.items)) == ids


# Times

WRONG_TIMES: Table = {
    "now alone": (lambda r: r.rank(SOME, now=5), "now was given without times: it counts from"),
    "one missing": (lambda r: r.rank(SOME, times=[1]), "times has 1 times for 2 events: pass one"),
    "falling": (lambda r: r.rank(SOME, times=[2, 1]), r"times\[1\] is 1, before times\[0\], 2: pa"),
    "early": (lambda r: r.rank(SOME, times=[6, 7], now=6), "now is 6, before the last event of hi"),
    "fraction": (lambda r: r.rank(SOME, times=[0, 0.5]), r"times\[1\] is 0.5 \(float\); times are"),
    "truth": (lambda r: r.rank(SOME, times=[0, True]), r"times\[1\] is True \(bool\)"),
    "outside int64": (lambda r: r.rank(SOME, times=[0, 2**70]), r"times\[1\] is .* outside int64"),
    "now as text": (lambda r: r.rank(SOME, times=[0, 1], now="soon"), r"now is 'soon' \(str\)"),
    "now of nobody": (lambda r: r.rank([], times=[], now="soon"), r"now is 'soon' \(str\)"),
    "text": (lambda r: r.rank(SOME, times="12"), "times is the text '12'"),
    "of a batch": (lambda r: r.rank_batch([SOME], times=[[2, 1]]), r"times\[0\]\[1\] is 1, before"),
    "now of a batch": (
        lambda r: r.rank_batch([[], SOME], times=[None, [1, 2]], now=[None, 1]),
        r"now\[1\] is 1, before the last event of histories\[1\], 2",
    ),
    "of a user": (lambda r: r.user(SOME, times=[2, 1]), r"times\[1\] is 1, before times\[0\], 2"),
    "an event": (
        lambda r: r.user(SOME, times=[1, 3]).append("i00003", time=2),
        r"times\[0\] is 2, before the last event, 3: pass events oldest first",
    ),
    "now of a user": (
        lambda r: r.user(SOME, times=[1, 3]).rank(now=2),
        "now is 2, before the last event, 3",
    ),
    "now of nothing": (lambda r: r.user(SOME).rank(now=2), "now was given without the time of the"),
    "of users": (
        lambda r: r.users([[], SOME], times=[None, [2, 1]]),
        r"times\[1\]\[1\] is 1, before times\[1\]\[0\], 2",
    ),
    "too few of users": (lambda r: r.users([[], []], times=[[]]), "times has 1 lists for 2 hist"),
}


@pytest.mark.parametrize(("ask", "message"), WRONG_TIMES.values(), ids=WRONG_TIMES)
def test_times_that_make_no_sense_are_refused(exported: Any, ask: Ask, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        ask(exported(time_gaps=True).ranker)


def test_a_bundle_of_order_alone_refuses_times(tiny_ranker: Ranker) -> None:
    user = tiny_ranker.user(SOME)
    asks: list[Callable[[], object]] = [
        *(lambda o=o: tiny_ranker.rank(SOME, **o) for o in ({"times": [1, 2]}, {"now": 1})),
        lambda: tiny_ranker.rank_batch([SOME], times=[[1, 2]]),
        lambda: user.append("i00003", time=1),
        lambda: user.rank(now=1),
    ]
    for ask in asks:
        with pytest.raises(InputError, match="this bundle does not use times: its model was train"):
            ask()
    assert len(user) == 2


def test_a_gap_as_wide_as_int64_is_the_longest(exported: Any, same_order: Any) -> None:
    ranker, first, last = exported(time_gaps=True).ranker, -(2**63), 2**63 - 1
    found = ranker.user(SOME[:1], times=[first]).rank(60, now=last)
    same_order(found, ranker.rank(SOME[:1], times=[first], now=last, k=60))
    same_order(found, ranker.rank(SOME[:1], times=[0], now=2**60, k=60))


# Lists


@pytest.mark.parametrize("argument", ["candidates", "exclude", "times", "now"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_lists_of_another_length_than_the_batch_are_refused(
    tiny_ranker: Ranker, argument: str, count: int
) -> None:
    options: dict[str, Any] = {argument: [SOME] * count}
    with pytest.raises(InputError, match=f"{argument} has {count} lists for 2 histories"):
        tiny_ranker.rank_batch([SOME, SOME], **options)


def test_inputs_are_never_changed(number_ranker: Ranker) -> None:
    history, candidates, exclude = [0, 3, 999], [3, 3, 6, 998], np.array([6, 0], dtype=">i4")
    before = copy.deepcopy((history, candidates, exclude.tolist()))
    number_ranker.rank(history, candidates=candidates, exclude=exclude, exclude_seen=True)
    number_ranker.rank_batch([history], candidates=[candidates], exclude=[exclude])
    number_ranker.user(history).extend(history)
    assert (history, candidates, exclude.tolist()) == before


def test_a_set_or_an_iterator_will_do_where_order_means_nothing(
    tiny_ranker: Ranker, ids: list[str]
) -> None:
    some = ids[3:9]
    for kind in (set, frozenset, iter):
        found = tiny_ranker.rank(iter(SOME), k=60, exclude=kind(some))
        assert found.items == tiny_ranker.rank(SOME, k=60, exclude=some).items
        found = tiny_ranker.rank_batch([SOME], candidates=[kind(some)])[0]
        assert found.items == tiny_ranker.rank(SOME, candidates=some).items
        found = tiny_ranker.rank(SOME, k=60, eligible=tiny_ranker.eligible(kind(some)))
        assert set(found.items) == set(some)


# Filters

NOTHING: dict[str, Callable[[Ranker], dict[str, Any]]] = {
    "no candidates": lambda _: {"candidates": []},
    "unknown candidates": lambda _: {"candidates": ["nowhere"]},
    "an empty array": lambda _: {"candidates": np.array([])},
    "all excluded": lambda r: {"exclude": r.vocabulary.all_ids},
    "nothing eligible": lambda r: {"eligible": r.eligible(["nowhere"])},
    "no eligible candidate": lambda r: {"eligible": r.eligible(SOME), "candidates": ["i00009"]},
    "all eligible seen": lambda r: {"eligible": r.eligible(SOME), "exclude_seen": True},
    "all candidates seen": lambda _: {"candidates": SOME, "exclude_seen": True},
}


@pytest.mark.parametrize("options", NOTHING.values(), ids=NOTHING)
def test_nothing_left_gives_an_empty_ranking(tiny_ranker: Ranker, options: Any) -> None:
    asked = options(tiny_ranker)
    rows = {key: [asked[key]] for key in ("candidates", "exclude") if key in asked}
    for found in (
        tiny_ranker.rank(SOME, **asked),
        tiny_ranker.rank_batch([SOME], **{**asked, **rows})[0],
        tiny_ranker.user(SOME).rank(**asked),
    ):
        assert (found.items, found.scores.shape, found.cold) == ([], (0,), False)


# The pool of 8 bits is 32 of 60 items, or twice k: 28 seen items are the last that leave it whole.
@pytest.mark.parametrize("seen", [10, 27, 28, 29, 45, 58, 59])
def test_no_seen_item_comes_back_however_few_are_left(
    any_precision: Ranker, ids: list[str], seen: int
) -> None:
    history, some = ids[:seen], ids[5::2]  # longer than the window, too
    full = any_precision.rank(history, k=60).items
    left = [item for item in full if item not in history]
    for k in (1, 5):
        options: dict[str, Any] = {"exclude_seen": True, "k": k}
        assert any_precision.rank(history * 2, **options).items == left[:k]
        assert any_precision.rank_batch([history], **options)[0].items == left[:k]
        assert any_precision.user(history).rank(**options).items == left[:k]
        found = any_precision.rank(history, eligible=any_precision.eligible(some), **options)
        assert found.items == [item for item in left if item in some][:k]


def test_a_row_with_few_items_left_changes_no_other_row(
    any_precision: Ranker, ids: list[str]
) -> None:
    histories = [ids[place : place + 3] for place in range(20)]
    gone: list[Any] = [None] * 19 + [ids[:59]]
    together = any_precision.rank_batch(histories, k=5, exclude=gone)
    for history, found in zip(histories[:19], together, strict=False):
        alone = any_precision.rank(history, k=5)
        assert (found.items, found.exact) == (alone.items, alone.exact)
    assert together[19].items == ids[59:]


def test_candidates_are_ranked_without_the_catalogue(
    any_model: Any, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ranker, user = any_model.ranker, any_model.ranker.user(ids[:4])
    wanted = [item for item in ranker.rank(ids[:4], k=60).items if item in ids[7:30]][:10]
    monkeypatch.setattr(ranker.engine, "score", None)
    assert ranker.rank(ids[:4], candidates=ids[7:30]).items == wanted
    assert ranker.rank_batch([ids[:4]], candidates=[ids[7:30]])[0].items == wanted
    assert user.rank(candidates=ids[7:30]).items == wanted


def test_a_million_candidates_are_ranked(tiny_ranker: Any, ids: list[str], same_order: Any) -> None:
    found = tiny_ranker.rank(SOME, k=60, candidates=ids * (10**6 // 60))
    same_order(found, tiny_ranker.rank(SOME, k=60))


def test_a_title_stands_for_its_item(tiny_ranker: Any, ids: list[str]) -> None:
    for kind in (list, iter, np.array):
        assert tiny_ranker.titles(kind([ids[7], "nowhere"])) == ["Title 7", "nowhere"]
    assert tiny_ranker.find("TITLE 5") == [ids[5], *ids[50:60]]
