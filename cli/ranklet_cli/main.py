"""Entry point of ``ranklet``."""

import sys


def main() -> None:
    """Run the command line, or name the missing package."""
    try:
        from ranklet_cli.group import cli
    except ImportError as error:
        needs_click = error.name == "click"
        hint = "the command line needs click: pip install click" if needs_click else error
        sys.exit(f"ranklet: {hint}")
    cli()
