"""Make a bundle of a run: graph, parity gate, catalogue, golden answers, model card, manifest."""

import json
import platform
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from ranklet.bundle import (
    FORMAT,
    GRAPH,
    MANIFEST,
    Manifest,
    Table,
    TensorContract,
    describe_files,
    write_catalogue,
)
from ranklet.errors import BundleError, InputError, ParityError
from ranklet.files import atomic_folder, atomic_write
from ranklet.provider import create_session
from ranklet.ranker import Ranker
from ranklet.vocabulary import Vocabulary
from ranklet_export.card import model_card
from ranklet_export.graph import OPSETS, export_graph, find_table
from ranklet_export.parity import ParityReport, check_parity
from ranklet_training.checkpoint import Model, Run, read_run

DEFAULT_OPSET = 23
GOLDEN_LENGTHS = (1, 2, 5, 20, 100)
GOLDEN_K = 10


@dataclass(frozen=True)
class ExportReport:
    """What an export made."""

    path: Path
    bytes: int
    opset: int
    nodes: int
    parity: ParityReport
    seconds: float


def export_bundle(
    run_path: Path, bundle: Path, *, opset: int = DEFAULT_OPSET, replace: bool = False
) -> ExportReport:
    """Export the best weights of a run; the bundle appears whole, or not at all.

    Args:
        run_path: Folder of a run.
        bundle: Where the bundle goes.
        opset: ONNX operator set, 18 to 23. Below 23 the graph has more nodes and is slower, and
            runs on onnxruntime builds that lack the Attention operator.
        replace: Put the new bundle in the place of an existing one.

    Raises:
        InputError: The opset is not supported.
        RunError: The run is missing or damaged.
        BundleError: There is something at ``bundle`` already.
        ParityError: The graph does not answer like the model.
    """
    begin = time.perf_counter()
    if opset not in OPSETS:
        raise InputError(f"opset must be from {OPSETS[0]} to {OPSETS[-1]}, got {opset}")
    if bundle.exists():
        if not replace:
            raise BundleError(f"{bundle} exists: choose another folder, or replace it (--replace)")
        if not (bundle / MANIFEST).is_file():
            raise BundleError(f"{bundle} is not a bundle, so it is not replaced")
    run = read_run(run_path)
    model = run.load_model()
    table = model.table()
    _check_finite(model)
    with atomic_folder(bundle) as folder:
        export_graph(model, folder / GRAPH, opset)
        parity = check_parity(folder / GRAPH, model, table)
        titles = None
        if "title" in run.catalogue.columns:
            titles = [title or "" for title in run.catalogue["title"].to_list()]
        counts = run.catalogue["training_events"].to_numpy()
        popularity = (counts / counts.sum()).astype(np.float32)
        write_catalogue(folder, run.vocabulary, titles, popularity)
        golden = golden_answers(model, table, run.vocabulary, counts)
        atomic_write(folder / "golden.json", (json.dumps(golden, indent=1) + "\n").encode())
        nodes = _write_manifest(folder, run, table, opset, parity)
    size = sum(path.stat().st_size for path in bundle.iterdir())
    return ExportReport(bundle, size, opset, nodes, parity, time.perf_counter() - begin)


def golden_answers(
    model: Model, table: Tensor, vocabulary: Vocabulary, counts: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """Return histories of popular items with the answers of the torch model."""
    random = np.random.default_rng(0)
    k = min(GOLDEN_K, len(vocabulary))
    answers = []
    for length in sorted({min(n, model.config.max_length) for n in GOLDEN_LENGTHS}):
        history = random.choice(len(counts), length, p=counts / counts.sum()) + 1
        with torch.no_grad():
            rows = torch.from_numpy(history)[None]
            gaps = (torch.zeros_like(rows), torch.zeros_like(rows[:, 0]))  # unknown
            user, _ = model.serve(
                rows, model.empty_state(1), table, gaps if model.config.time_gaps else None
            )
            scores, items = (user @ table[1:].T)[0].topk(k)
        answers.append(
            {
                "history": vocabulary.ids(history),
                "items": vocabulary.ids(items.numpy() + 1),
                "scores": [round(float(score), 5) for score in scores],
            }
        )
    return answers


def _check_finite(model: Model) -> None:
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise ParityError(f"weight {name} holds NaN or infinity: the run is not usable")


def _write_manifest(folder: Path, run: Run, table: Tensor, opset: int, parity: ParityReport) -> int:
    """Write model card and manifest, and return the number of graph nodes."""
    session, _ = create_session(folder / GRAPH, "cpu", 1)
    evaluation = run.path / "evaluation.json"
    versions = {
        **{name: version(name) for name in ("ranklet", "torch", "onnx", "onnxruntime")},
        "python": platform.python_version(),
    }
    manifest = Manifest(
        format=FORMAT,
        items=len(run.vocabulary),
        id_type="string" if run.vocabulary.is_text else "int64",
        max_length=run.config.model.max_length,
        width=run.config.model.width,
        precision="fp32",
        opset=opset,
        inputs=[TensorContract(i.name, i.type, list(i.shape)) for i in session.get_inputs()],
        outputs=[TensorContract(o.name, o.type, list(o.shape)) for o in session.get_outputs()],
        table=Table(GRAPH, find_table(folder / GRAPH, table), *table.shape),
        training=run.config.to_dict(),
        data=run.data,
        quality=json.loads(evaluation.read_bytes()) if evaluation.exists() else {},
        parity=asdict(parity),
        versions=versions,
        files=describe_files(folder),
    )
    manifest.write(folder)
    card = model_card(manifest, Ranker.load(folder, provider="cpu"))
    atomic_write(folder / "README.md", card.encode())
    Manifest(**{**vars(manifest), "files": describe_files(folder)}).write(folder)
    return len(onnx.load(folder / GRAPH, load_external_data=False).graph.node)
