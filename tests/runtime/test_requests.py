"""Requests are checked once and by name; candidates, exclusions and eligible items filter."""

import copy
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ranklet import Eligible, InputError, Ranker, Ranking
from ranklet.user import User, Users

SameOrder = Callable[[Ranking, Ranking], None]
HOUR = 3600


@pytest.fixture(scope="module")
def timed(exported: Callable[..., Any]) -> Ranker:
    ranker: Ranker = exported(time_gaps=True).ranker
    return ranker


# Unknown ids


def test_unknown_ids_are_counted_and_change_nothing(tiny_ranker: Ranker, ids: list[str]) -> None:
    found = tiny_ranker.rank(["x", ids[0], "y", ids[1], "x"], k=60)
    expected = tiny_ranker.rank(ids[:2], k=60)
    assert (found.items, found.scores.tolist()) == (expected.items, expected.scores.tolist())
    assert (found.unknown, expected.unknown) == (3, 0)


@pytest.mark.parametrize("make", [list, iter, np.array], ids=["list", "iterator", "array"])
def test_an_unknown_item_is_named_in_the_error(
    tiny_ranker: Ranker, ids: list[str], make: Callable[[list[str]], Any]
) -> None:
    with pytest.raises(InputError, match=r"history\[1\] is 'nowhere', which the catalogue does"):
        tiny_ranker.rank(make([ids[0], "nowhere"]), unknown="error")


WRONG_IDS: dict[str, tuple[Callable[[Ranker], object], str]] = {
    "history": (lambda r: r.rank(["i00001", 5]), r"history\[1\] is 5 \(int\)"),
    "candidates": (lambda r: r.rank([], candidates=[None]), r"candidates\[0\] is None \(NoneT"),
    "exclude": (lambda r: r.rank([], exclude=["", 2.5]), r"exclude\[1\] is 2.5 \(float\)"),
    "eligible": (lambda r: r.eligible([5]), r"ids\[0\] is 5 \(int\)"),
    "unknown candidate": (
        lambda r: r.rank([], candidates=["x"], unknown="error"),
        r"candidates\[0\] is 'x', which the catalogue does not have",
    ),
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
    "an event": (lambda r: r.user().append(5), r"item\[0\] is 5 \(int\)"),  # type: ignore[arg-type]
    "exclude of a user": (lambda r: r.user().rank(exclude=[5]), r"exclude\[0\] is 5 \(int\)"),
    "of users": (lambda r: r.users([[], ["", 5]]), r"histories\[1\]\[1\] is 5 \(int\)"),
    "events": (lambda r: r.users([[], []]).append([None, 5]), r"user 1: item\[0\] is 5 \(int\)"),
    "what to do": (
        lambda r: r.rank([], unknown="raise"),  # type: ignore[arg-type]
        "unknown must be 'skip' or 'error', got 'raise'",
    ),
}


@pytest.mark.parametrize(("ask", "message"), WRONG_IDS.values(), ids=WRONG_IDS)
def test_a_wrong_id_is_named_with_its_place(
    tiny_ranker: Ranker, ask: Callable[[Ranker], object], message: str
) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        ask(tiny_ranker)


@pytest.mark.parametrize("number", [-1, 1, 61, 2**31, 2**62, -(2**63)])
def test_an_integer_that_is_no_id_is_unknown(number_ranker: Ranker, number: int) -> None:
    assert number_ranker.rank([number]).unknown == 1


# k

NO_K = {
    "zero": (0, "k must be at least 1, got 0"),
    "numpy zero": (np.int64(0), "k must be at least 1, got 0"),
    "True": (True, "k must be a positive integer, got True"),
    "numpy True": (np.bool_(True), "k must be a positive integer, got True"),
    "None": (None, "k must be a positive integer, got None"),
    "text": ("5", "k must be a positive integer, got '5'"),
    "float": (3.0, r"k must be a positive integer, got 3\.0"),
    "NaN": (float("nan"), "k must be a positive integer, got nan"),
    "array": (np.array([5, 6]), r"k must be a positive integer, got array"),
    "very negative": (-(2**62), "k must be at least 1, got -4611686018427387904"),
    "thousands of digits": (-(10**5000), "k must be at least 1, got "),
}


