"""Export of a run to a bundle: graphs, gates, catalogue, golden answers, card, manifest."""

import json
import logging
import platform
import re
import time
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ranklet.attributes import Attributes
from ranklet.bundle.folder import Opened, describe_files, write_catalogue
from ranklet.bundle.manifest import CARD, FORMAT, GOLDEN, Attribute, Manifest, Precision
from ranklet.bundle.vocabulary import Vocabulary
from ranklet.engine.engine import Engine
from ranklet.errors import InputError, ParityError, PrecisionError, RunError
from ranklet.files.atomic import atomic_write
from ranklet.ranker import Ranker
from ranklet.serving import Serving
from ranklet.values import reason
from ranklet_export.card import model_card
from ranklet_export.explanations import measure_explanations
from ranklet_export.gate import check_ranking
from ranklet_export.graphs import WrittenGraphs, export_graphs
from ranklet_export.items import ItemSource, check_items, read_item_source
from ranklet_export.parity import ParityReport, check_parity
from ranklet_export.probes import choose_probes, draw_histories
from ranklet_export.target import check_target, new_bundle
from ranklet_training.judge.evaluate import SERVED
from ranklet_training.model.model import ModelConfig, SequenceModel
from ranklet_training.runs.checkpoint import MALFORMED, Model, Questions, has_file, read_run
from ranklet_training.runs.presets import RunConfig, configure

logger = logging.getLogger(__name__)

MOST_ITEMS = 100_000_000  # of random weights
GOLDEN_LENGTHS = (1, 2, 5, 20, 100)
GOLDEN_K = 10
NO_DATA = {"digest": "random weights", "split": "none: nobody trained these weights"}


@dataclass(frozen=True)
class ExportReport:
    """The result of an export."""

    path: Path
    bytes: int
    precision: Precision
    nodes: dict[str, int]  # of each graph
    parity: ParityReport
    gate: dict[str, Any]  # see ``gate.check_ranking``; empty for fp32
    seconds: float


@dataclass(frozen=True)
class Source:
    """The inputs of an export."""

    model: Model
    vocabulary: Vocabulary
    titles: list[str] | None
    counts: NDArray[np.int64]  # training events of each item
    recent: NDArray[np.int64] | None  # the last ones of them; None: a run that did not count them
    questions: Questions
    training: dict[str, Any]
    data: dict[str, Any]
    quality: dict[str, Any]
    exclude_seen: bool  # default of the bundle
    new: ItemSource | None = None  # attributes of the items
    kinds: list[str] = field(default_factory=list)  # of events, that the model uses
    target: str = ""  # the kind of event that the figures are about, "" for any


@dataclass(frozen=True)
class Settings:
    """Settings of an export.

    Attributes:
        precision: Of the scores that choose from the catalogue; ``"auto"`` is int8 if it passes the
            gate, else fp32.
        compact: Leave out the first block's queries, keys and values of every item.
        allow_drop: The largest share of NDCG@10 that the precision may cost.
        exclude_seen: Leave seen items out of rankings by default; None: as the run chose.
        replace: Replace an existing bundle.
        index: ``"clusters"``: scan only the items that are near to a user (``search``).
    """

    precision: Precision | Literal["auto"] = "auto"
    compact: bool = False
    allow_drop: float = 0.005
    exclude_seen: bool | None = None
    replace: bool = False
    index: Literal["none", "clusters"] = "none"

    def __post_init__(self) -> None:
        """Validate the settings."""
        if self.precision not in ("auto", *get_args(Precision)):
            names = ", ".join(get_args(Precision))
            raise InputError(f"precision must be auto or one of {names}, got {self.precision!r}")
        if self.index not in ("none", "clusters"):
            raise InputError(f"index must be none or clusters, got {self.index!r}")
        if self.index == "clusters" and self.precision not in ("auto", "int8"):
            raise InputError(f"an index holds codes of int8, and the precision is {self.precision}")
        if not 0 <= self.allow_drop <= 1:
            raise InputError(f"allow_drop must be from 0 to 1, got {self.allow_drop}")


DEFAULT = Settings()


def export_bundle(run_path: Path, bundle: Path, settings: Settings = DEFAULT) -> ExportReport:
    """Export the best weights of a run; the bundle appears whole, or not at all.

    Args:
        run_path: Folder of the run.
        bundle: Folder of the bundle.
        settings: How it is exported.

    Raises:
        RunError: The run is missing or damaged.
        BundleError: ``bundle`` exists and must not be replaced.
        ParityError: A graph differs from the model, or its precision costs too much.
    """
    check_target(bundle, replace=settings.replace)
    return _export(_read_source(run_path, settings.exclude_seen), bundle, settings)


