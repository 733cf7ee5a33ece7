"""Rankings of datasets of Ray; the extra ``ray`` installs what this needs.

Each actor opens the bundle once, in the folder that has its path there.
"""

import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset

from ranklet.arrow import add_rankings
from ranklet.frames import BATCH, RowRanker
from ranklet.ranker import Ranker

BLOCK = 4 * BATCH  # users of a task: Ray would read a gigabyte of histories as a few blocks


class _Worker:
    """An actor with a ranker."""

    def __init__(self, rows: RowRanker) -> None:
        self._rows = rows

    def __call__(self, users: pa.Table) -> pa.Table:
        return add_rankings(users, self._rows)


def rank(
    dataset: Dataset,
    bundle: Ranker | str | Path,
    history: str = "history",
    *,
    concurrency: int | None = None,
    **options: Any,  # noqa: ANN401 (those of another function)
) -> Dataset:
    """Return a dataset with two more columns: ``items``, lists of item ids, and ``scores``.

    Args:
        dataset: One row for each user. It is ranked when it is asked for, block by block. A block
            of an actor that dies is ranked again.
        bundle: A ranker, or the folder of a bundle. All actors must find this bundle, and no other
            one, at its path.
        history: The name of a column of lists of item ids, oldest first; null is an empty one.
        concurrency: The most actors; None: all that the cluster has room for. Each takes as many
            CPUs as the ranker has threads, and a GPU if it runs on one. Another CPU must be left
            for Ray to read and write with.
        options: Arguments of ``Ranker.rank_batch``. Those of which each history has its own
            (``times``, ``now``, ``kinds``, ``candidates``, ``exclude``, ``seen_recently``) are
            names of columns here.

    Raises:
        BundleError: The folder is no bundle; in an actor: there is none, or another one.
        InputError: A column is missing, an argument can't be used, or the catalogue of the ranker
            was changed since its bundle was loaded.
    """
    rows = RowRanker(bundle, history, options)
    pickle.dumps(rows.ranker)  # refuses one that can't travel before an actor starts
    if schema := dataset.schema(fetch_if_missing=False):
        rows.check(schema.names)
    threads, is_cuda = rows.ranker.engine.threads, rows.ranker.provider == "cuda"
    has = ray.cluster_resources()
    room = max(1, int(has.get("GPU", 1) if is_cuda else (has.get("CPU", 1) - 1) // threads))
    return dataset.repartition(target_num_rows_per_block=BLOCK).map_batches(
        _Worker,
        fn_constructor_args=(rows,),
        batch_size=BATCH,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=min(room, concurrency or room), max_size=concurrency),
        num_cpus=threads,
        num_gpus=int(is_cuda),
    )
