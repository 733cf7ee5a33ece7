"""A graph answers like its model in plain onnxruntime, whatever the batch, length and past."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from ranklet import Manifest, Ranker
from ranklet.bundle import CODE_BITS, BlockMask
from ranklet.files.atomic import sha256
from ranklet_training.runs.checkpoint import Run

Plain = tuple[onnxruntime.InferenceSession, list[BlockMask]]
Ask = Callable[..., dict[str, NDArray[Any]]]
SCORE_TOLERANCE = 1e-4  # scores reach 14, where float32 has steps of 1e-6
FILES = [
    "append.onnx",
    "batch.onnx",
    "encoder.onnx",
    "model.onnx",
    "model.onnx.data",
    "plain.onnx",
]


def session_of(path: Path) -> onnxruntime.InferenceSession:
    """Load a graph as a stranger to ranklet would."""
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def plain(written: Any) -> Plain:
    return session_of(written.folder / "model.onnx"), written.manifest.masks


@pytest.fixture(scope="module")
def graph(tiny_bundle: Path) -> Plain:
    return session_of(tiny_bundle / "model.onnx"), Manifest.read(tiny_bundle).masks


def test_batch_length_and_past_are_symbols_and_nothing_else_is(graph: Plain) -> None:
    shapes = {i.name: i.shape for i in graph[0].get_inputs()}
    state = ["batch", 2, "recent", 8]  # heads, width of a head
    assert shapes == {
        "history": ["batch", "length"],
        "last": ["batch", 1, 1],
        "positions": ["batch", "length"],
        "mask_0": [1, 1, "length", "recent_total"],
        "mask_1": ["batch", 2, 1, "total"],
        "past_key_0": state,
        "past_value_0": state,
        "past_events": ["batch", "past", 16],
        "k": [1],
        "exclude": ["batch", "excluded"],
        "bias": [64],
        "pool": [1],
    }


def test_outputs_come_in_the_order_of_the_contract(graph: Plain) -> None:
    present = ["present_key_0", "present_value_0", "present_events"]
    expected = ["user", *present, "items", "scores", "pool_scores"]
    assert [o.name for o in graph[0].get_outputs()] == expected


def test_the_encoder_takes_and_gives_what_is_before_the_catalogue(tiny_bundle: Path) -> None:
    graphs = [session_of(tiny_bundle / name) for name in ("encoder.onnx", "model.onnx")]
    (encoder, whole) = ([t.name for t in graph.get_inputs()] for graph in graphs)
    assert [*encoder, "k", "exclude", "bias", "pool"] == whole
    (encoder, whole) = ([t.name for t in graph.get_outputs()] for graph in graphs)
    assert [*encoder, "items", "scores", "pool_scores"] == whole


@pytest.mark.parametrize("length", [1, 2, 6, 20])
@pytest.mark.parametrize("batch", [1, 2, 64])
def test_the_graph_ranks_as_the_torch_model(
    batch: int, length: int, graph: Plain, tiny_run: Run, ask: Ask
) -> None:
    model = tiny_run.load_model()
    history = np.random.default_rng(length).integers(1, 61, (batch, length))
    found = ask(graph, history, k=60)
    with torch.no_grad():
        table = model.table()
        user = model.serve(torch.from_numpy(history), table)
    scores = (user @ table.T).numpy()
    in_order = np.take_along_axis(scores, found["items"], axis=1)
    assert np.abs(in_order - found["scores"]).max() < SCORE_TOLERANCE
    assert np.diff(in_order, axis=1).max() < SCORE_TOLERANCE
    assert (np.sort(found["items"], axis=1) == np.arange(1, 61)).all()


def test_padding_changes_no_answer(graph: Plain, ask: Ask) -> None:
    history = np.random.default_rng(0).integers(1, 61, (2, 8))
    padded = np.pad(history, [(0, 0), (0, 7)])
    np.testing.assert_array_equal(ask(graph, history)["items"], ask(graph, padded)["items"])


def test_the_state_of_padding_comes_after_that_of_events(graph: Plain, ask: Ask) -> None:
    history = np.random.default_rng(0).integers(1, 61, (2, 8))
    found, padded = ask(graph, history), ask(graph, np.pad(history, [(0, 0), (0, 7)]))
    for name in (name for name in found if name.startswith("present")):
        difference = np.abs(padded[name][..., :8, :] - found[name]).max()
        assert difference < SCORE_TOLERANCE, name


def test_excluded_items_are_in_no_answer(graph: Plain, ask: Ask) -> None:
    history = np.random.default_rng(4).integers(1, 61, (3, 5))
    full = ask(graph, history, k=60)["items"]
    exclude = np.concatenate([full[:, :40:2], np.zeros((3, 3), dtype=np.int64)], axis=1)
    found = ask(graph, history, k=40, pool=40, exclude=exclude)["items"]
    for row, everything, gone in zip(found, full, exclude, strict=True):
        assert row.tolist() == [item for item in everything if item not in gone]


@pytest.mark.parametrize("appended", [1, 10])
def test_events_appended_one_by_one_equal_one_long_history(
    appended: int, graph: Plain, ask: Ask
) -> None:
    history = np.random.default_rng(1).integers(1, 61, (3, 20))
    at_once, now = ask(graph, history), ask(graph, history[:, : 20 - appended])
    for place in range(20 - appended, 20):
        now = ask(graph, history[:, place : place + 1], now)
    np.testing.assert_array_equal(now["items"], at_once["items"])
    for name in ("scores", "user", "present_key_0", "present_events"):
        assert np.abs(now[name] - at_once[name]).max() < SCORE_TOLERANCE, name


def test_fifty_events_and_ten_appended_ones_equal_sixty(two_block_graphs: Any, ask: Ask) -> None:
    graph = plain(two_block_graphs)
    history = np.random.default_rng(2).integers(1, 41, (2, 60))
    at_once, now = ask(graph, history, items=40), ask(graph, history[:, :50], items=40)
    for place in range(50, 60):
        now = ask(graph, history[:, place : place + 1], now, items=40)
    np.testing.assert_array_equal(now["items"], at_once["items"])
    assert np.abs(now["scores"] - at_once["scores"]).max() < SCORE_TOLERANCE


def test_the_unfused_graph_gives_the_ranking_of_the_fused_one(
    two_block_graphs: Any, old_graphs: Any, ask: Ask
) -> None:
    old = onnx.load(old_graphs.folder / "model.onnx", load_external_data=False).graph
    assert not {n.op_type for n in old.node} & {"Attention", "RotaryEmbedding", "RMSNormalization"}
    history = np.random.default_rng(3).integers(1, 41, (4, 30))
    graphs = map(plain, (two_block_graphs, old_graphs))
    fused, unfused = (ask(graph, history, items=40) for graph in graphs)
    np.testing.assert_array_equal(fused["items"], unfused["items"])
    assert np.abs(fused["scores"] - unfused["scores"]).max() < SCORE_TOLERANCE


def test_attention_is_one_node_a_block(two_block_graphs: Any) -> None:
    graph = onnx.load(two_block_graphs.folder / "model.onnx", load_external_data=False).graph
    operators = [node.op_type for node in graph.node]
    assert operators.count("Attention") == 2
    assert operators.count("RotaryEmbedding") == 2  # queries and keys of the first
    assert "Softmax" not in operators


def test_tables_are_in_the_file_beside_the_graphs(any_ranker: Ranker) -> None:
    looked_up = {"table", "rows.0", "rows.1", "rows.2"}
    wanted = {"encoder.onnx": looked_up, "model.onnx": set(looked_up)}
    if any_ranker.manifest.precision in CODE_BITS:
        wanted["model.onnx"] |= {"codes", "scales"}
    wanted["append.onnx"] = wanted["plain.onnx"] = wanted["model.onnx"]
    if any_ranker.manifest.precision == "int8":
        wanted["batch.onnx"] = wanted["model.onnx"]
    for name, tables in wanted.items():
        weights = onnx.load(
            any_ranker._opened.folder / name, load_external_data=False
        ).graph.initializer
        kept = {i.name.removesuffix("_fp16") for i in weights if i.external_data}
        assert kept >= tables
        assert max(i.dims[0] for i in weights if i.dims and not i.external_data) < 60


def test_all_graphs_refer_to_the_same_bytes(tiny_bundle: Path) -> None:
    encoder, whole, batch, *others = (
        {
            tensor.name: {entry.key: entry.value for entry in tensor.external_data}
            for tensor in onnx.load(tiny_bundle / name, load_external_data=False).graph.initializer
            if tensor.external_data
        }
        for name in ("encoder.onnx", "model.onnx", "batch.onnx", "append.onnx", "plain.onnx")
    )
    assert encoder == {name: whole[name] for name in encoder}
    assert batch == whole
    # The names of weights that the exporter makes up differ: what lies there does not.
    for other in others:
        assert sorted(map(str, other.values())) == sorted(map(str, whole.values()))


def test_a_whole_history_comes_in_chunks_and_nothing_is_kept(tiny_bundle: Path) -> None:
    session = session_of(tiny_bundle / "plain.onnx")
    assert {i.name: i.shape for i in session.get_inputs()} == {
        "history": ["chunks", "length"],
        "last": [1, 1, 1],
        "positions": ["chunks", "length"],
        "mask_0": ["chunks", 1, "length", "visible"],
        "mask_1": [1, 2, 1, "padded"],
        "keys": ["chunks", "visible"],
        "key_positions": ["chunks", "visible"],
        "k": [1],
        "bias": [64],
        "pool": [1],
    }
    assert {o.name: o.shape for o in session.get_outputs()} == {
        "user": [1, 16],
        "items": [1, "k"],
        "scores": [1, "k"],
        "pool_scores": [1, "pool"],
    }


def test_one_event_is_put_into_a_state_that_does_not_grow(tiny_bundle: Path) -> None:
    session = session_of(tiny_bundle / "append.onnx")
    recent, events = [2, "recent", 8], [1, "kept", 16]
    assert {i.name: i.shape for i in session.get_inputs()} == {
        "history": [1, 1],
        "last": [1, 1, 2],
        "last_key": [2, 1, 2],
        "positions": [1, 1],
        "mask_0": [1, 1, 1, "recent"],
        "mask_1": [1, 2, 1, "kept"],
        "past_key_0": recent,
        "past_value_0": recent,
        "past_events": events,
        "k": [1],
        "bias": [64],
        "pool": [1],
    }
    assert {o.name: o.shape for o in session.get_outputs()} == {
        "user": [1, 16],
        "present_key_0": recent,
        "present_value_0": recent,
        "present_events": events,
        "items": [1, "k"],
        "scores": [1, "k"],
        "pool_scores": [1, "pool"],
    }


def test_a_compact_bundle_has_no_rows(any_model: Any) -> None:
    config = any_model.model.config
    graph = onnx.load(
        any_model.ranker._opened.folder / "model.onnx", load_external_data=False
    ).graph
    has_rows = any(tensor.name.startswith("rows") for tensor in graph.initializer)
    can_have = config.kind == "sequence" and config.blocks > 1 and not config.time_gaps
    assert has_rows == (can_have and not any_model.settings.compact)


def test_exporting_twice_gives_the_same_bytes(
    two_block_graphs: Any, write_graphs: Callable[..., Any], tmp_path: Path
) -> None:
    write_graphs(two_block_graphs.model, tmp_path, "int8")
    for name in FILES:
        assert sha256(tmp_path / name) == sha256(two_block_graphs.folder / name), name


@pytest.mark.parametrize("trace", [b"site-packages", b".py", b"/tmp", b"/home", b"File "])
@pytest.mark.parametrize("name", FILES[:-1])
def test_no_local_path_or_stack_trace_is_in_a_graph(
    trace: bytes, name: str, tiny_bundle: Path
) -> None:
    assert trace not in (tiny_bundle / name).read_bytes()
