"""Rankings of frames of Spark; the extra ``spark`` installs what this needs.

Each Python worker opens the bundle once, in the folder that has its path there.
"""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql.types import ArrayType, FloatType, LongType, StringType, StructField, StructType

from ranklet.arrow import add_rankings
from ranklet.frames import ADDED, BATCH, RowRanker
from ranklet.ranker import Ranker


def rank(
    frame: DataFrame,
    bundle: Ranker | str | Path,
    history: str = "history",
    **options: Any,  # noqa: ANN401 (those of another function)
) -> DataFrame:
    """Return a frame with two more columns: ``items``, lists of item ids, and ``scores``.

    Args:
        frame: One row for each user. It is ranked when it is asked for, batch by batch.
        bundle: A ranker, or the folder of a bundle. All workers must find this bundle, and no
            other one, at its path.
        history: The name of a column of lists of item ids, oldest first; null is an empty one.
        options: Arguments of ``Ranker.rank_batch``. Those of which each history has its own
            (``times``, ``now``, ``kinds``, ``candidates``, ``exclude``, ``seen_recently``) are
            names of columns here.

    Raises:
        BundleError: The folder is no bundle; in a worker: there is none, or another one.
        InputError: A column is missing, an argument can't be used, or the catalogue of the ranker
            was changed since its bundle was loaded.
    """
    rows = RowRanker(bundle, history, options)
    rows.check(frame.columns)
    pickle.dumps(rows.ranker)  # refuses one that can't travel before a worker starts
    ids = StringType() if rows.ranker.manifest.id_type == "string" else LongType()
    lists = [
        StructField(name, ArrayType(of)) for name, of in zip(ADDED, (ids, FloatType()), strict=True)
    ]

    def ranked(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for users in batches:
            for begin in range(0, users.num_rows, BATCH):
                yield add_rankings(users.slice(begin, BATCH), rows)

    return frame.mapInArrow(ranked, StructType([*frame.schema, *lists]))
