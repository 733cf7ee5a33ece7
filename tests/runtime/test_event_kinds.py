"""Histories with kinds of events, and weights of those that are asked for."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ranklet import InputError, Manifest, Ranker, Ranking
from ranklet.event_kinds import LARGEST_WEIGHT, EventKinds

ITEMS = 60
KINDS = ["buy", "cart", "view"]
TOLERANCE = 1e-4
OBJECTIVES: list[Any] = [None, "view", {"buy": 1, "view": 0.2}, {"cart": -1.5, None: 0.5}]


@pytest.fixture(scope="module")
def of_kinds(exported: Any) -> Any:
    """Two blocks, two heads, at most 12 events, without a target."""
    return exported(kinds="use")


@pytest.fixture
def ranker(of_kinds: Any) -> Ranker:
    return Ranker.load(of_kinds.ranker.path, provider="cpu")


def draw(length: int, seed: int = 0) -> tuple[list[str], list[str | None]]:
    """Return items and their kinds, of which some are unknown."""
    random = np.random.default_rng((length, seed))
    items = [f"i{number:05}" for number in random.integers(0, ITEMS, length)]
    return items, [[None, *KINDS][kind] for kind in random.integers(0, 4, length)]


def weights_of(objective: Any) -> torch.Tensor:
    weights = torch.zeros(4)
    given = {None: 1} if objective is None else objective
    for kind, weight in ({given: 1} if isinstance(given, str) else given).items():
        weights[[None, *KINDS].index(kind)] = weight
    return weights


def scores(
    of_kinds: Any, items: list[str], kinds: list[str | None], objective: Any
) -> NDArray[np.float32]:
    """Return the scores of all items by the torch model, (items,)."""
    latest = slice(-12, None)
    history = torch.tensor([[int(item[1:]) + 1 for item in items[latest]]])
    of_events = torch.tensor([[[None, *KINDS].index(kind) for kind in kinds[latest]]])
    table = of_kinds.model.table()
    with torch.no_grad():
        asked = of_events, weights_of(objective)[None]
        user = of_kinds.model.serve(history, table, None, asked)
        found: NDArray[np.float32] = (user @ table[1:].T)[0].numpy()
    return found


def assert_right(found: Ranking, expected: NDArray[np.float32], where: object = "") -> None:
    """Compare a ranking of every item with their scores."""
    shown = [int(item[1:]) for item in found.items]
    assert sorted(shown) == [*range(ITEMS)]
    off = np.abs(found.scores - expected[shown]).max()
    assert off <= TOLERANCE, f"{where}: scores differ by {off:.1e}"


# Whole histories


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_rankings_are_those_of_the_model(of_kinds: Any, objective: Any) -> None:
    for length in (1, 2, 7, 12, 20):
        items, kinds = draw(length)
        found = of_kinds.ranker.rank(items, kinds=kinds, objective=objective, k=ITEMS)
        assert_right(found, scores(of_kinds, items, kinds, objective), length)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_a_batch_answers_as_each_history(of_kinds: Any, objective: Any, same_order: Any) -> None:
    ranker, rows = of_kinds.ranker, [draw(length) for length in (3, 12, 1, 20, 5)]
    kinds = [rows[0][1], None, *(of_row for _, of_row in rows[2:])]
    histories = [items for items, _ in rows]
    batch = ranker.rank_batch(histories, kinds=kinds, objective=objective, k=ITEMS)
    for found, items, of_row in zip(batch, histories, kinds, strict=True):
        same_order(found, ranker.rank(items, kinds=of_row, objective=objective, k=ITEMS))


def test_objectives_are_mixed_before_the_query(of_kinds: Any) -> None:
    items, kinds = draw(6)
    mixed = copy.deepcopy(of_kinds.model)
    objective = {"buy": 1, "view": 0.2, "cart": -0.7}
    with torch.no_grad():
        mixed.objective[0] = weights_of(objective) @ of_kinds.model.objective
    found = of_kinds.ranker.rank(items, kinds=kinds, objective=objective, k=ITEMS)
    assert_right(found, scores(of_kinds._replace(model=mixed), items, kinds, None))


def test_a_user_vector_scores_as_its_ranking(of_kinds: Any) -> None:
    (items, kinds), ranker = draw(5), of_kinds.ranker
    for objective in OBJECTIVES:
        vector = ranker.user_vector(items, kinds=kinds, objective=objective)
        found = ranker.rank(items, kinds=kinds, objective=objective, k=ITEMS)
        products = ranker.item_vectors(found.items) @ vector
        np.testing.assert_allclose(found.scores, products, atol=TOLERANCE)


def test_unknown_items_take_their_kinds_along(of_kinds: Any) -> None:
    items, kinds = draw(4)
    found = of_kinds.ranker.rank(
        ["?", *items[:2], "!", *items[2:]], kinds=["buy", *kinds[:2], None, *kinds[2:]], k=ITEMS
    )
    assert found.unknown == 2
    assert_right(found, scores(of_kinds, items, kinds, None))


def test_kinds_may_be_an_array(of_kinds: Any) -> None:
    items, _ = draw(3)
    expected = of_kinds.ranker.rank(items, kinds=["view", "buy", "view"])
    for kinds in (np.array(["view", "buy", "view"]), ("view", "buy", "view")):
        assert of_kinds.ranker.rank(items, kinds=kinds).items == expected.items


def test_drops_are_those_of_rankings_without_an_event(of_kinds: Any) -> None:
    (items, kinds), ranker, objective = draw(5), of_kinds.ranker, {"buy": 1, "view": 0.2}
    user = ranker.user(items, kinds=kinds)
    user.rank()
    for found in (
        ranker.rank(items, kinds=kinds, objective=objective, k=3, explain=5),
        user.rank(3, objective=objective, explain=5),
    ):
        shown = [int(item[1:]) for item in found.items]
        whole = scores(of_kinds, items, kinds, objective)[shown]
        for drops, place in zip(
            found.explanation.effects.drops.T, found.explanation.effects.examined, strict=True
        ):
            rest = [[*part[:place], *part[place + 1 :]] for part in (items, kinds)]
            without = scores(of_kinds, rest[0], rest[1], objective)[shown]
            np.testing.assert_allclose(drops, whole - without, atol=TOLERANCE)


def test_added_items_have_kinds_in_histories(ranker: Ranker, same_order: Any) -> None:
    items, kinds = draw(5)
    like = {"new": [items[-1]]}
    ranker.add_items({"item_id": ["new"]}, like=like, in_histories=True, bias=-1000)
    expected = ranker.rank(items, kinds=kinds, objective="cart", k=ITEMS)
    events = [*items[:-1], "new"]
    user = ranker.user(events[:2], kinds=kinds[:2])
    user.rank()
    user.extend(events[2:], kinds=kinds[2:])
    same_order(ranker.rank(events, kinds=kinds, objective="cart", k=ITEMS), expected)
    same_order(user.rank(ITEMS, objective="cart"), expected)


# Kept users


def test_a_kept_user_ranks_as_the_whole_history(of_kinds: Any) -> None:
    (items, kinds), user = draw(12), of_kinds.ranker.user()
    for count, (item, kind) in enumerate(zip(items, kinds, strict=True), 1):
        user.append(item, kind=kind)
        for objective in OBJECTIVES if count % 3 else ():
            found = user.rank(ITEMS, objective=objective)
            assert_right(found, scores(of_kinds, items[:count], kinds[:count], objective), count)


def test_an_objective_changes_no_state(of_kinds: Any) -> None:
    (items, kinds), users = draw(9), [of_kinds.ranker.user() for _ in range(2)]
    for user, objective in zip(users, ("view", {"buy": -3}), strict=True):
        user.extend(items[:7], kinds=kinds[:7])
        user.rank(objective=objective)
        user.extend(items[7:], kinds=kinds[7:])
        user.rank(objective=objective)
    assert users[0].save() == users[1].save()


def test_the_window_rolls_with_kinds(of_kinds: Any) -> None:
    items, kinds = draw(30)
    one_by_one, users = of_kinds.ranker.user(), of_kinds.ranker.users([[]])
    for item, kind in zip(items, kinds, strict=True):
        one_by_one.append(item, kind=kind)
        one_by_one.rank(objective="buy")
        users.append([item], kinds=[kind])
        users.rank(objective={"view": 2})
    found, expected = users.rank(ITEMS)[0], one_by_one.rank(ITEMS)
    assert found.items == expected.items
    np.testing.assert_array_equal(found.scores, expected.scores)
    blind = of_kinds.ranker.user()
    for item in items:
        blind.append(item)
        blind.rank()
    assert not np.allclose(np.sort(blind.rank(ITEMS).scores), np.sort(expected.scores))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_many_users_rank_as_each(of_kinds: Any, objective: Any) -> None:
    rows = [draw(length) for length in (4, 1, 12)]
    histories, kinds = [items for items, _ in rows], [of_row for _, of_row in rows]
    users = of_kinds.ranker.users([row[:-1] for row in histories], kinds=[k[:-1] for k in kinds])
    users.rank(objective=objective)
    users.append([row[-1] for row in histories], kinds=[row[-1] for row in kinds])
    for found, items, of_row in zip(
        users.rank(ITEMS, objective=objective), histories, kinds, strict=True
    ):
        assert_right(found, scores(of_kinds, items, of_row, objective))
    users.append([None, "?", histories[0][0]], kinds=["buy", "view", None])
    assert_right(users.rank(ITEMS)[0], scores(of_kinds, *rows[0], None))


def test_a_saved_user_goes_on_with_its_kinds(of_kinds: Any) -> None:
    items, kinds = draw(8)
    user = of_kinds.ranker.user([*items[:4], "?"], kinds=[*kinds[:4], "view"])
    user.rank()
    user.extend(items[4:6], kinds=kinds[4:6])
    restored = of_kinds.ranker.user().load(user.save())
    assert restored.save() == user.save()
    assert [event.kind for event in restored._kept.counts.log.aside] == [3]
    restored.extend(items[6:], kinds=kinds[6:])
    for objective in OBJECTIVES:
        found = restored.rank(ITEMS, objective=objective)
        assert_right(found, scores(of_kinds, items, kinds, objective))


# Another bundle


@pytest.fixture(scope="module")
def renamed(of_kinds: Any, sign: Any, build_once: Callable[..., Path]) -> Path:
    """The bundle with other names: its buy is called cart, its cart skip, its view view."""

    def make(path: Path) -> None:
        shutil.copytree(of_kinds.ranker.path, path)
        sign(path, Manifest.read(path), kinds=["cart", "skip", "view"])

    return build_once("kinds-renamed", make)


def test_kinds_are_known_by_name_after_a_reload(ranker: Ranker, renamed: Path) -> None:
    items, kinds = draw(9)
    user, users = ranker.user(items, kinds=kinds), ranker.users([items], kinds=[kinds])
    user.rank()
    users.rank()
    user.append("?", kind="cart")
    ranker.reload(renamed)
    assert ranker.kinds == ["cart", "skip", "view"]
    known = [None if kind == "buy" else kind for kind in kinds]
    for objective in (None, {"cart": 1, "skip": -0.4}):
        expected = ranker.rank(items, kinds=known, objective=objective, k=ITEMS)
        whole = Ranker.load(renamed, provider="cpu").user(items, kinds=known)
        assert user.rank(ITEMS, objective=objective).items == expected.items
        assert users.rank(ITEMS, objective=objective)[0].items == expected.items
        assert whole.rank(ITEMS, objective=objective).items == expected.items
    assert [event.kind for event in user._kept.counts.log.aside] == [1]


def test_a_bundle_without_kinds_forgets_them(
    ranker: Ranker, tiny_bundle: Path, same_order: Any
) -> None:
    items, kinds = draw(9)
    user, first = ranker.user(items, kinds=kinds), ranker.path
    user.rank()
    ranker.reload(tiny_bundle)
    same_order(user.rank(ITEMS), ranker.rank(items, k=ITEMS))
    ranker.reload(first)
    same_order(user.rank(ITEMS), ranker.rank(items, k=ITEMS))


# Refusals

HISTORY = ["i00001", "i00002"]
KNOWN = r"the kinds of this bundle are \['buy', 'cart', 'view'\]"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"kinds": ["buy", "bye"]}, rf"^kinds\[1\] is 'bye', and {KNOWN}$"),
    "number": ({"kinds": ["buy", 1]}, rf"^kinds\[1\] is 1, and {KNOWN}$"),
    "nan": ({"kinds": [float("nan"), "buy"]}, r"^kinds\[0\] is nan"),
    "list": ({"kinds": [["buy"], "buy"]}, r"^kinds\[0\] is \['buy'\], and"),
    "few": ({"kinds": ["buy"]}, "^kinds has 1 kinds for 2 events: pass one for each$"),
    "text": ({"kinds": "buy"}, "^kinds is the text 'buy'"),
    "set": ({"kinds": {"buy", "view"}}, "^kinds is a set, which has no order"),
    "table": ({"kinds": np.zeros((1, 2), int)}, r"^kinds has shape \(1, 2\)"),
    "long": ({"kinds": ["x" * 9_000, "buy"]}, r"^kinds\[0\] is 'x{79}\.\.\. \(9,002 char"),
    "objective": ({"objective": "bye"}, rf"^a kind of objective is 'bye', and {KNOWN}$"),
    "objectives": ({"objective": {"buy": 1, "bye": 2}}, "^a kind of objective is 'bye'"),
    "empty": ({"objective": {}}, "^objective has no weight but 0: ask for at least one kind"),
    "zero": ({"objective": {"buy": 0, "view": 0.0}}, "^objective has no weight but 0"),
    "infinite": ({"objective": {"buy": float("inf")}}, "^objective of 'buy' must be a number from"),
    "no number": ({"objective": {"buy": "1"}}, "^objective of 'buy' must be a number .*'1'$"),
    "true": ({"objective": {"buy": True}}, "^objective of 'buy' must be a number .*True$"),
    "a list": ({"objective": ["buy"]}, r"^objective is \['buy'\]; pass a kind .*\{'buy': 1\}$"),
}


@pytest.mark.parametrize(("asked", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_kind_or_weight_is_named(
    of_kinds: Any, asked: dict[str, Any], message: str
) -> None:
    ranker = of_kinds.ranker
    with pytest.raises(InputError, match=message) as caught:
        ranker.rank(HISTORY, **asked)
    assert len(str(caught.value)) < 400
    with pytest.raises(InputError, match=message):
        ranker.user_vector(HISTORY, **asked)
    if "objective" in asked:
        with pytest.raises(InputError, match=message):
            ranker.rank_batch([HISTORY], **asked)
        with pytest.raises(InputError, match=message):
            ranker.user(HISTORY).rank(**asked)
        with pytest.raises(InputError, match=message):
            ranker.users([HISTORY]).rank(**asked)
    else:
        of_row = message.replace("^kinds", r"^kinds\[0\]")
        for call in (ranker.rank_batch, ranker.users):
            with pytest.raises(InputError, match=of_row):
                call([HISTORY], kinds=[asked["kinds"]])
        with pytest.raises(InputError, match=message):
            ranker.user(HISTORY, **asked)


@pytest.mark.parametrize("kind", ["bye", 7, ["buy"]])
def test_an_event_of_no_kind_is_not_added(of_kinds: Any, kind: Any) -> None:
    user, users = of_kinds.ranker.user(HISTORY, kinds=KINDS[:2]), of_kinds.ranker.users([HISTORY])
    before = user.save(), users[0].save()
    for item in ("i00003", "?"):
        with pytest.raises(InputError, match=f"^kind is .*, and {KNOWN}"):
            user.append(item, kind=kind)
    with pytest.raises(InputError, match=rf"^user 0: kinds\[0\] is .*, and {KNOWN}"):
        users.append(["i00003"], kinds=[kind])
    with pytest.raises(InputError, match="1 items, 1 times, 2 kinds, 1 users"):
        users.append(["i00003"], kinds=["buy", "buy"])
    assert (user.save(), users[0].save()) == before


@pytest.mark.parametrize("asked", [{"kinds": ["buy", None]}, {"objective": "buy"}], ids=str)
def test_a_bundle_without_kinds_refuses_them(tiny_ranker: Ranker, asked: dict[str, Any]) -> None:
    message = "^this bundle does not use kinds of events: its model was trained without them$"
    assert (tiny_ranker.kinds, tiny_ranker.objective) == ([], {None: 1})
    with pytest.raises(InputError, match=message):
        tiny_ranker.rank(HISTORY, **asked)
    if "kinds" in asked:
        with pytest.raises(InputError, match=message):
            tiny_ranker.user(HISTORY, **asked)
        with pytest.raises(InputError, match=message):
            tiny_ranker.user().append("i00001", kind="buy")
    else:
        with pytest.raises(InputError, match=message):
            tiny_ranker.user(HISTORY).rank(**asked)
        with pytest.raises(InputError, match=message):
            tiny_ranker.users([HISTORY]).rank(**asked)


def test_the_largest_weight_gives_finite_scores(of_kinds: Any) -> None:
    items, kinds = draw(5)
    for weight in (LARGEST_WEIGHT, -LARGEST_WEIGHT):
        found = of_kinds.ranker.rank(items, kinds=kinds, objective={"buy": weight}, k=ITEMS)
        assert_right(found, scores(of_kinds, items, kinds, {"buy": weight}))


def test_kinds_of_another_bundle_have_their_index_there() -> None:
    here, there = EventKinds(["buy", "cart", "view"]), EventKinds(["ask", "view", "buy"])
    assert here.translated(there) == [0, 3, 0, 2]
    assert here.translated(EventKinds([])) == [0, 0, 0, 0]
    assert EventKinds([]).translated(here) == [0]
