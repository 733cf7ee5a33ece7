"""Search spaces of settings: specs like ``0.1..0.6``, ``1e-4..1e-2:log`` and ``64,128,256``."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import polars as pl
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from ranklet.errors import InputError
from ranklet_training.data.features import build_feature
from ranklet_training.runs.presets import RunConfig, configure

Space = dict[str, BaseDistribution]

DEFAULT_SPACE = {  # it holds what recommend() chooses
    "dropout": "0.1..0.7",  # sparse data needs much; of 0.2 to 0.5 ml-100k tells the difference
    "learning_rate": "5e-4..2e-2:log",  # its best value moves with width and targets_per_step
    "width": "32,64,128,256",  # capacity against overfitting; time and size grow with it
    "blocks": "1..3",  # none is the preset zero-block; time grows with them
    "temperature": "0.03..0.2:log",  # sharpness of the softmax over cosines
    "targets_per_step": "512..4096:log",  # few: more and noisier steps in an epoch
}
# Values of a study must be comparable: settings that change the cases can't be searched.
FIXED = {name: "it decides the held-out cases" for name in ("split", "folds", "fold")}
FIXED["seed"] = "the best seed is luck"


def default_space(base: RunConfig, fixed: Collection[str] = ()) -> dict[str, str]:
    """Return the specs of ``DEFAULT_SPACE`` that this configuration uses, without fixed ones."""
    unused = set(fixed)
    if base.model.kind == "seed":
        unused |= {"blocks", "temperature"}
    if base.model.scoring == "dot":
        unused.add("temperature")
    return {name: spec for name, spec in DEFAULT_SPACE.items() if name not in unused}


def parse_space(specs: Mapping[str, str], base: RunConfig) -> Space:
    """Read specs as distributions of their settings.

    Raises:
        InputError: A setting is unknown or can't be searched, or a value has a wrong type or range.
    """
    if not specs:
        raise InputError(
            "nothing is left to search, as every setting was given: name some, as in "
            "--search dropout=0.1..0.6"
        )
    return {name: _distribution(name, spec.strip(), base) for name, spec in specs.items()}


def _distribution(name: str, spec: str, base: RunConfig) -> BaseDistribution:
    if name in FIXED:
        raise InputError(f"{name} can't be searched: {FIXED[name]}; give it with --set")
    if ".." not in spec:
        values = list(dict.fromkeys(_value(name, text.strip(), base) for text in spec.split(",")))
        if len(values) < 2:
            raise InputError(
                f"{name}={spec} leaves no choice: give LOW..HIGH, LOW..HIGH:log or A,B,..., "
                "or fix it with --set"
            )
        return CategoricalDistribution(values)
    ends, _, scale = spec.partition(":")
    low, high = (_value(name, text.strip(), base) for text in ends.split("..", 1))
    if isinstance(low, bool | str):
        raise InputError(f"{name} has no range, got {spec!r}: give its values, as in {name}=A,B")
    if scale not in ("", "log"):
        raise InputError(f"{name}={spec}: a range ends in :log or in nothing, got {scale!r}")
    if not low < high:
        raise InputError(f"{name}={spec}: {low} is not below {high}")
    if scale and low <= 0:
        raise InputError(f"{name}={spec}: a log range starts above 0, got {low}")
    kind = IntDistribution if isinstance(low, int) else FloatDistribution
    return kind(low, high, log=bool(scale))


def _value(name: str, text: str, base: RunConfig) -> Any:  # noqa: ANN401 (settings of any type)
    """Return one value of a setting, as strict as ``--set``."""
    beside: dict[str, Any] = {}  # width and heads are checked together: here beside one that fits
    if name == "heads" and text.isdecimal():
        beside = {"width": 2 * max(1, int(text))}
    elif name == "width":
        beside = {"heads": 1}
    value = configure({name: text, **beside}, base).flat()[name]
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name} must be finite to be searched, got {text!r}")
    return value


def spec_of(distribution: BaseDistribution) -> str:
    """Return the spec that ``parse_space`` reads as this distribution."""
    if isinstance(distribution, CategoricalDistribution):
        return ",".join(map(str, distribution.choices))
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return f"{distribution.low}..{distribution.high}{':log' if distribution.log else ''}"


def check_space(space: Space, base: RunConfig, items: pl.DataFrame | None) -> None:
    """Refuse a space without the base, where the search starts, and missing item features."""
    for name, distribution in space.items():
        value = base.flat()[name]
        if isinstance(distribution, CategoricalDistribution):
            is_inside = value in distribution.choices
        else:
            assert isinstance(distribution, IntDistribution | FloatDistribution)
            is_inside = distribution.low <= value <= distribution.high
        if not is_inside:
            raise InputError(
                f"the first trial is the base configuration, whose {name}={value} is not in "
                f"{spec_of(distribution)}: widen that, or start elsewhere with --set {name}=VALUE"
            )
    searched = space.get("features")
    choices = searched.choices if isinstance(searched, CategoricalDistribution) else ()
    for choice in choices:
        for feature in configure({"features": str(choice)}).train.feature_names:
            build_feature(items if items is not None else pl.DataFrame(), feature)
