"""``ranklet export-to``: a bundle in the layout of another server."""

from pathlib import Path

import click

from ranklet_cli.options import FOLDER, PATH, json_flag, print_json


@click.group("export-to")
def export_to() -> None:
    """Write a BUNDLE in the layout of another server."""


@export_to.command()
@click.argument("bundle", type=FOLDER)
@click.argument("folder", type=PATH)
@json_flag
def triton(bundle: Path, folder: Path, as_json: bool) -> None:
    """Write a model for NVIDIA Triton: FOLDER of a model repository.

    It holds the model, its configuration with dynamic batches, the ids of the items and a client.

    Example: ranklet export-to triton models/ml-latest-small repository/films
    """
    from ranklet_export.triton import write_triton

    write_triton(bundle, folder)
    if as_json:
        return print_json({"path": folder})
    click.echo(
        f"next: tritonserver --model-repository {folder.absolute().parent}; "
        f"python {folder / 'client.py'} localhost:8000 ITEM,ITEM"
    )


@export_to.command()
@click.argument("bundle", type=FOLDER)
@click.argument("folder", type=PATH)
@json_flag
def mlflow(bundle: Path, folder: Path, as_json: bool) -> None:
    """Write an MLflow model: frames with a column "history" in, items and scores out.

    Example: ranklet export-to mlflow models/ml-latest-small films
    """
    from ranklet_export.mlflow import write_mlflow

    write_mlflow(bundle, folder)
    if as_json:
        return print_json({"path": folder})
    click.echo(f"next: mlflow models serve --model-uri {folder}")
