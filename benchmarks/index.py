"""The index of clusters beside a scan and beside libraries for nearest neighbours.

    pip install faiss-cpu usearch
    python benchmarks/index.py [--items 1000000] [--only exact,clusters,ivf,hnsw,usearch]

All search the same vectors with the same questions, with one thread, for the 10 best by inner
product. Rows are drawn from a mixture whose similarities are those of a table trained on Amazon
Beauty where there are 12,000 of them: of each row with its nearest, tenth and hundredth, and of a
question likewise. Every way runs in a process of its own, which says what memory it takes.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from ranklet.machine import describe_machine
from ranklet.ranker import Ranker

Floats = NDArray[np.float32]
WIDTH, GROUPS, DIMENSIONS = 64, 256, 8
SPREAD, NOISE, FROM_ITEM = 1.5, 0.6, 0.8  # lengths beside that of a centre, and of a question
QUESTIONS, TURNS, K = 500, 300, 10
SHAPE = "items={},width=64,blocks=2,heads=1,length=50"
WAYS = ("exact", "clusters", "ivf", "hnsw", "usearch")
RECALL = 0.95
LISTS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def unit(rows: NDArray[Any]) -> Floats:
    """Return rows of length 1."""
    scaled: Floats = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def draw_rows(items: int) -> Floats:
    """Return rows that lie around some centres, mostly in a few directions of each."""
    random = np.random.default_rng(0)
    centres = unit(random.normal(size=(GROUPS, WIDTH)))
    ways = random.normal(size=(GROUPS, DIMENSIONS, WIDTH)) / (WIDTH * DIMENSIONS) ** 0.5
    rows, of_row = np.empty((items, WIDTH), np.float32), random.integers(0, GROUPS, items)
    for group in range(GROUPS):
        own = np.flatnonzero(of_row == group)
        near = centres[group] + SPREAD * random.normal(size=(len(own), DIMENSIONS)) @ ways[group]
        rows[own] = unit(near + NOISE * unit(random.normal(size=(len(own), WIDTH))))
    return rows


def draw_questions(rows: Floats) -> Floats:
    """Return user vectors near some rows."""
    random = np.random.default_rng(1)
    noise = unit(random.normal(size=(QUESTIONS, WIDTH)))
    return unit(rows[random.integers(0, len(rows), QUESTIONS)] + FROM_ITEM * noise)


def best_of(rows: Floats, questions: Floats) -> NDArray[np.int64]:
    """Return the exact ten best rows of each question."""
    scores, places = np.zeros((QUESTIONS, 0), np.float32), np.zeros((QUESTIONS, 0), np.int64)
    for begin in range(0, len(rows), 1 << 16):
        part = questions @ rows[begin : begin + (1 << 16)].T
        scores = np.concatenate([scores, part], axis=1)
        every = np.arange(begin, begin + part.shape[1])
        places = np.concatenate([places, np.broadcast_to(every, part.shape)], axis=1)
        best = np.argpartition(-scores, K, axis=1)[:, :K]
        scores, places = (np.take_along_axis(part, best, 1) for part in (scores, places))
    return places


def measure(find: Callable[[Floats], NDArray[Any]], folder: Path) -> dict[str, float]:
    """Return recall, milliseconds and memory of a search, which returns places of rows."""
    questions, best = np.load(folder / "questions.npy"), np.load(folder / "best.npy")
    found = [find(question[None]) for question in questions]
    shares = [len({*a.tolist()} & {*b.tolist()}) / K for a, b in zip(found, best, strict=True)]
    times = []
    for turn in range(TURNS):
        begin = time.perf_counter()
        find(questions[turn % QUESTIONS, None])
        times.append(time.perf_counter() - begin)
    return {"recall": statistics.mean(shares), "ms": 1e3 * statistics.median(times), **memory()}


def memory() -> dict[str, float]:
    """Return the resident memory of this process in MB: its own, and that of mapped files."""
    names = {"RssAnon:": "own_mb", "RssFile:": "file_mb"}
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    return {names[line[0]]: int(line[1]) / 1024 for line in lines if line[0] in names}


def of_bundle(folder: Path, way: str) -> dict[str, float]:
    """Search with a bundle: all items, or the fewest clusters that reach the recall."""
    ranker = Ranker.load(folder / "bundle", provider="cpu", check_digests=False)
    engine, index = ranker.engine, ranker.manifest.index
    pool = ranker.manifest.pool.size(K)
    for probes in LISTS if index and way == "clusters" else (0,):

        def find(question: Floats, probes: int = probes) -> NDArray[Any]:
            return engine.score(question, K, pool, probes=[probes]).items[0] - 1

        figures = measure(find, folder)
        if figures["recall"] >= RECALL:
            break
    read = probes * index.size / len(ranker) if index and probes else 1.0
    return figures | {"read": read, "probes": probes}


def of_library(folder: Path, way: str) -> dict[str, float]:
    """Search with faiss or usearch, with the fewest steps that reach the recall."""
    rows = np.load(folder / "rows.npy", mmap_mode="r")
    begin = time.perf_counter()
    find, steps = LIBRARIES[way](rows)
    seconds = time.perf_counter() - begin
    for step in LISTS:
        steps(step)
        figures = measure(find, folder)
        if figures["recall"] >= RECALL:
            break
    return figures | {"probes": step, "seconds": seconds}


def ivf(rows: Floats) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the search of faiss-cpu IVF in 8 bits, and a setter of its probes."""
    import faiss

    faiss.omp_set_num_threads(1)
    lists, inner = round(4 * len(rows) ** 0.5), faiss.METRIC_INNER_PRODUCT
    coarse = faiss.IndexFlatIP(WIDTH)
    kind = faiss.ScalarQuantizer.QT_8bit
    index = faiss.IndexIVFScalarQuantizer(coarse, WIDTH, lists, kind, inner)
    random = np.random.default_rng(0)
    index.train(rows[np.sort(random.choice(len(rows), min(len(rows), 40 * lists), replace=False))])
    index.add(np.ascontiguousarray(rows))
    return lambda q: index.search(q, K)[1][0], lambda step: setattr(index, "nprobe", step)


