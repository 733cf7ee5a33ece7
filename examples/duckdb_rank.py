"""Rank for every user of a log with DuckDB: SQL makes the histories, and takes the rankings.

python duckdb_rank.py models/ml-latest-small events.parquet rankings.parquet
"""

import sys

import duckdb

import ranklet.polars

bundle, events, target = sys.argv[1:4]
histories = duckdb.sql(
    f"SELECT user_id, list(item_id ORDER BY timestamp) AS history FROM '{events}' GROUP BY user_id"
)
rankings = ranklet.polars.rank(histories.pl(), bundle, k=10)
best = duckdb.sql("SELECT user_id, unnest(items) AS item_id, unnest(scores) AS score FROM rankings")
best.write_parquet(target)
