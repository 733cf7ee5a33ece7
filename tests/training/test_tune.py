"""A search starts at the base, goes on after any stop, and refuses what it can't mean."""

import json
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from ranklet.errors import DataError, InputError, RunError
from ranklet_cli.open import read_toml as _read_toml
from ranklet_training.data.events import Events, read_events
from ranklet_training.data.simulator import Simulation, simulate
from ranklet_training.data.split import Split, split_events
from ranklet_training.judge import study as studies
from ranklet_training.judge import tune as tuning
from ranklet_training.judge.space import (
    DEFAULT_SPACE,
    default_space,
    move_inside,
    parse_space,
    spec_of,
)
from ranklet_training.judge.tune import TuneResult, folds_of, tune
from ranklet_training.runs.checkpoint import locked, read_run
from ranklet_training.runs.presets import configure, recommend

# A training of a fifth of a second.
SMALL: dict[str, Any] = {
    "width": 8,
    "blocks": 1,
    "max_length": 20,
    "dropout": 0.2,
    "epochs": 2,
    "targets_per_step": 512,
    "warmup_steps": 2,
}
BASE = configure(SMALL)
SPECS = {"dropout": "0.1..0.5", "learning_rate": "1e-3..3e-2:log", "width": "4,8"}
Search = Callable[..., TuneResult]


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the package catches it."""


@pytest.fixture
def search(tmp_path: Path, events: Events, split: Split) -> Search:
    """Search in ``tmp_path / "study"``; keyword arguments stand for those of ``tune``."""

    def search(trials: int, path: Path = tmp_path / "study", **given: Any) -> TuneResult:
        base = given.pop("base", BASE)
        space = parse_space(given.pop("specs", SPECS), base)
        log, splits = given.pop("events", events), given.pop("splits", [split])
        return tune(path, base, space, log, splits, trials=trials, show_progress=False, **given)

    return search


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, events: Events, split: Split) -> TuneResult:
    """A study of four trials that nothing stopped; tests must not write into it."""
    path = tmp_path_factory.mktemp("studies") / "whole"
    space = parse_space(SPECS, BASE)
    return tune(path, BASE, space, events, [split], trials=4, show_progress=False)


def outcome(result: TuneResult) -> list[tuple[float | None, dict[str, Any]]]:
    return [(trial.value, trial.settings) for trial in result.trials]


def on_epoch(patch: pytest.MonkeyPatch, do: Callable[[int], None]) -> None:
    """Call ``do`` with the number of an epoch, counted over all trainings, when it ends."""
    original, count = tuning.train, [0]

    def train(run: Any, split: Any, *, log: Any, **options: Any) -> Any:
        def counting(line: dict[str, Any]) -> None:
            count[0] += 1
            do(count[0])
            log(line)

        return original(run, split, log=counting, **options)

    patch.setattr(tuning, "train", train)


def die_at(epoch: int, error: type[BaseException] = Killed) -> Callable[[int], None]:
    def do(count: int) -> None:
        if count == epoch:
            raise error

    return do


def read_run_config(study: TuneResult, number: int) -> dict[str, Any]:
    document = json.loads((study.path / "trials" / str(number) / "config.json").read_text())
    return {part: document[part] for part in ("model", "train")}


# What a search finds.


def test_the_first_trial_is_the_base_so_the_best_is_never_worse(study: TuneResult) -> None:
    assert study.base is study.trials[0]
    assert study.base.settings == {name: SMALL.get(name, 3e-3) for name in SPECS}
    assert read_run_config(study, 0) == BASE.to_dict()
    assert study.best.value == max(trial.value for trial in study.trials) >= study.base.value


def test_a_trial_lies_in_the_space_and_has_the_value_of_its_best_epoch(study: TuneResult) -> None:
    for trial in study.trials:
        lines = (study.path / "trials" / str(trial.number) / "metrics.jsonl").read_text()
        figures = [json.loads(line)["validation_NDCG@10"] for line in lines.splitlines()]
        assert len(figures) == SMALL["epochs"]
        assert trial.value == max(figures)
        assert 0.1 <= trial.settings["dropout"] <= 0.5
        assert 1e-3 <= trial.settings["learning_rate"] <= 3e-2
        assert trial.settings["width"] in (4, 8)


def test_best_toml_holds_all_settings_of_the_best_trial(study: TuneResult, tmp_path: Path) -> None:
    settings = _read_toml(study.path / "best.toml")
    assert configure(settings) == study.config
    assert set(settings) == {name for part in BASE.to_dict().values() for name in part}
    assert read_run_config(study, study.best.number) == study.config.to_dict()
    settings = {"a": 'q"\\é😀', "b": True, "c": 1e-5, "d": 10**6, "e": 0.1 + 0.2, "f": ""}
    (tmp_path / "settings.toml").write_text(tuning.to_toml(settings))
    assert _read_toml(tmp_path / "settings.toml") == settings


def test_only_the_best_trial_keeps_its_weights(study: TuneResult) -> None:
    for trial in study.trials:
        folder = study.path / "trials" / str(trial.number)
        if trial.number == study.best.number:
            read_run(folder).load_model()
        else:
            assert {file.name for file in folder.iterdir()} == {"config.json", "metrics.jsonl"}


def test_the_ranking_runs_from_the_best_to_the_worst(study: TuneResult) -> None:
    values = [trial.value for trial in study.ranking]
    assert values == sorted(values, reverse=True)
    assert study.ranking[0] == study.best


def replace_training(patch: pytest.MonkeyPatch, value: Callable[[Any], float]) -> None:
    """Let the value of a run come from a function of it."""

    def train(run: Any, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(validation={"NDCG@10": value(run)})

    patch.setattr(tuning, "train", train)


def test_equal_values_leave_the_earlier_trial_the_best(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_training(monkeypatch, lambda _: 0.25)
    result = search(3)
    assert result.best is result.base
    assert result.config == BASE


@pytest.mark.slow
def test_importances_are_shares_and_are_drawn(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_training(monkeypatch, lambda run: run.config.model.dropout)
    result = search(14)
    assert sum(result.importance.values()) == pytest.approx(1)
    assert next(iter(result.importance)) == "dropout"
    tuning.plot_study(result)
    for name in ("study.png", "importance.png"):
        assert (result.path / name).read_bytes().startswith(b"\x89PNG")


def test_few_trials_give_no_importance(study: TuneResult, tmp_path: Path) -> None:
    assert study.importance == {}
    tuning.plot_study(replace(study, path=tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["study.png"]


@pytest.mark.slow
def test_the_random_sampler_draws_by_seed_and_not_by_values(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter(np.random.default_rng(0).random(99))
    replace_training(monkeypatch, lambda _: next(figures))
    drawn = [
        [trial.settings for trial in search(3, tmp_path / name, sampler="random", seed=seed).trials]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert drawn[0] == drawn[1]
    assert drawn[0][0] == drawn[2][0]  # the base
    assert all(a != b for a, b in zip(drawn[0][1:], drawn[2][1:], strict=True))
    assert len({settings["dropout"] for settings in drawn[0]}) == 3


# Stopping and going on.


def test_a_study_goes_on_from_its_trials_to_the_same_end(
    search: Search, study: TuneResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = search(2)
    assert outcome(first) == outcome(study)[:2]
    epochs: list[int] = []
    on_epoch(monkeypatch, epochs.append)
    assert outcome(search(4)) == outcome(study)
    assert len(epochs) == 2 * SMALL["epochs"]
    assert outcome(search(4)) == outcome(study)  # nothing is left to do
    assert len(epochs) == 2 * SMALL["epochs"]


@pytest.mark.parametrize(
    ("epoch", "error"),
    [
        (4, Killed),
        pytest.param(1, KeyboardInterrupt, marks=pytest.mark.slow),  # the base
    ],
)
def test_a_killed_trial_is_run_again(
    epoch: int,
    error: type[BaseException],
    search: Search,
    study: TuneResult,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        on_epoch(patch, die_at(epoch, error))
        with pytest.raises(error):
            search(3)
    result = search(3)
    assert outcome(result) == outcome(study)[:3]
    assert result.trials[-1].number == 3  # the one that was killed keeps its number
    assert result.base.settings == study.base.settings


def test_a_trial_that_dies_every_time_is_left_out(
    search: Search, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    search(1)
    for _ in range(tuning.ATTEMPTS):
        with monkeypatch.context() as patch:
            on_epoch(patch, die_at(1))
            with pytest.raises(Killed):
                search(2)
    result = search(3)
    assert "trial 3 is left out: it was killed 3 times" in caplog.text
    assert [trial.state for trial in result.trials] == ["complete", "pruned", "complete"]
    assert result.trials[1].note == "killed 3 times"


@pytest.mark.slow
def test_a_trial_that_was_interrupted_is_not_taken_for_one_that_dies(
    search: Search, study: TuneResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    search(1)
    for error in [KeyboardInterrupt] * tuning.ATTEMPTS + [Killed]:
        with monkeypatch.context() as patch:
            on_epoch(patch, die_at(1, error))
            with pytest.raises(error):
                search(2)
    assert configure(_read_toml(tmp_path / "study" / "best.toml")) == BASE
    assert outcome(search(2)) == outcome(study)[:2]


def test_minutes_that_are_no_time_are_refused(search: Search, tmp_path: Path) -> None:
    for minutes in (float("nan"), float("inf"), -1.0, 0.0):
        with pytest.raises(InputError, match=f"minutes must be above 0 and finite, got {minutes}"):
            search(1, minutes=minutes)
    assert not (tmp_path / "study").exists()


def test_one_process_at_a_time_works_on_a_study(search: Search, tmp_path: Path) -> None:
    taken = locked(tmp_path / "study" / "study.lock", "")
    with taken, pytest.raises(RunError, match="another process works on the study"):
        search(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": configure({**SMALL, "max_length": 10})}, "max_length was 20, now 10"),
        ({"specs": {"dropout": "0.1..0.5"}}, "width was '4,8', now 'not searched'"),
        ({"specs": {**SPECS, "dropout": "0..0.5"}}, r"dropout was '0\.1\.\.0\.5', now '0\.0\.\."),
        ({"items": pl.DataFrame({"item_id": ["i01"]})}, "digest of the items was 'none'"),
        ({"events": read_events(simulate(users=20, items=20).events)}, "digest of the events was"),
    ],
    ids=["base", "names", "ranges", "items", "events"],
)
def test_a_study_of_something_else_is_refused(
    change: dict[str, Any], message: str, search: Search, study: TuneResult, tmp_path: Path
) -> None:
    shutil.copytree(study.path, tmp_path / "study")
    with pytest.raises(RunError, match=f"was started with something else .*{message}"):
        search(5, **change)


def test_a_damaged_study_is_named(search: Search, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.db").write_bytes(b"no database" * 1000)
    with pytest.raises(RunError, match=r"study\.db is damaged"):
        search(1)


# Time.


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A clock that is set to a minute, such as the number of an epoch."""
    minutes = [0]
    monkeypatch.setattr(tuning, "time", SimpleNamespace(monotonic=lambda: 60.0 * minutes[0]))
    return lambda minute: minutes.__setitem__(0, minute)


