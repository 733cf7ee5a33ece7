"""Say whether two models differ by more than chance, on held-out events or in an online A/B test.

* The user is the unit: users are resampled, never single events or requests, as what one user does
  is not independent.
* Two models answer the same users, so the bootstrap is paired; two variants have different users,
  so each variant is resampled by itself.
* Several metrics are several chances to be wrong: significance is said after Holm's correction.

Sources: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993 (chapter 13: percentile
interval, chapter 16: tests by translation to the null); Sakai, "Evaluating evaluation metrics based
on the bootstrap", SIGIR 2006, and Smucker, Allan and Carterette, "A comparison of statistical
significance tests for information retrieval evaluation", CIKM 2007 (the paired test on differences
of two rankers; the second uses the shifted distribution, as here); Davison and Hinkley, "Bootstrap
Methods and their Application", 1997, section 4.2 (the ones in (r + 1) / (n + 1)); Holm, "A simple
sequentially rejective multiple test procedure", 1979.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.exceptions import PanicException, PolarsError

from ranklet.errors import DataError, InputError, RunError
from ranklet.plots import new_figure, save_figure
from ranklet.ranker import Ranker
from ranklet_training.checkpoint import Model
from ranklet_training.evaluate import answer_of
from ranklet_training.events import SUFFIXES
from ranklet_training.metrics import CUTOFFS, all_metrics
from ranklet_training.split import Cases, Split

Values = NDArray[np.float64]

ALPHA = 0.05  # of the tests; intervals cover 1 - ALPHA
MIN_RESAMPLES = 1000  # fewer can't put a p-value below ALPHA after Holm over ten metrics, with room
MIN_USERS = 20  # fewer are no picture of a population, and an interval from them is too narrow
CHUNK = 1 << 20  # cells (resample, user) held at a time, about 30 MB
MISMATCH = 0.001  # one false alarm in a thousand tests that were split as planned

OUTCOME_COLUMNS = ("user_id", "variant", "shown", "clicked")
OUTCOME_METRICS = (
    "click-through rate",  # clicked items / shown items of a user
    "requests with a click",  # share of a user's requests
    "clicks per request",
    "MRR of first click",  # 1 / place of the highest clicked item, 0 without a click
)


# Statistics.


@dataclass(frozen=True)
class Bootstrap:
    """What resampling says about M metrics at once; every array is (M,)."""

    a: Values  # means
    b: Values
    difference: Values  # b - a
    low: Values  # percentile interval of the difference
    high: Values
    p: Values  # two-sided, in [1 / (resamples + 1), 1]


def paired_bootstrap(
    a_values: Values,
    b_values: Values,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    chunk: int = CHUNK,
) -> Bootstrap:
    """Compare two models on the same users; users are drawn with both of their values.

    Args:
        a_values: One value for each user and metric, (U, M).
        b_values: The same users and metrics, (U, M).
        resamples: How often all users are drawn, at least 1,000.
        seed: Decides the draws.
        chunk: Cells (resample, user) held at a time; changes the memory, not the result.

    Raises:
        InputError: Shapes differ, a value is not finite, or there are fewer than 20 users.
    """
    _check_resampling(resamples, seed, chunk)
    a, b = _check_values("a_values", a_values), _check_values("b_values", b_values)
    if a.shape != b.shape:
        raise InputError(f"a_values are {a.shape} and b_values {b.shape}: pair the same users")
    generator = np.random.Generator(np.random.Philox([seed]))
    means = _resampled_means(b - a, resamples, generator, chunk)
    return _summarise(a, b, means)


def unpaired_bootstrap(
    a_values: Values,
    b_values: Values,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    chunk: int = CHUNK,
) -> Bootstrap:
    """Compare two groups of different users; each group is drawn from itself, in its own size.

    Args:
        a_values: One value for each user and metric, (U, M).
        b_values: Other users, the same metrics, (V, M).
        resamples: As in ``paired_bootstrap``.
        seed: As in ``paired_bootstrap``.
        chunk: As in ``paired_bootstrap``.

    Raises:
        InputError: As ``paired_bootstrap``; the groups may differ in size.
    """
    _check_resampling(resamples, seed, chunk)
    a, b = _check_values("a_values", a_values), _check_values("b_values", b_values)
    if a.shape[1] != b.shape[1]:
        raise InputError(f"a_values have {a.shape[1]} metrics and b_values {b.shape[1]}")
    streams = (np.random.Generator(np.random.Philox([seed, group])) for group in (1, 2))
    a_means, b_means = (
        _resampled_means(values, resamples, stream, chunk)
        for values, stream in zip((a, b), streams, strict=True)
    )
    return _summarise(a, b, b_means - a_means)


def holm(p: Sequence[float] | Values) -> Values:
    """Return p-values corrected for their number (Holm 1979), in the order given.

    One that is at most alpha is significant at alpha, over all of them together.
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    factors = np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * values[order]), 1)
    return adjusted


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