def export_random(
    shape: str,
    bundle: Path,
    settings: Settings = DEFAULT,
    seed: int = 0,
    rows: NDArray[np.float32] | None = None,
) -> ExportReport:
    """Export a model with random weights, to size hardware before there is data.

    Args:
        shape: ``items`` (their ids are "1", "2", ...), ``length`` (maximum, default 200) and
            settings of a model, like ``items=12000,width=64,blocks=2,heads=1``.
        bundle: Folder of the bundle.
        settings: How it is exported.
        seed: Of the weights.
        rows: Of the item table, (items, D); None: drawn, too.

    Raises:
        InputError: The shape can't be used.
        BundleError, ParityError: As in ``export_bundle``.
    """
    check_target(bundle, replace=settings.replace)
    items, config = _read_shape(shape)
    torch.manual_seed(seed)
    model = SequenceModel(config, items)
    model.init_weights()
    with torch.no_grad():  # rows of length 1, and scores that differ
        model.items.item[1:].normal_(std=config.width**-0.5)
        if rows is not None:
            model.items.item[1:] = torch.from_numpy(rows)
    counts = np.ones(items, dtype=np.int64)
    source = Source(
        model=model.eval().requires_grad_(requires_grad=False),
        vocabulary=Vocabulary(sorted(map(str, range(1, items + 1)))),
        titles=None,
        counts=counts,
        recent=None,
        questions=popular_histories(counts, config.max_length),
        training=RunConfig(model=config).to_dict(),
        data={"events": 0, "users": 0, "items": items, **NO_DATA},
        quality={},
        exclude_seen=bool(settings.exclude_seen),
    )
    return _export(source, bundle, settings)


def _read_shape(shape: str) -> tuple[int, ModelConfig]:
    """Return the number of items and the model of a shape, ``items=...,width=...``."""
    pairs = [part.partition("=") for part in shape.split(",")]
    names = [{"length": "max_length"}.get(name.strip(), name.strip()) for name, _, _ in pairs]
    allowed = {"items", *(f.name for f in fields(ModelConfig))} - {"kind", "dropout"}
    for place, name in enumerate(names):
        if name not in allowed or name in names[:place]:
            why = "twice" if name in allowed else f"not one of {', '.join(sorted(allowed))}"
            raise InputError(f"the shape of a random bundle has {name!r}, {why}: {shape!r}")
    values = dict(zip(names, (value.strip() for _, _, value in pairs), strict=True))
    items = values.pop("items", "")
    if not re.fullmatch(r"[0-9]{1,12}", items) or not 0 < int(items) <= MOST_ITEMS:
        raise InputError(f"a random bundle needs items=..., up to {MOST_ITEMS:,}; got {shape!r}")
    return int(items), configure({**values, "dropout": 0.0}).model


def _read_source(path: Path, exclude_seen: bool | None) -> Source:
    run = read_run(path)
    exclude_seen = run.exclude_seen if exclude_seen is None else exclude_seen
    titles = None
    if "title" in run.catalogue.columns:
        titles = [title or "" for title in run.catalogue["title"].to_list()]
    counts, model = run.catalogue["training_events"].to_numpy(), run.load_model()
    return Source(
        model=model,
        vocabulary=run.vocabulary,
        titles=titles,
        counts=counts,
        recent=run.catalogue["recent_events"].to_numpy()
        if "recent_events" in run.catalogue
        else None,
        questions=run.read_questions() or popular_histories(counts, run.config.model.max_length),
        training=run.config.to_dict(),
        data=run.data,
        quality=_read_evaluation(path / "evaluation.json", exclude_seen=exclude_seen),
        exclude_seen=exclude_seen,
        new=read_item_source(run, model),
        kinds=run.kinds,
        target=run.config.train.target,
    )


def _read_evaluation(path: Path, *, exclude_seen: bool) -> dict[str, Any]:
    """Return the table of a run; "as served" is by the default of the bundle."""
    if not has_file(path):
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        for row in found["rows"]:
            _ = row["model"], row["served"]["NDCG@10"]
            if row["exclude_seen"] != exclude_seen:  # chosen at export
                served = row["masked" if exclude_seen else "unmasked"]
                row.update(exclude_seen=exclude_seen, served=served)
        found["protocols"]["served"] = SERVED[exclude_seen]
    except MALFORMED as error:
        why = f"damaged or old ({reason(error)})"
        raise RunError(f"{path} is {why}: evaluate the run again") from error
    return found


def popular_histories(counts: NDArray[np.int64], longest: int, how_many: int = 256) -> Questions:
    """Draw histories of popular items, in place of held-out ones."""
    return Questions(draw_histories(counts, longest, how_many), None)


