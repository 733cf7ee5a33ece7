"""Put the help of every command into the page of the command line, as a terminal shows it."""

import re

import click

from ranklet_cli.group import cli

WIDTH = 100  # columns


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace ``<!-- help NAME -->`` by the help of that command."""
    return re.sub(
        r"<!-- help ([\w -]+) -->", lambda mark: f"```text\n{help_of(mark[1])}\n```", markdown
    )


def help_of(name: str) -> str:
    """Return what ``ranklet NAME --help`` prints; NAME may be two words."""
    command: click.Command = cli
    context = click.Context(cli, info_name="ranklet", **cli.context_settings)
    for word in name.split():
        assert isinstance(command, click.Group)
        command = command.commands[word]
        context = click.Context(
            command,
            parent=context,
            info_name=word,
            terminal_width=WIDTH,
            max_content_width=WIDTH,
        )
    return command.get_help(context)
