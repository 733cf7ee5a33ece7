"""Judge an online A/B test: two variants of users, what was shown to them and what they clicked.

Two variants have different users, so each is resampled by itself.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from polars.exceptions import PolarsError

from ranklet.errors import DataError, InputError
from ranklet_training.data.tables import open_table, refuse
from ranklet_training.judge.bootstrap import (
    CHUNK,
    MIN_USERS,
    Row,
    check_resampling,
    findings,
    unpaired_bootstrap,
)

MISMATCH = 0.001  # one false alarm in a thousand tests that were split as planned

OUTCOME_COLUMNS = ("user_id", "variant", "shown", "clicked")
LISTS = OUTCOME_COLUMNS[2:]
OUTCOME_METRICS = (
    "click-through rate",  # clicked items / shown items of a user
    "requests with a click",  # share of a user's requests
    "clicks per request",
    "MRR of first click",  # 1 / place of the highest clicked item, 0 without a click
)


@dataclass(frozen=True)
class SampleRatio:
    """Whether the users were split as planned."""

    control_share: float  # planned, in (0, 1)
    chi_square: float
    p: float
    mismatch: bool


def sample_ratio(
    control: int, treatment: int, ratio: tuple[float, float] = (1.0, 1.0)
) -> SampleRatio:
    """Test numbers of users against the planned ratio: chi-square, one degree of freedom.

    With a mismatch, users went missing from one variant in a way that may have to do with what is
    measured, so that no difference can be trusted. Source: Fabijan et al., "Diagnosing sample ratio
    mismatch in online controlled experiments", KDD 2019.

    Args:
        control: Users of the control.
        treatment: Users of the treatment.
        ratio: Control to treatment, as planned; both above 0.

    Raises:
        InputError: A part of the ratio is not a positive number.
    """
    if not all(0 < part < math.inf for part in ratio):
        raise InputError(f"a ratio is two positive numbers, got {ratio[0]:g}:{ratio[1]:g}")
    share = ratio[0] / (ratio[0] + ratio[1])
    users = control + treatment
    # (O - E)^2 is the same in both cells, so the sum over cells is this quotient.
    chi_square = (control - users * share) ** 2 / (users * share * (1 - share))
    # The survival function of chi-square with one degree of freedom.
    p = math.erfc(math.sqrt(chi_square / 2))
    return SampleRatio(share, chi_square, p, p < MISMATCH)


@dataclass(frozen=True)
class OutcomeRow(Row):
    """One metric of two variants, means over their users."""

    control: float
    treatment: float
    relative_difference: float | None  # difference / control; None where the control is 0


@dataclass(frozen=True)
class Variant:
    """What was counted of one variant, users who saw both left out."""

    name: str
    users: int
    requests: int


@dataclass(frozen=True)
class OutcomeComparison:
    """An online A/B test."""

    control: Variant
    treatment: Variant
    users_in_both: int  # saw both variants, left out of everything
    sample_ratio: SampleRatio
    resamples: int
    seed: int
    rows: list[OutcomeRow]


def compare_outcomes(
    source: str | Path | pl.DataFrame,
    *,
    control: str | None = None,
    ratio: tuple[float, float] = (1.0, 1.0),
    resamples: int = 10_000,
    seed: int = 0,
) -> OutcomeComparison:
    """Compare the two variants of an online A/B test.

    Metrics are means over users of each user's own value, so that a user with many requests weighs
    as much as any other. Users who saw both variants are left out and counted.

    Args:
        source: One row a request, see ``read_outcomes``.
        control: Name of the variant to compare with; by default the first in sorted order.
        ratio: Users of control to users of treatment, as the test was planned.
        resamples: As in ``paired_bootstrap``.
        seed: As in ``paired_bootstrap``.

    Raises:
        DataError: As ``read_outcomes``; there are not two variants, or one has fewer than 20 users.
        InputError: No variant is called like ``control``, or an option can't be used.
    """
    check_resampling(resamples, seed, CHUNK)
    requests = read_outcomes(source)
    names = _variants(requests, control)
    users = user_outcomes(requests)
    in_both = users.filter(pl.col("user_id").is_duplicated())["user_id"].n_unique()
    users = users.filter(~pl.col("user_id").is_duplicated())
    groups = [users.filter(pl.col("variant") == name) for name in names]
    for name, group in zip(names, groups, strict=True):
        if len(group) < MIN_USERS:
            raise DataError(
                f"variant {name!r} has {len(group)} users ({in_both} saw both variants and are "
                f"left out); a comparison needs at least {MIN_USERS}"
            )
    checked = sample_ratio(len(groups[0]), len(groups[1]), ratio)
    a, b = (group.select(OUTCOME_METRICS).to_numpy() for group in groups)
    result = unpaired_bootstrap(a, b, resamples=resamples, seed=seed)
    rows = []
    columns = (OUTCOME_METRICS, findings(result), result.a.tolist(), result.b.tolist())
    for metric, found, a_mean, b_mean in zip(*columns, strict=True):
        relative = found["difference"] / a_mean if a_mean else None
        row = OutcomeRow(
            metric=metric, control=a_mean, treatment=b_mean, relative_difference=relative, **found
        )
        rows.append(row)
    before, after = (
        Variant(name, len(group), int(group["requests"].sum()))
        for name, group in zip(names, groups, strict=True)
    )
    return OutcomeComparison(before, after, in_both, checked, resamples, seed, rows)


def read_outcomes(source: str | Path | pl.DataFrame) -> pl.DataFrame:
    """Read and check what was shown and clicked, one row a request.

    Columns, others are ignored:

    * ``user_id``: integers or text
    * ``variant``: text or integers
    * ``shown``: item ids (all integers or all text) from the first place down; a list, in csv the
      ids with ``|`` between them
    * ``clicked``: those of ``shown`` that were clicked, in any order, each once; may be empty

    Args:
        source: A .parquet, .csv, .csv.gz, .jsonl or .ndjson file, or a frame. Rows are counted
            from 1 in errors; neither the header of a csv file nor blank lines count.

    Returns:
        user_id, variant (text), shown and clicked (lists of one type), in the order of the source.

    Raises:
        DataError: The log is missing, damaged or empty, lacks a column, or holds a value that
            can't be used: nothing, an empty ``shown``, an item twice, a click on what was not
            shown.
    """
    table = open_table(source, [["user_id"], ["variant"], LISTS], lists=LISTS)
    frame = table.collect(
        {column: column for column in OUTCOME_COLUMNS},
        f"a log of outcomes has {', '.join(OUTCOME_COLUMNS)}",
    )
    if table.is_text:
        nothing = pl.lit([], dtype=pl.List(pl.String))
        frame = frame.with_columns(pl.col(LISTS).str.split("|"))
        frame = frame.with_columns(pl.col("clicked").fill_null(nothing))
    for column in OUTCOME_COLUMNS:
        advice = "write an empty list where nothing was clicked" if column == "clicked" else None
        refuse(frame[column].is_null(), frame[column], table.label(column), "has no value", advice)
    shown, clicked = (_id_lists(frame[column], table.label(column)) for column in LISTS)
    empty = shown.list.len() == 0
    refuse(empty, shown, table.label("shown"), "is empty", "leave such requests out")
    if clicked.list.len().sum() and shown.dtype != clicked.dtype:
        raise DataError(
            f"{table.name}: shown is {shown.dtype} and clicked {clicked.dtype}: use one type"
        )
    users, variants = (_scalars(frame[c], table.label(c)) for c in ("user_id", "variant"))
    frame = pl.DataFrame([users, variants.cast(pl.String), shown, clicked.cast(shown.dtype)])
    _refuse_unshown(frame, table.name)
    return frame


def user_outcomes(requests: pl.DataFrame) -> pl.DataFrame:
    """Return each user's requests and metrics, in each variant that the user saw.

    Args:
        requests: From ``read_outcomes``.

    Returns:
        user_id, variant, requests and ``OUTCOME_METRICS``, by user and variant.
    """
    rows = requests.with_row_index("row")
    first = _clicks(rows).group_by("row").agg(pl.col("place").min())
    clicks = pl.col("clicked").list.len()
    table = rows.join(first, on="row", how="left", maintain_order="left").group_by(
        "user_id", "variant"
    )
    rate, any_click, per_request, reciprocal = OUTCOME_METRICS
    return table.agg(
        pl.len().alias("requests"),
        (clicks.sum() / pl.col("shown").list.len().sum()).alias(rate),
        (clicks > 0).mean().alias(any_click),
        clicks.mean().alias(per_request),
        (1 / pl.col("place")).fill_null(0.0).mean().alias(reciprocal),
    ).sort("user_id", "variant")


def _variants(requests: pl.DataFrame, control: str | None) -> tuple[str, str]:
    """Return the names of control and treatment."""
    counts = sorted(requests["variant"].value_counts().iter_rows())
    found = ", ".join(f"{name!r} {count:,} rows" for name, count in counts[:10])
    if len(counts) != 2:
        more = f" and {len(counts) - 10:,} more" if len(counts) > 10 else ""
        raise DataError(f"a comparison needs two variants, got {len(counts)}: {found}{more}")
    names = [str(name) for name, _ in counts]
    if control is not None and control not in names:
        raise InputError(f"control {control!r} is not among the variants: {found}")
    first = names[0] if control is None else control
    return first, names[1 - names.index(first)]


def _scalars(values: pl.Series, label: str) -> pl.Series:
    """Return users or variants as integers or text."""
    if values.dtype.is_integer():
        return values
    if values.dtype not in (pl.String, pl.Categorical, pl.Enum):
        raise DataError(
            f"{label} holds {values.dtype}, such as {values[0]!r} in row 1; use text or integers"
        )
    texts = values.cast(pl.String)
    refuse(texts == "", texts, label, "is an empty text")
    return texts


def _id_lists(values: pl.Series, label: str) -> pl.Series:
    """Return lists of int64 or text, no id missing and none twice in a list."""
    if isinstance(values.dtype, pl.Array):
        values = values.arr.to_list()
    if not isinstance(values.dtype, pl.List):
        raise DataError(
            f"{label} holds {values.dtype}, such as {values[0]!r} in row 1; use "
            "lists of item ids (in csv, ids with | between them)"
        )
    inner = pl.Series(dtype=values.dtype.inner).dtype  # an instance, where inner may be a class
    missing = values.list.eval(pl.element().is_null()).list.any()
    refuse(missing, values, label, "holds a missing id")
    if inner == pl.Null:  # every list is empty
        return values
    if not inner.is_integer() and inner not in (pl.String, pl.Categorical, pl.Enum):
        raise DataError(f"{label} holds lists of {inner}; ids are integers or text")
    try:
        lists = values.cast(pl.List(pl.Int64 if inner.is_integer() else pl.String))
    except PolarsError as error:
        raise DataError(f"{label} holds an id that exceeds int64; write the ids as text") from error
    if not inner.is_integer():
        refuse(lists.list.contains(""), lists, label, "holds an empty id")
    refuse(lists.list.n_unique() < lists.list.len(), lists, label, "holds an id twice")
    return lists


def _clicks(rows: pl.DataFrame) -> pl.DataFrame:
    """Return row, item and place (from 1) of every click; no place where it was not shown."""
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
    row = int(unshown["row"].min())  # type: ignore[arg-type]  # not empty, so a number
    items = sorted(unshown.filter(pl.col("row") == row)["item"].to_list())
    others = unshown["row"].n_unique() - 1
    more = f" (and {others:,} more rows)" if others else ""
    raise DataError(
        f"{name}: clicked items were not shown in row {row + 1}: {items[:10]}{more}; clicks belong "
        "to the request that showed the item"
    )
