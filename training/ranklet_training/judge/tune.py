"""Hyperparameter search by validation NDCG@10, in a study that survives a kill.

    study.db            settings and values of all trials; SQLite storage of optuna
    trials/<number>/    run of a trial; only the best trial keeps its weights
    best.toml           all settings of the best trial, for ``ranklet train --config``
    study.png           values of the trials in order (with matplotlib)
    importance.png      importance of the settings (with matplotlib and enough trials)

* The first trial is the base configuration, so the best is never worse on validation. If a value
  of the base is not searched, the first trial has the nearest one that is.
* A draw depends on the seed and the finished trials alone, even after a kill.
* With ``split=k-fold`` a trial has a run for each fold (``trials/<number>/fold-<fold>/``), and its
  value is the mean over the folds.
"""

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import polars as pl
from optuna.trial import FrozenTrial, TrialState
from tqdm import tqdm

from ranklet.errors import InputError, RunError
from ranklet.files.atomic import atomic_write
from ranklet_training.data.digest import frame_digest
from ranklet_training.data.events import Events
from ranklet_training.data.split import Split, split_events
from ranklet_training.judge.plots import new_figure, save_figure
from ranklet_training.judge.space import Space, check_features, move_inside, spec_of
from ranklet_training.judge.study import ATTEMPTS, Study, open_study
from ranklet_training.runs.checkpoint import locked
from ranklet_training.runs.presets import RunConfig, configure, setting_differences
from ranklet_training.runs.report import Lines, is_terminal
from ranklet_training.runs.start import kinds_of, start_run
from ranklet_training.runs.train import Log, train

logger = logging.getLogger(__name__)

SAMPLERS = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
PRUNING_STARTS = 5  # finished trials before the median is meaningful
PRUNING_WAITS = 1 / 3  # share of the epochs: the first epochs predict little of the last
IMPORTANCE_STARTS = 10  # trials; below, importances are noise
FILES_OF_BEST = {".safetensors", ".parquet", ".tmp"}  # removed from all other trials


@dataclass(frozen=True)
class TrialResult:
    """A finished trial."""

    number: int
    state: Literal["complete", "pruned"]
    value: float | None  # validation NDCG@10; if pruned, of the last report or None
    settings: dict[str, Any]  # within the space
    seconds: float
    note: str  # reason of pruning


@dataclass(frozen=True)
class TuneResult:
    """Result of a search: trials and best configuration."""

    path: Path
    config: RunConfig  # of the best trial
    best: TrialResult
    base: TrialResult
    trials: list[TrialResult]  # in order
    importance: dict[str, float]  # shares that sum to 1; empty with too few trials

    @property
    def ranking(self) -> list[TrialResult]:
        """Return the complete trials, best first, equal values by number."""
        complete = [trial for trial in self.trials if trial.state == "complete"]
        return sorted(complete, key=lambda trial: -(trial.value or 0.0))


class _TimeIsOver(Exception):  # noqa: N818 (no error)
    """Signal of the deadline, which ends a training."""


def to_toml(settings: Mapping[str, Any]) -> str:
    """Return flat settings as TOML, in which booleans, numbers and strings are as in JSON."""
    return "".join(f"{k} = {json.dumps(v, ensure_ascii=False)}\n" for k, v in settings.items())


def folds_of(events: Events, split: Split, base: RunConfig) -> list[Split]:
    """Return the splits of a trial: the given split, or all folds of ``k-fold``."""
    if split.kind == "none":
        raise InputError("a search needs held-out events to compare trials by: choose a split")
    if split.kind != "k-fold":
        return [split]
    folds, target = base.train.folds, base.train.target
    return [
        split_events(events.pieces, "k-fold", folds=folds, fold=fold, target=target)
        for fold in range(folds)
    ]


