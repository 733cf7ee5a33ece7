"""What all commands share: the group, options, output, and how events and models are opened."""

import json
import logging
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from ranklet import __version__
from ranklet.errors import InputError, RankletError
from ranklet.ranker import Ranker

if TYPE_CHECKING:
    from ranklet.vocabulary import Vocabulary
    from ranklet_training.data.events import Events
    from ranklet_training.data.split import Split
    from ranklet_training.runs.checkpoint import Model
    from ranklet_training.runs.presets import RunConfig


F = TypeVar("F", bound=Callable[..., Any])
EXTRAS = {"onnx": "export", "onnxscript": "export", "matplotlib": "plots", "optuna": "tune"}
NO_MEMORY = "can't allocate memory"  # torch says so in a RuntimeError
PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


class Numbers(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from 8.5
    """Positive integers separated by commas, like 1,32."""

    name = "N,N,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Read the text; a tuple is a default that was read before."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of integers like 1,32", param, ctx)


class NewFolder(click.Path):
    """A folder to write into; an unset variable of the shell names none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse an empty name, which would be the working directory."""
        if value == "":
            self.fail("the name is empty; give a folder ('.' for this one)", param, ctx)
        return super().convert(value, param, ctx)


NEW_FOLDER = NewFolder(path_type=Path, file_okay=False)


class Commands(click.Group):
    """Turn errors of ranklet and of files into one line and their exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except RankletError as error:
            _stop(str(error), error.exit_code)
        except ModuleNotFoundError as error:
            package = (error.name or "").split(".")[0]
            needs_export = ctx.invoked_subcommand == "export"
            extra = "export" if needs_export else EXTRAS.get(package, "train")
            _stop(f"{package} is not installed: pip install 'ranklet[{extra}]'", 1)
        except BrokenPipeError:  # nobody reads on: click ends without a word
            raise
        except OSError as error:
            _stop(_describe(error), 1)
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and NO_MEMORY not in str(error):
                raise
            reason = str(error).split(f"{NO_MEMORY}: ")[-1].partition("\n")[0]
            _stop(f"not enough memory: {reason or 'try smaller settings'}", 1)
        except KeyboardInterrupt:
            _stop("interrupted", 130)


def _describe(error: OSError) -> str:
    """Return path and reason; what files.py writes aside goes by its later name."""
    if error.filename is None:
        return str(error)
    path = re.sub(r"\.([^/\\]+)\.[0-9a-f]{8}\.tmp", r"\1", str(error.filename))
    return f"{path}: {error.strerror}"


def _stop(message: str, status: int) -> NoReturn:
    click.echo(f"Error: {message}", err=True)
    sys.exit(status)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ranklet")
def cli() -> None:
    """Train an attention recommender, export it to ONNX, rank with it anywhere.

    \b
    ranklet data ml-100k data
    ranklet train data/events.parquet --items data/items.parquet --out run
    ranklet evaluate run data/events.parquet
    ranklet export run bundle
    ranklet rank bundle --history 50,181
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)


def json_option(command: F) -> F:
    """Add --json."""
    text = "Print one JSON document on stdout and nothing else there."
    return click.option("--json", "as_json", is_flag=True, help=text)(command)


def session_options(command: F) -> F:
    """Add --provider and --threads."""
    command = click.option(
        "--threads", default=1, show_default=True, help="Threads of one ranking."
    )(command)
    return click.option(
        "--provider",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        help="Where to run; cuda fails where CUDA does not run, auto may take the CPU.",
    )(command)


def column_options(command: F) -> F:
    """Add the options that say how an event log is read."""
    for name, default in (
        ("rating", "rating"),
        ("event", "event"),
        ("timestamp", "timestamp"),
        ("item", "item_id"),
        ("user", "user_id"),
    ):
        command = click.option(
            f"--{name}-column", default=default, show_default=True, help=f"Column of the {name}."
        )(command)
    command = click.option(
        "--duplicates",
        type=click.Choice(["none", "exact", "consecutive"]),
        default="none",
        show_default=True,
        help="Drop nothing, equal events, or an item that directly follows itself.",
    )(command)
    return click.option(
        "--id-type",
        type=click.Choice(["auto", "int64", "string"]),
        default="auto",
        show_default=True,
        help="Type of user and item ids.",
    )(command)


def note(text: str) -> None:
    """Say something beside the result, on stderr."""
    click.echo(text, err=True)


def print_json(value: Any) -> None:
    """Print the one document of --json."""
    document = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    click.echo(json.dumps(document, indent=2, ensure_ascii=False, default=str))


def read_log(path: Path, reading: dict[str, str]) -> "Events":
    """Read an event log the way a run says."""
    from ranklet_training.data.events import Columns, read_events

    names = ("user", "item", "timestamp", "event", "rating")
    return read_events(
        path,
        # A run that was started from Python may not say how its log was read: by the defaults.
        Columns(**{n: reading[f"{n}_column"] for n in names if f"{n}_column" in reading}),
        duplicates=reading.get("duplicates", "none"),  # type: ignore[arg-type]  # click checked the choice
        id_type=reading.get("id_type", "auto"),  # type: ignore[arg-type]
    )


def split_log(log: "Events", config: "RunConfig") -> "Split":
    """Split a log the way a configuration says."""
    from ranklet_training.data.split import split_events

    train = config.train
    return split_events(log.frame, train.split, folds=train.folds, fold=train.fold)


def open_models(
    paths: Mapping[str, Path], events: Path
) -> "tuple[dict[str, Model | Ranker], Split]":
    """Open runs and bundles by name, and cut the events as they were cut for training.

    Raises:
        InputError: Not all were trained on the same cut, or one on none.
        RunError: A model knows other items than the events.
    """
    from ranklet_training.judge.evaluate import check_catalogue

    opened = {name: _open_model(path) for name, path in paths.items()}
    for name, (*_, own) in opened.items():
        if not own.get("events"):
            raise InputError(f"{name} was trained on no events: its weights are random")
    (first, (_, _, config, facts)), *_ = opened.items()
    log = read_log(events, facts.get("reading", {}))
    split = split_log(log, config)
    for name, (model, vocabulary, other, own) in opened.items():
        cuts = _describe_split(config), _describe_split(other)
        if cuts[0] != cuts[1]:
            raise InputError(
                f"{first} was trained on the {cuts[0]} split and {name} on the {cuts[1]} split: "
                "one may have learned what the other is asked"
            )
        check_catalogue(name, model, split, vocabulary)
        if log.digest != own.get("digest"):
            note(f"these are not the events that {name} was trained on; targets may have leaked")
    return {name: model for name, (model, *_) in opened.items()}, split


def _describe_split(config: "RunConfig") -> str:
    train = config.train
    return f"k-fold {train.fold} of {train.folds}" if train.split == "k-fold" else train.split


def _open_model(path: Path) -> "tuple[Model | Ranker, Vocabulary, RunConfig, dict[str, Any]]":
    """Open a run or a bundle: (model, its ids, settings, facts of its data)."""
    from ranklet_training.runs.checkpoint import read_run
    from ranklet_training.runs.presets import RunConfig

    if (path / "config.json").exists():
        run = read_run(path)
        return run.load_model(), run.vocabulary, run.config, run.data
    ranker = Ranker.load(path)
    manifest = ranker.manifest
    return ranker, ranker.vocabulary, RunConfig.from_dict(manifest.training), manifest.data
