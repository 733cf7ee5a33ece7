"""Rankings of datasets on a real cluster of Ray, on this machine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engines import check_ranked, deadly_option, draw_users
from ranklet import InputError, Manifest, Ranker

of_ray = pytest.importorskip("ranklet.ray", reason="needs pip install 'ranklet[ray]'")
ray = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own settings
MEMORY = {"object_store_memory": 1 << 28}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # else a token is written into the home folder
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, **MEMORY)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def users(tiny_ranker: Ranker) -> pa.Table:
    return draw_users(tiny_ranker)


def collect(dataset: Any) -> pa.Table:
    return pa.concat_tables(ray.get(dataset.to_arrow_refs()))


def test_every_user_is_ranked_once_like_a_batch_though_an_actor_dies(
    users: pa.Table, tiny_bundle: Path, tiny_ranker: Ranker, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(of_ray, "BATCH", 20)
    pq.write_table(users, tmp_path / "users.parquet")
    dataset, deadly = ray.data.read_parquet(str(tmp_path)), deadly_option(tmp_path / "died")
    ranked = of_ray.rank(dataset, tiny_bundle, k=4, exclude="dropped", at_most=deadly)
    ranked.write_parquet(str(tmp_path / "ranked"))
    assert (tmp_path / "died").exists()
    dropped = users["dropped"].to_pylist()
    check_ranked(pq.read_table(tmp_path / "ranked"), users, tiny_ranker, k=4, exclude=dropped)


@pytest.mark.slow
def test_named_filters_and_integer_ids_travel(number_bundle: Path) -> None:
    ranker = Ranker.load(number_bundle, provider="cpu")
    ranker.define("few", ranker.ids[:9])
    users = draw_users(ranker, 10)
    ranked = collect(of_ray.rank(ray.data.from_arrow(users), ranker, where="few", concurrency=1))
    assert ranked.schema.field("items").type == pa.list_(pa.int64())
    check_ranked(ranked, users, ranker, where="few")


@pytest.mark.slow
def test_another_bundle_in_an_actor_is_refused(users: pa.Table, bundle: Path, sign: Any) -> None:
    ranker, manifest = Ranker.load(bundle, provider="cpu"), Manifest.read(bundle)
    sign(bundle, manifest, exclude_seen=not manifest.exclude_seen)
    with pytest.raises(ray.exceptions.RayError, match=f"not {manifest.digest} as where the ranker"):
        of_ray.rank(ray.data.from_arrow(users), ranker).materialize()


def test_what_cannot_be_used_is_refused_before_an_actor_starts(
    users: pa.Table, ranker: Ranker, tiny_bundle: Path, ids: list[str]
) -> None:
    dataset = ray.data.from_arrow(users)
    with pytest.raises(InputError, match="history is 'gone', and the frame has no such column"):
        of_ray.rank(dataset, ranker, "gone")
    with pytest.raises(InputError, match="k must be at least 1, got 0"):
        of_ray.rank(dataset, ranker, k=0)
    with pytest.raises(InputError, match="concurrency must be a whole number from 1 on, got 0"):
        of_ray.rank(dataset, ranker, concurrency=0)
    with pytest.raises(
        InputError, match="Ray has 2 CPUs and 0 GPUs, and an actor takes 2 CPUs and one"
    ):
        of_ray.rank(dataset, Ranker.load(tiny_bundle, provider="cpu", threads=2))
    with pytest.raises(InputError, match="a column scores already"):
        of_ray.rank(ray.data.from_arrow(users.append_column("scores", users["user"])), ranker)
    ranker.remove_items(ids[:1])
    with pytest.raises(InputError, match="items were added, removed or retitled"):
        of_ray.rank(dataset, ranker)
