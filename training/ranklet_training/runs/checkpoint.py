"""Checkpoints and run folders, from which training resumes and export reads.

    config.json         settings, digests of data and settings, versions
    catalogue.parquet   items in index order: id, training and recent events, title, features
    metrics.jsonl       one line an epoch
    last.safetensors    weights, optimizer state and progress, for --resume
    best.safetensors    weights of the best validation NDCG@10, or the last if nothing is held out
    questions.safetensors   held-out histories and their next items, for the ranking gate of export
    evaluation.json     written by ``ranklet evaluate``, or copied by ``ranklet train --final``
    events              a log larger than memory, sorted, until the training ends (``large_logs``)
    without-kinds, with-kinds   folders of both trainings, until one is chosen (``kinds``)
    run.lock            held by the training process

Files are safetensors, JSON and parquet, which run no code when opened, and are written atomically.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import polars as pl
import safetensors
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from polars.exceptions import PanicException, PolarsError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ranklet.bundle.vocabulary import Vocabulary
from ranklet.errors import RunError
from ranklet.files.atomic import atomic_write
from ranklet.values import reason
from ranklet_training import processes
from ranklet_training.data.attributes import Kinds
from ranklet_training.data.features import build_features
from ranklet_training.data.tables import write_frame
from ranklet_training.model.model import SequenceModel
from ranklet_training.model.optimizer import Model as Model
from ranklet_training.model.optimizer import Optimizer
from ranklet_training.model.seed import SeedModel
from ranklet_training.runs.facts import check_facts
from ranklet_training.runs.presets import RunConfig

RUN_FORMAT = 3
EVENTS = "sorted_events"  # folder of a log larger than memory
MALFORMED: tuple[type[BaseException], ...] = (
    *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError),
    *(OSError, PolarsError, PanicException, safetensors.SafetensorError),
)


@dataclass
class Progress:
    """Position of a training between two steps."""

    epoch: int = 0
    step: int = 0  # since the start
    step_in_epoch: int = 0
    best_ndcg: float = -1.0
    best_epoch: int = -1
    loss_sum: float = 0.0  # over the targets of this epoch
    targets_seen: int = 0  # in this epoch
    done: bool = False


@dataclass(frozen=True)
class Questions:
    """Held-out histories, by item index, and their next items."""

    histories: list[NDArray[np.int64]]  # none is empty
    targets: NDArray[np.int64] | None  # None: unknown
    kinds: list[NDArray[np.int64]] | None = None  # of the events of each; None: unknown


@dataclass(frozen=True)
class Run:
    """Run folder with its settings, data facts and catalogue."""

    path: Path
    config: RunConfig
    data: dict[str, Any]  # see ``start_run`` and, for what training adds, ``train``
    versions: dict[str, str]
    catalogue: pl.DataFrame

    @property
    def vocabulary(self) -> Vocabulary:
        """Return the ids of the catalogue in index order."""
        ids = self.catalogue["item_id"]
        return Vocabulary(ids.to_list() if ids.dtype == pl.String else ids.to_numpy())

    @property
    def exclude_seen(self) -> bool:
        """Return whether a bundle of this run leaves seen items out by default."""
        return bool(self.data.get("seen", {}).get("exclude_seen", False))

    @property
    def attribute_kinds(self) -> Kinds:
        """Return the kinds of the attributes of the items."""
        kinds: Kinds = self.data.get("attributes", {})
        return kinds

    @property
    def kinds(self) -> list[str]:
        """Return the names of the kinds of events that the model uses, in index order."""
        facts = self.data.get("kinds", {})
        return list(facts["counts"]) if facts.get("used") else []

    @property
    def target(self) -> int:
        """Return the index of the kind that the model is asked for by default, 0 for any."""
        asked = self.config.train.target
        return 1 + self.kinds.index(asked) if asked in self.kinds else 0

    def build_model(self) -> Model:
        """Return a model of this run without weights."""
        items = self.catalogue.height
        if self.config.model.kind == "seed":
            return SeedModel(self.config.model, items, self.data["training_users"])
        names = self.config.train.feature_names
        if names and "attributes" not in self.data:
            raise RunError(f"{self.path} has features of an older version: train it again")
        features = build_features(self.catalogue, self.attribute_kinds, names) if names else None
        return SequenceModel(self.config.model, items, features, len(self.kinds))

    def load_model(self) -> Model:
        """Return the model with the best weights, in evaluation mode and without gradients."""
        model, path = self.build_model(), self.path / "best.safetensors"
        _load_weights(model, read_tensors(path)[0], path)
        return model.eval().requires_grad_(False)

    def best_metrics(self) -> dict[str, float]:
        """Return the validation metrics of the best weights, empty if nothing is held out."""
        path = self.path / "best.safetensors"
        metadata = read_tensors(path)[1]
        metrics = {name: value for name, value in metadata.items() if name != "epoch"}
        if not all(type(value) is float for value in metrics.values()):
            raise RunError(f"{path} is damaged: its metrics are no numbers")
        return metrics

    def read_questions(self) -> Questions | None:
        """Return the held-out questions, or None for a run without them."""
        path = self.path / "questions.safetensors"
        if not has_file(path):
            return None
        tensors, _ = read_tensors(path)
        try:
            items, ends, targets = (tensors[n].numpy() for n in ("items", "ends", "targets"))
            histories = np.split(items, ends[:-1])
            kinds = None
            if "kinds" in tensors:
                kinds = np.split(tensors["kinds"].numpy(), ends[:-1])
            index = np.concatenate([items, targets])
        except MALFORMED as error:
            raise RunError(f"{path} is damaged: {reason(error)}") from error
        is_known = index.dtype == np.int64 and ((index > 0) & (index <= self.catalogue.height))
        if len(histories) != len(targets) or not all(map(len, histories)) or not np.all(is_known):
            raise RunError(f"{path} is damaged: its questions are not about this catalogue")
        return Questions(histories, targets, kinds if self.kinds else None)

    def write_questions(self, questions: Questions) -> None:
        """Write held-out questions into the run folder."""
        assert questions.targets is not None
        arrays = {
            "items": np.concatenate(questions.histories),
            "ends": np.cumsum([len(history) for history in questions.histories]),
            "targets": questions.targets,
        }
        if questions.kinds is not None:
            arrays["kinds"] = np.concatenate(questions.kinds)
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        write_tensors(self.path / "questions.safetensors", tensors, {})


@contextmanager
def locked(path: Path, taken: str) -> Iterator[None]:
    """Hold a lock file, made with its folder; the end of the process releases it.

    If the block fails before it writes a file, the lock and new folders are removed. RunError with
    the message ``taken``: another process holds the lock.
    """
    new = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise RunError(taken) from error
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        raise RunError(f"{path} can't be locked: {error}") from error
    try:
        yield
    except BaseException:
        lock.release()
        with suppress(OSError):
            if [*path.parent.iterdir()] == [path]:
                path.unlink()
                for folder in new:
                    folder.rmdir()
        raise
    finally:
        lock.release()


def write_run(run: Run) -> None:
    """Write ``config.json`` and ``catalogue.parquet``."""
    write_frame(run.path / "catalogue.parquet", run.catalogue)
    write_config(run)


def write_config(run: Run) -> None:
    """Write ``config.json``: settings, data facts and versions."""
    settings = run.config.to_dict()
    document = {
        "format": RUN_FORMAT,
        **settings,
        "config_digest": sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        "data": run.data,
        "versions": run.versions,
    }
    atomic_write(run.path / "config.json", json.dumps(document, indent=2).encode())


def read_run(path: Path) -> Run:
    """Open a run folder; RunError: it is not a run, damaged, or of another format."""
    if not has_file(path / "config.json"):
        raise RunError(f"{path} is not a run: it has no config.json; train one with ranklet train")
    try:
        document = json.loads((path / "config.json").read_bytes())
        if document["format"] != RUN_FORMAT:
            raise RunError(f"{path} has run format {document['format']}, not {RUN_FORMAT}")
        if not has_file(path / "catalogue.parquet"):
            raise RunError(f"the run {path} has no catalogue.parquet: copy the whole run again")
        has_file(path / "evaluation.json")  # which may be missing
        catalogue = pl.read_parquet(path / "catalogue.parquet")
        config, data = RunConfig.from_dict(document), document["data"]
        versions = document["versions"]
        check_facts(data)
        _check_catalogue(catalogue, data)
        if not all(map(_is_text, [*versions, *versions.values()])):
            raise TypeError("versions are no texts")
        return Run(path, config, data, versions, catalogue)
    except MALFORMED as error:
        raise RunError(f"the run {path} is damaged: {reason(error)}") from error


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _check_catalogue(catalogue: pl.DataFrame, data: dict[str, Any]) -> None:
    """Raise TypeError unless it has sorted ids, as many as the data, and counts of their events."""
    items, counts = catalogue["item_id"], [catalogue["training_events"]]
    counts += [catalogue["recent_events"]] if "recent_events" in catalogue.columns else []
    if items.dtype not in (pl.String, pl.Int64) or not all(c.dtype.is_integer() for c in counts):
        raise TypeError(f"item_id is {items.dtype}, and its events are {counts[0].dtype}")
    is_counted = all(not c.null_count() and (c >= 0).all() for c in counts)
    is_sorted = not items.null_count() and items.is_sorted() and items.is_unique().all()
    if not len(items) or not is_counted or not is_sorted:
        raise TypeError("the catalogue has no sorted ids with their numbers of events")
    title = catalogue.schema.get("title", pl.String)
    if title not in (pl.String, pl.Null):
        raise TypeError(f"titles are {title}")


def has_file(path: Path) -> bool:
    """Return whether a file of a run is there; RunError: something else has its name."""
    if path.is_file():
        return True
    if path.exists() or path.is_symlink():  # a pipe would be waited for
        raise RunError(f"{path} is no file: remove it, or copy the whole run again")
    return False


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write tensors and a JSON document into one safetensors file."""
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    atomic_write(path, save(plain, {"ranklet": json.dumps(metadata)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of ``write_tensors``; RunError: it is missing or damaged."""
    if not has_file(path):
        raise RunError(f"{path} is missing: the training has not reached its first checkpoint")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["ranklet"])
        if not isinstance(metadata, dict):
            raise TypeError("its metadata is no object")
        return load_file(path), metadata
    except MALFORMED as error:
        raise RunError(f"{path} is damaged: {reason(error)}") from error


def _load_weights(model: nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(f"the weights of {source} do not fit this model: {reason(error)}") from error


def whole_weights(model: Model) -> dict[str, Tensor]:
    """Return the weights of a model, in the first process those of all; each process calls this."""
    weights = dict(model.state_dict())
    return {**weights, "items.item": model.items.whole(weights["items.item"])}


def save_checkpoint(path: Path, model: Model, optimizer: Optimizer, progress: Progress) -> None:
    """Write weights, optimizer state and progress into a file, atomically."""
    tensors = {f"model.{name}": tensor for name, tensor in whole_weights(model).items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state_of(parameter).items():
            if isinstance(value, Tensor):
                is_part = parameter is model.items.item and value.ndim > 0
                tensors[f"optimizer.{key}.{name}"] = model.items.whole(value) if is_part else value
    if processes.is_first():
        write_tensors(path, tensors, asdict(progress))


def load_checkpoint(path: Path, model: nn.Module, optimizer: Optimizer) -> Progress:
    """Restore model and optimizer from a file of ``save_checkpoint``."""
    tensors, metadata = read_tensors(path)
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    _load_weights(model, weights, path)
    for name, parameter in model.named_parameters():
        state = optimizer.state_of(parameter)
        for key in ("step", "exp_avg", "exp_avg_sq"):
            if (value := tensors.get(f"optimizer.{key}.{name}")) is not None:
                state[key] = value.to(parameter.device)
    if {name: type(value) for name, value in metadata.items()} != get_type_hints(Progress):
        raise RunError(f"{path} is damaged: its progress is not what a training writes")
    return Progress(**metadata)
