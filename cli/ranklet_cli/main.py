"""Entry point of ``ranklet``."""

import os
import sys


def main() -> None:
    """Run the command line, or name the missing package."""
    # torch's threads wait by spinning, which beside other work on all cores slows a training down
    # by a factor of 60. OpenMP reads this when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        from ranklet_cli.group import cli
    except ImportError as error:
        needs_click = error.name == "click"
        hint = "the command line needs click: pip install click" if needs_click else error
        sys.exit(f"ranklet: {hint}")
    cli()
