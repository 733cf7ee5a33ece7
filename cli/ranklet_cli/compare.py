"""``ranklet compare``: significance tests of two models, or of an online A/B test."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ranklet_cli.evaluate import describe_unknown
from ranklet_cli.open import open_models
from ranklet_cli.options import FILE, FOLDER, LOG, PATH, json_flag, note, print_json
from ranklet_cli.tables import align

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ranklet_training.judge.compare import ModelComparison
    from ranklet_training.judge.outcomes import OutcomeComparison
    from ranklet_training.judge.statistics import Row


def read_ratio(text: str) -> tuple[float, float]:
    """Parse a ratio like 1:1."""
    try:
        control, treatment = (float(part) for part in text.split(":"))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a ratio like 1:1") from error
    return control, treatment


@click.command()
@click.argument("a", type=FOLDER, required=False)
@click.argument("b", type=FOLDER, required=False)
@click.argument("events", type=LOG, required=False)
@click.option(
    "--log", type=FILE, help="Compare the variants in this log of an A/B test, not A and B."
)
@click.option(
    "--on",
    type=click.Choice(["test", "validation"]),
    help="Which held-out events to predict.  [default: test]",
)
@click.option(
    "--control", metavar="NAME", help="Control variant of --log.  [default: first by name]"
)
@click.option(
    "--ratio",
    type=read_ratio,
    metavar="N:N",
    help="Planned ratio of control users to treatment users.  [default: 1:1]",
)
@click.option("--resamples", default=10_000, help="Number of bootstrap samples of users.")
@click.option("--seed", default=0, help="Seed of the bootstrap.")
@click.option("--plot", "plot_path", type=PATH, help="Draw the differences into this .png.")
@json_flag
def compare(
    a: Path | None,
    b: Path | None,
    events: Path | str | None,
    log: Path | None,
    on: str | None,
    control: str | None,
    ratio: tuple[float, float] | None,
    plot_path: Path | None,
    as_json: bool,
    **bootstrap: int,
) -> None:
    """Test whether A and B, runs or bundles, differ by more than chance on the same users.

    Every metric gets a paired bootstrap over users: means, difference B - A with its interval,
    two-sided p-value, and significance at 5 % after Holm's correction. Seen items are masked for
    both if A leaves them out by default. EVENTS may be a newer or an older log. If A and B have
    different catalogues, the items that both know are ranked.

    With --log, compare the two variants of an online A/B test. The log has one row per request:
    user_id, variant, shown and clicked (lists of item ids; in csv, text like 50|181|172).

    \b
    Example: ranklet compare run-old run-new events.parquet
             ranklet compare --log outcomes.parquet --control old
    """
    from ranklet_training.judge.compare import plot_comparison
    from ranklet_training.judge.plots import check_plot

    if plot_path is not None:
        check_plot(plot_path)  # before the work
    comparison: ModelComparison | OutcomeComparison
    if log is not None:
        if a is not None or on is not None:
            raise click.UsageError("--log takes neither A, B and EVENTS nor --on")
        comparison, text = _compare_log(log, control, ratio or (1.0, 1.0), **bootstrap)
    else:
        if a is None or b is None or events is None:
            raise click.UsageError("give A, B and EVENTS, or --log")
        if control is not None or ratio is not None:
            raise click.UsageError("--control and --ratio belong to --log")
        comparison, text = _compare_pair(a, b, events, on or "test", **bootstrap)
    if plot_path is not None:
        plot_comparison(comparison, plot_path)
        note(f"wrote {plot_path}")
    if as_json:
        return print_json(comparison)
    click.echo(text)


def _compare_pair(
    a: Path, b: Path, events: Path | str, on: str, **bootstrap: Any
) -> "tuple[ModelComparison, str]":
    from ranklet_training.judge.compare import compare_models

    names = (a.resolve().name, b.resolve().name)
    if names[0] == names[1]:
        names = (str(a), str(b))
    models, split, _ = open_models({names[0]: a, names[1]: b}, events)
    pair = models[names[0]], models[names[1]]
    comparison = compare_models(*pair, split, names=names, on=on, **bootstrap)
    return comparison, format_models(comparison)


def _compare_log(
    log: Path, control: str | None, ratio: tuple[float, float], **bootstrap: int
) -> "tuple[OutcomeComparison, str]":
    from ranklet_training.judge.outcomes import compare_outcomes

    comparison = compare_outcomes(log, control=control, ratio=ratio, **bootstrap)
    if comparison.users_in_both:
        note(f"{comparison.users_in_both:,} users saw both variants and are left out")
    if comparison.sample_ratio.mismatch:
        note(_mismatch(comparison))
    return comparison, format_outcomes(comparison)


def format_models(comparison: "ModelComparison") -> str:
    """Format a comparison of models for a terminal."""
    head = [
        f"{comparison.protocol}; {comparison.users:,} users",
        *describe_unknown(comparison.left_out, comparison.unknown),
        f"A = {comparison.a}, B = {comparison.b}; {comparison.resamples:,} bootstrap samples "
        f"of users, paired, seed {comparison.seed}",
    ]
    header = ["metric", "A", "B", "B - A", "95 % interval", "p", "p (Holm)"]
    table = [[*header, "A wins", "B wins", "ties", "significant"]]
    for row in comparison.rows:
        counts = [f"{count:,}" for count in (row.a_wins, row.b_wins, row.ties)]
        figures = [f"{row.a:.4f}", f"{row.b:.4f}", *_figures(row), *counts]
        table.append([row.metric, *figures, "yes" if row.significant else "no"])
    return "\n".join([*head, "", *align(table), "", _conclusion(comparison.rows, "B")])


def format_outcomes(comparison: "OutcomeComparison") -> str:
    """Format an online A/B test for a terminal."""
    variants = {"control": comparison.control, "treatment": comparison.treatment}
    head = [
        f"{role} {variant.name}: {variant.users:,} users, {variant.requests:,} requests"
        for role, variant in variants.items()
    ]
    ratio, p = comparison.sample_ratio, _show_p(comparison.sample_ratio.p)
    if ratio.mismatch:
        head += ["", _mismatch(comparison)]
    else:
        head.append(f"sample ratio: chi-square {ratio.chi_square:.3f}, p {p}: as planned")
    head.append(
        f"means over users; {comparison.resamples:,} bootstrap samples of users in each "
        f"variant, seed {comparison.seed}"
    )
    header = ["metric", "control", "treatment", "difference", "relative", "95 % interval"]
    table = [[*header, "p", "p (Holm)", "significant"]]
    for row in comparison.rows:
        difference, *rest = _figures(row)
        relative = row.relative_difference
        percent = "-" if relative is None else f"{relative:+.1%}"
        figures = [f"{row.control:.4f}", f"{row.treatment:.4f}", difference, percent, *rest]
        table.append([row.metric, *figures, "yes" if row.significant else "no"])
    warning = ["THESE RESULTS CANNOT BE TRUSTED, see above"] if ratio.mismatch else []
    conclusion = _conclusion(comparison.rows, "treatment")
    return "\n".join([*head, "", *align(table), "", conclusion, *warning])


def _mismatch(comparison: "OutcomeComparison") -> str:
    ratio, users = comparison.sample_ratio, (comparison.control.users, comparison.treatment.users)
    return (
        f"SAMPLE RATIO MISMATCH: {users[0]:,} to {users[1]:,} users where "
        f"{ratio.control_share:.1%} were planned in control "
        f"(chi-square {ratio.chi_square:.1f}, p {_show_p(ratio.p)}). The results cannot be "
        "trusted: first find the reason for the missing users"
    )


def _figures(row: "Row") -> list[str]:
    interval = f"[{row.low:+.4f}, {row.high:+.4f}]"
    return [f"{row.difference:+.4f}", interval, _show_p(row.p), _show_p(row.p_holm)]


def _show_p(p: float) -> str:
    return f"{p:.4f}" if p >= 5e-5 else f"{p:.1e}"


def _conclusion(rows: "Sequence[Row]", second: str) -> str:
    """Return one line with the significant metrics and their directions."""
    significant = [
        f"{row.metric} ({second} {'better' if row.difference > 0 else 'worse'})"
        for row in rows
        if row.significant
    ]
    rule = f"at 5 % after Holm's correction over {len(rows)} metrics"
    if not significant:
        return f"no difference is significant {rule}"
    return f"significant {rule}: {', '.join(significant)}"
