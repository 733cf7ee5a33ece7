"""Filters, boosts, limits, pages and diversity equal a slow reference, with items added or not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ranklet import InputError, Manifest, Ranker
from ranklet.attributes import Attributes
from ranklet.catalogue import LARGEST_BOOST
from ranklet_export.export import Settings, export_random

ITEMS, ADDED = 2_000, 40
BRANDS = [f"brand {number}" for number in range(30)]
TAGS = ["new", "sale", "organic", "adult"]
PRECISIONS = ["fp32", "fp16", "int8", "int4"]
CLOSE = 1e-4
# fp16 rounds tables: the reference reads the same rows, sums differ.
Row = dict[str, Any]


def table_of(ids: list[str], seed: int) -> list[Row]:
    """Return a table of items with a brand, tags and a price, some of them missing."""
    random = np.random.default_rng(seed)
    return [
        {
            "item_id": item,
            "title": f"Title {item}",
            "brand": None if random.random() < 0.1 else str(random.choice(BRANDS)),
            "tags": [str(tag) for tag in random.permutation(TAGS)[: random.integers(0, 3)]],
            "price": None if random.random() < 0.1 else float(random.integers(1, 100)),
        }
        for item in ids
    ]


class World:
    """A ranker, and all that is known of its items."""

    def __init__(self, path: Path, rows: list[Row]) -> None:
        self.ranker = Ranker.load(path, provider="cpu")
        self.rows = {row["item_id"]: row for row in rows}
        self.ids = sorted(self.rows)
        self.sets = {"in_stock": set(self.ids[::2]), "adult": set(self.ids[5:400])}
        self.bias = dict.fromkeys(self.ids, 0.0)
        self.is_grown = False
        for name, ids in self.sets.items():
            self.ranker.define(name, ids)

    def grow(self) -> None:
        """Add items by vectors, some with a bias; they sort among the others."""
        random = np.random.default_rng(5)
        ids = [f"{int(self.ids[place])}x" for place in random.permutation(ITEMS)[:ADDED]]
        rows = table_of(ids, 6)
        width = self.ranker.manifest.width
        for part, bias in ((slice(0, 30), 0.0), (slice(30, None), -0.5)):
            vectors = random.normal(size=(len(ids[part]), width))
            self.ranker.add_items(rows[part], vectors=vectors, bias=bias)
            self.bias |= dict.fromkeys(ids[part], bias)
        self.rows |= {row["item_id"]: row for row in rows}
        self.ids = sorted(self.rows)
        self.is_grown = True

    def meets(self, item: str, where: Any) -> bool:
        """Return whether an item meets a filter, the slow way."""
        if isinstance(where, str):
            name = where.removeprefix("!")
            return (item in self.sets[name]) != where.startswith("!")
        if isinstance(where, list):
            return all(self.meets(item, part) for part in where)
        return all(self._has(item, name, value) for name, value in where.items())

    def _has(self, item: str, name: str, wanted: Any) -> bool:
        if name.startswith("!"):
            return not self._has(item, name[1:], wanted)
        value = self.rows[item][name]
        if name == "price":
            if value is None:
                return False
            if isinstance(wanted, tuple):
                low, high = wanted
                return (low is None or value >= low) and (high is None or value <= high)
            return value in (wanted if isinstance(wanted, list) else [wanted])
        several = wanted if isinstance(wanted, list) else [wanted]
        return bool({*several} & {*(value if isinstance(value, list) else [value])})

    def expected(self, history: list[str], how: dict[str, Any]) -> tuple[list[str], list[float]]:
        """Return the ranking by a sort of all items, and one at a time."""
        user = self.ranker.user_vector(history).astype(np.float64)
        vectors = self.ranker.item_vectors(self.ids).astype(np.float64)
        scores = dict(zip(self.ids, (vectors @ user).tolist(), strict=True))
        left = []
        for item in self.ids:
            score = scores[item] + self.bias[item]
            for where, points in how.get("boost", []):
                score += points * self.meets(item, where)
            score -= how.get("penalty", 1.0) * (item in how.get("seen_recently", []))
            is_shown = item in how.get("candidates", self.ids)
            is_shown &= item not in how.get("exclude", [])
            is_shown &= not (how["exclude_seen"] and item in history)
            if is_shown and self.meets(item, how.get("where", {})):
                left.append((-score, item))
        kept: list[tuple[str, float]] = []
        counts: dict[tuple[str, str], int] = {}
        for negative, item in sorted(left):
            values = [
                (name, value)
                for name in how.get("at_most", {})
                for value in np.atleast_1d(self.rows[item][name] or [])
            ]
            if all(counts.get(key, 0) < how["at_most"][key[0]] for key in values):
                kept.append((item, -negative))
                for key in values:
                    counts[key] = counts.get(key, 0) + 1
        page = kept[how.get("skip", 0) :][: how["k"]]
        page = [pair for pair in page if pair[1] >= how.get("min_score", -np.inf)]
        return [item for item, _ in page], [score for _, score in page]


def draw(random: np.random.Generator, world: World) -> tuple[list[str], dict[str, Any]]:
    """Draw a history and a request."""
    some = [str(item) for item in random.choice(world.ids, 300, replace=False)]
    known = [item for item in some if not item.endswith("x")]  # the others are no events
    history = known[: random.integers(1, 30)]
    brands = [str(b) for b in random.choice(BRANDS, random.integers(1, 9), replace=False)]
    conditions: list[Any] = [
        "in_stock",
        "!adult",
        {"brand": brands},
        {"tags": str(random.choice(TAGS))},
        {"price": (None, float(random.integers(5, 99)))},
        {"!brand": brands[0], "price": (20, None)},
    ]
    how: dict[str, Any] = {
        "k": int(random.integers(1, 25)),
        "exclude_seen": bool(random.integers(2)),
    }
    options: dict[str, Any] = {
        "where": [conditions[p] for p in random.permutation(6)[: random.integers(1, 3)]],
        "boost": [(conditions[p], float(random.normal())) for p in random.permutation(6)[:2]],
        "seen_recently": some[40:90],
        "penalty": float(random.uniform(0, 3)),
        "at_most": {str(random.choice(["brand", "tags"])): int(random.integers(1, 4))},
        "candidates": some[100 : 100 + int(random.integers(1, 150))],
        "exclude": some[30 : int(random.integers(31, 200))],
        "skip": int(random.integers(1, 30)),
        "min_score": float(random.normal()),
    }
    chosen = random.random(len(options)) < 0.35
    how |= {n: v for (n, v), is_on in zip(options.items(), chosen, strict=True) if is_on}
    return history, how


@pytest.fixture(scope="module")
def with_attributes(
    build_once: Callable[..., Path], sign: Any
) -> Callable[[str], tuple[Path, Any]]:
    def build(precision: Any) -> tuple[Path, list[Row]]:
        def make(path: Path) -> None:
            shape = f"items={ITEMS},width=16,blocks=1,heads=1,length=20"
            export_random(shape, path, Settings(precision=precision))
            manifest = Manifest.read(path)
            kinds = {"brand": "category", "tags": "categories", "price": "number"}
            rows = table_of([*map(str, Ranker.load(path).ids)], 1)
            columns = {name: [row[name] for row in rows] for name in kinds}
            attributes = Attributes.empty(kinds).with_items(columns, np.arange(1, ITEMS + 1), ITEMS)
            sign(path, manifest, attributes=attributes.write(path))

        path = build_once(f"attributes-{precision}", make)
        return path, table_of([*map(str, Ranker.load(path).ids)], 1)

    return build


@pytest.fixture(scope="module", params=PRECISIONS)
def world(request: pytest.FixtureRequest, with_attributes: Any) -> World:
    return World(*with_attributes(request.param))


@pytest.fixture(scope="module", params=["int8", "fp32"])
def grown(request: pytest.FixtureRequest, with_attributes: Any) -> World:
    world = World(*with_attributes(request.param))
    world.grow()
    return world


def check(world: World, found: Any, expected: tuple[list[str], list[float]], how: Any) -> None:
    items, scores = expected
    assert len(found.items) == len(items), how
    assert found.scores == pytest.approx(scores, abs=CLOSE), how
    for place, (item, right) in enumerate(zip(found.items, items, strict=True)):
        gaps = [
            abs(scores[place] - scores[other])
            for other in (place - 1, place + 1)
            if 0 <= other < len(scores)
        ]
        is_tied = min(gaps, default=1.0) < CLOSE
        assert item == right or is_tied or place == len(items) - 1, how


@pytest.mark.parametrize("seed", range(3))
def test_requests_equal_a_slow_reference(world: World, seed: int) -> None:
    random = np.random.default_rng([seed, ITEMS])
    for _ in range(15):
        history, how = draw(random, world)
        found = world.ranker.rank(history, **how)
        check(world, found, world.expected(history, how), how)


@pytest.mark.parametrize("seed", range(3))
def test_requests_with_added_items_equal_a_slow_reference(grown: World, seed: int) -> None:
    random = np.random.default_rng([seed, ADDED])
    for _ in range(15):
        history, how = draw(random, grown)
        found = grown.ranker.rank(history, **how)
        check(grown, found, grown.expected(history, how), how)


@pytest.mark.parametrize("seed", range(3))
def test_kept_users_and_batches_equal_a_slow_reference(grown: World, seed: int) -> None:
    random = np.random.default_rng([seed, 7])
    for _ in range(10):
        history, how = draw(random, grown)
        expected = grown.expected(history, how)
        user = grown.ranker.user(history[:-1])
        user.rank(1)
        user.append(history[-1])
        check(grown, user.rank(**how), expected, how)
        own = {"candidates", "exclude", "seen_recently"}
        shared = {name: value for name, value in how.items() if name not in own}
        of_rows = {name: [how[name]] * 3 for name in own & {*how}}
        histories = [history, grown.ids[:3], history]
        rankings = grown.ranker.rank_batch(histories, **shared, **of_rows)
        for place in (0, 2):
            check(grown, rankings[place], expected, how)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_many_requests_equal_a_slow_reference(grown: World, seed: int) -> None:
    random = np.random.default_rng([seed, 11])
    for _ in range(50):
        history, how = draw(random, grown)
        expected = grown.expected(history, how)
        check(grown, grown.ranker.rank(history, **how), expected, how)
        check(grown, grown.ranker.user(history).rank(**how), expected, how)


def test_exact_is_a_proof_with_boosts(with_attributes: Any) -> None:
    world = World(*with_attributes("int4"))
    random, proven = np.random.default_rng(3), 0
    for _ in range(60):
        history, how = draw(random, world)
        how.pop("candidates", None)
        how["boost"] = [("in_stock", float(random.normal())), ({"brand": BRANDS[:9]}, 0.3)]
        found = world.ranker.rank(history, **how)
        if found.exact:
            proven += 1
            _, scores = world.expected(history, how)
            assert found.scores == pytest.approx(scores, abs=CLOSE)
    assert proven > 5


def test_a_least_score_below_the_pool_is_no_proof(with_attributes: Any) -> None:
    world = World(*with_attributes("int4"))
    for place in range(20):
        history = world.ids[place : place + 5]
        whole = world.ranker.rank(history, k=10)
        least = float(whole.scores[2]) - 1e-4
        cut = world.ranker.rank(history, k=10, min_score=least)
        assert cut.items == whole.items[:3]
        assert cut.exact == whole.exact  # an item outside may reach what the others do not


def test_a_filter_that_leaves_three_items_gives_three(grown: World) -> None:
    three = grown.ids[10:13]
    grown.ranker.define("three", three)
    assert {*grown.ranker.rank(grown.ids[100:105], where="three", exclude_seen=False).items} == {
        *three
    }
    grown.ranker.define("new", [item for item in grown.ids if item.endswith("x")][:3])
    assert len(grown.ranker.rank(grown.ids[100:105], where="new").items) == 3


def test_a_boost_of_each_item_is_an_array_in_the_order_of_ids(world: World) -> None:
    ranker, history = world.ranker, world.ids[:4]
    points = np.zeros(len(ranker.ids), dtype=np.float32)
    points[[7, 900]] = 50, 40
    best = ranker.rank(history, boost=points, exclude_seen=False, k=2)
    assert best.items == [ranker.ids[7], ranker.ids[900]]


def test_pages_follow_each_other(world: World) -> None:
    history = world.ids[:9]
    whole = world.ranker.rank(history, k=30).items
    pages = [world.ranker.rank(history, k=10, skip=skip).items for skip in (0, 10, 20)]
    assert [item for page in pages for item in page] == whole


def test_a_cold_user_gets_what_is_popular_under_a_filter(world: World) -> None:
    ranking = world.ranker.rank([], where={"brand": BRANDS[3]}, k=5)
    assert ranking.cold
    assert all(world.rows[item]["brand"] == BRANDS[3] for item in ranking.items)
    assert ranking.items == world.ranker.popular(5, where={"brand": BRANDS[3]}).items
    shown = ranking.items[:2]
    again = world.ranker.rank([], where={"brand": BRANDS[3]}, k=5, seen_recently=shown)
    assert again.items[:3] == ranking.items[2:]


def marginal_relevance(rows: Any, scores: Any, diversity: float, k: int) -> list[int]:
    """Return places by maximal marginal relevance, one pair of items at a time."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    relevance = (scores - scores.min()) / (scores.max() - scores.min())
    chosen: list[int] = []
    while len(chosen) < k:
        worth = {
            place: (1 - diversity) * relevance[place]
            - diversity * max((float(unit[place] @ unit[other]) for other in chosen), default=0.0)
            for place in range(len(rows))
            if place not in chosen
        }
        chosen.append(max(worth, key=worth.__getitem__))
    return chosen


