"""A bundle appears whole, answers like its model in plain onnxruntime, and holds nothing local."""

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from ranklet import Manifest, Ranker
from ranklet.bundle import map_table
from ranklet.errors import BundleError, InputError, ParityError, RunError
from ranklet.files import sha256
from ranklet_export import export
from ranklet_export.export import export_bundle
from ranklet_export.graph import export_graph, find_table
from ranklet_export.parity import SCORE_TOLERANCE, check_parity
from ranklet_training.checkpoint import Model, Run, write_run, write_tensors
from ranklet_training.model import ModelConfig, SequenceModel
from ranklet_training.presets import configure
from ranklet_training.seed import SeedModel

Outputs = dict[str, NDArray[Any]]
ITEMS = 40


def session_of(path: Path) -> onnxruntime.InferenceSession:
    """Load a graph as a stranger to ranklet would."""
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def ask(
    session: onnxruntime.InferenceSession,
    history: NDArray[np.int64],
    before: Outputs | None = None,
    k: int = 10,
) -> Outputs:
    """Run a graph; ``before`` is what it gave for the events before."""
    inputs: Outputs = {"history": history, "k": np.array(k)}
    for state in session.get_inputs()[2:]:
        empty = np.zeros((len(history), state.shape[1], 0, state.shape[3]), np.float32)
        inputs[state.name] = (before or {}).get(state.name.replace("past", "present"), empty)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def make_model(**settings: Any) -> Model:
    """Return a model with random weights that are large enough for every part to matter."""
    defaults = {"width": 16, "heads": 2, "feed_forward": 2, "max_length": 64}
    config = ModelConfig(**{**defaults, **settings})
    torch.manual_seed(1)
    model: Model
    if config.kind == "seed":
        model = SeedModel(config, ITEMS, users=4)
    else:
        model = SequenceModel(config, ITEMS)
    model.init_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "items" not in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def table_of(model: Model) -> torch.Tensor:
    with torch.no_grad():
        return model.table()


@pytest.fixture(scope="module")
def graph(tiny_bundle: Path) -> onnxruntime.InferenceSession:
    return session_of(tiny_bundle / "model.onnx")


@pytest.fixture(scope="module")
def long_model() -> Model:
    """A model of 64 events that nobody trained."""
    return make_model()


