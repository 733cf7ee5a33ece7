"""Training loop: a killed training resumes to the same weights, bit by bit.

The order of the data depends on (seed, epoch), dropout on (seed, step), the learning rate on the
finished share of the data. The state between two steps is the weights, the optimizer and a few
numbers, in one atomic file. Holds on CPU, with the same number of threads and processes. Several
processes share each step (``processes``): with another number of them, sums have another order.
"""

import json
import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ranklet.errors import RunError
from ranklet.files.atomic import append, atomic_write
from ranklet.values import reason
from ranklet_training import processes
from ranklet_training.data.sequences import Batch, epoch_batches, targets_per_epoch
from ranklet_training.data.split import Cases, Split
from ranklet_training.judge.evaluate import MASKED, UNMASKED, rank_targets
from ranklet_training.judge.metrics import Metrics, Ranks, all_metrics, ndcg
from ranklet_training.judge.new_items import measure_new_items, read_catalogue
from ranklet_training.judge.subjects import model_scorer
from ranklet_training.model.cooccurrence import cooccurrence_table
from ranklet_training.model.model import reset_dropout
from ranklet_training.model.optimizer import (
    Optimizer,
    clip_gradients,
    make_optimizer,
    shrink_l1,
    spread,
    sum_gradients,
)
from ranklet_training.runs.batch_loss import batch_loss
from ranklet_training.runs.checkpoint import (
    MALFORMED,
    Model,
    Progress,
    Run,
    has_file,
    load_checkpoint,
    save_checkpoint,
    whole_weights,
    write_config,
    write_tensors,
)
from ranklet_training.runs.kinds import decide_kinds
from ranklet_training.runs.report import Report
from ranklet_training.runs.start import TORN

# Share of repeats among the validation answers from which seen items are not masked: masked, each
# of them is a miss, whatever the model learned.
MANY_REPEATS = 0.1
TAKEN = 10_000  # cases that one of several processes copies and ranks at a time

Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TrainResult:
    """Result of a finished training: model and metrics."""

    model: Model  # with the best weights
    validation: Metrics  # of the best epoch; empty if nothing is held out
    best_epoch: int
    epochs: int
    seconds: float  # of this process, evaluation included


def train(
    run: Run, split: Split, *, log: Log | None = None, show_progress: bool = True
) -> TrainResult:
    """Train from the last checkpoint, or from the start, to the end.

    The split is of the events of the run, by its settings. ``log`` receives every line of
    ``metrics.jsonl``. ``show_progress`` draws a bar on stderr, or writes a line an epoch and a
    minute where stderr is no terminal. A run that leaves open whether its model uses the kinds of
    events trains without and with them, see ``kinds``. At the end the data facts of the run get
    ``seen``: the share of repeats among the validation answers, NDCG@10 of the best weights with
    and without seen items, and the better of both as the default of a bundle; and ``new_items``,
    see ``measure_new_items``.

    Raises:
        RunError: The loss is not finite; the last checkpoint and the best weights are kept.
    """
    begin = time.perf_counter()

    def to_end(run: Run, variant: str = "") -> Progress:
        return _train_to_end(run, split, log, show_progress, begin, variant)

    decide_kinds(run, lambda run, variant: to_end(run, variant).best_ndcg)
    progress = to_end(run)
    processes.wait_for_all()
    best, metrics = run.load_model(), run.best_metrics()
    if len(split.validation):
        run.data["seen"] = _measure_seen(best.to(processes.device()), split, metrics["NDCG@10"])
        best.cpu()
        if processes.is_first():
            run.data["new_items"] = _measure_new_items(run, best)
            write_config(run)
    seconds = time.perf_counter() - begin
    return TrainResult(best, metrics, progress.best_epoch, progress.epoch, seconds)


