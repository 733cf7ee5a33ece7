"""Rankings of Arrow tables, which Ray and Spark hand to their workers; needs pyarrow."""

from typing import TypeVar

import pyarrow as pa

from ranklet.frames import ADDED, RowRanker

Users = TypeVar("Users", pa.RecordBatch, pa.Table)


def add_rankings(users: Users, rows: RowRanker) -> Users:
    """Return a table with the columns ``items`` and ``scores`` behind its own."""
    ids = pa.string() if rows.ranker.manifest.id_type == "string" else pa.int64()
    lists = rows.rank(lambda name: users.column(name).to_pylist())
    for name, values, of in zip(ADDED, lists, (ids, pa.float32()), strict=True):
        users = users.append_column(name, pa.array(values, pa.list_(of)))
    return users
