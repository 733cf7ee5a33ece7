"""Train a model on a split, so that a killed training resumes to the same weights, bit by bit.

The order of the data comes from (seed, epoch), dropout from (seed, step), the learning rate from
how much of the data is done. The state between two steps is then the weights, the optimizer and
a few numbers, and one atomic file holds them. (On CPU, with the same number of threads.)
"""

import json
import math
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor
from tqdm import tqdm

from ranklet.errors import RunError
from ranklet.files.atomic import atomic_write
from ranklet.time_gaps import UNKNOWN
from ranklet.values import show
from ranklet_training.data.events import Events
from ranklet_training.data.features import build_feature
from ranklet_training.data.sequences import Batch, epoch_batches, targets_per_epoch
from ranklet_training.data.split import Split
from ranklet_training.judge.evaluate import answer_of
from ranklet_training.judge.metrics import all_metrics
from ranklet_training.model.cooccurrence import cooccurrence_table
from ranklet_training.model.losses import gbce_loss, rating_loss, sampled_softmax_loss, softmax_loss
from ranklet_training.model.model import Gaps, reset_dropout
from ranklet_training.model.optimizer import Optimizer, clip_gradients, make_optimizer, shrink_l1
from ranklet_training.model.seed import SeedModel
from ranklet_training.runs.checkpoint import (
    Model,
    Progress,
    Questions,
    Run,
    load_checkpoint,
    read_run,
    save_checkpoint,
    write_run,
    write_tensors,
)
from ranklet_training.runs.presets import RunConfig

# Share of the rows that train without their gaps, so that a bundle also ranks without times.
UNTOLD = 0.1
HELD_OUT = 10_000  # validation questions that a run keeps

MADE = ("config.json", "catalogue.parquet", "questions.safetensors")  # before the first step
TRAINED = ("metrics.jsonl", "last.safetensors", "best.safetensors")  # after it
BESIDE = ("run.lock", "tensorboard")
TORN = re.compile(rf"\.({'|'.join(map(re.escape, (*MADE, *TRAINED)))})\.[0-9a-f]{{8}}\.tmp")

Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TrainResult:
    """What a training came to."""

    run: Run
    model: Model  # with the best weights
    validation: dict[str, float]  # metrics of the best epoch
    best_epoch: int
    epochs: int
    seconds: float  # of this process, evaluation included


def start_run(
    path: Path,
    config: RunConfig,
    events: Events,
    split: Split,
    items: pl.DataFrame | None = None,
    *,
    reading: dict[str, str] | None = None,
    source: str = "",
) -> Run:
    """Make a new run folder.

    Args:
        path: Where; a run that took no step is started anew, and any other folder with files in
            it refused.
        config: All settings.
        events: The log, for its digest.
        split: Of these events, by the settings.
        items: Titles and features by ``item_id``; items without a row get nulls.
        reading: How the log was read, so that an evaluation reads it alike.
        source: Origin and terms of the data, for the model card.

    Raises:
        RunError: There is something already, the seed model misses its ratings, ``time_gaps`` whole
            timestamps, or titles are no text.
    """
    check_new(path)
    ratings = split.training.ratings
    if config.model.kind == "seed" and ratings is None:
        raise RunError("the seed model learns from ratings, and the events have no rating column")
    if config.model.time_gaps and events.frame["timestamp"].dtype != pl.Int64:
        raise RunError("time_gaps needs whole timestamps, and these have fractions: round them")
    catalogue = pl.DataFrame({"item_id": split.vocabulary.all_ids}).with_columns(
        pl.Series("training_events", split.training.counts(len(split.vocabulary))[1:])
    )
    if items is not None:
        if items["item_id"].dtype != catalogue["item_id"].dtype:
            raise RunError(
                f"item_id is {catalogue['item_id'].dtype} in the events and "
                f"{items['item_id'].dtype} in the items; read both with the same --id-type"
            )
        if "title" in items and items["title"].dtype != pl.String:
            raise RunError(f"title is {items['title'].dtype} in the items, and must be text")
        catalogue = catalogue.join(items, on="item_id", how="left", maintain_order="left")
    for name in config.train.feature_names:
        build_feature(catalogue, name)  # named errors come before anything is written
    data = {
        "digest": events.digest,
        "users": events.users,
        "items": events.items,
        "events": events.frame.height,
        "training_users": len(split.training),
        "rating_mean": None if ratings is None else float(ratings.mean()),
        "split": split.notes,
        "reading": reading or {},
        "source": source,
    }
    versions = {name: version(name) for name in ("ranklet", "torch", "numpy", "polars")}
    path.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "questions.safetensors"):  # of a run that took no step
        (path / name).unlink(missing_ok=True)
    run = Run(path, config, data, {**versions, "python": platform.python_version()}, catalogue)
    if questions := _held_out(split, config.model.max_length):
        run.write_questions(questions)
    write_run(run)  # last: a folder with config.json is a run, and has all that export asks of it
    return run


