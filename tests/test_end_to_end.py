"""What crosses the rooms: shipped bundles, run and bundle side by side, models of every kind."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ranklet import Manifest, Ranker
from ranklet.verify import verify
from ranklet_export.export import export_bundle
from ranklet_training.data.events import Events
from ranklet_training.data.simulator import Simulation
from ranklet_training.data.split import Split, split_events
from ranklet_training.judge.evaluate import evaluate
from ranklet_training.runs.checkpoint import Run
from ranklet_training.runs.presets import PRESETS, configure
from ranklet_training.runs.start import start_run
from ranklet_training.runs.train import train

FOUR_DIGITS = 5e-5
SCORE_TOLERANCE = 1e-4


def test_the_shipped_bundle_is_small_and_titled_and_answers_here_as_where_it_was_made(
    shipped_bundle: Path,
) -> None:
    files = {path.name: path.read_bytes() for path in shipped_bundle.iterdir()}
    assert sum(map(len, files.values())) < 5e6
    assert not [name for name, data in files.items() if b"/home/" in data or b"/tmp/" in data]
    assert b"may be redistributed under the same conditions" in files["README.md"]
    assert "redistribute" in (shipped_bundle.parent / "README.grouplens.txt").read_text()
    ranker = Ranker.load(shipped_bundle, provider="cpu")
    assert ranker.titles(ranker.find("lord of the rings: the two towers")) == [
        "Lord of the Rings: The Two Towers, The (2002)"
    ]
    assert verify(shipped_bundle, provider="cpu").golden > 0


def test_the_shipped_bundle_was_trained_on_all_events_and_states_the_figures_of_an_earlier_split(
    shipped_bundle: Path,
) -> None:
    manifest = Manifest.read(shipped_bundle)
    assert manifest.training["train"]["split"] == "none"
    assert manifest.exclude_seen
    ndcg = {row["model"]: row["served"]["NDCG@10"] for row in manifest.quality["rows"]}
    assert max(ndcg, key=lambda name: ndcg[name]) == "ml-latest-small"
    card = (shipped_bundle / "README.md").read_text(encoding="utf-8")
    assert f"| ml-latest-small | 0.1180 | {ndcg['ml-latest-small']:.4f} |" in card


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "kind"),
    [
        *((preset, "leave-one-out") for preset in PRESETS),
        *(("default", kind) for kind in ("time", "k-fold")),
    ],
)
def test_run_and_bundle_agree_to_four_digits(
    preset: str, kind: str, world: Simulation, events: Events, tmp_path: Path
) -> None:
    settings = {"width": 16, "max_length": 20, "epochs": 1, "split": kind, "targets_per_step": 256}
    config = configure({**settings, **PRESETS[preset], "epochs": 1})
    split = split_events(events.frame, config.train.split)
    run = start_run(tmp_path / "run", config, events, split, world.items)
    model = train(run, split, show_progress=False).model
    export_bundle(run.path, tmp_path / "bundle")
    table = evaluate({"run": model, "bundle": Ranker.load(tmp_path / "bundle")}, split)
    of_run, of_bundle = table["rows"][:2]
    for part in ("masked", "unmasked"):
        assert of_run[part] == pytest.approx(of_bundle[part], abs=FOUR_DIGITS)


def test_a_model_that_lacks_a_part_is_served_whole(degenerate_model: Any) -> None:
    model, ranker = degenerate_model.model, degenerate_model.ranker
    longest, table = ranker.manifest.max_length, model.table()
    history = np.random.default_rng(0).integers(1, len(ranker) + 1, longest + 3)
    ids = [str(item) for item in ranker.vocabulary.ids(history)]
    user = ranker.user()
    for count, item in enumerate(ids[:longest], 1):
        user.append(item)
        scores = (model.serve(torch.from_numpy(history[None, :count]), table) @ table[1:].T)[0]
        for ranking in (ranker.rank(ids[:count], k=60), user.rank(60)):
            places = ranker.vocabulary.index(ranking.items) - 1
            assert np.abs(ranking.scores - scores[places].numpy()).max() < SCORE_TOLERANCE
            assert np.diff(ranking.scores).max() <= 0
    assert ranker.rank(ids).items == ranker.rank(ids[-longest:]).items
    assert ranker.user().load(user.save()).rank().items == user.rank().items
    assert verify(ranker.path, provider="cpu").golden > 0


def test_training_learns_what_a_baseline_cannot(
    tiny_run: Run, split: Split, world: Simulation
) -> None:
    rows = evaluate({"run": tiny_run.load_model()}, split)["rows"]
    hit_rates = {row["model"]: row["masked"]["HR@10"] for row in rows}
    assert hit_rates["run"] > hit_rates["popularity"]
    assert hit_rates["run"] <= world.best_hit_rate + 0.1  # sampling error of 150 users
