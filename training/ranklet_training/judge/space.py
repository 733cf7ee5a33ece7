"""Search spaces: specs like ``0.1..0.6``, ``1e-4..1e-2:log`` and ``64,128,256``."""

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
from ranklet_training.data.attributes import Kinds
from ranklet_training.data.features import build_features
from ranklet_training.runs.presets import RunConfig, configure

Space = dict[str, BaseDistribution]

DEFAULT_SPACE = {  # contains the settings of recommend()
    "dropout": "0.1..0.7",  # sparse data needs more; ml-100k differs between 0.2 and 0.5
    "learning_rate": "5e-4..2e-2:log",  # the best value depends on width and targets_per_step
    "width": "32,64,128,256",  # capacity against overfitting, time and size
    "blocks": "1..3",  # 0 is the preset zero-block; time grows with the number
    "temperature": "0.03..0.2:log",  # sharpness of the softmax over cosines
    "targets_per_step": "512..4096:log",  # few targets: more and noisier steps an epoch
}
# Settings that change the cases can't be searched: the values of a study must be comparable.
FIXED = {name: "it decides the held-out cases" for name in ("split", "folds", "fold", "target")}
FIXED["seed"] = "the best seed is luck"


def default_space(base: RunConfig, fixed: Collection[str] = ()) -> dict[str, str]:
    """Return ``DEFAULT_SPACE`` without fixed settings and those that a configuration ignores."""
    unused = set(fixed)
    if base.model.kind == "seed":
        unused |= {"blocks", "temperature"}
    if base.model.scoring == "dot":
        unused.add("temperature")
    return {name: spec for name, spec in DEFAULT_SPACE.items() if name not in unused}


def parse_space(specs: Mapping[str, str], base: RunConfig) -> Space:
    """Parse specs as distributions; InputError: a wrong value, or no searchable setting."""
    if not specs:
        raise InputError(
            "nothing is left to search, as every setting was given: name one, as in "
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
    """Parse a value of a setting, as strictly as ``--set``."""
    beside: dict[str, Any] = {}  # heads are checked against the width: use a value that fits
    if name == "heads" and text.isdecimal():
        beside = {"width": 2 * max(1, int(text))}
    elif name == "width":
        beside = {"heads": 1}
    value = configure({name: text, **beside}, base).flat()[name]
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name} must be finite to be searched, got {text!r}")
    return value


def spec_of(distribution: BaseDistribution) -> str:
    """Return the spec of a distribution, the inverse of ``parse_space``."""
    if isinstance(distribution, CategoricalDistribution):
        return ",".join(map(str, distribution.choices))
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return f"{distribution.low}..{distribution.high}{':log' if distribution.log else ''}"


def move_inside(space: Space, base: RunConfig) -> RunConfig:
    """Return the base with the nearest searched value of each setting that lies outside."""
    nearest = {name: _nearest(base.flat()[name], searched) for name, searched in space.items()}
    return configure(nearest, base)


def _nearest(value: Any, searched: BaseDistribution) -> Any:  # noqa: ANN401 (settings of any type)
    if isinstance(searched, IntDistribution | FloatDistribution):
        return min(max(value, searched.low), searched.high)
    assert isinstance(searched, CategoricalDistribution)
    if value in searched.choices or isinstance(value, bool | str):
        return value if value in searched.choices else searched.choices[0]
    return min(searched.choices, key=lambda choice: abs(choice - value))


def check_features(space: Space, items: pl.DataFrame, kinds: Kinds) -> None:
    """Refuse a space with unknown item features."""
    searched = space.get("features")
    choices = searched.choices if isinstance(searched, CategoricalDistribution) else ()
    for choice in choices:
        build_features(items, kinds, configure({"features": str(choice)}).train.feature_names)
