"""``ranklet tune``: hyperparameter search."""

import shlex
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ranklet.errors import RunError
from ranklet.extras import pip_install
from ranklet_cli import options
from ranklet_cli.open import prepare, read_settings, split_pairs
from ranklet_cli.options import hint_to_resume, note, print_json
from ranklet_cli.tables import align

if TYPE_CHECKING:
    from ranklet_training.judge.tune import TuneResult

ROWS = 10  # of the printed table


@click.command()
@click.argument("events", type=options.LOG)
@options.items
@click.option(
    "--out",
    type=options.NEW_FOLDER,
    required=True,
    help="Folder of the study; an existing study continues.",
)
@options.settings
@click.option("--resume", is_flag=True, help="Continue a stopped study, and start none.")
@click.option(
    "--search",
    multiple=True,
    metavar="KEY=SPEC",
    help="Search this setting in LOW..HIGH, LOW..HIGH:log or A,B,..., instead of the default ones.",
)
@options.choice("--sampler", "tpe|random", help="Draw near good trials, or uniformly.")
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    default=20,
    help="Number of trials in total; a stopped study counts those that it has.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Stop after this time; the same command continues the study.",
)
@click.option("--pruner/--no-pruning", "prune", default=True, help="Stop trials that fall behind.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Seed of the sampler.")
@options.columns
@options.json_flag
def tune(
    events: Path | str,
    items: Path | None,
    out: Path,
    preset: str | None,
    config_file: Path | None,
    settings: tuple[str, ...],
    target: str | None,
    search: tuple[str, ...],
    resume: bool,
    as_json: bool,
    **search_options: Any,
) -> None:
    """Search for the settings with the best validation NDCG@10 on EVENTS.

    The first trial uses the settings of train, or the nearest ones that are searched. The default
    space has the most important settings, except those given by --preset, --config or --set. With
    --search, these options are the starting point instead. With --set split=k-fold the value of a
    trial is the mean over the folds. The same command continues a stopped study.

    Example: ranklet tune events.parquet --out study --trials 30 --search dropout=0.1..0.6
    """
    from ranklet_training.judge import tune as tuning
    from ranklet_training.judge.space import default_space, parse_space
    from ranklet_training.runs.presets import configure

    if resume and not (out / "study.db").is_file():
        raise RunError(f"{out} holds no study: start it without --resume")
    reading = {name: search_options.pop(name) for name in options.READING}
    chosen = read_settings(preset, config_file, settings, target)
    given = configure(chosen)
    specs = split_pairs(search, "--search takes KEY=SPEC, as in dropout=0.1..0.6")
    specs = specs or default_space(given, chosen)
    space = parse_space(specs, given)
    log, split, config, catalogue, source = prepare(events, items, chosen, reading)
    note(f"search space: {', '.join(f'{k}={v}' for k, v in specs.items())}")
    words = ["ranklet", *sys.argv[1:], *([] if resume else ["--resume"])]
    with hint_to_resume(out / "study.db", words):
        result = tuning.tune(
            out,
            config,
            space,
            log,
            tuning.folds_of(log, split, given),
            catalogue,
            reading=reading,
            source=source,
            **search_options,
        )
    if find_spec("matplotlib") is None:
        note(f"no plots: matplotlib is not installed: {pip_install('plots')}")
    else:
        tuning.plot_study(result)
    train_command = _train_command(events, items, out, reading)
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
                "next": train_command,
            }
        )
    click.echo(format_study(result))
    click.echo(f"\nbest settings: {out / 'best.toml'}\nnext: {train_command}")


def _train_command(
    events: Path | str, items: Path | None, out: Path, reading: dict[str, str]
) -> str:
    """Return the command line that trains with the best settings on the same log."""
    words = ["ranklet", "train", str(events), "--out", "RUN", "--config", str(out / "best.toml")]
    if items is not None:
        words += ["--items", str(items)]
    for option in click.get_current_context().command.params:
        if option.name in reading and reading[option.name] != option.default:
            words += [option.opts[0], reading[option.name]]
    return shlex.join(words)


def format_study(result: "TuneResult") -> str:
    """Format the best trials of a study for a terminal."""
    rows = [["trial", "NDCG@10", *result.base.settings]]
    for trial in result.ranking[:ROWS]:
        values = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in trial.settings.values()]
        number = f"{trial.number} (base)" if trial is result.base else str(trial.number)
        rows.append([number, f"{trial.value:.4f}", *values])
    pruned = sum(trial.state == "pruned" for trial in result.trials)
    lines = [*align(rows, left=()), f"{len(result.ranking)} complete trials, {pruned} pruned"]
    if result.importance:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in result.importance.items())
        lines.append(f"importance: {shares}")
    return "\n".join(lines)
