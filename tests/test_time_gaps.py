"""Models that know when events happened, from the log to the bundle."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from ranklet import Ranker
from ranklet.errors import InputError, RunError
from ranklet.time_gaps import UNKNOWN, gap_buckets
from ranklet_cli.group import cli
from ranklet_cli.rank_file import rank_file
from ranklet_export.export import export_bundle
from ranklet_training.data.events import Events, read_events
from ranklet_training.data.sequences import epoch_batches
from ranklet_training.data.split import Split, split_events
from ranklet_training.judge.evaluate import evaluate, rank_targets
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
    ranks = rank_targets(run.load_model(), split, split.test, mask_seen=False).ranks
    return float((ranks == 1).mean())


def test_gaps_tell_what_order_cannot(
    timed_run: Run, timed_events: Events, timed_split: Split, tmp_path: Path
) -> None:
    blind = train_one(tmp_path / "run", timed_events, timed_split)
    # A model of order alone can be right in half of the cases, and not in more.
    assert top_hits(blind, timed_split) < 0.65
    assert top_hits(timed_run, timed_split) > 0.9


def test_the_runtime_answers_by_the_time_of_the_question(timed_ranker: Ranker) -> None:
    asked: dict[str, Any] = {"times": [0, HOUR], "k": 1}
    assert timed_ranker.rank(["i03", "i04"], now=2 * HOUR, **asked).items == ["i05"]
    assert timed_ranker.rank(["i03", "i04"], now=HOUR + MONTH, **asked).items == ["i04"]


def test_run_and_bundle_agree_with_times(
    timed_run: Run, timed_ranker: Ranker, timed_split: Split
) -> None:
    table = evaluate({"run": timed_run.load_model(), "bundle": timed_ranker}, timed_split)
    of_run, of_bundle = table["rows"][:2]
    for part in ("masked", "unmasked"):
        assert of_run[part] == pytest.approx(of_bundle[part], abs=FOUR_DIGITS)


def test_a_batch_answers_like_its_rows(timed_ranker: Ranker) -> None:
    histories = [["i01"], ["i05", "i06", "i07"], ["i02", "i03"]]
    times: list[list[int] | None] = [[5], [0, HOUR, MONTH], None]
    now = [HOUR, None, None]
    batch = timed_ranker.rank_batch(histories, times=times, now=now)
    for history, when, instant, found in zip(histories, times, now, batch, strict=True):
        alone = timed_ranker.rank(history, times=when, now=instant)
        assert alone.items == found.items
        np.testing.assert_allclose(alone.scores, found.scores, atol=1e-4)


def test_unknown_items_take_their_time_with_them(timed_ranker: Ranker) -> None:
    whole = timed_ranker.rank(["i03", "new", "i04"], times=[0, 7, HOUR], now=2 * HOUR)
    known = timed_ranker.rank(["i03", "i04"], times=[0, HOUR], now=2 * HOUR)
    assert whole.items == known.items
    assert whole.unknown == 1


def test_a_bundle_with_times_ranks_without_them(timed_ranker: Ranker) -> None:
    assert timed_ranker.uses_times
    assert set(timed_ranker.rank(["i03", "i04"], k=2).items) == {"i04", "i05"}
    assert timed_ranker.rank([], times=[], now=5).cold


@pytest.mark.parametrize(
    ("history", "times", "now", "message"),
    [
        (["i01"], None, 5, "now was given without times"),
        (["i01"], [1, 2], None, "times has 2 times for 1 events: pass one for each"),
        (
            ["i01", "i02"],
            [2, 1],
            None,
            r"times\[1\] is 1, before times\[0\], 2: pass",
        ),
        (["i01"], [7], 6, "now is 6, before the last event of history, 7"),
        (["i01"], [0.5], None, r"times\[0\] is 0.5 \(float\); times are whole numbers"),
        (["i01"], [True], None, r"times\[0\] is True \(bool\)"),
        (["i01"], [2**70], None, r"times\[0\] is 1180591620717411303424, which is outside int64"),
        (["i01"], [1], "soon", r"now is 'soon' \(str\)"),
        (["i01"], "1", None, "times is the text '1'"),
    ],
)
def test_times_that_make_no_sense_are_refused(
    history: list[str], times: Any, now: Any, message: str, timed_ranker: Ranker
) -> None:
    with pytest.raises(InputError, match=message):
        timed_ranker.rank(history, times=times, now=now)


def test_a_bundle_of_order_alone_refuses_times(tiny_ranker: Ranker) -> None:
    some = tiny_ranker.vocabulary.ids(np.array([1]))
    with pytest.raises(InputError, match="this bundle does not use times"):
        tiny_ranker.rank(some, times=[1])


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


def test_the_command_line_ranks_by_time(timed_ranker: Ranker, tmp_path: Path) -> None:
    bundle = str(timed_ranker._opened.folder)
    asked = ["rank", bundle, "--history", "i03,i04", "--times", f"0,{HOUR}", "-k", "1", "--json"]
    for now, expected in ((2 * HOUR, "i05"), (HOUR + MONTH, "i04")):
        result = CliRunner().invoke(cli, [*asked, "--now", str(now)])
        assert json.loads(result.stdout)["items"] == [expected]
    wrong = CliRunner().invoke(cli, [*asked[:5], "soon", "--json"])
    assert wrong.exit_code == 4
    assert "--times takes whole numbers, got 'soon'" in wrong.stderr


def test_an_event_log_tells_its_times(timed_ranker: Ranker, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text(f"user_id,item_id,timestamp\nann,i03,0\nann,i04,{HOUR}\n")
    output = io.BytesIO()
    rank_file(timed_ranker, log, output, k=20)
    expected = timed_ranker.rank(["i03", "i04"], times=[0, HOUR], k=20)
    scores = json.loads(output.getvalue())["scores"]
    np.testing.assert_allclose(scores, expected.scores, atol=1e-5)
    untold = timed_ranker.rank(["i03", "i04"], k=20)
    assert np.abs(np.array(scores) - untold.scores).max() > 1e-3


def test_fractions_of_time_are_refused(timed_events: Events, tmp_path: Path) -> None:
    frame = timed_events.frame.with_columns(pl.col("timestamp") + 0.5)
    events = read_events(frame)
    with pytest.raises(RunError, match="time_gaps needs whole timestamps"):
        train_one(tmp_path / "run", events, split_events(events.frame), time_gaps=True)