@pytest.mark.parametrize("diversity", [0.1, 0.5, 0.9])
def test_diversity_is_maximal_marginal_relevance(grown: World, diversity: float) -> None:
    ranker, history = grown.ranker, grown.ids[:6]
    pool = ranker.rank(history, k=100)
    rows = ranker.item_vectors(pool.items).astype(np.float64)
    places = marginal_relevance(rows, pool.scores.astype(np.float64), diversity, 20)
    found = ranker.rank(history, k=20, diversity=diversity)
    assert found.items == [pool.items[place] for place in places]


def test_similar_items_are_those_of_the_largest_cosine(grown: World) -> None:
    ranker = grown.ranker
    for item in (grown.ids[0], next(item for item in grown.ids if item.endswith("x"))):
        rows = ranker.item_vectors(grown.ids).astype(np.float64)
        own = rows[grown.ids.index(item)]
        cosines = rows @ own / (own @ own)
        order = [grown.ids[place] for place in np.argsort(-cosines, kind="stable")]
        assert ranker.similar(item, 10).items == [other for other in order if other != item][:10]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "undefined": (
        {"where": "in_stok"},
        r"where names 'in_stok', which is not defined: .*'in_stock'",
    ),
    "attribute": (
        {"where": {"colour": "red"}},
        "no attribute is called 'colour'; there are 'brand'",
    ),
    "number": ({"where": 5}, "where is 5; pass the name of a defined filter"),
    "set": ({"where": [{"brand"}]}, r"where holds \{'brand'\}; pass the name"),
    "key": ({"where": {3: "x"}}, "where has the key 3; keys name attributes"),
    "boost text": ({"boost": "in_stock"}, "boost is 'in_stock'; pass"),
    "boost NaN": (
        {"boost": {"in_stock": float("nan")}},
        "boost of 'in_stock' must be a number from",
    ),
    "boost large": (
        {"boost": {"in_stock": 2 * LARGEST_BOOST}},
        "boost of 'in_stock' must be a num",
    ),
    "boost short": ({"boost": np.zeros(3)}, r"boost has shape \(3,\) and dtype float64"),
    "boost array": ({"boost": np.full(ITEMS, np.inf)}, r"boost\[0\] is inf; a boost is a number"),
    "penalty": ({"seen_recently": [], "penalty": -1}, "penalty must be a number from 0 to"),
    "skip": ({"skip": -1}, "skip must be a whole number from 0 on, got -1"),
    "skip float": ({"skip": 1.5}, "skip must be a whole number from 0 on, got 1.5"),
    "min_score": ({"min_score": "high"}, "min_score must be a number from .*, got 'high'"),
    "at_most": ({"at_most": ["brand"]}, r"at_most is \['brand'\]; pass \{attribute: number\}"),
    "at_most number": (
        {"at_most": {"price": 2}},
        "attribute 'price' holds numbers, not categories",
    ),
    "at_most none": ({"at_most": {"brand": 0}}, "at_most of 'brand' must be a whole number from 1"),
    "diversity": ({"diversity": 1.2}, "diversity must be a number from 0 to 1, got 1.2"),
    "diversity flag": ({"diversity": True}, "diversity must be a number from 0 to 1, got True"),
    "cold": ({"cold": "random"}, "cold must be 'popular' or 'trending', got 'random'"),
    "trending": ({"cold": "trending"}, "does not know what was popular lately"),
    "explain": ({"explain": -1}, "explain must be a whole number from 1 on, got -1"),
}


