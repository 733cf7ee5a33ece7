"""``ranklet evaluate``: metrics of runs and bundles on held-out events."""

import json
from pathlib import Path
from typing import Any

import click

from ranklet.errors import InputError
from ranklet.files.atomic import atomic_write
from ranklet_cli.open import open_models
from ranklet_cli.options import FOLDER, PATH, choice, json_flag, note, print_json
from ranklet_cli.tables import align


@click.command()
@click.argument("model", type=FOLDER)
@click.argument("events", type=PATH)
@click.option("--beside", type=FOLDER, multiple=True, help="Another model to show; repeatable.")
@choice("--on", "test|validation", help="Which held-out events to predict.")
@click.option("--plot", "plot_path", type=PATH, help="Draw NDCG@10 of the slices into this .png.")
@json_flag
def evaluate(
    model: Path,
    events: Path,
    beside: tuple[Path, ...],
    on: str,
    plot_path: Path | None,
    as_json: bool,
) -> None:
    """Evaluate a run (torch) or a bundle (runtime) on the held-out events of EVENTS.

    Metrics rank all items, with and without seen items masked; ties are pessimistic. Popularity and
    a last-item Markov chain are the baselines. Slices are cold targets and history lengths.
    Coverage and mean popularity describe the first 10 items. A run keeps the table of the test
    events in evaluation.json, and export copies it into the model card.

    Example: ranklet evaluate run events.parquet --beside run-zero-block
    """
    from ranklet_training.judge.evaluate import evaluate as evaluate_models
    from ranklet_training.judge.evaluate import plot_evaluation
    from ranklet_training.judge.plots import check_plot

    if plot_path is not None:
        check_plot(plot_path)
    paths = {path.resolve().name: path for path in (model, *beside)}
    if len(paths) <= len(beside):
        raise InputError(
            "two models have the same folder name; rows of the table need unique names"
        )
    models, split = open_models(paths, events)
    table = evaluate_models(models, split, on=on)
    if (model / "config.json").exists() and on == "test":
        try:
            atomic_write(model / "evaluation.json", json.dumps(table, indent=2).encode())
        except OSError as error:  # print the table all the same
            note(f"not kept in {model / 'evaluation.json'}: {error.strerror or error}")
    if as_json:
        print_json(table)
    else:
        click.echo(format_evaluation(table))
    if plot_path is not None:
        plot_evaluation(table, plot_path)
        note(f"wrote {plot_path}")


def format_evaluation(table: dict[str, Any]) -> str:
    """Format an evaluation for a terminal."""
    rows, users = table["rows"], f"{table['users']:,} users"
    parts = [[f"{table['protocol']}; {users}, {table['cold_targets']} cold targets"]]
    metrics = list(rows[0]["masked"])
    for title, kind in (("seen items masked", "masked"), ("seen items not masked", "unmasked")):
        figures = [[row["model"], *(f"{row[kind][name]:.4f}" for name in metrics)] for row in rows]
        parts.append(align([[title, *metrics], *figures]))
    first_ten = [
        [
            row["model"],
            f"{row['mean_ties']['NDCG@10']:.4f}",
            f"{row['coverage']:.1%}",
            f"{row['popularity']:.1f}",
        ]
        for row in rows
    ]
    head = ["NDCG@10, and the first 10 items", "ties by mean rank", "coverage@10", "popularity@10"]
    targets = ["targets", "", "", f"{table['target_popularity']:.1f}"]
    parts.append(align([head, *first_ten, targets]))
    slices = [
        [f"{name} ({count:,})", *(f"{row['slices'][name]['NDCG@10']:.4f}" for row in rows)]
        for name, count in table["slices"].items()
    ]
    parts.append(align([["NDCG@10 of (users)", *(row["model"] for row in rows)], *slices]))
    return "\n\n".join("\n".join(lines) for lines in parts)
