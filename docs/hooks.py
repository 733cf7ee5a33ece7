"""Put the help of every command into the page of the command line, as a terminal shows it."""

import re

import click

from ranklet_cli.group import cli

WIDTH = 100  # columns


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace ``<!-- help NAME -->`` by the help of that command."""
    return re.sub(
        r"<!-- help (\w+) -->", lambda mark: f"```text\n{help_of(mark[1])}\n```", markdown
    )


def help_of(name: str) -> str:
    """Return what ``ranklet NAME --help`` prints."""
    parent = click.Context(cli, info_name="ranklet", **cli.context_settings)
    context = click.Context(
        cli.commands[name],
        parent=parent,
        info_name=name,
        terminal_width=WIDTH,
        max_content_width=WIDTH,
    )
    return cli.commands[name].get_help(context)
