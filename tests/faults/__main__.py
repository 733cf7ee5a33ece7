"""Run every campaign at its long size, print the counts, and write docs/faults.md."""

import argparse
import os
import platform
import sys
import time
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
    "inputs",
    "options",
    "commands",
    "logs",
)
PAGE = ROOT / "docs" / "faults.md"


def campaigns() -> list[Campaign]:
    """Return all campaigns, in the order of the table."""
    return [each for name in MODULES for each in import_module(f"faults.{name}").CAMPAIGNS]


def attempt(campaign: Campaign, count: int, seed: int) -> Tally:
    """Run a campaign in an empty folder that vanishes."""
    with TemporaryDirectory(prefix="ranklet-faults-") as folder:
        return campaign.run(count, np.random.default_rng(seed), Path(folder))


def main() -> int:
    """Run the campaigns; the exit status is 1 where anything ended otherwise than promised."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="run campaigns with these words in their names")
    parser.add_argument("--size", choices=("short", "middle", "long"), default="long")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rows, wrong, start = [], [], time.perf_counter()
    for campaign in campaigns():
        if arguments.names and not any(word in campaign.name for word in arguments.names):
            continue
        begin = time.perf_counter()
        tally = attempt(campaign, getattr(campaign, arguments.size), arguments.seed)
        seconds = time.perf_counter() - begin
        ways = ", ".join(f"{n:,} {way}" for way, n in tally.outcomes.most_common())
        rows.append(f"| {campaign.name} | {tally.tried:,} | {ways} | {len(tally.wrong):,} |")
        print(f"{rows[-1]} {seconds:.1f} s", flush=True)
        wrong += [f"{campaign.name}: {what}" for what in tally.wrong]
    print(*wrong, sep="\n", file=sys.stderr)
    if not arguments.names and arguments.size == "long":
        PAGE.write_text(page(rows, arguments.seed, time.perf_counter() - start))
    return bool(wrong)


def page(rows: list[str], seed: int, seconds: float) -> str:
    """Return docs/faults.md."""
    head, _, _ = PAGE.read_text().partition("<!-- table -->")
    machine = f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("ranklet", "onnxruntime", "numpy"))
    table = ["| what was done | times | how it ended | otherwise |", "|---|---|---|---|", *rows]
    return (
        f"{head}<!-- table -->\n\n"
        + "\n".join(table)
        + f"\n\n{date.today()}, seed {seed}, {seconds / 60:.0f} minutes, {machine}, "
        + f"Python {platform.python_version()}, {versions}.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
