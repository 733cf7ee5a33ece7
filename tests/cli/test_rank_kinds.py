"""``ranklet rank`` with kinds of events: of a history, of rows and of an event log."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from commands import ask, call, run
from ranklet import Manifest, Ranker

HISTORY, KINDS = ["i00003", "i00007", "i00003"], ["view", None, "buy"]


@pytest.fixture(scope="module")
def ranker(exported: Callable[..., Any]) -> Ranker:
    loaded: Ranker = exported(kinds="use").ranker
    assert loaded.kinds == ["buy", "cart", "view"]
    return loaded


def test_kinds_and_weights_are_those_of_python(ranker: Ranker) -> None:
    how = ["rank", ranker.path, "--history", ",".join(HISTORY)]
    for options, arguments in (
        (["--kinds", "view,,buy"], {"kinds": KINDS}),
        (["--objective", "cart"], {"objective": "cart"}),
        (
            ["--kinds", "view,,buy", "--objective", "buy=1,view=-.5"],
            {"kinds": KINDS, "objective": {"buy": 1, "view": -0.5}},
        ),
    ):
        expected = ranker.rank(HISTORY, **arguments)  # type: ignore[arg-type]
        assert ask(*how, *options)["items"] == expected.items
        assert expected.items != ranker.rank(HISTORY).items


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kinds", "view"], "kinds has 1 kinds for 3 events"),
        (["--kinds", "view,view,sell"], "kinds[2] is 'sell'"),
        (["--objective", "sell"], "a kind of objective is 'sell'"),
        (["--objective", "buy=0"], "objective has no weight but 0"),
    ],
)
def test_a_kind_that_can_not_be_used_is_named(
    options: list[str], message: str, ranker: Ranker
) -> None:
    result = call("rank", ranker.path, "--history", ",".join(HISTORY), *options)
    assert result.exit_code == 4
    assert message in result.stderr


def test_rows_and_an_event_log_have_kinds(ranker: Ranker, tmp_path: Path) -> None:
    rows = [{"user_id": "a", "history": HISTORY, "kinds": KINDS}, {"history": HISTORY}]
    (tmp_path / "h.jsonl").write_text("\n".join(map(json.dumps, rows)))
    log = {"user_id": ["a"] * 3, "item_id": HISTORY, "timestamp": [1, 2, 3]}
    pl.DataFrame({**log, "event": ["view", "sell", "buy"]}).write_csv(tmp_path / "log.csv")
    how = ["rank", ranker.path, "--objective", "cart", "--input"]
    found = [json.loads(row) for row in run(*how, tmp_path / "h.jsonl").stdout.splitlines()]
    expected = [
        ranker.rank(HISTORY, kinds=kinds, objective="cart").items for kinds in (KINDS, None)
    ]
    assert [row["items"] for row in found] == expected
    of_log = run(*how, tmp_path / "log.csv")
    assert json.loads(of_log.stdout.splitlines()[-1])["items"] == expected[0]
    assert "the bundle lacks 1 kinds of events, first 'sell'" in of_log.stderr


def test_a_log_needs_no_ratings_if_the_model_ignores_their_kinds(
    exported: Any, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(exported().ranker.path, tmp_path / "bundle"))
    manifest = Manifest.read(bundle)
    facts = {**manifest.data, "reading": {"rating_kinds": "like=4,low=0"}}
    replace(manifest, data=facts).write(bundle)
    log = {"user_id": ["a"] * 3, "item_id": HISTORY, "timestamp": [1, 2, 3]}
    pl.DataFrame(log).write_csv(tmp_path / "log.csv")
    found = run("rank", bundle, "--input", tmp_path / "log.csv").stdout.splitlines()[-1]
    assert json.loads(found)["items"] == Ranker.load(bundle, provider="cpu").rank(HISTORY).items
