"""Kinds of events, such as view, cart and buy: the texts of a log's event column, or of ratings.

Kinds have an index in the order of their names, from 1; 0 is an event of unknown kind.
"""

import math
from collections import Counter

import polars as pl

from ranklet.errors import DataError, InputError
from ranklet.values import show
from ranklet_training.data.stored import Frames, columns_of
from ranklet_training.data.tables import listed

MOST_KINDS = 100  # of a model; more distinct texts are no kinds, but something else


def read_rating_kinds(text: str) -> dict[str, float]:
    """Return the lowest rating of each kind of a text like ``like=4,ok=3,low=0``, best first.

    InputError: it has another form, or the bounds do not fall.
    """
    bounds = dict[str, float]()
    for part in text.split(","):
        name, sign, value = (piece.strip() for piece in part.partition("="))
        try:
            bound = float(value)
        except ValueError:
            bound = math.nan
        if not name or not sign or not math.isfinite(bound) or name in bounds:
            raise InputError(
                "rating kinds are names with their lowest ratings, best first, like "
                f"like=4,ok=3,low=0; got {show(part)} in {show(text)}"
            )
        if bounds and bound >= min(bounds.values()):
            raise InputError(f"rating kinds are best first, so that bounds fall: {show(text)}")
        bounds[name] = bound
    return bounds


def kinds_of_ratings(ratings: pl.Series, bounds: dict[str, float]) -> pl.Series:
    """Return the kind of each rating: the first whose bound it reaches, null if there is none."""
    kinds = pl.lit(None, pl.String)
    for name, bound in reversed(bounds.items()):
        kinds = pl.when(ratings >= bound).then(pl.lit(name)).otherwise(kinds)
    return ratings.to_frame().select(event=kinds)["event"]


def count_kinds(pieces: Frames) -> dict[str, int]:
    """Return the number of events of each kind, by name; empty for a log without kinds."""
    if "event" not in next(iter(pieces)).columns:
        return {}
    counts = Counter[str]()
    for events in columns_of(pieces, "event"):
        counts.update(dict(events.drop_nulls().value_counts().iter_rows()))
    return dict(sorted(counts.items()))


def describe_counts(counts: dict[str, int]) -> str:
    """Return kinds with their counts as text, most frequent first."""
    by_count = sorted(counts.items(), key=lambda pair: -pair[1])
    return listed([f"{name} ({count:,})" for name, count in by_count])


def check_target(target: str, counts: dict[str, int]) -> None:
    """Raise DataError if no event is of the kind that cases shall ask about."""
    if target and target not in counts:
        there = f"there are {describe_counts(counts)}" if counts else "the log has no event kinds"
        raise DataError(f"no event is of the target kind {show(target)}: {there}")
