"""Settings, event logs, runs and bundles named on the command line."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ranklet.errors import InputError
from ranklet.ranker import Ranker
from ranklet_cli.options import COLUMNS, note

if TYPE_CHECKING:
    import polars as pl

    from ranklet.bundle.vocabulary import Vocabulary
    from ranklet_training.data.events import Events
    from ranklet_training.data.split import Split
    from ranklet_training.runs.checkpoint import Model
    from ranklet_training.runs.presets import RunConfig


def read_settings(
    preset: str | None, config_file: Path | None, settings: tuple[str, ...]
) -> dict[str, Any]:
    """Merge the settings of preset, file and --set; later ones win."""
    from ranklet_training.runs.presets import PRESETS

    if preset is not None and preset not in PRESETS:
        raise InputError(f"there is no preset {preset!r}; there are {', '.join(PRESETS)}")
    chosen = dict(PRESETS[preset or "default"])
    if config_file is not None:
        chosen.update(read_toml(config_file))
    return chosen | split_pairs(settings, "--set takes KEY=VALUE")


def split_pairs(texts: tuple[str, ...], usage: str) -> dict[str, str]:
    """Parse texts like ``width=64``; ``usage`` opens the error message."""
    pairs = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign:
            raise InputError(f"{usage}, got {text!r}")
        pairs[name.strip()] = value.strip()
    return pairs


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib  # type: ignore[no-redef,import-not-found,unused-ignore]
    try:
        return tomllib.loads(path.read_text())
    except ValueError as error:  # includes integers of too many digits
        raise InputError(f"{path} is not TOML: {error}") from error


def read_log(path: Path, reading: dict[str, str], *, uses_times: bool = False) -> "Events":
    """Read an event log with the reading options of a run; a summary and notes go to stderr.

    DataError: the log can't be read, or ``uses_times`` and its times are not in the run's unit.
    """
    from ranklet_training.data.events import Columns, check_time_unit, read_events

    # A run started from Python may lack these options.
    columns = {name: reading[f"{name}_column"] for name in COLUMNS if f"{name}_column" in reading}
    log = read_events(
        path,
        Columns(**columns),
        duplicates=reading.get("duplicates", "none"),  # type: ignore[arg-type]  # click checked the choice
        id_type=reading.get("id_type", "auto"),  # type: ignore[arg-type]
        like=reading,
    )
    for line in (log.summary(), *log.notes):
        note(line)
    if uses_times:
        check_time_unit(log, reading.get("time_unit"))
    return log


def split_log(log: "Events", config: "RunConfig") -> "Split":
    """Split a log by the settings of a run."""
    from ranklet_training.data.split import split_events

    train = config.train
    return split_events(log.frame, train.split, folds=train.folds, fold=train.fold)


def prepare(
    events: Path, items: Path | None, chosen: dict[str, Any], reading: dict[str, str]
) -> "tuple[Events, Split, RunConfig, pl.DataFrame | None, str]":
    """Return the log, its split, all settings, the items and the origin of the data.

    Items have ids of the log's type. Notes go to stderr.
    """
    from ranklet_training.data.features import describe_feature
    from ranklet_training.data.items import describe_items, match_ids, note_unmatched, read_items
    from ranklet_training.runs.presets import configure, recommend

    log = read_log(events, reading)
    split = split_log(log, configure(chosen))
    recommended, reason = recommend(split)
    note(f"{split.notes}\n{reason}")
    config = configure({**recommended, **chosen})
    catalogue = None
    if items is not None:
        table = read_items(
            items, item_column=reading["item_column"], title_column=reading["title_column"]
        )
        catalogue = match_ids(table, log.frame["item_id"])
        features = [name for name in config.train.feature_names if name in catalogue.columns]
        for line in (
            describe_items(catalogue, features),
            note_unmatched(log, catalogue, str(items)),
            *(describe_feature(catalogue, name) for name in features),
        ):
            if line:
                note(line)
    origin = events.with_name("SOURCE.md")
    source = origin.read_text(encoding="utf-8", errors="replace") if origin.is_file() else ""
    return log, split, config, catalogue, source


def open_models(
    paths: Mapping[str, Path], events: Path
) -> "tuple[dict[str, Model | Ranker], Split]":
    """Open runs and bundles, and split the events as in their training.

    Raises:
        InputError: The models were trained on different splits, or one on no events.
        RunError: The catalogue of a model differs from the items of the events.
    """
    from ranklet_training.judge.evaluate import check_catalogue

    opened = {name: _open_model(path) for name, path in paths.items()}
    for name, (*_, own) in opened.items():
        if not own.get("events"):
            raise InputError(f"{name} was trained on no events: its weights are random")
    (first, (_, _, config, facts)), *_ = opened.items()
    log = read_log(events, facts.get("reading", {}), uses_times=config.model.time_gaps)
    split = split_log(log, config)
    for name, (model, vocabulary, other, own) in opened.items():
        if _describe_split(config) != _describe_split(other):
            raise InputError(
                f"{first} was trained on the {_describe_split(config)} split and {name} on the "
                f"{_describe_split(other)} split: one may have been trained on the targets"
            )
        check_catalogue(name, model, split, vocabulary)
        if log.digest != own.get("digest"):
            note(f"these are not the events that {name} was trained on; targets may have leaked")
    return {name: model for name, (model, *_) in opened.items()}, split


def _describe_split(config: "RunConfig") -> str:
    train = config.train
    return f"k-fold {train.fold} of {train.folds}" if train.split == "k-fold" else train.split


def _open_model(path: Path) -> "tuple[Model | Ranker, Vocabulary, RunConfig, dict[str, Any]]":
    """Open a run or a bundle: model, item ids, settings, facts of the training data."""
    from ranklet_training.runs.checkpoint import read_run
    from ranklet_training.runs.presets import RunConfig

    if (path / "config.json").exists():
        run = read_run(path)
        return run.load_model(), run.vocabulary, run.config, run.data
    ranker = Ranker.load(path)
    manifest = ranker.manifest
    return ranker, ranker.vocabulary, RunConfig.from_dict(manifest.training), manifest.data
