"""New and reopened runs."""

import platform
import re
from importlib.metadata import version
from pathlib import Path

import numpy as np
import polars as pl

from ranklet.errors import RunError
from ranklet.values import show
from ranklet_training.data.events import Events
from ranklet_training.data.features import build_feature
from ranklet_training.data.split import Split
from ranklet_training.runs.checkpoint import Questions, Run, read_run, write_run
from ranklet_training.runs.presets import RunConfig, setting_differences

HELD_OUT = 10_000  # validation questions of a run
MADE = ("config.json", "catalogue.parquet", "questions.safetensors")  # before the first step
TRAINED = ("metrics.jsonl", "last.safetensors", "best.safetensors")  # after the first step
BESIDE = ("run.lock", "tensorboard")
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
) -> Run:
    """Start a run in a new folder, or again in the folder of a run without any step.

    ``split`` is of the events, by the settings. ``items`` holds titles and features by ``item_id``;
    items without a row get nulls. ``reading`` are the reading options of the log, for evaluations,
    and ``source`` is the origin and terms of the data, for the model card.

    Raises:
        RunError: The folder has other content, ratings are missing for the seed model, timestamps
            are not integers for ``time_gaps``, or titles are not text.
    """
    check_new(path)
    ratings = split.training.ratings
    if ratings is not None and np.isnan(ratings).any():
        ratings = None
    if config.model.kind == "seed" and ratings is None:
        raise RunError(
            "the seed model learns from ratings, and the events have no rating column, or one that "
            "lacks values: give every event a rating"
        )
    if config.model.time_gaps and events.frame["timestamp"].dtype != pl.Int64:
        raise RunError("time_gaps needs whole timestamps, and these have fractions: round them")
    catalogue = pl.DataFrame({"item_id": split.vocabulary.all_ids}).with_columns(
        pl.Series("training_events", split.training.counts(len(split.vocabulary))[1:])
    )
    if items is not None:
        if items["item_id"].dtype != catalogue["item_id"].dtype:
            raise RunError(
                f"item_id is {catalogue['item_id'].dtype} in the events and "
                f"{items['item_id'].dtype} in the items; read both with the same --id-type"
            )
        if "title" in items and items["title"].dtype != pl.String:
            raise RunError(f"title is {items['title'].dtype} in the items, and must be text")
        catalogue = catalogue.join(items, on="item_id", how="left", maintain_order="left")
    for name in config.train.feature_names:
        build_feature(catalogue, name)  # raises errors before any file is written
    data = {
        "digest": events.digest,
        "users": events.users,
        "items": events.items,
        "events": events.frame.height,
        "training_users": len(split.training),
        "rating_mean": None if ratings is None else float(ratings.mean()),
        "split": split.notes,
        "reading": {**(reading or {}), **events.reading},
        "source": source,
    }
    versions = {name: version(name) for name in ("ranklet", "torch", "numpy", "polars")}
    path.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "questions.safetensors"):  # of a run without any step
        (path / name).unlink(missing_ok=True)
    run = Run(path, config, data, {**versions, "python": platform.python_version()}, catalogue)
    if questions := _held_out(split, config.model.max_length):
        run.write_questions(questions)
    write_run(run)  # last: a folder with config.json is complete
    return run


def check_new(path: Path) -> None:
    """Raise RunError if a folder holds a run with a step, or other files than those of runs."""
    names = {file.name for file in path.iterdir()} if path.exists() else set()
    if "config.json" in names and not names.isdisjoint(TRAINED):
        raise RunError(f"{path} already holds a run: resume it (--resume) or choose another folder")
    # A process may have been killed while it made a run.
    if others := [n for n in names if n not in (*MADE, *BESIDE) and not TORN.fullmatch(n)]:
        raise RunError(
            f"{path} is not empty and holds no run that could be started anew, but "
            f"{show(min(others))}: choose another folder"
        )


def _held_out(split: Split, length: int) -> Questions | None:
    """Return validation questions with the latest ``length`` known events of each."""
    cases = split.validation
    rows = np.random.default_rng(0).permutation(len(cases))[:HELD_OUT]
    held_out = cases.take(rows).drop_unknown()
    known = np.flatnonzero(held_out.histories.lengths)
    histories = [held_out.histories[row][-length:] for row in known.tolist()]
    return Questions(histories, held_out.targets[known]) if histories else None


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
