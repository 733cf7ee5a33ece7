"""Reloads: another bundle takes the place of the served one, while threads ask."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from faults.campaign import Campaign, Tally
from faults.world import SHIPPED, bundle
from ranklet import BundleError, Ranker
from ranklet_export.catalogue import Changes, save_catalogue

THREADS = 8
BAD = ("encode.onnx", "weights.bin", "manifest.json", "golden.json")


def damaged(folder: Path) -> list[Path]:
    """Return copies of the shipped bundle, one with each of some files damaged."""
    found = []
    for name in BAD:
        copy = bundle(folder, f"bad-{name}")
        with (copy / name).open("r+b") as file:
            file.seek(200)
            (byte,) = file.read(1)
            file.seek(200)
            file.write(bytes([byte ^ 4]))
        found.append(copy)
    return found


def answers(ranker: Ranker, histories: list[Any]) -> list[Any]:
    """Return the answers to histories, to the bit."""
    found = [ranker.rank(history, k=7) for history in histories]
    return [(one.items, one.scores.tobytes()) for one in found]


@contextmanager
def asked(
    ranker: Ranker, histories: list[Any], expected: dict[str, Any], tally: Tally
) -> Iterator[None]:
    """Ask from all threads inside; each answer must be one of the bundle that it names."""
    is_over = threading.Event()

    def ask(place: int) -> None:
        user, calls = ranker.user(histories[2][:5]), 0
        while not is_over.is_set() or not calls:
            calls += 1
            found = ranker.rank(histories[place % 3], k=7)
            if (found.items, found.scores.tobytes()) != expected[found.bundle][place % 3]:
                tally.failed(f"{found.bundle[:12]} answered {found.items} to history {place % 3}")
            user.append(histories[2][calls % 19])
            user.rank(k=3)
            is_over.wait(0.03)  # else the threads share one processor with the reload

    with ThreadPoolExecutor(THREADS) as threads:
        running = [threads.submit(ask, place) for place in range(THREADS)]
        try:
            yield
        finally:
            is_over.set()
        for error in (one.exception() for one in running):
            if error:
                tally.failed(f"a call failed: {error!r}")


def reload(count: int, rng: np.random.Generator, folder: Path) -> Tally:
    """Reload two good bundles and damaged ones in random order under the load of threads."""
    tally, ranker = Tally(), Ranker.load(bundle(folder), provider="cpu")
    histories = [rng.choice(ranker.ids, size).tolist() for size in (1, 4, 19)]
    best = [item for history in histories for item in ranker.rank(history, k=3).items]
    save_catalogue(SHIPPED, Changes(removed=best), folder / "other")
    good, bad = [folder / "bundle", folder / "other"], damaged(folder)
    alone = [Ranker.load(path, provider="cpu") for path in good]
    expected = {one.manifest.digest: answers(one, histories) for one in alone}
    with asked(ranker, histories, expected, tally):
        for is_good in rng.random(count) < 0.8:
            path = Path(rng.choice(good if is_good else bad))
            try:
                ranker.reload(path)
                outcome = "took its place"
            except BundleError as error:
                outcome = f"refused by name, the old one stays{error if is_good else ''}"
            if is_good == (outcome == "took its place"):
                tally.ended(outcome)
            else:
                tally.failed(f"{path.name}: {outcome}")
    return tally


CAMPAIGNS = [
    Campaign(
        f"reload of a good or a damaged bundle while {THREADS} threads rank",
        "no call fails, and no answer is mixed of two bundles",
        reload,
        short=4,
        middle=40,
        long=1_000,
    )
]
