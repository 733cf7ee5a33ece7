"""Search for the settings with the best validation NDCG@10, in a study that can be stopped.

    study.db            every trial with its settings and values; optuna's SQLite storage
    trials/<number>/    a run as ``train`` writes it; only the best trial's keeps its weights
    best.toml           all settings of the best trial, for ``ranklet train --config``
    study.png           value of the trials in order (with matplotlib)
    importance.png      what the value depended on (with matplotlib and enough trials)

* The first trial is the base configuration itself, so the best is never worse on validation.
* A draw depends on the seed and the finished trials alone: a study that was killed and started
  again makes the draws of one that was not.
* With ``split=k-fold`` a trial trains once a fold (``trials/<number>/fold-<fold>/``), and its
  value is the mean over the folds.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import polars as pl
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DatabaseError
from tqdm import tqdm

from ranklet.errors import InputError, RunError
from ranklet.files.atomic import atomic_write
from ranklet_training.data.events import Events, frame_digest
from ranklet_training.data.features import build_feature
from ranklet_training.data.split import Split, split_events
from ranklet_training.judge.plots import new_figure, save_figure
from ranklet_training.runs.lock import locked
from ranklet_training.runs.presets import RunConfig, configure
from ranklet_training.runs.train import Log, start_run, train

logger = logging.getLogger(__name__)

Space = dict[str, BaseDistribution]

# What is searched if nothing else is said; it holds what recommend() chooses.
DEFAULT_SPACE = {
    "dropout": "0.1..0.7",  # sparse data wants much; of 0.2 to 0.5 ml-100k tells the difference
    "learning_rate": "5e-4..2e-2:log",  # its best value moves with width and targets_per_step
    "width": "32,64,128,256",  # capacity against overfitting; time and size grow with it
    "blocks": "1..3",  # none is the preset zero-block; time grows with them
    "temperature": "0.03..0.2:log",  # how sharply the softmax tells cosines apart
    "targets_per_step": "512..4096:log",  # few: more and noisier steps in an epoch
}
# A value is the answer to one question: what changes the question can't be searched.
FIXED = {
    "split": "it decides what is asked",
    "folds": "it decides what is asked",
    "fold": "it decides what is asked",
    "seed": "the best seed is luck",
}
PRUNING_STARTS = 5  # trials that are finished before a median says something
PRUNING_WAITS = 1 / 3  # share of the epochs: the first ones say little of the last
IMPORTANCE_STARTS = 10  # trials; below, the importances are noise
ATTEMPTS = 3  # a trial that dies each time (memory?) must not stop the study for ever
FILES_OF_BEST = {".safetensors", ".parquet", ".tmp"}  # other trials lose them


@dataclass(frozen=True)
class TrialResult:
    """A finished trial."""

    number: int
    state: Literal["complete", "pruned"]
    value: float | None  # validation NDCG@10; of the last report if pruned, None without any
    settings: dict[str, Any]  # those that are searched
    seconds: float
    note: str  # why it was pruned


@dataclass(frozen=True)
class TuneResult:
    """What a study has come to."""

    path: Path
    config: RunConfig  # of the best trial
    best: TrialResult
    base: TrialResult
    trials: list[TrialResult]  # in order
    importance: dict[str, float]  # shares that sum to 1; empty with too few trials

    @property
    def ranking(self) -> list[TrialResult]:
        """Return the complete trials, best first; the earlier one first where values are equal."""
        complete = [trial for trial in self.trials if trial.state == "complete"]
        return sorted(complete, key=lambda trial: -(trial.value or 0.0))


class _TimeIsOver(Exception):  # noqa: N818 (it is no error)
    """Unwinds a training whose time is over."""


# What is searched.


def default_space(base: RunConfig, fixed: Collection[str] = ()) -> dict[str, str]:
    """Return the specs of ``DEFAULT_SPACE`` that this configuration uses and nobody fixed."""
    unused = set(fixed)
    if base.model.kind == "seed":
        unused |= {"blocks", "temperature"}
    if base.model.scoring == "dot":
        unused.add("temperature")
    return {name: spec for name, spec in DEFAULT_SPACE.items() if name not in unused}


def parse_space(specs: Mapping[str, str], base: RunConfig) -> Space:
    """Read specs like ``0.1..0.6``, ``1e-4..1e-2:log`` and ``64,128,256``.

    Raises:
        InputError: A setting is unknown or can't be searched, or a value is none of its kind.
    """
    if not specs:
        raise InputError(
            "nothing is left to search, as every setting was given: name some, as in "
            "--search dropout=0.1..0.6"
        )
    return {name: _distribution(name, spec.strip(), base) for name, spec in specs.items()}


def _distribution(name: str, spec: str, base: RunConfig) -> BaseDistribution:
    if name in FIXED:
        raise InputError(f"{name} can't be searched: {FIXED[name]}; give it with --set")
    if ".." not in spec:
        values = list(dict.fromkeys(_value(name, text.strip(), base) for text in spec.split(",")))
        if len(values) < 2:
            raise InputError(
                f"{name}={spec} leaves no choice: give LOW..HIGH, LOW..HIGH:log or A,B,..., "
                "or fix it with --set"
            )
        return CategoricalDistribution(values)
    ends, _, scale = spec.partition(":")
    first, _, second = ends.partition("..")
    low, high = _value(name, first.strip(), base), _value(name, second.strip(), base)
    if isinstance(low, bool | str):
        raise InputError(f"{name} has no range, got {spec!r}: give its values, as in {name}=A,B")
    if scale not in ("", "log"):
        raise InputError(f"{name}={spec}: a range ends in :log or in nothing, got {scale!r}")
    if not low < high:
        raise InputError(f"{name}={spec}: {low} is not below {high}")
    if scale and low <= 0:
        raise InputError(f"{name}={spec}: a log range starts above 0, got {low}")
    kind = IntDistribution if isinstance(low, int) else FloatDistribution
    return kind(low, high, log=bool(scale))


def _value(name: str, text: str, base: RunConfig) -> Any:  # noqa: ANN401 (settings of any type)
    """Read one value of a setting, as strictly as ``--set`` would."""
    beside: dict[str, Any] = {}  # width and heads are judged together: here beside one that suits
    if name == "heads" and text.isdecimal():
        beside = {"width": 2 * max(1, int(text))}
    elif name == "width":
        beside = {"heads": 1}
    value = flat(configure({name: text, **beside}, base))[name]
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name} must be finite to be searched, got {text!r}")
    return value


def flat(config: RunConfig) -> dict[str, Any]:
    """Return all settings by name, as ``configure`` takes them."""
    return {name: value for part in config.to_dict().values() for name, value in part.items()}


def to_toml(settings: Mapping[str, Any]) -> str:
    """Write flat settings as TOML."""

    def text(value: Any) -> str:  # noqa: ANN401 (settings of any type)
        # JSON's true, false and quoted texts are TOML's; its numbers are Python's.
        is_json = isinstance(value, bool | str)
        return json.dumps(value, ensure_ascii=False) if is_json else repr(value)

    return "".join(f"{name} = {text(value)}\n" for name, value in settings.items())


def _spec(distribution: BaseDistribution) -> str:
    """Return the text that ``parse_space`` reads as this distribution."""
    if isinstance(distribution, CategoricalDistribution):
        return ",".join(map(str, distribution.choices))
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return f"{distribution.low}..{distribution.high}{':log' if distribution.log else ''}"


def _check_space(space: Space, base: RunConfig, items: pl.DataFrame | None) -> None:
    """Refuse a space without the base, from which the search starts, and unknown features."""
    for name, distribution in space.items():
        value = flat(base)[name]
        if isinstance(distribution, CategoricalDistribution):
            holds = value in distribution.choices
        else:
            assert isinstance(distribution, IntDistribution | FloatDistribution)
            holds = distribution.low <= value <= distribution.high
        if not holds:
            raise InputError(
                f"the first trial is the base configuration, whose {name}={value} is not in "
                f"{_spec(distribution)}: widen that, or start elsewhere with --set {name}=VALUE"
            )
    searched = space.get("features")
    choices = searched.choices if isinstance(searched, CategoricalDistribution) else ()
    for choice in choices:
        for feature in configure({"features": str(choice)}).train.feature_names:
            build_feature(items if items is not None else pl.DataFrame(), feature)


# The search.


def folds_of(events: Events, split: Split, base: RunConfig) -> list[Split]:
    """Return the splits that a trial trains on: the one, or every fold of ``k-fold``."""
    if split.kind != "k-fold":
        return [split]
    folds = base.train.folds
    return [split_events(events.frame, "k-fold", folds=folds, fold=fold) for fold in range(folds)]


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
    """Search until so many trials are finished, those of an earlier call among them.

    Args:
        path: Folder of the study; one that holds a study goes on.
        base: The first trial, and what the space doesn't name.
        space: From ``parse_space``.
        events: The log.
        splits: From ``folds_of``.
        items: As ``start_run`` takes it.
        sampler: ``"random"`` draws evenly; ``"tpe"`` where good trials were.
        trials: Number of finished trials at which the study ends.
        minutes: No trial starts after them, and the running one stops at its next epoch.
        prune: Stop a trial that falls behind the median of the earlier ones.
        seed: Of the draws; the trainings have that of the base.
        reading: As ``start_run`` takes it.
        source: As ``start_run`` takes it.
        show_progress: Draw a bar over the trials on stderr, if it is a terminal.

    Raises:
        InputError: The space does not hold the base, or the minutes are no time.
        RunError: The study was started with something else, another process works on it, the base
            can't be trained, or no trial was finished in time.
    """
    if minutes is not None and not 0 < minutes < math.inf:
        raise InputError(f"minutes must be above 0 and finite, got {minutes}")
    deadline = time.monotonic() + 60 * minutes if minutes is not None else math.inf
    _check_space(space, base, items)
    facts = {
        "events": events.digest,
        "items": "none" if items is None else frame_digest(items),
        "base": flat(base),
        "space": {name: _spec(distribution) for name, distribution in space.items()},
    }

    def start(folder: Path, config: RunConfig, split: Split, log: Log) -> float:
        run = start_run(folder, config, events, split, items, reading=reading, source=source)
        return train(run, split, log=log, show_progress=False).validation["NDCG@10"]

    taken = f"another process works on the study {path}"
    with locked(path / "study.lock", taken), _opened(path) as study:
        _check_facts(study, path, facts)
        _enqueue_unfinished(study, base, space)
        study.pruner = optuna.pruners.NopPruner()
        if prune:
            wait = 0 if len(splits) > 1 else int(base.train.epochs * PRUNING_WAITS)
            study.pruner = optuna.pruners.MedianPruner(PRUNING_STARTS, n_warmup_steps=wait)
        search = _Search(study, path, base, splits, start, deadline)
        search.keep_best()  # a process may have been killed just before it
        done = len(_finished(study))
        is_off = None if show_progress else True  # None: where stderr is no terminal
        with tqdm(total=trials, initial=done, unit=" trials", disable=is_off) as bar:
            while done < trials and time.monotonic() < deadline:
                study.sampler = _sampler(sampler, seed, done)
                search.run(study.ask(space))
                done = len(_finished(study))
                bar.update(done - bar.n)
                if best := search.keep_best():
                    bar.set_postfix_str(f"best {best.value:.4f} of trial {best.number}")
        return _result(study, path, base)


@dataclass(frozen=True)
class _Search:
    """What all trials of a call share."""

    study: optuna.Study
    path: Path
    base: RunConfig
    splits: Sequence[Split]
    start: Callable[[Path, RunConfig, Split, Log], float]  # train one run, return its NDCG@10
    deadline: float

    def run(self, trial: optuna.Trial) -> None:
        """Run a trial and tell the study how it ended."""
        try:
            value = self._train(trial, configure(trial.params, self.base))
        except (_TimeIsOver, KeyboardInterrupt) as stop:
            _enqueue_again(self.study, trial, self.base, trial.user_attrs.get("attempt", 1))
            self.study.tell(trial, state=TrialState.FAIL)
            if isinstance(stop, KeyboardInterrupt):
                raise
        except (optuna.TrialPruned, InputError, RunError) as reason:
            if not isinstance(reason, optuna.TrialPruned):
                if trial.user_attrs.get("is_base"):  # where the base can't be trained, nothing can
                    self.study.tell(trial, state=TrialState.FAIL)
                    raise
                logger.warning("trial %d is left out: %s", trial.number, reason)
            trial.set_user_attr("note", str(reason))
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, value)

    def _train(self, trial: optuna.Trial, config: RunConfig) -> float:
        """Return the mean of the best epochs' NDCG@10 over the splits."""
        folder = self.path / "trials" / str(trial.number)
        if len(self.splits) == 1:
            return self.start(folder, config, self.splits[0], self._log(config, trial))
        values: list[float] = []
        for fold, split in enumerate(self.splits):
            self._stop_in_time()
            of_fold = replace(config, train=replace(config.train, fold=fold))
            values.append(self.start(folder / f"fold-{fold}", of_fold, split, self._log(config)))
            if 1 < len(values) < len(self.splits):  # one fold is too few users
                trial.report(float(np.mean(values)), fold)
                if trial.should_prune():
                    raise optuna.TrialPruned(f"behind the median after {len(values)} folds")
        return float(np.mean(values))

    def _log(self, config: RunConfig, trial: optuna.Trial | None = None) -> Log:
        """Return what stops a training between two epochs; epochs are reported to a trial."""

        def log(line: dict[str, Any]) -> None:
            is_last = line["epoch"] + 1 == config.train.epochs
            if trial is not None:
                trial.report(line["validation_NDCG@10"], line["epoch"])
                if not is_last and trial.should_prune():
                    raise optuna.TrialPruned(f"behind the median after {line['epoch'] + 1} epochs")
            if not is_last:
                self._stop_in_time()

        return log

    def _stop_in_time(self) -> None:
        if time.monotonic() >= self.deadline:
            raise _TimeIsOver

    def keep_best(self) -> FrozenTrial | None:
        """Write ``best.toml``, and take the weights from all other trials."""
        if (best := _best(self.study)) is None:
            return None
        settings = to_toml(flat(configure(best.params, self.base)))
        title = f"# trial {best.number} of ranklet tune: validation NDCG@10 {best.value:.5f}\n"
        atomic_write(self.path / "best.toml", (title + settings).encode())
        for folder in (self.path / "trials").glob("*"):
            if folder.name != str(best.number):
                for file in folder.rglob("*"):
                    if file.suffix in FILES_OF_BEST:
                        file.unlink()
        return best