def _check_resampling(resamples: int, seed: int, chunk: int) -> None:
    for name, value, least in (
        ("resamples", resamples, MIN_RESAMPLES),
        ("seed", seed, 0),
        ("chunk", chunk, 1),
    ):
        if value < least:
            raise InputError(f"{name} must be at least {least:,}, got {value:,}")


def _check_values(name: str, values: Values) -> Values:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or not array.shape[1]:
        raise InputError(f"{name} must be (users, metrics), got the shape {array.shape}")
    if len(array) < MIN_USERS:
        raise InputError(f"{name} hold {len(array)} users; a bootstrap needs at least {MIN_USERS}")
    if not np.isfinite(array).all():
        user, metric = np.argwhere(~np.isfinite(array))[0]
        raise InputError(f"{name} hold {array[user, metric]} for user {user}, metric {metric}")
    return array


def _resampled_means(
    values: Values, resamples: int, generator: np.random.Generator, chunk: int
) -> Values:
    """Return the means over users, drawn with replacement, (resamples, M)."""
    users = len(values)
    rows, counts = _distinct_rows(values)
    # Ranks have few values, so whole groups of equal users can be drawn at once: exact, and a
    # tenth of the time. Otherwise a multinomial draw costs more than one pick for each user.
    are_few = 4 * len(rows) < users
    if not are_few:
        rows = values
    means = np.empty((resamples, values.shape[1]))
    size = max(1, chunk // len(rows))
    for begin in range(0, resamples, size):
        number = min(size, resamples - begin)
        if are_few:
            drawn = generator.multinomial(users, counts / users, size=number)
        else:
            picks = generator.integers(0, users, (number, users))
            picks += np.arange(number)[:, None] * users  # each resample its own bins
            drawn = np.bincount(picks.ravel(), minlength=number * users).reshape(number, users)
        means[begin : begin + number] = drawn.astype(np.float64) @ rows / users
    return means


def _distinct_rows(values: Values) -> tuple[Values, NDArray[np.int64]]:
    """Return each row once, by first appearance, and how often it occurs.

    That order does not change with the sign, so swapping the models gives the mirrored draws.
    """
    _, first, counts = np.unique(values, axis=0, return_index=True, return_counts=True)
    order = np.argsort(first)
    return values[first[order]], counts[order]


def _summarise(a: Values, b: Values, differences: Values) -> Bootstrap:
    """Read interval and p-value off the resampled differences, (resamples, M)."""
    a_mean, b_mean = a.mean(axis=0), b.mean(axis=0)
    observed = b_mean - a_mean
    # Sums of many parts in another order differ in their last bits; what equals the observed
    # difference must count as equal.
    rounding = 1e-9 * (np.abs(a).mean(axis=0) + np.abs(b).mean(axis=0))
    as_extreme = np.abs(differences - observed) >= np.abs(observed) - rounding
    low, high = np.quantile(differences, [ALPHA / 2, 1 - ALPHA / 2], axis=0)
    p = (as_extreme.sum(axis=0) + 1) / (len(differences) + 1)
    return Bootstrap(a_mean, b_mean, observed, low, high, p)


# Results.


@dataclass(frozen=True)
class Row:
    """What was found about one metric."""

    metric: str
    difference: float  # B - A, or treatment - control
    low: float  # 95 % percentile interval of the difference
    high: float
    p: float  # two-sided
    p_holm: float  # corrected for all rows of the table
    significant: bool  # p_holm is at most 0.05


@dataclass(frozen=True)
class ModelRow(Row):
    """One metric of two models on the same users."""

    a: float  # means over users
    b: float
    a_wins: int  # users for whom A is better
    b_wins: int
    ties: int


@dataclass(frozen=True)
class ModelComparison:
    """Two models on the held-out events of one split."""

    a: str  # names
    b: str
    protocol: str
    users: int
    resamples: int
    seed: int
    rows: list[ModelRow]


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


def _findings(result: Bootstrap) -> list[dict[str, Any]]:
    """Return what rows of both kinds share, one dict a metric."""
    corrected = holm(result.p)
    columns = {
        "difference": result.difference,
        "low": result.low,
        "high": result.high,
        "p": result.p,
        "p_holm": corrected,
        "significant": corrected <= ALPHA,
    }
    lists = (column.tolist() for column in columns.values())
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]


