"""What campaigns attack: the shipped bundle, a log, a run trained on it, and the command line."""

import atexit
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


def scratch() -> Path:
    """Return a new folder, which vanishes when this process ends."""
    folder, owner = Path(mkdtemp(prefix="ranklet-faults-")), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # not a fork of it
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


@cache
def trained() -> Path:
    """Return a run folder for reading only, trained once for a process."""
    folder = scratch()
    command("train", write_log(folder / "log.csv"), "--out", folder / "run", *TINY, check=True)
    return folder / "run"


@cache
def rich() -> Path:
    """Return a bundle for reading only with number ids, attributes, kinds and times of events."""
    folder = scratch()
    events = [
        (u, (u * 7 + e * 3) % 29, 1_700_000_000 + u * 1000 + e) for u in range(60) for e in range(9)
    ]
    rows = (f"{u},{i},{t},{'buy' if (u + t) % 3 else 'view'}\n" for u, i, t in events)
    (folder / "log.csv").write_text("user_id,item_id,timestamp,event\n" + "".join(rows))
    items = (f"{i},Title {i},b{i % 4},t{i % 3}|u{i % 2},{i * 1.5}\n" for i in range(29))
    (folder / "items.csv").write_text("item_id,title,brand,tags,price\n" + "".join(items))
    settings = ("time_gaps=true", "kinds=use", "features=brand,tags", "heads=1", *TINY[1::2])
    kinds = "brand:category,tags:categories,price:number"
    given = ["--items", folder / "items.csv", "--attributes", kinds]
    given += [word for setting in settings for word in ("--set", setting)]
    command("train", folder / "log.csv", "--out", folder / "run", *given, check=True)
    options = ("--precision", "fp32", "--allow-drop", "1")
    command("export", folder / "run", folder / "bundle", *options, check=True)
    return folder / "bundle"


def command(*arguments: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run the command line in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    options = {"capture_output": True, "text": True, "timeout": 120, **options}
    return subprocess.run([*COMMAND, *map(str, arguments)], env=environment, **options)