def _sampler(
    kind: Literal["tpe", "random"], seed: int, finished: int
) -> optuna.samplers.BaseSampler:
    """Return a sampler for one draw, which so depends on nothing but the study."""
    state = int(np.random.SeedSequence([seed, finished]).generate_state(1)[0])
    if kind == "random":
        return optuna.samplers.RandomSampler(seed=state)
    return optuna.samplers.TPESampler(seed=state)


# The study on disk.


@contextmanager
def _opened(path: Path) -> Iterator[optuna.Study]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{path / 'study.db'}")
    except (DatabaseError, RuntimeError) as error:
        raise RunError(f"{path / 'study.db'} is damaged, or of another optuna: {error}") from error
    try:
        yield optuna.create_study(
            storage=storage, study_name="ranklet", direction="maximize", load_if_exists=True
        )
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _check_facts(study: optuna.Study, path: Path, facts: Mapping[str, Any]) -> None:
    """Record what a new study is about; refuse to go on with an old one about something else."""
    known = study.user_attrs
    differences = []
    for name, new in facts.items():
        if name not in known:
            study.set_user_attr(name, new)
            continue
        old = known[name]
        if name == "base":
            old = flat(configure(old))
        if isinstance(new, str):
            old, new = {f"digest of the {name}": old[:12]}, {f"digest of the {name}": new[:12]}
        differences += [
            f"{key} was {old.get(key, 'not searched')!r}, now {new.get(key, 'not searched')!r}"
            for key in {**old, **new}
            if old.get(key) != new.get(key)
        ]
    if differences:
        raise RunError(
            f"the study {path} was started with something else ({'; '.join(differences)}): "
            "go on with the same, or choose another folder"
        )


