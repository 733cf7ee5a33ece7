"""The command line, called in the process of a test."""

import json
from typing import Any

from click.testing import CliRunner, Result

from ranklet_cli.group import cli


def call(*arguments: object) -> Result:
    """Return what a command did, whatever its exit status."""
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def run(*arguments: object) -> Result:
    """Return what a command did, which ends without an error."""
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result


def ask(*arguments: object) -> Any:
    """Return the one document that a command prints with --json."""
    return json.loads(run(*arguments, "--json").stdout)
