"""A comparison finds changes, and does not take noise or another machine for one."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ranklet import InputError
from ranklet_cli.bench.report import (
    REPORT_FORMAT,
    Append,
    Bandwidth,
    BenchReport,
    BundleFacts,
    Load,
    Measurement,
    Setting,
    compare,
    ratio_interval,
    read_report,
    verdict,
)

MACHINE: dict[str, str | int] = {"cpu": "slow", "cores": 2, "onnxruntime": "1.32.0"}
BLOCKS = [0.9, 1.0, 1.1, 1.0, 0.95, 1.05, 1.0, 1.02, 0.98, 1.0]


def made(lengths: Sequence[int] = (10, 50), *, times: float = 1.0) -> BenchReport:
    """Make a report whose calls take ``times`` as long."""
    blocks = [times * block for block in BLOCKS]
    settings = [vars(Setting(60, "int8", False, "cpu", 1, 1, length, 10)) for length in lengths]
    return BenchReport(
        report_format=REPORT_FORMAT,
        bundle="models/tiny",
        ranklet="0.1.0",
        machine=MACHINE,
        bandwidths=[Bandwidth(1, 10.0)],
        bundles=[BundleFacts("models/tiny", 60, "int8", False, 2, 9999, 150.0, None)],
        loads=[Load(60, "int8", False, 1, "cpu", 9.0, None)],
        measurements=[
            Measurement(
                **s,
                runs=200,
                p50_ms=times,
                p95_ms=2 * times,
                p99_ms=3 * times,
                p99_9_ms=None,
                mean_ms=times,
                users_per_second=1e3 / times,
                session_p50_ms=0.9 * times,
                read_bytes=10_000,
                limit_ms=0.001,
                blocks_ms=blocks,
            )
            for s in settings
        ],
        waiting=[],  # test_bench_command.py reads a report with all rows
        stages=[],
        appends=[
            Append(**s, append_p50_ms=times, rank_p50_ms=1.0, blocks_ms=blocks) for s in settings
        ],
    )


def test_a_report_does_not_differ_from_itself() -> None:
    comparison = compare(made(), made(), "old.json")
    assert len(comparison.changes) == 4  # two lengths, ranked and appended
    assert {change.verdict for change in comparison.changes} == {"no difference"}
    assert {change.ratio for change in comparison.changes} == {1.0}
    assert comparison.warnings == comparison.only_new == comparison.only_old == []


@pytest.mark.parametrize(
    ("times", "word"), [(0.5, "faster"), (1.02, "no difference"), (2.0, "slower")]
)
def test_a_change_has_a_word(times: float, word: str) -> None:
    for change in compare(made(times=times), made(), "old.json").changes:
        assert change.verdict == word
        assert change.ratio == pytest.approx(times)
        assert change.low <= change.ratio <= change.high
        assert change.new_p50_ms == pytest.approx(times * change.old_p50_ms)


def test_blocks_without_noise_have_an_interval_of_no_width() -> None:
    assert ratio_interval([3.0] * 10, [2.0] * 10) == (1.5, 1.5, 1.5)


@pytest.mark.parametrize(
    ("interval", "word"),
    [
        ((0.90, 0.96), "no difference"),
        ((0.90, 0.95), "faster"),
        ((1.04, 1.20), "no difference"),
        ((1.06, 1.20), "slower"),
    ],
)
def test_a_word_needs_the_whole_interval(interval: tuple[float, float], word: str) -> None:
    assert verdict(*interval) == word


def test_most_intervals_hold_the_true_ratio() -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        old, new = random.lognormal(0, 0.05, (2, 30))
        _, low, high = ratio_interval((1.2 * new).tolist(), old.tolist())
        held += low <= 1.2 <= high
    assert 88 <= held <= 100  # 95 are meant


def test_calls_that_one_report_lacks_are_named() -> None:
    comparison = compare(made((10, 50)), made((50, 200)), "old.json")
    assert [change.case for change in comparison.changes] == [
        "BUNDLE, batch 1, 50 events, top 10, 1 thread on cpu",
        "BUNDLE, batch 1, 50 events, top 10, 1 thread on cpu, appended",
    ]
    assert comparison.only_new == ["BUNDLE, batch 1, 10 events, top 10, 1 thread on cpu"]
    assert comparison.only_old == ["BUNDLE, batch 1, 200 events, top 10, 1 thread on cpu"]


def test_another_machine_is_a_warning() -> None:
    old = replace(made(), machine={**MACHINE, "cpu": "quick", "gpu": "H100"})
    comparison = compare(made(), old, "old.json")
    assert comparison.warnings == ["another machine: cpu quick, now slow; gpu H100, now None"]
    assert len(comparison.changes) == 4


def test_another_format_or_precision_of_the_bundle_is_a_warning() -> None:
    (facts,) = made().bundles
    old = replace(made(), bundles=[replace(facts, format=1, precision="fp32")])
    old = replace(old, measurements=[replace(m, precision="fp32") for m in old.measurements])
    comparison = compare(made(), old, "old.json")
    assert comparison.warnings == [
        "another BUNDLE: 60 items fp32 of format 1, now 60 items int8 of format 2"
    ]
    assert comparison.only_new == []  # one BUNDLE takes the place of the other


def test_random_catalogues_are_told_apart_by_size_and_precision() -> None:
    names = {
        Setting(items, precision, True, "cpu", 2, 1, 9, 10).name
        for items in (60, 70)
        for precision in ("int8", "fp32")
    }
    assert len(names) == 4
    assert "60 random items int8, batch 1, 9 events, top 10, 2 threads on cpu" in names


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps(asdict(made())))
    assert read_report(tmp_path / "old.json") == made()


def test_the_comparison_of_an_older_report_is_left_behind(tmp_path: Path) -> None:
    report = replace(made(), comparison=compare(made(), made(), "older.json"))
    (tmp_path / "old.json").write_text(json.dumps(asdict(report)))
    assert read_report(tmp_path / "old.json") == made()


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in asdict(made()).items() if key != name}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "is not a report of ranklet bench --json"),
        ({"measurements": []}, "is not a report of ranklet bench --json: KeyError"),
        (without("stages"), "is not a report .*stages"),
        ({**asdict(made()), "more": 1}, "is not a report .*more"),
        ({**asdict(made()), "loads": [{"threads": 1}]}, "is not a report"),
        ({**asdict(made()), "report_format": 9}, "has report format 9, .* compares 2"),
        ({**asdict(made()), "bundles": []}, "run ranklet bench --json with this version"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, document: Any, message: str) -> None:
    (tmp_path / "old.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=message):
        read_report(tmp_path / "old.json")


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_bytes(b"\xff\xfe no")
    with pytest.raises(InputError, match="is not a report"):
        read_report(tmp_path / "old.json")