def check_new(path: Path) -> None:
    """Refuse a folder in which no run can start.

    Raises:
        RunError: It holds a run that took a step, or files that are not a run's.
    """
    names = {file.name for file in path.iterdir()} if path.exists() else set()
    if "config.json" in names and not names.isdisjoint(TRAINED):
        raise RunError(f"{path} already holds a run: resume it (--resume) or choose another folder")
    # A run may have been killed while it was made.
    others = [n for n in names if n not in (*MADE, *BESIDE) and not TORN.fullmatch(n)]
    if others:
        raise RunError(
            f"{path} is not empty and holds no run that could be started anew, but "
            f"{show(min(others))}: choose another folder"
        )


def _held_out(split: Split, length: int) -> Questions | None:
    """Return some validation questions, the latest ``length`` known events of each."""
    cases = split.validation
    rows = np.random.default_rng(0).permutation(len(cases))[:HELD_OUT]
    histories = [cases.histories[row] for row in rows]
    histories = [history[history > 0][-length:] for history in histories]
    known = [place for place, history in enumerate(histories) if len(history)]
    if not known:
        return None
    return Questions([histories[place] for place in known], cases.targets[rows[known]])


def reopen_run(path: Path, events: Events, config: RunConfig | None = None) -> Run:
    """Open a run to go on with it.

    Raises:
        RunError: The events or a setting differ from those that the run was started with.
    """
    run = read_run(path)
    if run.data["digest"] != events.digest:
        raise RunError(
            f"{path} was started on other events (digest {run.data['digest'][:12]}, these have "
            f"{events.digest[:12]}): resume with the same file, or start a new run"
        )
    if config is not None and config != run.config:
        old, new = run.config.to_dict(), config.to_dict()
        differences = [
            f"{name} was {old[part][name]!r}, now {new[part][name]!r}"
            for part in old
            for name in old[part]
            if old[part][name] != new[part][name]
        ]
        raise RunError(
            f"{path} was started with other settings ({'; '.join(differences)}): resume without "
            "settings, or start a new run"
        )
    return run


def train(
    run: Run, split: Split, *, log: Log | None = None, show_progress: bool = True
) -> TrainResult:
    """Train from the run's last checkpoint, or from the start, to the end.

    Args:
        run: From ``start_run`` or ``reopen_run``.
        split: Of the run's events, by its settings.
        log: Gets every line that goes to ``metrics.jsonl``.
        show_progress: Draw a bar with loss, events/s and time left on stderr, if it is a terminal.

    Raises:
        RunError: The loss is not finite; the last checkpoint and the best weights stay.
    """
    begin = time.perf_counter()
    config = run.config.train
    model, optimizer, progress = _prepare(run, split)
    total = targets_per_epoch(split.training, config.windows, run.config.model.max_length)
    bar = tqdm(
        total=total * config.epochs,
        initial=progress.epoch * total + progress.targets_seen,
        unit=" events",
        unit_scale=True,
        disable=None if show_progress else True,  # None: where stderr is no terminal
    )
    with bar:
        while not progress.done:
            speed = _train_epoch(run, split, model, optimizer, progress, bar, total)
            metrics = _validate(model, split)
            _end_epoch(run, model, progress, metrics)
            line = _log_line(progress, metrics, speed, time.perf_counter() - begin)
            _append_line(run.path / "metrics.jsonl", line)
            save_checkpoint(run.path / "last.safetensors", model, optimizer, progress)
            if log is not None:
                log(line)
            bar.set_postfix(loss=f"{line['loss']:.3f}", ndcg=f"{metrics['NDCG@10']:.4f}")
    best = run.load_model()
    return TrainResult(
        run,
        best,
        _validate(best, split),
        progress.best_epoch,
        progress.epoch,
        time.perf_counter() - begin,
    )


