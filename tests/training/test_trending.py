"""Trending items are counted in the last days of the training log, and travel with the run."""

from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ranklet_training.data.events import Events, read_events
from ranklet_training.data.sequences import Sequences
from ranklet_training.data.simulator import Simulation
from ranklet_training.data.split import Split, split_events
from ranklet_training.data.trending import recent_events
from ranklet_training.runs.presets import configure
from ranklet_training.runs.start import start_run

LAST = datetime(2024, 5, 1, 12, tzinfo=timezone.utc)


def log(days: float) -> pl.DataFrame:
    """Return 500 events of 30 users on 20 items, spread over the days before ``LAST``."""
    random = np.random.default_rng(0)
    ago = [0.0, days, *random.uniform(0, days, 498)]
    return pl.DataFrame(
        {
            "user_id": [f"u{user}" for user in random.integers(0, 30, 500)],
            "item_id": [f"i{item:02}" for item in random.integers(0, 20, 500)],
            "timestamp": [LAST - timedelta(days=day) for day in ago],
        }
    )


@pytest.mark.parametrize(("days", "counted"), [(90, 7), (28.5, 7), (28, 2.8), (3, 0.3)])
@pytest.mark.parametrize("unit", ["us", "ms", "s"])
def test_recent_events_are_those_of_a_group_by(days: float, counted: float, unit: str) -> None:
    table = log(days)
    is_recent = pl.col("timestamp") >= LAST - timedelta(days=counted)
    table = table.with_columns(pl.col("timestamp").dt.replace_time_zone(None).dt.epoch(unit))
    events = read_events(table)
    assert events.time_unit == unit
    split = split_events(events.frame, "none")
    recent = recent_events(split.training, len(split.vocabulary), events.time_unit)
    expected = log(days).filter(is_recent).group_by("item_id").len().sort("item_id")
    found = dict(zip(split.vocabulary.all_ids, recent.counts[1:].tolist(), strict=True))
    assert {item: count for item, count in found.items() if count} == dict(expected.iter_rows())
    assert recent.end == events.span[1]


def test_numbers_of_an_unknown_unit_count_the_last_tenth() -> None:
    training = Sequences(np.array([1, 2, 3, 3]), np.array([0, 4]), times=np.array([0, 89, 90, 100]))
    recent = recent_events(training, 4, "")
    assert (recent.begin, recent.end, recent.counts.tolist()) == (90, 100, [0, 0, 0, 2, 0])


def test_events_of_one_instant_are_all_recent() -> None:
    training = Sequences(np.array([1, 2]), np.array([0, 2]), times=np.array([5, 5]))
    assert recent_events(training, 2, "s").counts.tolist() == [0, 1, 1]


def test_a_run_keeps_what_was_recent_in_its_training(
    tmp_path: Path, events: Events, split: Split, world: Simulation
) -> None:
    run = start_run(tmp_path / "run", configure({"width": 8}), events, split, world.items)
    recent = recent_events(split.training, len(split.vocabulary), events.time_unit)
    assert run.catalogue["recent_events"].to_list() == recent.counts[1:].tolist()
    expected = {"from": recent.begin, "to": recent.end, "events": int(recent.counts.sum())}
    assert run.data["recent"] == expected
    assert 0 < expected["events"] < len(split.training.items)