@pytest.mark.parametrize(("how", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_asked_is_named(with_attributes: Any, how: Any, message: str) -> None:
    world = World(*with_attributes("int8"))
    history = [] if how.get("cold") else world.ids[:3]
    for ask in (world.ranker.rank, lambda history, **how: world.ranker.user(history).rank(**how)):
        with pytest.raises(InputError, match=message):
            ask(history, **how)


def test_a_definition_counts_items_that_are_added_later(with_attributes: Any) -> None:
    world = World(*with_attributes("int8"))
    world.ranker.define("ours", ["mine", world.ids[3]])
    eligible = world.ranker.eligible(["mine"])
    assert world.ranker.rank(world.ids[:2], where="ours").items == [world.ids[3]]
    world.ranker.add_items([{"item_id": "mine"}], like={"mine": [world.ids[0]]})
    assert {*world.ranker.rank(world.ids[:2], where="ours").items} == {"mine", world.ids[3]}
    assert world.ranker.rank(world.ids[:2], eligible=eligible).items == ["mine"]


def test_removed_items_are_not_ranked_until_they_are_added_again(with_attributes: Any) -> None:
    world = World(*with_attributes("int8"))
    ranker, history = world.ranker, world.ids[:3]
    first, second, *others = ranker.rank(history, k=12).items
    before = ranker.rank([first, second], k=3, exclude_seen=True)
    ranker.remove_items([first, second])
    assert ranker.rank(history, k=10).items == others
    assert len(ranker) == ITEMS - 2
    assert ranker.rank(history, candidates=[first, others[0]]).items == [others[0]]
    after = ranker.rank([first, second], k=3, exclude_seen=True)
    assert (after.items, after.unknown) == (before.items, 0)  # they still count as events
    addition = ranker.add_items([{"item_id": second, "brand": "brand 1"}])
    assert (addition.added, addition.updated) == ([], [second])
    assert ranker.rank(history, k=11).items == [second, *others]


def test_attributes_and_titles_of_known_items_change(with_attributes: Any) -> None:
    world = World(*with_attributes("int8"))
    ranker, item = world.ranker, world.ids[0]
    ranker.add_items({"item_id": [item], "price": [1234.0], "title": ["Renamed"]})
    assert ranker.rank(world.ids[5:9], where={"price": 1234}).items == [item]
    assert ranker.titles([item]) == ["Renamed"]
    assert ranker.find("rename") == [item]
    ranker.retitle({item: "Again"})
    assert (ranker.titles([item]), ranker.find("rename")) == (["Again"], [])


def test_added_items_are_seen_items_and_perhaps_events(with_attributes: Any) -> None:
    world = World(*with_attributes("int8"))
    ranker, history = world.ranker, world.ids[:3]
    row = [{"item_id": "mine"}]
    without = ranker.rank(history, k=5, exclude_seen=True)
    model = without.items[0]
    ranker.add_items(row, like={"mine": [model]}, in_histories=False)
    assert "mine" in ranker.rank(history, k=5).items
    seen = ranker.rank([*history, "mine"], k=5, exclude_seen=True)
    assert (seen.items, seen.unknown) == (without.items, 0)
    user = ranker.user([*history, "mine"])
    assert user.rank(k=5, exclude_seen=True).items == without.items
    ranker.add_items(row, like={"mine": [model]}, in_histories=True)
    as_known = ranker.rank([*history, model], k=5, exclude=["mine", model])
    as_new = ranker.rank([*history, "mine"], k=5, exclude=["mine", model])
    assert as_new.items == as_known.items
    assert as_new.scores == pytest.approx(as_known.scores, abs=CLOSE)
    assert user.rank(k=5, exclude=["mine", model]).items == as_new.items
    user.append(world.ids[7])
    again = ranker.rank([*history, "mine", world.ids[7]], k=5)
    assert user.rank(k=5).items == again.items
    assert user.rank(k=5).scores == pytest.approx(again.scores, abs=CLOSE)
    copied = ranker.user().load(user.save())
    assert copied.rank(k=5).items == again.items
    users = ranker.users([[*history, "mine"], history])
    users.append([world.ids[7], "mine"])
    assert users.rank(k=5)[0].items == again.items
    assert users.rank(k=5)[1].items == ranker.rank([*history, "mine"], k=5).items


def test_a_kept_user_follows_an_added_item_whose_row_changes(with_attributes: Any) -> None:
    world = World(*with_attributes("int8"))
    ranker, row, ids = world.ranker, [{"item_id": "mine"}], world.ids
    ranker.add_items(row, like={"mine": [ids[0]]}, in_histories=True)
    history = [ids[5], ids[6], "mine"]
    user = ranker.user(history)
    before = user.rank(k=5)
    ranker.add_items(row, like={"mine": [ids[900]]})  # counts in histories, as before
    after = ranker.rank(history, k=5)
    assert after.scores != pytest.approx(before.scores, abs=1e-2)
    assert user.rank(k=5).scores == pytest.approx(after.scores, abs=CLOSE)
    ranker.add_items(row, like={"mine": [ids[900]]}, in_histories=False)
    assert user.rank(k=5).items == ranker.rank([ids[5], ids[6]], k=5).items
    assert (len(user), user.unknown) == (2, 0)


def test_nothing_is_added_if_an_item_cannot_be_placed(with_attributes: Any) -> None:
    world = World(*with_attributes("int8"))
    ranker = world.ranker
    rows = [{"item_id": "a"}, {"item_id": "b"}]
    for options, message in (
        ({}, "knows no attributes of items"),
        ({"like": {"c": [world.ids[0]]}}, "like has 'c', which is no new item"),
        ({"like": {"a": ["nowhere"]}}, r"like\['a'\]\[0\] is 'nowhere'"),
        ({"like": {"a": []}}, r"like\['a'\] is empty"),
        ({"vectors": np.zeros((2, 16))}, r"vectors\[0\] is zero or not finite"),
        ({"vectors": np.ones((2, 15))}, r"vectors has shape \(2, 15\)"),
        ({"vectors": np.ones((2, 16)) * 1j}, "vectors are of type 'complex128'"),
        ({"vectors": np.full((2, 16), 1e300)}, r"vectors\[0\] is zero or not finite"),
        ({"vectors": np.ma.masked_all((2, 16))}, r"vectors\[0\] is zero or not finite"),
        ({"vectors": np.ones((2, 16)), "bias": "x"}, "bias must be a number"),
    ):
        with pytest.raises(InputError, match=message):
            ranker.add_items(rows, **options)
        assert len(ranker) == ITEMS
        assert ranker.vocabulary.find("a") is None


def test_a_hundred_filters_do_not_fill_memory(with_attributes: Any, monkeypatch: Any) -> None:
    world = World(*with_attributes("int8"))
    monkeypatch.setattr("ranklet.catalogue.MOST_KEPT", 50_000)
    for price in range(100):
        world.ranker.rank(world.ids[:2], where={"price": (price, None)})
    kept = world.ranker._current.serving.catalogue._kept
    (_, bias), *_ = kept._values.items()
    assert len(kept._values) == 50_000 // bias.table.nbytes
