"""Models with random weights, their graphs, and graphs that somebody damaged."""

import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from ranklet.bundle.folder import Opened, describe_files
from ranklet.bundle.manifest import FORMAT, WEIGHTS, Manifest, Precision
from ranklet.engine.engine import Engine
from ranklet.engine.sessions import create_session
from ranklet_export.graphs import OPSET, export_graphs
from ranklet_export.parity import ParityReport, check_parity
from ranklet_export.writer import GraphWriter, WeightFile
from ranklet_training.model.model import ModelConfig, SequenceModel
from ranklet_training.model.seed import SeedModel
from ranklet_training.runs.checkpoint import Model

ITEMS = 40


def _make_model(items: int = ITEMS, **settings: Any) -> Model:
    """Return a model with random weights that are large enough for every part to matter."""
    # Histories of up to 70 events: from 64 on they are encoded in chunks, of which the last is cut.
    defaults = {"width": 16, "heads": 2, "feed_forward": 2, "max_length": 70, "attention_window": 8}
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


@pytest.fixture(scope="session")
def load_graph() -> Callable[[Callable[[GraphWriter], Any]], onnxruntime.InferenceSession]:
    """Load the graph that a function writes, as the runtime would."""
    return _load_graph


def _load_graph(write: Callable[[GraphWriter], Any]) -> onnxruntime.InferenceSession:
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "graph.onnx"
        with path.with_name(WEIGHTS).open("wb") as file:
            writer = GraphWriter(WeightFile(file))
            write(writer)
        path.write_bytes(writer.model(OPSET).SerializeToString())
        onnx.checker.check_model(path, full_check=True)
        return create_session(path, "cpu", 1)[0]


class Written(NamedTuple):
    """A model and the folder of its graphs."""

    model: Model
    folder: Path
    manifest: Manifest

    def load(self) -> Engine:
        return Engine(Opened(self.folder), self.manifest, "cpu", 1)

    def check(self) -> ParityReport:
        """Let the graphs pass the gate."""
        return check_parity(self.load(), self.model, self.model.table())

    def change(self, folder: Path, program: str, change: "Change") -> "Written":
        """Return a copy in which one graph is changed, and nothing else."""
        shutil.copytree(self.folder, folder)
        model = onnx.load(folder / f"{program}.onnx")  # with its weights
        change(model.graph)
        (folder / f"{program}.onnx").write_bytes(model.SerializeToString())
        return self._replace(folder=folder)


Change = Callable[[onnx.GraphProto], None]


@pytest.fixture(scope="session")
def write_graphs() -> Callable[..., Written]:
    return _write_graphs


def _write_graphs(
    model: Model, folder: Path, precision: Precision = "fp32", **options: bool
) -> Written:
    folder.mkdir(exist_ok=True)
    written = export_graphs(model, folder, precision, **options)
    manifest = Manifest(
        format=FORMAT,
        items=len(model.table()) - 1,
        id_type="string",
        max_length=model.config.max_length,
        width=model.config.width,
        precision=precision,
        programs=written.programs,
        table=written.table,
        pool=written.pool,
        rounding=written.rounding,
        **{name: {} for name in ("training", "data", "quality", "parity", "gate", "versions")},
        files=describe_files(folder),
    )
    return Written(model, folder, manifest)


@pytest.fixture(scope="session")
def two_block_graphs(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The graphs of a model that nobody trained, int8: all programs there are."""
    return _write_graphs(_make_model(), tmp_path_factory.mktemp("two-block") / "graphs", "int8")


@pytest.fixture(scope="session")
def damage() -> Callable[[onnx.GraphProto, str, Callable[[NDArray[Any]], None]], None]:
    """Change the values of an initializer."""
    return _damage


def _damage(graph: onnx.GraphProto, name: str, change: Callable[[NDArray[Any]], None]) -> None:
    tensor = next(tensor for tensor in graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(tensor).copy()
    change(values)
    tensor.CopyFrom(numpy_helper.from_array(values, name))
