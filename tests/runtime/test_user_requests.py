"""What a kept user may be asked: cold or not, with unknown items, filters and wrong values."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ranklet import InputError, Ranker

ITEMS = 60


def draw(count: int, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(1, ITEMS + 1, count)


def names(ranker: Ranker, indices: NDArray[np.int64]) -> list[str]:
    return [str(item) for item in ranker.vocabulary.ids(indices)]


def test_unknown_items_are_counted_and_change_nothing(any_model: Any) -> None:
    ranker, history = any_model.ranker, names(any_model.ranker, draw(30, seed=6))
    user, known = ranker.user(), ranker.user()
    for count, item in enumerate(history, 1):
        user.extend(["nowhere", item, "else"])
        known.append(item)
        found, expected = user.rank(ITEMS), known.rank(ITEMS)
        assert found.items == expected.items
        assert (found.scores == expected.scores).all()
        assert (found.unknown, user.unknown, len(user)) == (2 * count, 2 * count, count)


@pytest.mark.parametrize("events", [[], ["nowhere"]], ids=["new", "unknown"])
def test_a_user_without_a_known_event_gets_what_is_popular(
    any_model: Any, events: list[str]
) -> None:
    found, expected = (
        any_model.ranker.user(events).rank(ITEMS),
        any_model.ranker.rank(events, k=ITEMS),
    )
    assert found.cold
    assert found.items == expected.items
    assert (found.scores == expected.scores).all()
    assert found.unknown == len(events)


@pytest.mark.parametrize("length", [1, 12, 40])
def test_filters_equal_filtering_the_full_ranking(any_model: Any, length: int) -> None:
    ranker, history = any_model.ranker, names(any_model.ranker, draw(length, seed=7))
    user, random = ranker.user(history), np.random.default_rng(length)
    full = user.rank(ITEMS)
    for _ in range(20):
        some, fewer, gone = (set(names(ranker, random.integers(1, 61, n))) for n in (30, 20, 9))
        options: dict[str, Any] = {
            "candidates": some if random.integers(2) else None,
            "exclude": gone if random.integers(2) else None,
            "exclude_seen": bool(random.integers(2)),
            "eligible": fewer if random.integers(2) else None,
        }
        allowed = set(full.items)
        allowed &= options["candidates"] or allowed
        allowed &= options["eligible"] or allowed
        allowed -= options["exclude"] or set()
        allowed -= set(history) if options["exclude_seen"] else set()
        k = int(random.integers(1, 61))
        asked = {key: list(v) if isinstance(v, set) else v for key, v in options.items()}
        if asked["eligible"] is not None:
            asked["eligible"] = ranker.eligible(asked["eligible"])
        found = user.rank(k, **asked)
        expected = [item for item in full.items if item in allowed][:k]
        assert found.items == expected, options
        assert not found.cold


def test_k_is_checked(tiny_ranker: Ranker, ids: list[str]) -> None:
    with pytest.raises(InputError, match="k must be at least 1, got 0"):
        tiny_ranker.user(ids[:2]).rank(0)
    with pytest.raises(InputError, match="k must be a positive integer, got '5'"):
        tiny_ranker.users([ids[:2]]).rank("5")  # type: ignore[arg-type]


def test_what_is_eligible_for_another_ranker_is_refused(
    tiny_ranker: Ranker, number_ranker: Ranker, ids: list[str]
) -> None:
    foreign = number_ranker.eligible([0, 3])
    for user in (tiny_ranker.user(ids[:2]), tiny_ranker.users([ids[:2]])):
        with pytest.raises(InputError, match="eligible was made by another ranker"):
            user.rank(eligible=foreign)


def test_a_wrong_item_changes_nothing(tiny_ranker: Ranker, ids: list[str]) -> None:
    user = tiny_ranker.user(ids[:3])
    before = user.save()
    with pytest.raises(InputError, match=r"history\[1\] is 5 \(int\)"):
        user.extend([ids[0], 5])
    assert user.save() == before


def test_a_user_of_integer_ids_ranks_integers(number_ranker: Ranker) -> None:
    user = number_ranker.user([-30, -27])
    user.append(147)
    assert user.rank(60).items == number_ranker.rank([-30, -27, 147], k=60).items
