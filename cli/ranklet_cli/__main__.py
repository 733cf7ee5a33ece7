"""Run the command line as ``python -m ranklet_cli``."""

import sys

try:
    from ranklet_cli.main import main
except KeyboardInterrupt:  # before its handlers
    sys.stderr.write("interrupted\n")
    sys.exit(130)

main()
