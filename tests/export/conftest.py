"""Graphs of models with random weights, and graphs that somebody damaged."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from ranklet.bundle import (
    DATA,
    FORMAT,
    GRAPH,
    Manifest,
    Opened,
    Precision,
    TensorContract,
    describe_files,
)
from ranklet.graph import Graphs
from ranklet_export.graph import export_graphs
from ranklet_export.parity import ParityReport, check_parity
from ranklet_training.model.model import ModelConfig, SequenceModel
from ranklet_training.model.seed import SeedModel
from ranklet_training.runs.checkpoint import Model

ITEMS = 40


def _make_model(items: int = ITEMS, **settings: Any) -> Model:
    """Return a model with random weights that are large enough for every part to matter."""
    defaults = {"width": 16, "heads": 2, "feed_forward": 2, "max_length": 64, "attention_window": 8}
    config = ModelConfig(**{**defaults, **settings})
    torch.manual_seed(1)
    model: Model
    if config.kind == "seed":
        model = SeedModel(config, items, users=4)
    else:
        model = SequenceModel(config, items)
    model.init_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "items" not in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval().requires_grad_(requires_grad=False)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Model]:
    return _make_model


class Written(NamedTuple):
    """A model and the folder of its graphs."""

    model: Model
    folder: Path
    manifest: Manifest

    def load(self) -> Graphs:
        return Graphs(Opened(self.folder), self.manifest, "cpu", 1)

    def check(self) -> ParityReport:
        """Let the graphs pass the gate."""
        return check_parity(self.load(), self.manifest, self.model, self.model.table())

    def copy_to(self, folder: Path) -> "Written":
        return self._replace(folder=Path(shutil.copytree(self.folder, folder)))


@pytest.fixture(scope="session")
def write_graphs() -> Callable[..., Written]:
    return _write_graphs


def _write_graphs(
    model: Model, folder: Path, precision: Precision = "fp32", opset: int = 23, **options: bool
) -> Written:
    folder.mkdir(exist_ok=True)
    written = export_graphs(model, folder, opset, precision, **options)
    session = onnxruntime.InferenceSession(str(folder / GRAPH), providers=["CPUExecutionProvider"])
    inputs, outputs = (
        [TensorContract(t.name, t.type, list(t.shape)) for t in tensors]
        for tensors in (session.get_inputs(), session.get_outputs())
    )
    config = model.config
    manifest = Manifest(
        format=FORMAT,
        items=len(model.table()) - 1,
        id_type="string",
        max_length=config.max_length,
        width=config.width,
        precision=precision,
        opset=opset,
        inputs=inputs,
        outputs=outputs,
        table=written.table,
        rounding=written.rounding,
        rotary_base=config.rotary_base if config.kind == "sequence" and config.blocks > 1 else None,
        masks=written.masks,
        **{name: {} for name in ("training", "data", "quality", "parity", "gate")},
        versions={},
        files=describe_files(folder),
    )
    return Written(model, folder, manifest)


@pytest.fixture(scope="session")
def two_block_graphs(build_once: Callable[..., Path]) -> Written:
    """A model of 64 events that nobody trained, int8."""
    return _write_once(build_once, "two-block-graphs", 23)


@pytest.fixture(scope="session")
def old_graphs(build_once: Callable[..., Path]) -> Written:
    """The same model without nodes for attention, rotation and norms."""
    return _write_once(build_once, "old-graphs", 20)


def _write_once(build_once: Callable[..., Path], name: str, opset: int) -> Written:
    """Let all test processes share the graphs; the manifest lies beside them."""

    def make(path: Path) -> None:
        written = _write_graphs(_make_model(), path, "int8", opset)
        (path / "manifest.pickle").write_bytes(pickle.dumps(written.manifest))

    folder = build_once(name, make)
    manifest: Manifest = pickle.loads((folder / "manifest.pickle").read_bytes())
    return Written(_make_model(), folder, manifest)


Change = Callable[[NDArray[Any]], None]


@pytest.fixture(scope="session")
def damage() -> Callable[[Path, str, Change], None]:
    """Change a tensor of a graph where it lies: in the graph, or in the file of the tables."""
    return _damage


def _damage(graph: Path, name: str, change: Change) -> None:
    model = onnx.load(graph, load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.name == name)
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        values = numpy_helper.to_array(tensor).copy()
        change(values)
        tensor.CopyFrom(numpy_helper.from_array(values, name))
        graph.write_bytes(model.SerializeToString())
        return
    place = {entry.key: entry.value for entry in tensor.external_data}
    assert place["location"] == DATA
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    shape = tuple(tensor.dims)
    offset = int(place["offset"])
    values = np.memmap(graph.with_name(DATA), kind, "r+", offset=offset, shape=shape)
    change(values)
    values.flush()