def _enqueue_unfinished(study: optuna.Study, base: RunConfig, space: Space) -> None:
    """Enqueue what a killed process left unfinished; in a new study that is the base."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        is_base, attempt = trial.user_attrs.get("is_base"), trial.user_attrs.get("attempt", 1)
        if attempt >= ATTEMPTS and not is_base:
            logger.warning("trial %d is left out: it was killed %d times", trial.number, attempt)
            study.tell(trial.number, state=TrialState.PRUNED)
            continue
        # One that was killed while it was drawn has no settings: it is drawn again.
        if is_base or trial.params.keys() == space.keys():
            _enqueue_again(study, trial, base, attempt + 1)
        study.tell(trial.number, state=TrialState.FAIL)
    if not _finished(study) and not study.get_trials(states=(TrialState.WAITING,)):
        start = {name: flat(base)[name] for name in space}
        study.enqueue_trial(start, user_attrs={"is_base": True})


def _enqueue_again(
    study: optuna.Study, trial: optuna.Trial | FrozenTrial, base: RunConfig, attempt: int
) -> None:
    is_base = trial.user_attrs.get("is_base", False)
    settings = trial.params
    if is_base:
        settings = {name: flat(base)[name] for name in study.user_attrs["space"]}
    study.enqueue_trial(settings, user_attrs={"is_base": is_base, "attempt": attempt})


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def _best(study: optuna.Study) -> FrozenTrial | None:
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return max(complete, key=lambda trial: (trial.value, -trial.number), default=None)


def _result(study: optuna.Study, path: Path, base: RunConfig) -> TuneResult:
    best = _best(study)
    if best is None:
        raise RunError(
            f"no trial was finished in time; the study {path} is kept: run the same command "
            "again, with more --minutes"
        )
    killed = f"killed {ATTEMPTS} times"
    found = {
        trial.number: TrialResult(
            trial.number,
            "complete" if trial.state == TrialState.COMPLETE else "pruned",
            trial.value,
            trial.params,
            round((trial.duration or timedelta()).total_seconds(), 2),
            trial.user_attrs.get("note", "" if trial.state == TrialState.COMPLETE else killed),
        )
        for trial in _finished(study)
    }
    base_number = next(t.number for t in _finished(study) if t.user_attrs.get("is_base"))
    return TuneResult(
        path,
        configure(best.params, base),
        found[best.number],
        found[base_number],
        list(found.values()),
        _importance(study),
    )


def _importance(study: optuna.Study) -> dict[str, float]:
    """Return what set the best trials apart, as shares: the best quarter, but no less than five.

    Source: Watanabe et al., "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in
    Arbitrary Subspaces", 2023.
    """
    complete = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    if complete < IMPORTANCE_STARTS:
        return {}
    share = max(0.25, 5 / complete)
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=share)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


# Plots.


def plot_study(result: TuneResult) -> None:
    """Draw ``study.png`` and, where importances are known, ``importance.png``.

    Raises:
        InputError: matplotlib is missing.
    """
    _plot_trials(result, result.path / "study.png")
    if result.importance:
        _plot_importance(result, result.path / "importance.png")


def _plot_trials(result: TuneResult, path: Path) -> None:
    figure, axes = new_figure(path)
    from matplotlib.ticker import MaxNLocator

    points: dict[str, list[tuple[int, float]]] = {"complete": [], "pruned": []}
    for trial in result.trials:
        if trial.value is not None:
            points[trial.state].append((trial.number, trial.value))
    numbers, values = np.array(points["complete"], dtype=np.float64).T
    so_far = np.maximum.accumulate(values)
    base, last = result.base.value or 0.0, result.trials[-1].number
    axes.axhline(base, color="0.5", linestyle="--", linewidth=1, label="the base")
    axes.step([*numbers, last], [*so_far, so_far[-1]], where="post", label="best so far")
    axes.scatter(numbers, values, s=28, zorder=3, label="complete")
    if points["pruned"]:
        numbers, values = np.array(points["pruned"], dtype=np.float64).T
        axes.scatter(numbers, values, marker="x", color="0.5", label="pruned: its last value")
    axes.legend(frameon=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trial")
    axes.set_ylabel("validation NDCG@10")
    best = f"trial {result.best.number} is best, {result.best.value:.4f}"
    title = f"{result.path.resolve().name}: {best}; the base has {base:.4f}"
    axes.set_title(title, loc="left", fontweight="bold")
    save_figure(figure, path)


def _plot_importance(result: TuneResult, path: Path) -> None:
    figure, axes = new_figure(path)
    names = list(result.importance)[::-1]  # barh draws from below
    axes.barh(names, [result.importance[name] for name in names])
    axes.set_xlabel("share in what set the best trials apart (PED-ANOVA)")
    title = f"{result.path.resolve().name}: what {len(result.ranking)} trials depended on"
    axes.set_title(title, loc="left", fontweight="bold")
    save_figure(figure, path)