# Models.


def compare_models(
    a: Model | Ranker,
    b: Model | Ranker,
    split: Split,
    *,
    names: tuple[str, str] = ("A", "B"),
    on: str = "test",
    resamples: int = 10_000,
    seed: int = 0,
) -> ModelComparison:
    """Compare two models on the same users: full ranking, seen items masked, ties pessimistic.

    Args:
        a: A torch model or a loaded bundle.
        b: Another one of the same catalogue.
        split: Of the same kind as both were trained on.
        names: Of ``a`` and ``b``, for the result and for errors.
        on: ``"test"`` or ``"validation"``.
        resamples: As in ``paired_bootstrap``.
        seed: As in ``paired_bootstrap``.

    Raises:
        RunError: The catalogues of the models and of the events differ in size.
        InputError: As ``paired_bootstrap``.
    """
    _check_resampling(resamples, seed, CHUNK)
    cases: Cases = getattr(split, on)
    items = len(split.vocabulary)
    sizes = [_size(model) for model in (a, b)]
    if sizes != [items, items]:
        raise RunError(
            f"{names[0]} knows {sizes[0]} items, {names[1]} knows {sizes[1]}, and the events have "
            f"{items}: compare models of one catalogue on the events that they were trained on"
        )
    a_values, b_values = (_user_metrics(model, split, cases) for model in (a, b))
    result = paired_bootstrap(a_values, b_values, resamples=resamples, seed=seed)
    gains = b_values - a_values
    counts = [(gains < 0).sum(axis=0), (gains > 0).sum(axis=0), (gains == 0).sum(axis=0)]
    rows = [
        ModelRow(metric=metric, a=a, b=b, a_wins=lost, b_wins=won, ties=tied, **found)
        for metric, found, a, b, lost, won, tied in zip(
            all_metrics(np.ones(1, dtype=np.int64)),
            _findings(result),
            result.a.tolist(),
            result.b.tolist(),
            *(count.tolist() for count in counts),
            strict=True,
        )
    ]
    protocol = f"{split.kind}, {on}, full ranking of {items} items, seen items masked"
    return ModelComparison(*names, protocol, len(cases), resamples, seed, rows)


def metrics_of_ranks(ranks: NDArray[np.int64]) -> Values:
    """Return every metric of ``all_metrics`` for each user alone, (U, M)."""
    beyond = max(CUTOFFS) + 1  # all metrics are 0 from here on
    table = [list(all_metrics(np.array([rank])).values()) for rank in range(1, beyond + 1)]
    values: Values = np.array(table)[np.minimum(ranks, beyond) - 1]
    return values


def _size(model: Model | Ranker) -> int:
    return len(model) if isinstance(model, Ranker) else model.items.item.shape[0] - 1


def _user_metrics(model: Model | Ranker, split: Split, cases: Cases) -> Values:
    return metrics_of_ranks(answer_of(model, split, cases, mask_seen=True).ranks)


