"""Speed of a training beside other work: ``python benchmarks/busy.py EVENTS``.

Trains one epoch on an idle machine and one beside a spinning process for every core, in turns, and
prints both speeds and their ratio. With fair shares, the ratio is about a half.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import click

RANKLET = [sys.executable, "-m", "ranklet_cli"]
SETTINGS = ["--set", "epochs=1", "--set", "checkpoint_steps=100000"]


def speed(events: Path, spinning: int) -> int:
    """Return the targets a second of one epoch beside ``spinning`` processes."""
    with ExitStack() as stack:
        run = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
        for _ in range(spinning):
            spinner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(spinner.wait)
            stack.callback(spinner.kill)
        command = [*RANKLET, "train", str(events), "--out", str(run), *SETTINGS]
        subprocess.run(command, check=True, capture_output=True)
        line = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
        return int(line["targets_per_second"])


@click.command()
@click.argument("events", type=click.Path(path_type=Path, exists=True))
@click.option("--turns", default=5, help="Trainings in each of the two situations.")
def main(events: Path, turns: int) -> None:
    """Print the speeds and their ratio."""
    cores = os.cpu_count() or 1
    speeds: dict[int, list[int]] = {0: [], cores: []}
    for _ in range(turns):
        for spinning, taken in speeds.items():
            taken.append(speed(events, spinning))
            click.echo(f"{spinning} spinning processes: {taken[-1]:,} targets/s")
    idle, busy = (statistics.median(taken) for taken in speeds.values())
    click.echo(f"median of {turns}: idle {idle:,.0f}, busy {busy:,.0f}, ratio {busy / idle:.2f}")


if __name__ == "__main__":
    main()
