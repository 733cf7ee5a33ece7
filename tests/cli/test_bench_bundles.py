"""Cold starts, bundles with random weights, and the bytes that a call must read."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ranklet import InputError, Manifest, Ranker, RankletError
from ranklet.bundle.manifest import ENCODE, SCORE
from ranklet_cli.bench.bundles import check_export, cold_start, make_random, random_shape
from ranklet_cli.bench.limit import last_cache, least_bytes
from ranklet_cli.bench.run import Sweep, benchmark
from ranklet_cli.bench.show import format_report

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


@pytest.mark.slow
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
    assert (manifest.items, manifest.precision) == (130, "fp32")
    assert manifest.training["model"] == {**tiny.training["model"], "dropout": 0.0}


def test_a_seed_model_has_no_random_catalogue(tiny_bundle: Path) -> None:
    manifest = replace(Manifest.read(tiny_bundle), training={"model": {"kind": "seed"}})
    with pytest.raises(InputError, match="is of a sequence model, this one is seed"):
        random_shape(manifest, 130)


def test_without_the_export_extra_a_catalogue_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"needs onnx: pip install '\.\[export\]' in "):
        check_export()


def test_the_least_bytes_are_scanned_weights_and_the_bias(tiny_bundle: Path) -> None:
    tiny = Manifest.read(tiny_bundle)
    programs = dict(tiny.programs)
    for name, size in ((ENCODE, 1000), (SCORE, 5000)):
        programs[name] = replace(programs[name], scanned_bytes=size)
    assert least_bytes(replace(tiny, programs=programs)) == 6000 + 4 * (tiny.items + 1)


def test_the_last_cache_is_the_largest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ranklet_cli.bench.limit.CACHE", tmp_path)
    assert last_cache() == 32 << 20  # where the system does not say
    for place, size in enumerate(["48K\n", "strange", "", "3M\n", "2048K\n"]):
        (tmp_path / f"index{place}").mkdir()
        (tmp_path / f"index{place}" / "size").write_text(size)
    assert last_cache() == 3 << 20