def tune(
    path: Path,
    base: RunConfig,
    space: Space,
    events: Events,
    splits: Sequence[Split],
    items: pl.DataFrame | None = None,
    *,
    sampler: Literal["tpe", "random"] = "tpe",
    trials: int = 20,
    minutes: float | None = None,
    prune: bool = True,
    seed: int = 0,
    reading: dict[str, str] | None = None,
    source: str = "",
    show_progress: bool = True,
) -> TuneResult:
    """Search until the study has ``trials`` finished trials, including earlier calls.

    ``base`` is the first trial, moved into the space, and gives the settings outside the space, the
    seed of training among them. ``seed`` is that of the draws: uniform with ``"random"``, near good
    trials with ``"tpe"``. After ``minutes`` no trial starts, and the running trial stops at its
    next epoch. ``prune`` stops a trial below the median of earlier trials. The splits are from
    ``folds_of``; ``items``, ``reading`` and ``source`` are as in ``start_run``.

    Raises:
        InputError: The space has an unknown item feature, or the minutes are out of range.
        RunError: The study has other data, base or space, another process works on it, another
            program locks its database for a minute, the base can't be trained, or no trial finished
            in time.
    """
    if minutes is not None and not 0 < minutes < math.inf:
        raise InputError(f"minutes must be above 0 and finite, got {minutes}")
    deadline = time.monotonic() + 60 * minutes if minutes is not None else math.inf
    frame = pl.DataFrame() if items is None else items
    check_features(space, frame, kinds_of(frame, reading or {}))
    given, base = base, move_inside(space, base)
    for difference in setting_differences(given.flat(), base.flat()):
        logger.warning("the first trial has the nearest searched value: %s", difference)
    facts = {
        "events": events.digest,
        "items": "none" if items is None else frame_digest(items),
        "base": base.flat(),
        "space": {name: spec_of(distribution) for name, distribution in space.items()},
    }

    def start(folder: Path, config: RunConfig, split: Split, log: Log) -> float:
        run = start_run(folder, config, events, split, items, reading=reading, source=source)
        return train(run, split, log=log, show_progress=False).validation["NDCG@10"]

    taken = f"another process works on the study {path}"
    lock = locked(path / "study.lock", taken)
    with lock, _removed_if_refused(path), open_study(path, base, space) as study:
        study.check_facts(facts)
        study.enqueue_unfinished()
        wait = 0 if len(splits) > 1 else int(base.train.epochs * PRUNING_WAITS)
        median = optuna.pruners.MedianPruner(PRUNING_STARTS, n_warmup_steps=wait)
        study.handle.pruner = median if prune else optuna.pruners.NopPruner()
        lines = Lines(show=show_progress)
        search = _Search(study, splits, start, deadline, lines)
        search.keep_best()  # a process may have been killed before it
        done = len(study.finished())
        is_off = not (show_progress and is_terminal())
        with tqdm(total=trials, initial=done, unit=" trials", disable=is_off) as bar:
            while done < trials and time.monotonic() < deadline:
                # A new sampler for each draw, which depends on the study alone.
                state = int(np.random.SeedSequence([seed, done]).generate_state(1)[0])
                study.handle.sampler = SAMPLERS[sampler](seed=state)
                search.run(study.handle.ask(space))
                done = len(study.finished())
                bar.update(done - bar.n)
                if best := search.keep_best():
                    text = f"best {best.value:.4f} of trial {best.number}"
                    bar.set_postfix_str(text)
                    lines.write(f"{done} of {trials} trials, {text}")
        return _result(study)


@contextmanager
def _removed_if_refused(path: Path) -> Iterator[None]:
    """Remove a new study whose base was refused: only the same base could go on with it."""
    is_new = not (path / "study.db").exists()
    try:
        yield
    except (InputError, RunError):
        if is_new and not any(path.rglob("config.json")):
            shutil.rmtree(path / "trials", ignore_errors=True)
            (path / "study.db").unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class _Search:
    """State that all trials of a call share."""

    study: Study
    splits: Sequence[Split]
    start: Callable[[Path, RunConfig, Split, Log], float]  # train one run, return its NDCG@10
    deadline: float
    lines: Lines

    def run(self, trial: optuna.Trial) -> None:
        """Run a trial and record its end in the study."""
        tell = self.study.handle.tell
        try:
            value = self._train(trial, configure(trial.params, self.study.base))
        except (_TimeIsOver, KeyboardInterrupt, SystemExit) as stop:
            self.study.enqueue_again(trial, trial.user_attrs.get("attempt", 1))
            tell(trial, state=TrialState.FAIL)
            if not isinstance(stop, _TimeIsOver):
                raise
        except (InputError, RunError) as error:
            if trial.user_attrs.get("is_base"):  # all other trials would fail as well
                tell(trial, state=TrialState.FAIL)
                raise
            logger.warning("trial %d is left out: %s", trial.number, error)
            trial.set_user_attr("note", str(error))
            tell(trial, state=TrialState.PRUNED)
        except optuna.TrialPruned as reason:
            trial.set_user_attr("note", str(reason))
            tell(trial, state=TrialState.PRUNED)
        else:
            tell(trial, value)

    def _train(self, trial: optuna.Trial, config: RunConfig) -> float:
        """Return the NDCG@10 of the best epoch, as a mean over the splits."""
        folder = self.study.path / "trials" / str(trial.number)
        if len(self.splits) == 1:
            return self.start(folder, config, self.splits[0], self._log(config, trial))
        values: list[float] = []
        for fold, split in enumerate(self.splits):
            self._stop_in_time()
            of_fold = replace(config, train=replace(config.train, fold=fold))
            values.append(self.start(folder / f"fold-{fold}", of_fold, split, self._log(config)))
            if 1 < len(values) < len(self.splits):  # one fold has too few users
                trial.report(float(np.mean(values)), fold)
                if trial.should_prune():
                    raise optuna.TrialPruned(f"behind the median after {len(values)} folds")
        return float(np.mean(values))

    def _log(self, config: RunConfig, trial: optuna.Trial | None = None) -> Log:
        """Return a log that reports epochs to a trial and stops a training between two epochs."""

        def log(line: dict[str, Any]) -> None:
            done, epochs = line["epoch"] + 1, config.train.epochs
            is_last = done == epochs
            if self.lines.is_due:
                where = "" if trial is None else f"trial {trial.number}, "
                value = line["validation_NDCG@10"]
                self.lines.write(f"{where}epoch {done} of {epochs}: validation NDCG@10 {value:.4f}")
            if trial is not None:
                step = line["epoch"] + epochs * (line.get("kinds") == "with")  # the second training
                trial.report(line["validation_NDCG@10"], step)
                if not is_last and trial.should_prune():
                    raise optuna.TrialPruned(f"behind the median after {done} epochs")
            if not is_last:
                self._stop_in_time()

        return log

    def _stop_in_time(self) -> None:
        if time.monotonic() >= self.deadline:
            raise _TimeIsOver

    def keep_best(self) -> FrozenTrial | None:
        """Write ``best.toml`` and remove the weights of all other trials."""
        best, path = self.study.best(), self.study.path
        if best is None:
            return None
        settings = to_toml(configure(best.params, self.study.base).flat())
        title = f"# trial {best.number} of ranklet tune: validation NDCG@10 {best.value:.5f}\n"
        atomic_write(path / "best.toml", (title + settings).encode())
        for folder in (path / "trials").glob("*"):
            for file in folder.rglob("*") if folder.name != str(best.number) else ():
                if file.suffix in FILES_OF_BEST:
                    file.unlink()
        return best