def _train_to_end(
    run: Run, split: Split, log: Log | None, show_progress: bool, begin: float, variant: str
) -> Progress:
    """Train from the last checkpoint, or from the start, to the end.

    ``variant`` is with or without kinds, "" where there is one training.
    """
    config, name = run.config.train, f"{variant} kinds" if variant else ""
    model, optimizer, progress = _prepare(run, split)
    total = targets_per_epoch(split.training, config.windows, run.config.model.max_length)
    show = show_progress and processes.is_first()
    report = Report(total, config.last_epoch, progress, show=show, name=name)
    with closing(report):
        while not progress.done:
            speed = _train_epoch(run, split, model, optimizer, progress, report)
            metrics = _validate(model, split)
            _end_epoch(run, model, progress, metrics)
            line = _log_line(progress, metrics, speed, time.perf_counter() - begin)
            line |= {"kinds": variant} if variant else {}
            if processes.is_first():
                append(run.path / "metrics.jsonl", (json.dumps(line) + "\n").encode())
            save_checkpoint(run.path / "last.safetensors", model, optimizer, progress)
            report.epoch(line)
            if log is not None and processes.is_first():
                log(line)
    return progress


def _prepare(run: Run, split: Split) -> tuple[Model, Optimizer, Progress]:
    config = run.config.train
    torch.manual_seed(config.seed)
    model = run.build_model()
    model.init_weights()
    optimizer = make_optimizer(model.to(processes.device()), config)
    last, progress = run.path / "last.safetensors", Progress()
    is_resumed = has_file(last)
    if is_resumed:
        progress = load_checkpoint(last, model, optimizer)
    elif config.cooccurrence_start and processes.is_first():
        items, width = len(split.vocabulary), run.config.model.width
        with torch.no_grad():
            model.items.item.copy_(cooccurrence_table(split.training, items, width, config.seed))
    if processes.is_first():
        _tidy(run.path, progress.epoch if is_resumed else None)
    spread(model, optimizer)
    return model, optimizer, progress


def _tidy(path: Path, epoch: int | None) -> None:
    """Remove what a killed training left: torn files, metric lines from ``epoch`` on, or all."""
    for torn in path.glob(".*.tmp"):
        if TORN.fullmatch(torn.name) and torn.is_file():
            torn.unlink()
    if epoch is None:
        (path / "metrics.jsonl").unlink(missing_ok=True)
    else:
        _keep_lines(path / "metrics.jsonl", epoch)


def _train_epoch(
    run: Run, split: Split, model: Model, optimizer: Optimizer, progress: Progress, report: Report
) -> float:
    """Take the remaining steps of an epoch; return the speed in targets a second."""
    model.train()
    config, begin, seen = run.config.train, time.perf_counter(), progress.targets_seen
    length = run.config.model.max_length
    total = targets_per_epoch(split.training, config.windows, length)
    batches = epoch_batches(
        split.training,
        windows=config.windows,
        length=length,
        targets=config.targets_per_step,
        seed=config.seed,
        epoch=progress.epoch,
        with_gaps=run.config.model.time_gaps,
        with_kinds=bool(model.kinds),
    )
    for batch in islice(batches, progress.step_in_epoch, None):
        fraction = (progress.epoch + progress.targets_seen / total) / config.epochs
        warmup = (progress.step + 1) / max(1, config.warmup_steps)
        rate = config.learning_rate * min(warmup, 1 - fraction)
        loss, count = _step(run, model, optimizer, batch, rate, progress.step)
        progress.step += 1
        progress.step_in_epoch += 1
        progress.targets_seen += count
        progress.loss_sum += loss * count
        report.step(progress, count)
        if progress.step % config.checkpoint_steps == 0:
            save_checkpoint(run.path / "last.safetensors", model, optimizer, progress)
    return (progress.targets_seen - seen) / (time.perf_counter() - begin)


