"""Kills: a training that the system ends again and again arrives at the same weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from faults.campaign import Campaign, Tally
from faults.world import write_log

# One process forks trainings and kills each with SIGKILL at a random moment, as a start of torch
# would take longer than the training. Forked children use torch and numpy alone: the threads of
# polars do not survive a fork. Their bars share one lock, which a killed child would not give back.
KILLER = """
import hashlib, json, os, random, select, signal, sys, threading, time
from dataclasses import replace
from pathlib import Path
from tqdm import tqdm
from ranklet_training.data.events import read_events
from ranklet_training.data.split import split_events
from ranklet_training.runs.presets import configure
from ranklet_training.runs.start import start_run
from ranklet_training.runs.train import train

tqdm.set_lock(threading.RLock())
log, folder, seed, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
draw, events = random.Random(seed), read_events(log)
split = split_events(events.frame)
settings = {"epochs": 3, "width": 8, "max_length": 8, "dropout": 0.1, "targets_per_step": 16}

def start(name):
    return start_run(folder / name, configure(settings), events, split)

def outcome(run):
    paths = sorted(run.path.glob("*.safetensors"))
    weights = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]
    lines = map(json.loads, (run.path / "metrics.jsonl").read_text().splitlines())
    timings = ("seconds", "targets_per_second")
    return weights, [{k: v for k, v in line.items() if k not in timings} for line in lines]

whole, begin = start("whole"), time.perf_counter()
train(whole, split, show_progress=False)  # also loads what torch loads late
lasts = time.perf_counter() - begin
killed = turn = 0
while killed < count:
    run, turn, kills = start(str(turn)), turn + 1, 0
    is_done = False
    while not is_done:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            train(run, split, show_progress=False)
            os.write(write, b"done")
            os._exit(0)
        os.close(write)
        patience = draw.uniform(0, lasts * (kills + 1) / 10)  # grows, so that it ends
        is_done = bool(select.select([read], [], [], patience)[0])
        if not is_done:
            os.kill(child, signal.SIGKILL)
            kills += 1
        _, status = os.waitpid(child, 0)
        os.close(read)
    left = [path.name for path in run.path.glob(".*")]
    is_right = status == 0 and outcome(run) == outcome(whole) and not left
    print(json.dumps([turn, kills, is_right, status, left]), flush=True)
    killed += kills
"""


def kill(count: int, rng: np.random.Generator, folder: Path) -> Tally:
    """Kill trainings and go on, until so many were killed."""
    tally, seed = Tally(), int(rng.integers(1 << 31))
    if not hasattr(os, "fork"):
        tally.ended("not possible here", count)
        return tally
    log = write_log(folder / "log.csv", users=100)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLER, log, folder, str(seed), str(count)],
        # A GPU has threads that would not survive a fork either.
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    for turn, kills, is_right, status, left in map(json.loads, done.stdout.splitlines()):
        if is_right:
            tally.ended("resumed to equal weights (SHA-256) and metrics", kills)
        else:
            tally.failed(f"seed {seed}, run {turn}, {kills} kills: status {status}, left {left}")
    if done.returncode:
        tally.failed(f"seed {seed}: status {done.returncode}, {done.stderr[-500:]}")
    return tally


CAMPAIGNS = [
    Campaign(
        "SIGKILL at a random moment of a training",
        "resumed, it ends with the weights of an uninterrupted training",
        kill,
        short=1,
        middle=8,
        long=50,
    )
]
