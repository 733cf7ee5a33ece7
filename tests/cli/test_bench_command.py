"""``ranklet bench``: one document on stdout, a table without --json."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ranklet_cli.group import cli


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["bench", *map(str, arguments)])


@pytest.fixture(scope="module")
def old(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What --json printed."""
    options = ("--length", "5", "--runs", 100, "--load", "30", "--thread-sweep", "1,2")
    result = call(tiny_bundle, *options, "--json")
    assert result.exit_code == 0, result.output
    path = tmp_path_factory.mktemp("bench") / "old.json"
    path.write_text(result.stdout)
    return path


def test_json_is_one_document(old: Path) -> None:
    report = json.loads(old.read_text())
    assert [m["threads"] for m in report["measurements"]] == [1, 2]
    assert {w["load_percent"] for w in report["waiting"]} == {30}
    assert report["comparison"] is None


def test_a_table_and_a_plot_beside_an_older_report(
    tiny_bundle: Path, old: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="plots are an extra")
    picture = tmp_path / "latency.png"
    options = ("--length", "5", "--runs", 100, "--load", "none", "-k", "5,10")
    result = call(tiny_bundle, *options, "--compare", old, "--plot", picture)
    assert result.exit_code == 0, result.output
    assert f"compared with {old}" in result.stdout
    assert "new here: BUNDLE, batch 1, 5 events, top 5, 1 thread on cpu" in result.stdout
    assert "not timed here: BUNDLE, batch 1, 5 events, top 10, 2 threads" in result.stdout
    assert "at random times" not in result.stdout
    assert "loading" in result.stderr
    assert picture.exists()


def test_a_report_that_cannot_be_read_ends_before_anything_is_timed(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "old.json").write_text("{}")
    result = call(tiny_bundle, "--compare", tmp_path / "old.json")
    assert result.exit_code == 4
    assert "is not a report of ranklet bench --json" in result.stderr
    assert "loading" not in result.stderr


def test_a_precision_without_a_catalogue_is_refused(tiny_bundle: Path) -> None:
    result = call(tiny_bundle, "--precision", "int8,fp32")
    assert result.exit_code == 4
    assert "pass --catalogue, too" in result.stderr
