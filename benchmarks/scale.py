"""Cost against size: ``python benchmarks/scale.py [log|train]``.

log      write a synthetic log in parts, for any number of events: users by a power law, items by
         another, half of them near the user's taste, times in order
train    one epoch of ``ranklet train`` on a log, and the memory that it took at most: all of it,
         and without the pages of mapped files, which the system takes back where it needs memory
"""

import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import polars as pl

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
    command = [sys.executable, "-m", "ranklet_cli", "train", folder, "--out", out, *options]
    begin, peaks = time.perf_counter(), {"VmHWM": 0, "RssAnon": 0}
    process = subprocess.Popen([*map(str, command), "--set", "epochs=1"])
    while process.poll() is None:
        for name, kilobytes in _memory(process.pid).items():
            peaks[name] = max(peaks[name], kilobytes)
        time.sleep(0.1)
    print(
        f"status {process.returncode}, {time.perf_counter() - begin:.0f} s; peak memory "
        f"{peaks['VmHWM'] / 1e6:.2f} GB with mapped files, {peaks['RssAnon'] / 1e6:.2f} GB without"
    )


def _memory(process: int) -> dict[str, int]:
    """Return kilobytes of a process: the most until now, and those now without mapped files."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:  # it has just ended
        return {}
    pairs = (line.split(":") for line in lines)
    return {name: int(value.split()[0]) for name, value in pairs if name in ("VmHWM", "RssAnon")}


if __name__ == "__main__":
    main()
