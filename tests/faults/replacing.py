"""Folders that are replaced: kills, many writers, readers meanwhile, and files changed in place."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from faults.campaign import Campaign, Tally
from faults.world import SHIPPED, bundle
from ranklet import BundleError, Manifest, Ranker
from ranklet.bundle.folder import describe_files
from ranklet.bundle.manifest import WEIGHTS
from ranklet.files import atomic

# A process that replaces a folder, without numpy. After the name of the folder come old and new.
REPLACE = f"""
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location("atomic", {atomic.__file__!r})
atomic = importlib.util.module_from_spec(spec)
spec.loader.exec_module(atomic)
import ctypes, secrets
with atomic.atomic_folder(pathlib.Path(sys.argv[1])) as folder:
    for name in ("a", "b"):
        (folder / name).write_text("new")
    pathlib.Path("/filled").exists()
"""
CALL = re.compile(r"^(?:\d+ +)?(\w+)\(", re.MULTILINE)


MODES = {"in one step": (), "in several": ("-e", "inject=renameat2:error=EINVAL")}


def _replace(path: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    """Replace an old folder under strace."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    (path / "c").write_text("old")
    command = ["strace", "-qq", *options, sys.executable, "-I", "-S", "-c", REPLACE, str(path)]
    return subprocess.run(command, capture_output=True, text=True)


def _calls(path: Path, options: tuple[str, ...]) -> list[tuple[str, int]]:
    """Return name and number (of that name) of each system call from the first mkdir on."""
    trace, seen, found = path.with_name("trace"), Counter[str](), list[tuple[str, int]]()
    _replace(path, "-o", str(trace), *options).check_returncode()
    for line in trace.read_text().splitlines():
        if name := CALL.match(line):
            seen[name[1]] += 1
            if found or (name[1] == "mkdir" and ".tmp" in line):
                found.append((name[1], seen[name[1]]))
    return found


def kill(count: int, rng: np.random.Generator, folder: Path) -> Tally:
    """Kill a process that replaces a folder at its system calls, one after the other."""
    tally, path = Tally(), folder / "bundle"
    if not shutil.which("strace"):
        tally.ended("not tried: strace is not installed", count)
        return tally
    every = [(mode, *call) for mode in MODES for call in _calls(path, MODES[mode])]
    for number in rng.choice(len(every), count) if count < len(every) else range(len(every)):
        mode, name, occurrence = every[number]
        inject = f"inject={name}:signal=KILL:when={occurrence}"
        ended = _replace(path, *MODES[mode], "-e", inject)
        atomic.recover(path)
        found = {file.name: file.read_text() for file in path.glob("*")}
        what = f"{mode}, {name} {occurrence}, status {ended.returncode}"
        if found not in ({"c": "old"}, {"a": "new", "b": "new"}):
            tally.failed(f"{what}: {found}")
        elif not ended.returncode and "c" in found:
            tally.failed(f"{what}: it ended well, and the old folder is there")
        else:
            tally.ended("the new folder is whole" if "a" in found else "the old folder is whole")
        for left in folder.glob(".bundle.*"):
            shutil.rmtree(left)
    return tally


WRITE = """
import shutil, sys
from pathlib import Path
from ranklet_export.target import new_bundle
for _ in range(int(sys.argv[3])):
    with new_bundle(Path(sys.argv[1]), replace=True) as folder:
        shutil.copytree(sys.argv[2], folder, dirs_exist_ok=True)
"""
WRITERS = 4


