"""Threads: many callers of one ranker get the answers that one caller gets, to the bit."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from faults.campaign import Campaign, Tally
from faults.world import SHIPPED
from ranklet import Ranker, Ranking

THREADS = 64
Answer = Callable[[Ranker], list[Ranking]]


def requests(ids: list[str], rng: np.random.Generator) -> list[Answer]:
    """Return requests of every kind, of random histories."""
    found: list[Answer] = []
    for length in (1, 2, 5, 13, 50):
        one, two, some = (rng.choice(ids, length).tolist() for _ in range(3))
        k = int(rng.integers(1, 60))
        found += [
            lambda r, h=one, k=k: [r.rank(h, k=k)],
            lambda r, h=two, k=k: [r.rank(h, k=k, candidates=ids[:500], exclude=h)],
            lambda r, h=two, a=some: [r.rank(h, eligible=r.eligible(a + ids[:99]), diversity=0.3)],
            lambda r, h=one, a=some: [r.rank(h, seen_recently=a, skip=3, explain=2)],
            lambda r, h=one, a=two, b=some: r.rank_batch([h, a, b, b[:1]]),
            lambda r, h=two: [r.user(h).rank(exclude_seen=False)],
            lambda r, h=some: r.users([h, h[:1]]).rank(),
            lambda r, h=some: [r.similar(h[0])],
        ]
    return found


def bits(answers: list[Ranking]) -> list[object]:
    """Return what an answer says, to the bit."""
    return [(a.items, a.scores.tobytes(), a.exact, a.cold) for a in answers]


def share_a_ranker(count: int, rng: np.random.Generator, folder: Path) -> Tally:
    """Ask from all threads at once, with a change of threads every microsecond."""
    tally, interval = Tally(), sys.getswitchinterval()
    ids = [str(item) for item in Ranker.load(SHIPPED).ids]
    asked = requests(ids, rng)
    alone = Ranker.load(SHIPPED, provider="cpu")
    expected = [bits(ask(alone)) for ask in asked]
    ranker = Ranker.load(SHIPPED, provider="cpu")  # its programs are loaded by the threads
    orders = rng.integers(len(asked), size=(THREADS, -(-count // THREADS)))

    def work(order: list[int]) -> list[int]:
        return [place for place in order if bits(asked[place](ranker)) != expected[place]]

    try:
        sys.setswitchinterval(1e-6)
        with ThreadPoolExecutor(THREADS) as threads:
            differing = [place for found in threads.map(work, orders.tolist()) for place in found]
    finally:
        sys.setswitchinterval(interval)
    tally.ended("equal to the serial answer to the bit", orders.size - len(differing))
    for place in differing:
        tally.failed(f"request {place} of {THREADS} threads has another answer")
    return tally


CAMPAIGNS = [
    Campaign(
        f"concurrent call, {THREADS} threads on one ranker, switch interval of 1 us",
        "the answer of one thread, to the bit",
        share_a_ranker,
        short=128,
        middle=1_920,
        long=64_000,
    )
]
