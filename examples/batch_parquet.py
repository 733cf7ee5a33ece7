"""Rank for every user of an event log: parquet in, parquet out.

python batch_parquet.py models/ml-latest-small events.parquet rankings.parquet [k]

The log has the columns user_id, item_id and timestamp. The output has one row for each ranked item:
user_id, rank (from 1), item_id, score.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from ranklet import Ranker

CHUNK = 1024  # users


def rank_users(ranker: Ranker, users: pl.DataFrame, k: int) -> Iterator[pl.DataFrame]:
    """Yield the rankings of users, in chunks; ``item_id`` holds their histories."""
    for chunk in users.iter_slices(CHUNK):
        rankings = ranker.rank_batch(chunk["item_id"].to_list(), k=k)
        lists = pl.DataFrame(
            {
                "rank": [range(1, len(ranking.items) + 1) for ranking in rankings],
                "item_id": [ranking.items for ranking in rankings],
                "score": [ranking.scores for ranking in rankings],
            }
        )
        yield chunk.select("user_id").hstack(lists).explode(lists.columns)


if __name__ == "__main__":
    bundle, source, target = map(Path, sys.argv[1:4])
    events = pl.scan_parquet(source).sort("timestamp", maintain_order=True)
    histories = events.group_by("user_id", maintain_order=True).agg("item_id").collect()
    parts = rank_users(Ranker.load(bundle), histories, int(sys.argv[4]) if sys.argv[4:] else 10)
    half = target.with_name(target.name + ".half")
    pl.concat(parts).write_parquet(half)
    half.replace(target)  # whole, or not there
