"""New items without torch: ``python benchmarks/new_items.py EVENTS ITEMS``.

A tenth of the items is held out of all events before the training. The bundle is exported, and in a
process without torch ``Ranker.add_items`` adds these items by their attributes. Then the last event
of each user, whose item may be a new one, is asked for among all items but those that the user has
seen (``rank_batch``):

* cold: HR@10 and HR@50 of the events of new items;
* warm and all: NDCG@10 of the other events, and of all.

All of it is compared with the same bundle before the items are added. Questions and histories are
the same; that bundle does not know the new items, so they are no events of a history there. The
first line after it is ``add_items`` with the settings of the bundle, the others tell it a bias.
"Content" ranks all items by the cosine of their attributes with those of the last item.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from ranklet import Ranker

RANKLET = [sys.executable, "-m", "ranklet_cli"]
HELD_OUT = 0.1  # share of the items
BIASES = (0.5, 0.25, 0.0, -0.25, -0.5, -1.0, -2.0)
DEPTH, AT_ONCE = 50, 256
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@dataclass(frozen=True)
class Questions:
    """Histories, the items that came next, and the table of the new items."""

    histories: list[list[Any]]
    targets: list[Any]
    new: dict[str, list[Any]]
    items: dict[str, list[Any]]  # of all items

    def figures(self, rankings: list[list[Any]], base: float) -> dict[str, float]:
        """Return the figures of rankings; ``base`` is NDCG@10 of all without new items."""
        new = set(self.new["item_id"])
        is_cold = np.array([target in new for target in self.targets])
        ranks = np.array(
            [
                items.index(target) + 1 if target in items else np.inf
                for items, target in zip(rankings, self.targets, strict=True)
            ]
        )
        gains = np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0)
        return {
            "cold HR@10": (ranks[is_cold] <= 10).mean(),
            "cold HR@50": (ranks[is_cold] <= 50).mean(),
            "warm NDCG@10": gains[~is_cold].mean(),
            "all NDCG@10": gains.mean(),
            "all to base": gains.mean() / base if base else 1.0,
            "new in top 10": np.mean([item in new for items in rankings for item in items[:10]]),
        }


def rank(ranker: Ranker, questions: Questions) -> list[list[Any]]:
    """Return the best items for each history."""
    rankings = []
    for begin in range(0, len(questions.histories), AT_ONCE):
        part = questions.histories[begin : begin + AT_ONCE]
        rankings += ranker.rank_batch(part, k=DEPTH, exclude_seen=True)
    return [list(ranking.items) for ranking in rankings]


def by_content(bundle: Path, ranker: Ranker, questions: Questions) -> list[list[Any]]:
    """Return the items that are most like the last one of each history by their attributes."""
    from ranklet.attributes import Attributes
    from ranklet.item_features import ItemFeatures

    features = ItemFeatures(Attributes.read(bundle, ranker.manifest))
    ids = questions.items["item_id"]
    codes, weights, ends = features.encode(questions.items, len(ids))
    starts, owner = np.append(0, ends), np.repeat(np.arange(len(ids)), np.diff(ends, prepend=0))
    place_of = {item: place for place, item in enumerate(ids)}
    rankings = []
    for history in questions.histories:
        seen = [place_of[item] for item in history if item in place_of]
        wanted: NDArray[np.float64] = np.zeros(features.count)
        own = slice(starts[seen[-1]], starts[seen[-1] + 1]) if seen else slice(0)
        wanted[codes[own]] = weights[own]
        scores = np.bincount(owner, weights * wanted[codes], minlength=len(ids))
        scores[seen] = -np.inf
        rankings.append([ids[place] for place in np.argsort(-scores, kind="stable")[:DEPTH]])
    return rankings


def judge(bundle: Path, folder: Path) -> None:
    """Print the figures of a bundle, without and with the new items."""
    questions = Questions(**json.loads((folder / "questions.json").read_text()))
    ranker = Ranker.load(bundle, provider="cpu")
    settings = ranker.manifest.new_items
    assert settings is not None
    click.echo(json.dumps({"bundle": settings.figures}))
    base = float(questions.figures(rank(ranker, questions), 0)["all NDCG@10"])

    def show(name: str, rankings: list[list[Any]]) -> None:
        figures = questions.figures(rankings, base)
        click.echo(f"{name:<36}" + "".join(f" {key} {value:.4f}" for key, value in figures.items()))

    click.echo(f"{len(questions.targets)} questions, {len(questions.new['item_id'])} new items")
    show("content", by_content(bundle, ranker, questions))
    show("not added", rank(ranker, questions))
    added = ranker.add_items(questions.new)
    assert len(added.added) == len(questions.new["item_id"])
    name = f"bias {added.bias:g}, in_histories {added.in_histories}"
    show(f"default: {name}", rank(ranker, questions))
    for bias in BIASES:
        for inside in (False, True):
            ranker.add_items(questions.new, bias=bias, in_histories=inside)
            show(f"bias {bias:g}, in_histories {inside}", rank(ranker, questions))
    assert "torch" not in sys.modules


def prepare(events: Path, items: Path, folder: Path, draw: int) -> None:
    """Write the log without the held-out items, and the questions."""
    import polars as pl

    log = pl.read_parquet(events).sort("user_id", "timestamp", maintain_order=True)
    ids = log["item_id"].unique().sort()
    held = np.random.default_rng(draw).permutation(len(ids))[: int(HELD_OUT * len(ids))]
    is_new = pl.col("item_id").is_in(ids.gather(held).to_list())
    table = pl.read_parquet(items).unique("item_id", keep="first", maintain_order=True)
    table.write_parquet(folder / "items.parquet")
    log.filter(~is_new).write_parquet(folder / "events.parquet")
    users = log.group_by("user_id", maintain_order=True).agg("item_id")
    histories = [row for row in users["item_id"].to_list() if len(row) > 1]
    questions = {
        "histories": [row[:-1] for row in histories],
        "targets": [row[-1] for row in histories],
        "new": table.filter(is_new).to_dict(as_series=False),
        "items": table.to_dict(as_series=False),
    }
    (folder / "questions.json").write_text(json.dumps(questions))


@click.command()
@click.argument("events", type=FILE)
@click.argument("items", type=FILE)
@click.option("--draw", default=0, help="Seed of the choice of held-out items.")
@click.option("--seed", default=0, help="Seed of the training.")
@click.option("--keep", type=click.Path(path_type=Path), help="Keep all files in a new folder.")
@click.option("--set", "settings", multiple=True, help="Settings of the training, KEY=VALUE.")
def main(
    events: Path, items: Path, draw: int, seed: int, keep: Path | None, settings: tuple[str, ...]
) -> None:
    """Prepare, train and export, then rank in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        prepare(events, items, folder, draw)
        log, run, bundle = folder / "events.parquet", folder / "run", folder / "bundle"
        options = [f"--set={setting}" for setting in (f"seed={seed}", *settings)]
        table = folder / "items.parquet"
        train = ["train", str(log), "--items", str(table), "--out", str(run), *options]
        subprocess.run([*RANKLET, *train], check=True)
        subprocess.run([*RANKLET, "export", str(run), str(bundle)], check=True)
        subprocess.run([sys.executable, __file__, "judge", str(bundle), str(folder)], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["judge"]:
        judge(*map(Path, sys.argv[2:]))
    else:
        main()
