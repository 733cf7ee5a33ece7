"""The figures of the card and of the tables are those that a user gets through the API."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from commands import run
from ranklet import Manifest, Ranker

FOUR_DIGITS = 5e-5
TINY = ["--preset", "zero-block", "--set=width=16", "--set=max_length=20", "--set=epochs=3"]
Row = tuple[str, str, int]


def simulate(repeats: float, users: int = 150, items: int = 80) -> list[Row]:
    """Return events in the order of time; items come into the shop one after the other."""
    random = np.random.default_rng(7)
    bought: dict[int, list[int]] = {user: [] for user in range(users)}
    rows: list[Row] = []
    for time in range(users * 14):
        user = int(random.integers(users))
        past = bought[user]
        there = 20 + 60 * time // (users * 14)
        new = [i for i in range(there) if i % 4 == user % 4 and i not in past]
        choices = past if past and random.random() < repeats else new
        if not choices:
            continue
        item = int(random.choice(choices))
        past.append(item)
        rows.append((f"u{user}", f"i{item:02}", 1000 + time))
    return rows


def write(rows: list[Row], path: Path) -> Path:
    columns = ["user_id", "item_id", "timestamp"]
    pl.DataFrame(rows, columns, orient="row").write_csv(path)
    return path


def questions(rows: list[Row], split: str, manifest: Manifest) -> list[tuple[list[str], str]]:
    """Return history and answer of each test case, from the raw rows."""
    by_user: dict[str, list[tuple[int, str]]] = {}
    for user, item, time in rows:
        by_user.setdefault(user, []).append((time, item))
    asked = []
    for events in by_user.values():
        if split == "leave-one-out":
            history, (_, answer) = events[:-1], events[-1]
            if len(events) < 3:
                continue
        else:
            later = [event for event in events if event[0] >= manifest.data["instants"][1]]
            if not later:
                continue
            now, answer = later[0]
            history = [event for event in events if event[0] < now]
        if history:
            asked.append(([item for _, item in history], answer))
    return asked


def first_figure(card: str) -> float:
    """Return NDCG@10 of the first row of the first table of a card."""
    head, row = re.search(r"^\| model \|(.*)\n\|[-|]*\n\| run \|(.*)$", card, re.M).groups()  # type: ignore[union-attr]
    names = [name.strip() for name in head.split("|")]
    return float(row.split("|")[names.index("NDCG@10")])


@pytest.fixture(scope="module", params=["repeats", "no repeats"])
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[list[Row], Path]]:
    """Train, evaluate and export by a split, once."""
    folder = tmp_path_factory.mktemp("made")
    rows = simulate(0.4 if request.param == "repeats" else 0.0)
    log = write(rows, folder / "log.csv")

    def make(split: str) -> tuple[list[Row], Path]:
        path = folder / split
        if not path.exists():
            run("train", log, "--out", path / "run", *TINY, f"--set=split={split}")
            run("evaluate", path / "run", log)
            run("export", path / "run", path / "bundle")
        return rows, path

    return make


@pytest.mark.parametrize("split", ["leave-one-out", "time"])
def test_the_first_figure_of_the_card_is_what_a_loop_over_the_api_gives(
    split: str, made: Callable[[str], tuple[list[Row], Path]]
) -> None:
    rows, path = made(split)
    ranker = Ranker.load(path / "bundle", provider="cpu")
    gains, repeats, new = [], 0, 0
    for history, answer in questions(rows, split, ranker.manifest):
        shown = ranker.rank(history).items
        gains.append(1 / math.log2(2 + shown.index(answer)) if answer in shown else 0.0)
        repeats += answer in history
        new += answer not in ranker.vocabulary.all_ids
    quality = ranker.manifest.quality
    assert len(gains) == quality["users"]
    assert repeats == quality["repeats"]
    assert new == quality["unknown"]["run"]["targets"]
    assert (new > 0) == (split == "time")
    figure = first_figure((path / "bundle" / "README.md").read_text())
    assert figure == pytest.approx(sum(gains) / len(gains), abs=FOUR_DIGITS)
    assert 0 < figure == pytest.approx(quality["rows"][0]["served"]["NDCG@10"], abs=FOUR_DIGITS)


def test_training_chooses_the_default_by_the_repeats_of_its_answers(
    made: Callable[[str], tuple[list[Row], Path]],
) -> None:
    rows, path = made("leave-one-out")
    seen = json.loads((path / "run" / "config.json").read_text())["data"]["seen"]
    ranker = Ranker.load(path / "bundle", provider="cpu")
    has_repeats = len({row[:2] for row in rows}) < len(rows)
    assert seen["exclude_seen"] is ranker.exclude_seen is (not has_repeats)
    assert (seen["repeats"] > 0.25) is has_repeats
    assert (seen["masked_NDCG@10"] >= seen["unmasked_NDCG@10"]) is (not has_repeats)
    history = [item for user, item, _ in rows if user == "u3"]
    everything = len(ranker)
    shown = {*ranker.rank(history, k=everything).items}
    assert shown.isdisjoint(history) is ranker.exclude_seen
    for ranking in (
        ranker.rank_batch([history], k=everything)[0],
        ranker.user(history).rank(k=everything),
        ranker.users([history]).rank(k=everything)[0],
    ):
        assert {*ranking.items} == shown
    excluded = ranker.rank(history, k=everything, exclude_seen=True).items
    included = ranker.rank(history, k=everything, exclude_seen=False).items
    assert len(included) == everything == len(excluded) + len({*history})


def test_export_and_rank_can_choose_otherwise(
    made: Callable[[str], tuple[list[Row], Path]], tmp_path: Path
) -> None:
    _, path = made("leave-one-out")
    default = Ranker.load(path / "bundle", provider="cpu").exclude_seen
    flag = "--include-seen" if default else "--exclude-seen"
    exported = run("export", path / "run", tmp_path / "bundle", flag)
    manifest = Manifest.read(tmp_path / "bundle")
    assert manifest.exclude_seen is (not default)
    row = manifest.quality["rows"][0]
    assert row["served"] == row["unmasked" if default else "masked"]
    word = "included" if default else "excluded"
    assert f"as served: seen items {word}" in (tmp_path / "bundle" / "README.md").read_text()
    reason = f"seen items are {word} by default, as the export was told: of "
    assert reason in exported.stdout
    assert reason in run("inspect", tmp_path / "bundle").stdout
    assert reason in (tmp_path / "bundle" / "README.md").read_text()

    def ask(bundle: Path, *options: str) -> list[Any]:
        found = run("rank", bundle, "--history", "i00,i04", "-k", "80", "--json", *options)
        items: list[Any] = json.loads(found.stdout)["items"]
        return items

    assert ask(tmp_path / "bundle") == ask(path / "bundle", flag) != ask(path / "bundle")


def test_evaluate_says_first_what_is_served_then_the_protocol_of_the_papers(
    made: Callable[[str], tuple[list[Row], Path]],
) -> None:
    _, path = made("leave-one-out")
    log = path.parent / "log.csv"
    printed = run("evaluate", path / "bundle", log).stdout
    table = json.loads(run("evaluate", path / "bundle", log, "--json").stdout)
    texts = table["protocols"]
    assert list(texts) == ["served", "masked", "unmasked"]
    places = [printed.index(f"{text} ({table['users']} answers)") for text in texts.values()]
    assert places == sorted(places)
    assert texts["masked"] == "seen items masked, a repeated answer is a miss"
    assert table["advice"] in printed
    better = "excluded" if table["rows"][0]["exclude_seen"] else "included"
    assert f"({table['repeats']:,} of {table['users']})" in table["advice"]
    assert table["advice"].endswith(f"The default that fits: seen items {better}")
