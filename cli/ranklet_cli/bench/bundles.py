"""Load time, cold start and memory of a bundle, and bundles with random weights."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ranklet.bundle.manifest import Manifest
from ranklet.engine.sessions import Provider
from ranklet.errors import InputError, RankletError
from ranklet.extras import pip_install
from ranklet.ranker import Ranker
from ranklet.values import Ids
from ranklet_cli.bench.report import BundleFacts, Load, Setting

COLD_STARTS = 3

# Peak memory is from /proc: Linux keeps ru_maxrss over exec, so it starts at the parent's peak.
COLD_START = """
import json, sys
from ranklet import Ranker
folder, provider, threads, history, k = json.loads(sys.argv[1])
Ranker.load(folder, provider=provider, threads=threads).rank(history, k=k, exclude_seen=False)
try:
    with open("/proc/self/status") as file:
        print(file.read())
except OSError:
    pass
"""


@dataclass(frozen=True)
class OpenBundle:
    """A bundle, loaded once for each number of threads."""

    path: Path
    is_random: bool
    rankers: dict[int, Ranker]  # by threads
    loads: list[Load]

    @property
    def ranker(self) -> Ranker:
        """Return the ranker with the first number of threads."""
        return next(iter(self.rankers.values()))

    def setting(self, threads: int, batch: int, length: int, k: int) -> Setting:
        """Return the setting of a call."""
        ranker = self.ranker
        facts = len(ranker), ranker.manifest.precision, self.is_random, ranker.provider
        return Setting(*facts, threads, batch, length, k)


def open_bundle(
    path: Path, provider: Provider, threads: Sequence[int], *, is_random: bool = False
) -> OpenBundle:
    """Load a bundle with each number of threads; record load time and memory."""
    rankers, loads = {}, []
    for count in threads:
        before, start = memory_mb(_status(), "VmRSS"), time.perf_counter()
        ranker = Ranker.load(path, provider=provider, threads=count)
        seconds, after = time.perf_counter() - start, memory_mb(_status(), "VmRSS")
        grown = None if before is None or after is None else after - before
        precision, ran = ranker.manifest.precision, ranker.provider
        loads.append(Load(len(ranker), precision, is_random, count, ran, seconds * 1e3, grown))
        rankers[count] = ranker
    return OpenBundle(path, is_random, rankers, loads)


def describe_bundle(bundle: OpenBundle, history: Ids, k: int) -> BundleFacts:
    """Return the facts of a bundle, with the fastest of three cold starts."""
    (threads, *_), ranker, manifest = bundle.rankers, bundle.ranker, bundle.ranker.manifest
    starts = [
        cold_start(bundle.path, ranker.provider, threads, history, k) for _ in range(COLD_STARTS)
    ]
    milliseconds, peak_mb = min(starts, key=lambda start: start[0])
    return BundleFacts(
        path=str(bundle.path),
        items=manifest.items,
        precision=manifest.precision,
        is_random=bundle.is_random,
        format=manifest.format,
        bytes=sum(file.size for file in manifest.files.values()),
        cold_start_ms=milliseconds,
        cold_start_peak_mb=peak_mb,
    )


def cold_start(
    path: Path, provider: Provider, threads: int, history: Ids, k: int
) -> tuple[float, float | None]:
    """Return milliseconds and peak megabytes of a process that starts, loads and ranks once."""
    arguments = json.dumps([str(path), provider, threads, history, k])
    start = time.perf_counter()
    status = run_fresh("-c", COLD_START, arguments, task="rank")
    return (time.perf_counter() - start) * 1e3, memory_mb(status, "VmHWM")


def check_export() -> None:
    """Refuse random bundles without the packages of the export extra."""
    needed = ("ranklet_export", "torch", "onnx", "onnxscript", "polars", "safetensors")
    if missing := [name for name in needed if find_spec(name) is None]:
        raise InputError(
            f"a catalogue of random weights needs {', '.join(missing)}: {pip_install('export')}"
        )


def make_random(like: Manifest, items: int, precision: str, folder: Path) -> Path:
    """Export random weights of the shape of a bundle.

    The export runs in its own process, so that torch takes no memory and no threads of a timing.
    """
    path = folder / f"{items}-{precision}"
    # The accuracy of random weights does not matter: any drop is allowed.
    options = ["--random", random_shape(like, items), "--precision", precision, "--allow-drop=1"]
    task = f"make a bundle of {items:,} items"
    run_fresh("-m", "ranklet_cli", "export", *options, str(path), task=task)
    return path


def random_shape(like: Manifest, items: int) -> str:
    """Return the ``ranklet export --random`` shape of a bundle with another catalogue."""
    settings = like.training["model"]
    if settings["kind"] != "sequence":
        raise InputError(
            f"a catalogue of random weights is of a sequence model, this one is {settings['kind']}"
        )
    kept = {name: value for name, value in settings.items() if name not in ("kind", "dropout")}
    return ",".join(f"{name}={value}" for name, value in {"items": items, **kept}.items())


def run_fresh(*arguments: str, task: str) -> str:
    """Return the output of a new Python process; RankletError ends with its last line of errors."""
    command = [sys.executable, *arguments]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.returncode != 0:
        reason = (child.stderr.strip() or f"exit status {child.returncode}").splitlines()[-1]
        raise RankletError(f"a fresh {sys.executable} can't {task}: {reason}")
    return child.stdout


def _status() -> str:
    """Return /proc/self/status, "" on systems without it."""
    try:
        return Path("/proc/self/status").read_text()
    except OSError:
        return ""


def memory_mb(status: str, name: str) -> float | None:
    """Return a figure of /proc/self/status, whose unit is KiB, in MB."""
    match = re.search(rf"^{name}:\s*(\d+)", status, re.MULTILINE)
    return int(match[1]) * 1024 / 1e6 if match else None
