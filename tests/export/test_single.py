"""model.onnx alone answers as the ranker does, for any program that can run ONNX."""

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from ranklet import Ranker
from ranklet.errors import BundleError, InputError
from ranklet_export import single
from ranklet_export.parity import SCORE_TOLERANCE
from ranklet_export.single import write_single_file
from ranklet_training.runs.checkpoint import Run

ITEMS, LONGEST = 60, 20
Session = onnxruntime.InferenceSession


def session_of(graph: str | bytes) -> Session:
    """Load a graph as a stranger to ranklet would."""
    return Session(graph, providers=["CPUExecutionProvider"])


def ask(session: Session, history: NDArray[np.int64], k: int = ITEMS) -> list[NDArray[np.float32]]:
    names, inputs = ["items", "scores", "user"], {"history": history, "k": np.array([k])}
    answers: list[NDArray[np.float32]] = session.run(names, inputs)
    return answers


def draw(batch: int, length: int) -> NDArray[np.int64]:
    """Return histories that are padded on the right, the first of them whole."""
    drawn = np.random.default_rng(length).integers(1, ITEMS + 1, (batch, length))
    counts = np.linspace(length, 1, batch).astype(int)
    return np.where(np.arange(length) < counts[:, None], drawn, 0)


def test_the_graph_is_of_standard_operators_and_its_axes_are_dynamic(any_ranker: Ranker) -> None:
    path = any_ranker.path / "model.onnx"
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    assert model.ir_version <= 10
    session, answer = session_of(str(path)), ["batch", "k"]
    tensors = [*session.get_inputs(), *session.get_outputs()]
    assert {tensor.name: tensor.shape for tensor in tensors} == {
        **{"history": ["batch", "length"], "k": [1]},
        **{"items": answer, "scores": answer, "user": ["batch", 16]},
    }


@pytest.mark.parametrize("length", [1, 2, 5, LONGEST, LONGEST + 1, 57])
def test_histories_of_any_length_are_ranked_as_the_ranker_does(
    length: int, any_ranker: Ranker
) -> None:
    session, history = session_of(str(any_ranker.path / "model.onnx")), draw(4, length)
    items, scores, _ = ask(session, np.pad(history, [(0, 0), (0, length % 3)]))
    tolerance = 2 * SCORE_TOLERANCE[any_ranker.manifest.precision]
    for row, events in enumerate(history):
        ranking = any_ranker.rank(
            any_ranker.vocabulary.ids(events[events > 0]), k=ITEMS, exclude_seen=False
        )
        assert np.abs(ranking.scores - scores[row]).max() < tolerance
        assert sorted(items[row]) == [*range(1, ITEMS + 1)]
        by_item = dict(zip(any_ranker.vocabulary.index(ranking.items), ranking.scores, strict=True))
        in_order = np.array([by_item[item] for item in items[row]])
        assert np.abs(in_order - ranking.scores).max() < tolerance


def test_it_gives_the_user_vector_of_the_model(tiny_bundle: Path, tiny_run: Run) -> None:
    model, history = tiny_run.load_model(), draw(5, LONGEST)
    _, _, user = ask(session_of(str(tiny_bundle / "model.onnx")), history)
    expected = model.serve(torch.from_numpy(history), model.table()).numpy()
    assert np.abs(user * 4 - expected).max() < 2e-5  # the root of the width


def test_one_file_answers_alone(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "single.onnx"
    path.write_text("an older one")
    # Caches and backups hold bundles as links, which onnx takes for an attack.
    linked = Path(shutil.copytree(tiny_bundle, tmp_path / "linked", copy_function=os.link))
    write_single_file(linked, path)
    shutil.rmtree(linked)
    assert list(tmp_path.iterdir()) == [path]
    onnx.checker.check_model(path, full_check=True)
    beside = ask(session_of(str(tiny_bundle / "model.onnx")), draw(3, 25), 10)
    for found, expected in zip(
        ask(session_of(path.read_bytes()), draw(3, 25), 10), beside, strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_what_can_not_be_one_file_is_refused(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle: there is no such folder"):
        write_single_file(tmp_path / "nothing", tmp_path / "single.onnx")
    monkeypatch.setattr(single, "LARGEST_PROTOBUF", 4 * 61 * 16 - 1)
    with pytest.raises(
        InputError, match=r"60 items do not fit .*copy model\.onnx and weights\.bin"
    ):
        write_single_file(tiny_bundle, tmp_path / "single.onnx")
    assert not list(tmp_path.iterdir())
