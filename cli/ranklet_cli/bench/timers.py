"""Timers: back-to-back calls, stages of a request, appended events, requests at random times."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranklet.answer import by_length
from ranklet.bundle.vocabulary import ItemId
from ranklet.engine.engine import Best, History
from ranklet.ranker import Ranker
from ranklet.user import User
from ranklet.values import Ids
from ranklet_cli.bench.limit import least_bytes
from ranklet_cli.bench.report import Append, Measurement, Setting, Stages, Waiting

WARM_UP = 10  # untimed calls of each timer
BLOCK = 20  # timed calls of a timer in its turn
SETTLE = 3  # untimed calls at the start of a block: caches are cold, other threads still spin
REQUESTS = 16  # different requests of a timer, so that no history stays in the caches
APART = REQUESTS // 3  # distance of the request in stages from the whole request
RUNS_OF_P99_9 = 1000
ROUNDS = 5  # of requests at random times
SECONDS = 0.2  # length of a round
FEWEST, MOST = 100, 1000  # arrivals of a round

Seconds = NDArray[np.float64]
Call = Callable[[], Any]


def random_histories(ranker: Ranker, batch: int, length: int, seed: int) -> list[Ids]:
    """Draw known ids: (batch, length)."""
    random = np.random.default_rng([seed, batch, length])
    indices = random.integers(1, len(ranker) + 1, (batch, length))
    return [ranker.vocabulary.ids(row) for row in indices]


def bare_call(ranker: Ranker, histories: list[Ids], k: int) -> Call:
    """Return the engine call of a request for histories."""
    engine, pool = ranker.engine, min(ranker.manifest.pool.size(k), len(ranker))
    rows = [History(ranker.vocabulary.index(history)) for history in histories]
    parts = [[rows[row] for row in part] for part in by_length([len(h) for h in histories])]
    begins, most = range(0, len(rows), engine.most_users), engine.most_users
    probes = [ranker.manifest.probes(len(ranker), k)] * len(rows)

    def call() -> list[Best]:
        users = np.concatenate([engine.encode(part) for part in parts])
        return [
            engine.score(users[b : b + most], min(k, pool), pool, probes=probes[b : b + most])
            for b in begins
        ]

    return call


def stage_calls(ranker: Ranker, history: Ids, k: int) -> dict[str, Call]:
    """Return the stages of a request for one history as calls."""
    engine, pool = ranker.engine, min(ranker.manifest.pool.size(k), len(ranker))
    events = [History(ranker.vocabulary.index(history))]
    users, probes = engine.encode(events), [ranker.manifest.probes(len(ranker), k)]
    items = engine.score(users, min(k, pool), pool).items[0]
    return {
        "lookup": partial(ranker.vocabulary.index, history),
        "encode": partial(engine.encode, events),
        "score": partial(engine.score, users, min(k, pool), pool, probes=probes),
        "ids": partial(ranker.vocabulary.ids, items),
    }


class Timer(ABC):
    """Timer of the parts of requests, block by block.

    ``passes`` are functions of the number of a request. Each returns the calls, in order, that are
    the parts of a pass.
    """

    passes: Sequence[Callable[[int], Sequence[Call]]]

    def __init__(self, setting: Setting, ranker: Ranker, seed: int) -> None:
        """Draw the requests of a setting."""
        self.setting, self.ranker, self.seed = setting, ranker, seed
        self.blocks: list[list[list[float]]] = []  # ms of each call: (block, part, request)
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """Draw requests and set ``passes``."""

    def time_block(self, begin: int, count: int) -> None:
        """Time ``count`` requests from number ``begin`` on, after untimed requests."""
        numbers, parts = range(begin, begin + SETTLE + count), []
        for calls in self.passes:
            times = [time_calls(calls(number)) for number in numbers]
            parts += np.transpose(times[SETTLE:]).tolist()
        self.blocks.append(parts)

    def medians(self) -> list[float]:
        """Return the median of each part."""
        return [float(np.median(self.times(part))) for part in range(len(self.blocks[0]))]

    def times(self, part: int) -> NDArray[np.float64]:
        """Return the times of a part over all blocks."""
        return np.concatenate([block[part] for block in self.blocks])

    def block_medians(self) -> list[float]:
        """Return the median of the first part in each block."""
        return [float(np.median(block[0])) for block in self.blocks]


def time_calls(calls: Sequence[Call]) -> list[float]:
    """Return the milliseconds of each call."""
    marks = [time.perf_counter_ns()]
    for call in calls:
        call()
        marks.append(time.perf_counter_ns())
    return [nanoseconds / 1e6 for nanoseconds in np.diff(marks).tolist()]


class CallTimer(Timer):
    """Timer of back-to-back calls, and of bare calls of the engine."""

    def prepare(self) -> None:
        """Draw the requests and warm up."""
        batch, length, k = self.setting.batch, self.setting.length, self.setting.k
        seeds = range(self.seed, self.seed + REQUESTS)
        self.requests = [random_histories(self.ranker, batch, length, seed) for seed in seeds]
        bare = [bare_call(self.ranker, rows, k) for rows in self.requests]
        self.passes = [lambda n: [partial(self.rank, n)], lambda n: [bare[n % REQUESTS]]]
        for number in range(WARM_UP):
            self.rank(number)
            bare[number % REQUESTS]()

    def rank(self, number: int) -> None:
        """Answer one of the requests."""
        histories = self.requests[number % REQUESTS]
        if self.setting.batch == 1:
            self.ranker.rank(histories[0], k=self.setting.k, exclude_seen=False)
        else:
            self.ranker.rank_batch(histories, k=self.setting.k, exclude_seen=False)

    def result(self, bandwidth: float | None) -> Measurement:
        """Return the percentiles; ``bandwidth`` is in bytes a second."""
        times = self.times(0)
        p50, p95, p99, p99_9 = np.percentile(times, [50, 95, 99, 99.9]).tolist()
        mean, least = float(times.mean()), least_bytes(self.ranker.manifest)
        return Measurement(
            **vars(self.setting),
            runs=len(times),
            p50_ms=p50,
            p95_ms=p95,
            p99_ms=p99,
            p99_9_ms=p99_9 if len(times) >= RUNS_OF_P99_9 else None,
            mean_ms=mean,
            users_per_second=1e3 * self.setting.batch / mean,
            session_p50_ms=self.medians()[1],
            read_bytes=least,
            limit_ms=None if bandwidth is None else 1e3 * least / bandwidth,
            blocks_ms=self.block_medians(),
        )


class StageTimer(Timer):
    """Timer of a whole request, then of the stages of another, whose history is not cached."""

    def prepare(self) -> None:
        """Draw the requests."""
        k, rank = self.setting.k, self.ranker.rank
        rows = random_histories(self.ranker, REQUESTS, self.setting.length, self.seed)
        self.stages = [stage_calls(self.ranker, row, k) for row in rows]

        def calls(number: int) -> list[Call]:
            stages = self.stages[(number + APART) % REQUESTS]
            return [partial(rank, rows[number % REQUESTS], k=k), *stages.values()]

        self.passes = [calls]

    def result(self) -> Stages:
        """Return the median of each stage."""
        rank, *stages = self.medians()
        row = {f"{name}_ms": time for name, time in zip(self.stages[0], stages, strict=True)}
        row |= {"rank_ms": rank, "python_ms": rank - sum(stages)}
        return Stages(**vars(self.setting) | row)


class AppendTimer(Timer):
    """Timer of an append to a kept state, then of a ranking of the whole history."""

    def prepare(self) -> None:
        """Draw a history, encode it and draw the next events."""
        k, ranker = self.setting.k, self.ranker
        (history,) = random_histories(ranker, 1, self.setting.length, self.seed)
        (events,) = random_histories(ranker, 1, REQUESTS, self.seed + 1)
        user = ranker.user(history[:-1])
        user.rank(k, exclude_seen=False)
        saved = user.save()

        def calls(number: int) -> list[Call]:
            event, user = events[number % REQUESTS], ranker.user().load(saved)
            user.append(history[-1])
            user.rank(k, exclude_seen=False)  # moves the state to where events are appended
            append = partial(_append_and_rank, user, event, k)
            return [append, partial(ranker.rank, [*history, event], k=k, exclude_seen=False)]

        self.passes = [calls]

    def result(self) -> Append:
        """Return the medians of both."""
        append, rank = self.medians()
        return Append(
            **vars(self.setting),
            append_p50_ms=append,
            rank_p50_ms=rank,
            blocks_ms=self.block_medians(),
        )


def _append_and_rank(user: User, event: ItemId, k: int) -> None:
    user.append(event)
    user.rank(k, exclude_seen=False)


def arrival_times(rate: float, count: int, seed: int) -> Seconds:
    """Draw the arrivals of a Poisson process of ``rate`` a second, given their number.

    Arrivals are then uniform and independent, and the rate is exact.
    """
    return np.sort(np.random.default_rng(seed).uniform(0, count / rate, count))


def latencies(arrivals: Seconds, services: Seconds) -> Seconds:
    """Return the latencies, arrival to answer, of a first-come-first-served queue of one server.

    Lindley's recursion in closed form: a request ends after its own work and all work since the
    server was last idle. ``arrivals`` are sorted; ``services`` are the working times.
    """
    work = np.cumsum(services)
    ends = work + np.maximum.accumulate(arrivals - (work - services))
    return ends - arrivals


def serve(
    call: Callable[[int], None], arrivals: Seconds, now: Callable[[], float] = time.perf_counter
) -> Seconds:
    """Answer requests as they arrive and return the working time of each.

    Work counts from its earliest possible start, so a late wake-up counts as work. The wait for an
    arrival spins: a sleep is less exact than a request is long.
    """
    services, free, begin = [], 0.0, now()
    for number, arrival in enumerate(arrivals.tolist()):
        ready = max(arrival, free)
        while now() - begin < ready:
            pass
        call(number)
        free = now() - begin
        services.append(free - ready)
    return np.array(services)


@dataclass
class WaitTimer:
    """Timer of requests at random times, at a share of the back-to-back throughput."""

    timer: CallTimer
    load_percent: int
    mean_ms: float  # of a back-to-back call
    rounds: list[list[float]] = field(default_factory=list)  # p50, p95, p99 in ms, busy in percent

    def __post_init__(self) -> None:
        """Set the rate and the number of arrivals of a round."""
        self.rate = self.load_percent / 100 * 1e3 / self.mean_ms
        self.count = round(min(max(SECONDS * self.rate, FEWEST), MOST))

    def time_round(self, seed: int) -> None:
        """Serve one round of requests, starting with an idle server."""
        for number in range(SETTLE):
            self.timer.rank(number)
        arrivals = arrival_times(self.rate, self.count, seed)
        services = serve(self.timer.rank, arrivals)
        times = latencies(arrivals, services)
        busy = 100 * float(services.sum() / (arrivals[-1] + times[-1]))
        self.rounds.append([*np.percentile(1e3 * times, [50, 95, 99]).tolist(), busy])

    def result(self) -> Waiting:
        """Return the medians over rounds, which a pause of the machine in one round can't move."""
        p50, p95, p99, busy = np.median(self.rounds, axis=0).tolist()
        return Waiting(
            **vars(self.timer.setting),
            load_percent=self.load_percent,
            arrivals=self.count * len(self.rounds),
            offered_per_second=self.rate,
            busy_percent=busy,
            p50_ms=p50,
            p95_ms=p95,
            p99_ms=p99,
        )
