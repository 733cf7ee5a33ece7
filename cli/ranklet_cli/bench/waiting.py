"""Requests that arrive at random and wait in line: latency as users see it, from arrival on."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ranklet_cli.bench.cases import SETTLE, Case
from ranklet_cli.bench.report import Waiting

ROUNDS = 5
SECONDS = 0.2  # of a round: as many arrivals as take this long,
FEWEST, MOST = 100, 1000  # within these

Seconds = NDArray[np.float64]


def arrival_times(rate: float, count: int, seed: int) -> Seconds:
    """Draw when requests arrive: a Poisson process of ``rate`` a second, given its count.

    Given how many there are, its events are uniform and independent: the rate is met exactly.
    """
    return np.sort(np.random.default_rng(seed).uniform(0, count / rate, count))


def latencies(arrivals: Seconds, services: Seconds) -> Seconds:
    """Return the time from arrival to answer, one server, first come first served.

    Each is answered when its own work is done after all that was done since the server last
    stood idle (Lindley): the latest of the earliest possible ends.

    Args:
        arrivals: When each request arrives, rising.
        services: How long the server works on each.
    """
    work = np.cumsum(services)
    ends = work + np.maximum.accumulate(arrivals - (work - services))
    return ends - arrivals


def serve(
    call: Callable[[int], None],
    arrivals: Seconds,
    clock: Callable[[], float] = time.perf_counter,
) -> Seconds:
    """Answer requests at their time and return how long each took.

    That counts from when work could have begun, so a server that the system woke late is slow.
    The wait for an arrival spins: to sleep would be less exact than a request is long.
    """
    services, free, begin = [], 0.0, clock()
    for number, arrival in enumerate(arrivals.tolist()):
        ready = max(arrival, free)
        while clock() - begin < ready:
            pass
        call(number)
        free = clock() - begin
        services.append(free - ready)
    return np.array(services)


@dataclass
class WaitTimer:
    """Requests of a case at a share of what it gets done one after another, round by round."""

    case: Case
    load_percent: int
    mean_ms: float  # of a call
    rounds: list[list[float]] = field(default_factory=list)  # p50, p95, p99 in ms, busy in percent

    def __post_init__(self) -> None:
        """Choose how often requests arrive, and how many of them."""
        self.rate = self.load_percent / 100 * 1e3 / self.mean_ms
        self.count = round(min(max(SECONDS * self.rate, FEWEST), MOST))

    def time_round(self, seed: int) -> None:
        """Let requests arrive; the server is idle at first."""
        for number in range(SETTLE):
            self.case.rank(number)
        arrivals = arrival_times(self.rate, self.count, seed)
        services = serve(self.case.rank, arrivals)
        times = latencies(arrivals, services)
        busy = 100 * float(services.sum() / (arrivals[-1] + times[-1]))
        self.rounds.append([*np.percentile(1e3 * times, [50, 95, 99]).tolist(), busy])

    def waiting(self) -> Waiting:
        """Return what was found in the middle round: a machine that stood still spoils only one."""
        p50, p95, p99, busy = np.median(self.rounds, axis=0).tolist()
        return Waiting(
            **vars(self.case.setting),
            load_percent=self.load_percent,
            arrivals=self.count * len(self.rounds),
            offered_per_second=self.rate,
            busy_percent=busy,
            p50_ms=p50,
            p95_ms=p95,
            p99_ms=p99,
        )
