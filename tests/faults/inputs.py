"""Generated requests against a slow reference, which follows docs/python.md in plain numpy.

User vectors and rows of items come from the ranker; all that makes a ranking of them is anew.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from faults import world
from faults.campaign import Campaign, Tally
from ranklet import Ranker, Ranking, RankletError

TOLERANCE = 1e-3  # of a score: a kept user and a batch sum in another order
NOWHERE = ("x", "", "00", "-1", "é", "1 ", "999999999")  # ids that the catalogue lacks
OF_ITEMS = ("k", "skip", "candidates", "exclude", "min_score", "where", "boost")
OF_POPULARITY = ("k", "skip", "where")
Floats = NDArray[np.float64]


class Expected(NamedTuple):
    """What a ranking must be."""

    order: list[int]  # all items that may be ranked, best first, from 0
    scores: Floats  # of every item
    page: slice
    unknown: int
    cold: bool


class Reference:
    """A ranker without any of the product's own filters, proofs, batches and caches."""

    def __init__(self, ranker: Ranker) -> None:
        """Read the catalogue of a ranker."""
        self.ranker, self.ids = ranker, list(map(str, ranker.ids))
        self.place = {item: place for place, item in enumerate(self.ids)}
        self.rows = ranker.item_vectors().astype(np.float64)
        self.shares = np.fromfile(ranker.path / "popularity.f32", "<f4").astype(np.float64)
        self.sets: dict[str, set[str]] = {}

    def allowed(self, where: Any) -> NDArray[np.bool_]:
        """Return which items meet a condition: a name, "!name", a set, or a list of these."""
        if isinstance(where, list):
            return np.logical_and.reduce([self.allowed(part) for part in where])
        if isinstance(where, set):
            found = np.zeros(len(self.ids), dtype=bool)
            found[[self.place[item] for item in where if item in self.place]] = True
            return found
        inside = self.allowed(self.sets[where.removeprefix("!")])
        return ~inside if where.startswith("!") else inside

    def rank(self, history: list[str], options: dict[str, Any], user: Floats | None) -> Expected:
        """Rank for a history; ``user`` is its vector, None where no event is known."""
        known = [self.place[item] for item in history if item in self.place]
        scores, is_open = self.shares.copy(), np.ones(len(self.ids), dtype=bool)
        if user is not None:
            scores = self.rows @ user
            for where, points in options.get("boost", []):
                scores[self.allowed(where)] += points
        if options.get("exclude_seen", self.ranker.exclude_seen):
            is_open[known] = False
        for name in ("where", "eligible"):
            if name in options:
                is_open &= self.allowed(options[name])
        if "candidates" in options:
            is_open &= self.allowed(set(options["candidates"]))
        if "exclude" in options:
            is_open &= ~self.allowed(set(options["exclude"]))
        recent = self.allowed(set(options.get("seen_recently", [])))
        falls = recent.astype(float) if user is None else np.zeros(len(recent))
        if user is not None:
            scores = scores - recent * options.get("penalty", 1.0)
            is_open &= scores >= options.get("min_score", -np.inf)
        order = [n for n in np.lexsort((-scores, falls)).tolist() if is_open[n]]
        page = slice(options.get("skip", 0), options.get("skip", 0) + options.get("k", 10))
        return Expected(order, scores, page, len(history) - len(known), user is None)

    def difference(self, found: Ranking, expected: Expected) -> str:
        """Return how a ranking differs from what it must be, "" if it does not."""
        wanted = expected.order[expected.page]
        if (found.unknown, found.cold) != (expected.unknown, expected.cold):
            return f"unknown {found.unknown}, cold {found.cold}"
        items = [self.place[str(item)] for item in found.items]
        if len(items) != len(wanted) or len(set(items)) < len(items):
            return f"{len(items)} items, not {len(wanted)}"
        if not set(items) <= set(expected.order):
            return f"{self.ids[min(set(items) - set(expected.order))]} may not be ranked"
        if expected.cold and items != wanted:
            return f"{found.items}, not {[self.ids[n] for n in wanted]}"
        off = np.abs(found.scores - expected.scores[items]).max(initial=0)
        moved = np.abs(expected.scores[items] - expected.scores[wanted]).max(initial=0)
        limit = TOLERANCE * (1 + np.abs(expected.scores[items]).max(initial=0) / 100)
        if off > limit or (moved > 2 * limit and found.exact):
            return f"scores differ by {off:.1e}, and places by {moved:.1e}"
        return ""