def _prepare(run: Run, split: Split) -> tuple[Model, Optimizer, Progress]:
    config = run.config.train
    torch.manual_seed(config.seed)
    model = run.build_model()
    model.init_weights()
    optimizer = make_optimizer(model, config)
    for torn in run.path.glob(".*.tmp"):  # what a killed training was about to write
        if TORN.fullmatch(torn.name) and torn.is_file():
            torn.unlink()
    last = run.path / "last.safetensors"
    if last.exists():
        progress = load_checkpoint(last, model, optimizer)
        _keep_lines(run.path / "metrics.jsonl", progress.epoch)
        return model.train(), optimizer, progress
    if config.cooccurrence_start:
        start = cooccurrence_table(
            split.training, len(split.vocabulary), run.config.model.width, config.seed
        )
        with torch.no_grad():
            model.items.item.copy_(start)
    (run.path / "metrics.jsonl").unlink(missing_ok=True)
    return model.train(), optimizer, Progress()


def _train_epoch(
    run: Run,
    split: Split,
    model: Model,
    optimizer: Optimizer,
    progress: Progress,
    bar: "tqdm[Any]",
    total: int,
) -> float:
    """Take the steps of an epoch that are left; return how many targets a second they trained."""
    config, begin, seen = run.config.train, time.perf_counter(), progress.targets_seen
    batches = epoch_batches(
        split.training,
        windows=config.windows,
        length=run.config.model.max_length,
        targets=config.targets_per_step,
        seed=config.seed,
        epoch=progress.epoch,
        with_gaps=run.config.model.time_gaps,
    )
    done = progress.step_in_epoch
    for batch in islice(batches, done, None):
        fraction = (progress.epoch + progress.targets_seen / total) / config.epochs
        warmup = (progress.step + 1) / max(1, config.warmup_steps)
        rate = config.learning_rate * min(warmup, 1 - fraction)
        loss, count = _step(run, model, optimizer, batch, rate, progress.step)
        progress.step += 1
        progress.step_in_epoch += 1
        progress.targets_seen += count
        progress.loss_sum += loss * count
        bar.update(count)
        if progress.step % config.checkpoint_steps == 0:
            save_checkpoint(run.path / "last.safetensors", model, optimizer, progress)
    return (progress.targets_seen - seen) / (time.perf_counter() - begin)


def _step(
    run: Run, model: Model, optimizer: Optimizer, batch: Batch, rate: float, step: int
) -> tuple[float, int]:
    """Take one step of gradient descent and return the loss and the number of targets."""
    config = run.config.train
    reset_dropout(model, config.seed, step)
    loss, count = _loss(run, model, batch, step)
    value = loss.item()
    if not math.isfinite(value):
        raise RunError(_not_finite("loss", value, step, batch))
    loss.backward()  # type: ignore[no-untyped-call]
    norm = clip_gradients(model, config.clip)
    if not math.isfinite(norm):
        raise RunError(_not_finite("gradient", norm, step, batch))
    optimizer.step(rate)
    if config.l1:
        shrink_l1(model, rate * config.l1)
    return value, count


def _not_finite(what: str, value: float, step: int, batch: Batch) -> str:
    return (
        f"the {what} is {value} at step {step} (users {batch.users[:8].tolist()}...): "
        "try a lower learning_rate; the best weights so far are kept"
    )


