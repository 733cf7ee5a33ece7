"""Run every campaign at its long size, print the counts, and write docs/faults.md."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from faults.campaign import Campaign, Tally
from faults.world import ROOT

MODULES: tuple[str, ...] = (
    # One name a line, in the order of the table.
    "damage",
    "hostile",
    "options",
    "inputs",
    "commands",
    "logs",
    "writes",
    "replacing",
    "threads",
    "forks",
    "signals",
    "kills",
    "reloads",
    "soak",
)
PAGE = ROOT / "docs" / "faults.md"


def campaigns() -> list[Campaign]:
    """Return all campaigns, in the order of the table."""
    return [each for name in MODULES for each in import_module(f"faults.{name}").CAMPAIGNS]


def attempt(campaign: Campaign, count: int, seed: int) -> Tally:
    """Run a campaign in an empty folder that vanishes."""
    with TemporaryDirectory(prefix="ranklet-faults-") as folder:
        return campaign.run(count, np.random.default_rng(seed), Path(folder))


def in_a_child(campaign: Campaign, size: str, seed: int) -> tuple[Tally, float]:
    """Run a campaign in a process of its own; return what became of it, and the seconds."""
    command = [sys.executable, "-m", "faults", campaign.name, "--size", size, "--seed", str(seed)]
    begin = time.perf_counter()
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begin
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        return Tally(wrong=[f"the campaign ended with status {done.returncode}: {last}"]), seconds
    facts = json.loads(done.stdout.splitlines()[-1])
    return Tally(Counter(facts["outcomes"]), facts["wrong"]), seconds


def main() -> int:
    """Run the campaigns; the exit status is 1 where anything ended otherwise than promised."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="run campaigns with these words in their names")
    parser.add_argument("--size", choices=("short", "middle", "long"), default="long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="campaigns at the same time")
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)  # of a child
    arguments = parser.parse_args()
    size, seed, start = arguments.size, arguments.seed, time.perf_counter()
    chosen = [
        each
        for each in campaigns()
        if not arguments.names or any(word in each.name for word in arguments.names)
    ]
    if arguments.json:
        (only,) = (each for each in chosen if each.name == arguments.names[0])
        tally = attempt(only, getattr(only, size), seed)
        print(json.dumps({"outcomes": tally.outcomes, "wrong": tally.wrong}))
        return 0
    rows, wrong = [], []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        ends = pool.map(lambda each: in_a_child(each, size, seed), chosen)
        for campaign, (tally, seconds) in zip(chosen, ends, strict=True):
            ways = ", ".join(f"{n:,} {way}" for way, n in tally.outcomes.most_common())
            rows.append(f"| {campaign.name} | {tally.tried:,} | {ways} | {len(tally.wrong):,} |")
            print(f"{rows[-1]} {seconds:.1f} s", flush=True)
            wrong += [f"{campaign.name}: {what}" for what in tally.wrong]
    print(*wrong, sep="\n", file=sys.stderr)
    if not arguments.names and size == "long":
        PAGE.write_text(page(rows, seed, time.perf_counter() - start))
    return bool(wrong)


def page(rows: list[str], seed: int, seconds: float) -> str:
    """Return docs/faults.md."""
    head, _, _ = PAGE.read_text().partition("<!-- table -->")
    machine = f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("ranklet", "onnxruntime", "numpy"))
    table = ["| what was done | times | how it ended | unexpected |", "|---|---|---|---|", *rows]
    return (
        f"{head}<!-- table -->\n\n"
        + "\n".join(table)
        + f"\n\n{date.today()}, seed {seed}, {seconds / 60:.0f} minutes, {machine}, "
        + f"Python {platform.python_version()}, {versions}.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