def test_a_trial_stops_when_time_is_over_and_is_run_again_later(
    search: Search,
    study: TuneResult,
    clock: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_epoch(monkeypatch, clock)
    result = search(4, minutes=3)  # two epochs of the base, one of the next
    assert outcome(result) == outcome(study)[:1]
    assert (result.path / "best.toml").exists()
    assert outcome(search(4)) == outcome(study)


def test_no_trial_starts_when_time_is_over_and_a_study_without_one_says_so(
    search: Search, clock: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        on_epoch(patch, clock)
        with pytest.raises(RunError, match="no trial was finished in time"):
            search(4, minutes=1)
    clock(0)
    on_epoch(monkeypatch, clock)
    result = search(4, minutes=2)  # over with the last epoch of the base, which counts
    assert [trial.number for trial in result.trials] == [1]  # 0 was stopped
    assert not (result.path / "trials" / "2").exists()


# Trials that end early.


@pytest.mark.slow
def test_a_trial_behind_the_median_is_pruned(
    search: Search, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tuning, "PRUNING_STARTS", 1)
    monkeypatch.setattr(tuning, "PRUNING_WAITS", 0.0)
    specs = {"learning_rate": "1e-9..1e-2:log", "cooccurrence_start": "true,false"}
    result = search(5, specs=specs)
    pruned = [trial for trial in result.trials if trial.state == "pruned"]
    assert pruned
    assert all(trial.note == "behind the median after 1 epochs" for trial in pruned)
    lines = (result.path / "trials" / str(pruned[0].number) / "metrics.jsonl").read_text()
    assert pruned[0].value == json.loads(lines)["validation_NDCG@10"] < result.best.value
    tuning.plot_study(result)
    whole = search(3, tmp_path / "whole", specs=specs, prune=False)
    assert all(trial.state == "complete" for trial in whole.trials)


def test_refused_combinations_do_not_stop_a_study(
    search: Search, caplog: pytest.LogCaptureFixture
) -> None:
    result = search(6, specs={"heads": "1,3,5", "width": "8,10"}, sampler="random")
    refused = [trial for trial in result.trials if trial.state == "pruned"]
    assert all("width must be divisible by 2 * heads" in trial.note for trial in refused)
    assert f"trial {refused[0].number} is left out: width must be divisible" in caplog.text
    assert len(result.trials) == 6


def test_a_training_that_diverges_stops_a_study_only_if_it_is_the_base(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: list[float | None] = [None, 0.1, None, 0.2]

    def value(_: Any) -> float:
        if (value := values.pop(0)) is None:
            raise RunError("the loss is nan at step 3")
        return value

    replace_training(monkeypatch, value)
    with pytest.raises(RunError, match="the loss is nan at step 3"):
        search(2)
    result = search(3)
    assert [trial.state for trial in result.trials] == ["complete", "pruned", "complete"]
    assert result.trials[1].note == "the loss is nan at step 3"
    assert result.base.settings["width"] == SMALL["width"]


@pytest.fixture
def folds(events: Events) -> dict[str, Any]:
    """Base and splits of a search by three folds."""
    base = configure({**SMALL, "split": "k-fold", "folds": 3, "fold": 1})
    splits = folds_of(events, split_events(events.frame, "k-fold", folds=3, fold=1), base)
    return {"base": base, "splits": splits}


def test_the_value_of_k_fold_is_the_mean_over_folds_that_ask_all_users(
    search: Search, folds: dict[str, Any], events: Events
) -> None:
    result = search(2, **folds)
    for trial in result.trials:
        figures = []
        for fold in range(3):
            folder = result.path / "trials" / str(trial.number) / f"fold-{fold}"
            assert json.loads((folder / "config.json").read_text())["train"]["fold"] == fold
            lines = (folder / "metrics.jsonl").read_text().splitlines()
            figures.append(max(json.loads(line)["validation_NDCG@10"] for line in lines))
        assert trial.value == pytest.approx(sum(figures) / 3, abs=1e-12)
    assert sum(len(split.validation) for split in folds["splits"]) == events.users
    assert result.config.train.fold == 1
    weights = sorted(result.path.rglob("best.safetensors"))
    assert [path.parts[-3] for path in weights] == [str(result.best.number)] * 3


def test_k_fold_prunes_by_the_mean_and_stops_between_folds(
    search: Search,
    folds: dict[str, Any],
    clock: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    figures = [0.3, 0.3, 0.3, 0.4, 0.1, 0.5]

    def value(_: Any) -> float:
        clock(7 - len(figures))
        return figures.pop(0)

    replace_training(monkeypatch, value)
    monkeypatch.setattr(tuning, "PRUNING_STARTS", 1)
    base, second = search(3, minutes=6, **folds).trials
    assert (base.state, base.value) == ("complete", pytest.approx(0.3))
    assert (second.state, second.value) == ("pruned", pytest.approx(0.25))
    assert second.note == "behind the median after 2 folds"
    assert not figures  # the third trial was stopped after its first fold


# What is searched.


@pytest.mark.parametrize(
    ("name", "spec", "expected"),
    [
        ("dropout", "0.1..0.6", FloatDistribution(0.1, 0.6)),
        ("dropout", " 0 .. 0.6 ", FloatDistribution(0.0, 0.6)),
        ("learning_rate", "1e-4..1e-2:log", FloatDistribution(1e-4, 1e-2, log=True)),
        ("blocks", "0..3", IntDistribution(0, 3)),
        ("targets_per_step", "256..4096:log", IntDistribution(256, 4096, log=True)),
        ("width", "64, 128,256", CategoricalDistribution([64, 128, 256])),
        ("heads", "1,3,1", CategoricalDistribution([1, 3])),
        ("windows", "last,all", CategoricalDistribution(["last", "all"])),
        ("cooccurrence_start", "true,false", CategoricalDistribution([True, False])),
        ("features", ",genres", CategoricalDistribution(["", "genres"])),
    ],
)
def test_a_spec_is_read_as_the_type_of_its_setting(name: str, spec: str, expected: object) -> None:
    read = parse_space({name: spec}, BASE)
    assert read == {name: expected}


@given(
    (st.just(0.0) | st.floats(1e-9, 0.98)).flatmap(
        lambda low: st.tuples(st.just(low), st.floats(max(low, 1e-9), 0.99, exclude_min=True))
    ),
    st.booleans(),
)
def test_what_a_study_records_of_a_range_is_read_as_the_range(
    ends: tuple[float, float], log: bool
) -> None:
    distribution = FloatDistribution(*ends, log=log and ends[0] > 0)
    assert parse_space({"dropout": spec_of(distribution)}, BASE) == {"dropout": distribution}


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        ("widht", "4,8", "no setting is called 'widht'"),
        ("width", "8,8", "width=8,8 leaves no choice"),
        ("width", "", "width must be int, got ''"),
        ("width", "8,9", "width must be divisible by 2"),
        ("heads", "0,1", "heads must be at least 1, got 0"),
        ("heads", "1..x", "heads must be int, got 'x'"),
        ("dropout", "0.1..", "dropout must be float, got ''"),
        ("dropout", "0.5..1.5", r"dropout must be in \[0, 1\), got 1.5"),
        ("dropout", "0.5..0.5", r"0\.5 is not below 0\.5"),
        ("dropout", "0..0.5:log", r"a log range starts above 0, got 0\.0"),
        ("dropout", "0.1..0.5:lin", "ends in :log or in nothing, got 'lin'"),
        ("learning_rate", "0..1e-2", r"learning_rate must be above 0.*got 0\.0"),
        ("l2", "0..inf", "l2 must be .*finite"),
        ("windows", "all..last", r"windows has no range, got 'all\.\.last'"),
        ("windows", "all,some", "windows must be one of"),
        ("split", "time,k-fold", "split can't be searched: it decides the held-out cases"),
        ("seed", "0..9", "seed can't be searched: the best seed is luck"),
    ],
)
def test_a_wrong_spec_is_named(name: str, spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_space({name: spec}, BASE)


def test_an_unusable_space_is_refused_before_anything_starts(
    search: Search, world: Simulation, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="nothing is left to search"):
        search(2, specs={})
    for items in (None, world.items):
        with pytest.raises(DataError, match="no feature column 'mood'"):
            search(2, specs={"features": ",mood"}, items=items)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "spec", "expected"),
    [
        ("dropout", "0.3..0.5", 0.3),
        ("dropout", "0.05,0.1", 0.1),
        ("width", "16,32", 16),
        ("targets_per_step", "64..128:log", 128),
        ("width", "4..64", 8),
        ("block", "gated,pre-norm", BASE.model.block),
        ("loss", "gbce,sampled-softmax", "gbce"),
    ],
)
def test_a_base_outside_the_space_moves_to_the_nearest_value(
    name: str, spec: str, expected: Any
) -> None:
    moved = move_inside(parse_space({name: spec}, BASE), BASE)
    assert moved == configure({name: expected}, BASE)


def test_the_first_trial_is_the_moved_base_and_says_so(
    search: Search, caplog: pytest.LogCaptureFixture
) -> None:
    result = search(1, specs={"width": "16,32"})
    assert result.base.settings == {"width": 16}
    assert result.base == result.trials[0]
    assert "the first trial has the nearest searched value: width was 8, now 16" in caplog.text
    assert outcome(search(1, specs={"width": "16,32"})) == outcome(result)  # goes on


@pytest.mark.parametrize("exists", [False, True])
def test_a_refused_base_leaves_nothing(search: Search, tmp_path: Path, exists: bool) -> None:
    if exists:
        (tmp_path / "study").mkdir()
    base = configure({**SMALL, "features": "mood"})
    with pytest.raises(DataError, match="no feature column 'mood'"):
        search(1, base=base)
    assert [path.name for path in tmp_path.rglob("*")] == ["study"] * exists
    search(1)


def test_a_study_that_another_program_locks_is_waited_for(
    search: Search, study: TuneResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search(1)
    other = sqlite3.connect(
        tmp_path / "study" / "study.db", isolation_level=None, check_same_thread=False
    )
    other.execute("BEGIN EXCLUSIVE")
    unlock = threading.Timer(0.5, other.execute, ["ROLLBACK"])
    unlock.start()
    assert outcome(search(2)) == outcome(study)[:2]
    unlock.join()
    monkeypatch.setattr(studies, "LOCKED_SECONDS", 0.1)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(RunError, match=r"study\.db is locked by another program: close it and"):
        search(3)
    other.execute("ROLLBACK")

    def lock(epoch: int) -> None:
        if epoch == 1:
            other.execute("BEGIN EXCLUSIVE")

    with monkeypatch.context() as patch:
        on_epoch(patch, lock)
        with pytest.raises(RunError, match=r"study\.db is locked by another program"):
            search(3)
    other.execute("ROLLBACK")
    other.close()
    assert outcome(search(3)) == outcome(study)[:3]


def test_the_default_space_holds_what_is_recommended_without_what_is_given_or_unused() -> None:
    for mean_length in (8, 60):
        world = simulate(users=40, items=200, mean_length=mean_length)
        settings, _ = recommend(split_events(read_events(world.events).frame))
        base = configure(settings)
        assert move_inside(parse_space(default_space(base), base), base) == base
    assert set(default_space(BASE)) == set(DEFAULT_SPACE)
    assert "dropout" not in default_space(BASE, {"dropout": 0.2})
    assert "temperature" not in default_space(configure({"scoring": "dot"}))
    assert not {"temperature", "blocks"} & set(default_space(configure({"kind": "seed"})))


def test_nothing_but_the_search_loads_optuna() -> None:
    code = (
        "import sys, ranklet_cli.group, ranklet_training.runs.train\n"
        "assert not {'optuna', 'sqlalchemy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
