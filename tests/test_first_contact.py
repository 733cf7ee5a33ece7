"""From raw logs, as shops and music services write them, to served answers, by the commands.

The expected events and figures come from the simulators and from slow code here, not from ranklet.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from commands import run
from ranklet import Ranker
from ranklet_training.data.events import read_events
from ranklet_training.data.rows import Columns
from raw_logs import Event, write_music, write_shop

TINY = [f"--set={pair}" for pair in ("width=16", "max_length=32", "epochs=3")]
SHOP = ["--user-column=customer_id", "--item-column=sku", "--timestamp-column=created_at"]
MUSIC = ["--user-column=user", "--item-column=song", "--timestamp-column=played_at"]
LOGS = {
    "shop": (write_shop, "events.csv", "items.csv", [*SHOP, "--title-column=name"]),
    "music": (write_music, "plays.parquet", "songs.parquet", MUSIC),
}


def histories(events: list[Event]) -> dict[str, list[str]]:
    items: dict[str, list[str]] = defaultdict(list)
    for event in sorted(events, key=lambda event: event.time):
        items[event.user].append(event.item)
    return items


def ndcg_by_hand(ranker: Ranker, events: list[Event]) -> float:
    """Ask for the last item of each user with three events or more, as any program would."""
    gains = []
    for items in histories(events).values():
        if len(items) >= 3:
            *history, answer = items if ranker.vocabulary.is_text else map(int, items)
            shown = list(ranker.rank(history, k=10).items)
            gains.append(1 / math.log2(shown.index(answer) + 2) if answer in shown else 0.0)
    return sum(gains) / len(gains)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOGS)
def test_a_raw_log_becomes_served_answers_of_the_quality_that_the_card_states(
    name: str, tmp_path: Path
) -> None:
    write, log, items, columns = LOGS[name]
    events = write(tmp_path)
    trained, final, bundle = tmp_path / "run", tmp_path / "final", tmp_path / "bundle"
    log_path, items_path = tmp_path / log, tmp_path / items
    said = run("train", log_path, "--items", items_path, "--out", trained, *columns, *TINY).stderr
    assert f"{len(events):,} events of" in said
    run("evaluate", trained, log_path)
    run("export", trained, bundle)
    run("verify", bundle)

    ranker = Ranker.load(bundle)
    card = (bundle / "README.md").read_text(encoding="utf-8")
    header, row = re.findall(r"^\| (?:model|run) \|.*$", card, re.MULTILINE)[:2]
    of_card = float(row.split("|")[header.split("|").index(" NDCG@10 ")])
    assert of_card == pytest.approx(ndcg_by_hand(ranker, events), abs=5e-5)
    assert not ranker.exclude_seen  # both logs are full of repeats

    run("train", log_path, "--out", final, "--final", trained)
    run("export", final, bundle, "--replace")
    assert "Held-out figures of the training on the earlier split" in (
        bundle / "README.md"
    ).read_text(encoding="utf-8")
    run("rank", bundle, "--input", log_path, "--output", tmp_path / "ranked.jsonl", "-k", 3)
    rows = [json.loads(line) for line in (tmp_path / "ranked.jsonl").read_text().splitlines()]
    assert {str(row["user_id"]) for row in rows} == {event.user for event in events}
    served = Ranker.load(bundle)
    items_of = histories(events)
    for row in rows[:20]:
        history = items_of[str(row["user_id"])]
        typed: list[Any] = history if served.vocabulary.is_text else [int(i) for i in history]
        assert row["items"] == served.rank(typed, k=3).items
        assert served.titles(row["items"]) != [str(item) for item in row["items"]]


def parts(frame: pl.DataFrame, path: Path) -> None:
    path.mkdir()
    for number, part in enumerate(frame.iter_slices(100)):
        part.write_parquet(path / f"part-{number:05}.parquet")
    (path / "_SUCCESS").touch()


WRITERS: dict[str, Callable[[pl.DataFrame, Path], object]] = {
    "log.csv": lambda frame, path: frame.write_csv(path),
    "log.tsv": lambda frame, path: frame.write_csv(path, separator="\t"),
    "semicolons.csv": lambda frame, path: frame.write_csv(path, separator=";"),
    "log.csv.gz": lambda frame, path: frame.write_csv(path, compression="gzip"),
    "log.jsonl": lambda frame, path: frame.write_ndjson(path),
    "log.parquet": lambda frame, path: frame.write_parquet(path),
    "parts.parquet": parts,
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """A clean frame of the shop's events."""
    events = write_shop(tmp_path_factory.mktemp("shop"), users=60, items=40)
    return pl.DataFrame(events, ["user_id", "item_id", "timestamp"], orient="row")


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_of_any_kind_holds_the_events_of_the_arrow_table(
    name: str, shop: pl.DataFrame, tmp_path: Path
) -> None:
    WRITERS[name](shop, tmp_path / name)
    assert read_events(tmp_path / name).digest == read_events(shop, Columns()).digest


@pytest.mark.slow
@pytest.mark.parametrize("split", ["leave-one-out", "time", "k-fold", "none"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_file_of_any_kind_is_trained_evaluated_exported_verified_and_ranked(
    name: str, split: str, shop: pl.DataFrame, tmp_path: Path
) -> None:
    WRITERS[name](shop, tmp_path / name)
    log, trained, bundle = tmp_path / name, tmp_path / "run", tmp_path / "bundle"
    run("train", log, "--out", trained, *TINY, "--set=epochs=1", f"--set=split={split}")
    if split != "none":
        run("evaluate", trained, log)
    run("export", trained, bundle, "--allow-drop", 1)
    run("verify", bundle)
    ranked = run("rank", bundle, "--input", log, "-k", 5).stdout.splitlines()
    assert len(ranked) == shop["user_id"].n_unique()
