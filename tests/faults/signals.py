"""Signals at random times: Ctrl-C, and what a system sends before it kills."""

import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from faults.campaign import Campaign, Tally
from faults.world import COMMAND, SHIPPED, TINY, write_log

STOPS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]
AT_ONCE = 2  # processes
STARTED = 0.5  # seconds after which Python has started, also on a busy machine
# The first ones need no torch, and are fast.
COMMANDS = [
    ("rank", SHIPPED, "--history", "50,181"),
    ("rank", SHIPPED, "--input", "histories.jsonl", "--output", "rankings.jsonl"),
    ("verify", SHIPPED),
    ("catalogue", "remove", SHIPPED, "50", "--out", "removed"),
    ("bench", SHIPPED, "--runs", "100", "--length", "10", "--load", "none"),
    ("train", "log.csv", "--out", "run", *TINY),
    ("export", "--random", "items=300,width=16,blocks=2,heads=1,length=20", "random"),
]
KEPT = "run"  # a training that is stopped keeps what it has, to go on


def start(arguments: tuple[object, ...], folder: Path) -> "subprocess.Popen[str]":
    """Start a command in a new folder."""
    folder.mkdir()
    (folder / "histories.jsonl").write_text('{"history": ["50", "181"]}\n' * 3000)
    write_log(folder / "log.csv")
    command = [*COMMAND, *map(str, arguments)]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, **pipes)  # type: ignore[call-overload,no-any-return]


def listed(folder: Path) -> set[str]:
    """Return the files of a folder that a stopped command may not leave."""
    paths = (path.relative_to(folder) for path in folder.rglob("*"))
    return {str(path) for path in paths if path.parts[0] != KEPT or path.suffix == ".tmp"}


def stop(number: int, after: float, arguments: tuple[object, ...], folder: Path) -> tuple[str, str]:
    """Send a signal to a command, and return how it ended, and what was wrong with that."""
    process = start(arguments, folder)
    before = listed(folder)
    time.sleep(after)
    process.send_signal(number)
    errors = process.communicate(timeout=120)[1]
    status, left = process.returncode, listed(folder) - before
    name = signal.Signals(number).name
    what = (
        f"{name} after {after:.3f} s of {arguments[:2]}: status {status}, left {left}, {errors!r}"
    )
    if status == 0:
        return "done before the signal", ""
    if left or errors.count("interrupted\n") > 1:
        return "", what
    if status == 128 + number and "Traceback" not in errors and "Error" not in errors:
        return f"status {status}, nothing left ({name})", ""
    if status in (-number, 1) and "ranklet" not in errors and after < STARTED:
        return "stopped while Python itself started", ""
    return "", what


def interrupt(count: int, rng: np.random.Generator, folder: Path) -> Tally:
    """Send signals at random times of the commands."""
    tally, commands = Tally(), COMMANDS[:count]
    lasts = []
    for number, arguments in enumerate(commands):
        begin = time.perf_counter()
        process = start(arguments, folder / f"whole-{number}")
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 0, errors
        lasts.append(time.perf_counter() - begin)

    def stop_one(place: int) -> tuple[str, str]:
        arguments = commands[place % len(commands)]
        return stop(int(numbers[place]), float(times[place]), arguments, folder / str(place))

    numbers = rng.choice(STOPS, count)
    times = rng.random(count) * np.resize(lasts, count)
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for outcome, fault in threads.map(stop_one, range(count)):
            tally.failed(fault) if fault else tally.ended(outcome)
    return tally


CAMPAIGNS = [
    Campaign(
        "signal at a random time of rank, verify, catalogue, bench, train or export",
        "exit status 128 and the number of the signal, one line, nothing left",
        interrupt,
        short=2,
        middle=5,
        long=200,
    )
]