def hnsw(rows: Floats) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the search of faiss-cpu HNSW, and a setter of its breadth."""
    import faiss

    index = faiss.IndexHNSWFlat(WIDTH, 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 100
    index.add(np.ascontiguousarray(rows))
    faiss.omp_set_num_threads(1)
    return (
        lambda q: index.search(q, K)[1][0],
        lambda step: setattr(index.hnsw, "efSearch", max(K, step)),
    )


def usearch(rows: Floats) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the search of usearch, and a setter of its breadth."""
    from usearch.index import Index

    index = Index(ndim=WIDTH, metric="ip", dtype="i8", connectivity=32, expansion_add=100)
    index.add(np.arange(len(rows)), np.ascontiguousarray(rows))
    return (
        lambda q: index.search(q[0], K, threads=1).keys,
        lambda step: setattr(index, "expansion_search", max(K, step)),
    )


LIBRARIES = {"ivf": ivf, "hnsw": hnsw, "usearch": usearch}


def prepare(folder: Path, items: int) -> None:
    """Write rows, questions, answers and a bundle."""
    from ranklet_export.export import Settings, export_random

    rows = draw_rows(items)
    questions = draw_questions(rows)
    np.save(folder / "rows.npy", rows)
    np.save(folder / "questions.npy", questions)
    np.save(folder / "best.npy", best_of(rows, questions))
    settings = Settings(precision="int8", compact=True, index="clusters")
    export_random(SHAPE.format(items), folder / "bundle", settings, rows=rows)


@click.command()
@click.option("--items", default=1_000_000, show_default=True)
@click.option("--only", default=",".join(WAYS), show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Keep what is made here.")
@click.option("--one", hidden=True)
def main(items: int, only: str, folder: Path | None, one: str | None) -> None:
    """Print a table in Markdown."""
    if one:
        assert folder
        figures = (of_bundle if one in ("exact", "clusters") else of_library)(folder, one)
        click.echo(json.dumps(figures))
        return
    with tempfile.TemporaryDirectory() as temporary:
        made = folder or Path(temporary)
        if not (made / "bundle").exists():
            made.mkdir(exist_ok=True)
            begin = time.perf_counter()
            prepare(made, items)
            click.echo(f"rows and bundle made in {time.perf_counter() - begin:.0f} s")
        click.echo(f"{describe_machine()}, {items:,} items of width {WIDTH}, 1 thread\n")
        click.echo("| way | recall@10 | p50, ms | steps | items read | own MB | mapped MB |")
        click.echo("|---|---|---|---|---|---|---|")
        for way in only.split(","):
            command = [sys.executable, __file__, "--one", way, "--folder", str(made)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=os.environ)
            row = json.loads(done.stdout.splitlines()[-1])
            read = f"{row['read']:.2%}" if "read" in row else ""
            click.echo(
                f"| {way} | {row['recall']:.3f} | {row['ms']:.3f} | {row['probes']} | {read} | "
                f"{row['own_mb']:,.0f} | {row['file_mb']:,.0f} |"
            )


if __name__ == "__main__":
    main()
