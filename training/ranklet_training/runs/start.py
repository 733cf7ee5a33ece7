"""New and reopened runs."""

import platform
import re
from dataclasses import replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from ranklet.errors import RunError
from ranklet.files.atomic import atomic_write
from ranklet.values import show
from ranklet_training.data.attributes import (
    COUNTED,
    Kinds,
    attribute_kinds,
    parse_kinds,
    read_attributes,
)
from ranklet_training.data.events import Events
from ranklet_training.data.features import build_features
from ranklet_training.data.split import Split
from ranklet_training.data.trending import Recent, recent_events
from ranklet_training.runs.checkpoint import (
    EVENTS,
    Questions,
    Run,
    has_file,
    read_run,
    read_tensors,
    write_run,
)
from ranklet_training.runs.kinds import FOLDERS, TRAINED, plan_kinds, trained_files
from ranklet_training.runs.presets import RunConfig, setting_differences

HELD_OUT = 10_000  # validation questions of a run
# Before the first step.
MADE = ("config.json", "catalogue.parquet", "questions.safetensors", "evaluation.json")
BESIDE = ("run.lock", "tensorboard", EVENTS, *FOLDERS.values())
# Temporary files of a killed training.
TORN = re.compile(rf"\.({'|'.join(map(re.escape, (*MADE, *TRAINED)))})\.[0-9a-f]{{8}}\.tmp")


def start_run(
    path: Path,
    config: RunConfig,
    events: Events,
    split: Split,
    items: pl.DataFrame | None = None,
    *,
    reading: dict[str, str] | None = None,
    source: str = "",
    earlier: Run | None = None,
) -> Run:
    """Start a run in a new folder, or again in the folder of a run without any step.

    ``split`` is of the events, by the settings. ``items`` holds titles and features by ``item_id``;
    items without a row get nulls. ``reading`` are the reading options of the log, for evaluations,
    and ``source`` is the origin and terms of the data, for the model card. ``earlier`` is the run
    of ``final_settings``, whose held-out figures the new run keeps.

    Raises:
        RunError: The folder has other content, ratings are missing for the seed model, timestamps
            are not integers for ``time_gaps``, kinds can't be used, or titles are not text.
    """
    check_new(path)
    ratings = split.training.ratings
    if ratings is not None and np.isnan(ratings.min()):
        ratings = None
    if config.model.kind == "seed" and ratings is None:
        raise RunError(
            "the seed model learns from ratings, and the events have no rating column, or one that "
            "lacks values: give every event a rating"
        )
    if config.model.time_gaps and events.schema["timestamp"] != pl.Int64:
        raise RunError("time_gaps needs whole timestamps, and these have fractions: round them")
    # Errors are raised before any file is written.
    recent = recent_events(split.training, len(split.vocabulary), events.time_unit)
    catalogue = _catalogue(config, split, recent, items)
    kinds = kinds_of(catalogue if items is None else items, reading or {}, earlier)
    build_features(catalogue, kinds, config.train.feature_names)
    read_attributes(catalogue, kinds)
    data = {
        "digest": events.digest,
        "users": events.users,
        "items": events.items,
        "events": events.events,
        "training_users": len(split.training),
        "recent": {"from": recent.begin, "to": recent.end, "events": int(recent.counts.sum())},
        "rating_mean": None if ratings is None else float(ratings.mean()),
        "split": split.notes,
        "instants": split.instants,
        "kinds": plan_kinds(config, split),
        "reading": {**(reading or {}), **events.reading},
        "attributes": kinds,
        "source": source,
        **_facts_of(earlier),
    }
    versions = {name: version(name) for name in ("ranklet", "torch", "numpy", "polars")}
    path.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "questions.safetensors", "evaluation.json"):
        (path / name).unlink(missing_ok=True)  # of a run without any step
    run = Run(path, config, data, {**versions, "python": platform.python_version()}, catalogue)
    if questions := _held_out(split, config.model.max_length):
        run.write_questions(questions)
    if figures := _figures_of(earlier):
        atomic_write(path / "evaluation.json", figures)
    write_run(run)  # last: a folder with config.json is complete
    return run


def kinds_of(items: pl.DataFrame, reading: dict[str, str], earlier: Run | None = None) -> Kinds:
    """Return the kinds of attributes: as chosen, else as in an earlier run, else inferred.

    Raises:
        InputError: The chosen kinds can't be read.
        DataError: A chosen column is not there.
    """
    before = earlier.attribute_kinds if earlier else {}
    known = {name: kind for name, kind in before.items() if name in items.columns}
    return attribute_kinds(items, {**known, **parse_kinds(reading.get("attributes", ""))})


