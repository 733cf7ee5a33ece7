"""Cost against size: ``python benchmarks/scale.py [log|train|growth]``.

log      write a synthetic log in parts, for any number of events: users by a power law, items by
         another, half of them near the user's taste, times in order
train    one epoch of ``ranklet train`` on a log, and the memory that it took at most: all of it,
         and without the pages of mapped files, which the system takes back where it needs memory
growth   sorting, training, exporting and ranking at growing sizes, one thread a process, and what
         much larger sizes would cost if costs go on as from the second largest to the largest
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import polars as pl

from ranklet.machine import describe_machine

TRAIN = ("-m", "ranklet_cli", "train", "--set=epochs=1")
SETTINGS = ("split=none", "windows=all", "width=64", "max_length=50", "cooccurrence_start=false")
PEAKS = ("VmHWM", "RssAnon")
# Sort a log as if it were larger than memory, and split it.
SORT = """
import sys
from pathlib import Path
from ranklet_training.data.large_logs import read_large_events
from ranklet_training.data.split import split_events
log = read_large_events(Path(sys.argv[1]))
split_events(log.pieces)
"""
# Rank with a bundle for some seconds, by a scan and by its index.
RANK = """
import json, sys, time
from pathlib import Path
import numpy as np
from ranklet import Ranker
begin = time.perf_counter()
ranker = Ranker.load(sys.argv[1], provider="cpu")
load = time.perf_counter() - begin
rng, ids = np.random.default_rng(0), ranker.ids
users = [[ids[i] for i in rng.integers(len(ids), size=50)] for _ in range(32)]
facts = {"load": ("s", load)}
for name, exact in (("by its index", False), ("by a scan", True)):
    for what, rank in (
        ("rank one user", lambda: ranker.rank(users[0], exact=exact)),
        ("rank 1,000,000 users in batches", lambda: ranker.rank_batch(users, exact=exact)),
    ):
        times = []
        while sum(times) < 3:
            begin = time.perf_counter()
            rank()
            times.append(time.perf_counter() - begin)
        median = float(np.median(times[1:] or times))
        one = what == "rank one user"
        facts[f"{what}, {name}"] = ("ms", 1e3 * median) if one else ("h", median / 32 * 1e6 / 3600)
    pages = Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]
    after = name if not exact else "by its index and by a scan"
    facts[f"memory after ranking {after}"] = "GB", int(pages) / 1e6
print(json.dumps(facts))
"""
BEGIN, YEAR = 1_700_000_000, 365 * 24 * 60 * 60
TASTES = 1000


def make_log(
    folder: Path, events: int, users: int, items: int, part_rows: int = 5_000_000, seed: int = 0
) -> None:
    """Write ``user_id, item_id, timestamp`` of a year into parquet parts."""
    folder.mkdir(parents=True)
    for number, begin in enumerate(range(0, events, part_rows)):
        random, rows = np.random.default_rng([seed, number]), min(part_rows, events - begin)
        user = (users * random.random(rows, np.float32) ** 1.5).astype(np.int64)
        popular = (items * random.random(rows, np.float32) ** 3).astype(np.int64)
        place = (items // TASTES * random.random(rows, np.float32) ** 2).astype(np.int64)
        taste = (user % TASTES) * (items // TASTES) + place
        item = np.where(random.random(rows, np.float32) < 0.5, taste, popular)
        instants = np.sort(random.integers(0, YEAR * rows // events, rows))
        frame = pl.DataFrame(
            {
                "user_id": user,
                "item_id": item,
                "timestamp": BEGIN + YEAR * begin // events + instants,
            }
        )
        frame.write_parquet(folder / f"part-{number:05}.parquet")


@click.group()
def main() -> None:
    """Measure cost against size."""


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--events", default=100_000_000)
@click.option("--users", default=1_000_000)
@click.option("--items", default=100_000)
def log(folder: Path, events: int, users: int, items: int) -> None:
    """Write a synthetic log of parts."""
    make_log(folder, events, users, items)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{events:,} events in {len(list(folder.iterdir()))} parts of {size / 1e9:.2f} GB")


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("folder", metavar="LOG", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def train(folder: Path, out: Path, options: tuple[str, ...]) -> None:
    """Train one epoch on LOG into the run OUT, with more options of ranklet train."""
    seconds, peaks = _run([*TRAIN, folder, "--out", out, *options])
    print(
        f"{seconds:.0f} s; peak memory {peaks['VmHWM']:.2f} GB with mapped files, "
        f"{peaks['RssAnon']:.2f} GB without"
    )


def _run(arguments: Sequence[str | Path]) -> tuple[float, dict[str, float]]:
    """Run Python; return the seconds, and the most gigabytes with mapped files and without."""
    begin, peaks = time.perf_counter(), {"VmHWM": 0.0, "RssAnon": 0.0}
    process = subprocess.Popen([sys.executable, *map(str, arguments)])
    while process.poll() is None:
        for name, gigabytes in _memory(process.pid).items():
            peaks[name] = max(peaks[name], gigabytes)
        time.sleep(0.1)
    if process.returncode:
        raise click.ClickException(f"status {process.returncode} of {arguments}")
    return time.perf_counter() - begin, peaks


def _memory(process: int) -> dict[str, float]:
    """Return gigabytes of a process: the most until now, and those now without mapped files."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:  # it has just ended
        return {}
    pairs = (line.split(":") for line in lines)
    return {name: int(value.split()[0]) / 1e6 for name, value in pairs if name in PEAKS}


