"""The commands that judge models."""

import json
from pathlib import Path
from typing import Any

import click

from ranklet.cli.common import (
    FOLDER,
    PATH,
    cli,
    json_option,
    note,
    open_model,
    print_json,
    read_log,
    split_log,
)
from ranklet.errors import InputError


@cli.command()
@click.argument("model", type=FOLDER)
@click.argument("events", type=PATH)
@click.option("--beside", type=FOLDER, multiple=True, help="Another run or bundle; repeatable.")
@click.option(
    "--on",
    type=click.Choice(["test", "validation"]),
    default="test",
    show_default=True,
    help="Which of the held-out events to ask for.",
)
@json_option
def evaluate(model: Path, events: Path, beside: tuple[Path, ...], on: str, as_json: bool) -> None:
    """Judge a run (torch) or a bundle (runtime) on the held-out events of EVENTS.

    All items are ranked, seen ones masked (and not masked, as second figures), ties pessimistic;
    popularity and the last-item Markov chain stand beside it. A run also keeps the table in
    evaluation.json, from where export takes it into the model card.

    Example: ranklet evaluate run events.parquet --beside run-zero-block
    """
    from ranklet.files import atomic_write
    from ranklet_training.evaluate import evaluate as evaluate_models

    opened = {_model_name(path): open_model(path) for path in (model, *beside)}
    if len(opened) <= len(beside):
        raise InputError("two of these models have the same folder name, which is their row's name")
    _, config, facts = next(iter(opened.values()))
    log = read_log(events, facts["reading"])
    if log.digest != facts["digest"]:
        note("these are not the events that the model was trained on; targets may have leaked")
    for name, (_, other, _) in opened.items():
        if other.train.split != config.train.split:
            raise InputError(f"{name} was trained on the {other.train.split} split")
    split = split_log(log, config)
    table = evaluate_models({name: value[0] for name, value in opened.items()}, split, on=on)
    if (model / "config.json").exists() and on == "test":
        atomic_write(model / "evaluation.json", json.dumps(table, indent=2).encode())
    if as_json:
        return print_json(table)
    click.echo(format_evaluation(table))
    return None


def _model_name(path: Path) -> str:
    return path.resolve().name


def format_evaluation(table: dict[str, Any]) -> str:
    """Lay an evaluation out for a terminal."""
    names = list(table["rows"][0]["masked"])
    width = max(len(row["model"]) for row in table["rows"])
    lines = [f"{table['protocol']}; {table['users']:,} users, {table['cold_targets']} cold targets"]
    for kind, title in (("masked", "seen items masked"), ("unmasked", "seen items not masked")):
        lines += ["", f"{title:{max(width, 21)}}  " + "  ".join(f"{n:>7}" for n in names)]
        for row in table["rows"]:
            figures = "  ".join(f"{row[kind][name]:7.4f}" for name in names)
            lines.append(f"{row['model']:{max(width, 21)}}  {figures}")
    return "\n".join(lines)
