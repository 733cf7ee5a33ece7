"""Throughput of a training in one and in several processes, each with one thread.

    python benchmarks/processes.py EVENTS [--items ITEMS] [--nproc 2] [--set KEY=VALUE]...

Each try is a training of its own with the recommended settings, one process and several in turn.
Times are those of the steps alone. Beside targets a second stands what the processor time of the
busiest process would allow on idle cores: where both agree, nothing else ran.
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
from ranklet_training.data.items import match_ids, read_items
from ranklet_training.data.sequences import epoch_batches
from ranklet_training.data.split import split_events
from ranklet_training.launch import is_launched, launch
from ranklet_training.runs import train
from ranklet_training.runs.checkpoint import read_run
from ranklet_training.runs.presets import configure, recommend
from ranklet_training.runs.start import start_run

WARM_UP = 5  # steps


def measure(
    events: Path, items: Path | None, settings: tuple[str, ...], steps: int, out: Path
) -> None:
    """Train some steps, and write targets a second and targets a second of processor time."""
    chosen = dict(setting.split("=", 1) for setting in settings)
    with processes.join():
        log = read_events(events)
        split = split_events(log.frame)
        config = configure({**recommend(split)[0], "cooccurrence_start": False, **chosen})
        catalogue = items and match_ids(read_items(items), log.frame["item_id"])
        start = partial(start_run, out / "run", config, log, split, catalogue)
        run = processes.after_first(start, partial(read_run, out / "run"))
        model, optimizer, _ = train._prepare(run, split)
        batches = epoch_batches(
            split.training,
            windows=config.train.windows,
            length=config.model.max_length,
            targets=config.train.targets_per_step,
            seed=0,
            epoch=0,
        )
        targets, begin = 0, (0.0, 0.0)
        for step, batch in enumerate(islice(batches, WARM_UP + steps)):
            if step == WARM_UP:
                targets, begin = 0, (time.perf_counter(), time.process_time())
            targets += train._step(run, model.train(), optimizer, batch, 1e-4, step)[1]
        spent = time.perf_counter() - begin[0], time.process_time() - begin[1]
        (out / f"{processes.rank()}.json").write_text(
            json.dumps([targets / spent[0], targets / spent[1], describe_machine()])
        )


@click.command()
@click.argument("events", type=click.Path(path_type=Path, exists=True))
@click.option("--items", type=click.Path(path_type=Path, exists=True))
@click.option("--nproc", default=2, show_default=True)
@click.option("--steps", default=60, show_default=True)
@click.option("--tries", default=5, show_default=True)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE")
@click.option("--out", type=click.Path(path_type=Path), hidden=True)  # of a process
def main(
    events: Path,
    items: Path | None,
    nproc: int,
    steps: int,
    tries: int,
    settings: tuple[str, ...],
    out: Path | None,
) -> None:
    """Print one line for each number of processes, and the ratio of their medians."""
    if is_launched():
        assert out is not None
        return measure(events, items, settings, steps, out)
    os.environ["OMP_NUM_THREADS"] = "1"
    found: dict[int, list[list[float]]] = {1: [], nproc: []}
    for _ in range(tries):
        for count, results in found.items():
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, __file__, *sys.argv[1:], "--out", folder]
                if launch(count, command):
                    raise SystemExit(1)
                each = [json.loads(file.read_text()) for file in Path(folder).glob("*.json")]
            results.append([min(figure[place] for figure in each) for place in (0, 1)])
    click.echo(each[0][2])
    click.echo(f"{'processes':>9} {'targets/s':>10} {'by processor time':>18}")
    medians = {n: [statistics.median(x) for x in zip(*r, strict=True)] for n, r in found.items()}
    for count, (wall, processor) in medians.items():
        click.echo(f"{count:9} {wall:10,.0f} {processor:18,.0f}")
    wall, processor = (medians[nproc][place] / medians[1][place] for place in (0, 1))
    click.echo(f"{'ratio':>9} {wall:10.2f} {processor:18.2f}")


if __name__ == "__main__":
    main()
