"""Settings of a run, presets, and recommended settings for a data set."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from ranklet.errors import InputError
from ranklet.values import show
from ranklet_training.data.sequences import Windows, targets_per_epoch
from ranklet_training.data.split import Split, SplitKind
from ranklet_training.model.model import ModelConfig, check_settings


@dataclass(frozen=True)
class TrainConfig:
    """Settings of training, which with ``ModelConfig`` and the data decide every weight."""

    seed: int = 0
    epochs: int = 12  # the learning rate falls to 0 at the end of the last one
    stop_after: int = 0  # epochs, of those of the learning rate; 0: all
    patience: int = 10  # epochs without a better validation NDCG@10 before training stops
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    targets_per_step: int = 1024
    windows: Windows = "all"
    clip: float = 5.0  # largest norm of the gradient
    l1: float = 0.0  # shrinks weights towards 0 by learning_rate * l1 a step
    l2: float = 0.0  # decoupled weight decay of AdamW
    cooccurrence_start: bool = True
    loss: Literal["softmax", "sampled-softmax", "gbce"] = "softmax"
    negatives: int = 2048  # items drawn for a step in sampled-softmax, for a target in gbce
    calibration: float = 0.75  # t of gbce; 0 is plain binary cross-entropy
    lazy_rows: bool = False  # lazy Adam: a step updates only its item rows; for sampled losses
    head_dtype: Literal["float32", "bfloat16"] = "float32"
    features: str = ""  # columns of the item file, separated by commas
    split: SplitKind = "leave-one-out"
    folds: int = 5
    fold: int = 0
    target: str = ""  # kind of the events that validation and test ask about; "": any
    kinds: Literal["auto", "use", "ignore"] = "auto"  # auto: where they gain validation NDCG@10
    checkpoint_steps: int = 500  # a checkpoint is also written after every epoch

    def __post_init__(self) -> None:
        least = {"epochs": 1, "patience": 1, "targets_per_step": 1, "checkpoint_steps": 1}
        check_settings(self, "learning_rate", "clip", negatives=1, **least)
        for name in ("l1", "l2", "warmup_steps", "seed", "stop_after"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more and finite, got {getattr(self, name)}")
        if not 0 <= self.fold < self.folds or self.folds < 3:
            raise ValueError(
                f"folds must be at least 3 and fold from 0 below it, got {self.folds}, {self.fold}"
            )
        if not 0 <= self.calibration <= 1:
            raise ValueError(f"calibration must be in [0, 1], got {self.calibration}")
        if self.lazy_rows and (self.loss == "softmax" or self.l1 or self.l2):
            raise ValueError(
                "lazy_rows needs a sampled loss and no l1 or l2: the others move every row, got "
                f"loss {self.loss!r}, l1 {self.l1}, l2 {self.l2}: set lazy_rows=false"
            )

    @property
    def last_epoch(self) -> int:
        """Return the number of epochs after which training stops at the latest."""
        return min(self.epochs, self.stop_after or self.epochs)

    @property
    def feature_names(self) -> list[str]:
        """Return the names in ``features``."""
        return [name.strip() for name in self.features.split(",") if name.strip()]


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run: model and training."""

    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return plain values for JSON."""
        return asdict(self)

    def flat(self) -> dict[str, Any]:
        """Return all settings by name, as ``configure`` takes them."""
        return {**asdict(self.model), **asdict(self.train)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Mapping[str, Any]]) -> "RunConfig":
        """Build a configuration from ``to_dict``; unknown keys are errors."""
        return configure({**values["model"], **values["train"]})


LONG_HISTORY = 50  # mean events a user: shops and reviews lie far below, films and songs above
SAMPLED_FROM = 4096  # items; below, the full softmax costs little more than 2048 negatives
LAZY_FROM = 200_000  # items; below, updating all rows costs little
LARGEST_START = 1_000_000  # items; the co-occurrence start is untested beyond
MOST_EVENTS_OF_START = 30_000_000  # beyond, its pairs take more than 5 GB, 160 bytes an event
STEPS = 2000  # of training on short histories; smaller data sets need more epochs

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "small": {"width": 64, "blocks": 1, "heads": 1, "feed_forward": 2, "block": "pre-norm"},
    "large": {"width": 256, "blocks": 4, "heads": 4, "learning_rate": 1e-3},
    "zero-block": {"blocks": 0},
    # SASRec as in the tables of most papers: one negative, plain BCE, dot products.
    "sasrec-bce": {
        "width": 64,
        "heads": 1,
        "block": "pre-norm",
        "scoring": "dot",
        "attention_window": 0,
        "loss": "gbce",
        "negatives": 1,
        "calibration": 0.0,
        "windows": "last",
        "learning_rate": 1e-3,
        "cooccurrence_start": False,
    },
    "seed": {
        "kind": "seed",
        "blocks": 1,
        "heads": 1,
        "dropout": 0.0,
        "learning_rate": 0.5,
        "warmup_steps": 0,
        "cooccurrence_start": False,
    },
}


def recommend(split: Split) -> tuple[dict[str, Any], str]:
    """Return the recommended settings of a data set, and a line of reasons (docs/training.md)."""
    events, users, items = len(split.training.items), len(split.training), len(split.vocabulary)
    if events / users > LONG_HISTORY:
        is_large = events > 300_000
        settings: dict[str, Any] = {
            "max_length": 200,
            "width": 128 if is_large else 64,
            "heads": 2 if is_large else 1,
            "block": "gated" if is_large else "pre-norm",
            "learning_rate": 2e-3 if is_large else 3e-3,
            "dropout": 0.25 if is_large else 0.4,
            "targets_per_step": 4096 if is_large else 1024,
            "epochs": 16 if is_large else 20,
        }
        size = f"{'many' if is_large else 'few'} events ({events:,})"
        reason = f"long histories ({events / users:.0f} events a user), {size}"
    else:
        settings = {
            "max_length": 50,
            "width": 256,
            "heads": 1,
            "learning_rate": 2e-3,
            "dropout": 0.5,
            "targets_per_step": 1024,
        }
        pairs = targets_per_epoch(split.training, "all", 50)
        settings["epochs"] = min(30, max(12, round(STEPS * 1024 / pairs)))
        reason = f"short histories ({events / users:.0f} events a user)"
    settings["loss"] = "sampled-softmax" if items > SAMPLED_FROM else "softmax"
    settings["lazy_rows"] = items > LAZY_FROM
    has_start = items <= LARGEST_START and events <= MOST_EVENTS_OF_START
    settings["cooccurrence_start"] = has_start
    # bfloat16 products take a third of the time on a CPU that has them (docs/development/log.md).
    has_bfloat16 = bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    settings["head_dtype"] = "bfloat16" if has_bfloat16 else "float32"
    processor = f"this CPU {'supports' if has_bfloat16 else 'does not support'} bfloat16"
    return settings, f"{reason}; {items:,} items; {processor}"


def recommend_features(kinds: Mapping[str, str], split: Split) -> dict[str, Any]:
    """Return which attributes take part in training: texts and categories beside them.

    Validation gains by them where histories are short, and not where they are long.
    """
    names = [name for name, kind in kinds.items() if kind in ("text", "category", "categories")]
    events, users = len(split.training.items), len(split.training)
    has_text = "text" in kinds.values() and events / users <= LONG_HISTORY
    return {"features": ",".join(names)} if has_text else {}


def configure(overrides: Mapping[str, Any], base: RunConfig | None = None) -> RunConfig:
    """Change settings by name; InputError: an unknown name, or a value of wrong type or range."""
    base = base or RunConfig()
    model, train = asdict(base.model), asdict(base.train)
    for name, value in overrides.items():
        part = model if name in model else train
        if name not in part:
            known = ", ".join([*model, *train])
            raise InputError(f"no setting is called {name!r}; there are {known}")
        part[name] = _convert(name, value, type(part[name]))
    try:
        return RunConfig(ModelConfig(**model), TrainConfig(**train))
    except ValueError as error:
        raise InputError(str(error)) from error


def setting_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return a text for each setting that differs between two mappings."""
    missing = "not searched"  # only the space of a study may lack a setting
    return [
        f"{name} was {old.get(name, missing)!r}, now {new.get(name, missing)!r}"
        for name in {**old, **new}
        if old.get(name, missing) != new.get(name, missing)
    ]


def _convert(name: str, value: Any, kind: type) -> Any:  # noqa: ANN401 (settings of any type)
    """Return the value of a setting, parsed if it is text; refuse other types."""
    try:
        if isinstance(value, str) and kind is bool:
            return {"true": True, "false": False}[value.lower()]
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if (isinstance(value, str) and kind is not str) or (is_whole and kind is float):
            return kind(value)
    except OverflowError as error:
        raise InputError(f"{name} must be finite, got {show(value)}") from error
    except (ValueError, KeyError) as error:
        raise InputError(f"{name} must be {kind.__name__}, got {show(value)}") from error
    if type(value) is not kind:
        raise InputError(f"{name} must be {kind.__name__}, got {show(value)}")
    return value
