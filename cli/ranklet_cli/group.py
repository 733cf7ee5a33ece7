"""The command group, and the exit status of each error."""

import logging
import sys
from typing import Any, NoReturn

import click

from ranklet import __version__
from ranklet.errors import RankletError
from ranklet.extras import pip_install
from ranklet.values import show
from ranklet_cli.bench.command import bench
from ranklet_cli.bundle import export, inspect, onnx, verify
from ranklet_cli.catalogue import catalogue
from ranklet_cli.compare import compare
from ranklet_cli.evaluate import evaluate
from ranklet_cli.export_to import export_to
from ranklet_cli.main import STOPPED
from ranklet_cli.push import push
from ranklet_cli.rank import rank
from ranklet_cli.signature import sign
from ranklet_cli.similar import popular, similar
from ranklet_cli.train import data, train
from ranklet_cli.tune import tune

EXTRAS = {
    "onnx": "export",
    "onnxscript": "export",
    "matplotlib": "plots",
    "optuna": "tune",
    "mlflow": "mlflow",
}
EXTRAS |= dict.fromkeys(("model_signing", "OpenSSL"), "sign")
LOOP = "Symlink loop"  # the same of pathlib
# In the messages of torch's RuntimeErrors.
NO_MEMORY = ("can't allocate memory", "Storage size calculation overflowed")


class Commands(click.Group):
    """Commands whose errors end in one line and an exit status."""

    def make_context(self, *args: Any, **settings: Any) -> click.Context:
        """Read the options; --help and --version of the group print here."""
        try:
            return super().make_context(*args, **settings)
        except BrokenPipeError:
            raise
        except OSError as error:
            _stop(_describe(error), 1)

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
            _stop(f"{package} is not installed: {pip_install(extra)}", 1)
        except ImportError as error:  # installed, and broken
            _stop(f"{error.name or 'a package'} can't be loaded: {error}", 1)
        except BrokenPipeError:  # the reader of stdout is gone: click ends silently
            raise
        except OSError as error:
            _stop(_describe(error), 1)
        except (MemoryError, RuntimeError) as error:
            refused = _refused(error)
            if refused is None:
                raise
            _stop(refused, 1)
        except UnicodeEncodeError as error:  # a path, as a rule, that a library can't take
            _stop(f"{show(error.object)} is not UTF-8: rename the file or folder", 4)
        except KeyboardInterrupt:  # click would end with status 1
            sys.exit(130)


def _describe(error: OSError) -> str:
    """Return path and reason."""
    reason = error.strerror or str(error)
    return reason if error.filename is None else f"{error.filename}: {reason}"


def _refused(error: Exception) -> str | None:
    """Return what the system refused; None: the error is of another kind."""
    if LOOP in str(error):
        return f"{error}: remove the link"
    if not isinstance(error, MemoryError) and not any(text in str(error) for text in NO_MEMORY):
        return None
    reason = str(error).split(f"{NO_MEMORY[0]}: ")[-1].partition("\n")[0]
    return f"not enough memory: {reason or 'try smaller settings'}"


def _stop(message: str, status: int) -> NoReturn:
    if not STOPPED:  # else it may be the answer of a library to a signal
        click.echo(f"Error: {message}", err=True)
    sys.exit(status)


@click.group(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
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


MAKING = (data, train, tune, evaluate, compare, export, catalogue, onnx, export_to)
for command in (*MAKING, sign, push, verify, inspect, rank, similar, popular, bench):
    cli.add_command(command)
