"""Rankings of datasets of Ray (extra ``ray``); each actor opens the bundle once."""

import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset

from ranklet.arrow import add_rankings
from ranklet.errors import InputError
from ranklet.frames import BATCH, RowRanker
from ranklet.ranker import Ranker
from ranklet.values import whole

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
        concurrency: The number of actors; None: from half of those that the cluster has room for
            up to all, so that two rankings fit into one pipeline. Each takes as many CPUs as the
            ranker has threads, and a GPU if it runs on one. Ray reads and writes with another.
        options: Arguments of ``Ranker.rank_batch``. Those of which each history has its own
            (``times``, ``now``, ``kinds``, ``candidates``, ``exclude``, ``seen_recently``) are
            names of columns here.

    Raises:
        BundleError: The folder is no bundle; in an actor: there is none, or another one.
        InputError: A column is missing, an argument can't be used, Ray has no room for an actor,
            or the catalogue of the ranker was changed since its bundle was loaded.
    """
    most = None if concurrency is None else whole(concurrency, "concurrency", 1)
    rows = RowRanker(bundle, history, options)
    pickle.dumps(rows.ranker)  # refuses one that can't travel before an actor starts
    if schema := dataset.schema(fetch_if_missing=False):
        rows.check(schema.names)
    threads, is_cuda = rows.ranker.engine.threads, rows.ranker.provider == "cuda"
    cpus, gpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("CPU", "GPU"))
    room = gpus if is_cuda else (cpus - 1) // threads
    if room < 1:
        needs = "a GPU" if is_cuda else f"{threads} CPUs and one beside them"
        raise InputError(f"Ray has {cpus} CPUs and {gpus} GPUs, and an actor takes {needs}")
    return dataset.repartition(target_num_rows_per_block=BLOCK).map_batches(
        _Worker,
        fn_constructor_args=(rows,),
        batch_size=BATCH,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=min(room, most or max(1, room // 2)), max_size=most),
        num_cpus=threads,
        num_gpus=int(is_cuda),
    )
