"""Rankings of frames of Polars; the extra ``polars`` installs what this needs.

Frames of DuckDB, Arrow and pandas become frames of Polars without a copy, as a rule:
``duckdb.sql(...).pl()``, ``polars.from_arrow``, ``polars.from_pandas``.
"""

from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from ranklet.frames import ADDED, BATCH, RowRanker
from ranklet.ranker import Ranker

Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)


def rank(
    frame: Frame,
    bundle: Ranker | str | Path,
    history: str = "history",
    **options: Any,  # noqa: ANN401 (those of another function)
) -> Frame:
    """Return a frame with two more columns: ``items``, lists of item ids, and ``scores``.

    Args:
        frame: One row for each user. A lazy frame is ranked part by part as it is collected.
        bundle: A ranker, or the folder of a bundle.
        history: The name of a column of lists of item ids, oldest first; null is an empty one.
        options: Arguments of ``Ranker.rank_batch``. Those of which each history has its own
            (``times``, ``now``, ``kinds``, ``candidates``, ``exclude``, ``seen_recently``) are
            names of columns here.

    Raises:
        BundleError: The folder is no bundle.
        InputError: A column is missing, or an argument can't be used.
    """
    rows, schema = RowRanker(bundle, history, options), frame.collect_schema()
    rows.check(schema)
    ids = pl.String if rows.ranker.manifest.id_type == "string" else pl.Int64
    added = dict(zip(ADDED, (pl.List(ids), pl.List(pl.Float32)), strict=True))

    def ranked(users: pl.DataFrame) -> pl.DataFrame:
        parts = [users.clear()] if users.is_empty() else users.iter_slices(BATCH)
        return pl.concat(map(of_part, parts))

    def of_part(users: pl.DataFrame) -> pl.DataFrame:
        lists = rows.rank(lambda name: users[name].to_list())
        return users.with_columns(
            pl.Series(name, values, of)
            for (name, of), values in zip(added.items(), lists, strict=True)
        )

    if isinstance(frame, pl.DataFrame):
        return ranked(frame)
    return frame.map_batches(ranked, schema=pl.Schema({**schema, **added}), streamable=True)
