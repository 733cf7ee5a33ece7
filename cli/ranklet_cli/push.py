"""``ranklet push``: put a bundle on the Hugging Face Hub."""

from pathlib import Path

import click

from ranklet_cli.options import FOLDER, json_flag, print_json


@click.command()
@click.argument("bundle", type=FOLDER)
@click.argument("name", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Make a new repository that others can't see.")
@json_flag
def push(bundle: Path, name: str, private: bool, as_json: bool) -> None:
    """Put a BUNDLE on the Hugging Face Hub, its model card included.

    Log in before, by `hf auth login` or the variable HF_TOKEN.

    Example: ranklet push bundle me/films
    """
    from ranklet.hub import upload

    address = upload(bundle, name, private=private)
    if as_json:
        return print_json({"address": address})
    click.echo(f"{address}\nnext: Ranker.from_hub({name!r})")
