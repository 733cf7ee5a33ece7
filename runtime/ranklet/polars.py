"""Rankings of whole frames; the extra ``polars`` installs what this needs.

Frames of DuckDB, Arrow and pandas become frames of Polars without a copy, as a rule:
``duckdb.sql(...).pl()``, ``polars.from_arrow``, ``polars.from_pandas``.
"""

from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from ranklet.errors import InputError
from ranklet.ranker import Ranker
from ranklet.values import show

BATCH = 4096  # users of whom lists exist at a time
# Arguments of ``Ranker.rank_batch`` of which each history has its own.
OF_EACH = ("times", "now", "kinds", "candidates", "exclude", "seen_recently")

Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)


def rank(
    frame: Frame,
    bundle: Ranker | str | Path,
    history: str = "history",
    **options: Any,  # noqa: ANN401 (those of another function)
) -> Frame:
    """Return a frame with two more columns: ``ranked``, lists of item ids, and ``scores``.

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
    ranker = bundle if isinstance(bundle, Ranker) else Ranker.load(bundle)
    columns = {name: options.pop(name) for name in OF_EACH if options.get(name) is not None}
    schema = frame.collect_schema()
    for name, column in {"history": history, **columns}.items():
        if column not in schema:
            raise InputError(f"{name} is {show(column)}, and the frame has no such column")
    if taken := {"ranked", "scores"} & set(schema):
        raise InputError(f"the frame has a column {sorted(taken)[0]} already: rename it")
    ids = pl.List(pl.String if ranker.manifest.id_type == "string" else pl.Int64)
    scores = pl.List(pl.Float32)

    def ranked(users: pl.DataFrame) -> pl.DataFrame:
        parts = [users.clear()] if users.is_empty() else users.iter_slices(BATCH)
        return pl.concat(map(of_part, parts))

    def of_part(users: pl.DataFrame) -> pl.DataFrame:
        own = {name: users[column].to_list() for name, column in columns.items()}
        histories = [events or [] for events in users[history].to_list()]
        rankings = ranker.rank_batch(histories, **own, **options)
        return users.with_columns(
            pl.Series("ranked", [ranking.items for ranking in rankings], ids),
            pl.Series("scores", [ranking.scores.tolist() for ranking in rankings], scores),
        )

    if isinstance(frame, pl.DataFrame):
        return ranked(frame)
    after = pl.Schema({**schema, "ranked": ids, "scores": scores})
    return frame.map_batches(ranked, schema=after, streamable=True)
