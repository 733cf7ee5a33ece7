"""What tests do in several processes: ``python process_work.py NAME [ARGUMENT]``."""

import json
import os
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import torch
import torch.distributed as dist
from torch.nn import functional

from ranklet.errors import RunError
from ranklet_cli.main import main
from ranklet_training import launch as launching
from ranklet_training import processes
from ranklet_training.data.events import read_events
from ranklet_training.data.simulator import simulate
from ranklet_training.data.split import split_events
from ranklet_training.model import item_table
from ranklet_training.runs import train as training
from ranklet_training.runs.checkpoint import read_run
from ranklet_training.runs.presets import configure
from ranklet_training.runs.start import start_run


def launch(count: int, name: str, *arguments: object) -> int:
    """Do something of this file in several processes; return their exit status."""
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-W", "error", __file__, name, *map(str, arguments)]
    return launching.launch(count, command)


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes; after it, no thread may be left of the group, as it may abort the end.

    A thread of gloo that frees a tensor while Python ends is ended within a destructor
    (https://github.com/pytorch/pytorch/issues/190489).
    """
    group = None
    with processes.join():
        if dist.is_initialized():
            group = weakref.ref(dist.group.WORLD)
        yield
    assert group is None or group() is None


def train_runs(runs: dict[str, dict[str, Any]], *, stop: bool = False) -> None:
    """Start or resume runs of some settings; ``stop`` fails in the first process after an epoch."""

    def fail(line: object) -> None:
        raise RunError("stopped")

    with joined():
        world = simulate(users=150, items=60, clusters=4, mean_length=15, seed=3)
        is_bought = pl.col("timestamp") % 3 == 0
        kind = pl.when(is_bought).then(pl.lit("buy")).otherwise(pl.lit("view"))
        events = read_events(world.events.with_columns(event=kind))
        split = split_events(events.frame)
        for path, settings in runs.items():
            start = partial(start_run, Path(path), configure(settings), events, split, world.items)
            is_started = (Path(path) / "config.json").exists()
            processes.wait_for_all()
            read = partial(read_run, Path(path))
            run = read() if is_started else processes.after_first(start, read)
            training.train(run, split, log=fail if stop else None, show_progress=False)


def look_up() -> None:
    """Compare lookups in a table of shards with an embedding of the whole table."""
    with joined():
        rank, count = processes.rank(), processes.count()
        for rows_of_table, is_sparse in ((7, False), (8, True), (2, False)):
            generator = torch.Generator().manual_seed(0)
            whole = torch.randn(rows_of_table, 3, generator=generator)
            table = item_table.ItemTable(rows_of_table - 1, 3)
            table.item.data, table.has_sparse_gradient = whole.clone(), is_sparse
            table.cut()
            assert table.item.shape == (-(-rows_of_table // count), 3)
            assert torch.equal(table(), whole)
            asked = [torch.arange(number, rows_of_table, number + 1) for number in range(count)]
            found = table(asked[rank])
            assert torch.equal(found, functional.embedding(asked[rank], whole))
            (found.square().sum() * (rank + 1)).backward()
            expected = torch.zeros_like(whole)
            for number, rows in enumerate(asked):
                expected[rows] += 2 * whole[rows] * (number + 1)
            assert table.item.grad is not None
            assert torch.allclose(table.item.grad.to_dense(), item_table.cut_shard(expected))
            gathered = table.whole(table.item.detach())
            assert rank or torch.equal(gathered, whole)


def fail_in_the_second() -> None:
    """Run the command line, which fails in a step of the second process."""
    original, calls = training.batch_loss, [0]

    def failing(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3 and processes.rank() == 1:
            raise RunError("no third step")
        return original(*arguments)

    training.batch_loss = failing
    main()


if __name__ == "__main__":
    name = sys.argv.pop(1)
    if name == "train_runs":
        train_runs(json.loads(sys.argv[1]))
    elif name == "stop_runs":
        train_runs(json.loads(sys.argv[1]), stop=True)
    else:
        {"look_up": look_up, "fail_in_the_second": fail_in_the_second}[name]()
