"""Hostile bundles whose digests are right: those of attacks/, and odd ones drawn from a seed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from faults.campaign import Campaign, Tally
from faults.world import ROOT


def attacks(count: int, rng: np.random.Generator, folder: Path) -> Tally:
    """Open attacks of attacks/, all of them or some."""
    sys.path.insert(0, str(ROOT))
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


CAMPAIGNS = [
    Campaign(
        "hostile bundle of attacks/, digests right",
        "no crash, no hang, no file outside of the folder is read or written; a named error, or "
        "the right answer",
        attacks,
        short=20,
        middle=200,
        long=200,
    ),
    Campaign(
        "odd manifest, graph or file, digests right",
        "the same; an odd file may lead to other answers, of items of its catalogue",
        odd,
        short=16,
        middle=100,
        long=2_000,
    ),
]
