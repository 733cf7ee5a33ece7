import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import ranklet.polars
from ranklet import InputError, Ranker

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def histories(tiny_ranker: Ranker) -> list[list[Any]]:
    rng = np.random.default_rng(0)
    ids = list(tiny_ranker.ids)
    return [[ids[at] for at in rng.integers(0, len(ids), size)] for size in [0, 1, 5, 12, 40] * 3]


def test_a_frame_is_ranked_like_its_histories(tiny_ranker: Ranker, histories: Any) -> None:
    frame = pl.DataFrame({"user": range(len(histories)), "history": histories})
    ranked = ranklet.polars.rank(frame, tiny_ranker, k=4, exclude_seen=True)
    expected = tiny_ranker.rank_batch(histories, k=4, exclude_seen=True)
    assert ranked.columns == ["user", "history", "items", "scores"]
    assert ranked["items"].to_list() == [list(ranking.items) for ranking in expected]
    for scores, ranking in zip(ranked["scores"], expected, strict=True):
        assert scores.to_list() == ranking.scores.tolist()


def test_a_lazy_frame_gives_the_same_and_knows_its_columns(
    tiny_ranker: Ranker, tiny_bundle: Path, histories: Any
) -> None:
    frame = pl.DataFrame({"seen": [*histories, None], "dropped": [h[:1] for h in [*histories, []]]})
    eager = ranklet.polars.rank(frame, tiny_ranker, "seen", exclude="dropped")
    lazy = ranklet.polars.rank(frame.lazy(), tiny_bundle, history="seen", exclude="dropped")
    assert lazy.collect_schema() == eager.schema
    assert lazy.collect().equals(eager)
    assert lazy.filter(pl.col("seen").is_null()).collect().height == 1
    assert ranklet.polars.rank(frame.clear(), tiny_ranker, "seen").schema == eager.schema


def test_many_users_are_ranked_in_parts(tiny_ranker: Ranker, monkeypatch: Any) -> None:
    monkeypatch.setattr(ranklet.polars, "BATCH", 7)
    ids = list(tiny_ranker.ids)
    frame = pl.DataFrame({"history": [[ids[row % len(ids)]] for row in range(30)]})
    ranked = ranklet.polars.rank(frame, tiny_ranker, k=2)
    expected = [list(tiny_ranker.rank(history, k=2).items) for history in frame["history"]]
    assert ranked["items"].to_list() == expected


def test_a_column_that_is_missing_or_taken_is_refused(tiny_ranker: Ranker) -> None:
    frame = pl.DataFrame({"history": [["1"]], "scores": [1]})
    with pytest.raises(InputError, match="history is 'gone', and the frame has no such column"):
        ranklet.polars.rank(frame, tiny_ranker, "gone")
    with pytest.raises(InputError, match=r"exclude is \['1'\], and the frame has no such column"):
        ranklet.polars.rank(frame, tiny_ranker, exclude=["1"])
    with pytest.raises(InputError, match="exclude is 'gone'"):
        ranklet.polars.rank(frame, tiny_ranker, exclude="gone")
    with pytest.raises(InputError, match="a column scores already"):
        ranklet.polars.rank(frame, tiny_ranker)


def test_the_example_of_duckdb_ranks_every_user(tmp_path: Path, shipped_bundle: Path) -> None:
    pytest.importorskip("duckdb", reason="duckdb is not installed")
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    rows = [(user, str(item), item) for user in range(9) for item in range(1, 4 + user)]
    events = pl.DataFrame(rows, ["user_id", "item_id", "timestamp"], orient="row")
    events.write_parquet(tmp_path / "events.parquet")
    script = ROOT / "examples" / "duckdb_rank.py"
    words = [sys.executable, script, shipped_bundle, tmp_path / "events.parquet", tmp_path / "out"]
    subprocess.run(words, check=True)
    best = pl.read_parquet(tmp_path / "out")
    assert best["user_id"].value_counts()["count"].to_list() == [10] * 9
    ranker = Ranker.load(shipped_bundle)
    expected = list(ranker.rank([str(item) for item in range(1, 12)]).items)
    assert best.filter(user_id=8).sort("score", descending=True)["item_id"].to_list() == expected
