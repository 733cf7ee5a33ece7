"""Odd values for every parameter of every public function: an answer, or an error with a name."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from faults import world
from faults.campaign import Campaign, Tally
from faults.odd import odd
from ranklet import Manifest, Ranker, RankletError
from ranklet.verify import verify

LONGEST = 5_000  # characters of a message, with a path
WITH_EVERYTHING = 20_000
Ask = Callable[[Any], object]


class Place(NamedTuple):
    """A parameter of a function, and a call that passes it a value."""

    name: str
    ask: Ask


SHARED = (
    *("k", "eligible", "where", "boost", "min_score", "at_most", "skip", "diversity", "cold"),
    *("exclude_seen", "objective"),
)
ALONE = (*SHARED, "now", "candidates", "exclude", "seen_recently", "penalty", "explain")
EVENTS = ("times", "kinds")
NEW = {"item_id": ["new"]}


def named(function: str, call: Callable[..., object], *names: str, **fixed: Any) -> list[Place]:
    """Return the parameters of a function that have these names; the others are ``fixed``."""

    def of(name: str) -> Place:
        return Place(f"{function}({name})", lambda value: call(**{**fixed, name: value}))

    return [of(name) for name in names]


def of_rankings(ranker: Ranker, ids: list[Any]) -> list[Place]:
    """Return the parameters of what ranks."""
    rank, batch, reasons = ranker.rank, ranker.rank_batch, ranker.rank(ids, explain=True)
    assert reasons.explanation is not None
    found = named("rank", rank, "penalty", history=ids, seen_recently=ids[:2])
    found += named("rank", rank, "now", history=ids, times=[1, 2, 3])
    for history in (ids, []):
        found += named("rank", rank, *ALONE, *EVENTS, "unknown", history=history)
    found += named("rank_batch", batch, *ALONE, *EVENTS, "unknown", histories=[ids, []])
    whom = ("candidates", "exclude", "where", "boost", "min_score", "at_most", "skip", "diversity")
    found += named("similar", ranker.similar, "k", *whom, item=ids[0])
    found += named("popular", ranker.popular, "k", "trending", "where", "at_most", "skip")
    found += named("user_vector", ranker.user_vector, *EVENTS, "now", "objective", history=ids)
    found += [
        Place("rank(history)", rank),
        Place("rank_batch(histories)", batch),
        Place("rank_batch(one of histories)", lambda value: batch([value, []])),
        Place("similar(item)", ranker.similar),
        Place("user_vector(history)", ranker.user_vector),
        Place("item_vectors(items)", ranker.item_vectors),
        Place("reasons(place)", reasons.explanation.reasons),
        Place("titles(items)", ranker.titles),
        Place("find(text)", ranker.find),
        Place("eligible(ids)", ranker.eligible),
        *named("eligible", ranker.eligible, "unknown", ids=["1", "x"]),
    ]
    return found


def of_catalogues(ranker: Ranker, ids: list[Any]) -> list[Place]:
    """Return the parameters of what changes the catalogue, which is put back each time."""

    def call(method: str, *fixed: Any, **named: Any) -> object:
        before = ranker._current.serving
        try:
            return getattr(ranker, method)(*fixed, **named), ranker.rank(ids, k=2)
        finally:
            ranker._current.serving = before

    def add(**columns: Any) -> object:
        return call("add_items", {"item_id": ids[:1], **columns})

    options = ("vectors", "like", "bias", "in_histories")
    found = named("define", lambda **both: call("define", **both), "name", "ids", name="a", ids=ids)
    for table in (NEW, {"item_id": ids[:1]}):
        found += named("add_items", lambda t=table, **o: call("add_items", t, **o), *options)
    found += [
        *named("add_items of table", add, "item_id", "title"),
        Place("add_items(a title)", lambda value: add(title=[value])),
        Place("add_items(table)", lambda value: call("add_items", value)),
        Place("add_items(like new)", lambda value: call("add_items", NEW, like={"new": value})),
        Place("remove_items(items)", lambda value: call("remove_items", value)),
        Place("retitle(titles)", lambda value: call("retitle", value)),
        Place("retitle(a title)", lambda value: call("retitle", {ids[0]: value})),
    ]
    return found


def of_folders(bundle: Path, ranker: Ranker) -> list[Place]:
    """Return the parameters of what opens a bundle; no value is that of a folder with one."""
    missing, load = bundle / "missing", ("provider", "threads", "check_digests", "warm_up")
    found = named("load", Ranker.load, "path", *load, path=missing)
    found += named("reload", ranker.reload, "check_digests", path=missing)
    found += named("verify", verify, "path", "provider", "threads", path=missing)
    found += named("Manifest.read", Manifest.read, "path")
    found += [Place("reload(path)", lambda value: value is None or ranker.reload(value))]
    return found


def of_users(ranker: Ranker, ids: list[Any]) -> list[Place]:
    """Return the parameters of kept users, which begin anew each time."""

    def call(method: str) -> Callable[..., object]:
        return lambda *fixed, **named: getattr(ranker.user(ids), method)(*fixed, **named)

    def call_many(method: str) -> Callable[..., object]:
        return lambda *fixed, **named: getattr(ranker.users([ids, []]), method)(*fixed, **named)

    def keep(value: Any) -> object:
        user = ranker.user([ids[0]])
        user.extend(value)
        return ranker.user().load(copy.copy(user).save()).rank(k=2)

    return [
        *named("user", ranker.user, "history", *EVENTS, history=ids),
        *named("users", ranker.users, "histories", *EVENTS, histories=[ids, []]),
        *named("User.rank", call("rank"), *ALONE),
        *named("User.append", call("append"), "item", "time", "kind", item=ids[0]),
        *named("User.extend", call("extend"), "items", *EVENTS, items=ids),
        *named("User.load", call("load"), "data"),
        *named("Users.rank", call_many("rank"), *SHARED),
        *named("Users.append", call_many("append"), "items", *EVENTS, items=ids[:2]),
        Place("Users.append(one of items)", lambda value: call_many("append")([value, None])),
        Place("a user that is saved and loaded", keep),
    ]


def of_everything(bundle: Path) -> list[Place]:
    """Return parts of what a bundle with attributes, kinds and times takes, and the rest of it."""
    ranker = Ranker.load(bundle, provider="cpu")
    ids, times = [*ranker.ids[:3]], [1_700_000_000 + n for n in range(3)]

    def rank(**options: Any) -> object:
        return ranker.rank(ids, **options)

    def add(**columns: Any) -> object:
        before = ranker._current.serving
        try:
            return ranker.add_items({"item_id": [777], **columns}), ranker.rank(ids, k=2)
        finally:
            ranker._current.serving = before

    def timed() -> Any:
        return ranker.user(ids, times=times)

    found = [
        Place("where brand", lambda value: rank(where={"brand": value})),
        Place("where not tags", lambda value: rank(where={"!tags": value})),
        Place("where price", lambda value: rank(where={"price": value})),
        Place("where price between", lambda value: rank(where={"price": (value, 20)})),
        Place("at_most of brand", lambda value: rank(at_most={"brand": value})),
        Place("objective of buy", lambda value: rank(objective={"buy": value})),
        Place("a kind", lambda value: rank(kinds=["buy", value, None])),
        Place("a time", lambda value: rank(times=[times[0], value, times[2]])),
        Place("now", lambda value: rank(times=times, now=value)),
        Place("now of a batch", lambda v: ranker.rank_batch([ids], times=[times], now=[v])),
        Place("times of a batch", lambda value: ranker.rank_batch([ids], times=[value])),
        Place("time of an event", lambda value: timed().append(ids[0], time=value)),
        Place("kind of an event", lambda value: timed().append(ids[0], kind=value)),
        Place("now of a user", lambda value: timed().rank(now=value)),
        *(Place(f"a new {n}", lambda v, n=n: add(**{n: [v]})) for n in ("brand", "tags", "price")),
        *(Place(f"new {n}", lambda v, n=n: add(**{n: v})) for n in ("brand", "tags", "price")),
    ]
    return found + places(bundle)


def places(bundle: Path) -> list[Place]:
    """Return every parameter of the public functions of the runtime."""
    ranker = Ranker.load(bundle, provider="cpu")
    ids = [ranker.ids[place] for place in range(3)]
    parts = of_rankings(ranker, ids), of_catalogues(ranker, ids), of_users(ranker, ids)
    return [place for part in parts for place in part] + of_folders(bundle, ranker)


def ended(call: Ask, value: object) -> str:
    """Return how a call ended; everything but an answer and an error of ranklet begins with "!"."""
    try:
        call(value)
    except RankletError as error:
        text = str(error)
        return "refused by name" if len(text) <= LONGEST else f"!message of {len(text):,} letters"
    except Exception as error:
        return f"!{type(error).__name__}: {str(error)[:200]}"
    return "answered"


def run(count: int, rng: np.random.Generator, folder: Path) -> Tally:
    """Pass odd values to parameters in turn."""
    tally, every = Tally(), places(world.SHIPPED)
    if count >= WITH_EVERYTHING:  # worth the training of a bundle
        every += of_everything(world.rich())
    for number in range(count):
        place = every[number % len(every)]
        seed = int(rng.integers(2**63))
        end = ended(place.ask, odd(np.random.default_rng(seed)))
        if end.startswith("!"):
            tally.failed(f"{place.name} of odd(default_rng({seed})): {end[1:]}")
        else:
            tally.ended(end)
    return tally


CAMPAIGNS = [
    Campaign(
        "odd value for a parameter of a public function",
        "an answer or an error with a name, of bounded length",
        run,
        short=1_000,
        middle=6_000,
        long=40_000,
    )
]
