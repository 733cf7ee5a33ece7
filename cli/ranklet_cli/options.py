"""Options, parameter types and output that commands share."""

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any, TypeVar

import click

from ranklet.errors import InputError
from ranklet.values import show

F = TypeVar("F", bound=Callable[..., Any])
# The keys of ranklet_training.runs.presets.PRESETS, whose import would load torch.
PRESET_NAMES = ("default", "small", "large", "zero-block", "sasrec-bce", "seed")


class Utf8Path(click.Path):
    """A path that onnxruntime, polars or safetensors open, which take UTF-8 alone."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse a name of other bytes."""
        try:
            str(value).encode()
        except UnicodeEncodeError:
            self.fail(f"the name {show(str(value))} is not UTF-8: rename it", param, ctx)
        return super().convert(value, param, ctx)


class Log(Utf8Path):
    """An event log: a path, or an address in an object store, such as s3://bucket/log/."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Keep an address as it is."""
        return value if "://" in str(value) else super().convert(value, param, ctx)


class NewFolder(Utf8Path):
    """An output folder; the empty name of an unset shell variable is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse an empty name, which would mean the working directory."""
        if value == "":
            self.fail("the name is empty; give a folder ('.' for this one)", param, ctx)
        return super().convert(value, param, ctx)


INPUT = click.Path(path_type=Path, exists=True, allow_dash=True)
OUTPUT = click.Path(path_type=Path)
PATH = Utf8Path(path_type=Path)
LOG = Log(path_type=Path)
FILE = Utf8Path(path_type=Path, exists=True, dir_okay=False)
EXISTING = Utf8Path(path_type=Path, exists=True)  # a file, or a folder of parts
FOLDER = Utf8Path(path_type=Path, exists=True, file_okay=False)
NEW_FOLDER = NewFolder(path_type=Path, file_okay=False)


def combine(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Return one decorator that adds options in this order."""
    return lambda command: reduce(lambda inner, option: option(inner), reversed(options), command)


class HeadedOption(click.Option):
    """An option that stands under a heading of the help."""

    def __init__(self, *args: Any, heading: str, **settings: Any) -> None:
        """Make an option as click does."""
        super().__init__(*args, **settings)
        self.heading = heading


class HeadedCommand(click.Command):
    """A command whose help has a heading for each group of its many options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under their headings, in the order of the first of each."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx)
            if record and isinstance(option, click.Option):
                groups.setdefault(getattr(option, "heading", "Options"), []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def under(heading: str) -> Callable[..., Callable[[F], F]]:
    """Return ``click.option`` for options under a heading of a ``HeadedCommand``."""
    return partial(click.option, cls=HeadedOption, heading=heading)


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
    help="Where to run. auto uses CUDA if it works, else the CPU; cuda fails without CUDA.",
)
session = combine(provider, click.option("--threads", default=1, help="Threads of one ranking."))
items = click.option(
    "--items", type=EXISTING, help="Titles and attributes of items, by item_id or --item-column."
)
settings = combine(
    click.option(
        "--preset", metavar="NAME", help=f"Settings to start from: {', '.join(PRESET_NAMES)}."
    ),
    click.option("--config", "config_file", type=FILE, help="Read settings from a TOML file."),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="Change one setting; repeatable.",
    ),
    click.option(
        "--target",
        metavar="KIND",
        help="Predict events of this kind, such as buy: the setting target.",
    ),
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
    choice("--id-type", "auto|int64|string", help="Type of user and item ids; auto decides."),
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
    click.option(
        "--rating-kinds",
        default="",
        metavar="NAME=LOWEST,...",
        help="Make event kinds of ratings, best first, like like=4,ok=3,low=0.",
    ),
    click.option("--title-column", default="title", help="Name of the title column of --items."),
    click.option(
        "--attributes",
        default="",
        metavar="NAME:KIND,...",
        help="Kinds of columns of --items: category, categories, number, text, vector or none.",
    ),
)
_NAMES = (*COLUMNS, "title")
READING = ("id_type", "duplicates", "rating_kinds", *(f"{name}_column" for name in _NAMES))
READING += ("attributes",)


def note(text: str) -> None:
    """Print a line on stderr."""
    click.echo(text, err=True)


@contextmanager
def hint_to_resume(made: Path, words: Sequence[object]) -> Iterator[None]:
    """Print the command line that goes on, if a signal stops the work once ``made`` is there."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if made.exists():
            note(f"to go on: {shlex.join(map(str, words))}")
        raise


def print_json(value: Any) -> None:
    """Print the JSON document of --json; NaN and infinity, which JSON lacks, become null.

    Raises:
        InputError: Stdout is closed.
    """
    if sys.stdout is None:
        raise InputError("stdout is closed, and --json writes to it")
    document = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    strict = json.loads(json.dumps(document, default=str), parse_constant=lambda _: None)
    text = json.dumps(strict, indent=2, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # another locale, or a path that is not UTF-8
        text = json.dumps(strict, indent=2)
    click.echo(text)
