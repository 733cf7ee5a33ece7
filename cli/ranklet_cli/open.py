"""Settings, event logs, runs and bundles named on the command line."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ranklet.errors import BundleError, InputError
from ranklet.ranker import Ranker
from ranklet.values import show
from ranklet_cli.options import COLUMNS, note

if TYPE_CHECKING:
    import polars as pl

    from ranklet_training.data.events import Events
    from ranklet_training.data.split import Split
    from ranklet_training.runs.checkpoint import Run
    from ranklet_training.runs.presets import RunConfig


def read_settings(
    preset: str | None,
    config_file: Path | None,
    settings: tuple[str, ...],
    target: str | None = None,
) -> dict[str, Any]:
    """Merge the settings of preset, file, --set and --target; later ones win."""
    from ranklet_training.runs.presets import PRESETS

    if preset is not None and preset not in PRESETS:
        raise InputError(f"there is no preset {preset!r}; there are {', '.join(PRESETS)}")
    chosen = dict(PRESETS[preset or "default"])
    if config_file is not None:
        chosen.update(read_toml(config_file))
    chosen |= split_pairs(settings, "--set takes KEY=VALUE")
    return chosen if target is None else chosen | {"target": target}


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
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # also not UTF-8, and integers of many digits
        raise InputError(f"{path} is not TOML: {error}") from error


def read_log(
    path: Path | str,
    reading: dict[str, str],
    *,
    uses_times: bool = False,
    cache: Path | None = None,
) -> "Events":
    """Read an event log with the reading options of a run; a summary and notes go to stderr.

    A log larger than memory is sorted in files of the folder ``cache``, or of a temporary one.
    DataError: the log can't be read, or ``uses_times`` and its times are not in the run's unit.
    """
    from ranklet_training.data.events import check_time_unit, read_events
    from ranklet_training.data.large_logs import is_large, read_large_events
    from ranklet_training.data.rows import Columns

    # A run started from Python may lack these options.
    columns = {name: reading[f"{name}_column"] for name in COLUMNS if f"{name}_column" in reading}
    options: dict[str, Any] = {
        "duplicates": reading.get("duplicates", "none"),
        "id_type": reading.get("id_type", "auto"),
        "rating_kinds": reading.get("rating_kinds", ""),
        "like": reading,
    }
    if is_large(path):
        where = cache or "a temporary folder"
        note(f"{path} is sorted in files of {where}, since it may be larger than memory")
        log = read_large_events(path, Columns(**columns), cache=cache, **options)
    else:
        log = read_events(path, Columns(**columns), **options)
    for line in (log.summary(), *log.notes):
        note(line)
    if uses_times:
        check_time_unit(log, reading.get("time_unit"))
    return log


def split_log(log: "Events", config: "RunConfig") -> "Split":
    """Split a log by the settings of a run."""
    from ranklet_training.data.split import split_events

    train = config.train
    return split_events(
        log.pieces, train.split, folds=train.folds, fold=train.fold, target=train.target
    )


def prepare(
    events: Path | str,
    items: Path | None,
    chosen: dict[str, Any],
    reading: dict[str, str],
    earlier: "Run | None" = None,
    cache: Path | None = None,
) -> "tuple[Events, Split, RunConfig, pl.DataFrame | None, str]":
    """Return the log, its split, all settings, the items and the origin of the data.

    Items have ids of the log's type; without a file they are those of an ``earlier`` run. Notes go
    to stderr.
    """
    from ranklet_training.data.attributes import COUNTED, describe_attributes
    from ranklet_training.data.items import match_ids, note_unmatched, read_items
    from ranklet_training.runs.kinds import plan_kinds
    from ranklet_training.runs.presets import configure, recommend, recommend_features
    from ranklet_training.runs.start import kinds_of

    log = read_log(events, reading, cache=cache)
    split = split_log(log, configure(chosen))
    recommended, reason = recommend(split)
    catalogue, of_items, about_items = None, str(items), list[str]()
    if items is not None:
        catalogue = read_items(
            items, item_column=reading["item_column"], title_column=reading["title_column"]
        )
    elif earlier is not None and {*earlier.catalogue.columns} - {"item_id", *COUNTED}:
        catalogue = earlier.catalogue.drop(COUNTED, strict=False)
        of_items = str(earlier.path)
    if catalogue is not None:
        catalogue = match_ids(catalogue, log.item_ids)
        kinds = kinds_of(catalogue, reading, earlier)
        of_log = catalogue.join(log.item_ids.to_frame(), on="item_id", how="semi")
        filled = {name: kind for name, kind in kinds.items() if len(of_log[name].drop_nulls())}
        recommended |= recommend_features(filled, split)
        about_items = [
            describe_attributes(catalogue, kinds),
            note_unmatched(log, catalogue, of_items),
        ]
    config = configure({**recommended, **chosen})
    from_data = {name: value for name, value in recommended.items() if name not in chosen}
    note(f"split {split.notes}")
    if from_data:
        note(f"{reason}: {_list_settings(from_data)}")
    if earlier is not None:
        note(f"settings of {earlier.path}, {config.train.last_epoch} epochs")
    elif chosen:
        note(f"chosen: {_list_settings({name: config.flat()[name] for name in chosen})}")
    if why := plan_kinds(config, split)["why"]:
        note(why)
    for line in filter(None, about_items):
        note(line)
    origin = Path(events).with_name("SOURCE.md")
    source = origin.read_text(encoding="utf-8", errors="replace") if origin.is_file() else ""
    return log, split, config, catalogue, source


def open_models(
    paths: Mapping[str, Path], events: Path | str
) -> "tuple[dict[str, Run | Ranker], Split, Events]":
    """Open runs and bundles, and split the events as in their training.

    The events may be others than those of the training: notes on stderr say what that means.
    InputError: the models were trained on different splits, on all events or on none.
    """
    opened = {name: _open_model(path) for name, path in paths.items()}
    for name, model in opened.items():
        if not _facts(model).get("events"):
            raise InputError(f"{name} was trained on no events: its weights are random")
        if _config(model).train.split == "none":
            raise InputError(
                f"{name} was trained on all events, so that none is held out to judge it by: "
                "evaluate the run that it was made from, or train with another split"
            )
    (first, model), *others = opened.items()
    split_of_first = _describe_split(_config(model))
    for name, other in others:
        if split_of_first != (split_of_other := _describe_split(_config(other))):
            raise InputError(
                f"{first} was trained on the {split_of_first} split and {name} on the "
                f"{split_of_other} split: one may have been trained on the targets"
            )
    reading = dict(_facts(model).get("reading", {}))
    units = {
        name: _facts(model).get("reading", {}).get("time_unit")
        for name, model in opened.items()
        if _config(model).model.time_gaps or _config(model).train.split == "time"
    }
    if len({*units.values()} - {None}) > 1:
        of_each = ", ".join(f"{name} {unit or 'plain numbers'}" for name, unit in units.items())
        raise InputError(
            f"the models use times of different units ({of_each}), and a log has one: train them "
            "on one log"
        )
    if unit := next(iter(units.values()), None):
        reading["time_unit"] = unit
    log = read_log(events, reading, uses_times=bool(units))
    split = _held_out(log, opened)
    return opened, split, log


def _held_out(log: "Events", opened: "Mapping[str, Run | Ranker]") -> "Split":
    """Return the cases that none of the models was trained on, as far as that can be known.

    By time, these are the cases after the latest training.
    """
    from ranklet_training.data.split import split_events

    train = next(_config(model).train for model in opened.values())
    instants = [_facts(model).get("instants") for model in opened.values()]
    known = None
    if train.split == "time" and all(instants):
        first, second = (max(ends) for ends in zip(*instants, strict=True))
        known = first, second
        if any(own != [first, second] for own in instants):
            note(
                f"the models were trained up to different times; test targets are from {second} on"
            )
    for name, model in opened.items():
        if log.digest != _facts(model).get("digest"):
            leak = "" if known else ": targets may have been in its training"
            note(f"these are not the events that {name} was trained on{leak}")
    return split_events(
        log.pieces,
        train.split,
        folds=train.folds,
        fold=train.fold,
        instants=known,
        target=train.target,
        for_training=False,
    )


def _list_settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def _describe_split(config: "RunConfig") -> str:
    train = config.train
    split = f"k-fold {train.fold} of {train.folds}" if train.split == "k-fold" else train.split
    return f"{split} ({train.target})" if train.target else split


def _open_model(path: Path) -> "Run | Ranker":
    from ranklet_training.runs.checkpoint import read_run

    return read_run(path) if (path / "config.json").exists() else Ranker.load(path)


def _config(model: "Run | Ranker") -> "RunConfig":
    from ranklet_training.runs.presets import RunConfig

    if not isinstance(model, Ranker):
        return model.config
    try:
        return RunConfig.from_dict(model.manifest.training)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(
            f"{model.path} was trained with settings that ranklet does not write ({show(error)}): "
            "export the run again"
        ) from error


def _facts(model: "Run | Ranker") -> dict[str, Any]:
    """Return the facts of the training data."""
    return model.manifest.data if isinstance(model, Ranker) else model.data
