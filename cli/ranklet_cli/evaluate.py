"""``ranklet evaluate``: metrics of runs and bundles on held-out events."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ranklet.errors import InputError
from ranklet.files.atomic import atomic_write
from ranklet.ranker import Ranker
from ranklet_cli.open import open_models
from ranklet_cli.options import FOLDER, LOG, PATH, choice, json_flag, note, print_json
from ranklet_cli.tables import align

if TYPE_CHECKING:
    from ranklet_training.data.events import Events
    from ranklet_training.runs.checkpoint import Run


@click.command()
@click.argument("model", type=FOLDER)
@click.argument("events", type=LOG)
@click.option("--beside", type=FOLDER, multiple=True, help="Another model to show; repeatable.")
@choice("--on", "test|validation", help="Which held-out events to predict.")
@click.option("--plot", "plot_path", type=PATH, help="Draw NDCG@10 of the slices into this .png.")
@json_flag
def evaluate(
    model: Path,
    events: Path | str,
    beside: tuple[Path, ...],
    on: str,
    plot_path: Path | None,
    as_json: bool,
) -> None:
    """Evaluate a run (torch) or a bundle (runtime) on the held-out events of EVENTS.

    The first figures are those of the rankings that the bundle serves by default. Then come those
    of the papers, where seen items are masked and a repeated answer is a miss, and those with no
    item masked. All items are ranked. Popularity, a last-item Markov chain and the user's own
    events again (by recency and number; with seen items masked, only popularity is left of it) are
    the baselines.
    Slices are cold targets and history lengths. Coverage and mean popularity describe the first 10
    items. EVENTS may be a newer or an older log than that of the training: an answer that the
    catalogue lacks is a miss. Of --beside models of other catalogues, only common items are ranked.

    A run keeps the table of its own test events in evaluation.json, and export copies it into the
    model card.

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
    models, split, log = open_models(paths, events)
    table = evaluate_models(models, split, on=on)
    run = models[model.resolve().name]
    if not isinstance(run, Ranker) and on == "test":
        _keep(table, run, log)
    if as_json:
        print_json(table)
    else:
        click.echo(format_evaluation(table))
    if plot_path is not None:
        plot_evaluation(table, plot_path)
        note(f"wrote {plot_path}")


def _keep(table: dict[str, Any], run: "Run", log: "Events") -> None:
    """Write the table into the run, if it is of the run's own events and items."""
    path, why = run.path / "evaluation.json", ""
    if log.digest != run.data["digest"]:
        why = "these are not the events of the run"
    elif table["left_out"] or table["items"] < run.catalogue.height:
        why = "only the items that all models know were ranked"
    else:
        try:
            atomic_write(path, json.dumps(table, indent=2).encode())
        except OSError as error:  # print the table all the same
            why = error.strerror or str(error)
    if why:
        note(f"not kept in {path}: {why}")


def describe_unknown(left_out: int, unknown: dict[str, dict[str, int]]) -> list[str]:
    """Return a line on each model whose catalogue lacks items, and on the answers left out."""
    lines = [
        f"{name} does not know {lacks['targets']:,} of the answers and {lacks['history_events']:,} "
        "events of the histories"
        for name, lacks in unknown.items()
        if any(lacks.values())
    ]
    if left_out:
        lines.append(f"{left_out:,} answers are left out, which not every model knows")
    elif lines:
        lines.append("an answer that a model does not know is a miss")
    return lines


def format_evaluation(table: dict[str, Any]) -> str:
    """Format an evaluation for a terminal."""
    rows, users = table["rows"], table["users"]
    parts = [
        [
            f"{table['protocol']}; {users:,} answers, {table['cold_targets']:,} of them cold",
            *describe_unknown(table["left_out"], table["unknown"]),
            table["advice"],
        ]
    ]
    metrics = list(rows[0]["masked"])
    for kind, title in table["protocols"].items():
        figures = [[row["model"], *(f"{row[kind][name]:.4f}" for name in metrics)] for row in rows]
        parts.append([f"{title} ({users:,} answers)", *align([["", *metrics], *figures])])
    first_ten = [
        [
            row["model"],
            f"{row['mean_ties']['NDCG@10']:.4f}",
            f"{row['coverage']:.1%}",
            f"{row['popularity']:.1f}",
        ]
        for row in rows
    ]
    how = table["slices_protocol"]
    head = [f"NDCG@10 and the first 10, {how}"]
    head += ["ties by mean rank", "coverage@10", "popularity@10"]
    targets = ["targets", "", "", f"{table['target_popularity']:.1f}"]
    parts.append(align([head, *first_ten, targets]))
    slices = [
        [f"{name} ({count:,})", *(f"{row['slices'][name]['NDCG@10']:.4f}" for row in rows)]
        for name, count in table["slices"].items()
    ]
    parts.append(
        align([[f"NDCG@10 of (answers), {how}", *(row["model"] for row in rows)], *slices])
    )
    return "\n\n".join("\n".join(lines) for lines in parts)
