"""Fuzz targets: each takes bytes, and may raise nothing but the errors of ranklet."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import polars as pl

from ranklet import Manifest, Ranker, RankletError
from ranklet.bundle.folder import read_popularity, read_titles, read_vocabulary
from ranklet.bundle.graph import check_graphs, stored_tensors
from ranklet.saved_user import DIGEST_BYTES, MAGIC
from ranklet_training.data.events import read_events

SHIPPED = Path(__file__).parents[2] / "models" / "ml-latest-small"
WEIGHTS_BYTES = (SHIPPED / "weights.bin").stat().st_size
FOLDER = Path(mkdtemp(prefix="ranklet-fuzz-"))


@dataclass(frozen=True)
class Target:
    """What is fuzzed, and inputs to begin with."""

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]


def manifest(data: bytes) -> None:
    """Read a bundle with another manifest, whose digests nobody checks."""
    bundle = FOLDER / "bundle"
    if not bundle.exists():
        shutil.copytree(SHIPPED, bundle)
    (bundle / "manifest.json").write_bytes(data)
    with suppress(RankletError):
        read = Manifest.read(bundle, check_digests=False)
        check_graphs(bundle, read, with_weights=False)
        read_vocabulary(bundle, read), read_titles(bundle, read), read_popularity(bundle, read)


def graph(data: bytes) -> None:
    """Check a graph; its caller turns these two errors into one of ranklet."""
    with suppress(ValueError, IndexError):
        list(stored_tensors(data, WEIGHTS_BYTES))


def saved_user(data: bytes) -> None:
    """Load a saved user of another header and other numbers, whose digest is right."""
    header, _, rest = data.partition(b"\n")
    body = MAGIC + len(header).to_bytes(4, "little") + header + rest
    with suppress(RankletError):
        ranker = _ranker()
        ranker.user().load(body + hashlib.sha256(body).digest()).rank(3)


def csv(data: bytes) -> None:
    """Read a log as CSV."""
    _read(data, "log.csv")


def jsonl(data: bytes) -> None:
    """Read a log as JSON Lines."""
    _read(data, "log.jsonl")


def parquet(data: bytes) -> None:
    """Read a log as Parquet."""
    _read(data, "log.parquet")


def _read(data: bytes, name: str) -> None:
    path = FOLDER / name
    path.write_bytes(data)
    with suppress(RankletError):
        read_events(path)


@cache
def _ranker() -> Ranker:
    return Ranker.load(SHIPPED, provider="cpu")


def _saved() -> list[bytes]:
    user = _ranker().user(["1", "nowhere", "2571"])
    saved = [user.save()]
    user.rank()
    saved.append(user.save())
    begin = len(MAGIC) + 4
    parts = []
    for data in saved:
        end = begin + int.from_bytes(data[len(MAGIC) : begin], "little")
        parts.append(data[begin:end] + b"\n" + data[end:-DIGEST_BYTES])
    return parts


def _manifests() -> list[bytes]:
    whole = json.loads((SHIPPED / "manifest.json").read_bytes())
    few = {**whole, "training": {}, "data": {}, "quality": {}, "versions": {}}
    return [json.dumps(document).encode() for document in (whole, few)]


def _parquets() -> list[bytes]:
    frame = pl.DataFrame({"user_id": [1, 1, 2], "item_id": ["a", "b", "a"], "timestamp": [1, 2, 3]})
    file = io.BytesIO()
    frame.write_parquet(file)
    return [file.getvalue()]


def _corpus(name: str) -> Callable[[], list[bytes]]:
    folder = Path(__file__).parent / "corpus" / name
    return lambda: [path.read_bytes() for path in sorted(folder.iterdir())]


TARGETS = {
    "manifest": Target(manifest, _manifests),
    "graph": Target(graph, lambda: [(SHIPPED / "score.onnx").read_bytes()]),
    "saved_user": Target(saved_user, _saved),
    "csv": Target(csv, _corpus("csv")),
    "jsonl": Target(jsonl, _corpus("jsonl")),
    "parquet": Target(parquet, _parquets),
}
