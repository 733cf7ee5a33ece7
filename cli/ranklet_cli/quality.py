"""The commands that judge models."""

import json
from pathlib import Path
from typing import Any

import click

from ranklet.errors import InputError
from ranklet_cli.common import (
    FOLDER,
    PATH,
    cli,
    json_option,
    note,
    open_models,
    print_json,
)


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
@click.option("--plot", "plot_path", type=PATH, help="Draw the slices, a .png file.")
@json_option
def evaluate(
    model: Path,
    events: Path,
    beside: tuple[Path, ...],
    on: str,
    plot_path: Path | None,
    as_json: bool,
) -> None:
    """Judge a run (torch) or a bundle (runtime) on the held-out events of EVENTS.

    All items are ranked, seen ones masked (and not masked, as second figures), ties pessimistic;
    popularity and the last-item Markov chain stand beside it. Cold targets and histories by length
    get their own figures, and so do coverage and popularity of what is recommended. A run also
    keeps the table in evaluation.json, from where export takes it into the model card.

    Example: ranklet evaluate run events.parquet --beside run-zero-block
    """
    from ranklet.files.atomic import atomic_write
    from ranklet_training.judge.evaluate import evaluate as evaluate_models
    from ranklet_training.judge.evaluate import plot_evaluation
    from ranklet_training.judge.plots import check_plot

    if plot_path is not None:
        check_plot(plot_path)

    paths = {_model_name(path): path for path in (model, *beside)}
    if len(paths) <= len(beside):
        raise InputError("two of these models have the same folder name, which is their row's name")
    models, split = open_models(paths, events)
    table = evaluate_models(models, split, on=on)
    not_kept = ""
    if (model / "config.json").exists() and on == "test":
        try:
            atomic_write(model / "evaluation.json", json.dumps(table, indent=2).encode())
        except OSError as error:  # the table is worth more than the file
            not_kept = f"not kept in {model / 'evaluation.json'}: {error.strerror or error}"
    if as_json:
        print_json(table)
    else:
        click.echo(format_evaluation(table))
    if not_kept:
        note(not_kept)
    if plot_path is not None:
        plot_evaluation(table, plot_path)
        note(f"wrote {plot_path}")


def _model_name(path: Path) -> str:
    return path.resolve().name


def format_evaluation(table: dict[str, Any]) -> str:
    """Lay an evaluation out for a terminal."""
    rows = table["rows"]
    names = list(rows[0]["masked"])
    lines = [f"{table['protocol']}; {table['users']:,} users, {table['cold_targets']} cold targets"]
    lines += _grid("seen items masked", names, [(r["model"], r["masked"]) for r in rows])
    lines += _grid("seen items not masked", names, [(r["model"], r["unmasked"]) for r in rows])
    others = {"ties by mean rank": "mean_ties", "coverage@10": "coverage", "popularity@10": ""}
    lines += [
        "",
        f"{'NDCG@10 and what is in the first 10':36}" + "".join(f"{n:>19}" for n in others),
    ]
    for row in rows:
        lines.append(
            f"{row['model']:36}{row['mean_ties']['NDCG@10']:19.4f}{row['coverage']:19.1%}"
            f"{row['popularity']:19.1f}"
        )
    lines.append(f"{'the right items':36}{'':38}{table['target_popularity']:19.1f}")
    slices = {f"{name} ({users:,})": name for name, users in table["slices"].items()}
    lines += ["", f"{'NDCG@10 of (users)':36}" + "".join(f"{r['model'][:18]:>19}" for r in rows)]
    for title, name in slices.items():
        figures = "".join(f"{row['slices'][name]['NDCG@10']:19.4f}" for row in rows)
        lines.append(f"{title:36}{figures}")
    return "\n".join(lines)


def _grid(title: str, names: list[str], rows: list[tuple[str, dict[str, float]]]) -> list[str]:
    width = max(len(title), *(len(name) for name, _ in rows))
    lines = ["", f"{title:{width}}  " + "  ".join(f"{name:>7}" for name in names)]
    for model, values in rows:
        figures = "  ".join(f"{values[name]:7.4f}" for name in names)
        lines.append(f"{model:{width}}  {figures}")
    return lines
