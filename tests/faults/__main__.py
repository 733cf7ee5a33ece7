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


def in_a_child(campaign: Campaign, size: str, seed: int) -> Tally:
    """Run a campaign in a process of its own, and print what became of it."""
    command = [sys.executable, "-m", "faults", campaign.name, "--size", size, "--seed", str(seed)]
    begin = time.perf_counter()
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        tally = Tally(wrong=[f"the campaign ended with status {done.returncode}: {last}"])
    else:
        facts = json.loads(done.stdout.splitlines()[-1])
        tally = Tally(Counter(facts["outcomes"]), facts["wrong"])
    print(f"{row(campaign, tally)} {time.perf_counter() - begin:.1f} s", flush=True)
    return tally


def row(campaign: Campaign, tally: Tally) -> str:
    """Return a row of the table."""
    ways = ", ".join(f"{count:,} {way}" for way, count in tally.outcomes.most_common())
    return f"| {campaign.name} | {tally.tried:,} | {ways} | {len(tally.wrong):,} |"


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
    with ThreadPoolExecutor(arguments.jobs) as pool:
        # The slowest are the last of the table; they start first, so that none ends alone.
        ends = [pool.submit(in_a_child, each, size, seed) for each in reversed(chosen)][::-1]
        tallies = [end.result() for end in ends]
    rows = [row(campaign, tally) for campaign, tally in zip(chosen, tallies, strict=True)]
    wrong = [
        f"{each.name}: {what}"
        for each, tally in zip(chosen, tallies, strict=True)
        for what in tally.wrong
    ]
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
