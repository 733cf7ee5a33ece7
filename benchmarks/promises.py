"""Which answers are equal to the bit, and which in order alone: tables for promises.md.

    python benchmarks/promises.py BUNDLE [--against BUNDLE] [--histories 2000]

Histories of random items are ranked alone on one thread, and then in other ways. ``--against``
names a bundle of the same run in another precision, whose answers are compared, too.
"""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np

from ranklet import Ranker, Ranking
from ranklet.machine import describe_machine

K = 10
FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
Histories = list[list[str]]
Way = Callable[[Histories], list[Ranking]]


def draw(ranker: Ranker, count: int) -> Histories:
    """Return histories of 1 to 1.5 times as many events as the model sees."""
    rng, ids = np.random.default_rng(0), [str(item) for item in ranker.ids]
    most = ranker.manifest.max_length * 3 // 2
    return [
        [ids[i] for i in rng.integers(len(ids), size=rng.integers(1, most))] for _ in range(count)
    ]


def parts(histories: Histories, size: int) -> list[Histories]:
    """Return histories in groups."""
    return [histories[start : start + size] for start in range(0, len(histories), size)]


def alone(ranker: Ranker) -> Way:
    """Rank one history after the other."""
    return lambda histories: [ranker.rank(history, k=K) for history in histories]


def on_callers(ranker: Ranker) -> Way:
    """Rank on 8 threads of the caller."""

    def rank(histories: Histories) -> list[Ranking]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda history: ranker.rank(history, k=K), histories))

    return rank


def in_batches(ranker: Ranker, size: int) -> Way:
    """Rank batches, whose shorter histories are padded."""
    return lambda histories: [
        answer for rows in parts(histories, size) for answer in ranker.rank_batch(rows, k=K)
    ]


def kept(ranker: Ranker) -> Way:
    """Rank users of whom all but the last 3 events were known before."""

    def rank(history: list[str]) -> Ranking:
        user = ranker.user(history[:-3])
        for item in history[-3:]:
            user.append(item)
        return user.rank(k=K)

    return lambda histories: [rank(history) for history in histories]


def saved(ranker: Ranker) -> Way:
    """Rank users that were saved and loaded."""
    return lambda histories: [
        ranker.user().load(ranker.user(history).save()).rank(k=K) for history in histories
    ]


def kept_together(ranker: Ranker) -> Way:
    """Rank many kept users in one call."""
    return lambda histories: [
        answer for rows in parts(histories, 64) for answer in ranker.users(rows).rank(k=K)
    ]


def in_a_process(path: Path) -> Way:
    """Rank in a new process."""

    def rank(histories: Histories) -> list[Ranking]:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows = pool.apply(_rank, (path, histories))
        return [Ranking(items, np.array(scores, np.float32), 0, False) for items, scores in rows]

    return rank


def _rank(path: Path, histories: Histories) -> list[tuple[list[str], list[float]]]:
    ranker = Ranker.load(path, provider="cpu")
    answers = alone(ranker)(histories)
    return [([str(item) for item in answer.items], answer.scores.tolist()) for answer in answers]


def compare(found: list[Ranking], expected: list[Ranking]) -> str:
    """Return four cells: equal bits, equal order, largest difference, widest gap that turned."""
    bits = order = 0
    difference = gap = 0.0
    for a, b in zip(found, expected, strict=True):
        same = list(map(str, a.items)) == list(map(str, b.items))
        order += same
        bits += same and a.scores.tobytes() == b.scores.tobytes()
        difference = max(difference, float(np.abs(a.scores - b.scores).max(initial=0)))
        if not same:
            score = dict(zip(map(str, b.items), b.scores.tolist(), strict=True))
            last = float(b.scores[-1])
            moved = [score.get(str(item), last) for item in a.items]
            gap = max(gap, float(np.abs(np.array(moved) - b.scores).max(initial=0)))
    return f"{bits:,} | {order:,} | {difference:.1e} | {gap:.1e}"


@click.command()
@click.argument("path", metavar="BUNDLE", type=FOLDER)
@click.option("--against", type=FOLDER, help="A bundle of the same run in another precision.")
@click.option("--histories", "count", default=2000)
def main(path: Path, against: Path | None, count: int) -> None:
    """Print the rows of one bundle."""
    ranker = Ranker.load(path, provider="cpu")
    histories = draw(ranker, count)
    expected = alone(ranker)(histories)
    ways = {
        "again": alone(ranker),
        "8 threads of the caller": on_callers(ranker),
        "loaded again": alone(Ranker.load(path, provider="cpu")),
        "another process": in_a_process(path),
        "`threads=2`": alone(Ranker.load(path, provider="cpu", threads=2)),
        "`threads=4`": alone(Ranker.load(path, provider="cpu", threads=4)),
        "`rank_batch` of 1": in_batches(ranker, 1),
        "`rank_batch` of 7": in_batches(ranker, 7),
        "`rank_batch` of 64": in_batches(ranker, 64),
        "a kept user, 3 events appended": kept(ranker),
        "a kept user, saved and loaded": saved(ranker),
        "`users` of 64": kept_together(ranker),
    }
    if against:
        other = Ranker.load(against, provider="cpu")
        ways[f"{other.manifest.precision} instead"] = alone(other)
    click.echo(f"{describe_machine()}; {ranker.manifest.precision}, {count:,} histories\n")
    click.echo(
        "| beside one ranking alone on one thread | equal bits | equal items | scores | turned |"
    )
    click.echo("|---|---|---|---|---|")
    for name, way in ways.items():
        click.echo(f"| {name} | {compare(way(histories), expected)} |")


if __name__ == "__main__":
    main()