def _step(
    run: Run, model: Model, optimizer: Optimizer, batch: Batch, rate: float, step: int
) -> tuple[float, int]:
    """Take a step of gradient descent; return the loss and the number of targets."""
    config = run.config.train
    reset_dropout(model, config.seed, step, processes.share(len(batch.history)).start)
    loss, count = batch_loss(run, model, batch, step)
    value = loss.item()
    if not math.isfinite(value):
        raise _not_finite("loss", value, step, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    value = sum_gradients(model, value)
    norm = clip_gradients(model, config.clip)
    if not math.isfinite(norm):
        raise _not_finite("gradient", norm, step, batch)
    optimizer.step(rate)
    if config.l1:
        shrink_l1(model, rate * config.l1)
    return value, count


def _not_finite(name: str, value: float, step: int, batch: Batch) -> RunError:
    return RunError(
        f"the {name} is {value} at step {step} (users {batch.users[:8].tolist()}...): "
        "try a lower learning_rate; the best weights so far are kept"
    )


def _validate(model: Model, split: Split) -> Metrics:
    """Return the validation metrics, with seen items masked unless many answers are repeats."""
    if not len(split.validation):
        return {}
    try:
        return all_metrics(_ranks(model.eval(), split, mask_seen=_masks_seen(split)))
    except FloatingPointError as error:
        raise RunError(f"{error}: try a lower learning_rate") from error


def _masks_seen(split: Split) -> bool:
    return split.validation.repeats < MANY_REPEATS


def _ranks(model: Model, split: Split, *, mask_seen: bool) -> Ranks:
    """Return the ranks of the validation targets, of which each process ranks a part."""
    items, cases = len(split.vocabulary), split.validation
    scorer = model_scorer(model, split.training.counts(items), split.target_kind)

    def rank(some: Cases) -> Ranks:
        return rank_targets(scorer, some, mask_seen=mask_seen, items=items).ranks

    if processes.count() == 1:
        return rank(cases)
    ranks = np.zeros(len(cases), np.int64)
    mine = np.arange(processes.rank(), len(cases), processes.count())
    for rows in np.split(mine, range(TAKEN, len(mine), TAKEN)):
        ranks[rows] = rank(cases.take(rows))
    return processes.total(processes.to_device(ranks)).cpu().numpy()


def _measure_seen(model: Model, split: Split, validated: float) -> dict[str, Any]:
    """Return whether a bundle leaves seen items out by default, and the figures that decide it.

    ``validated`` is the validation NDCG@10 of the model.
    """
    masks = _masks_seen(split)
    other = ndcg(_ranks(model, split, mask_seen=not masks), 10)
    masked, unmasked = (validated, other) if masks else (other, validated)
    return {
        "validation": MASKED if masks else UNMASKED,
        "answers": len(split.validation),
        "repeats": split.validation.repeats,
        "masked_NDCG@10": masked,
        "unmasked_NDCG@10": unmasked,
        "exclude_seen": masked >= unmasked,
    }


def _measure_new_items(run: Run, model: Model) -> dict[str, Any]:
    """Return how a bundle ranks items without events, {} if that can't be measured."""
    questions = run.read_questions()
    if questions is None or not run.attribute_kinds:
        return {}
    catalogue = read_catalogue(run, model)
    events = run.catalogue["training_events"].to_numpy().astype(np.int64)
    return measure_new_items(
        model, catalogue, events, questions, masked=run.exclude_seen, target=run.target
    )


def _end_epoch(run: Run, model: Model, progress: Progress, metrics: Metrics) -> None:
    """Keep the weights if they are the best, or nothing is held out; decide on early stopping."""
    value = metrics.get("NDCG@10", progress.best_ndcg)
    if value > progress.best_ndcg or not metrics:
        progress.best_ndcg, progress.best_epoch = value, progress.epoch
        weights, facts = whole_weights(model), {"epoch": progress.epoch, **metrics}
        if processes.is_first():
            write_tensors(run.path / "best.safetensors", weights, facts)
    config, waited = run.config.train, progress.epoch - progress.best_epoch
    progress.done = progress.epoch + 1 >= config.last_epoch or waited >= config.patience


def _log_line(progress: Progress, metrics: Metrics, speed: float, seconds: float) -> dict[str, Any]:
    """Return the metric line of an epoch and move ``progress`` to the next."""
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


def _keep_lines(path: Path, epoch: int) -> None:
    """Drop the metric lines that a killed training wrote after its last checkpoint."""
    if has_file(path):
        lines = path.read_text(errors="replace").splitlines(keepends=True)
        try:
            kept = [x for x in lines if x.endswith("\n") and json.loads(x)["epoch"] < epoch]
        except MALFORMED as error:
            raise RunError(f"{path} is damaged: {reason(error)}") from error
        atomic_write(path, "".join(kept).encode())
