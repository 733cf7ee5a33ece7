"""Forks of a process that has loaded a bundle, and goes on loading and ranking."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from faults.campaign import Campaign, Tally
from faults.world import SHIPPED

# A process of its own, which has no other threads than those of onnxruntime and its own. Each child
# ends as Python ends; one that has not ended after a minute waits for ever.
FORKS = """
import json, os, random, sys, threading, time
from ranklet import ProviderError, Ranker

path, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
draw = random.Random(seed)
rankers = {n: Ranker.load(path, provider="cpu", threads=n) for n in (1, 2, 4)}
ids = [str(item) for item in rankers[1].ids[:50]]
users = {n: ranker.user(ids[:3]) for n, ranker in rankers.items()}
answer = rankers[1].rank(ids[:5]).items
for user in users.values():
    user.rank()

def be_busy():
    while True:
        own = Ranker.load(path, provider="cpu", threads=2)
        for _ in range(50):
            own.rank(ids[: 1 + draw.randrange(20)])
            own.user(ids[:2]).rank()

def refuses(ask):
    try:
        ask()
    except ProviderError:
        return
    sys.exit("an inherited ranker answered")

def rank(threads):
    refuses(lambda: rankers[threads].rank(ids[:2]))
    refuses(users[threads].rank)

def load(threads):
    if Ranker.load(path, provider="cpu", threads=threads).rank(ids[:5]).items != answer:
        sys.exit("another answer")

def reload(threads):
    rankers[threads].reload()
    if rankers[threads].rank(ids[:5]).items != answer:
        sys.exit("another answer")
    users[threads].rank()

def drop(threads):
    del rankers[threads], users[threads]

WORK = {
    "the child ended": lambda threads: None,
    "the child dropped the ranker": drop,
    "refused by name": rank,
    "the child loaded its own": load,
    "the child reloaded": reload,
}
for number in range(count):
    if number == count // 2:
        for _ in range(3):
            threading.Thread(target=be_busy, daemon=True).start()
    time.sleep(draw.random() * 0.01)
    threads, name = draw.choice([1, 2, 4]), draw.choice([*WORK])
    child = os.fork()
    if child == 0:
        WORK[name](threads)
        sys.exit()
    ended, limit = 0, time.monotonic() + 60
    while not ended and time.monotonic() < limit:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.001)
    if not ended:
        os.kill(child, 9)
        os.waitpid(child, 0)
        status = "no end"
    busy = "beside busy threads" if number >= count // 2 else "alone"
    fault = f"seed {seed}, fork {number} {busy}, {threads} threads: wait status {status}"
    print(json.dumps([name, fault if status else ""]), flush=True)
os._exit(0)
"""


def fork(count: int, rng: np.random.Generator, folder: Path) -> Tally:
    """Fork, the second half beside threads that load and rank."""
    tally, seed = Tally(), int(rng.integers(1 << 31))
    if not hasattr(os, "fork"):
        tally.ended("not possible here", count)
        return tally
    command = [sys.executable, "-W", "ignore", "-c", FORKS, str(SHIPPED), str(seed), str(count)]
    done = subprocess.run(command, capture_output=True, text=True)
    for name, fault in map(json.loads, done.stdout.splitlines()):
        tally.failed(f"{name}: {fault}") if fault else tally.ended(name)
    if done.returncode or tally.tried < count:
        tally.failed(f"seed {seed}: the parent ended with {done.returncode}: {done.stderr[-500:]}")
    return tally


CAMPAIGNS = [
    Campaign(
        "fork after load, rankers of 1, 2 and 4 threads, half beside threads that load and rank",
        "the child ends; it refuses what it inherits by name, and loads its own",
        fork,
        short=4,
        middle=15,
        long=100,
    )
]
