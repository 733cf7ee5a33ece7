"""Rankings of frames on a real Spark, on this machine."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engines import check_ranked, deadly_option, draw_users
from ranklet import InputError, Manifest, Ranker

of_spark = pytest.importorskip("ranklet.spark", reason="needs pip install 'ranklet[spark]'")
pyspark = pytest.importorskip("pyspark")
pytestmark = [
    pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java"),
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning"),
]


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        builder = pyspark.sql.SparkSession.builder.master("local[2, 2]")  # threads, attempts
        for name, value in {
            "spark.ui.enabled": "false",
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.sql.warehouse.dir": str(tmp_path_factory.mktemp("spark")),
            "spark.sql.execution.arrow.maxRecordsPerBatch": "20",
        }.items():
            builder = builder.config(name, value)
        session = builder.getOrCreate()
        yield session
        session.stop()


@pytest.fixture(scope="module")
def users(tiny_ranker: Ranker) -> pa.Table:
    return draw_users(tiny_ranker)


def test_every_user_is_ranked_once_like_a_batch_though_a_worker_dies(
    spark: Any, users: pa.Table, tiny_bundle: Path, tiny_ranker: Ranker, tmp_path: Path
) -> None:
    pq.write_table(users, tmp_path / "users.parquet")
    frame, deadly = spark.read.parquet(str(tmp_path)), deadly_option(tmp_path / "died")
    ranked = of_spark.rank(frame, tiny_bundle, k=4, exclude="dropped", at_most=deadly)
    ranked.write.parquet(str(tmp_path / "ranked"))
    assert (tmp_path / "died").exists()
    dropped = users["dropped"].to_pylist()
    check_ranked(pq.read_table(tmp_path / "ranked"), users, tiny_ranker, k=4, exclude=dropped)


def test_named_filters_and_integer_ids_travel(spark: Any, number_bundle: Path) -> None:
    ranker = Ranker.load(number_bundle, provider="cpu")
    ranker.define("few", ranker.ids[:9])
    users = draw_users(ranker, 10)
    ranked = of_spark.rank(spark.createDataFrame(users), ranker, where="few")
    assert ranked.schema["items"].dataType.simpleString() == "array<bigint>"
    check_ranked(ranked.toArrow(), users, ranker, where="few")


def test_another_bundle_in_a_worker_is_refused(
    spark: Any, users: pa.Table, bundle: Path, sign: Any
) -> None:
    ranker, manifest = Ranker.load(bundle, provider="cpu"), Manifest.read(bundle)
    sign(bundle, manifest, exclude_seen=not manifest.exclude_seen)
    ranked = of_spark.rank(spark.createDataFrame(users), ranker)
    with pytest.raises(
        pyspark.errors.PySparkException, match=f"not {manifest.digest} as where the ranker"
    ):
        ranked.toArrow()


def test_what_cannot_be_used_is_refused_before_a_worker_starts(
    spark: Any, users: pa.Table, ranker: Ranker, ids: list[str]
) -> None:
    frame = spark.createDataFrame(users)
    with pytest.raises(InputError, match="history is 'gone', and the frame has no such column"):
        of_spark.rank(frame, ranker, "gone")
    with pytest.raises(InputError, match="k must be at least 1, got 0"):
        of_spark.rank(frame, ranker, k=0)
    with pytest.raises(InputError, match="a column scores already"):
        of_spark.rank(frame.withColumnRenamed("user", "scores"), ranker)
    ranker.remove_items(ids[:1])
    with pytest.raises(InputError, match="items were added, removed or retitled"):
        of_spark.rank(frame, ranker)