def _catalogue(
    config: RunConfig, split: Split, recent: Recent, items: pl.DataFrame | None
) -> pl.DataFrame:
    """Return the items in index order, with counts of events, titles and features."""
    catalogue = pl.DataFrame({"item_id": split.vocabulary.all_ids}).with_columns(
        pl.Series("training_events", split.training.counts(len(split.vocabulary))[1:]),
        pl.Series("recent_events", recent.counts[1:]),
    )
    if items is not None:
        if items["item_id"].dtype != catalogue["item_id"].dtype:
            raise RunError(
                f"item_id is {catalogue['item_id'].dtype} in the events and "
                f"{items['item_id'].dtype} in the items; read both with the same --id-type"
            )
        if "title" in items and items["title"].dtype != pl.String:
            raise RunError(f"title is {items['title'].dtype} in the items, and must be text")
        if counted := [name for name in COUNTED if name in config.train.feature_names]:
            raise RunError(
                f"no feature can be called {counted[0]!r}, as a run counts them: rename it"
            )
        others = items.drop(COUNTED, strict=False)
        catalogue = catalogue.join(others, on="item_id", how="left", maintain_order="left")
    return catalogue


def final_settings(run: Run) -> RunConfig:
    """Return the settings of a finished run for a training on all events.

    The learning rate falls over as many epochs as in the run, and training stops after the best
    one: that is how the weights were made whose held-out figures are known. Kinds of events are
    used if the run uses them. RunError: the run is not finished, or has no held-out events.
    """
    train = run.config.train
    if train.split == "none":
        raise RunError(f"{run.path} was itself trained on all events: take a run with a split")
    if not read_tensors(run.path / "last.safetensors")[1].get("done"):
        raise RunError(f"the training of {run.path} is not finished: resume it (--resume)")
    kinds: Literal["use", "ignore"] = "use" if run.kinds else "ignore"
    train = replace(train, split="none", stop_after=_epochs(run), kinds=kinds)
    return replace(run.config, train=train)


def _epochs(run: Run) -> int:
    """Return the number of epochs that made the best weights."""
    path = run.path / "best.safetensors"
    epoch = read_tensors(path)[1].get("epoch")
    if type(epoch) is not int or not 0 <= epoch < run.config.train.epochs:
        raise RunError(f"{path} is damaged: its epoch is {show(epoch)}")
    return epoch + 1


def _facts_of(earlier: Run | None) -> dict[str, Any]:
    """Return what a final run keeps of the data of the run that was measured."""
    if earlier is None:
        return {}
    names = ("digest", "events", "users", "items", "split", "instants", "kinds")
    facts = {name: earlier.data.get(name) for name in names}
    return {
        "earlier": {**facts, "epochs": _epochs(earlier)},
        "seen": earlier.data.get("seen", {}),
        "new_items": earlier.data.get("new_items", {}),
    }


def _figures_of(earlier: Run | None) -> bytes:
    """Return the evaluation of the run that was measured, empty without one."""
    path = earlier and earlier.path / "evaluation.json"
    return path.read_bytes() if path and has_file(path) else b""


def check_new(path: Path) -> None:
    """Raise RunError if a folder holds a run with a step, or other files than those of runs."""
    names = {file.name for file in path.iterdir()} if path.exists() else set()
    if "config.json" in names and trained_files(path):
        raise RunError(f"{path} already holds a run: resume it (--resume) or choose another folder")
    # A process may have been killed while it made a run.
    if others := [n for n in names if n not in (*MADE, *BESIDE) and not TORN.fullmatch(n)]:
        raise RunError(
            f"{path} is not empty and holds no run that could be started anew, but "
            f"{show(min(others))}: choose another folder"
        )


def _held_out(split: Split, length: int) -> Questions | None:
    """Return validation questions of known items, with the latest ``length`` events of each."""
    cases = split.validation
    rows = np.random.default_rng(0).permutation(len(cases))[:HELD_OUT]
    held_out = cases.take(rows).drop_unknown()
    offsets = held_out.histories.offsets.tolist()
    known = np.flatnonzero((held_out.histories.lengths > 0) & (held_out.targets > 0))
    if not len(known):
        return None
    latest = [slice(max(begin, end - length), end) for begin, end in pairwise(offsets)]
    cut = [latest[row] for row in known.tolist()]
    items, kinds = held_out.histories.items, held_out.histories.kinds
    return Questions(
        [items[events] for events in cut],
        held_out.targets[known],
        None if kinds is None else [kinds[events] for events in cut],
    )


def reopen_run(path: Path, events: Events, config: RunConfig | None = None) -> Run:
    """Open a run to resume it; RunError: the events or a setting differ from those of the run."""
    run = read_run(path)
    if run.data["digest"] != events.digest:
        raise RunError(
            f"{path} was started on other events (digest {run.data['digest'][:12]}, these have "
            f"{events.digest[:12]}): resume with the same file, or start a new run"
        )
    if config is not None and config != run.config:
        differences = setting_differences(run.config.flat(), config.flat())
        raise RunError(
            f"{path} was started with other settings ({'; '.join(differences)}): resume without "
            "settings, or start a new run"
        )
    return run
