"""What it costs to rank everybody: one process, Ray and Spark, parquet in and out.

PYTHONPATH=tests python benchmarks/everybody.py models/ml-latest-small FOLDER [--users 2000000]

Ray and Spark have a worker for each core. One worker is killed while it ranks. Then every user must
be there once, with the answer of one process. A time is that of a whole job, from the first read to
the last write; the engine runs already. Needs Linux.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from pyspark.sql import SparkSession

import ranklet.ray
import ranklet.spark
from engines import SCORE_TOLERANCE, deadly_option
from ranklet import Ranker
from ranklet.arrow import add_rankings
from ranklet.frames import BATCH, RowRanker
from ranklet.machine import describe_machine

CORES = os.cpu_count() or 1
FILE = 50_000  # users
MEAN_LENGTH = 20  # events of a history
MOST_DIFFERENT = 1e-5  # share of items; at each place the scores are equal up to the tolerance


def write_users(folder: Path, ranker: Ranker, users: int) -> None:
    """Write users with random histories."""
    random, ids = np.random.default_rng(0), pa.array(list(ranker.ids))
    folder.mkdir(parents=True)
    for first in range(0, users, FILE):
        numbers = np.arange(first, min(first + FILE, users))
        ends = np.cumsum(random.geometric(1 / MEAN_LENGTH, len(numbers)))
        events = ids.take(pa.array(random.integers(0, len(ids), ends[-1])))
        histories = pa.ListArray.from_arrays(pa.array(np.append(0, ends), pa.int32()), events)
        table = pa.table({"user": numbers, "history": histories})
        pq.write_table(table, folder / f"{first:09}.parquet", row_group_size=FILE // 10)


def by_one_process(source: Path, ranker: Ranker, target: Path) -> None:
    """Rank all users in this process."""
    rows = RowRanker(ranker, "history", {})
    target.mkdir()
    for path in sorted(source.iterdir()):
        batches = pq.ParquetFile(path).iter_batches(BATCH)
        ranked = pa.Table.from_batches([add_rankings(batch, rows) for batch in batches])
        pq.write_table(ranked, target / path.name)


def cpu_seconds() -> float:
    """Return the CPU time of this process and of all that it started, also of those that ended."""
    parents, ticks = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            fields = path.read_text().rpartition(")")[2].split()
            parents[int(path.parent.name)] = int(fields[1])
            ticks[int(path.parent.name)] = sum(map(int, fields[11:15]))
    own = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in own} - own:
        own |= more
    return sum(ticks.get(process, 0) for process in own) / os.sysconf("SC_CLK_TCK")


@contextmanager
def measured(name: str, users: int, cores: int) -> Iterator[None]:
    """Print how many users a second were ranked, and the CPU time of each."""
    begin, cpu = time.perf_counter(), cpu_seconds()
    yield
    seconds, cpu = time.perf_counter() - begin, cpu_seconds() - cpu
    rate, each = users / seconds / cores, cpu / users * 1e6
    click.echo(f"{name:12} {seconds:6.1f} s {rate:7,.0f} users/s a core {each:5.0f} us CPU a user")


def compare(ranked: Path, expected: Path) -> None:
    """Check that every user is there once, with the answer of one process."""
    tables = [pq.read_table(path).sort_by("user").combine_chunks() for path in (ranked, expected)]
    assert tables[0]["user"].equals(tables[1]["user"]), "a user is missing, or there twice"
    one, other = (np.asarray(table["scores"].combine_chunks().values) for table in tables)
    off = float(np.abs(one - other).max())
    assert off <= SCORE_TOLERANCE, f"a score differs by {off}"
    is_equal = np.equal(*(np.asarray(table["items"].combine_chunks().values) for table in tables))
    count = len(is_equal) - int(is_equal.sum())
    assert count <= MOST_DIFFERENT * len(is_equal), f"{count} of {len(is_equal)} items differ"
    click.echo(
        f"  every user once; scores differ by up to {off:.0e}, {count} items of {len(one):,}"
    )


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--users", default=200_000)
def main(bundle: Path, folder: Path, users: int) -> None:
    """Rank with one process, Ray and Spark, and compare the answers."""
    click.echo(describe_machine())
    ranker, source, one = Ranker.load(bundle, provider="cpu"), folder / "users", folder / "one"
    write_users(source, ranker, users)
    with measured("one process", users, 1):
        by_one_process(source, ranker, one)

    ray.init(num_cpus=CORES + 1, include_dashboard=False)  # one reads and writes
    deadly = deadly_option(folder / "ray died")
    with measured("Ray", users, CORES):
        dataset = ray.data.read_parquet(str(source))
        ranked = ranklet.ray.rank(dataset, ranker, concurrency=CORES, at_most=deadly)
        ranked.write_parquet(str(folder / "ray"))
    ray.shutdown()
    assert (folder / "ray died").exists()
    compare(folder / "ray", one)

    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder.master(f"local[{CORES}, 2]")  # threads, attempts of a task
    builder = builder.config("spark.sql.files.maxPartitionBytes", "8m")  # some 50,000 users
    spark = builder.getOrCreate()
    deadly = deadly_option(folder / "spark died")
    with measured("Spark", users, CORES):
        frame = spark.read.parquet(str(source))
        ranklet.spark.rank(frame, ranker, at_most=deadly).write.parquet(str(folder / "spark"))
    spark.stop()
    assert (folder / "spark died").exists()
    compare(folder / "spark", one)


if __name__ == "__main__":
    main()
