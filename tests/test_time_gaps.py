"""Models that know when events happened, from the log to the bundle."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from ranklet import Ranker
from ranklet.errors import RunError
from ranklet.time_gaps import UNKNOWN, gap_buckets
from ranklet.verify import verify
from ranklet_cli.group import cli
from ranklet_export.export import export_bundle
from ranklet_training.data.events import Events, read_events
from ranklet_training.data.sequences import epoch_batches
from ranklet_training.data.split import Split, split_events
from ranklet_training.judge.evaluate import evaluate, rank_targets
from ranklet_training.judge.subjects import subject_of
from ranklet_training.runs.checkpoint import Run
from ranklet_training.runs.presets import configure
from ranklet_training.runs.start import start_run
from ranklet_training.runs.train import train

FOUR_DIGITS = 5e-5
HOUR, MONTH = 3600, 30 * 86_400
ITEMS = 20


@pytest.fixture(scope="module")
def timed_events() -> Events:
    """A world whose time is all: after an hour comes the next item, after a month the same again.

    Nothing but the gap tells which of the two follows.
    """
    random = np.random.default_rng(0)
    rows = []
    for user in range(300):
        item, now = int(random.integers(ITEMS)), int(random.integers(MONTH))
        for _ in range(12):
            rows.append((f"u{user}", f"i{item:02}", now))
            is_soon = bool(random.integers(2))
            now += HOUR if is_soon else MONTH
            item = (item + 1) % ITEMS if is_soon else item
    return read_events(pl.DataFrame(rows, ["user_id", "item_id", "timestamp"], orient="row"))


@pytest.fixture(scope="module")
def timed_split(timed_events: Events) -> Split:
    return split_events(timed_events.frame)


def train_one(path: Path, events: Events, split: Split, **settings: Any) -> Run:
    base = {"width": 16, "max_length": 16, "epochs": 8, "targets_per_step": 64, "dropout": 0.0}
    run = start_run(path, configure({**base, **settings}), events, split)
    train(run, split, show_progress=False)
    return run


@pytest.fixture(scope="module")
def timed_run(
    tmp_path_factory: pytest.TempPathFactory, timed_events: Events, timed_split: Split
) -> Run:
    path = tmp_path_factory.mktemp("timed") / "run"
    return train_one(path, timed_events, timed_split, time_gaps=True)


@pytest.fixture(scope="module")
def timed_ranker(timed_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Ranker:
    bundle = tmp_path_factory.mktemp("timed-bundle") / "bundle"
    export_bundle(timed_run.path, bundle)
    return Ranker.load(bundle, provider="cpu")


def top_hits(run: Run, split: Split) -> float:
    scorer = subject_of("run", run, split).model
    ranks = rank_targets(scorer, split.test, mask_seen=False).ranks
    return float((ranks == 1).mean())


def test_gaps_tell_what_order_cannot(
    timed_run: Run, timed_events: Events, timed_split: Split, tmp_path: Path
) -> None:
    blind = train_one(tmp_path / "run", timed_events, timed_split)
    # A model of order alone can be right in half of the cases, and not in more.
    assert top_hits(blind, timed_split) < 0.65
    assert top_hits(timed_run, timed_split) > 0.9


def test_run_and_bundle_agree_with_times(
    timed_run: Run, timed_ranker: Ranker, timed_split: Split
) -> None:
    table = evaluate({"run": timed_run.load_model(), "bundle": timed_ranker}, timed_split)
    of_run, of_bundle = table["rows"][:2]
    for part in ("masked", "unmasked"):
        assert of_run[part] == pytest.approx(of_bundle[part], abs=FOUR_DIGITS)


@pytest.mark.parametrize(("now", "expected"), [(2 * HOUR, "i05"), (HOUR + MONTH, "i04")])
def test_answers_depend_on_the_time_of_the_question(
    now: int, expected: str, timed_ranker: Ranker
) -> None:
    assert timed_ranker.rank(["i03", "i04"], times=[0, HOUR], now=now).items[0] == expected
    user = timed_ranker.user(["i03"], times=[0])
    user.append("i04", time=HOUR)
    assert user.rank(now=now).items[0] == expected
    bundle = str(timed_ranker.path)
    command = ["rank", bundle, "--history", "i03,i04", "--times", f"0,{HOUR}", "--now", str(now)]
    printed = CliRunner().invoke(cli, [*command, "--json"]).stdout
    assert json.loads(printed)["items"][0] == expected


def test_a_bundle_with_times_ranks_without_them(timed_ranker: Ranker, run_example: Any) -> None:
    assert timed_ranker.uses_times
    items, _ = run_example(timed_ranker.path, ["i03", "i04"])
    assert set(items[:2]) == {"i04", "i05"}
    assert items == timed_ranker.rank(["i03", "i04"]).items
    assert verify(timed_ranker.path, provider="cpu").golden > 0


def test_batches_hold_the_gaps_of_their_events(timed_split: Split) -> None:
    training = timed_split.training
    assert training.times is not None
    for batch in epoch_batches(
        training, windows="all", length=4, targets=32, seed=0, epoch=0, with_gaps=True
    ):
        assert batch.since is not None
        assert batch.until is not None
        for row, user in enumerate(batch.users):
            inside = int((batch.targets[row] > 0).sum())
            items, begin = training[user], training.offsets[user]
            times = training.times[begin : begin + len(items)]
            # Where the window lies: its events are found again in the user's own.
            events = [*batch.history[row, :inside], batch.targets[row, inside - 1]]
            gaps = gap_buckets(np.diff(times))
            starts = [
                start
                for start in range(len(items) - inside)
                if items[start : start + inside + 1].tolist() == events
                and (gaps[start : start + inside] == batch.until[row, :inside]).all()
            ]
            assert starts
            assert batch.since[row, 0] in [gaps[s - 1] if s else UNKNOWN for s in starts]
            assert (batch.since[row, 1:inside] == batch.until[row, : inside - 1]).all()
            assert not batch.since[row, inside:].any()
            assert not batch.until[row, inside:].any()


def test_fractions_of_time_are_refused(timed_events: Events, tmp_path: Path) -> None:
    frame = timed_events.frame.with_columns(pl.col("timestamp") + 0.5)
    events = read_events(frame)
    with pytest.raises(RunError, match="time_gaps needs whole timestamps"):
        train_one(tmp_path / "run", events, split_events(events.frame), time_gaps=True)
