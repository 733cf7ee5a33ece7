"""What campaigns attack: the shipped bundle, a log, a run trained on it, and the command line."""

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "models" / "ml-latest-small"
TINY = ("--set", "epochs=1", "--set", "width=8", "--set", "max_length=8")
COMMAND = (sys.executable, "-m", "ranklet_cli")


def bundle(folder: Path, name: str = "bundle") -> Path:
    """Return a copy of the shipped bundle."""
    return Path(shutil.copytree(SHIPPED, folder / name))


def write_log(path: Path, users: int = 30, events: int = 8) -> Path:
    """Write a log of 29 items."""
    rows = (
        f"{user},{(user * 7 + event * 3) % 29},{1000 + user * 100 + event}\n"
        for user in range(1, users + 1)
        for event in range(events)
    )
    path.write_text("user_id,item_id,timestamp\n" + "".join(rows))
    return path


@cache
def trained() -> Path:
    """Return a run folder for reading only, trained once for a process."""
    folder = Path(mkdtemp(prefix="ranklet-faults-"))
    command("train", write_log(folder / "log.csv"), "--out", folder / "run", *TINY, check=True)
    return folder / "run"


def command(*arguments: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run the command line in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    options = {"capture_output": True, "text": True, "timeout": 120, **options}
    return subprocess.run([*COMMAND, *map(str, arguments)], env=environment, **options)