# Outcomes of an online test.


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
    _check_resampling(resamples, seed, CHUNK)
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
    columns = (OUTCOME_METRICS, _findings(result), result.a.tolist(), result.b.tolist())
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
    if isinstance(source, pl.DataFrame):
        frame, name = source, "the log"
    else:
        frame, name = _read_outcomes_file(Path(source)), str(source)
    if frame.is_empty():
        raise DataError(f"{name} holds no rows; expected one row for each request")
    for column in OUTCOME_COLUMNS:
        if column not in frame.columns:
            raise DataError(
                f"{name}: column {column!r} is missing (columns: {', '.join(frame.columns)}); a "
                f"log of outcomes has {', '.join(OUTCOME_COLUMNS)}"
            )
    for column in OUTCOME_COLUMNS:
        advice = "write an empty list where nothing was clicked" if column == "clicked" else ""
        _refuse(frame[column].is_null(), frame[column], name, "has no value", advice)
    shown, clicked = (_id_lists(frame[column], name) for column in ("shown", "clicked"))
    _refuse(shown.list.len() == 0, shown, name, "is empty", "leave such requests out")
    if clicked.list.len().sum() and shown.dtype != clicked.dtype:
        raise DataError(f"{name}: shown is {shown.dtype} and clicked {clicked.dtype}: use one type")
    users, variants = (_scalars(frame[column], name) for column in ("user_id", "variant"))
    frame = pl.DataFrame([users, variants.cast(pl.String), shown, clicked.cast(shown.dtype)])
    _refuse_unshown(frame, name)
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


def _read_outcomes_file(path: Path) -> pl.DataFrame:
    kind = path.name.lower()
    if not path.is_file():
        raise DataError(f"{path} is not a file; pass one of {', '.join(SUFFIXES)}")
    if not kind.endswith(SUFFIXES):
        raise DataError(f"{path} has an unknown type; rename it to one of {', '.join(SUFFIXES)}")
    try:
        if kind.endswith(".parquet"):
            return pl.read_parquet(path, glob=False)
        if kind.endswith((".csv", ".csv.gz")):
            return _split_texts(pl.read_csv(path, glob=False, infer_schema=False))
        return _read_json_lines(path)
    except DataError:
        raise
    # The same as for event logs: polars also panics, and Python refuses bytes and integers.
    except (PolarsError, PanicException, OSError, ValueError, TypeError, OverflowError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} can't be read: {reason}") from error


def _split_texts(frame: pl.DataFrame) -> pl.DataFrame:
    """Turn the texts of a csv file into lists; an empty field of clicked is an empty one."""
    frame = frame.with_columns(pl.all().replace("", None))
    frame = frame.filter(~pl.all_horizontal(pl.all().is_null()))  # blank lines
    nothing = pl.lit([], dtype=pl.List(pl.String))
    parts = [pl.col(c).str.split("|") for c in ("shown", "clicked") if c in frame.columns]
    frame = frame.with_columns(parts)
    if "clicked" in frame.columns:
        frame = frame.with_columns(pl.col("clicked").fill_null(nothing))
    return frame


def _read_json_lines(path: Path) -> pl.DataFrame:
    """Read one object a line in Python: polars would turn 7 into "7" where both occur."""
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for line in file:
            if line.strip():
                rows.append(_json_row(line, f"{path}: row {len(rows) + 1}"))
    for columns in (("user_id",), ("variant",), ("shown", "clicked")):
        _refuse_mixed_types(rows, columns, path)
    return pl.from_dicts(rows, infer_schema_length=None) if rows else pl.DataFrame()


def _json_row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{where} is not an object: {line.strip()!r}")
    row = {column: row[column] for column in OUTCOME_COLUMNS if column in row}
    for column, value in row.items():
        is_list = column in ("shown", "clicked")
        if value is not None and isinstance(value, list) != is_list:
            wanted = "a list of item ids" if is_list else "text or an integer"
            raise DataError(f"{where} has in {column} {value!r}, which is not {wanted}")
    return row


def _refuse_mixed_types(rows: list[dict[str, Any]], columns: tuple[str, ...], path: Path) -> None:
    first_of: dict[type, str] = {}
    for number, row in enumerate(rows, start=1):
        for column in columns:
            value = row.get(column)
            for part in value if isinstance(value, list) else [value]:
                if part is not None and type(part) not in first_of:
                    first_of[type(part)] = f"{part!r} in row {number}"
    if len(first_of) > 1:
        found = " and ".join(first_of.values())
        raise DataError(
            f"{path}: {' and '.join(columns)} mix types: {found}; write all as text, or all as "
            "integers"
        )


