"""Damaged bundles: flipped bits and truncated files, of several kinds of bundles."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime

from faults.campaign import Campaign, Tally
from faults.world import SHIPPED, bundle, command, scratch, trained
from ranklet import BundleError, Manifest, Ranker
from ranklet.bundle.folder import describe_files
from ranklet.bundle.manifest import HASHED_FIRST, MANIFEST, WEIGHTS

Damage = Callable[[Path, np.random.Generator], str]  # says what it did
MANY = 1_000  # faults from which bundles are worth an export
PRECISIONS = ("int8", "int4", "fp16", "fp32")


def flip_bit(path: Path, rng: np.random.Generator) -> str:
    """Flip one bit of a file."""
    place, bit = int(rng.integers(path.stat().st_size)), int(rng.integers(8))
    with path.open("r+b") as file:
        file.seek(place)
        (before,) = file.read(1)
        file.seek(place)
        file.write(bytes([before ^ 1 << bit]))
    return f"bit {bit} of byte {place}"


def truncate(path: Path, rng: np.random.Generator) -> str:
    """Cut a file."""
    size = int(rng.integers(path.stat().st_size))
    os.truncate(path, size)
    return f"cut to {size} bytes"


@cache
def exported(precision: str) -> Path:
    """Return a bundle of a run for reading only, made once for a process."""
    path = scratch() / precision
    options = ("--precision", precision, "--allow-drop", "1")
    command("export", trained(), path, *options, check=True)
    return path


def kinds(count: int, folder: Path) -> list[Path]:
    """Return bundles to damage: a copy of the shipped one, for many faults those of a run, too."""
    others = map(exported, PRECISIONS if count >= MANY else ())
    return [bundle(folder), *(Path(shutil.copytree(path, folder / path.name)) for path in others)]


@contextmanager
def seen_by_onnxruntime() -> Iterator[list[str]]:
    """Yield the list of the graphs that onnxruntime is given inside."""
    real, seen = onnxruntime.InferenceSession, list[str]()

    def record(graph: str, *arguments: object, **options: object) -> onnxruntime.InferenceSession:
        seen.append(graph)
        return real(graph, *arguments, **options)

    onnxruntime.InferenceSession = record
    try:
        yield seen
    finally:
        onnxruntime.InferenceSession = real


def damaged(damage: Damage) -> Callable[[int, np.random.Generator, Path], Tally]:
    """Return a campaign that damages one file at a time."""

    def run(count: int, rng: np.random.Generator, folder: Path) -> Tally:
        tally, bundles = Tally(), kinds(count, folder)
        digests = {path: Manifest.read(path).digest for path in bundles}
        names = {path: [MANIFEST, *Manifest.read(path).files] for path in bundles}
        for number in range(count):
            path = bundles[number % len(bundles)]
            name = names[path][number // len(bundles) % len(names[path])]
            content = (path / name).read_bytes()
            what = f"{path.name}/{name}: {damage(path / name, rng)}"
            with seen_by_onnxruntime() as seen:
                _load(path, name, what, digests[path], seen, tally)
            (path / name).write_bytes(content)
        return tally

    return run


def _load(path: Path, name: str, what: str, digest: str, seen: list[str], tally: Tally) -> None:
    try:
        ranker = Ranker.load(path, provider="cpu")
    except BundleError as error:
        if seen or name not in str(error):
            tally.failed(f"{what}: {error}, after onnxruntime saw {seen}")
        else:
            tally.ended("refused by name before onnxruntime saw a byte")
    except Exception as error:
        tally.failed(f"{what}: {error!r}")
    else:
        if name == MANIFEST and ranker.manifest.digest == digest:
            tally.ended("of the same meaning, as 1E-06 for 1e-06")
        else:
            tally.failed(f"{what}: it loads")


def flip_large(count: int, rng: np.random.Generator, folder: Path) -> Tally:
    """Flip a bit of a file that is hashed while the engine loads."""
    tally, path = Tally(), bundle(folder)
    os.truncate(path / WEIGHTS, HASHED_FIRST + 1)
    manifest = Manifest.read(SHIPPED)
    Manifest(**{**vars(manifest), "files": describe_files(path)}).write(path)
    Ranker.load(path, provider="cpu")
    for _ in range(count):
        place = rng.integers(2**32)
        what = flip_bit(path / WEIGHTS, np.random.default_rng(place))
        try:
            Ranker.load(path, provider="cpu")
        except BundleError as error:
            is_named = f"{WEIGHTS} is not what the manifest says" in str(error)
            tally.ended("refused by name") if is_named else tally.failed(f"{what}: {error}")
        except Exception as error:
            tally.failed(f"{what}: {error!r}")
        else:
            tally.failed(f"{what}: it loads")
        flip_bit(path / WEIGHTS, np.random.default_rng(place))  # back
    return tally


CAMPAIGNS = [
    Campaign(
        "one bit flipped in a file of a bundle",
        "It is refused by the name of the file, before onnxruntime sees a byte.",
        damaged(flip_bit),
        short=40,
        middle=200,
        long=5_000,
    ),
    Campaign(
        "a file of a bundle truncated",
        "It is refused by the name of the file, before onnxruntime sees a byte.",
        damaged(truncate),
        short=20,
        middle=100,
        long=1_000,
    ),
    Campaign(
        "one bit flipped in a file of more than 64 MiB",
        "It is refused by the name of the file.",
        flip_large,
        short=1,
        middle=5,
        long=60,
    ),
]
