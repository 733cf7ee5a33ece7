"""Significance tests of an online A/B test by clicks; each variant is resampled on its own."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl
from polars.exceptions import PolarsError

from ranklet.attribute_values import MISSING
from ranklet.errors import DataError, InputError
from ranklet.values import show
from ranklet_training.data.columns import show_type, without_missing
from ranklet_training.data.ids import read_ids
from ranklet_training.data.tables import open_table, refuse
from ranklet_training.judge import statistics
from ranklet_training.judge.statistics import MIN_USERS, Row

OUTCOME_COLUMNS = ("user_id", "variant", "shown", "clicked")
LISTS = OUTCOME_COLUMNS[2:]
NO_CLICK = "write an empty list where nothing was clicked"
OUTCOME_METRICS = (
    "click-through rate",  # clicked items / shown items of a user
    "requests with a click",  # share of a user's requests
    "clicks per request",
    "MRR of first click",  # 1 / place of the highest clicked item, 0 without a click
)


@dataclass(frozen=True)
class OutcomeRow(Row):
    """Test of a metric of two variants, with means over their users."""

    control: float
    treatment: float
    relative_difference: float | None  # difference / control; None if control is 0


@dataclass(frozen=True)
class Variant:
    """Size of a variant, without users who saw both variants."""

    name: str
    users: int
    requests: int


@dataclass(frozen=True)
class OutcomeComparison:
    """Result of an online A/B test."""

    control: Variant
    treatment: Variant
    users_in_both: int  # users who saw both variants, excluded from all numbers
    sample_ratio: statistics.SampleRatio
    resamples: int
    seed: int
    rows: list[OutcomeRow]


def compare_outcomes(
    source: str | Path | pl.DataFrame,
    *,
    control: str | None = None,
    ratio: statistics.Ratio = (1.0, 1.0),
    resamples: int = 10_000,
    seed: int = 0,
) -> OutcomeComparison:
    """Compare the two variants of an online A/B test, by a log of ``read_outcomes``.

    Metrics are means over users of their own means, so that every user has the same weight. Users
    who saw both variants are excluded and counted. ``control`` is by default the first name in
    sorted order; ``ratio`` is that of the planned users, control to treatment.

    Raises:
        DataError: As ``read_outcomes``; there are not two variants, or one has fewer than 20 users.
        InputError: No variant has the name ``control``, or an option is out of range.
    """
    statistics.check_resampling(resamples, seed)
    requests = read_outcomes(source)
    names = _variants(requests, control)
    users = user_outcomes(requests)
    in_both = users.filter(pl.col("user_id").is_duplicated())["user_id"].n_unique()
    users = users.filter(~pl.col("user_id").is_duplicated())
    groups = [users.filter(pl.col("variant") == name) for name in names]
    for name, group in zip(names, groups, strict=True):
        if len(group) < MIN_USERS:
            raise DataError(
                f"variant {show(name)} has {len(group)} users ({in_both} saw both variants and are "
                f"left out); a comparison needs at least {MIN_USERS}"
            )
    checked = statistics.sample_ratio(len(groups[0]), len(groups[1]), ratio)
    a, b = (group.select(OUTCOME_METRICS).to_numpy() for group in groups)
    result = statistics.unpaired_bootstrap(a, b, resamples=resamples, seed=seed)
    means = zip(result.difference.tolist(), result.a.tolist(), strict=True)
    relative = [difference / mean if mean else None for difference, mean in means]
    rows = result.rows(
        metric=OUTCOME_METRICS, control=result.a, treatment=result.b, relative_difference=relative
    )
    sizes = [(len(group), int(group["requests"].sum())) for group in groups]
    before, after = (Variant(name, *size) for name, size in zip(names, sizes, strict=True))
    tests = [OutcomeRow(**row) for row in rows]
    return OutcomeComparison(before, after, in_both, checked, resamples, seed, tests)


def read_outcomes(source: str | Path | pl.DataFrame) -> pl.DataFrame:
    """Read and check a log of outcomes, one row for each request, from a source of ``open_table``.

    Returns these columns in the order of the source:

    * ``user_id``: integers or text
    * ``variant``: text; integers become text
    * ``shown``: item ids from the first place down; a list of integers or text, in csv the ids with
      ``|`` between them
    * ``clicked``: the clicked items of ``shown``, of the same type, in any order; may be empty

    Raises:
        DataError: The log is missing, damaged or empty, lacks a column, or holds a wrong value: a
            missing one, an empty ``shown``, an item twice, a click on an item that was not shown.
    """
    table = open_table(source, [["user_id"], ["variant"], LISTS], lists=LISTS)
    advice = f"a log of outcomes has {', '.join(OUTCOME_COLUMNS)}"
    frame = table.collect({column: column for column in OUTCOME_COLUMNS}, lambda _: advice)
    if table.is_text:
        nothing = pl.lit([], dtype=pl.List(pl.String))
        texts = [without_missing(frame[name]) for name in LISTS]
        for text in texts:  # as pandas writes lists
            is_list = text.str.contains(r"^\s*\[.*\]\s*$")
            label = table.label(text.name)
            refuse(is_list, text, label, "is in brackets", "write the ids with | between them")
        frame = frame.with_columns(text.str.split("|") for text in texts)
        frame = frame.with_columns(pl.col("clicked").fill_null(nothing))
    users, variants = (read_ids(frame[n], table.label(n)) for n in ("user_id", "variant"))
    for name, advice in zip(LISTS, ("leave such requests out", NO_CLICK), strict=True):
        refuse(frame[name].is_null(), frame[name], table.label(name), "has no value", advice)
    shown, clicked = (_id_lists(frame[column], table.label(column)) for column in LISTS)
    empty = shown.list.len() == 0
    refuse(empty, shown, table.label("shown"), "is empty", "leave such requests out")
    if clicked.list.len().sum() and shown.dtype != clicked.dtype:
        raise DataError(
            f"{table.name}: shown is {show_type(shown.dtype)} and clicked "
            f"{show_type(clicked.dtype)}: use one type"
        )
    frame = pl.DataFrame([users, variants.cast(pl.String), shown, clicked.cast(shown.dtype)])
    _refuse_unshown(frame, table.name)
    return frame


def user_outcomes(requests: pl.DataFrame) -> pl.DataFrame:
    """Return the number of requests and the metrics of each user and variant, sorted by both."""
    rows = requests.with_row_index("row")
    first = _clicks(rows).group_by("row").agg(pl.col("place").min())
    clicks = pl.col("clicked").list.len()
    rows = rows.join(first, on="row", how="left", maintain_order="left")
    rate, any_click, per_request, reciprocal = OUTCOME_METRICS
    table = rows.group_by("user_id", "variant").agg(
        pl.len().alias("requests"),
        (clicks.sum() / pl.col("shown").list.len().sum()).alias(rate),
        (clicks > 0).mean().alias(any_click),
        clicks.mean().alias(per_request),
        (1 / pl.col("place")).fill_null(0.0).mean().alias(reciprocal),
    )
    return table.sort("user_id", "variant")


def _variants(requests: pl.DataFrame, control: str | None) -> tuple[str, str]:
    """Return the names of control and treatment."""
    counts = sorted(requests["variant"].value_counts().iter_rows())
    listed = ", ".join(f"{show(name)} {count:,} rows" for name, count in counts[:10])
    if len(counts) != 2:
        more = f" and {len(counts) - 10:,} more" if len(counts) > 10 else ""
        raise DataError(f"a comparison needs two variants, got {len(counts)}: {listed}{more}")
    names = [str(name) for name, _ in counts]
    first = names[0] if control is None else control
    if first not in names:
        raise InputError(f"control {show(control)} is not among the variants: {listed}")
    return first, names[1 - names.index(first)]


def _id_lists(values: pl.Series, label: str) -> pl.Series:
    """Return lists of int64 or text; refuse missing and repeated ids."""
    if isinstance(values.dtype, pl.Array):
        values = values.arr.to_list()
    if not isinstance(values.dtype, pl.List):
        raise DataError(
            f"{label} holds {show_type(values.dtype)}, such as {show(values[0])} in row 1; use "
            "lists of item ids (in csv, ids with | between them)"
        )
    inner = pl.Series(dtype=values.dtype.inner).dtype  # an instance, even if inner is a class
    missing = values.list.eval(pl.element().is_null()).list.any()
    refuse(missing, values, label, "holds a missing id")
    if inner == pl.Null:  # every list is empty
        return values
    if not inner.is_integer() and inner not in (pl.String, pl.Categorical, pl.Enum):
        raise DataError(f"{label} holds lists of {show_type(inner)}; ids are integers or text")
    try:
        lists = values.cast(pl.List(pl.Int64 if inner.is_integer() else pl.String))
    except PolarsError as error:
        raise DataError(f"{label} holds an id that exceeds int64; write the ids as text") from error
    if not inner.is_integer():
        word = pl.element().str.strip_chars().is_in(list(MISSING))
        refuse(lists.list.eval(word).list.any(), lists, label, "holds a missing id")
    refuse(lists.list.n_unique() < lists.list.len(), lists, label, "holds an id twice")
    return lists


def _clicks(rows: pl.DataFrame) -> pl.DataFrame:
    """Return row, item and place (from 1, null: not shown) of every click."""
    rows = rows.filter(pl.col("clicked").list.len() > 0)
    length = pl.col("shown").list.len().cast(pl.Int64)
    places = rows.select("row", item="shown", place=pl.int_ranges(1, length + 1))
    return (
        rows.select("row", item="clicked")
        .explode("item")
        .join(places.explode("item", "place"), on=["row", "item"], how="left")
    )


def _refuse_unshown(frame: pl.DataFrame, name: str) -> None:
    unshown = _clicks(frame.with_row_index("row")).filter(pl.col("place").is_null())
    if unshown.is_empty():
        return
    row, items = unshown.group_by("row").agg("item").sort("row").row(0)
    others = unshown["row"].n_unique() - 1
    more = f" (and {others:,} more rows)" if others else ""
    raise DataError(
        f"{name}: clicked items were not shown in row {row + 1}: {show(sorted(items)[:10])}{more}; "
        "clicks belong to the request that showed the item"
    )
