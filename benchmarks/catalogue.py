"""What a training step costs as the catalogue grows: lazy rows beside rows that all move.

    python benchmarks/catalogue.py [--items 10000,100000,1000000,10000000]

A step is 1,024 events to predict, width 64, 2 blocks, 2,048 negatives. Histories are random:
this is about time and memory. Each size runs in a process of its own.
"""

import json
import statistics
import subprocess
import sys
import time

import click
import numpy as np
import torch

from ranklet.machine import describe_machine
from ranklet_training.model.losses import sampled_softmax_loss
from ranklet_training.model.model import ModelConfig, SequenceModel, reset_dropout
from ranklet_training.model.optimizer import clip_gradients, make_optimizer
from ranklet_training.runs.batch_loss import draw_negatives
from ranklet_training.runs.presets import TrainConfig

STEPS, WARM_UP, LENGTH = 30, 3, 16
DENSE_UP_TO = 1_000_000  # beyond, moving all rows takes more memory than most machines have


def measure(items: int, *, lazy: bool) -> dict[str, float]:
    """Return the median milliseconds of a step and the memory of the process in MB."""
    random = np.random.default_rng(0)
    config = TrainConfig(loss="sampled-softmax", lazy_rows=lazy)
    model = SequenceModel(ModelConfig(width=64, max_length=LENGTH), items)
    model.init_weights()
    optimizer = make_optimizer(model.train(), config)
    times = []
    for step in range(WARM_UP + STEPS):
        begin = time.perf_counter()
        reset_dropout(model, 0, step)
        history = torch.from_numpy(random.integers(1, items + 1, (1024 // LENGTH, LENGTH + 1)))
        negatives = draw_negatives(random, config.negatives, items)
        needed = torch.cat([history.flatten(), negatives])
        rows, place = torch.unique(needed, return_inverse=True)
        seen, drawn = place.split([history.numel(), len(negatives)])
        seen, table = seen.view_as(history), model.table(rows)
        users = model.encode(seen[:, :-1], table).flatten(0, 1)
        loss = sampled_softmax_loss(users, table, seen[:, 1:].flatten(), drawn, items)
        loss.backward()  # type: ignore[no-untyped-call]
        clip_gradients(model, config.clip)
        optimizer.step(1e-3)
        times.append(time.perf_counter() - begin)
    with open("/proc/self/status") as status:
        peak = next(line for line in status if line.startswith("VmHWM"))
    return {
        "ms": 1e3 * statistics.median(times[WARM_UP:]),
        "peak_mb": int(peak.split()[1]) / 1024,
    }


@click.command()
@click.option("--items", default="10000,100000,1000000,10000000", show_default=True)
@click.option("--one", nargs=2, type=int, hidden=True)
def main(items: str, one: tuple[int, int] | None) -> None:
    """Print one line for each size."""
    if one is not None:
        click.echo(json.dumps(measure(one[0], lazy=bool(one[1]))))
        return
    click.echo(f"{describe_machine()}, {torch.get_num_threads()} threads")
    click.echo(f"{'items':>12}  {'rows that move':16} {'ms a step':>10} {'peak MB':>9}")
    for size in map(int, items.split(",")):
        for lazy in (True, False) if size <= DENSE_UP_TO else (True,):
            command = [sys.executable, __file__, "--one", str(size), str(int(lazy))]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            found = json.loads(done.stdout)
            moved = "those of the step" if lazy else "all"
            click.echo(f"{size:12,}  {moved:16} {found['ms']:10.1f} {found['peak_mb']:9,.0f}")


if __name__ == "__main__":
    main()