class Requests:
    """Requests of a seed, in the forms that the public functions take."""

    def __init__(self, reference: Reference, rng: np.random.Generator) -> None:
        """Ask about the catalogue of a reference."""
        self.reference, self.rng = reference, rng

    def items(self, most: int) -> list[str]:
        """Return ids, some of which the catalogue lacks."""
        ids, rng = self.reference.ids, self.rng
        popular = rng.integers(4) > 0
        return [
            str(rng.choice(NOWHERE))
            if rng.integers(8) == 0
            else ids[int(len(ids) * rng.random() ** (3 if popular else 1))]
            for _ in range(rng.integers(most + 1))
        ]

    def where(self) -> Any:
        """Return a condition on named filters."""
        names = [*self.reference.sets]
        name = names[self.rng.integers(len(names))]
        forms = [name, f"!{name}", [name], [name, f"!{names[0]}"]]
        return forms[self.rng.integers(len(forms))]

    def options(self) -> dict[str, Any]:
        """Return a few options of a ranking."""
        rng, found = self.rng, {}
        makers: dict[str, Callable[[], Any]] = {
            "k": lambda: int(rng.choice([1, 2, 10, 50, 200, 10_000])),
            "skip": lambda: int(rng.choice([0, 1, 10, 300])),
            "exclude_seen": lambda: bool(rng.integers(2)),
            "candidates": lambda: self.items(30),
            "exclude": lambda: self.items(20),
            "seen_recently": lambda: self.items(20),
            "penalty": lambda: float(rng.choice([0, 0.5, 3, 100])),
            "min_score": lambda: float(rng.normal(5, 5)),
            "where": self.where,
            "eligible": lambda: set(self.items(300)),
            "boost": lambda: [(self.where(), float(rng.normal(0, 3))) for _ in range(2)],
        }
        for name in rng.permutation([*makers])[: rng.integers(5)].tolist():
            found[name] = makers[name]()
        return found

    def draw(self) -> tuple[str, list[str], dict[str, Any], Floats | None]:
        """Return whether a ranking is of a history, an item or popularity, and what it is of."""
        reference, options = self.reference, self.options()
        kind = str(self.rng.choice(["history", "history", "history", "item", "popularity"]))
        if kind == "popularity":
            return kind, [], {n: v for n, v in options.items() if n in OF_POPULARITY}, None
        if kind == "item":
            item = reference.ids[int(self.rng.integers(len(reference.ids)))]
            row = reference.rows[reference.place[item]]
            options = {n: v for n, v in options.items() if n in OF_ITEMS}
            return kind, [item], {**options, "exclude_seen": True}, row / (row @ row)
        history = self.items(60)
        if not any(item in reference.place for item in history):
            return kind, history, options, None
        user = reference.ranker.user_vector(history).astype(np.float64)
        return kind, history, options, user

    def container(self, ids: list[str]) -> Any:
        """Return ids in one of the forms that are taken for a list."""
        forms = (
            list,
            tuple,
            iter,
            lambda x: np.array(x, dtype=object),
            lambda x: np.array(x, "U9"),
        )
        return forms[self.rng.integers(len(forms))](ids)

    def passed(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return options as a caller passes them."""
        passed = dict(options)
        for name in ("candidates", "exclude", "seen_recently"):
            if name in options:
                passed[name] = self.container(options[name])
        if "eligible" in options:
            passed["eligible"] = self.reference.ranker.eligible(options["eligible"])
        if "boost" in options and self.rng.integers(2):
            reference = self.reference
            of_items = [reference.allowed(where) * points for where, points in options["boost"]]
            passed["boost"] = np.sum(of_items, axis=0)
        return passed


def ways(
    ranker: Ranker, history: list[str], options: dict[str, Any], requests: Requests
) -> Callable[[], Ranking]:
    """Return one of the ways to ask for a ranking."""
    rng, passed = requests.rng, requests.passed(options)
    own = {n: passed.pop(n) for n in ("candidates", "exclude", "seen_recently") if n in passed}
    cut = int(rng.integers(len(history) + 1))

    def batch() -> Ranking:
        lists = {name: [None, value, None] for name, value in own.items()}
        return ranker.rank_batch([[], requests.container(history), ["1"]], **lists, **passed)[1]

    def user() -> Ranking:
        kept = ranker.user(history[:cut])
        kept.rank(k=1)
        for item in history[cut:]:
            kept.append(item)
        return kept.rank(**own, **passed)

    def users() -> Ranking:
        many = ranker.users([history[:cut], []])
        many.rank(k=1)
        for item in history[cut:]:
            many.append([item, "1"])
        return many.rank(**passed)[0]

    def saved() -> Ranking:
        kept = ranker.user(history)
        return ranker.user().load(kept.save()).rank(**own, **passed)

    def alone() -> Ranking:
        return ranker.rank(requests.container(history), **own, **passed)

    choices = [alone, alone, batch, user, saved]
    if not own and not {"penalty"} & {*passed}:
        choices.append(users)
    return choices[rng.integers(len(choices))]


def without_history(
    ranker: Ranker, item: list[str], options: dict[str, Any], requests: Requests
) -> Callable[[], Ranking]:
    """Return the question for what is like an item, or popular."""
    passed = requests.passed(options)
    passed.pop("exclude_seen", None)

    def similar() -> Ranking:
        return ranker.similar(item[0], **passed)

    def popular() -> Ranking:
        return ranker.popular(**passed)

    return similar if item else popular


def run(count: int, rng: np.random.Generator, folder: Path) -> Tally:
    """Ask for rankings, and compare them with those of the reference."""
    tally, ranker = Tally(), Ranker.load(world.SHIPPED, provider="cpu")
    reference = Reference(ranker)
    requests = Requests(reference, rng)
    for name, size in (("a", 4000), ("few", 5), ("none", 0)):
        reference.sets[name] = set(requests.items(size)) if size else set()
        ranker.define(name, reference.sets[name])
    for _ in range(count):
        kind, history, options, user = requests.draw()
        expected = reference.rank(history, options, user)
        near = np.abs(expected.scores - options.get("min_score", np.inf)).min()
        if near < 2 * TOLERANCE or (expected.order == [] and user is not None):
            # A score at the limit may fall to either side; and where nothing is left, the docs
            # promise an empty ranking and leave open whether it is a cold one.
            options.pop("min_score", None)
            expected = reference.rank(history, options, user)
        if kind == "history":
            ask = ways(ranker, history, options, requests)
        else:
            ask = without_history(ranker, history, options, requests)
        what = f"{ask.__name__} of {history} with {options}"
        try:
            difference = reference.difference(ask(), expected)
        except RankletError as error:
            difference = f"{type(error).__name__}: {error}"
        except Exception as error:
            difference = f"!{type(error).__name__}: {error}"
        if difference:
            tally.failed(f"{what}: {difference}")
        else:
            tally.ended("equal to the reference")
    return tally


CAMPAIGNS = [
    Campaign(
        "generated request, through every method that ranks",
        "the ranking of a slow reference",
        run,
        short=60,
        middle=300,
        long=10_000,
    )
]
