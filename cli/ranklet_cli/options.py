"""Options, parameter types and output that commands share."""

import json
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
# The keys of ranklet_training.runs.presets.PRESETS, whose import would load torch.
PRESET_NAMES = ("default", "small", "large", "zero-block", "sasrec-bce", "seed")
PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
EXISTING = click.Path(path_type=Path, exists=True)  # a file, or a folder of parts
FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


class NewFolder(click.Path):
    """An output folder; the empty name of an unset shell variable is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse an empty name, which would mean the working directory."""
        if value == "":
            self.fail("the name is empty; give a folder ('.' for this one)", param, ctx)
        return super().convert(value, param, ctx)


NEW_FOLDER = NewFolder(path_type=Path, file_okay=False)


def combine(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Return one decorator that adds options in this order."""
    return lambda command: reduce(lambda inner, option: option(inner), reversed(options), command)


def choice(name: str, values: str, *, help: str) -> Callable[[F], F]:
    """Return an option that takes one of the values, like a|b; the first is the default."""
    first, *rest = values.split("|")
    return click.option(name, type=click.Choice([first, *rest]), default=first, help=help)


json_flag = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON document, and nothing else, on stdout.",
)
provider = choice(
    "--provider",
    "auto|cpu|cuda",
    help="Execution provider: cuda fails without CUDA, auto falls back to the CPU.",
)
session = combine(provider, click.option("--threads", default=1, help="Threads of one ranking."))
items = click.option(
    "--items", type=EXISTING, help="Titles and features of items, by item_id or --item-column."
)
settings = combine(
    click.option("--preset", metavar="NAME", help=f"One of {', '.join(PRESET_NAMES)}."),
    click.option("--config", "config_file", type=FILE, help="TOML file of settings."),
    click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="One setting."),
)
COLUMNS = {
    "user": "user_id",
    "item": "item_id",
    "timestamp": "timestamp",
    "event": "event",
    "rating": "rating",
}
OPTIONAL = ("event", "rating")
columns = combine(
    choice("--id-type", "auto|int64|string", help="Type of user and item ids."),
    choice(
        "--duplicates",
        "none|exact|consecutive",
        help="Keep all events, drop equal events, or drop repeats of the previous item.",
    ),
    *(
        click.option(
            f"--{name}-column",
            default=default,
            help=f"Name of the {name} column" + (', "" for none.' if name in OPTIONAL else "."),
        )
        for name, default in COLUMNS.items()
    ),
    click.option("--title-column", default="title", help="Name of the title column of --items."),
)
READING = ("id_type", "duplicates", *(f"{name}_column" for name in COLUMNS), "title_column")


def note(text: str) -> None:
    """Print a line on stderr."""
    click.echo(text, err=True)


def print_json(value: Any) -> None:
    """Print the JSON document of --json."""
    document = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    click.echo(json.dumps(document, indent=2, ensure_ascii=False, default=str))