def _result(study: Study) -> TuneResult:
    best = study.best()
    if best is None:
        raise RunError(
            f"no trial was finished in time; the study {study.path} is kept: run the same command "
            "again, with more --minutes"
        )
    finished = study.finished()
    results = {trial.number: _trial_result(trial) for trial in finished}
    base = next(results[trial.number] for trial in finished if trial.user_attrs.get("is_base"))
    config, trials = configure(best.params, study.base), list(results.values())
    return TuneResult(study.path, config, results[best.number], base, trials, _importance(study))


def _trial_result(trial: FrozenTrial) -> TrialResult:
    seconds = round((trial.duration or timedelta()).total_seconds(), 2)
    if trial.state == TrialState.COMPLETE:
        return TrialResult(trial.number, "complete", trial.value, trial.params, seconds, "")
    note = trial.user_attrs.get("note", f"killed {ATTEMPTS} times")
    return TrialResult(trial.number, "pruned", trial.value, trial.params, seconds, note)


def _importance(study: Study) -> dict[str, float]:
    """Return importances: shares of the settings in the distinction of the best trials.

    Source: Watanabe et al., "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in
    Arbitrary Subspaces", 2023.
    """
    complete = len(study.trials(TrialState.COMPLETE))
    if complete < IMPORTANCE_STARTS:
        return {}
    share = max(0.25, 5 / complete)  # at least five trials
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=share)
    return optuna.importance.get_param_importances(study.handle, evaluator=evaluator)


def plot_study(result: TuneResult) -> None:
    """Draw ``study.png`` and, if importances are known, ``importance.png``."""
    _plot_trials(result)
    if result.importance:
        _plot_importance(result)


def _plot_trials(result: TuneResult) -> None:
    path = result.path / "study.png"
    figure, axes = new_figure(path)
    points: dict[str, list[tuple[int, float]]] = {"complete": [], "pruned": []}
    for trial in result.trials:
        if trial.value is not None:
            points[trial.state].append((trial.number, trial.value))
    numbers, values = zip(*points["complete"], strict=True)
    so_far = np.maximum.accumulate(values).tolist()
    base, last = result.base.value or 0.0, result.trials[-1].number
    axes.axhline(base, color="0.5", linestyle="--", linewidth=1, label="the base")
    axes.step([*numbers, last], [*so_far, so_far[-1]], where="post", label="best so far")
    axes.scatter(numbers, values, s=28, zorder=3, label="complete")
    if points["pruned"]:
        numbers, values = zip(*points["pruned"], strict=True)
        axes.scatter(numbers, values, marker="x", color="0.5", label="pruned: last value")
    axes.legend(frameon=False)
    axes.locator_params("x", integer=True)
    axes.set_xlabel("trial")
    axes.set_ylabel("validation NDCG@10")
    best = f"trial {result.best.number} is best, {result.best.value:.4f}"
    title = f"{result.path.resolve().name}: {best}; the base has {base:.4f}"
    axes.set_title(title, loc="left", fontweight="bold")
    save_figure(figure, path)


def _plot_importance(result: TuneResult) -> None:
    path = result.path / "importance.png"
    figure, axes = new_figure(path)
    names = list(result.importance)[::-1]  # barh draws from below
    axes.barh(names, [result.importance[name] for name in names])
    axes.set_xlabel("importance: share in the distinction of the best trials (PED-ANOVA)")
    title = f"{result.path.resolve().name}: importance in {len(result.ranking)} trials"
    axes.set_title(title, loc="left", fontweight="bold")
    save_figure(figure, path)
