"""What the precision of a bundle costs: its answers beside its run's, on all held-out histories.

    python benchmarks/precision.py RUN BUNDLE

The export's gate asks some of these questions; here are all that the run keeps, up to 10,000.
"""

import json
from pathlib import Path

import click

from ranklet import Ranker
from ranklet.machine import describe_machine
from ranklet_export.gate import check_ranking
from ranklet_training.runs.checkpoint import read_run

FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command()
@click.argument("run", type=FOLDER)
@click.argument("bundle", type=FOLDER)
def main(run: Path, bundle: Path) -> None:
    """Print one JSON document."""
    opened = read_run(run)
    questions = opened.read_questions()
    if questions is None:
        raise click.UsageError(f"{run} keeps no questions: train it again")
    model, ranker = opened.load_model(), Ranker.load(bundle)
    figures = check_ranking(ranker, model, model.table(), questions, 1.0, most_scores=1 << 40)
    click.echo(json.dumps({**figures, "machine": describe_machine()}, indent=2))


if __name__ == "__main__":
    main()
