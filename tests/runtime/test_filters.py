"""What may be ranked: candidates, exclusions, and what is eligible for many requests."""

import copy
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ranklet import Eligible, InputError, Ranker, Ranking

SameOrder = Callable[[Ranking, Ranking], None]
same_ranker = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
places = st.lists(st.integers(0, 70), max_size=40)
UNKNOWN = [f"unknown {place}" for place in range(11)]

# Candidates and exclusions


@same_ranker
@given(
    history=st.lists(st.integers(0, 59), min_size=1, max_size=30),
    candidates=st.none() | places,
    excluded=st.none() | places,
    eligible=st.none() | places,
    exclude_seen=st.booleans(),
    k=st.integers(1, 70),
)
def test_what_may_be_ranked_keeps_the_order_of_the_full_ranking(
    any_ranker: Ranker,
    ids: list[str],
    same_order: SameOrder,
    history: list[int],
    candidates: list[int] | None,
    excluded: list[int] | None,
    eligible: list[int] | None,
    exclude_seen: bool,
    k: int,
) -> None:
    names = [*ids, *UNKNOWN]
    seen = [names[place] for place in history]
    wanted, gone, some = (
        None if chosen is None else [names[place] for place in chosen]
        for chosen in (candidates, excluded, eligible)
    )
    full = any_ranker.rank(seen, k=60)
    kept = [
        place
        for place, item in enumerate(full.items)
        if item not in (gone or [])
        and not (exclude_seen and item in seen)
        and (wanted is None or item in wanted)
        and (some is None or item in some)
    ][:k]
    expected = Ranking([str(full.items[place]) for place in kept], full.scores[kept], 0, cold=False)
    options: dict[str, Any] = {
        "exclude_seen": exclude_seen,
        "eligible": None if some is None else any_ranker.eligible(some),
    }
    alone = any_ranker.rank(seen, k=k, candidates=wanted, exclude=gone, **options)
    together = any_ranker.rank_batch(
        [seen, ids[:1]], k=k, candidates=[wanted, None], exclude=[gone, None], **options
    )
    # The pool of 8-bit scores may be smaller than the catalogue, but not than what is asked for.
    for found in (alone, together[0]):
        same_order(found, expected)


def test_repeated_candidates_come_once(tiny_ranker: Ranker, ids: list[str]) -> None:
    found = tiny_ranker.rank(ids[:2], candidates=[ids[4], ids[5], ids[4], ids[4]])
    assert sorted(map(str, found.items)) == sorted(ids[4:6])


def test_unknown_candidates_are_dropped(tiny_ranker: Ranker, ids: list[str]) -> None:
    assert tiny_ranker.rank(ids[:2], candidates=["nowhere", ids[4], "else"]).items == [ids[4]]


@pytest.mark.parametrize("history", ["known", "cold"])
@pytest.mark.parametrize("candidates", [[], ["nowhere"], np.array([])], ids=str)
def test_no_candidates_give_an_empty_ranking(
    tiny_ranker: Ranker, ids: list[str], history: str, candidates: Any
) -> None:
    found = tiny_ranker.rank(ids[:2] if history == "known" else [], candidates=candidates)
    assert (found.items, found.scores.shape) == ([], (0,))


@pytest.mark.parametrize("history", ["known", "cold"])
def test_all_excluded_gives_an_empty_ranking(
    tiny_ranker: Ranker, ids: list[str], history: str
) -> None:
    found = tiny_ranker.rank(ids[:2] if history == "known" else [], exclude=ids)
    assert (found.items, found.scores.shape) == ([], (0,))


def test_no_candidates_of_an_integer_catalogue_give_an_empty_ranking(
    number_ranker: Ranker,
) -> None:
    assert number_ranker.rank([0], candidates=[]).items == []


def test_candidates_that_were_all_seen_give_an_empty_ranking(
    tiny_ranker: Ranker, ids: list[str]
) -> None:
    assert tiny_ranker.rank(ids[:5], candidates=ids[:3], exclude_seen=True).items == []


def test_seen_items_beyond_the_maximum_are_excluded_too(
    tiny_ranker: Ranker, ids: list[str]
) -> None:
    found = tiny_ranker.rank(ids[:50], k=60, exclude_seen=True)
    assert sorted(map(str, found.items)) == sorted(ids[50:])


