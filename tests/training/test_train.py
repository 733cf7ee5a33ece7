"""A training resumes bit by bit wherever it was killed, and refuses what it can't do."""

import errno
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from ranklet.errors import DataError, InputError, RunError
from ranklet.files.atomic import sha256
from ranklet_training.data.events import Events, read_events
from ranklet_training.data.simulator import Simulation
from ranklet_training.data.split import Split, split_events
from ranklet_training.judge.evaluate import rank_targets
from ranklet_training.judge.metrics import all_metrics
from ranklet_training.judge.subjects import model_scorer
from ranklet_training.runs import report
from ranklet_training.runs import start as starting
from ranklet_training.runs import train as training
from ranklet_training.runs.checkpoint import Run, read_run, read_tensors, save_checkpoint
from ranklet_training.runs.presets import PRESETS, configure
from ranklet_training.runs.start import reopen_run, start_run
from ranklet_training.runs.train import train

# Some twenty steps of a few milliseconds in three epochs.
SMALL: dict[str, Any] = {
    "width": 8,
    "blocks": 1,
    "max_length": 20,
    "dropout": 0.2,
    "epochs": 3,
    "targets_per_step": 256,
    "checkpoint_steps": 3,
    "warmup_steps": 4,
}
Start = Callable[..., Run]


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the package catches it."""


@pytest.fixture
def start(tmp_path: Path, events: Events, split: Split, world: Simulation) -> Start:
    """Start a run under ``tmp_path``; keyword arguments are settings."""

    def start(name: str = "run", **settings: Any) -> Run:
        config = configure({**SMALL, **settings})
        return start_run(tmp_path / name, config, events, split, world.items)

    return start


def lines_of(run: Run) -> list[dict[str, Any]]:
    """Return the metric lines, without the time they took."""
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    timings = ("seconds", "targets_per_second")
    return [{k: v for k, v in line.items() if k not in timings} for line in lines]


def outcome(run: Run) -> tuple[str, str, list[dict[str, Any]]]:
    """Return all that a finished training left: two files of weights, and the metric lines."""
    names = ("best.safetensors", "last.safetensors")
    best, last = (sha256(run.path / name) for name in names)
    return best, last, lines_of(run)


def finish(run: Run, split: Split) -> tuple[str, str, list[dict[str, Any]]]:
    train(run, split, show_progress=False)
    return outcome(run)


@pytest.fixture(scope="module")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory, events: Events, split: Split, world: Simulation
) -> tuple[str, str, list[dict[str, Any]]]:
    path = tmp_path_factory.mktemp("runs") / "uninterrupted"
    return finish(start_run(path, configure(SMALL), events, split, world.items), split)


def kill_at(
    patch: pytest.MonkeyPatch, name: str, call: int, *, after: bool = False, module: Any = training
) -> None:
    """Make the n-th call of a function die, before or after its work."""
    original, calls = getattr(module, name), [0]

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call and not after:
            raise Killed
        result = original(*args, **kwargs)
        if calls[0] == call:
            raise Killed
        return result

    patch.setattr(module, name, dying)


def killed_and_resumed(
    run: Run, split: Split, name: str, call: int, *, after: bool = False
) -> tuple[str, str, list[dict[str, Any]]]:
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, name, call, after=after)
        with pytest.raises(Killed):
            train(run, split, show_progress=False)
    return finish(run, split)


# Resuming.


@pytest.mark.parametrize(
    "step", [1, 4, 8, *(pytest.param(step, marks=pytest.mark.slow) for step in (2, 3, 7, 12, 17))]
)
def test_a_training_killed_in_a_step_resumes_to_the_same_bits(
    step: int, start: Start, split: Split, uninterrupted: object
) -> None:
    assert killed_and_resumed(start(), split, "_step", step, after=True) == uninterrupted


END_OF_EPOCH = ["_validate", "write_tensors", "_end_epoch", "append", "save_checkpoint"]
KILLS = [(1, True, "append"), (3, False, "save_checkpoint")]  # the others are slow
EVERY_KILL = product([1, 3], [False, True], END_OF_EPOCH)


@pytest.mark.parametrize(
    ("checkpoint_steps", "after", "name"),
    [*KILLS, *(pytest.param(*k, marks=pytest.mark.slow) for k in EVERY_KILL if k not in KILLS)],
)
def test_a_training_killed_at_the_end_of_an_epoch_resumes_to_the_same_bits(
    checkpoint_steps: int, after: bool, name: str, start: Start, split: Split, uninterrupted: object
) -> None:
    # With a checkpoint after every step, one stands between the last step and the metric line.
    call = checkpoint_steps if name == "save_checkpoint" else 2
    run = start(checkpoint_steps=checkpoint_steps)
    assert killed_and_resumed(run, split, name, call, after=after) == uninterrupted


def test_a_torn_metric_line_is_written_anew(
    start: Start, split: Split, uninterrupted: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(path: Path, line: bytes) -> None:
        with path.open("ab") as file:
            file.write(line[:40])
        raise Killed

    run = start()
    with monkeypatch.context() as patch:
        patch.setattr(training, "append", torn)
        with pytest.raises(Killed):
            train(run, split, show_progress=False)
    assert finish(run, split) == uninterrupted


def test_a_training_on_all_events_stops_where_told_and_resumes_to_the_same_bits(
    events: Events, world: Simulation, tmp_path: Path
) -> None:
    everything = split_events(events.frame, "none")
    assert len(everything.training.items) == len(events.frame)

    def start(name: str, **settings: Any) -> Run:
        config = configure({**SMALL, "split": "none", **settings})
        return start_run(tmp_path / name, config, events, everything, world.items)

    best, last, lines = finish(start("whole", epochs=4, stop_after=2), everything)
    assert [line["epoch"] for line in lines] == [0, 1]
    assert not [name for name in lines[0] if name.startswith("validation")]
    cut = start("cut", epochs=4, stop_after=2)
    assert killed_and_resumed(cut, everything, "_step", 7) == (best, last, lines)
    assert read_tensors(cut.path / "best.safetensors")[1] == {"epoch": 1}
    # The rate falls over all epochs, so that these are not the weights of a training of two.
    assert finish(start("short", epochs=2), everything)[0] != best


def test_a_training_killed_before_it_chose_the_default_chooses_it_when_resumed(
    start: Start, split: Split
) -> None:
    run = start()
    killed_and_resumed(run, split, "_measure_seen", 1)
    seen = read_run(run.path).data["seen"]
    assert seen["answers"] == len(split.validation)
    assert seen["repeats"] == split.validation.repeats
    assert seen["exclude_seen"] is (seen["masked_NDCG@10"] >= seen["unmasked_NDCG@10"])


@pytest.mark.parametrize(("repeats", "is_masked"), [(0.05, True), (0.15, False)])
def test_validation_masks_seen_items_unless_many_answers_are_repeats(
    repeats: float, is_masked: bool, start: Start, split: Split
) -> None:
    cases = split.validation
    targets = cases.targets.copy()
    first = np.array([history[0] for history in cases.histories])
    is_first = np.arange(len(cases)) < repeats * len(cases)
    assert not cases.is_repeat.any()
    targets[is_first] = first[is_first]
    changed = replace(split, validation=replace(cases, targets=targets))
    assert changed.validation.repeats == pytest.approx(repeats, abs=0.01)
    result = train(start(epochs=1), changed, show_progress=False)
    ranks = rank_targets(
        model_scorer(result.model, split.training.counts(60)),
        changed.validation,
        mask_seen=is_masked,
    ).ranks
    assert result.validation == all_metrics(ranks)


def test_questions_of_new_items_are_not_kept(
    events: Events, world: Simulation, tmp_path: Path
) -> None:
    late = pl.col("timestamp") > world.events["timestamp"].quantile(0.85)
    item = pl.when(late).then("new-" + pl.col("item_id")).otherwise("item_id")
    changed = read_events(world.events.with_columns(item_id=item))
    split = split_events(changed.frame, "time")
    assert 0 < (split.validation.targets == 0).sum() < len(split.validation)
    questions = start_run(tmp_path / "run", configure(SMALL), changed, split).read_questions()
    assert questions is not None
    assert questions.targets is not None
    assert sorted(questions.targets) == sorted(t for t in split.validation.targets if t)


# Refusals.


def test_a_run_is_started_anew_only_if_it_took_no_step(
    start: Start, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        kill_at(patch, "_step", 1)
        with pytest.raises(Killed):
            train(start(), split, show_progress=False)
    run = start(width=16, epochs=1)
    assert run.config.model.width == 16
    train(run, split, show_progress=False)
    with pytest.raises(RunError, match=r"already holds a run: resume it \(--resume\)"):
        start()


def test_a_folder_of_other_files_is_refused(start: Start, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").touch()
    with pytest.raises(RunError, match=r"is not empty and holds no run .* but 'thesis\.tex'"):
        start()
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_only_half_written_files_of_a_run_are_removed(start: Start, split: Split) -> None:
    run = start(epochs=1)
    (run.path / ".last.safetensors.0123abcd.tmp").touch()
    others = [run.path / ".notes.0123abcd.tmp", run.path / ".last.safetensors.tmp"]
    for other in others:
        other.touch()
    (run.path / ".best.safetensors.0123abcd.tmp").mkdir()
    train(run, split, show_progress=False)
    assert sorted(run.path.glob(".*")) == sorted(
        [*others, run.path / ".best.safetensors.0123abcd.tmp"]
    )


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({"item_id": ["i01"], "title": [1984]}, "title is Int64 in the items, and must be text"),
        ({"item_id": [1, 2]}, "item_id is String in the events and Int64 in the items"),
    ],
)
def test_items_of_a_wrong_type_are_refused(
    items: dict[str, Any], message: str, tmp_path: Path, events: Events, split: Split
) -> None:
    with pytest.raises(RunError, match=message):
        start_run(tmp_path / "run", configure(SMALL), events, split, pl.DataFrame(items))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("seed", 2**63, "seed must be at most 9,223,372,036,854,775,807, got 9223372036854775808"),
        ("width", 2**31, "width must be at most 2,147,483,647, got 2147483648"),
        ("width", "9" * 5000, r"width must be int, got '9+\.\.\."),
        ("dropout", 2**3000, "dropout must be finite, got "),
    ],
)
def test_settings_that_are_too_large_are_named(name: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        configure({name: value})


def test_other_events_and_settings_are_refused_by_digest_and_name(
    start: Start, events: Events, world: Simulation
) -> None:
    run = start()
    again = reopen_run(run.path, events, configure(SMALL))
    assert (again.config, again.data) == (run.config, run.data)
    assert again.catalogue.equals(run.catalogue)
    others = read_events(world.events.head(500))
    message = f"other events .digest {run.data['digest'][:12]}, these have {others.digest[:12]}"
    with pytest.raises(RunError, match=message):
        reopen_run(run.path, others)
    other = configure({**SMALL, "dropout": 0.5, "seed": 7})
    with pytest.raises(RunError, match=r"dropout was 0.2, now 0.5; seed was 0, now 7"):
        reopen_run(run.path, events, other)


def test_what_was_killed_while_it_was_made_is_no_run(
    start: Start, tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    for after in (False, True):
        with monkeypatch.context() as patch:
            kill_at(patch, "write_run", 1, after=after, module=starting)
            with pytest.raises(Killed):
                start()
        if not after:
            with pytest.raises(RunError, match=r"is not a run: it has no config\.json"):
                reopen_run(tmp_path / "run", events)
    run = reopen_run(tmp_path / "run", events)
    assert run.read_questions() is not None  # what export asks before it accepts codes


def test_batches_are_made_one_at_a_time(
    start: Start, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, step, made, steps = training.epoch_batches, training._step, [0], [0]

    def counted(*args: Any, **kwargs: Any) -> Any:
        for batch in make(*args, **kwargs):
            made[0] += 1
            yield batch

    def watched(*args: Any) -> Any:
        steps[0] += 1
        assert made == steps
        return step(*args)

    monkeypatch.setattr(training, "epoch_batches", counted)
    monkeypatch.setattr(training, "_step", watched)
    train(start(epochs=1), split, show_progress=False)
    assert steps[0] > 1


def test_a_damaged_config_is_refused(start: Start) -> None:
    run = start()
    document = json.loads((run.path / "config.json").read_text())
    texts = ["", "[]", "{}", '{"format": 3}', "\ufffe"]
    for data in ({}, [], {"digest": ""}, {**document["data"], "reading": 1}):
        texts.append(json.dumps({**document, "data": data}))
    for text in texts:
        (run.path / "config.json").write_text(text)
        with pytest.raises(RunError, match="is damaged"):
            read_run(run.path)
    (run.path / "config.json").write_text(json.dumps({**document, "format": 1}))
    with pytest.raises(RunError, match="has run format 1, not 3"):
        read_run(run.path)


def test_a_catalogue_without_training_events_is_refused(start: Start) -> None:
    run = start()
    run.catalogue.drop("training_events").write_parquet(run.path / "catalogue.parquet")
    with pytest.raises(RunError, match=r"is damaged: .*training_events"):
        read_run(run.path)


def test_damaged_questions_are_refused(start: Start) -> None:
    run = start()
    path = run.path / "questions.safetensors"
    tensors, _ = read_tensors(path)
    unknown = {"items": torch.full_like(tensors["items"], 99)}
    for change in ({"targets": torch.tensor([1])}, {"ends": torch.tensor([0.5])}, unknown):
        training.write_tensors(path, {**tensors, **change}, {})
        with pytest.raises(RunError, match=r"questions\.safetensors is damaged"):
            run.read_questions()
    training.write_tensors(path, {"items": tensors["items"]}, {})
    with pytest.raises(RunError, match=r"questions\.safetensors is damaged"):
        run.read_questions()


def test_a_damaged_metric_line_is_refused(
    start: Start, split: Split, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start(epochs=1)
    train(run, split, show_progress=False)
    assert capsys.readouterr().err == ""
    for line in ("{", "[1]", "{}", "\0"):
        (run.path / "metrics.jsonl").write_text(line + "\n")
        with pytest.raises(RunError, match=r"metrics\.jsonl is damaged"):
            train(run, split, show_progress=False)


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def trained(start: Start, split: Split) -> Run:
    run = start(epochs=1)
    train(run, split, show_progress=False)
    return run


@pytest.mark.parametrize("name", ["last.safetensors", "best.safetensors"])
def test_a_pickle_in_the_place_of_weights_is_refused_and_not_run(
    name: str, trained: Run, split: Split, tmp_path: Path
) -> None:
    (trained.path / name).write_bytes(pickle.dumps(Hostile(tmp_path / "owned")))
    with pytest.raises(RunError, match=rf"{name} is damaged"):
        train(trained, split, show_progress=False)
    torch.save({"weights": Hostile(tmp_path / "owned")}, trained.path / name)
    with pytest.raises(RunError, match=rf"{name} is damaged"):
        train(trained, split, show_progress=False)
    assert not (tmp_path / "owned").exists()


def test_a_checkpoint_that_is_none_is_refused(trained: Run, start: Start, split: Split) -> None:
    last, best = (trained.path / name for name in ("last.safetensors", "best.safetensors"))
    whole = last.read_bytes()
    last.write_bytes(whole[:-100])
    with pytest.raises(RunError, match=r"last\.safetensors is damaged"):
        train(trained, split, show_progress=False)
    last.write_bytes(whole)
    tensors, metadata = read_tensors(last)
    training.write_tensors(last, tensors, {**metadata, "mood": 1})
    with pytest.raises(RunError, match=r"last\.safetensors is damaged"):
        train(trained, split, show_progress=False)
    shutil.copy(best, last)
    with pytest.raises(RunError, match=r"last\.safetensors do not fit this model"):
        train(trained, split, show_progress=False)
    other = start("other", epochs=1, width=16)
    shutil.copytree(trained.path, other.path, dirs_exist_ok=True)
    (other.path / "last.safetensors").write_bytes(whole)
    with pytest.raises(RunError, match="do not fit this model"):
        train(other, split, show_progress=False)


# Losses and gradients that are not finite.


def break_loss(patch: pytest.MonkeyPatch, step: int, change: Callable[[Any], Any]) -> None:
    original, calls = training.batch_loss, [0]

    def broken(*args: Any) -> Any:
        calls[0] += 1
        loss, count = original(*args)
        return (change(loss) if calls[0] == step else loss), count

    patch.setattr(training, "batch_loss", broken)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_best_weights(
    value: float, start: Start, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start()
    break_loss(monkeypatch, 15, lambda loss: loss * value)
    with pytest.raises(RunError, match=rf"the loss is {value} at step 14 .*users \["):
        train(run, split, show_progress=False)
    best, metadata = read_tensors(run.path / "best.safetensors")
    assert metadata["epoch"] == len(lines_of(run)) - 1 == 1
    assert all(tensor.isfinite().all() for tensor in best.values())


def test_a_gradient_that_is_not_finite_stops_before_it_reaches_a_checkpoint(
    start: Start, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poison(loss: torch.Tensor) -> torch.Tensor:
        loss.register_hook(lambda gradient: gradient * float("nan"))
        return loss

    run = start()
    break_loss(monkeypatch, 6, poison)
    with pytest.raises(RunError, match="the gradient is nan at step 5"):
        train(run, split, show_progress=False)
    last, _ = read_tensors(run.path / "last.safetensors")
    assert all(tensor.isfinite().all() for tensor in last.values())


def test_scores_that_are_not_finite_stop_with_a_named_error(
    start: Start, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poison(model: nn.Module, *_: object) -> Any:
        with torch.no_grad():
            next(iter(model.parameters())).fill_(float("nan"))
        return original(model, split)  # type: ignore[arg-type]

    run, original = start(), training._validate
    monkeypatch.setattr(training, "_validate", poison)
    with pytest.raises(RunError, match=r"score .* is NaN"):
        train(run, split, show_progress=False)
    assert not (run.path / "best.safetensors").exists()


# What an epoch leaves.


def test_training_stops_when_patience_is_over(
    start: Start, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([0.1, 0.3, 0.2, 0.3, 0.29, 0.9, 0.9])
    real = training._validate

    def scripted(*args: Any) -> dict[str, float]:
        return {**real(*args), "NDCG@10": next(figures)}

    monkeypatch.setattr(training, "_validate", scripted)
    result = train(start(epochs=9, patience=3), split, show_progress=False)
    # The best is epoch 1; three epochs without a better one (equal is not better) follow.
    assert (result.best_epoch, result.epochs) == (1, 5)


def test_the_result_has_the_weights_and_metrics_of_the_best_epoch(
    start: Start, split: Split
) -> None:
    run, lines = start(), list[dict[str, Any]]()
    result = train(run, split, log=lines.append, show_progress=False)
    written = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == lines
    best, metadata = read_tensors(run.path / "best.safetensors")
    assert all(torch.equal(result.model.state_dict()[name], best[name]) for name in best)
    assert metadata == {"epoch": result.best_epoch, **result.validation}
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert lines[-1]["loss"] < lines[0]["loss"]
    best_value = max(line["validation_NDCG@10"] for line in lines)
    assert 0 < lines[result.best_epoch]["validation_NDCG@10"] == best_value < 1


def test_the_same_settings_give_the_same_weights_and_another_seed_others(
    start: Start, split: Split
) -> None:
    first, second, other = (
        finish(start(name, epochs=1, seed=seed), split)[0]
        for name, seed in (("a", 0), ("b", 0), ("c", 2**63 - 1))  # the largest
    )
    assert first == second
    assert first != other


def test_training_beats_chance(tiny_run: Run, split: Split) -> None:
    # 60 items, the seen ones masked: a random order finds the answer at 10 in a quarter of cases.
    assert max(line["validation_HR@10"] for line in lines_of(tiny_run)) > 0.4


# Regularisation and optimiser.


def weights_of(run: Run, split: Split) -> dict[str, torch.Tensor]:
    train(run, split, show_progress=False)
    return dict(read_tensors(run.path / "best.safetensors")[0])


@pytest.mark.parametrize("kind", ["sequence", "seed"])
def test_strong_l1_makes_weights_exactly_zero(kind: str, start: Start, split: Split) -> None:
    settings: dict[str, Any] = {"epochs": 1, "learning_rate": 0.01, "kind": kind}
    if kind == "seed":
        settings = {**PRESETS["seed"], "epochs": 1}
    plain = weights_of(start("plain", **settings), split)
    sparse = weights_of(start("sparse", **settings, l1=1.0), split)
    shares = [float((w["items.item"][1:] == 0).float().mean()) for w in (plain, sparse)]
    assert shares[0] < 0.01
    assert shares[1] > 0.2


def test_one_step_of_l2_shrinks_matrices_by_rate_times_decay(start: Start, split: Split) -> None:
    # One step of an epoch, without warm-up: the rate is the learning rate itself.
    settings: dict[str, Any] = {"epochs": 1, "targets_per_step": 10**6, "warmup_steps": 0}
    settings = {**settings, "learning_rate": 0.01, "cooccurrence_start": False}
    plain = weights_of(start("plain", **settings), split)
    decayed = weights_of(start("decayed", **settings, l2=0.5), split)
    assert not decayed["items.item"][0].any()  # padding
    torch.manual_seed(0)
    initial = read_run(start("initial", **settings).path).build_model()
    initial.init_weights()
    for name, before in initial.named_parameters():
        decay = 0.01 * 0.5 if before.ndim > 1 else 0.0
        difference = decayed[name] - (plain[name] - decay * before.detach())
        assert float(difference.abs().max()) < 1e-7, name


def test_the_rate_warms_up_and_falls_to_zero(
    start: Start, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = []
    original = training._step

    def recording(*args: Any) -> Any:
        rates.append(args[4])
        return original(*args)

    monkeypatch.setattr(training, "_step", recording)
    train(start(learning_rate=1.0, warmup_steps=4), split, show_progress=False)
    assert rates[:3] == [0.25, 0.5, 0.75]
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 1.5 / len(rates)


def test_the_seed_model_learns_from_ratings_and_resumes_to_the_same_bits(
    start: Start, split: Split
) -> None:
    settings = {**PRESETS["seed"], "epochs": 2}
    expected = finish(start("whole", **settings), split)
    losses = [line["loss"] for line in expected[2]]
    assert losses == sorted(losses, reverse=True)
    assert killed_and_resumed(start("cut", **settings), split, "_step", 5) == expected


def test_missing_ratings_and_features_are_refused_before_anything_is_written(
    start: Start, tmp_path: Path, world: Simulation
) -> None:
    events = read_events(world.events.drop("rating"))
    with pytest.raises(RunError, match="learns from ratings, and the events have no rating column"):
        start_run(tmp_path / "run", configure(PRESETS["seed"]), events, split_events(events.frame))
    with pytest.raises(DataError, match="no feature column 'colour'"):
        start(features="genres,colour")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("nth", "place", "error"),
    [
        (1, "os.fsync", errno.EIO),
        (3, "pathlib.Path.replace", errno.EACCES),
        (2, "pathlib.Path.open", errno.ENOSPC),
    ],
    ids=["fsync", "rename", "open"],
)
def test_a_checkpoint_that_can_not_be_written_leaves_the_old_one(
    nth: int, place: str, error: int, trained: Run, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = trained.path / "last.safetensors"
    model, optimizer, progress = training._prepare(trained, split)
    for _ in range(nth - 1):  # writes that succeed, each of another content
        progress.step += 1
        save_checkpoint(last, model, optimizer, progress)
    names, digest = sorted(trained.path.iterdir()), sha256(last)
    with monkeypatch.context() as patch:
        patch.setattr(place, Mock(side_effect=OSError(error, os.strerror(error))))
        with pytest.raises(OSError, match=os.strerror(error)):
            save_checkpoint(last, model, optimizer, replace(progress, step=progress.step + 1))
    assert sorted(trained.path.iterdir()) == names
    assert sha256(last) == digest


def test_a_checkpoint_holds_model_optimizer_and_progress(trained: Run, split: Split) -> None:
    tensors, metadata = read_tensors(trained.path / "last.safetensors")
    first = outcome(trained)
    assert finish(trained, split) == first  # a finished training resumes to itself
    for name, parameter in trained.build_model().named_parameters():
        assert tensors[f"model.{name}"].shape == parameter.shape
        assert tensors[f"optimizer.exp_avg.{name}"].shape == parameter.shape
        assert tensors[f"optimizer.exp_avg_sq.{name}"].shape == parameter.shape
    assert metadata["done"] is True
    assert metadata["step"] == lines_of(trained)[-1]["step"]


def test_a_column_with_the_name_of_a_count_is_no_feature_and_changes_none(
    tmp_path: Path, events: Events, split: Split, world: Simulation
) -> None:
    items = world.items.with_columns(training_events=pl.lit(7), index=1, row=2)
    run = start_run(tmp_path / "run", configure(SMALL), events, split, items)
    counts = split.training.counts(len(split.vocabulary))[1:]
    assert run.catalogue["training_events"].to_list() == counts.tolist()
    assert "training_events_right" not in run.catalogue
    with pytest.raises(RunError, match="no feature can be called 'training_events'"):
        start_run(
            tmp_path / "b",
            configure({**SMALL, "features": "training_events"}),
            events,
            split,
            items,
        )
    assert not (tmp_path / "b").exists()


def test_a_line_an_epoch_goes_to_stderr_where_that_is_no_terminal(
    start: Start, split: Split, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start(epochs=3, patience=3)
    train(run, split)
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    for number, (line, metrics) in enumerate(zip(lines, lines_of(run), strict=True), 1):
        loss, ndcg = metrics["loss"], metrics["validation_NDCG@10"]
        start_of_line = f"epoch {number} of 3: loss {loss:.3f}, validation NDCG@10 {ndcg:.4f}, "
        assert line.startswith(start_of_line)
        assert re.fullmatch(r"[0-9,]+ targets/s, [0-9]+ s", line.removeprefix(start_of_line))


def test_a_long_epoch_says_how_far_it_is(
    start: Start,
    split: Split,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(report, "LINE_SECONDS", -1.0)
    train(start(epochs=1), split)
    *within, last = capsys.readouterr().err.splitlines()
    assert last.startswith("epoch 1 of 1: loss ")
    found = [re.fullmatch(r"epoch 1 of 1: ([0-9]+)%, loss [0-9.]+$", line) for line in within]
    shares = [int(match[1]) for match in found if match]
    assert len(shares) == len(within)
    assert shares == sorted(shares)
    assert shares[-1] == 100


def test_a_training_without_stderr_says_nothing(
    start: Start, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", None)
    assert train(start(epochs=1), split).epochs == 1


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_json_that_is_nested_too_deeply_is_damaged(
    name: str, start: Start, split: Split, events: Events
) -> None:
    run = start(epochs=1)
    train(run, split, show_progress=False)
    (run.path / name).write_text("[" * 99_999 + "\n")
    with pytest.raises(RunError, match=r"is damaged: RecursionError: "):
        train(reopen_run(run.path, events), split)


ODD_FACTS: dict[str, Any] = {
    "digest": 1.5,
    "events": "9",
    "training_users": -(2**70),
    "split": None,
    "kinds": {"counts": [], "used": 1},
    "reading": {"user_column": 5},
    "attributes": ["brand"],
    "seen": {"exclude_seen": "no"},
    "new_items": {"bias": 1},
    "instants": [None],
    "earlier": {},
}


@pytest.mark.parametrize("name", ODD_FACTS)
def test_a_fact_of_another_type_is_damaged(start: Start, name: str) -> None:
    path = start(epochs=1).path / "config.json"
    document = json.loads(path.read_bytes())
    document["data"][name] = ODD_FACTS[name]
    path.write_text(json.dumps(document))
    with pytest.raises(RunError, match=f"is damaged: TypeError: {name} of data is not what"):
        read_run(path.parent)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
@pytest.mark.parametrize(
    "name",
    ["config.json", "catalogue.parquet", "evaluation.json", "metrics.jsonl", "last.safetensors"],
)
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(
    start: Start, split: Split, events: Events, name: str
) -> None:
    run = start(epochs=1)
    train(run, split, show_progress=False)
    (run.path / name).unlink(missing_ok=True)
    os.mkfifo(run.path / name)
    with pytest.raises(RunError, match=f"{re.escape(name)} is no file: remove it"):
        train(reopen_run(run.path, events), split)


def test_a_catalogue_that_is_not_sorted_is_damaged(start: Start) -> None:
    path = start(epochs=1).path / "catalogue.parquet"
    pl.read_parquet(path).reverse().write_parquet(path)
    with pytest.raises(RunError, match="is damaged: TypeError: the catalogue has no sorted ids"):
        read_run(path.parent)
