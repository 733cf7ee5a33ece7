"""A soak: one process answers requests of all kinds for long, and its memory stays flat."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from faults.campaign import Campaign, Tally
from faults.world import SHIPPED

ROUND = 5_000  # requests between two looks at the memory
# Requests from which growth counts: it takes 50,000 until every pool is full.
MANY = 500_000
MOST_GROWN = 8.0  # MiB from a tenth of the requests to their end, by a fitted line

# A fresh process; it prints the memory in use after each round.
SOAK = """
import ctypes, gc, json, sys
from pathlib import Path
import numpy as np
from ranklet import InputError, Ranker

path, seed, count, each = sys.argv[1], *map(int, sys.argv[2:])
rng, done = np.random.default_rng(seed), 0
ranker = Ranker.load(path, provider="cpu")
ids = [str(item) for item in ranker.ids]
users = [ranker.user() for _ in range(20)]
many = ranker.users([[]] * 10)
rows = ranker.item_vectors(ids[:2])

def memory():
    gc.collect()
    # Else malloc keeps up to 60 MiB of what is free, more and less at random.
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / (1 << 20)

def history():
    return [ids[place] for place in rng.integers(len(ids), size=rng.integers(1, 40))]

def refuse(ask):
    try:
        ask()
    except InputError:
        return
    sys.exit("no error")

def grow():
    name = f"new-{rng.integers(5)}"
    ranker.add_items([{"item_id": name}], vectors=rows[:1])
    assert name in ranker.rank(history(), k=len(ranker), exclude_seen=False).items
    ranker.remove_items([name])

def kept():
    user = users[rng.integers(len(users))]
    user.append(history()[0])
    user.rank()
    if len(user) > 60:
        users[rng.integers(len(users))] = ranker.user().load(ranker.user(history()).save())

def all_kept():
    global many
    if max(map(len, many)) > 60:  # the events of a user are kept for as long as the user
        many = ranker.users([[]] * 10)
    many.append([event if rng.random() < 0.5 else None for event in history()[:1] * len(many)])
    many.rank()

KINDS = [
    (40, 1, lambda: ranker.rank(history(), k=int(rng.integers(1, 9)) * 5)),
    (12, 64, lambda: ranker.rank_batch([history() for _ in range(64)])),
    (20, 1, kept),
    (6, 10, all_kept),
    (8, 1, lambda: ranker.rank(history(), exclude=history(), candidates=ids[:100])),
    (4, 1, lambda: ranker.rank(history(), eligible=ranker.eligible(history() * 3))),
    (2, 1, lambda: (ranker.define("some", history()), ranker.rank(history(), where="!some"))),
    (4, 1, lambda: ranker.rank(history(), seen_recently=history(), diversity=0.2, explain=True)),
    (4, 1, lambda: ranker.similar(history()[0])),
    (4, 1, lambda: refuse(lambda: ranker.rank(history(), k=0))),
    (4, 1, lambda: refuse(lambda: ranker.rank([float("nan")]))),
]
weights = np.array([weight for weight, *_ in KINDS]) / sum(weight for weight, *_ in KINDS)
while done < count:
    end = done + each
    while done < end:
        for kind in rng.choice(len(KINDS), 50, p=weights):
            KINDS[kind][2]()
            done += KINDS[kind][1]
    grow()
    ranker.reload()
    for user in (*users, many):  # one that never ranks again keeps the old bundle alive
        user.rank()
    print(json.dumps([done, memory()]), flush=True)
"""


def soak(count: int, rng: np.random.Generator, folder: Path) -> Tally:
    """Ask, and fit a line through the memory of the rounds after the first tenth."""
    tally, seed = Tally(), int(rng.integers(1 << 31))
    if not Path("/proc/self/statm").exists():
        tally.ended("not measured here", count)
        return tally
    command = [sys.executable, "-c", SOAK, str(SHIPPED)]
    command += [str(number) for number in (seed, count, min(ROUND, count // 4))]
    done = subprocess.run(command, capture_output=True, text=True)
    rounds = np.array([json.loads(line) for line in done.stdout.splitlines()]).reshape(-1, 2)
    if done.returncode or not len(rounds):
        tally.failed(f"seed {seed}: {len(rounds)} rounds, then {done.stderr[-500:]}")
        return tally
    requests, memory = rounds[rounds[:, 0] >= count / 10].T
    if count < MANY:
        tally.ended("answered", int(requests[-1]))
        return tally
    slope = np.polyfit(requests, memory, 1)[0]
    size = f"{memory.min():.0f} to {memory.max():.0f} MiB, {slope * 1e6:+.1f} MiB a million"
    if slope * (requests[-1] - requests[0]) > MOST_GROWN:
        tally.failed(f"seed {seed}: memory {size}")
    else:
        tally.ended(f"answered (memory {size})", int(requests[-1]))
    return tally


CAMPAIGNS = [
    Campaign(
        "mixed requests to one process, with filters, kept users, new items, reloads and errors",
        "memory in use stays flat",
        soak,
        short=1_000,
        middle=12_000,
        long=1_000_000,
    )
]
