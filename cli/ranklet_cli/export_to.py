"""``ranklet export-to``: a bundle in the layout of another server."""

from pathlib import Path

import click

from ranklet_cli.options import FOLDER, PATH


@click.group("export-to")
def export_to() -> None:
    """Write a BUNDLE in the layout of another server.

    \b
    ranklet export-to triton models/ml-latest-small repository/films
    ranklet export-to mlflow models/ml-latest-small films
    """


@export_to.command()
@click.argument("bundle", type=FOLDER)
@click.argument("folder", type=PATH)
def triton(bundle: Path, folder: Path) -> None:
    """Write a model for NVIDIA Triton: FOLDER of a model repository.

    It holds the model, its configuration with dynamic batches, the ids of the items and a client.
    """
    from ranklet_export.triton import write_triton

    write_triton(bundle, folder)
    click.echo(
        f"next: tritonserver --model-repository {folder.absolute().parent}; "
        f"python {folder / 'client.py'} localhost:8000 ITEM,ITEM"
    )


@export_to.command()
@click.argument("bundle", type=FOLDER)
@click.argument("folder", type=PATH)
def mlflow(bundle: Path, folder: Path) -> None:
    """Write an MLflow model: frames with a column "history" in, items and scores out."""
    from ranklet_export.mlflow import write_mlflow

    write_mlflow(bundle, folder)
    click.echo(f"next: mlflow models serve --model-uri {folder}")
