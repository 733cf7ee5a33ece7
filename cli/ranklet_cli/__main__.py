"""Run the command line as ``python -m ranklet_cli``."""

import sys

try:
    from ranklet_cli.main import main

    main()
except KeyboardInterrupt:  # before the handlers of main
    sys.stderr.write("interrupted\n")
    sys.exit(130)
