"""Any requests in any order rank as a slow model in float64 does, which knows no state."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from numpy.typing import NDArray

from ranklet import Ranking
from ranklet.time_gaps import UNKNOWN, bucket_until, buckets_before

ITEMS, USERS = 60, 3
APPENDED = 4  # new events; more are encoded anew
TOLERANCE = {"fp32": 1e-4, "int8": 1e-4, "int4": 1e-4, "fp16": 3e-2}
MISSING = 61  # an item that the catalogue lacks

places = st.lists(st.integers(1, MISSING), max_size=20)
some_users = st.integers(0, USERS - 1)
gaps = st.sampled_from([0, 1, 3600, 10**7])


class Options(NamedTuple):
    """What one request asks for."""

    k: int
    exclude_seen: bool
    exclude: list[int] | None
    candidates: list[int] | None
    eligible: frozenset[int] | None
    wait: int | None  # from the last event to now


options = st.builds(
    Options,
    k=st.sampled_from([1, 5, 29, 30, 31, ITEMS, 99]),
    exclude_seen=st.booleans(),
    exclude=st.none() | places,
    candidates=st.none() | places,
    eligible=st.none() | st.frozensets(st.integers(1, MISSING), max_size=50),
    wait=st.none() | gaps,
)


class Told(NamedTuple):
    """The events of a user, and what the runtime should know of them."""

    events: tuple[int, ...] = ()  # known ones
    since: tuple[int, ...] = ()
    unknown: int = 0
    last_time: int | None = None
    begin: int = 0  # where the window began when the history was encoded
    encoded: int = 0

    def after(self, items: list[int], times: list[int] | None) -> "Told":
        known = [item for item in items if item != MISSING]
        since, last = [UNKNOWN] * len(known), None if known else self.last_time
        if times is not None:
            instants = [time for item, time in zip(items, times, strict=True) if item != MISSING]
            before = [] if self.last_time is None else [self.last_time]
            if instants:
                since = buckets_before(np.array(before + instants))[len(before) :].tolist()
                last = instants[-1]
        return self._replace(
            events=(*self.events, *known),
            since=(*self.since, *since),
            unknown=self.unknown + len(items) - len(known),
            last_time=last,
        )

    def ranked(self, longest: int) -> "Told":
        """Return what is known when all events are in the state."""
        count, begin = len(self.events), self.begin
        if not self.encoded or count - self.encoded > APPENDED:
            begin = max(0, count - longest) if count > self.encoded else begin
        return self._replace(begin=begin, encoded=count)


class Requests(RuleBasedStateMachine):
    """Asks one ranker for histories, batches and kept users."""

    def __init__(self, made: Any, rolling: Callable[..., NDArray[np.float64]]) -> None:
        super().__init__()
        self.model, self.ranker, self.rolling = made.model, made.ranker, rolling
        self.longest, self.times = made.model.config.max_length, made.model.config.time_gaps
        self.tolerance = TOLERANCE[self.ranker.manifest.precision]

    @initialize(histories=st.lists(places, min_size=USERS, max_size=USERS))
    def begin(self, histories: list[list[int]]) -> None:
        self.users = self.ranker.users([self.ids(history) for history in histories])
        self.told = [Told().after(history, None) for history in histories]

    def ids(self, items: Any) -> list[str]:
        return [f"i{item - 1:05}" for item in items]

    def asked(self, told: Told, how: Options) -> dict[str, Any]:
        found: dict[str, Any] = {"k": how.k, "exclude_seen": how.exclude_seen}
        for name in ("exclude", "candidates"):
            if (items := getattr(how, name)) is not None:
                found[name] = self.ids(items)
        if how.eligible is not None:
            found["eligible"] = self.ranker.eligible(self.ids(how.eligible))
        if self.times and how.wait is not None and told.last_time is not None:
            found["now"] = told.last_time + how.wait
        return found

    def check(self, found: Ranking, told: Told, how: Options, begin: int) -> bool:
        """Compare an answer with the scores of the slow model; return whether it was asked."""
        allowed = {*range(1, ITEMS + 1)} - {*(how.exclude or [])}
        allowed -= {*told.events} if how.exclude_seen else set()
        for part in (how.candidates, how.eligible):
            allowed &= allowed if part is None else {*part}
        rows = np.array(sorted(allowed), dtype=np.int64) - 1
        shown = self.ranker.vocabulary.index(found.items) - 1
        assert (found.unknown, found.cold) == (told.unknown, not told.events)
        assert len(shown) == len(set(shown.tolist())) == min(how.k, len(rows))
        assert np.isin(shown, rows).all()
        if not told.events:
            assert shown.tolist() == rows[: how.k].tolist()  # of falling popularity
            return False
        if not len(rows):
            return False
        until = np.full(len(told.events) - begin, UNKNOWN)
        if self.times and how.wait is not None and told.last_time is not None:
            until[-1] = bucket_until(how.wait, 0)
        events, since = (np.array(part[begin:]) for part in (told.events, told.since))
        scores = self.rolling(self.model, events, since, until)[-1]
        difference = np.abs(found.scores - scores[shown]).max()
        assert difference <= self.tolerance, f"scores differ by {difference:.1e}"
        assert (np.diff(found.scores) <= 0).all()
        if found.exact:
            best = -np.sort(-scores[rows])[: how.k]
            assert np.abs(best - found.scores).max() <= self.tolerance, "a better item was left out"
        return True

    def alone(self, history: list[int], waits: list[int], how: Options) -> tuple[Told, Any]:
        """Return a history and what it is asked for; with times as far as there are waits."""
        times = None
        if self.times and len(waits) >= len(history):
            times = np.cumsum(waits[: len(history)]).tolist()
        told = Told().after(history, times)
        return told, {"times": times, **self.asked(told, how)}

    @rule(history=places, waits=st.lists(gaps, max_size=20), how=options)
    def rank(self, history: list[int], waits: list[int], how: Options) -> None:
        told, asked = self.alone(history, waits, how)
        found = self.ranker.rank(self.ids(history), **asked)
        self.check(found, told, how, max(0, len(told.events) - self.longest))

    @rule(
        rows=st.lists(st.tuples(places, options), max_size=11),
        waits=st.lists(gaps, max_size=20),
        shared=options,
    )
    def rank_batch(
        self, rows: list[tuple[list[int], Options]], waits: list[int], shared: Options
    ) -> None:
        hows = [
            how._replace(k=shared.k, exclude_seen=shared.exclude_seen, eligible=shared.eligible)
            for _, how in rows
        ]
        told = [
            self.alone(history, waits, how) for (history, _), how in zip(rows, hows, strict=True)
        ]
        one: dict[str, Any] = {"k": shared.k, "exclude_seen": shared.exclude_seen}
        if shared.eligible is not None:
            one["eligible"] = self.ranker.eligible(self.ids(shared.eligible))
        names = ["candidates", "exclude", *(["times", "now"] if self.times else [])]
        many = {name: [asked.get(name) for _, asked in told] for name in names}
        found = self.ranker.rank_batch([self.ids(history) for history, _ in rows], **one, **many)
        for ranking, (of_row, _), how in zip(found, told, hows, strict=True):
            self.check(ranking, of_row, how, max(0, len(of_row.events) - self.longest))

    @rule(place=some_users, items=st.lists(st.integers(1, MISSING), max_size=7), waits=gaps)
    def extend(self, place: int, items: list[int], waits: int) -> None:
        times = None
        if self.times and waits != 1:  # some have none
            times = [(self.told[place].last_time or 5) + waits * n for n in range(len(items))]
        self.users[place].extend(self.ids(items), times=times)
        self.told[place] = self.told[place].after(items, times)

    @rule(place=some_users, item=st.integers(1, MISSING), wait=st.none() | gaps)
    def append_one(self, place: int, item: int, wait: int | None) -> None:
        told, time = self.told[place], None
        if self.times and wait is not None:
            time = (told.last_time or 0) + wait
        self.users[place].append(*self.ids([item]), time=time)
        self.told[place] = told.after([item], None if time is None else [time])

    @rule(
        items=st.lists(st.none() | st.integers(1, MISSING), min_size=USERS, max_size=USERS),
        wait=st.none() | gaps,
    )
    def append(self, items: list[int | None], wait: int | None) -> None:
        times = None
        if self.times and wait is not None:
            times = [(told.last_time or 0) + wait for told in self.told]
        self.users.append(
            [item and self.ids([item])[0] for item in items],
            times=times and [t if i else None for i, t in zip(items, times, strict=True)],
        )
        for place, item in enumerate(items):
            if item is not None:
                of_user = None if times is None else [times[place]]
                self.told[place] = self.told[place].after([item], of_user)

    @rule(place=some_users, how=options)
    def rank_user(self, place: int, how: Options) -> None:
        found = self.users[place].rank(**self.asked(self.told[place], how))
        told = self.told[place].ranked(self.longest)
        if self.check(found, told, how, told.begin):
            self.told[place] = told

    @rule(how=options)
    def rank_users(self, how: Options) -> None:
        how = how._replace(exclude=None, candidates=None, wait=None)
        found = self.users.rank(**self.asked(Told(), how))
        ranked = [told.ranked(self.longest) for told in self.told]
        checks = zip(found, ranked, strict=True)
        if any([self.check(one, told, how, told.begin) for one, told in checks]):
            self.told = ranked  # of all of them

    @rule(saved=some_users, loaded=some_users)
    def park(self, saved: int, loaded: int) -> None:
        self.users[loaded].load(self.users[saved].save())
        self.told[loaded] = self.told[saved]


def check(made: Any, rolling_scores: Any, examples: int) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        partial(Requests, made, rolling_scores),
        settings=settings(max_examples=examples, stateful_step_count=20, deadline=None),
    )


def test_any_requests_in_any_order_rank_as_the_slow_model(
    any_model: Any, rolling_scores: Any
) -> None:
    check(any_model, rolling_scores, examples=12)


def test_histories_that_are_cut_into_chunks_rank_as_the_slow_model(
    long_model: Any, rolling_scores: Any
) -> None:
    check(long_model, rolling_scores, examples=12)


@pytest.mark.slow
def test_many_requests_in_any_order_rank_as_the_slow_model(
    any_model: Any, rolling_scores: Any
) -> None:
    check(any_model, rolling_scores, examples=30)