@pytest.fixture(scope="module")
def long_graph(long_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graphs") / "long.onnx"
    export_graph(long_model, path, 23)
    return path


# The graph, in plain onnxruntime.


def test_batch_length_and_past_are_symbols_and_nothing_else_is(
    graph: onnxruntime.InferenceSession,
) -> None:
    shapes = {i.name: i.shape for i in graph.get_inputs()}
    state = ["batch", 2, "past", 8]  # heads, width of a head
    assert shapes.pop("history") == ["batch", "length"]
    assert shapes.pop("k") == []
    names = {f"past_{part}_{block}" for part in ("key", "value") for block in (0, 1)}
    assert shapes == dict.fromkeys(names, state)


def test_outputs_come_in_the_order_of_the_contract(graph: onnxruntime.InferenceSession) -> None:
    present = [f"present_{part}_{block}" for block in (0, 1) for part in ("key", "value")]
    assert [o.name for o in graph.get_outputs()] == ["items", "scores", "user", *present]


@pytest.mark.parametrize("length", [1, 2, 6, 20])
@pytest.mark.parametrize("batch", [1, 2, 64])
def test_the_graph_ranks_as_the_torch_model(
    batch: int, length: int, graph: onnxruntime.InferenceSession, tiny_run: Run
) -> None:
    model = tiny_run.load_model()
    history = np.random.default_rng(length).integers(1, 61, (batch, length))
    found = ask(graph, history, k=60)
    with torch.no_grad():
        table = model.table()
        user, _ = model.serve(torch.from_numpy(history), model.empty_state(batch), table)
    scores = (user @ table.T).numpy()
    in_order = np.take_along_axis(scores, found["items"], axis=1)
    assert np.abs(in_order - found["scores"]).max() < SCORE_TOLERANCE
    assert np.diff(in_order, axis=1).max() < SCORE_TOLERANCE
    assert (np.sort(found["items"], axis=1) == np.arange(1, 61)).all()


def test_padding_changes_no_answer(graph: onnxruntime.InferenceSession) -> None:
    history = np.random.default_rng(0).integers(1, 61, (2, 8))
    padded = np.pad(history, [(0, 0), (0, 7)])
    np.testing.assert_array_equal(ask(graph, history)["items"], ask(graph, padded)["items"])


@pytest.mark.parametrize("appended", [1, 10])
def test_events_appended_one_by_one_equal_one_long_history(
    appended: int, graph: onnxruntime.InferenceSession
) -> None:
    history = np.random.default_rng(1).integers(1, 61, (3, 20))
    at_once, now = ask(graph, history), ask(graph, history[:, : 20 - appended])
    for place in range(20 - appended, 20):
        now = ask(graph, history[:, place : place + 1], now)
    np.testing.assert_array_equal(now["items"], at_once["items"])
    for name in ("scores", "user", "present_key_1", "present_value_1"):
        assert np.abs(now[name] - at_once[name]).max() < SCORE_TOLERANCE, name


def test_fifty_events_and_ten_appended_ones_equal_sixty(long_graph: Path) -> None:
    session = session_of(long_graph)
    history = np.random.default_rng(2).integers(1, ITEMS + 1, (2, 60))
    at_once, now = ask(session, history), ask(session, history[:, :50])
    for place in range(50, 60):
        now = ask(session, history[:, place : place + 1], now)
    np.testing.assert_array_equal(now["items"], at_once["items"])
    assert np.abs(now["scores"] - at_once["scores"]).max() < SCORE_TOLERANCE


def test_the_unfused_graph_gives_the_ranking_of_the_fused_one(
    long_model: Model, long_graph: Path, tmp_path: Path
) -> None:
    export_graph(long_model, tmp_path / "unfused.onnx", 20)
    operators = {node.op_type for node in onnx.load(tmp_path / "unfused.onnx").graph.node}
    assert not operators & {"Attention", "RotaryEmbedding"}
    history = np.random.default_rng(3).integers(1, ITEMS + 1, (4, 30))
    fused, unfused = (ask(session_of(p), history) for p in (long_graph, tmp_path / "unfused.onnx"))
    np.testing.assert_array_equal(fused["items"], unfused["items"])
    assert np.abs(fused["scores"] - unfused["scores"]).max() < SCORE_TOLERANCE


def test_attention_is_one_node_a_block(long_graph: Path) -> None:
    operators = [node.op_type for node in onnx.load(long_graph).graph.node]
    assert operators.count("Attention") == 2
    assert operators.count("RotaryEmbedding") == 4
    assert "Softmax" not in operators


def test_exporting_twice_gives_the_same_bytes(
    long_model: Model, long_graph: Path, tmp_path: Path
) -> None:
    export_graph(long_model, tmp_path / "again.onnx", 23)
    assert sha256(tmp_path / "again.onnx") == sha256(long_graph)


@pytest.mark.parametrize(
    "settings",
    [
        {"blocks": 0},
        {"kind": "seed", "heads": 1},
        {"blocks": 1, "max_length": 1},
        {"kind": "seed", "heads": 1, "max_length": 3},
    ],
    ids=["zero-block", "seed", "one-event", "short-seed"],
)
def test_every_shape_of_model_passes_the_gate(settings: dict[str, Any], tmp_path: Path) -> None:
    model = make_model(**settings)
    export_graph(model, tmp_path / "model.onnx", 23)
    report = check_parity(tmp_path / "model.onnx", model, table_of(model))
    assert report.max_score_difference < SCORE_TOLERANCE


# The gate.


def damage(path: Path, name: str, change: Callable[[NDArray[Any]], None]) -> None:
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    change(values)
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(model, path)


def weights_of(path: Path) -> list[str]:
    """Return the names of the float tensors of a graph that are not single constants."""
    return [
        tensor.name
        for tensor in onnx.load(path).graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and np.prod(tensor.dims) > 1
    ]


def test_a_changed_float_in_any_weight_fails_the_gate(
    long_model: Model, long_graph: Path, tmp_path: Path
) -> None:
    copy, passed = tmp_path / "model.onnx", list[str]()
    names = weights_of(long_graph)
    assert len(names) > 20
    for name in names:
        shutil.copy(long_graph, copy)

        def change(values: NDArray[Any]) -> None:
            # The second row, if there are rows: no score needs the first of the table.
            values.reshape(len(values), -1)[1, 0] += 0.5

        damage(copy, name, change)
        try:
            check_parity(copy, long_model, table_of(long_model))
        except ParityError:
            continue
        passed.append(name)
    assert passed == []


def test_the_gate_says_where_and_by_how_much(
    long_model: Model, long_graph: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "model.onnx"
    shutil.copy(long_graph, copy)
    damage(copy, "model.norm.bias", lambda values: values.__setitem__(0, 1.0))
    message = (
        r"batch 1, length 1, past 0: \w+ differs by .* from the torch model, more than 0\.0001"
    )
    with pytest.raises(ParityError, match=message):
        check_parity(copy, long_model, table_of(long_model))


def test_a_graph_that_gives_nan_fails_the_gate(
    long_model: Model, long_graph: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "model.onnx"
    shutil.copy(long_graph, copy)
    damage(copy, "model.norm.weight", lambda values: values.__setitem__(0, np.nan))
    with pytest.raises(ParityError, match="the graph gives scores that are not finite"):
        check_parity(copy, long_model, table_of(long_model))


def test_a_graph_with_a_fixed_axis_fails_the_gate(
    long_model: Model, long_graph: Path, tmp_path: Path
) -> None:
    model = onnx.load(long_graph)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 7
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ParityError, match=r"the graph takes .*'history': \['batch', 7\]"):
        check_parity(tmp_path / "model.onnx", long_model, table_of(long_model))


def test_a_graph_of_another_model_fails_the_gate(long_graph: Path) -> None:
    other = make_model(heads=1)
    with pytest.raises(ParityError, match="the graph takes"):
        check_parity(long_graph, other, table_of(other))


# The bundle.


def test_the_table_is_in_the_file_once_where_the_manifest_says(
    tiny_bundle: Path, tiny_run: Run
) -> None:
    manifest = Manifest.read(tiny_bundle)
    rows = table_of(tiny_run.load_model()).numpy()
    data = (tiny_bundle / "model.onnx").read_bytes()
    assert data.count(rows.tobytes()) == 1
    assert data.index(rows.tobytes()) == manifest.table.offset
    np.testing.assert_array_equal(map_table(tiny_bundle, manifest), rows)


def test_a_table_that_was_changed_is_not_found(tiny_bundle: Path, tiny_run: Run) -> None:
    table = table_of(tiny_run.load_model()).clone()
    table[1, 0] += 1
    with pytest.raises(RuntimeError, match="in the graph 0 times, not once"):
        find_table(tiny_bundle / "model.onnx", table)


@pytest.mark.parametrize("trace", [b"site-packages", b".py", b"/tmp", b"/home", b"File "])
def test_no_local_path_or_stack_trace_is_in_the_graph(trace: bytes, tiny_bundle: Path) -> None:
    assert trace not in (tiny_bundle / "model.onnx").read_bytes()


def test_the_working_folder_is_in_no_file_of_the_bundle(tiny_bundle: Path, tiny_run: Run) -> None:
    for path in tiny_bundle.iterdir():
        data = path.read_bytes()
        for local in (Path.cwd(), tiny_run.path, tiny_bundle.parent):
            assert str(local).encode() not in data, path.name


def test_the_ranker_gives_the_golden_answers(tiny_bundle: Path, tiny_ranker: Ranker) -> None:
    golden = json.loads((tiny_bundle / "golden.json").read_text())
    assert {len(answer["history"]) for answer in golden} >= {1, 2, 20}
    for answer in golden:
        ranking = tiny_ranker.rank(answer["history"], k=10)
        assert list(ranking.items) == answer["items"]
        assert np.abs(ranking.scores - answer["scores"]).max() < SCORE_TOLERANCE


def test_the_manifest_says_what_was_exported(tiny_bundle: Path, tiny_run: Run) -> None:
    manifest = Manifest.read(tiny_bundle)
    assert (manifest.items, manifest.max_length, manifest.width, manifest.opset) == (60, 20, 16, 23)
    assert manifest.id_type == "string"
    assert manifest.training == tiny_run.config.to_dict()
    assert manifest.data == tiny_run.data
    assert manifest.parity["max_score_difference"] < SCORE_TOLERANCE


def test_popularity_is_the_share_of_training_events(tiny_bundle: Path, tiny_run: Run) -> None:
    counts = tiny_run.catalogue["training_events"].to_numpy()
    found = np.load(tiny_bundle / "popularity.npy")
    np.testing.assert_allclose(found, counts / counts.sum(), rtol=1e-6)


# Refusals, and what a failure leaves: nothing.


@pytest.fixture
def traced(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let exports of ``tiny_run`` copy the graph that there is, in the place of tracing it anew."""

    def copy(model: Model, path: Path, opset: int) -> None:
        shutil.copy(tiny_bundle / "model.onnx", path)

    monkeypatch.setattr(export, "export_graph", copy)


def fail_in(place: str, error: BaseException, patch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    patch.setattr(export, place, fail)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("place", ["check_parity", "write_catalogue", "model_card", "find_table"])
def test_an_export_that_fails_leaves_nothing_behind(
    place: str, tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = (
        ParityError("scores differ") if place == "check_parity" else OSError(errno.ENOSPC, "full")
    )
    fail_in(place, error, monkeypatch)
    with pytest.raises(type(error), match=r"scores differ|full"):
        export_bundle(tiny_run.path, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("traced")
def test_a_replacement_that_fails_leaves_the_old_bundle(
    tiny_run: Run, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    fail_in("check_parity", ParityError("scores differ"), monkeypatch)
    with pytest.raises(ParityError, match="scores differ"):
        export_bundle(tiny_run.path, bundle, replace=True)
    assert list(tmp_path.iterdir()) == [bundle]
    Manifest.read(bundle)


def test_an_existing_folder_is_refused(tiny_run: Run, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="exists: choose another folder, or replace it"):
        export_bundle(tiny_run.path, tmp_path)


def test_a_folder_that_is_no_bundle_is_not_replaced(tiny_run: Run, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(BundleError, match="is not a bundle, so it is not replaced"):
        export_bundle(tiny_run.path, tmp_path, replace=True)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.usefixtures("traced")
def test_a_bundle_is_replaced_on_request(tiny_run: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    (bundle / "README.md").write_text("old")
    export_bundle(tiny_run.path, bundle, replace=True)
    assert list(tmp_path.iterdir()) == [bundle]
    assert (bundle / "README.md").read_text() != "old"


@pytest.mark.parametrize("opset", [17, 24])
def test_an_opset_that_is_not_supported_is_refused(
    opset: int, tiny_run: Run, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"opset must be from 18 to 23, got {opset}"):
        export_bundle(tiny_run.path, tmp_path / "bundle", opset=opset)


def test_a_run_that_never_reached_its_first_epoch_is_refused(tiny_run: Run, tmp_path: Path) -> None:
    run = replace(tiny_run, path=tmp_path / "run")
    run.path.mkdir()
    write_run(run)
    with pytest.raises(RunError, match=r"best\.safetensors is missing"):
        export_bundle(run.path, tmp_path / "bundle")


def test_weights_that_are_not_finite_are_refused_by_name(tiny_run: Run, tmp_path: Path) -> None:
    run = replace(tiny_run, path=tmp_path / "run")
    run.path.mkdir()
    write_run(run)
    weights = dict(tiny_run.load_model().state_dict())
    weights["norm.bias"] = torch.full_like(weights["norm.bias"], torch.nan)
    write_tensors(run.path / "best.safetensors", weights, {})
    with pytest.raises(ParityError, match=r"weight norm\.bias holds NaN or infinity"):
        export_bundle(run.path, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_catalogue_of_one_item_and_histories_of_one_event_export(
    tiny_run: Run, tmp_path: Path
) -> None:
    config = configure({"width": 8, "blocks": 1, "max_length": 1, "feed_forward": 1})
    catalogue = pl.DataFrame({"item_id": [7], "training_events": [3]})
    run = Run(tmp_path / "run", config, tiny_run.data, {}, catalogue)
    run.path.mkdir()
    write_run(run)
    model = run.build_model()
    model.init_weights()
    write_tensors(run.path / "best.safetensors", model.state_dict(), {})
    export_bundle(run.path, tmp_path / "bundle")
    ranking = Ranker.load(tmp_path / "bundle", provider="cpu").rank([7, 7, 7], k=10)
    assert list(ranking.items) == [7]
