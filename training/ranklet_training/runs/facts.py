"""Facts of the training data in ``config.json``: what each holds, checked when a run is opened."""

import math
from types import NoneType
from typing import Any

NUMBER, TEXT_OR_NONE, COUNT_OR_NONE = (int, float), (str, NoneType), (int, NoneType)
EARLIER = {"digest": str, "events": int, "users": int, "items": int, "split": str, "epochs": int}
# A type or several, [type] of a list, {str: type} of a mapping, {name: type} of an object with at
# least these names.
REQUIRED = {
    "digest": str,
    "users": int,
    "items": int,
    "events": int,
    "training_users": int,
    "split": str,
}
OPTIONAL = {
    "recent": {"from": NUMBER, "to": NUMBER, "events": int},
    "rating_mean": (*NUMBER, NoneType),
    "instants": ([NUMBER], NoneType),
    "kinds": {"counts": {str: int}, "used": (bool, NoneType), "why": str},
    "reading": {str: TEXT_OR_NONE},
    "attributes": {str: str},
    "source": str,
    "earlier": EARLIER,
    "seen": ({"exclude_seen": bool}, {}),
    "new_items": ({"bias": NUMBER, "in_histories": bool, "figures": {str: object}}, {}),
}


def check_facts(facts: Any) -> None:  # noqa: ANN401 (from JSON)
    """Check the facts of a run.

    Raises:
        TypeError: One is missing, or is of another type.
    """
    if not isinstance(facts, dict):
        raise TypeError("data is no object")
    for name, form in {**REQUIRED, **OPTIONAL}.items():
        if (name in facts or name in REQUIRED) and not _fits(facts.get(name), form):
            raise TypeError(f"{name} of data is not what a training writes")


def _fits(value: Any, form: Any) -> bool:  # noqa: ANN401
    """Return whether a value has a form; numbers are finite and counts are of 64 bits."""
    if isinstance(form, tuple):
        return any(_fits(value, each) for each in form)
    if isinstance(form, list):
        return isinstance(value, list) and all(_fits(part, form[0]) for part in value)
    if isinstance(form, dict):
        if not isinstance(value, dict):
            return False
        if str in form:
            return all(_fits(part, form[str]) for part in value.values())
        is_whole = all(name in value and _fits(value[name], form[name]) for name in form)
        return is_whole and bool(form or not value)
    if form is int:
        return type(value) is int and -(2**63) <= value < 2**63
    if form is float:
        return type(value) is float and math.isfinite(value)
    return form is object or type(value) is form
