"""Significance tests of two models on held-out events, and forest plots."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ranklet.errors import InputError
from ranklet_training.data.split import Split
from ranklet_training.judge.evaluate import MASKED, UNMASKED, asked_about, held_out, rank_common
from ranklet_training.judge.metrics import CUTOFFS, all_metrics
from ranklet_training.judge.outcomes import OutcomeComparison
from ranklet_training.judge.plots import new_figure, save_figure
from ranklet_training.judge.statistics import Row, Values, check_resampling, paired_bootstrap
from ranklet_training.judge.subjects import AnyModel, common_cases, subject_of


@dataclass(frozen=True)
class ModelRow(Row):
    """Test of a metric of two models on the same users."""

    a: float  # means over users
    b: float
    a_wins: int  # users with a better value of A
    b_wins: int
    ties: int


@dataclass(frozen=True)
class ModelComparison:
    """Comparison of two models on the held-out events of one split.

    Attributes:
        a: Its name.
        b: Its name.
        protocol: What the figures are, in words.
        users: The number of cases.
        left_out: The number of cases whose target not both know, if their catalogues differ.
        unknown: For each model, the targets and the history events that its catalogue lacks.
        resamples: The number of bootstrap samples.
        seed: The seed of the bootstrap.
        rows: One for each metric.
    """

    a: str
    b: str
    protocol: str
    users: int
    left_out: int
    unknown: dict[str, dict[str, int]]
    resamples: int
    seed: int
    rows: list[ModelRow]


def compare_models(
    a: AnyModel,
    b: AnyModel,
    split: Split,
    *,
    names: tuple[str, str] = ("A", "B"),
    on: str = "test",
    resamples: int = 10_000,
    seed: int = 0,
) -> ModelComparison:
    """Compare two models on the same users: full ranking, pessimistic ties.

    Seen items are masked for both if A leaves them out by default. Models of different catalogues
    rank the items that both know (``subjects``). ``on`` is ``"test"`` or ``"validation"``.

    Raises:
        RunError: A model knows no item of the split, or they have none in common.
        DataError: Nothing is held out.
        InputError: The names are equal, or as ``paired_bootstrap``.
    """
    check_resampling(resamples, seed)
    if names[0] == names[1]:
        raise InputError(f"both models are called {names[0]!r}: give them two names")
    subjects = {n: subject_of(n, model, split) for n, model in zip(names, (a, b), strict=True)}
    common = common_cases(subjects, split, held_out(split, on))
    mask_seen = subjects[names[0]].exclude_seen
    a_values, b_values = (
        metrics_of_ranks(rank_common(common, name, subject, mask_seen=mask_seen).ranks)
        for name, subject in subjects.items()
    )
    result = paired_bootstrap(a_values, b_values, resamples=resamples, seed=seed)
    gains = b_values - a_values
    rows = result.rows(
        metric=list(all_metrics(np.ones(1, dtype=np.int64))),
        a=result.a,
        b=result.b,
        a_wins=(gains < 0).sum(axis=0),
        b_wins=(gains > 0).sum(axis=0),
        ties=(gains == 0).sum(axis=0),
    )
    protocol = (
        f"{split.kind}, {on}{asked_about(split)}, full ranking of {common.items} items"
        f"{' that both know' if common.among else ''}, {MASKED if mask_seen else UNMASKED}"
    )
    return ModelComparison(
        *names,
        protocol,
        users=len(common.cases),
        left_out=common.left_out,
        unknown=common.unknown,
        resamples=resamples,
        seed=seed,
        rows=[ModelRow(**row) for row in rows],
    )


def metrics_of_ranks(ranks: NDArray[np.int64]) -> Values:
    """Return every metric of ``all_metrics`` for each user, (U, M)."""
    beyond = max(CUTOFFS) + 1  # all metrics are 0 from here on
    table = [list(all_metrics(np.array([rank])).values()) for rank in range(1, beyond + 1)]
    values: Values = np.array(table)[np.minimum(ranks, beyond) - 1]
    return values


def plot_comparison(comparison: ModelComparison | OutcomeComparison, path: str | Path) -> None:
    """Draw a forest plot: difference and interval of each metric, filled if significant.

    Outcomes differ in unit: their differences are in percent of the control's mean, if none is 0.
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
    axes.set_title(title, loc="left", fontweight="bold")
    save_figure(figure, path)
