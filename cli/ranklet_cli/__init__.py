"""The command line: declare options, call the library, print.

Heavy imports stay inside the commands, so that help and ranking work without torch. With
``--json`` there is one JSON document on stdout and nothing else; progress and notes go to stderr.
Shell completion is click's: ``eval "$(_RANKLET_COMPLETE=bash_source ranklet)"``.
"""

try:
    import click as _click  # noqa: F401
except ModuleNotFoundError as missing:
    raise ImportError("the command line needs click: pip install click") from missing

from ranklet_cli import benching, bundles, comparing, quality, ranking, training, tuning  # noqa: F401
from ranklet_cli.common import cli

__all__ = ["cli"]