def _loss(run: Run, model: Model, batch: Batch, step: int) -> tuple[Tensor, int]:
    config = run.config.train
    history, targets = torch.from_numpy(batch.history), torch.from_numpy(batch.targets)
    is_target = targets != 0
    right = targets[is_target]  # (N,)
    if isinstance(model, SeedModel):
        assert batch.ratings is not None
        table = model.table()
        users = model.encode(history, table, torch.from_numpy(batch.users))[is_target]
        ratings = torch.from_numpy(batch.ratings)[is_target] - run.data["rating_mean"]
        return rating_loss(users, table, right, ratings), len(right)
    dtype = getattr(torch, config.head_dtype)
    random = np.random.Generator(np.random.Philox([config.seed, step]))
    gaps = _gaps(batch, random) if run.config.model.time_gaps else None
    if config.loss == "softmax":
        table = model.table()
        users = model.encode(history, table, gaps)[is_target]  # (N, D)
        return softmax_loss(users, table, right, dtype), len(right)
    items = run.catalogue.height
    if config.loss == "sampled-softmax":
        negatives = draw_negatives(random, config.negatives, items)
    else:
        drawn = random.integers(1, items, (len(right), config.negatives), endpoint=True)
        negatives = torch.from_numpy(drawn)
    # Only rows that this step needs are made, looked up and scored.
    needed = torch.cat([history.new_zeros(1), history.flatten(), right, negatives.flatten()])
    rows, place = torch.unique(needed, return_inverse=True)  # sorted
    parts = place[1:].split([history.numel(), len(right), negatives.numel()])
    table = model.table(rows)
    users = model.encode(parts[0].view_as(history), table, gaps)[is_target]
    if config.loss == "sampled-softmax":
        loss = sampled_softmax_loss(users, table, parts[1], parts[2], items, dtype)
    else:
        wrong = parts[2].view_as(negatives)
        loss = gbce_loss(users, table, parts[1], wrong, items, config.calibration)
    return loss, len(right)


def _gaps(batch: Batch, random: np.random.Generator) -> Gaps:
    """Return the gaps of a batch; some rows do not know theirs, as some callers will not."""
    assert batch.since is not None
    assert batch.until is not None
    is_told = random.random((len(batch.history), 2, 1)) >= UNTOLD
    since = np.where(is_told[:, 0], batch.since, UNKNOWN)
    until = np.where(is_told[:, 1], batch.until, UNKNOWN)
    return torch.from_numpy(since), torch.from_numpy(until)


def draw_negatives(random: np.random.Generator, count: int, items: int) -> Tensor:
    """Return distinct item indices from 1, sorted; all of them if there are no more than count."""
    if count >= items:
        return torch.arange(1, items + 1)
    return torch.from_numpy(np.sort(random.choice(items, count, replace=False, shuffle=False)) + 1)


def _validate(model: Model, split: Split) -> dict[str, float]:
    was_training = model.training
    model.eval()
    try:
        ranks = answer_of(model, split, split.validation, mask_seen=True).ranks
    except FloatingPointError as error:
        raise RunError(f"{error}: try a lower learning_rate") from error
    model.train(was_training)
    return all_metrics(ranks)


def _end_epoch(run: Run, model: Model, progress: Progress, metrics: dict[str, float]) -> None:
    """Keep the weights if they are the best, and decide whether to go on."""
    if metrics["NDCG@10"] > progress.best_ndcg:
        progress.best_ndcg, progress.best_epoch = metrics["NDCG@10"], progress.epoch
        weights = dict(model.state_dict())
        write_tensors(run.path / "best.safetensors", weights, {"epoch": progress.epoch, **metrics})
    config = run.config.train
    waited = progress.epoch - progress.best_epoch
    progress.done = progress.epoch + 1 == config.epochs or waited >= config.patience


def _log_line(
    progress: Progress, metrics: dict[str, float], speed: float, seconds: float
) -> dict[str, Any]:
    """Return the line of an epoch and move ``progress`` to the next."""
    line = {
        "epoch": progress.epoch,
        "step": progress.step,
        "loss": progress.loss_sum / progress.targets_seen,
        **{f"validation_{name}": value for name, value in metrics.items()},
        "targets_per_second": round(speed),
        "seconds": round(seconds, 3),
    }
    progress.epoch += 1
    progress.step_in_epoch = progress.targets_seen = 0
    progress.loss_sum = 0.0
    return line


def _append_line(path: Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def _keep_lines(path: Path, epoch: int) -> None:
    """Drop lines that a killed training wrote after the checkpoint that it resumes from."""
    if path.exists():
        lines = path.read_text(errors="replace").splitlines(keepends=True)
        try:
            kept = [x for x in lines if x.endswith("\n") and json.loads(x)["epoch"] < epoch]
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path} is damaged: {error!r}") from error
        atomic_write(path, "".join(kept).encode())
