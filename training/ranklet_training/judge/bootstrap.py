"""Whether a difference is more than chance: bootstrap over users, and Holm's correction.

* The user is the unit: users are resampled, never single events or requests, as what one user does
  is not independent.
* Several metrics are several chances to be wrong: significance is said after Holm's correction.

Sources: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993 (chapter 13: percentile
interval, chapter 16: tests by translation to the null); Sakai, "Evaluating evaluation metrics based
on the bootstrap", SIGIR 2006, and Smucker, Allan and Carterette, "A comparison of statistical
significance tests for information retrieval evaluation", CIKM 2007 (the paired test on differences
of two rankers; the second uses the shifted distribution, as here); Davison and Hinkley, "Bootstrap
Methods and their Application", 1997, section 4.2 (the ones in (r + 1) / (n + 1)); Holm, "A simple
sequentially rejective multiple test procedure", 1979.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranklet.errors import InputError

Values = NDArray[np.float64]

ALPHA = 0.05  # of the tests; intervals cover 1 - ALPHA
MIN_RESAMPLES = 1000  # fewer can't put a p-value below ALPHA after Holm over ten metrics, with room
MIN_USERS = 20  # fewer are no picture of a population, and an interval from them is too narrow
CHUNK = 1 << 20  # cells (resample, user) held at a time, about 30 MB


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
    check_resampling(resamples, seed, chunk)
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
    check_resampling(resamples, seed, chunk)
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


def check_resampling(resamples: int, seed: int, chunk: int) -> None:
    """Raise InputError where an option of a bootstrap can't be used."""
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


def findings(result: Bootstrap) -> list[dict[str, Any]]:
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
