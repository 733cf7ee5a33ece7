"""The parity gate lets no graph pass that answers another way than its model."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from ranklet.bundle import TensorContract
from ranklet.errors import ParityError
from ranklet_export.parity import check_contract
from ranklet_training.runs.checkpoint import Model


def weights_of(graph: Path) -> list[str]:
    """Return the names of the float tensors of a graph that are not single constants."""
    return [
        tensor.name
        for tensor in onnx.load(graph, load_external_data=False).graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and np.prod(tensor.dims) > 1
    ]


def shift(values: NDArray[Any]) -> None:
    """Change one float, of the second row if there are rows: no score needs the first."""
    values.reshape(len(values), -1)[1, 0] += 0.5


def double_floats(values: NDArray[Any]) -> None:
    values *= 2


def set_first(value: float) -> Callable[[NDArray[Any]], None]:
    return lambda values: values.__setitem__(0, value)


@pytest.mark.parametrize(
    "graph", ["encoder.onnx", "model.onnx", "batch.onnx", "plain.onnx", "append.onnx"]
)
def test_a_changed_float_in_any_weight_fails_the_gate(
    graph: str, two_block_graphs: Any, damage: Any, tmp_path: Path
) -> None:
    names = [name for name in weights_of(two_block_graphs.folder / graph) if name != "scales"]
    assert len(names) > 20
    passed = []
    for place, name in enumerate(names):
        copy = two_block_graphs.copy_to(tmp_path / str(place))
        damage(copy.folder / graph, name, shift)
        try:
            copy.check()
        except ParityError:
            continue
        passed.append(name)
    assert passed == []


@pytest.mark.parametrize("row", [1, 2, 39, 40])
@pytest.mark.parametrize("name", ["table", "rows.0", "rows.1", "rows.2"])
def test_a_changed_row_of_a_table_fails_the_gate(
    name: str, row: int, two_block_graphs: Any, damage: Any, tmp_path: Path
) -> None:
    copy = two_block_graphs.copy_to(tmp_path / "copy")
    damage(copy.folder / "model.onnx", name, lambda values: double_floats(values[row]))
    with pytest.raises(ParityError, match=r"differs by|keeps another state"):
        copy.check()


def test_the_gate_says_where_and_by_how_much(
    two_block_graphs: Any, damage: Any, tmp_path: Path
) -> None:
    copy = two_block_graphs.copy_to(tmp_path / "copy")
    for graph in ("encoder.onnx", "model.onnx"):
        damage(copy.folder / graph, "model.norm.bias", set_first(1.0))
    message = (
        r"batch 1, length 1, past 0: \w+ differs by .* from the torch model, more than 0\.0001"
    )
    with pytest.raises(ParityError, match=message):
        copy.check()


def test_graphs_that_differ_from_each_other_fail_the_gate(
    two_block_graphs: Any, damage: Any, tmp_path: Path
) -> None:
    copy = two_block_graphs.copy_to(tmp_path / "copy")
    biases = [
        n
        for n in weights_of(copy.folder / "encoder.onnx")
        if re.search(r"blocks\.1\.attention_norm\.bias", n)
    ]
    damage(copy.folder / "encoder.onnx", biases[0], lambda values: values.__iadd__(1e-3))
    with pytest.raises(ParityError, match=r"encoder\.onnx keeps another state than what ranks"):
        copy.check()


def test_a_graph_that_gives_nan_fails_the_gate(
    two_block_graphs: Any, damage: Any, tmp_path: Path
) -> None:
    copy = two_block_graphs.copy_to(tmp_path / "copy")
    for graph in ("encoder.onnx", "model.onnx"):
        damage(copy.folder / graph, "model.norm.weight", set_first(np.nan))
    with pytest.raises(ParityError, match="the graph gives scores that are not finite"):
        copy.check()


CONTRACTS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "fixed length": ("inputs", "history", {"shape": ["batch", 7]}, r"takes .*\['batch', 7\]"),
    "fixed batch": (
        "inputs",
        "past_key_0",
        {"shape": [1, 2, "past", 8]},
        r"takes .*\[1, 2, 'past'",
    ),
    "another name": ("inputs", "k", {"name": "top"}, "takes .*'top'"),
    "short bias": ("inputs", "bias", {"shape": [40]}, r"bias has the shape \[40\] for 40 items"),
    "dynamic bias": ("inputs", "bias", {"shape": ["rows"]}, r"bias has the shape \['rows'\]"),
    "another width": ("outputs", "user", {"shape": ["batch", 8]}, r"gives .*\['batch', 8\]"),
}


@pytest.mark.parametrize(
    ("part", "name", "change", "message"), CONTRACTS.values(), ids=CONTRACTS.keys()
)
def test_another_contract_fails_the_gate(
    part: str, name: str, change: dict[str, Any], message: str, two_block_graphs: Any
) -> None:
    manifest = two_block_graphs.manifest
    tensors = [
        TensorContract(**{**vars(t), **change}) if t.name == name else t
        for t in getattr(manifest, part)
    ]
    with pytest.raises(ParityError, match=message):
        check_contract(replace(manifest, **{part: tensors}), two_block_graphs.model)


@pytest.mark.parametrize(
    "settings", [{"heads": 1}, {"blocks": 1}, {"time_gaps": True}, {"width": 32}], ids=str
)
def test_graphs_of_another_model_fail_the_gate(
    settings: dict[str, Any], two_block_graphs: Any, make_model: Callable[..., Model]
) -> None:
    with pytest.raises(ParityError, match=r"the graph (takes|gives)"):
        check_contract(two_block_graphs.manifest, make_model(**settings))


def test_the_report_names_points_of_every_kind(two_block_graphs: Any) -> None:
    report = two_block_graphs.check()
    assert "batch 1, length 64, past 0" in report.points
    assert "batch 1, length 1, past 63" in report.points
    assert report.points[-3:] == [
        "events appended one by one equal one long history",
        "plain.onnx gives what the model does, where it cuts a history, too",
        "append.onnx gives what model.onnx does, where the window rolls, too",
    ]
    assert 0 < report.max_score_difference < 1e-4
