"""What crosses the rooms: the shipped bundle in plain onnxruntime, run and bundle side by side."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from ranklet import Manifest, Ranker
from ranklet.bundle.folder import map_table
from ranklet.errors import DataError
from ranklet.verify import verify
from ranklet_export.export import Settings, export_bundle
from ranklet_training.data.datasets import fetch
from ranklet_training.data.events import Events, read_events
from ranklet_training.data.simulator import Simulation
from ranklet_training.data.split import Split, split_events
from ranklet_training.judge.evaluate import evaluate
from ranklet_training.runs.checkpoint import Run
from ranklet_training.runs.presets import PRESETS, configure
from ranklet_training.runs.start import start_run
from ranklet_training.runs.train import train

FOUR_DIGITS = 5e-5
ONE_ANSWER = 1 / 943  # on another processor nearly equal scores may change places
SCORE_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def session(shipped_bundle: Path) -> onnxruntime.InferenceSession:
    """The graph as a stranger to ranklet would load it."""
    return onnxruntime.InferenceSession(
        str(shipped_bundle / "model.onnx"), providers=["CPUExecutionProvider"]
    )


def test_batch_length_and_past_are_symbolic(session: onnxruntime.InferenceSession) -> None:
    shapes = {i.name: i.shape for i in session.get_inputs()}
    assert shapes["history"] == ["batch", "length"]
    assert shapes["past_key_0"] == shapes["past_value_0"] == ["batch", 1, "recent", 64]
    assert shapes["past_events"] == ["batch", "past", 64]


def test_fifty_events_and_ten_appended_ones_equal_sixty(
    session: onnxruntime.InferenceSession, shipped_bundle: Path, ask: Any
) -> None:
    graph = session, Manifest.read(shipped_bundle).masks
    history = np.random.default_rng(0).integers(1, 1683, (3, 60))
    at_once = ask(graph, history, items=1682)
    now = ask(graph, history[:, :50], items=1682)
    for place in range(50, 60):
        now = ask(graph, history[:, place : place + 1], now, items=1682)
    np.testing.assert_array_equal(now["items"], at_once["items"])
    np.testing.assert_allclose(now["scores"], at_once["scores"], atol=SCORE_TOLERANCE)
    np.testing.assert_allclose(
        now["present_events"], at_once["present_events"], atol=SCORE_TOLERANCE
    )


def test_the_item_table_is_in_the_bundle_once(shipped_bundle: Path, tiny_bundle: Path) -> None:
    for bundle in (shipped_bundle, tiny_bundle):
        ranker = Ranker.load(bundle, provider="cpu")
        rows = np.asarray(map_table(bundle, ranker.manifest)[1:])
        found = [path.read_bytes().count(rows.tobytes()) for path in bundle.iterdir()]
        assert sorted(found) == [0] * (len(found) - 1) + [1]


def test_plain_onnxruntime_and_the_ranker_give_one_ranking(
    session: onnxruntime.InferenceSession, shipped_bundle: Path, ask: Any
) -> None:
    ranker = Ranker.load(shipped_bundle, provider="cpu")
    indices = ranker.vocabulary.index(["50", "181", "172"])
    plain = ask((session, ranker.manifest.masks), indices[None], items=1682)
    assert ranker.rank(["50", "181", "172"]).items == ranker.vocabulary.ids(plain["items"][0])


def test_a_shipped_bundle_is_small_titled_and_says_where_its_data_is_from(
    any_shipped_bundle: Path,
) -> None:
    assert sum(path.stat().st_size for path in any_shipped_bundle.iterdir()) < 4.5e6
    ranker = Ranker.load(any_shipped_bundle, provider="cpu")
    assert len(ranker.find("star wars")) in (1, 4)  # ml-1m has episodes I, IV, V and VI
    card = (any_shipped_bundle / "README.md").read_text()
    assert "GroupLens" in card
    assert "redistribut" in card


def test_a_shipped_bundle_answers_here_as_where_it_was_made(any_shipped_bundle: Path) -> None:
    assert verify(any_shipped_bundle, provider="cpu").golden > 0


def test_a_shipped_bundle_is_as_good_as_the_run_it_was_made_of(
    shipped_bundle: Path, tmp_path: Path
) -> None:
    try:
        data = fetch("ml-100k", tmp_path)
    except DataError as error:
        pytest.skip(f"ml-100k is not at hand: {error}")
    ranker = Ranker.load(shipped_bundle, provider="cpu")
    table = evaluate({"ml-100k": ranker}, split_events(read_events(data.events).frame))
    of_run = {row["model"]: row for row in ranker.manifest.quality["rows"]}
    for row in table["rows"]:
        for part in ("masked", "unmasked"):
            assert row[part] == pytest.approx(of_run[row["model"]][part], abs=ONE_ANSWER)
    ndcg = {name: row["masked"]["NDCG@10"] for name, row in of_run.items()}
    assert set(ndcg) == {"ml-100k", "zero-block", "seed", "last-item Markov", "popularity"}
    assert max(ndcg, key=lambda name: ndcg[name]) == "ml-100k"


def test_no_local_path_is_in_a_shipped_bundle(any_shipped_bundle: Path) -> None:
    for path in any_shipped_bundle.iterdir():
        data = path.read_bytes()
        assert b"site-packages" not in data, path
        assert b"/home/" not in data, path
        assert b"/tmp/" not in data, path


@pytest.mark.parametrize("kind", ["leave-one-out", "time", "k-fold"])
@pytest.mark.parametrize("preset", PRESETS)
def test_run_and_bundle_agree_to_four_digits(
    preset: str, kind: str, world: Simulation, events: Events, tmp_path: Path
) -> None:
    settings = {"width": 16, "max_length": 20, "epochs": 1, "split": kind, "targets_per_step": 256}
    config = configure({**settings, **PRESETS[preset], "epochs": 1})
    split = split_events(events.frame, config.train.split)
    run = start_run(tmp_path / "run", config, events, split, world.items)
    model = train(run, split, show_progress=False).model
    # The small one also tries an older opset; in a world of 60 items int8 loses nothing.
    how = Settings(opset=20, precision="fp32") if preset == "small" else Settings()
    export_bundle(run.path, tmp_path / "bundle", how)
    ranker = Ranker.load(tmp_path / "bundle", provider="cpu")
    table = evaluate({"run": model, "bundle": ranker}, split)
    of_run, of_bundle = table["rows"][:2]
    for part in ("masked", "unmasked"):
        assert of_run[part] == pytest.approx(of_bundle[part], abs=FOUR_DIGITS)


def test_training_learns_what_a_baseline_cannot(
    tiny_run: Run, split: Split, world: Simulation
) -> None:
    rows = evaluate({"run": tiny_run.load_model()}, split)["rows"]
    hit_rates = {row["model"]: row["masked"]["HR@10"] for row in rows}
    assert hit_rates["run"] > hit_rates["popularity"]
    assert hit_rates["run"] <= world.best_hit_rate + 0.1  # sampling error of 150 users
