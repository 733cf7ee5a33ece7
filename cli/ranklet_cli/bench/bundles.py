"""The bundles that are timed: open them, time that, and make some of random weights."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ranklet.bundle import Manifest
from ranklet.errors import InputError
from ranklet.provider import Provider
from ranklet.ranker import Ranker
from ranklet.vocabulary import Ids
from ranklet_cli.bench.processes import memory_mb, run_fresh, status
from ranklet_cli.bench.report import BundleFacts, Load, Setting

COLD_STARTS = 3

# What a fresh process does. Its peak is read from /proc: ru_maxrss would start at the peak of the
# process that started it (Linux keeps it over exec).
COLD_START = """
import json, sys
from ranklet import Ranker
folder, provider, threads, history, k = json.loads(sys.argv[1])
Ranker.load(folder, provider=provider, threads=threads).rank(history, k=k)
try:
    with open("/proc/self/status") as file:
        print(file.read())
except OSError:
    pass
"""

# In a process of its own, so that torch neither stays in memory nor runs threads beside a timing.
# Nobody reads the answers of random weights, so no precision is refused.
EXPORT = """
import json, sys
from pathlib import Path
from ranklet_export.export import Settings, export_random
shape, folder, precision, opset = json.loads(sys.argv[1])
export_random(shape, Path(folder), Settings(opset=opset, precision=precision, allow_drop=1.0))
"""


@dataclass(frozen=True)
class OpenBundle:
    """A bundle, loaded once for each count of threads."""

    path: Path
    is_random: bool
    rankers: dict[int, Ranker]  # by threads
    loads: list[Load]

    @property
    def ranker(self) -> Ranker:
        """Return one of the rankers."""
        return next(iter(self.rankers.values()))

    def setting(self, threads: int, batch: int, length: int, k: int) -> Setting:
        """Name a call of this bundle."""
        ranker = self.rankers[threads]
        precision = ranker.manifest.precision
        place = (len(ranker), precision, self.is_random, ranker.provider)
        return Setting(*place, threads, batch, length, k)


def open_bundle(
    path: Path, provider: Provider, threads: Sequence[int], *, is_random: bool = False
) -> OpenBundle:
    """Load a bundle and time that.

    Raises:
        BundleError: The bundle is missing or damaged.
        ProviderError: CUDA was asked for and does not run.
    """
    rankers, loads = {}, []
    for count in threads:
        before, start = memory_mb(status(), "VmRSS"), time.perf_counter()
        ranker = Ranker.load(path, provider=provider, threads=count)
        seconds, after = time.perf_counter() - start, memory_mb(status(), "VmRSS")
        grown = None if before is None or after is None else after - before
        precision, ran = ranker.manifest.precision, ranker.provider
        loads.append(Load(len(ranker), precision, is_random, count, ran, seconds * 1e3, grown))
        rankers[count] = ranker
    return OpenBundle(path, is_random, rankers, loads)


def describe_bundle(bundle: OpenBundle, history: Ids, k: int) -> BundleFacts:
    """Start processes that load it and rank once, the quickest counts; return all about it."""
    threads, ranker = next(iter(bundle.rankers.items()))
    starts = [
        cold_start(bundle.path, ranker.provider, threads, history, k) for _ in range(COLD_STARTS)
    ]
    milliseconds, peak_mb = min(starts, key=lambda start: start[0])
    manifest = ranker.manifest
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
    start = time.perf_counter()
    told = run_fresh(COLD_START, str(path), provider, threads, history, k, task="rank")
    return (time.perf_counter() - start) * 1e3, memory_mb(told, "VmHWM")


def check_export() -> None:
    """Raise what making a bundle would, so that it is known before long work."""
    needed = ("ranklet_export", "torch", "onnx", "onnxscript", "polars", "safetensors")
    if missing := [name for name in needed if find_spec(name) is None]:
        raise InputError(
            f"a catalogue of random weights needs {', '.join(missing)}: "
            "pip install 'ranklet[export]'"
        )


def make_random(like: Manifest, items: int, precision: str, folder: Path) -> Path:
    """Export random weights of the shape of a bundle; its rows of the first block come with them.

    Raises:
        InputError: The model is a seed model, which has no such bundles.
        RankletError: The export fails.
    """
    shape, path = random_shape(like, items), folder / f"{items}-{precision}"
    task = f"make a bundle of {items:,} items"
    run_fresh(EXPORT, shape, str(path), precision, like.opset, task=task)
    return path


def random_shape(like: Manifest, items: int) -> str:
    """Return the shape of a bundle with other items, as ``ranklet export --random`` takes it."""
    settings = like.training["model"]
    if settings["kind"] != "sequence":
        raise InputError(
            f"a catalogue of random weights is of a sequence model, this one is {settings['kind']}"
        )
    kept = {name: value for name, value in settings.items() if name not in ("kind", "dropout")}
    return ",".join(f"{name}={value}" for name, value in {"items": items, **kept}.items())


def random_histories(ranker: Ranker, batch: int, length: int, seed: int) -> list[Ids]:
    """Draw known ids: (batch, length)."""
    indices = np.random.default_rng([seed, batch, length]).integers(
        1, len(ranker) + 1, (batch, length)
    )
    return [ranker.vocabulary.ids(row) for row in indices]
