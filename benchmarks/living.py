"""What the living catalogue costs: ``python benchmarks/living.py [add|where|reload|why]``.

add      1,000 items added to 100,000: seconds, median time of a request before and after, and
         whether a bundle that is saved with them gives the same answers
where    a million items of which 1 %, 30 % and 100 % are eligible: median times beside no filter,
         and the time to compile a filter that was never seen
reload   1,000 reloads while 8 threads rank: failed calls, and answers that mix two bundles
why      times of explanations, diversity and similar items beside a plain ranking of 10

Weights are random, one thread ranks, and requests that are compared take turns.
"""

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from ranklet.attributes import Attributes
from ranklet.bundle.folder import describe_files
from ranklet.bundle.manifest import Manifest
from ranklet.machine import describe_machine
from ranklet.ranker import Ranker

SHAPE = "items={},width=64,blocks=2,heads=1,length=200"
EVENTS, TURNS = 50, 400
RELOADS, THREADS = 1000, 8


def export(folder: Path, items: int, seed: int = 0) -> Path:
    """Export random weights, and return the bundle."""
    from ranklet_export.export import Settings, export_random

    path = folder / f"{items}-{seed}"
    export_random(SHAPE.format(items), path, Settings(precision="int8", compact=True), seed=seed)
    return path


def draw(ranker: Ranker, count: int) -> list[list[Any]]:
    """Return random histories."""
    random, ids = np.random.default_rng(0), ranker.ids
    return [[ids[i] for i in random.integers(0, len(ids), EVENTS)] for _ in range(count)]


def compare(calls: dict[str, Callable[[int], object]], turns: int = TURNS) -> dict[str, float]:
    """Return the median seconds of calls that take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 5):
        for name, call in calls.items():
            begin = time.perf_counter()
            call(turn)
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(part[5:]) for name, part in times.items()}


def show(medians: dict[str, float]) -> None:
    """Print medians, and their ratios to the first."""
    base = next(iter(medians.values()))
    for name, seconds in medians.items():
        click.echo(f"{name:32} {seconds * 1e3:8.3f} ms  {seconds / base:5.2f}")


def add(folder: Path) -> None:
    """Add items and save the bundle."""
    from ranklet_export.catalogue import changes_of, save_catalogue

    path = export(folder, 100_000)
    before, after = (Ranker.load(path, provider="cpu") for _ in range(2))
    vectors = np.random.default_rng(1).normal(size=(1000, before.manifest.width))
    table = {"item_id": [f"new {number}" for number in range(1000)]}
    begin = time.perf_counter()
    after.add_items(table, vectors=vectors)
    click.echo(f"1,000 items added in {time.perf_counter() - begin:.3f} s")
    histories = draw(before, 100)
    show(
        compare(
            {
                "100,000 items": lambda turn: before.rank(histories[turn % 100]),
                "and 1,000 added": lambda turn: after.rank(histories[turn % 100]),
            }
        )
    )
    begin = time.perf_counter()
    save_catalogue(path, changes_of(after._serving), folder / "saved")
    click.echo(f"saved in {time.perf_counter() - begin:.1f} s")
    saved = Ranker.load(folder / "saved", provider="cpu")
    pairs = [[each.rank(history, k=20) for each in (after, saved)] for history in histories]
    same = sum(one.items == other.items for one, other in pairs)
    off = max(float(np.abs(one.scores - other.scores).max()) for one, other in pairs)
    click.echo(f"{same} of 100 rankings of 20 are equal, scores differ by at most {off:.1e}")


def where(folder: Path) -> None:
    """Rank with filters of three sizes."""
    items = 1_000_000
    path, random = export(folder, items), np.random.default_rng(0)
    columns = {"share": random.integers(0, 100, items).tolist()}
    columns["price"] = random.uniform(0, 1000, items).tolist()
    attributes = Attributes.empty({"share": "category", "price": "number"}).with_items(
        columns, np.arange(1, items + 1), items
    )
    manifest = Manifest.read(path)
    values = {**vars(manifest), "attributes": attributes.write(path)}
    Manifest(**{**values, "files": describe_files(path)}).write(path)
    ranker = Ranker.load(path, provider="cpu")
    histories = draw(ranker, 50)
    some = [str(value) for value in range(30)]
    conditions: dict[str, Any] = {
        "none": None,
        "1 %": {"share": "7"},
        "30 %": {"share": some},
        "100 %": {"price": (0, None)},
    }
    show(
        compare(
            {
                name: lambda turn, where=where: ranker.rank(histories[turn % 50], where=where)
                for name, where in conditions.items()
            },
            100,
        )
    )
    catalogue, times = ranker._serving.catalogue, list[float]()
    for turn in range(30):
        begin = time.perf_counter()
        catalogue.bias({"share": some[: turn + 1], "price": (turn, 500 + turn)}, None)
        times.append(time.perf_counter() - begin)
    median, worst = statistics.median(times) * 1e3, max(times[1:]) * 1e3
    click.echo(f"a new filter of two attributes: {median:.1f} ms, worst {worst:.1f} ms")


def reload(folder: Path) -> None:
    """Reload while threads rank."""
    paths = [export(folder, 2_000, seed) for seed in (0, 1)]
    rankers = [Ranker.load(path, provider="cpu") for path in paths]
    histories = draw(rankers[0], 20)
    expected = {
        each.manifest.digest: [each.rank(history).items for history in histories]
        for each in rankers
    }
    ranker, is_over = Ranker.load(paths[0], provider="cpu"), threading.Event()
    counts = {"calls": 0, "mixed": 0, "failed": 0}

    def ask(number: int) -> None:
        while not is_over.is_set():
            place = (number + counts["calls"]) % len(histories)
            try:
                found = ranker.rank(histories[place])
                counts["mixed"] += found.items != expected[found.bundle][place]
            except Exception:
                counts["failed"] += 1
            counts["calls"] += 1
            time.sleep(0.001)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    begin = time.perf_counter()
    for number in range(RELOADS):
        ranker.reload(paths[(number + 1) % 2])
    seconds = time.perf_counter() - begin
    is_over.set()
    for thread in threads:
        thread.join()
    click.echo(f"{RELOADS} reloads in {seconds:.0f} s under {THREADS} threads: {counts}")


def why(folder: Path) -> None:
    """Explain, diversify, and look for similar items."""
    ranker = Ranker.load(export(folder, 12_000), provider="cpu")
    h = draw(ranker, 100)
    show(
        compare(
            {
                "plain, 10 of 12,000": lambda turn: ranker.rank(h[turn % 100]),
                "explained": lambda turn: ranker.rank(h[turn % 100], explain=True),
                "similar": lambda turn: ranker.similar(h[turn % 100][0]),
                "k = 20": lambda turn: ranker.rank(h[turn % 100], k=20),
                "k = 20, diversity": lambda turn: ranker.rank(h[turn % 100], k=20, diversity=0.3),
                "k = 100": lambda turn: ranker.rank(h[turn % 100], k=100),
                "second page": lambda turn: ranker.rank(h[turn % 100], skip=10),
            }
        )
    )


def main() -> None:
    """Run the parts that are named, or all."""
    parts = {"add": add, "where": where, "reload": reload, "why": why}
    click.echo(describe_machine())
    for name in sys.argv[1:] or parts:
        click.echo(f"\n{name}")
        with tempfile.TemporaryDirectory() as folder:
            parts[name](Path(folder))


if __name__ == "__main__":
    main()
