"""Throughput of a training in one process and in several, which have one thread each.

    python benchmarks/processes.py EVENTS [--nproc 2] [--set KEY=VALUE]...

A try is a training of some steps with the recommended settings; one process with one thread, one
with as many threads as there are processes, and the processes take turns. The last column is what
the processor time of a step allows: it is above the throughput where other programs ran, or where
threads and processes waited.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path

import click

from ranklet.machine import describe_machine
from ranklet_training import processes
from ranklet_training.data.events import read_events
from ranklet_training.data.sequences import epoch_batches
from ranklet_training.data.split import split_events
from ranklet_training.launch import is_launched, launch
from ranklet_training.runs import train
from ranklet_training.runs.checkpoint import read_run
from ranklet_training.runs.presets import configure, recommend
from ranklet_training.runs.start import start_run

WARM_UP = 5  # steps


def measure(events: Path, settings: tuple[str, ...], steps: int, out: Path) -> None:
    """Train some steps, and write targets a second and what the processor time allows."""
    chosen = dict(setting.split("=", 1) for setting in settings)
    with processes.join():
        log = read_events(events)
        split = split_events(log.frame)
        config = configure({**recommend(split)[0], "cooccurrence_start": False, **chosen})
        start = partial(start_run, out / "run", config, log, split)
        run = processes.after_first(start, partial(read_run, out / "run"))
        model, optimizer, _ = train._prepare(run, split)
        batches = epoch_batches(
            split.training,
            windows=config.train.windows,
            length=config.model.max_length,
            targets=config.train.targets_per_step,
            seed=0,
            epoch=0,
            with_gaps=config.model.time_gaps,
            with_kinds=bool(model.kinds),
        )
        targets, begin = 0, (0.0, 0.0)
        for step, batch in enumerate(islice(batches, WARM_UP + steps)):
            if step == WARM_UP:
                targets, begin = 0, (time.perf_counter(), time.process_time())
            targets += train._step(run, model.train(), optimizer, batch, 1e-4, step)[1]
        if not targets or not any(begin):
            raise click.ClickException(f"the log has no step after the first {WARM_UP}")
        threads = int(os.environ["OMP_NUM_THREADS"])
        spent = time.perf_counter() - begin[0], (time.process_time() - begin[1]) / threads
        figures = [targets / spent[0], targets / spent[1]]
        (out / f"{processes.rank()}.json").write_text(json.dumps(figures))


@click.command()
@click.argument("events", type=click.Path(path_type=Path, exists=True))
@click.option("--nproc", default=2, show_default=True)
@click.option("--steps", default=60, show_default=True)
@click.option("--tries", default=5, show_default=True)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE")
@click.option("--out", type=click.Path(path_type=Path), hidden=True)  # of a process
def main(
    events: Path,
    nproc: int,
    steps: int,
    tries: int,
    settings: tuple[str, ...],
    out: Path | None,
) -> None:
    """Print one line for each way to train: targets a second, and times those of the first."""
    if is_launched():
        assert out is not None
        return measure(events, settings, steps, out)
    os.environ["OMP_WAIT_POLICY"] = "passive"  # as the command line
    ways = [(1, 1), (1, nproc), (nproc, 1)]  # processes, threads of each
    found: list[list[list[float]]] = [[], [], []]
    for _ in range(tries):
        for (count, threads), results in zip(ways, found, strict=True):
            os.environ["OMP_NUM_THREADS"] = str(threads)
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, __file__, *sys.argv[1:], "--out", folder]
                if launch(count, command):
                    sys.exit(1)
                each = [json.loads(file.read_text()) for file in Path(folder).glob("*.json")]
            results.append([min(figures) for figures in zip(*each, strict=True)])
    click.echo(describe_machine())
    click.echo("processes threads  targets/s  ratio  by processor time  ratio")
    medians = [[statistics.median(x) for x in zip(*results, strict=True)] for results in found]
    for (count, threads), (wall, processor) in zip(ways, medians, strict=True):
        ratios = wall / medians[0][0], processor / medians[0][1]
        click.echo(
            f"{count:9} {threads:7} {wall:10,.0f} {ratios[0]:6.2f} {processor:18,.0f} "
            f"{ratios[1]:6.2f}"
        )


if __name__ == "__main__":
    main()