@pytest.mark.parametrize(("k", "message"), NO_K.values(), ids=NO_K)
def test_k_that_is_no_positive_integer_is_refused_everywhere_alike(
    tiny_ranker: Ranker, ids: list[str], k: Any, message: str
) -> None:
    user, users = tiny_ranker.user(ids[:2]), tiny_ranker.users([ids[:2]])
    asks: list[Callable[[], object]] = [
        lambda: tiny_ranker.rank(ids[:2], k=k),
        lambda: tiny_ranker.rank([], k=k),
        lambda: tiny_ranker.rank_batch([], k=k),
        lambda: user.rank(k),
        lambda: users.rank(k),
    ]
    for ask in asks:
        with pytest.raises(InputError, match=message):
            ask()


@pytest.mark.parametrize("k", [np.int64(3), np.uint8(3), np.array(3)], ids=lambda k: type(k))
def test_numpy_integers_are_good_for_k(tiny_ranker: Ranker, ids: list[str], k: Any) -> None:
    assert len(tiny_ranker.rank(ids[:2], k=k).items) == 3
    assert len(tiny_ranker.user(ids[:2]).rank(k).items) == 3


@pytest.mark.parametrize(
    "k", [60, 61, 2**31, 2**32 + 3, 2**62, 2**64, 10**5000], ids=lambda k: f"{k.bit_length()} bits"
)
def test_k_beyond_the_catalogue_gives_all_there_is(
    tiny_ranker: Ranker, ids: list[str], k: int
) -> None:
    some = tiny_ranker.eligible(ids)
    for history in (ids[:2], []):
        asks: list[dict[str, Any]] = [{}, {"candidates": ids}, {"exclude": ["x"]}]
        for options in [*asks, {"eligible": some}]:
            found = tiny_ranker.rank(history, k=k, **options)
            assert sorted(map(str, found.items)) == sorted(ids)


@pytest.mark.parametrize("k", [1, 2, 29, 30, 31, 59])
def test_a_smaller_k_gives_the_start_of_the_ranking(
    tiny_ranker: Ranker, ids: list[str], k: int
) -> None:
    assert tiny_ranker.rank(ids[:9], k=k).items == tiny_ranker.rank(ids[:9], k=60).items[:k]


# Times


def test_a_batch_with_times_answers_like_its_rows(timed: Ranker, same_order: SameOrder) -> None:
    histories = [["i00001"], ["i00005", "nowhere", "i00007"], ["i00002", "i00003"], []]
    times: list[list[int] | None] = [[5], [0, HOUR, 99 * HOUR], None, []]
    now = [HOUR, None, None, 7]
    batch = timed.rank_batch(histories, times=times, now=now, k=60)
    for history, when, instant, found in zip(histories, times, now, batch, strict=True):
        same_order(found, timed.rank(history, times=when, now=instant, k=60))
    told, untold = batch[0], timed.rank(histories[0], k=60)
    assert np.abs(told.scores - untold.scores).max() > 1e-3


def test_unknown_items_take_their_time_with_them(timed: Ranker) -> None:
    asked: dict[str, Any] = {"now": 2 * HOUR, "k": 60}
    found = timed.rank(["i00003", "new", "i00004"], times=[0, 7, HOUR], **asked)
    expected = timed.rank(["i00003", "i00004"], times=[0, HOUR], **asked)
    user = timed.user(["i00003", "new"], times=[0, 7])
    user.append("i00004", time=HOUR)
    assert found.items == expected.items == user.rank(60, now=2 * HOUR).items


def test_a_gap_as_wide_as_int64_is_the_longest(timed: Ranker, same_order: SameOrder) -> None:
    first, last = -(2**63), 2**63 - 1
    found = timed.user(["i00003"], times=[first]).rank(60, now=last)
    same_order(found, timed.rank(["i00003"], times=[first], now=last, k=60))
    same_order(found, timed.rank(["i00003"], times=[0], now=2**60, k=60))


