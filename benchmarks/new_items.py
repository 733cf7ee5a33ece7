"""New items without torch: ``python benchmarks/new_items.py EVENTS ITEMS``.

A tenth of the items is held out of all events before the training. The bundle is exported, and in a
process without torch the held-out items are placed by their attributes. Then the last event of each
user, whose item may be one of them, is asked for among all items but those that the user has seen:

* cold: HR@10 and HR@50 of the events of new items;
* warm and all: NDCG@10 of the other events, and of all, beside the same bundle without new items.

New items do not count in histories here. The first line of figures is that of the bias that the
bundle itself has.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

RANKLET = [sys.executable, "-m", "ranklet_cli"]
HELD_OUT = 0.1  # share of the items
BEHIND = -1000.0  # a bias that puts new items behind all others
BIASES = (BEHIND, 0.0, -0.5, -1.0, -2.0)
Ints = NDArray[np.int64]


class NewItems:
    """A bundle with new items; becomes ``Ranker.add_items(table)`` and ``rank_batch``."""

    def __init__(self, bundle: Path, ids: list[Any], columns: dict[str, list[Any]]) -> None:
        """Place the items by their attributes."""
        from ranklet.attributes import Attributes
        from ranklet.bundle.folder import read_popularity
        from ranklet.item_features import ItemEncoder
        from ranklet.ranker import Ranker

        self.ranker = Ranker.load(bundle, provider="cpu")
        manifest, self.engine = self.ranker.manifest, self.ranker.engine
        rows, self.known = ItemEncoder(self.engine, Attributes.read(bundle, manifest)).rows(
            columns, len(ids)
        )
        self.new = {item: place for place, item in enumerate(ids, len(self.ranker) + 1)}
        self.table = np.concatenate([self.engine.table.astype(np.float32), rows])
        popularity = read_popularity(bundle, manifest)
        self.popularity = np.concatenate([[0], popularity, np.zeros(len(ids))])

    def index(self, ids: list[Any]) -> Ints:
        """Return the indices of items, 0 where neither the bundle nor the new items have one."""
        known = self.ranker.vocabulary.index([0 if item in self.new else item for item in ids])
        return np.array([self.new.get(i, k) for i, k in zip(ids, known.tolist(), strict=True)])

    def scores(self, history: Ints) -> NDArray[np.float32]:
        """Return the scores of all items after a history, with a bias of 0."""
        from ranklet.engine.engine import History

        known = history[(history > 0) & (history <= len(self.ranker))]
        if not len(known):
            return self.popularity.astype(np.float32)
        user = self.engine.encode([History(known[-self.ranker.manifest.max_length :])])[0]
        scores: NDArray[np.float32] = self.table @ user
        return scores


def rank(bundle: Path, folder: Path) -> None:
    """Print the figures of each bias."""
    asked = json.loads((folder / "asked.json").read_text())
    new = NewItems(bundle, asked["new"], asked["columns"])
    chosen = new.ranker.manifest.new_items
    assert chosen is not None
    assert "torch" not in sys.modules
    biases = (chosen.bias, *BIASES)
    last, ranks = len(new.ranker), np.zeros((len(biases), len(asked["targets"])))
    targets = new.index(asked["targets"])
    for row, (ids, target) in enumerate(zip(asked["histories"], targets, strict=True)):
        history = new.index(ids)
        scores = new.scores(history)
        scores[0] = -np.inf
        scores[history] = -np.inf
        for place, bias in enumerate(biases):
            biased = scores + np.where(np.arange(len(scores)) > last, bias, 0)
            is_shown = np.isfinite(biased[target]) and not (bias == BEHIND and target > last)
            ranks[place, row] = (biased >= biased[target]).sum() if is_shown else np.inf
    is_cold = targets > last
    gains = np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0)
    click.echo(
        f"{len(targets)} questions, {is_cold.sum()} of new items; {len(new.new)} new items, "
        f"{(~new.known).sum()} without a known value; {json.dumps(chosen.figures)}"
    )
    base = gains[1].mean()
    for place, bias in enumerate(biases):
        click.echo(
            f"bias {bias:7.1f}{' (default)' if not place else ''}: cold HR@10 "
            f"{(ranks[place, is_cold] <= 10).mean():.4f} HR@50 "
            f"{(ranks[place, is_cold] <= 50).mean():.4f}, warm NDCG@10 "
            f"{gains[place, ~is_cold].mean():.4f}, all NDCG@10 {gains[place].mean():.4f} "
            f"({gains[place].mean() / base - 1:+.1%})"
        )


def prepare(events: Path, items: Path, folder: Path) -> None:
    """Write the log without the held-out items, and the questions."""
    import polars as pl

    log = pl.read_parquet(events).sort("user_id", "timestamp", maintain_order=True)
    ids = log["item_id"].unique().sort()
    held = np.random.default_rng(0).permutation(len(ids))[: int(HELD_OUT * len(ids))]
    is_new = pl.col("item_id").is_in(ids.gather(held).to_list())
    table = pl.read_parquet(items).unique("item_id", keep="first", maintain_order=True)
    table.write_parquet(folder / "items.parquet")
    new = table.filter(is_new)
    log.filter(~is_new).write_parquet(folder / "events.parquet")
    users = log.group_by("user_id", maintain_order=True).agg("item_id")
    histories = [row for row in users["item_id"].to_list() if len(row) > 1]
    asked = {
        "new": new["item_id"].to_list(),
        "columns": {n: new[n].to_list() for n in new.columns if n != "item_id"},
        "histories": [row[:-1] for row in histories],
        "targets": [row[-1] for row in histories],
    }
    (folder / "asked.json").write_text(json.dumps(asked))


def main(events: Path, items: Path, *settings: str) -> None:
    """Prepare, train and export, then rank in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(events, items, folder)
        log, run, bundle = folder / "events.parquet", folder / "run", folder / "bundle"
        options = [f"--set={setting}" for setting in settings]
        table = folder / "items.parquet"
        train = ["train", str(log), "--items", str(table), "--out", str(run), *options]
        subprocess.run([*RANKLET, *train], check=True)
        subprocess.run([*RANKLET, "export", str(run), str(bundle)], check=True)
        subprocess.run([sys.executable, __file__, "rank", str(bundle), str(folder)], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["rank"]:
        rank(*map(Path, sys.argv[2:]))
    else:
        main(*map(Path, sys.argv[1:3]), *sys.argv[3:])