def _export(source: Source, bundle: Path, settings: Settings) -> ExportReport:
    try:
        precision = "int8" if settings.precision == "auto" else settings.precision
        return _export_as(precision, source, bundle, settings)
    except PrecisionError as error:
        if settings.precision != "auto" or settings.index == "clusters":
            raise
        logger.warning("int8 does not pass, so this bundle is fp32: %s", error)
        return _export_as("fp32", source, bundle, settings)


def _export_as(
    precision: Precision, source: Source, bundle: Path, settings: Settings
) -> ExportReport:
    begin = time.perf_counter()
    model = source.model
    table = model.table()
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise ParityError(f"weight {name} holds NaN or infinity: the run is not usable")
    with new_bundle(bundle, replace=settings.replace) as folder:
        graphs = export_graphs(
            model,
            folder,
            precision,
            compact=settings.compact,
            new=source.new,
            index=settings.index == "clusters",
        )
        trending = None if source.recent is None else shares(source.recent)
        write_catalogue(folder, source.vocabulary, source.titles, shares(source.counts), trending)
        attributes = source.new.attributes.write(folder) if source.new else []
        manifest = _manifest(source, folder, graphs, precision, attributes)
        golden = golden_answers(model, table, source.vocabulary, source.counts, manifest.objective)
        atomic_write(folder / GOLDEN, (json.dumps(golden, indent=1) + "\n").encode())
        opened = Opened(folder)
        engine = Engine(opened, manifest, "cpu", 1)
        parity = check_parity(engine, model, table)
        if source.new:
            parity.points.append(check_items(engine, source.new, graphs.scale))
        columns = Attributes.read(folder, manifest)

        def serve(manifest: Manifest) -> Ranker:
            opening = opened, manifest, engine, source.vocabulary, columns, object()
            return Ranker(Serving.start(*opening))

        ranker = serve(manifest)
        gate = {}
        if precision != "fp32":
            gate = check_ranking(ranker, model, table, source.questions, settings.allow_drop)
        if manifest.index:
            asked = source.questions
            index = choose_probes(manifest, serve, asked.histories, asked.targets, asked.kinds)
            manifest = replace(manifest, index=index)
            ranker = serve(manifest)
        explanation = measure_explanations(ranker, source.questions)
        manifest = replace(manifest, parity=asdict(parity), gate=gate, explanation=explanation)
        atomic_write(folder / CARD, model_card(manifest, ranker).encode())
        replace(manifest, files=describe_files(folder)).write(folder)
        size = sum(path.stat().st_size for path in folder.iterdir())
    seconds = time.perf_counter() - begin
    return ExportReport(bundle, size, precision, graphs.nodes, parity, gate, seconds)


def shares(counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return counts as shares of their sum."""
    found: NDArray[np.float32] = (counts / max(1, counts.sum())).astype(np.float32)
    return found


def golden_answers(
    model: Model,
    table: Tensor,
    vocabulary: Vocabulary,
    counts: NDArray[np.int64],
    objective: NDArray[np.float32],
) -> list[dict[str, Any]]:
    """Return histories of popular items with the answers of the torch model.

    Times and kinds of the events are unknown; ``objective`` is the default, (kinds + 1,).
    """
    random = np.random.default_rng(0)
    k = min(GOLDEN_K, len(vocabulary))
    answers = []
    for length in sorted({min(n, model.config.max_length) for n in GOLDEN_LENGTHS}):
        history = random.choice(len(counts), length, p=counts / counts.sum()) + 1
        with torch.no_grad():
            rows = torch.from_numpy(history)[None]
            gaps = (torch.zeros_like(rows), torch.zeros_like(rows[:, 0]))  # unknown
            user = model.serve(
                rows,
                table,
                gaps if model.config.time_gaps else None,
                (torch.zeros_like(rows), torch.from_numpy(objective)[None])
                if model.kinds
                else None,
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


def _manifest(
    source: Source,
    folder: Path,
    graphs: WrittenGraphs,
    precision: Precision,
    attributes: list[Attribute],
) -> Manifest:
    """Return the manifest of a folder, without the figures of its gates."""
    config = source.model.config
    return Manifest(
        format=FORMAT,
        items=len(source.vocabulary),
        id_type="string" if source.vocabulary.is_text else "int64",
        max_length=config.max_length,
        width=config.width,
        precision=precision,
        programs=graphs.programs,
        table=graphs.table,
        pool=graphs.pool,
        rounding=graphs.rounding,
        training=source.training,
        data=source.data,
        quality=source.quality,
        parity={},
        gate={},
        versions={
            **{name: version(name) for name in ("ranklet", "torch", "onnx", "onnxruntime")},
            "python": platform.python_version(),
        },
        files=describe_files(folder),
        exclude_seen=source.exclude_seen,
        kinds=source.kinds,
        target=source.target,
        attributes=attributes,
        new_items=source.new.new_items if source.new else None,
        index=graphs.index,
    )
