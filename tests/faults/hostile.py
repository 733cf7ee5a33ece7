"""Hostile bundles whose digests are right: those of attacks/, and odd ones drawn from a seed."""

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np

from faults.campaign import Campaign, Tally
from faults.world import ROOT
from ranklet import InputError, Ranker
from ranklet.saved_user import DIGEST_BYTES, MAGIC

sys.path.insert(0, str(ROOT))
from attacks.bundle import SHIPPED
from attacks.odd import change


def attacks(count: int, rng: np.random.Generator, folder: Path) -> Tally:
    """Open attacks of attacks/, all of them or some."""
    from attacks.__main__ import ATTACKS

    names = [str(name) for name in rng.permutation([*ATTACKS])[:count]]
    tally = Tally()
    while names:
        names = names[_open(tally, folder, *names) :]
    return tally


def odd(count: int, rng: np.random.Generator, folder: Path) -> Tally:
    """Open bundles with an odd manifest, an odd graph or flipped bits."""
    seed, first, tally = int(rng.integers(1 << 30)), 0, Tally()
    while first < count:
        first += _open(tally, folder, f"--odd={count}", f"--seed={seed}", f"--first={first}")
    return tally


def _open(tally: Tally, folder: Path, *what: str) -> int:
    """Open bundles in one process, and return how many, that which ended it included."""
    command = [sys.executable, "-m", "attacks", f"--folder={folder}", *what]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    tried, ended, name = 0, True, "the process"
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as child:
        for line in child.stdout or ():
            said = json.loads(line)
            ended = "end" in said
            if not ended:
                tried, name = tried + 1, said["start"]
            elif said["end"].startswith("WRONG"):
                tally.failed(f"{name}: {said['end']}")
            else:
                tally.ended(said["end"].partition(":")[0])
    if not ended or not tried:
        tally.failed(f"{name} ended the process with status {child.returncode}")
    return max(1, tried)


def saved_users(count: int, rng: np.random.Generator, folder: Path) -> Tally:
    """Load saved users whose header or numbers were changed, and whose digest is right."""
    ranker, tally = Ranker.load(SHIPPED, provider="cpu"), Tally()
    history = ["1", "2571", "nowhere", "260", "50"]
    user = ranker.user(history)
    user.rank()
    data = user.save()
    begin = len(MAGIC) + 4
    end = begin + int.from_bytes(data[len(MAGIC) : begin], "little")
    for seed in rng.integers(1 << 30, size=count).tolist():
        draw = random.Random(seed)
        header, numbers = json.loads(data[begin:end]), bytearray(data[end:-DIGEST_BYTES])
        if draw.random() < 0.6:
            change(header, draw)
        else:
            at = draw.randrange(draw.choice((100, len(numbers))))
            numbers[at : at + draw.randrange(9)] = draw.randbytes(draw.randrange(9))
        text = json.dumps(header).encode()
        body = MAGIC + len(text).to_bytes(4, "little") + text + numbers
        try:
            loaded = ranker.user(["1"]).load(body + hashlib.sha256(body).digest())
            loaded.append("6")
            ranking = loaded.rank(50)
        except InputError:
            tally.ended("refused by name")
        except Exception as error:
            tally.failed(f"saved user of seed {seed}: {type(error).__name__}: {error}"[:300])
        else:
            if np.isfinite(ranking.scores).all() and len({*ranking.items}) == 50:
                tally.ended("answered from the catalogue")
            else:
                tally.failed(f"saved user of seed {seed}: {ranking}"[:300])
    return tally


CAMPAIGNS = [
    Campaign(
        "hostile bundle of attacks/, digests right",
        "no crash, no hang, no file outside of the folder is read or written; a named error, or "
        "the right answer",
        attacks,
        short=20,
        middle=110,
        long=110,
    ),
    Campaign(
        "odd manifest, graph or file, digests right",
        "the same; an odd file may lead to other answers, of items of its catalogue",
        odd,
        short=16,
        middle=25,
        long=300,
    ),
    Campaign(
        "saved user crafted, digest right",
        "a named error, or a user whose answers are items of the catalogue",
        saved_users,
        short=150,
        middle=1_000,
        long=10_000,
    ),
]
