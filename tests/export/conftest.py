"""Models with random weights, their graphs, and graphs that somebody damaged."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from ranklet.bundle.folder import Opened, describe_files
from ranklet.bundle.manifest import FORMAT, MODEL, Manifest, Precision
from ranklet.engine.engine import Engine
from ranklet_export import graphs
from ranklet_export.graphs import export_graphs
from ranklet_export.parity import ParityReport, check_parity
from ranklet_training.model.model import ModelConfig, SequenceModel
from ranklet_training.model.seed import SeedModel
from ranklet_training.runs.checkpoint import Model

ITEMS = 40
Change = Callable[[onnx.GraphProto], None]


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

    def change(self, folder: Path, program: str, change: Change) -> "Written":
        """Return a copy in which one graph is changed, and nothing else."""
        shutil.copytree(self.folder, folder)
        model = onnx.load(folder / f"{program}.onnx")  # with its weights
        change(model.graph)
        (folder / f"{program}.onnx").write_bytes(model.SerializeToString())
        return self._replace(folder=folder)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Model]:
    """Make a model with random weights that are large enough for every part to matter."""

    def make(items: int = ITEMS, kinds: int = 0, **settings: Any) -> Model:
        # From 64 of 70 events on histories are encoded in chunks, of which the last is cut.
        defaults = {"width": 16, "heads": 2, "feed_forward": 2, "max_length": 70}
        config = ModelConfig(**{**defaults, "attention_window": 8, **settings})
        torch.manual_seed(1)
        is_seed = config.kind == "seed"
        model: Model = SequenceModel(config, items, kinds=kinds)
        if is_seed:
            model = SeedModel(config, items, users=4)
        model.init_weights()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "items" not in name:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        return model.eval().requires_grad_(requires_grad=False)

    return make


@pytest.fixture(scope="session")
def write_graphs() -> Callable[..., Written]:
    """Write the graphs of a model, without model.onnx if it is not ``whole``."""

    def write(
        model: Model,
        folder: Path,
        precision: Precision = "fp32",
        *,
        whole: bool = True,
        compact: bool = False,
    ) -> Written:
        folder.mkdir(exist_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            if not whole:
                patch.delitem(graphs.PURPOSES, MODEL)
            written = export_graphs(model, folder, precision, compact=compact)
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
            kinds=[f"kind {number}" for number in range(model.kinds)],
        )
        return Written(model, folder, manifest)

    return write


@pytest.fixture(scope="session")
def two_block_graphs(
    make_model: Callable[..., Model],
    write_graphs: Callable[..., Written],
    tmp_path_factory: pytest.TempPathFactory,
) -> Written:
    """The graphs of a model that nobody trained, int8: all programs there are."""
    return write_graphs(make_model(), tmp_path_factory.mktemp("two-block"), "int8")


@pytest.fixture(scope="session")
def damage() -> Callable[[onnx.GraphProto, str, Callable[[NDArray[Any]], object]], None]:
    """Change the values of an initializer, in place or by what a function returns."""

    def change(
        graph: onnx.GraphProto, name: str, changed: Callable[[NDArray[Any]], object]
    ) -> None:
        tensor = next(tensor for tensor in graph.initializer if tensor.name == name)
        values = numpy_helper.to_array(tensor).copy()
        changed(values)
        tensor.CopyFrom(numpy_helper.from_array(values, name))

    return change
