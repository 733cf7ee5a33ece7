"""Cold starts, bundles with random weights, and the bytes that a call must read."""

import math
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ranklet import InputError, Manifest, Ranker, RankletError
from ranklet.bundle import CODE_BITS, DATA, ENCODER, GRAPH, File, Precision, Table
from ranklet_cli.bench.bundles import check_export, cold_start, make_random, random_shape
from ranklet_cli.bench.limit import last_cache, least_bytes
from ranklet_cli.bench.run import Sweep, benchmark
from ranklet_cli.bench.show import format_report
from ranklet_export.export import Settings

RUNS = 100


def test_a_fresh_process_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RankletError, match=r"can't rank: .*BundleError: .* is not a bundle"):
        cold_start(tmp_path, "cpu", 1, [], 10)


def test_a_fresh_process_loads_no_heavy_package(
    tiny_bundle: Path, tiny_ranker: Ranker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heavy = ("torch", "onnx", "polars", "click", "matplotlib")
    for name in heavy:  # found before the real ones
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / name)!r}, 'x').close()")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    history = tiny_ranker.vocabulary.ids(np.array([1, 2]))
    cold_start(tiny_bundle, "cpu", 1, history, 10)
    assert [name for name in heavy if (tmp_path / name).exists()] == []


def test_random_catalogues_have_rows_of_their_own(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def make(like: Manifest, items: int, precision: str, folder: Path) -> Path:
        made.append((items, precision))
        return tiny_bundle

    monkeypatch.setattr("ranklet_cli.bench.bundles.make_random", make)
    sweep = Sweep("cpu", lengths=(5,), catalogues=(60,), precisions=("fp32",), loads=(), runs=RUNS)
    report = benchmark(tiny_bundle, sweep)
    assert made == [(60, "fp32")]
    assert [facts.is_random for facts in report.bundles] == [False, True]
    assert [row.is_random for row in report.measurements] == [False, True]
    assert [row.is_random for row in report.appends] == [False, True]
    assert "random weights: 60 items, int8" in format_report(report)


@pytest.mark.slow  # exports
def test_a_random_bundle_has_the_shape_of_the_timed_one(tiny_bundle: Path, tmp_path: Path) -> None:
    tiny = Manifest.read(tiny_bundle)
    manifest = Manifest.read(make_random(tiny, 130, "fp32", tmp_path))
    assert (manifest.items, manifest.precision, manifest.opset) == (130, "fp32", tiny.opset)
    assert manifest.training["model"] == {**tiny.training["model"], "dropout": 0.0}


def test_a_seed_model_has_no_random_catalogue(tiny_bundle: Path) -> None:
    manifest = replace(Manifest.read(tiny_bundle), training={"model": {"kind": "seed"}})
    with pytest.raises(InputError, match="is of a sequence model, this one is seed"):
        random_shape(manifest, 130)


def test_without_the_export_extra_a_catalogue_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"needs onnx: pip install 'ranklet\[export\]'"):
        check_export()


@pytest.mark.parametrize("rows", [0, 101 * 3 * 32], ids=["compact", "with rows"])
@pytest.mark.parametrize(
    ("precision", "type", "stored", "read"),
    [
        ("int8", "<f4", 128 * (4 * 32 + 32 + 4), 128 * (32 + 4)),  # table, codes and scales
        ("int4", "<f4", 128 * (4 * 32 + 16 + 4), 128 * (16 + 4)),
        ("fp16", "<f2", 128 * 2 * 32, 128 * 4 * 32),
        ("fp32", "<f4", 128 * 4 * 32, 128 * 4 * 32),
    ],
)
def test_the_least_bytes_are_what_is_scored_bias_and_encoder(
    tiny_bundle: Path, precision: Precision, type: Any, stored: int, read: int, rows: int
) -> None:
    tiny, weights, graph = Manifest.read(tiny_bundle), 5000, 1000
    data = File(stored + rows * np.dtype(type).itemsize + weights, "")
    # 100 items and padding are two chunks of 64 rows.
    manifest = replace(
        tiny,
        precision=precision,
        table=Table(DATA, 0, 101, 32, type),
        files={**tiny.files, DATA: data, ENCODER: File(graph, "")},
    )
    assert least_bytes(manifest) == read + 4 * 128 + weights + graph


@pytest.mark.slow  # exports
@pytest.mark.parametrize(
    ("settings", "model"),
    [
        (Settings(precision="int8"), {"width": 64, "heads": 1}),
        (Settings(precision="int4"), {"width": 128, "heads": 2}),
        (Settings(precision="fp16"), {"width": 64, "heads": 2, "block": "gated"}),
        (Settings(precision="fp32", compact=True), {"width": 64, "heads": 1}),
    ],
    ids=["int8", "int4", "gated fp16", "compact fp32"],
)
def test_the_least_bytes_are_those_of_the_graphs(
    exported: Callable[..., Any], settings: Settings, model: dict[str, Any]
) -> None:
    ranker = exported(settings, items=1000, **model).ranker
    graph = onnx.load(ranker.graphs._folder / GRAPH, load_external_data=False).graph
    looked_up = ("rows.", *(["table"] if settings.precision in CODE_BITS else []))
    arrays = [i for i in graph.initializer if not i.name.startswith(looked_up)]
    sizes = [4 if i.data_type == onnx.TensorProto.FLOAT16 else i.data_type for i in arrays]
    numbers = {onnx.TensorProto.FLOAT: 4, onnx.TensorProto.UINT8: 1, onnx.TensorProto.INT64: 8}
    bias = 4 * 1024
    expected = bias + sum(
        math.prod(i.dims) * numbers.get(size, size) for i, size in zip(arrays, sizes, strict=True)
    )
    # Arrays begin at a page, and encoder.onnx holds nodes, too.
    slack = 4096 * len(arrays) + ranker.manifest.files[ENCODER].size
    assert expected <= least_bytes(ranker.manifest) <= expected + slack
    assert slack < ranker.manifest.files[DATA].size / 3


def test_the_last_cache_is_the_largest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ranklet_cli.bench.limit.CACHE", tmp_path)
    assert last_cache() == 32 << 20  # where the system does not say
    for place, size in enumerate(["48K\n", "strange", "", "3M\n", "2048K\n"]):
        (tmp_path / f"index{place}").mkdir()
        (tmp_path / f"index{place}" / "size").write_text(size)
    assert last_cache() == 3 << 20