SOME = ["i00001", "i00002"]
WRONG_TIMES: dict[str, tuple[Callable[[Ranker], object], str]] = {
    "now alone": (lambda r: r.rank(SOME, now=5), "now was given without times: it counts from"),
    "one missing": (lambda r: r.rank(SOME, times=[1]), "times has 1 times for 2 events: pass one"),
    "falling": (lambda r: r.rank(SOME, times=[2, 1]), r"times\[1\] is 1, before times\[0\], 2: pa"),
    "now too early": (
        lambda r: r.rank(SOME, times=[6, 7], now=6),
        "now is 6, before the last event of history, 7",
    ),
    "fraction": (lambda r: r.rank(SOME, times=[0, 0.5]), r"times\[1\] is 0.5 \(float\); times are"),
    "truth": (lambda r: r.rank(SOME, times=[0, True]), r"times\[1\] is True \(bool\)"),
    "outside int64": (lambda r: r.rank(SOME, times=[0, 2**70]), r"times\[1\] is .* outside int64"),
    "now as text": (lambda r: r.rank(SOME, times=[0, 1], now="soon"), r"now is 'soon' \(str\)"),  # type: ignore[arg-type]
    "now of nobody": (lambda r: r.rank([], times=[], now="soon"), r"now is 'soon' \(str\)"),  # type: ignore[arg-type]
    "text": (lambda r: r.rank(SOME, times="12"), "times is the text '12'"),
    "of a batch": (lambda r: r.rank_batch([SOME], times=[[2, 1]]), r"times\[0\]\[1\] is 1, before"),
    "now of a batch": (
        lambda r: r.rank_batch([[], SOME], times=[None, [1, 2]], now=[None, 1]),
        r"now\[1\] is 1, before the last event of histories\[1\], 2",
    ),
    "too few lists": (
        lambda r: r.rank_batch([SOME, SOME], times=[[1, 2]]),
        "times has 1 lists for 2 histories",
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
    "now without the last": (
        lambda r: r.user(SOME).rank(now=2),
        "now was given without the time of the last event: it counts from it",
    ),
    "of users": (
        lambda r: r.users([[], SOME], times=[None, [2, 1]]),
        r"times\[1\]\[1\] is 1, before times\[1\]\[0\], 2",
    ),
    "too few of users": (lambda r: r.users([[], []], times=[[]]), "times has 1 lists for 2 hist"),
    "events of users": (
        lambda r: r.users([[], SOME], times=[[], [1, 3]]).append([None, "i00003"], times=[None, 2]),
        r"user 1: times\[0\] is 2, before the last event, 3",
    ),
}


@pytest.mark.parametrize(("ask", "message"), WRONG_TIMES.values(), ids=WRONG_TIMES)
def test_times_that_make_no_sense_are_refused(
    timed: Ranker, ask: Callable[[Ranker], object], message: str
) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        ask(timed)


def test_a_bundle_of_order_alone_refuses_times(tiny_ranker: Ranker, ids: list[str]) -> None:
    user = tiny_ranker.user(ids[:1])
    asks: list[Callable[[], object]] = [
        lambda: tiny_ranker.rank(ids[:1], times=[1]),
        lambda: tiny_ranker.rank(ids[:1], now=1),
        lambda: tiny_ranker.rank_batch([ids[:1]], times=[[1]]),
        lambda: user.append(ids[0], time=1),
        lambda: user.rank(now=1),
    ]
    for ask in asks:
        with pytest.raises(InputError, match="this bundle does not use times: its model was train"):
            ask()
    assert len(user) == 1


# Other arguments


class Tensor:
    """What numpy refuses with an error of its own, as it does tensors with gradients."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")


STRANGE: dict[str, tuple[Callable[[Any], object], str]] = {
    "history": (lambda r: r.rank(Tensor()), r"history is no array of item ids: Can't call"),
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
    "exclude_seen": (
        lambda r: r.rank([], exclude_seen=np.array([1, 2])),
        r"exclude_seen must be True or False, got array\(\[1, 2\]\)",
    ),
    "exclude_seen of a batch": (
        lambda r: r.rank_batch([[]], exclude_seen=[1]),
        r"exclude_seen must be True or False, got \[1\]",
    ),
    "exclude_seen of a user": (
        lambda r: r.user().rank(exclude_seen="no"),
        "exclude_seen must be True or False, got 'no'",
    ),
    "exclude_seen of users": (
        lambda r: r.users([[]]).rank(exclude_seen=None),
        "exclude_seen must be True or False, got None",
    ),
    "titles": (lambda r: r.titles("50"), "items is the text '50'; pass a list of ids"),
    "find": (lambda r: r.find(None), "text is None; pass a part of a title"),
    "events": (lambda r: r.users([[]]).append(None), "items is None; pass a list"),
    "events as text": (lambda r: r.users([[], []]).append("12"), "items is the text '12'"),
    "times": (lambda r: r.users([[]]).append([None], times=5), "times is 5; pass a list"),
}


@pytest.mark.parametrize(("ask", "message"), STRANGE.values(), ids=STRANGE)
def test_a_strange_argument_is_named(
    tiny_ranker: Ranker, ask: Callable[[Ranker], object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ask(tiny_ranker)


@pytest.mark.parametrize("argument", ["candidates", "exclude", "times", "now"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_lists_of_another_length_than_the_batch_are_refused(
    tiny_ranker: Ranker, ids: list[str], argument: str, count: int
) -> None:
    options: dict[str, Any] = {argument: [[ids[0]]] * count}
    with pytest.raises(InputError, match=f"{argument} has {count} lists for 2 histories"):
        tiny_ranker.rank_batch([[ids[0]], [ids[1]]], **options)


def test_inputs_are_never_changed(number_ranker: Ranker) -> None:
    history, candidates, exclude = [0, 3, 999], [3, 3, 6, 998], np.array([6, 0], dtype=">i4")
    arguments = (history, candidates, exclude)
    before = copy.deepcopy(arguments)
    number_ranker.rank(history, candidates=candidates, exclude=exclude, exclude_seen=True)
    number_ranker.rank_batch([history], candidates=[candidates], exclude=[exclude])
    assert [list(argument) for argument in arguments] == [list(argument) for argument in before]


# Candidates and exclusions


def test_repeated_candidates_come_once_and_unknown_ones_never(
    tiny_ranker: Ranker, ids: list[str]
) -> None:
    found = tiny_ranker.rank(ids[:2], candidates=[ids[4], "x", ids[5], ids[4], "x"])
    assert sorted(map(str, found.items)) == ids[4:6]


def test_a_set_will_do_where_order_means_nothing(tiny_ranker: Ranker, ids: list[str]) -> None:
    some, history = ids[3:9], ids[:2]
    for kind in (set, frozenset):
        found = tiny_ranker.rank(history, k=60, exclude=kind(some))
        assert found.items == tiny_ranker.rank(history, k=60, exclude=some).items
        found = tiny_ranker.rank_batch([history], candidates=[kind(some)])[0]
        assert found.items == tiny_ranker.rank(history, candidates=some).items
        found = tiny_ranker.rank(history, k=60, eligible=tiny_ranker.eligible(kind(some)))
        assert set(found.items) == set(some)


NOTHING: dict[str, Callable[[Ranker], dict[str, Any]]] = {
    "no candidates": lambda _: {"candidates": []},
    "unknown candidates": lambda _: {"candidates": ["nowhere"]},
    "an empty array": lambda _: {"candidates": np.array([])},
    "all excluded": lambda r: {"exclude": r.vocabulary.all_ids},
    "nothing eligible": lambda r: {"eligible": r.eligible(["nowhere"])},
    "no eligible candidate": lambda r: {"eligible": r.eligible(SOME), "candidates": ["i00009"]},
    "all eligible seen": lambda r: {"eligible": r.eligible(["i00000"]), "exclude_seen": True},
    "all candidates seen": lambda _: {"candidates": ["i00000"], "exclude_seen": True},
}


@pytest.mark.parametrize("options", NOTHING.values(), ids=NOTHING)
def test_nothing_left_gives_an_empty_ranking(
    tiny_ranker: Ranker, ids: list[str], options: Callable[[Ranker], dict[str, Any]]
) -> None:
    asked = options(tiny_ranker)
    rows = {key: [asked[key]] for key in ("candidates", "exclude") if key in asked}
    for found in (
        tiny_ranker.rank(ids[:1], **asked),
        tiny_ranker.rank_batch([ids[:1]], **{**asked, **rows})[0],
        tiny_ranker.user(ids[:1]).rank(**asked),
    ):
        assert (found.items, found.scores.shape, found.cold) == ([], (0,), False)


def test_seen_items_beyond_the_maximum_are_excluded_too(
    tiny_ranker: Ranker, ids: list[str]
) -> None:
    for asked in (tiny_ranker, tiny_ranker.user(ids[:50])):
        arguments: Any = [ids[:50]] if isinstance(asked, Ranker) else []
        found = asked.rank(*arguments, k=60, exclude_seen=True)
        assert sorted(map(str, found.items)) == ids[50:]


# The pool of 8 bits is 32 of 60 items, or twice k: 28 seen items are the last that leave it whole.
@pytest.mark.parametrize("seen", [10, 27, 28, 29, 45, 58, 59])
def test_no_seen_item_comes_back_however_few_are_left(
    any_precision: Ranker, ids: list[str], seen: int
) -> None:
    history, some = ids[:seen], ids[5::2]
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
    together = any_precision.rank_batch(histories, k=1, exclude=gone)
    alone = [any_precision.rank(history, k=1) for history in histories[:19]]
    assert [found.items for found in together[:19]] == [found.items for found in alone]
    assert [found.exact for found in together[:19]] == [found.exact for found in alone]
    assert together[19].items == ids[59:]


def test_candidates_are_ranked_without_the_catalogue(
    any_model: Any, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ranker = any_model.ranker
    expected = ranker.rank(ids[:4], k=60).items
    wanted = [item for item in expected if item in ids[7:30]][:10]
    user = ranker.user(ids[:4])

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the catalogue was scored")

    monkeypatch.setattr(ranker.engine, "score", refuse)
    assert ranker.rank(ids[:4], candidates=ids[7:30]).items == wanted
    assert ranker.rank_batch([ids[:4]], candidates=[ids[7:30]])[0].items == wanted
    assert user.rank(candidates=ids[7:30]).items == wanted


def test_a_million_candidates_are_ranked(
    tiny_ranker: Ranker, ids: list[str], same_order: SameOrder
) -> None:
    found = tiny_ranker.rank(ids[:2], k=60, candidates=ids * (10**6 // 60))
    same_order(found, tiny_ranker.rank(ids[:2], k=60))


# What is eligible for many requests


@pytest.fixture(scope="module")
def half(tiny_ranker: Ranker, ids: list[str]) -> Eligible:
    return tiny_ranker.eligible([*ids[::2], ids[0], "nowhere"])


def test_only_eligible_items_are_ranked(
    tiny_ranker: Ranker, ids: list[str], half: Eligible
) -> None:
    found = tiny_ranker.rank(ids[:3], k=60, eligible=half)
    assert sorted(map(str, found.items)) == ids[::2]


def test_a_cold_user_gets_eligible_items_by_popularity(
    tiny_ranker: Ranker, ids: list[str], half: Eligible
) -> None:
    full = tiny_ranker.rank([], k=60).items
    found = tiny_ranker.rank([], k=60, eligible=half, exclude=ids[:9])
    assert found.items == [item for item in full if item in set(ids[::2]) - set(ids[:9])]
    assert found.cold


@pytest.mark.parametrize("history", [["i00003"], []], ids=["known", "cold"])
def test_what_another_ranker_made_is_no_eligible_part(
    tiny_ranker: Ranker, number_ranker: Ranker, history: list[str]
) -> None:
    ids_alone = (["1"], {"1"}, "1", 3)
    for wrong in (number_ranker.eligible([0, 3, 6]), *ids_alone):
        message = "eligible was made by another ranker: make it with this one"
        if not isinstance(wrong, Eligible):
            message = f"eligible is a {type(wrong).__name__}; pass what Ranker.eligible(ids) retu"
        asked: list[Ranker | User | Users] = [tiny_ranker, tiny_ranker.user(history)]
        for one in [*asked, tiny_ranker.users([history])]:
            arguments: Any = [history] if one is tiny_ranker else []
            with pytest.raises(InputError, match=re.escape(message)):
                one.rank(*arguments, eligible=wrong)
        with pytest.raises(InputError, match=re.escape(message)):
            tiny_ranker.rank_batch([history], eligible=wrong)  # type: ignore[arg-type]


# Titles


def test_a_title_stands_for_its_item(tiny_ranker: Ranker, ids: list[str]) -> None:
    for kind in (list, iter, np.array):
        found = tiny_ranker.titles(kind([ids[7], "nowhere"]))  # type: ignore[operator]
        assert found == ["Title 7", "nowhere"]
    assert tiny_ranker.find("TITLE 5") == [ids[5], *ids[50:60]]