def _refuse(bad: pl.Series, values: pl.Series, name: str, problem: str, advice: str = "") -> None:
    """Raise if any row is bad, with the number and value of the first."""
    rows = bad.arg_true()
    if rows.is_empty():
        return
    value = values[int(rows[0])]
    value = value.to_list() if isinstance(value, pl.Series) else value
    more = f" (and {len(rows) - 1:,} more)" if len(rows) > 1 else ""
    raise DataError(
        f"{name}: {values.name} {problem} in row {rows[0] + 1}: {value!r}{more}"
        + (f"; {advice}" if advice else "")
    )


def _scalars(values: pl.Series, name: str) -> pl.Series:
    """Return users or variants as integers or text."""
    if values.dtype.is_integer():
        return values
    if values.dtype not in (pl.String, pl.Categorical, pl.Enum):
        raise DataError(
            f"{name}: {values.name} holds {values.dtype}, such as {values[0]!r} in row 1; use text "
            "or integers"
        )
    texts = values.cast(pl.String)
    _refuse(texts == "", texts, name, "is an empty text")
    return texts


def _id_lists(values: pl.Series, name: str) -> pl.Series:
    """Return lists of int64 or text, no id missing and none twice in a list."""
    if isinstance(values.dtype, pl.Array):
        values = values.arr.to_list()
    if not isinstance(values.dtype, pl.List):
        raise DataError(
            f"{name}: {values.name} holds {values.dtype}, such as {values[0]!r} in row 1; use "
            "lists of item ids (in csv, ids with | between them)"
        )
    inner = pl.Series(dtype=values.dtype.inner).dtype  # an instance, where inner may be a class
    missing = values.list.eval(pl.element().is_null()).list.any()
    _refuse(missing, values, name, "holds a missing id")
    if inner == pl.Null:  # every list is empty
        return values
    if not inner.is_integer() and inner not in (pl.String, pl.Categorical, pl.Enum):
        raise DataError(f"{name}: {values.name} holds lists of {inner}; ids are integers or text")
    try:
        lists = values.cast(pl.List(pl.Int64 if inner.is_integer() else pl.String))
    except PolarsError as error:
        raise DataError(
            f"{name}: {values.name} holds an id that exceeds int64; write the ids as text"
        ) from error
    if not inner.is_integer():
        _refuse(lists.list.contains(""), lists, name, "holds an empty id")
    _refuse(lists.list.n_unique() < lists.list.len(), lists, name, "holds an id twice")
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


# The picture.


def plot_comparison(comparison: ModelComparison | OutcomeComparison, path: str | Path) -> None:
    """Draw a forest plot: each metric's difference with its interval, filled where significant.

    Outcomes have different units, so their differences are drawn in percent of the control's mean,
    if no such mean is 0.

    Raises:
        InputError: As ``plots.check_plot``.
    """
    figure, axes = new_figure(path)
    figure.set_figheight(1.8 + 0.4 * len(comparison.rows))
    scales = [1.0] * len(comparison.rows)
    if isinstance(comparison, ModelComparison):
        title = f"{comparison.b} against {comparison.a}, {comparison.users:,} users"
        label = f"difference ({comparison.b} - {comparison.a})"
    else:
        control, treatment = comparison.control, comparison.treatment
        users = f"{treatment.users:,} and {control.users:,} users"
        title = f"{treatment.name} against {control.name}, {users}"
        if comparison.sample_ratio.mismatch:
            title += "\nSAMPLE RATIO MISMATCH: not to be trusted"
        label = "difference (treatment - control)"
        if all(row.control for row in comparison.rows):
            scales = [100 / row.control for row in comparison.rows]
            label += ", % of the control's mean"
    axes.axvline(0, color="0.6", linewidth=1)
    for place, (row, scale) in enumerate(zip(comparison.rows, scales, strict=True)):
        color = "C0" if row.significant else "0.45"
        axes.plot([row.low * scale, row.high * scale], [place, place], color=color, linewidth=2)
        face = color if row.significant else "white"
        axes.plot(row.difference * scale, place, "o", color=color, markerfacecolor=face)
    axes.set_yticks(range(len(scales)), [row.metric for row in comparison.rows])
    axes.set_ylim(len(scales) - 0.5, -0.5)  # the first metric on top
    axes.set_xlabel(f"{label}, and its 95 % interval\nfilled: significant at 5 % after Holm")
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title(title, loc="left", fontweight="bold")
    save_figure(figure, path)
