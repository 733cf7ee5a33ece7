"""Failing writes: the n-th write, sync, open, mkdir or rename of whatever writes files."""

import errno
import io
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result

from faults.campaign import Campaign, Tally
from faults.world import SHIPPED, TINY, scratch, trained, write_log
from ranklet import Manifest
from ranklet.files import atomic
from ranklet_cli.group import cli
from ranklet_training.runs.checkpoint import read_tensors

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS, errno.EDQUOT)
LEFT = re.compile(r"\.[0-9a-f]{8}\.(tmp|old)")
MANY = 300  # faults from which commands are worth it that take seconds


class Faults:
    """Let one write, sync, open, mkdir or rename fail, counted from 1; 0: none."""

    def __init__(self, at: int, code: int) -> None:
        self.at, self.code, self.steps = at, code, 0

    def step(self) -> None:
        """Count a step; an OSError is raised instead of the one that fails."""
        self.steps += 1
        if self.steps == self.at:
            raise OSError(self.code, os.strerror(self.code))

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that may fail instead."""

        def call(*arguments: Any, **options: Any) -> Any:
            self.step()
            return function(*arguments, **options)

        return call

    def open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``open`` whose binary files may fail to write."""
        faults = self

        class Writer(io.BufferedWriter):
            def write(self, data: Any) -> int:
                faults.step()
                return super().write(data)

        def call(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if not isinstance(file, Path) or mode not in ("wb", "xb", "ab"):
                return real(file, mode, *arguments, **options)
            self.step()
            return Writer(io.FileIO(file, mode.replace("b", "")))

        return call


@contextmanager
def failing(at: int, code: int) -> Iterator[Faults]:
    """Let a step fail inside."""
    faults = Faults(at, code)
    places = [(os, "fsync"), (os, "mkdir"), (os, "rename"), (os, "replace"), (atomic, "_rename")]
    real = [(owner, name, getattr(owner, name)) for owner, name in (*places, (io, "open"))]
    for owner, name, function in real[:-1]:
        setattr(owner, name, faults.before(function))
    io.open = faults.open(io.open)
    try:
        yield faults
    finally:
        for owner, name, function in real:
            setattr(owner, name, function)


@cache
def source() -> Path:
    """Return a folder with a log and histories, for reading only."""
    folder = scratch()
    write_log(folder / "log.csv")
    rows = (f'{{"user_id": {number}, "history": ["{number}"]}}\n' for number in range(400))
    (folder / "h.jsonl").write_text("".join(rows))
    return folder


def _rank(name: str) -> Callable[[Path], tuple[object, ...]]:
    return lambda to: ("rank", SHIPPED, "--input", source() / "h.jsonl", "--output", to / name)


# Command lines that write into an existing folder; those of SLOW take seconds.
WRITERS: dict[str, Callable[[Path], tuple[object, ...]]] = {
    **{name: _rank(name) for name in ("o.jsonl", "o.jsonl.gz", "o.csv", "o.csv.gz", "o.parquet")},
    "one.onnx": lambda to: ("onnx", SHIPPED, to / "one.onnx"),
    "data": lambda to: ("data", "synthetic", to / "data"),
}
SLOW: dict[str, Callable[[Path], tuple[object, ...]]] = {
    "export": lambda to: ("export", trained(), to / "b", "--precision", "fp32", "--replace"),
    "train": lambda to: ("train", source() / "log.csv", "--out", to / "run", *TINY),
    "catalogue": lambda to: ("catalogue", "remove", SHIPPED, "50", "--out", to / "b", "--replace"),
}


def call(name: str, folder: Path) -> Result:
    """Run a command line of these in this process."""
    arguments = {**WRITERS, **SLOW}[name](folder)
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, hidden ones too."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@cache
def finished(name: str, *, replaces: bool = False) -> tuple[dict[str, bytes], int]:
    """Return the files of a command that nothing disturbs, and the number of its steps."""
    folder = scratch()
    if replaces:
        prepare(name, folder)
    with failing(0, 0) as faults:
        result = call(name, folder)
    assert result.exit_code == 0, result.output
    return contents(folder), faults.steps


def prepare(name: str, folder: Path) -> dict[str, bytes]:
    """Put old files where a command will write, and return them."""
    if name in ("export", "catalogue"):
        shutil.copytree(SHIPPED, folder / "b")
    elif name in WRITERS:
        for path in finished(name)[0]:
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(b"old")
    return contents(folder)


def wrong(name: str, folder: Path, old: dict[str, bytes], result: Result, reason: str) -> str:
    """Return what is not as promised after a fault, "" if all is."""
    message = (result.stderr.strip().splitlines() or [""])[-1]
    if not result.exit_code and name == "train":  # a folder was to be made that was there
        lost = {*finished(name)[0]} - {*contents(folder)}
        return f"it ended well without {lost}" if lost else ""
    if not isinstance(result.exception, SystemExit) or result.exit_code != 1:
        return f"it ended with {result.exception!r}: {message}"
    if str(folder) not in message or reason not in message or LEFT.search(message):
        return f"the message is {message!r}"
    found, new = contents(folder), finished(name)[0]
    if left := [path for path in found if LEFT.search(path)]:
        return f"it left {left}"
    if old != found and (name in WRITERS or {*old} - {*found} - {*new}):
        mixed = [path for path in old | found if found.get(path) not in (old.get(path), new[path])]
        return f"{mixed} are neither old nor new" if mixed else ""
    if name in ("export", "catalogue") and found:
        Manifest.read(folder / "b")
    for path in folder.rglob("*.safetensors"):
        read_tensors(path)
    for path in folder.rglob("*.json"):
        json.loads(path.read_bytes())
    return ""


def fail_in_turn(count: int, rng: np.random.Generator, folder: Path) -> Tally:
    """Let the first step of each command fail, then the second, and so on; of slow ones any."""
    tally, tried = Tally(), Counter[str]()
    for number in range(count):
        is_slow, replaces = count >= MANY and number % 12 == 0, rng.random() < 0.5
        names, place = (list(SLOW), number // 12) if is_slow else (list(WRITERS), number)
        name, to = names[place % len(names)], folder / str(number)
        to.mkdir()
        steps = finished(name, replaces=replaces)[1]
        at = 1 + (int(rng.integers(steps)) if is_slow else tried[name] % steps)
        tried[name] += 1
        old = prepare(name, to) if replaces else {}
        code = int(rng.choice(ERRORS))
        with failing(at, code):
            result = call(name, to)
        if reason := wrong(name, to, old, result, os.strerror(code)):
            tally.failed(f"{name}, step {at} of {steps}: {os.strerror(code)}: {reason}")
        else:
            is_old = contents(to) == old
            tally.ended(f"{'old' if is_old else 'new'} files whole, path and reason named")
        shutil.rmtree(to)
    return tally


def fill_disk(count: int, rng: np.random.Generator, folder: Path) -> Tally:
    """Write onto a small file system until it is full."""
    tally, disk = Tally(), folder / "disk"
    disk.mkdir()
    if os.geteuid() or not shutil.which("mount"):
        tally.ended("not tried: only root can mount a small disk", count)
        return tally
    for number in range(count):
        name = list(WRITERS)[number % len(WRITERS)]
        pages = sum(-(-len(content) // 4096) for content in finished(name)[0].values())
        size = 4096 * int(rng.integers(1, pages))
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk]
        if subprocess.run(mount, capture_output=True).returncode:
            tally.ended("not tried: this system mounts no disk", count - number)
            break
        try:
            result = call(name, disk)
            reason = wrong(name, disk, {}, result, os.strerror(errno.ENOSPC))
        finally:
            subprocess.run(["umount", disk], check=True)
        if reason:
            tally.failed(f"{name} onto {size} bytes: {reason}")
        else:
            tally.ended("nothing left, path and reason named")
    return tally


CAMPAIGNS = [
    Campaign(
        "n-th write, sync, open, mkdir or rename of a command fails",
        "Old files stay whole, no temporary stays, the message names path and reason.",
        fail_in_turn,
        short=5,
        middle=30,
        long=300,
    ),
    Campaign(
        "disk full",
        "No part of a file stays, the message names path and reason.",
        fill_disk,
        short=2,
        middle=14,
        long=70,
    ),
]
