"""model.onnx alone answers as the ranker does, for any program that can run ONNX."""

from pathlib import Path
from typing import Any

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


def session_of(path: Path) -> onnxruntime.InferenceSession:
    """Load a graph as a stranger to ranklet would."""
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def ask(
    session: onnxruntime.InferenceSession, history: NDArray[np.int64], k: int
) -> list[NDArray[Any]]:
    names = ["items", "scores", "user"]
    answers: list[NDArray[Any]] = session.run(names, {"history": history, "k": np.array([k])})
    return answers


def draw(batch: int, length: int) -> NDArray[np.int64]:
    """Return histories that are padded on the right, the first of them whole."""
    drawn = np.random.default_rng(length).integers(1, ITEMS + 1, (batch, length))
    counts = np.linspace(length, 1, batch).astype(int)
    return np.where(np.arange(length) < counts[:, None], drawn, 0)


def test_the_graph_is_of_standard_operators_alone(any_ranker: Ranker) -> None:
    path = any_ranker._opened.folder / "model.onnx"
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]
    assert {node.domain for node in model.graph.node} == {""}
    # Nodes of a later opset, which the other programs use, are unfolded here.
    assert not {n.op_type for n in model.graph.node} & {"Attention", "RotaryEmbedding"}
    assert not model.functions
    assert model.ir_version <= 10


def test_its_axes_are_batch_length_and_k(tiny_bundle: Path) -> None:
    session = session_of(tiny_bundle / "model.onnx")
    inputs = {tensor.name: tensor.shape for tensor in session.get_inputs()}
    assert inputs == {"history": ["batch", "length"], "k": [1]}
    outputs = {tensor.name: tensor.shape for tensor in session.get_outputs()}
    answer = ["batch", "k"]
    assert outputs == {"items": answer, "scores": answer, "user": ["batch", 16]}


@pytest.mark.parametrize("length", [1, 2, 5, LONGEST, LONGEST + 1, 57])
def test_histories_of_any_length_are_ranked_as_the_ranker_does(
    length: int, any_ranker: Ranker
) -> None:
    session = session_of(any_ranker._opened.folder / "model.onnx")
    history = draw(4, length)
    items, scores, _ = ask(session, history, 60)
    tolerance = 2 * SCORE_TOLERANCE[any_ranker.manifest.precision]
    for row, events in enumerate(history):
        ranking = any_ranker.rank(any_ranker.vocabulary.ids(events[events > 0]), k=60)
        assert np.abs(ranking.scores - scores[row]).max() < tolerance
        by_item = dict(zip(any_ranker.vocabulary.index(ranking.items), ranking.scores, strict=True))
        assert sorted(items[row]) == [*range(1, ITEMS + 1)]
        in_order = np.array([by_item[item] for item in items[row]])
        assert np.abs(in_order - ranking.scores).max() < tolerance


def test_it_gives_the_user_vector_of_the_model(tiny_bundle: Path, tiny_run: Run) -> None:
    model, history = tiny_run.load_model(), draw(5, LONGEST)
    _, scores, user = ask(session_of(tiny_bundle / "model.onnx"), history, 60)
    expected = model.serve(torch.from_numpy(history), model.table()).numpy()
    assert np.abs(user * 4 - expected).max() < 2e-5  # the root of the width
    best = np.sort(expected @ model.table()[1:].numpy().T, axis=1)[:, ::-1]
    assert np.abs(best - scores).max() < 1e-4


def test_padding_changes_no_answer(tiny_bundle: Path) -> None:
    session = session_of(tiny_bundle / "model.onnx")
    for length in (3, LONGEST, 30):
        history = draw(2, length)
        alone, padded = (ask(session, h, 60) for h in (history, np.pad(history, [(0, 0), (0, 9)])))
        assert np.abs(alone[1] - padded[1]).max() < 1e-4


# One file


def test_one_file_answers_alone(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "single.onnx"
    path.write_text("an older one")
    write_single_file(tiny_bundle, path)
    assert list(tmp_path.iterdir()) == [path]
    onnx.checker.check_model(path, full_check=True)
    assert not any(t.external_data for t in onnx.load(path).graph.initializer)
    history = draw(3, 25)
    alone = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    answers = zip(
        ask(alone, history, 10),
        ask(session_of(tiny_bundle / "model.onnx"), history, 10),
        strict=True,
    )
    for found, expected in answers:
        np.testing.assert_array_equal(found, expected)


def test_a_catalogue_that_no_file_holds_is_refused(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single, "LARGEST_PROTOBUF", 4 * 61 * 16 - 1)
    with pytest.raises(
        InputError, match=r"60 items do not fit .*copy model\.onnx and weights\.bin"
    ):
        write_single_file(tiny_bundle, tmp_path / "single.onnx")
    assert not list(tmp_path.iterdir())


def test_a_missing_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest\.json"):
        write_single_file(tmp_path / "nothing", tmp_path / "single.onnx")
