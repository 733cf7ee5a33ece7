import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from commands import run
from ranklet import BundleError, InputError, Ranker
from ranklet_export.triton import write_triton


def test_the_graph_answers_like_the_ranker_with_k_for_each_history(
    shipped_bundle: Path, tmp_path: Path
) -> None:
    run("export-to", "triton", shipped_bundle, tmp_path / "films")
    ranker = Ranker.load(shipped_bundle)
    session = onnxruntime.InferenceSession(tmp_path / "films" / "1" / "model.onnx")
    rows = np.array([[3, 9, 4], [7, 0, 0], [1, 2, 0]])
    items, scores = session.run(
        ["items", "scores"], {"history": rows, "k": np.array([[2], [5], [4]])}
    )
    assert items.shape == (3, 5)
    for row, best, points in zip(rows, items, scores, strict=True):
        history = ranker.vocabulary.ids(row[row > 0])
        ranking = ranker.rank(history, k=5, exclude_seen=False)
        assert ranker.vocabulary.ids(best) == list(ranking.items)
        assert points == pytest.approx(ranking.scores, abs=1e-4)


def test_the_graph_is_valid_and_of_standard_operators(shipped_bundle: Path, tmp_path: Path) -> None:
    write_triton(shipped_bundle, tmp_path / "films")
    path = tmp_path / "films" / "1" / "model.onnx"
    onnx.checker.check_model(path, full_check=True)
    assert {each.domain for each in onnx.load(path).opset_import} <= {"", "ai.onnx"}


def test_the_configuration_is_one_of_triton(shipped_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("grpc", reason="tritonclient[grpc] is not installed")
    config_of = pytest.importorskip("tritonclient.grpc.model_config_pb2").ModelConfig
    text_format = pytest.importorskip("google.protobuf.text_format")
    write_triton(shipped_bundle, tmp_path / "films")
    text = (tmp_path / "films" / "config.pbtxt").read_text()
    config = text_format.Parse(text, config_of())
    assert config.name == "films"
    assert config.max_batch_size > 1
    assert config.HasField("dynamic_batching")
    graph = onnx.load(tmp_path / "films" / "1" / "model.onnx", load_external_data=False).graph
    for tensors, expected in ((config.input, graph.input), (config.output, graph.output)):
        shapes = {
            value.name: [d.dim_value or -1 for d in value.type.tensor_type.shape.dim][1:]
            for value in expected
        }
        assert {tensor.name: list(tensor.dims) for tensor in tensors} == shapes


def test_the_client_says_what_it_does_not_know(shipped_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("geventhttpclient", reason="tritonclient[http] is not installed")
    write_triton(shipped_bundle, tmp_path / "films")
    command = [sys.executable, tmp_path / "films" / "client.py", "localhost:1", "no such item"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no item of this history" in done.stderr


def test_a_folder_that_exists_and_a_damaged_bundle_are_refused(
    shipped_bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="exists"):
        write_triton(shipped_bundle, tmp_path)
    copy = Path(shutil.copytree(shipped_bundle, tmp_path / "copy"))
    (copy / "model.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"model\.onnx"):
        write_triton(copy, tmp_path / "films")
    assert not (tmp_path / "films").exists()
