"""Start the command line, or say how to get it."""

import sys


def main() -> None:
    """Run ``ranklet``; without click or onnxruntime, say in one line what to install."""
    try:
        from ranklet_cli import cli
    except ImportError as error:
        sys.exit(f"ranklet: {error}")
    cli()