def contend(count: int, rng: np.random.Generator, folder: Path) -> Tally:
    """Replace a bundle from several processes, and load it meanwhile."""
    tally, target = Tally(), bundle(folder, "live")
    versions = [bundle(folder, "first"), _other_version(folder / "second")]
    digests = {Manifest.read(version).digest for version in versions}
    most = min(WRITERS, count)
    times = -(-count // most)
    writers = [_child(WRITE, target, versions[number % 2], times) for number in range(most)]
    while any(writer.poll() is None for writer in writers):
        _load(target, digests, tally)
    for writer in writers:
        _, errors = writer.communicate()
        if writer.returncode:
            tally.failed(f"a writer ended with {writer.returncode}: {errors[-500:]}")
        else:
            tally.ended("replaced whole", times)
    _load(target, digests, tally)
    if left := sorted({path.name for path in folder.iterdir()} - {"live", "first", "second"}):
        tally.failed(f"left {left}")
    return tally


def _other_version(path: Path) -> Path:
    """Return the shipped bundle with other rows of its items."""
    shutil.copytree(SHIPPED, path)
    manifest = Manifest.read(path)
    weights, place = bytearray((path / WEIGHTS).read_bytes()), manifest.table
    table = np.frombuffer(weights, place.type, place.rows * place.columns, place.offset)
    table[:] = np.roll(table, 100 * place.columns)
    (path / WEIGHTS).write_bytes(weights)
    Manifest(**{**vars(manifest), "files": describe_files(path)}).write(path)
    return path


def _child(code: str, *arguments: object) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def _load(path: Path, digests: set[str], tally: Tally) -> None:
    try:
        ranker = Ranker.load(path, provider="cpu")
        ranker.rank(["50", "181"])
    except BundleError:
        tally.ended("a load was refused by name")
    except Exception as error:
        tally.failed(f"a load ended with {error!r}")
    else:
        if ranker.manifest.digest in digests:
            tally.ended("a load got one of the bundles")
        else:
            tally.failed("a load got a mixture")


ASKED: dict[str, Callable[[Ranker], Any]] = {
    "rank": lambda ranker: ranker.rank(["50", "181"]).to_dict(),
    "popular": lambda ranker: ranker.rank([]).to_dict(),
    "candidates": lambda ranker: ranker.rank(["50"], candidates=["1", "2", "3"]).to_dict(),
    "batch": lambda ranker: [r.to_dict() for r in ranker.rank_batch([["50"], ["181"]] * 8)],
    "long": lambda ranker: ranker.rank(["50", "181", "1"] * 60).to_dict(),
    "explained": lambda ranker: ranker.rank(["50", "181"], explain=True).to_dict(),
    "kept": lambda ranker: _kept(ranker),
    "titles": lambda ranker: ranker.titles(["50", "181"]),
    "similar": lambda ranker: ranker.similar("50").to_dict(),
}


def _kept(ranker: Ranker) -> dict[str, Any]:
    user = ranker.user(["50"])
    user.append("181")
    return user.rank().to_dict()


def serve(place: str, seed: str, count: str) -> None:
    """Load bundles, change files of each in place, and write down how requests ended."""
    rng, folder, outcomes = np.random.default_rng(int(seed)), Path(place), Path(place, "outcomes")
    shipped, other = Ranker.load(SHIPPED, provider="cpu"), _other_version(folder / "other")
    expected = {name: ask(shipped) for name, ask in ASKED.items()}
    for number in range(int(count)):
        live = bundle(folder, f"live{number}")
        ranker = Ranker.load(live, provider="cpu")
        for name in rng.permutation(list(ASKED))[: rng.integers(len(ASKED))]:
            ASKED[name](ranker)
        damage = ("overwritten", "truncated", "copied")[number % 3]
        names = sorted(path.name for path in live.iterdir())
        chosen = names if rng.random() < 0.5 else [str(rng.choice(names))]
        for name in chosen:
            change_in_place(live / name, other / name, damage, rng)
        ended = set()
        for name, ask in ASKED.items():
            try:
                is_same = ask(ranker) == expected[name]
                ended.add("answered as before" if is_same else f"WRONG: another answer: {name}")
            except BundleError:
                ended.add("refused by name")
            except Exception as error:
                ended.add(f"WRONG: {name}: {error!r}")
        bad = sorted(each for each in ended if each.startswith("WRONG"))
        outcome = f"{bad[0]}, {chosen} {damage}" if bad else " or ".join(sorted(ended))
        with outcomes.open("a") as file:
            file.write(json.dumps(outcome) + "\n")
        shutil.rmtree(live)


def change_in_place(path: Path, other: Path, damage: str, rng: np.random.Generator) -> None:
    """Change a file without replacing it."""
    size = path.stat().st_size
    if damage == "truncated":
        os.truncate(path, int(rng.integers(size)))
    elif damage == "copied":
        path.write_bytes(other.read_bytes())
    else:
        with path.open("r+b") as file:
            file.seek(int(rng.integers(size)))
            file.write(rng.bytes(int(rng.integers(1, 1 << 16))))


def overwrite(count: int, rng: np.random.Generator, folder: Path) -> Tally:
    """Change files of a bundle in place while a ranker in another process answers from it."""
    tally, seed = Tally(), int(rng.integers(2**32))
    code = "import sys; from faults.replacing import serve; serve(*sys.argv[1:])"
    child = _child(code, folder, seed, count)
    _, errors = child.communicate()
    for line in (folder / "outcomes").read_text().splitlines():
        outcome = json.loads(line)
        tally.failed(outcome) if outcome.startswith("WRONG") else tally.ended(outcome)
    if child.returncode:
        ended = f"the process ended with {child.returncode}: {errors[-500:]}"
        tally.failed(f"seed {seed}, fault {tally.tried}: {ended}")
    return tally


CAMPAIGNS = [
    Campaign(
        "process killed at a system call while it replaces a folder",
        "The old folder or the new one lies at the path, whole.",
        kill,
        short=4,
        middle=60,
        long=120,
    ),
    Campaign(
        "bundle replaced by four processes, or loaded meanwhile",
        "Every load gets one of the bundles or a named error; nothing else stays.",
        contend,
        short=2,
        middle=100,
        long=400,
    ),
    Campaign(
        "bundle file overwritten or truncated under a running ranker",
        "It answers as before, or by name; the process lives.",
        overwrite,
        short=2,
        middle=30,
        long=150,
    ),
]
