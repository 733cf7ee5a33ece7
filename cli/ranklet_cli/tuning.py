"""The command that searches for settings."""

import shlex
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ranklet.errors import InputError
from ranklet_cli.common import (
    FILE,
    NEW_FOLDER,
    PATH,
    cli,
    column_options,
    json_option,
    note,
    print_json,
)
from ranklet_cli.training import prepare, read_settings, settings_options

if TYPE_CHECKING:
    from ranklet_training.judge.tune import TuneResult

ROWS = 10  # of the table that is printed


@cli.command()
@click.argument("events", type=PATH)
@click.option("--items", type=FILE, help="Titles and features by item_id or --item-column.")
@click.option(
    "--out",
    type=NEW_FOLDER,
    required=True,
    help="Folder of the study; one that holds a study goes on.",
)
@settings_options
@click.option(
    "--search",
    multiple=True,
    metavar="KEY=SPEC",
    help="Search this: LOW..HIGH, LOW..HIGH:log or A,B,...; takes the place of the default search.",
)
@click.option(
    "--sampler",
    type=click.Choice(["tpe", "random"]),
    default="tpe",
    show_default=True,
    help="Draw where good trials were, or evenly.",
)
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Trials in all, those of an earlier call among them.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Stop after them; the same command goes on.",
)
@click.option(
    "--pruner/--no-pruning",
    "prune",
    default=True,
    show_default=True,
    help="Stop trials that fall behind the median.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of draws.")
@column_options
@json_option
def tune(
    events: Path,
    items: Path | None,
    out: Path,
    preset: str | None,
    config_file: Path | None,
    settings: tuple[str, ...],
    search: tuple[str, ...],
    sampler: Any,
    trials: int,
    minutes: float | None,
    prune: bool,
    seed: int,
    as_json: bool,
    **reading: str,
) -> None:
    """Search for the settings with the best validation NDCG@10 on EVENTS.

    The first trial is what train would do with the same options. Without --search, what matters
    most is searched, except for settings that --preset, --config or --set give; with it, they say
    where the first trial stands. With --set split=k-fold a trial's value is the mean over the
    folds. The same command goes on with a study that was stopped.

    Example: ranklet tune events.parquet --out study --trials 30 --search dropout=0.1..0.6
    """
    from ranklet_training.judge import tune as tuning
    from ranklet_training.judge.space import default_space, parse_space
    from ranklet_training.runs.presets import configure

    chosen = read_settings(preset, config_file, settings)
    given = configure(chosen)
    specs = _read_search(search) or default_space(given, chosen)
    space = parse_space(specs, given)
    log, split, config, catalogue, source = prepare(events, items, chosen, reading)
    note(f"searched: {', '.join(f'{k}={v}' for k, v in specs.items())}")
    result = tuning.tune(
        out,
        config,
        space,
        log,
        tuning.folds_of(log, split, given),
        catalogue,
        sampler=sampler,
        trials=trials,
        minutes=minutes,
        prune=prune,
        seed=seed,
        reading=reading,
        source=source,
    )
    if find_spec("matplotlib") is None:
        note("no plots: matplotlib is not installed: pip install 'ranklet[plots]'")
    else:
        tuning.plot_study(result)
    following = _train_command(events, items, out, reading)
    if as_json:
        return print_json(
            {
                "study": str(out),
                "best": asdict(result.best),
                "base": asdict(result.base),
                "trials": [asdict(trial) for trial in result.trials],
                "importance": result.importance,
                "config": str(out / "best.toml"),
                "run": str(out / "trials" / str(result.best.number)),
                "settings": result.config.to_dict(),
                "next": following,
            }
        )
    click.echo(format_study(result))
    click.echo(f"\nbest settings: {out / 'best.toml'}\nnext: {following}")
    return None


def _read_search(search: tuple[str, ...]) -> dict[str, str]:
    specs = {}
    for text in search:
        name, sign, spec = text.partition("=")
        if not sign:
            raise InputError(f"--search takes KEY=SPEC, as in dropout=0.1..0.6, got {text!r}")
        specs[name.strip()] = spec.strip()
    return specs


def _train_command(events: Path, items: Path | None, out: Path, reading: dict[str, str]) -> str:
    """Return the command that trains with what was found, on the same log read alike."""
    words = ["ranklet", "train", str(events), "--out", "RUN", "--config", str(out / "best.toml")]
    if items is not None:
        words += ["--items", str(items)]
    for option in click.get_current_context().command.params:
        if option.name in reading and reading[option.name] != option.default:
            words += [option.opts[0], reading[option.name]]
    return shlex.join(words)


def format_study(result: "TuneResult") -> str:
    """Lay the best trials of a study out for a terminal."""
    names = list(result.base.settings)
    rows = [["trial", "NDCG@10", *names]]
    for trial in result.ranking[:ROWS]:
        values = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in trial.settings.values()]
        number = f"{trial.number} (base)" if trial is result.base else str(trial.number)
        rows.append([number, f"{trial.value:.4f}", *values])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{c:>{w}}" for c, w in zip(row, widths, strict=True)) for row in rows]
    pruned = sum(trial.state == "pruned" for trial in result.trials)
    lines.append(f"{len(result.ranking)} complete trials, {pruned} pruned")
    if result.importance:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in result.importance.items())
        lines.append(f"what the value depended on: {shares}")
    return "\n".join(lines)
