"""Requests queue as queueing theory says, and a server works as soon as it can."""

import numpy as np
import pytest

from ranklet_cli.bench.timers import Seconds, arrival_times, latencies, serve

MANY = 400_000
SAMPLED = 0.05  # relative error of the mean wait of so many requests at a load of 0.9
EXACT = 1e-9
TICK = 1e-6  # of the clock below, at every look


def slow_latencies(arrivals: list[float], services: list[float]) -> list[float]:
    free, found = 0.0, []
    for arrival, service in zip(arrivals, services, strict=True):
        free = max(free, arrival) + service
        found.append(free - arrival)
    return found


@pytest.mark.parametrize("load", [0.2, 0.5, 0.8, 0.9])
def test_with_constant_work_the_mean_wait_is_that_of_m_d_1(load: float) -> None:
    service = 0.003
    services = np.full(MANY, service)
    waits = latencies(arrival_times(load / service, MANY, seed=0), services) - services
    # Pollaczek and Khinchine
    assert waits.mean() == pytest.approx(load * service / (2 * (1 - load)), rel=SAMPLED)


@pytest.mark.parametrize("load", [0.2, 0.5, 0.8])
def test_with_exponential_work_the_mean_wait_is_that_of_m_m_1(load: float) -> None:
    service = 0.003
    services = np.random.default_rng(1).exponential(service, MANY)
    waits = latencies(arrival_times(load / service, MANY, seed=0), services) - services
    assert waits.mean() == pytest.approx(load * service / (1 - load), rel=SAMPLED)


@pytest.mark.parametrize("seed", range(5))
def test_latencies_are_those_of_a_slow_simulation(seed: int) -> None:
    random = np.random.default_rng(seed)
    arrivals, services = np.sort(random.uniform(0, 10, 50)), random.exponential(0.2, 50)
    expected = slow_latencies(arrivals.tolist(), services.tolist())
    assert latencies(arrivals, services) == pytest.approx(expected, rel=EXACT)


def test_requests_far_apart_do_not_wait() -> None:
    services = np.array([0.5, 0.25, 0.125])
    assert latencies(np.array([0.0, 1.0, 2.0]), services).tolist() == services.tolist()


def test_requests_at_once_wait_for_all_before() -> None:
    found = latencies(np.zeros(4), np.full(4, 0.5))
    assert found.tolist() == [0.5, 1.0, 1.5, 2.0]


def test_arrivals_meet_their_rate_and_are_a_poisson_process() -> None:
    arrivals = arrival_times(rate=50, count=MANY, seed=2)
    gaps = np.diff(arrivals)
    assert (gaps >= 0).all()
    assert MANY / arrivals[-1] == pytest.approx(50, rel=1e-4)
    # The gaps of a Poisson process have a standard deviation of their mean.
    assert gaps.std() / gaps.mean() == pytest.approx(1, rel=0.01)


class FakeClock:
    """Time that passes a little at every look, and when something works."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        self.now += TICK
        return self.now


def test_a_server_works_from_arrival_or_when_it_is_free() -> None:
    clock = FakeClock()
    arrivals: Seconds = np.array([0.1, 0.2, 0.25, 0.9])
    work, begun = [0.01, 0.3, 0.02, 0.05], []

    def call(number: int) -> None:
        begun.append(clock.now - 100)
        clock.now += work[number]

    services = serve(call, arrivals, clock)
    assert services == pytest.approx(work, abs=5 * TICK)
    assert begun == pytest.approx([0.1, 0.2, 0.5, 0.9], abs=10 * TICK)


def test_a_server_that_is_woken_late_is_slow() -> None:
    clock = FakeClock()

    def call(number: int) -> None:
        clock.now += 0.5 if number == 0 else 0.0

    looks = iter([0.0, 3.0, 0.0, 0.0, 0.0])  # seconds that the system takes away at each look

    def stolen() -> float:
        clock.now += next(looks, 0.0)
        return clock()

    services = serve(call, np.array([1.0]), stolen)
    assert services == pytest.approx([3.0 - 1.0 + 0.5], abs=5 * TICK)
