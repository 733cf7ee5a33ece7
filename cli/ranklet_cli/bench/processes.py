"""Fresh processes of this Python, and the memory of a process."""

import json
import subprocess
import sys
from pathlib import Path

from ranklet.errors import RankletError


def run_fresh(code: str, *arguments: object, task: str) -> str:
    """Run Python code in a new process and return what it prints.

    Args:
        code: Finds its arguments as JSON in ``sys.argv[1]``.
        arguments: Plain values.
        task: What it is for, for the message of an error.

    Raises:
        RankletError: It fails; the message ends with the last line of what it said.
    """
    command = [sys.executable, "-c", code, json.dumps(arguments)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.returncode != 0:
        reason = (child.stderr.strip() or f"exit status {child.returncode}").splitlines()[-1]
        raise RankletError(f"a fresh {sys.executable} can't {task}: {reason}")
    return child.stdout


def status() -> str:
    """Return /proc/self/status, or nothing where there is none."""
    try:
        return Path("/proc/self/status").read_text()
    except OSError:
        return ""


def memory_mb(text: str, name: str) -> float | None:
    """Find a figure in the text of /proc/self/status, which counts in KiB."""
    for line in text.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    return None
