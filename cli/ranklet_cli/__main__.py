"""Run the command line as ``python -m ranklet_cli``."""

from ranklet_cli.main import main

main()
