"""``ranklet data`` and ``ranklet train``: fetch a data set, train a model."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial, wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ranklet.errors import InputError
from ranklet_cli import options
from ranklet_cli.open import prepare, read_log, read_settings, split_log
from ranklet_cli.options import hint_to_resume, note, print_json


@click.command()
@click.argument(
    "name", type=click.Choice(["ml-100k", "ml-1m", "ml-latest-small", "synthetic"]), metavar="NAME"
)
@click.argument("directory", type=options.NEW_FOLDER)
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path, exists=True),
    help="Read the publisher's zip file or its unpacked folder, instead of a download.",
)
@options.choice(
    "--via",
    "auto|publisher|pip",
    help="Where to download from; pip has ml-100k only, inside another package.",
)
@options.json_flag
def data(name: str, directory: Path, source: Path | None, via: Any, as_json: bool) -> None:
    """Fetch and check a named data set: ml-100k, ml-1m, ml-latest-small or synthetic.

    Writes events.parquet, items.parquet and SOURCE.md (origin, terms, digest) into DIRECTORY.

    Example: ranklet data ml-100k data
    """
    from ranklet_training.data.datasets import fetch

    fetched = fetch(name, directory, source=source, via=via)
    for text in fetched.notes:
        note(text)
    if as_json:
        return print_json(fetched)
    click.echo(
        f"{fetched.name} ({fetched.via}): {fetched.event_count:,} events of "
        f"{fetched.user_count:,} users over {fetched.item_count:,} items\n"
        f"{fetched.events}  {fetched.events_digest[:16]}\n"
        f"{fetched.items}  {fetched.items_digest[:16]}"
    )
    if fetched.best_hit_rate is not None:
        click.echo(f"best HR@10 that any model can reach: {fetched.best_hit_rate:.4f}")


def in_processes(train: Callable[..., None]) -> Callable[..., None]:
    """Add --nproc to a training, which says after a signal how to go on."""

    @click.option(
        "--nproc",
        type=click.IntRange(1),
        default=1,
        help="Processes that share each step: one a GPU, or a few on the cores of a CPU.",
    )
    @wraps(train)
    def start(nproc: int, events: Path, out: Path, **others: Any) -> None:
        from ranklet_training.launch import is_launched, launch
        from ranklet_training.processes import join

        words = ["ranklet", "train", events, "--out", out, "--resume"]
        words += ["--nproc", nproc] if nproc > 1 else []
        status = 0
        with hint_to_resume(out / "config.json", words):
            if nproc > 1 and not is_launched():
                status = launch(nproc, [sys.executable, "-m", "ranklet_cli", *sys.argv[1:]])
            else:
                with join():
                    train(events=events, out=out, **others)
        if status:
            sys.exit(status)

    return start


@click.command()
@click.argument("events", type=options.LOG)
@options.items
@click.option("--out", type=options.NEW_FOLDER, required=True, help="New folder for the run.")
@options.settings
@click.option(
    "--final",
    type=options.FOLDER,
    metavar="RUN",
    help="Train on all events, with the settings of a finished RUN, up to its best epoch.",
)
@click.option("--resume", is_flag=True, help="Continue the stopped training in --out.")
@click.option("--tensorboard", is_flag=True, help="Also log to TensorBoard, in the run.")
@in_processes
@options.columns
@options.json_flag
def train(
    events: Path | str,
    items: Path | None,
    out: Path,
    preset: str | None,
    config_file: Path | None,
    settings: tuple[str, ...],
    target: str | None,
    final: Path | None,
    resume: bool,
    tensorboard: bool,
    as_json: bool,
    **reading: str,
) -> None:
    """Train a model on EVENTS (parquet, csv, tsv, jsonl or a folder of parts) into a run folder.

    Parquet of more than 512 MiB, or in an object store (s3://BUCKET/FOLDER/), may be larger than
    memory. It is sorted in files of the run, which are removed when the training ends.

    Settings come from the data, --preset, --config and --set; later sources win. --resume continues
    a stopped training to the same weights, bit by bit.

    A run holds events out, to measure itself. For a bundle that goes into production, --final
    trains on all events as a measured RUN was trained, and keeps the figures of that RUN.

    With --nproc, the weights equal those of one process except for rounding, and --resume takes any
    other number. torchrun does the same, and is meant for several machines that see the folder
    --out; that has not been tried.

    \b
    Examples:
      ranklet train events.parquet --out run --set epochs=20
      ranklet train events.parquet --out final --final run
      torchrun --nproc-per-node 2 -m ranklet_cli train events.parquet --out run
    """
    from ranklet_training.data.large_logs import remove_sorted
    from ranklet_training.processes import after_first, is_first
    from ranklet_training.runs.checkpoint import EVENTS, locked, read_run
    from ranklet_training.runs.presets import configure
    from ranklet_training.runs.start import check_new, final_settings, reopen_run, start_run
    from ranklet_training.runs.train import train as train_run

    if tensorboard and find_spec("tensorboard") is None:  # before the work
        raise InputError("TensorBoard is not installed: pip install tensorboard")
    chosen, earlier = read_settings(preset, config_file, settings, target), None
    if resume:
        _refuse_with("--resume", "items", "final", *reading)
        run = read_run(out)
        log = read_log(events, run.data.get("reading", {}), cache=out / EVENTS)
    else:
        check_new(out)
        if final is not None:
            _refuse_with("--final", "preset", "config_file", "settings", "target", *reading)
            earlier = read_run(final)
            chosen = final_settings(earlier).flat()
            reading |= earlier.data.get("reading", {})
            if not (final / "evaluation.json").exists():
                note(
                    f"{final} has no figures for the model card: ranklet evaluate {final} {events}"
                )
        log, split, config, catalogue, source = prepare(
            events, items, chosen, reading, earlier, out / EVENTS
        )
    taken = f"another process trains {out}"
    with locked(out / "run.lock", taken) if is_first() else nullcontext():
        if resume:
            run = reopen_run(out, log, configure(chosen, run.config))
            split = split_log(log, run.config)
        else:
            facts: dict[str, Any] = {"reading": reading, "source": source, "earlier": earlier}
            start = partial(start_run, out, config, log, split, catalogue, **facts)
            run = after_first(start, partial(read_run, out))
        writer = _tensorboard_writer(out) if tensorboard and is_first() else None
        result = train_run(run, split, log=writer)
        if is_first():
            remove_sorted(out / EVENTS)
    metrics = {name: round(value, 5) for name, value in result.validation.items()}
    if as_json:
        return print_json(
            {
                "run": str(out),
                "best_epoch": result.best_epoch,
                "epochs": result.epochs,
                "seconds": round(result.seconds, 2),
                "validation": metrics,
                "kinds": run.data.get("kinds", {}),
                "settings": run.config.to_dict(),
            }
        )
    if kinds := run.data.get("kinds", {}).get("why"):
        click.echo(kinds)
    if not metrics:
        click.echo(
            f"{result.epochs} epochs on all events, none held out ({result.seconds:.0f} s)\n"
            f"next: ranklet export {out} BUNDLE"
        )
        return
    click.echo(
        f"best epoch {result.best_epoch + 1} of {result.epochs}: validation NDCG@10 "
        f"{metrics['NDCG@10']:.4f}, HR@10 {metrics['HR@10']:.4f}, {run.data['seen']['validation']} "
        f"({result.seconds:.0f} s)\n"
        f"next: ranklet evaluate {out} {events}; ranklet train {events} --out FINAL --final {out}; "
        "ranklet export FINAL BUNDLE"
    )


def _refuse_with(other: str, *names: str) -> None:
    """Refuse options that another one would ignore."""
    context = click.get_current_context()
    for option in context.command.params:
        is_default = context.get_parameter_source(option.name or "") is ParameterSource.DEFAULT
        if option.name in names and not is_default:
            raise click.UsageError(
                f"{option.opts[0]} does not go with {other}, which takes it from the run"
            )


def _tensorboard_writer(out: Path) -> Callable[[dict[str, Any]], None]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(out / "tensorboard"))

    def write(line: dict[str, Any]) -> None:
        part = f"{line['kinds']} kinds/" if "kinds" in line else ""  # of two trainings
        for name, value in line.items():
            if name not in ("epoch", "step", "kinds"):
                writer.add_scalar(part + name, value, line["step"])
        writer.flush()

    return write