@pytest.mark.parametrize("seen", [10, 27, 28, 29, 30, 45, 58, 59])
def test_no_seen_item_comes_back_however_few_are_left(
    any_ranker: Ranker, ids: list[str], seen: int
) -> None:
    full = any_ranker.rank(ids[:seen], k=60).items
    left, some = [item for item in full if item not in ids[:seen]], ids[5::2]
    for k in (1, 5):
        options: dict[str, Any] = {"exclude_seen": True, "k": k}
        for history in (ids[:seen], ids[:seen] * 2):
            assert any_ranker.rank(history, **options).items == left[:k]
            assert any_ranker.rank_batch([history], **options)[0].items == left[:k]
        assert any_ranker.user(ids[:seen]).rank(k, exclude_seen=True).items == left[:k]
        found = any_ranker.rank(ids[:seen], eligible=any_ranker.eligible(some), **options)
        assert found.items == [item for item in left if item in some][:k]


def test_unknown_exclusions_are_ignored(tiny_ranker: Ranker, ids: list[str]) -> None:
    found = tiny_ranker.rank(ids[:2], exclude=["nowhere"], unknown="error")
    assert found.items == tiny_ranker.rank(ids[:2]).items


def test_a_million_candidates_are_ranked(
    tiny_ranker: Ranker, ids: list[str], same_order: SameOrder
) -> None:
    candidates = ids * (10**6 // 60)
    found = tiny_ranker.rank(ids[:2], k=60, candidates=candidates)
    same_order(found, tiny_ranker.rank(ids[:2], k=60))


def test_inputs_are_never_changed(number_ranker: Ranker) -> None:
    history, candidates, exclude = [0, 3, 999], [3, 3, 6, 998], np.array([6, 0], dtype=">i4")
    arguments = (history, candidates, exclude)
    before = copy.deepcopy(arguments)
    number_ranker.rank(history, candidates=candidates, exclude=exclude, exclude_seen=True)
    number_ranker.rank_batch([history], candidates=[candidates], exclude=[exclude])
    assert [list(argument) for argument in arguments] == [list(argument) for argument in before]


@pytest.mark.parametrize("count", [1, 31, 33, 50])
def test_any_number_of_items_is_excluded_in_the_graph(
    any_ranker: Ranker, ids: list[str], count: int
) -> None:
    full = any_ranker.rank(ids[5:9], k=60).items
    gone = full[: 2 * count : 2] if count < 30 else full[:count]
    kept = [item for item in full if item not in gone]
    for k in (1, len(kept), 60):
        assert any_ranker.rank(ids[5:9], k=k, exclude=gone).items == kept[:k]
        assert any_ranker.rank_batch([ids[5:9]] * 2, k=k, exclude=[gone, gone])[1].items == kept[:k]


@pytest.mark.parametrize("left", [1, 2, 9])
def test_fewer_items_come_where_fewer_are_left(
    any_ranker: Ranker, ids: list[str], left: int
) -> None:
    full = any_ranker.rank(ids[:3], k=60).items
    found = any_ranker.rank(ids[:3], k=10, exclude=full[:-left])
    assert found.items == full[-left:]
    assert found.scores.shape == (left,)


def test_a_row_with_few_items_left_changes_no_other_row(any_ranker: Ranker, ids: list[str]) -> None:
    histories = [ids[place : place + 3] for place in range(20)]
    gone: list[Any] = [None] * 19 + [ids[:59]]
    together = any_ranker.rank_batch(histories, k=1, exclude=gone)
    alone = [any_ranker.rank(history, k=1) for history in histories[:19]]
    assert [found.items for found in together[:19]] == [found.items for found in alone]
    assert [found.exact for found in together[:19]] == [found.exact for found in alone]
    assert together[19].items == ids[59:]


class Refuse:
    """A session that must not be asked."""

    def run(self, *_: object) -> None:
        raise AssertionError("the catalogue was scored")


def test_candidates_are_ranked_without_the_catalogue(
    any_ranker: Ranker, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = any_ranker.rank(ids[:4], candidates=ids[7:30])
    user = any_ranker.user(ids[:4])
    monkeypatch.setattr(any_ranker.graphs, "session", Refuse())
    assert any_ranker.rank(ids[:4], candidates=ids[7:30]).items == expected.items
    assert any_ranker.rank_batch([ids[:4]], candidates=[ids[7:30]])[0].items == expected.items
    assert user.rank(candidates=ids[7:30]).items == expected.items


# What is eligible for many requests


@pytest.fixture(scope="module")
def half(tiny_ranker: Ranker, ids: list[str]) -> Eligible:
    return tiny_ranker.eligible(ids[::2])


def test_only_eligible_items_are_ranked(
    tiny_ranker: Ranker, ids: list[str], half: Eligible
) -> None:
    found = tiny_ranker.rank(ids[:3], k=60, eligible=half)
    assert sorted(map(str, found.items)) == sorted(ids[::2])


def test_a_cold_user_gets_eligible_items_by_popularity(
    tiny_ranker: Ranker, ids: list[str], half: Eligible
) -> None:
    full = tiny_ranker.rank([], k=60).items
    found = tiny_ranker.rank([], k=60, eligible=half, exclude=ids[:9])
    assert found.items == [item for item in full if item in set(ids[::2]) - set(ids[:9])]
    assert found.cold


@pytest.mark.parametrize("nothing", [[], ["nowhere"]], ids=["empty", "unknown"])
@pytest.mark.parametrize("history", ["known", "cold"])
def test_nothing_eligible_gives_an_empty_ranking(
    tiny_ranker: Ranker, ids: list[str], history: str, nothing: list[str]
) -> None:
    asked = ids[:2] if history == "known" else []
    none = tiny_ranker.eligible(nothing)
    for found in (
        tiny_ranker.rank(asked, eligible=none),
        tiny_ranker.rank(asked, eligible=none, candidates=ids),
        *tiny_ranker.rank_batch([asked], eligible=none),
    ):
        assert (found.items, found.scores.shape) == ([], (0,))


def test_seen_items_may_be_all_that_is_eligible(tiny_ranker: Ranker, ids: list[str]) -> None:
    some = tiny_ranker.eligible(ids[:3])
    assert tiny_ranker.rank(ids[:3], eligible=some, exclude_seen=True).items == []
    assert tiny_ranker.rank(ids[:2] * 4, eligible=some, exclude_seen=True).items == [ids[2]]


def test_repeated_eligible_items_count_once(tiny_ranker: Ranker, ids: list[str]) -> None:
    some = tiny_ranker.eligible([ids[4], ids[5], ids[4]])
    assert sorted(map(str, tiny_ranker.rank(ids[:2], k=9, eligible=some).items)) == ids[4:6]


def test_an_unknown_eligible_item_is_named_in_the_error(
    tiny_ranker: Ranker, ids: list[str]
) -> None:
    with pytest.raises(InputError, match=r"ids\[1\] is 'nowhere', which the catalogue"):
        tiny_ranker.eligible([ids[0], "nowhere"], unknown="error")


def test_what_is_eligible_for_another_ranker_is_refused(
    tiny_ranker: Ranker, number_ranker: Ranker, ids: list[str]
) -> None:
    foreign = number_ranker.eligible([0, 3, 6])
    filters: list[dict[str, Any]] = [{}, {"candidates": ids}, {"exclude": ids[:3]}]
    for history in (ids[:2], []):
        for options in filters:
            with pytest.raises(InputError, match="eligible was made by another ranker"):
                tiny_ranker.rank(history, eligible=foreign, **options)
        with pytest.raises(InputError, match="eligible was made by another ranker"):
            tiny_ranker.rank_batch([history], eligible=foreign)


def test_a_request_does_not_change_what_is_eligible(
    tiny_ranker: Ranker, ids: list[str], half: Eligible
) -> None:
    before = tiny_ranker.rank(ids[:3], k=60, eligible=half)
    tiny_ranker.rank(ids[:3], k=60, eligible=half, exclude=ids[:20], exclude_seen=True)
    tiny_ranker.rank_batch([ids[:3], ids[5:30]], k=60, eligible=half, exclude_seen=True)
    assert tiny_ranker.rank(ids[:3], k=60, eligible=half).items == before.items


@pytest.mark.parametrize("wrong", [["1"], {"1"}, "1", 3], ids=repr)
def test_ids_are_no_eligible_part(tiny_ranker: Ranker, ids: list[str], wrong: Any) -> None:
    message = f"eligible is a {type(wrong).__name__}; pass what Ranker.eligible"
    for call in (
        lambda: tiny_ranker.rank(ids[:3], eligible=wrong),
        lambda: tiny_ranker.rank_batch([ids[:3]], eligible=wrong),
        lambda: tiny_ranker.user(ids[:3]).rank(eligible=wrong),
        lambda: tiny_ranker.users([ids[:3]]).rank(eligible=wrong),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            call()