@dataclass
class Growth:
    """What each size of one kind costs."""

    what: str
    unit: str
    costs: dict[int, float]  # by size, rising
    target: int  # a much larger size

    @property
    def exponent(self) -> float:
        """Return b of cost = a size^b through the two largest sizes."""
        (size, cost), (larger, more) = [*self.costs.items()][-2:]
        return math.log(more / cost) / math.log(larger / size)

    def row(self) -> str:
        """Return a row of the table."""
        (largest, most), b = [*self.costs.items()][-1], self.exponent
        shown = "; ".join(f"{size:,}: {cost:.3g}" for size, cost in self.costs.items())
        there = most * (self.target / largest) ** b
        return f"| {self.what} | {self.unit} | {shown} | {b:.2f} | {self.target:,}: {there:.3g} |"


@main.command()
@click.argument("scratch", type=click.Path(path_type=Path))
def growth(scratch: Path) -> None:
    """Measure at growing sizes, in files of the new folder SCRATCH."""
    os.environ["OMP_NUM_THREADS"] = "1"
    scratch.mkdir(parents=True)
    rows = [*_of_events(scratch), *_of_items(scratch)]
    print(describe_machine())
    print("\n| what | unit | size: cost | exponent | at |\n|---|---|---|---|---|")
    print(*(each.row() for each in rows), sep="\n")


def _of_events(scratch: Path) -> list[Growth]:
    """Sort and train on logs of growing numbers of events, of 50 a user, over 20,000 items."""
    sort, memory = Growth("sort and split", "s", {}, 10**9), Growth("", "GB", {}, 10**9)
    memory.what = "memory of sort and split, without mapped files"
    train = [Growth(f"an epoch, {n} process{'es' * (n > 1)}", "s", {}, 10**9) for n in (1, 2)]
    for events in (2_000_000, 6_000_000, 18_000_000):
        log = scratch / f"log-{events}"
        make_log(log, events, events // 50, 20_000)
        seconds, peaks = _run(["-c", SORT, log])
        sort.costs[events], memory.costs[events] = seconds, peaks["RssAnon"]
    for events in (500_000, 1_500_000):
        log = scratch / f"log-{events}"
        make_log(log, events, events // 50, 20_000)
        for processes, each in enumerate(train, 1):
            each.costs[events] = _epoch(log, scratch / f"run-{events}-{processes}", processes)
    return [sort, memory, *train]


def _of_items(scratch: Path) -> list[Growth]:
    """Train on, export and rank growing numbers of items."""
    epoch = Growth("an epoch of 1,000,000 events", "s", {}, 10**7)
    export = Growth("export with an index", "s", {}, 10**7)
    facts: dict[str, Growth] = {}
    for items in (10_000, 100_000, 1_000_000):
        log, bundle = scratch / f"items-{items}", scratch / f"bundle-{items}"
        make_log(log, 1_000_000, 20_000, items)
        epoch.costs[items] = _epoch(log, scratch / f"run-items-{items}", 1)
        shape = f"items={items},width=64,blocks=2,heads=1,length=50"
        arguments = ["--random", shape, bundle, "--index", "clusters", "--compact"]
        export.costs[items] = _run(["-m", "ranklet_cli", "export", *arguments])[0]
        said = subprocess.check_output([sys.executable, "-c", RANK, bundle])
        for what, (unit, cost) in json.loads(said).items():
            facts.setdefault(what, Growth(what, unit, {}, 10**7)).costs[items] = cost
    return [epoch, export, *facts.values()]


def _epoch(log: Path, run: Path, processes: int) -> float:
    """Return the seconds of the steps of an epoch."""
    settings = [f"--set={setting}" for setting in SETTINGS]
    _run([*TRAIN, log, "--out", run, "--nproc", str(processes), *settings])
    line = json.loads((run / "metrics.jsonl").read_text())
    facts = json.loads((run / "config.json").read_text())["data"]
    return float((facts["events"] - facts["training_users"]) / line["targets_per_second"])


if __name__ == "__main__":
    main()
