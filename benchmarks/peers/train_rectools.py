"""Train a transformer of RecTools for a budget of minutes and judge it by ranklet's questions.

* The split is leave-one-out, written here a second time, without ranklet: a user's last event is
  the test, the one before it the validation, the rest is for training.
* A rank counts all items of the log, less those of the whole history; ties are pessimistic. What
  RecTools cannot recommend, an item that its training lacks, stands last.
* Only training counts as training time: not set-up, not evaluation. The budget and ``seconds`` are
  CPU seconds over threads, the least that a machine with nothing else to do would take.
"""

import argparse
import json
import logging
import platform
import re
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.transformers.ligr import LiGRLayers

MODELS: dict[str, dict[str, Any]] = {
    "sasrec": dict(loss="softmax"),
    "esasrec": dict(loss="sampled_softmax", n_negatives=256, transformer_layers_type=LiGRLayers),
}
BATCH = 256  # questions scored at a time
WARM_UP = 5  # steps that the speed leaves out
CHECKED = 50  # users whose recommendations --check compares

Ints = NDArray[np.int64]
Tensors = dict[str, torch.Tensor]
Metrics = dict[str, float]
log = logging.getLogger("train_rectools")


@dataclass(frozen=True)
class Events:
    """An event log by user and time; the other fields are places in it."""

    frame: pd.DataFrame
    training: Ints
    starts: Ints  # first event of each user who is asked about
    tests: Ints  # last event of each of them; validation is the one before

    def dataset(self, places: Ints) -> Dataset:
        """Return some events for RecTools; the place is the time, so that no two are tied."""
        times = pd.to_datetime(places)
        return Dataset.construct(self.frame.iloc[places].assign(weight=1.0, datetime=times))


def read_events(path: Path) -> Events:
    """Read a log and cut it; users with fewer than three events are all for training."""
    frame = pd.read_parquet(path, columns=["user_id", "item_id", "timestamp"])
    users = pd.factorize(frame.user_id)[0]
    order = np.lexsort((frame.timestamp.to_numpy(), users))  # stable: ties keep the file's order
    counts = np.bincount(users)
    ends, is_asked = np.cumsum(counts), counts >= 3
    tests = ends[is_asked] - 1
    training = np.delete(np.arange(len(frame)), np.concatenate([tests, tests - 1]))
    starts = (ends - counts)[is_asked]
    return Events(frame.iloc[order].reset_index(drop=True), training, starts, tests)


def model_ids(items: pd.Series, model: SASRecModel) -> Ints:
    """Return RecTools' own id of every event's item; 0, its padding, where it has none."""
    codes, names = pd.factorize(items)
    known = pd.Index(model.data_preparator.item_id_map.external_ids)
    return np.maximum(known.get_indexer(names), 0)[codes]


def catalogue_scores(model: SASRecModel, histories: Sequence[Ints]) -> NDArray[np.float32]:
    """Return the score of every item after each history, (B, items + 1)."""
    length, net = model.session_max_len, model.torch_model.eval()
    padded = np.zeros((len(histories), length), dtype=np.int64)  # on the left, as in training
    for row, history in zip(padded, histories, strict=True):
        known = history[history > 0][-length:]
        row[length - len(known) :] = known
    with torch.inference_mode():
        table = net.item_model.get_all_embeddings()
        users = net.encode_sessions({"x": torch.from_numpy(padded)}, table)[:, -1]
        scores: NDArray[np.float32] = net.similarity_module(users, table).numpy()
    if np.isnan(scores).any():
        raise FloatingPointError("a score is NaN")
    return scores


def mask_seen(scores: NDArray[np.float32], histories: Sequence[Ints]) -> None:
    """Give padding and every item of the whole history the score -inf, in place."""
    scores[:, 0] = -np.inf
    for row, history in zip(scores, histories, strict=True):
        row[history] = -np.inf


def target_ranks(model: SASRecModel, events: Events, targets: Ints) -> Ints:
    """Return the rank of the item at each place of ``targets``, given all before it."""
    ids = model_ids(events.frame.item_id, model)
    ranks = np.full(len(targets), events.frame.item_id.nunique())
    for begin in range(0, len(targets), BATCH):
        rows = slice(begin, begin + BATCH)
        places = targets[rows]
        histories = [ids[s:p] for s, p in zip(events.starts[rows], places, strict=True)]
        answers = ids[places, None]
        scores = catalogue_scores(model, histories)
        of_answers = np.take_along_axis(scores, answers, axis=1)
        mask_seen(scores, histories)
        np.put_along_axis(scores, answers, of_answers, axis=1)  # an answer is never masked
        can_answer = (answers[:, 0] > 0) & [history.any() for history in histories]
        # The answer is one of those that are at least as good as itself: ranks count from 1.
        ranks[rows][can_answer] = (scores >= of_answers).sum(axis=1)[can_answer]
    return ranks


def metrics(ranks: Ints) -> Metrics:
    """Return hit rate and NDCG of the first ten."""
    is_hit = ranks <= 10
    gains = np.where(is_hit, 1 / np.log2(1.0 + ranks), 0)
    return {"HR@10": float(is_hit.mean()), "NDCG@10": float(gains.mean())}


def check_scores(model: SASRecModel, events: Events) -> None:
    """Assert that ``recommend`` of RecTools gives the items and scores that are ranked here."""
    ids = model_ids(events.frame.item_id, model)
    known = model.data_preparator.item_id_map.external_ids
    for start, test in zip(events.starts[:CHECKED], events.tests, strict=False):
        user = events.frame.user_id[start]
        history = events.dataset(np.arange(start, test))
        theirs = model.recommend(users=[user], dataset=history, k=10, filter_viewed=True)
        ours = catalogue_scores(model, [ids[start:test]])
        mask_seen(ours, [ids[start:test]])
        best = np.argsort(-ours[0], kind="stable")[:10]
        assert np.allclose(theirs[Columns.Score], ours[0][best], rtol=1e-4, atol=1e-4), user
        assert list(theirs[Columns.Item]) == list(known[best]), user


class Recorder(Callback):
    """Time every step, stop when the budget is spent, keep the weights that validate best."""

    def __init__(self, options: argparse.Namespace, validate: Callable[[], Metrics]) -> None:
        self.options, self.validate = options, validate
        self.steps: list[tuple[int, float, float]] = []  # targets, seconds by the clock, loss
        self.epochs: list[dict[str, float]] = []
        self.best_epoch, self.best_weights = -1, {}
        self.seconds, self.clock, self.cpu_clock = 0.0, 0.0, 0.0

    def on_train_epoch_start(self, *_: object) -> None:
        """Start the clocks of the first step."""
        self.clock, self.cpu_clock = time.perf_counter(), time.process_time()

    def on_train_batch_end(
        self, trainer: Trainer, _: object, outputs: Tensors, batch: Tensors, index: int
    ) -> None:
        """Record a step, from reading its batch to the update."""
        loss, targets = outputs["loss"].item(), int((batch["y"] > 0).sum())
        before, self.clock = self.clock, time.perf_counter()
        cpu_before, self.cpu_clock = self.cpu_clock, time.process_time()
        self.steps.append((targets, self.clock - before, loss))
        self.seconds += (self.cpu_clock - cpu_before) / self.options.threads
        trainer.should_stop = self.seconds >= 60 * self.options.minutes

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Record an epoch, perhaps one that the end of the budget cut."""
        done = sum(int(epoch["steps"]) for epoch in self.epochs)
        targets, seconds, losses = np.array(self.steps[done:]).T
        loss = float(losses @ targets / targets.sum())
        line = {"steps": len(targets), "loss": loss, "seconds": float(seconds.sum())}
        epoch = len(self.epochs)
        is_last = trainer.should_stop or epoch + 1 == trainer.max_epochs
        if not self.options.throughput and (is_last or (epoch + 1) % self.options.every == 0):
            line |= self.validate()
            best = self.epochs[self.best_epoch]["NDCG@10"] if self.best_weights else -1.0
            if line["NDCG@10"] > best:
                weights = module.torch_model.state_dict()
                self.best_epoch = epoch
                self.best_weights = {name: value.clone() for name, value in weights.items()}
            module.train()
        self.epochs.append(line)
        log.info("epoch %d, after %.0f s of training: %s", epoch, self.seconds, json.dumps(line))

    def summary(self) -> dict[str, Any]:
        """Return how long and how fast it trained."""
        targets, seconds, _ = np.array(self.steps[WARM_UP:] or self.steps).T
        return {
            "seconds": self.seconds,
            "steps": len(self.steps),
            "targets_per_second": float(targets.sum() / seconds.sum()),
            "milliseconds_per_step": float(1000 * seconds.mean()),
            "epochs": self.epochs,
        }


def train(options: argparse.Namespace, events: Events) -> tuple[SASRecModel, Recorder]:
    """Fit a model; but for a measurement of speed, it has the weights that validated best."""
    model = SASRecModel(
        n_factors=options.width,
        n_blocks=options.blocks,
        n_heads=options.heads,
        session_max_len=options.length,
        dropout_rate=options.dropout,
        batch_size=options.batch,
        recommend_torch_device="cpu",
        **MODELS[options.model],
    )
    recorder = Recorder(options, lambda: metrics(target_ranks(model, events, events.tests - 1)))
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    model._trainer = Trainer(  # the documented way to a trainer of one's own
        accelerator="cpu",
        devices=1,
        max_epochs=options.epochs,
        callbacks=[recorder],
        **dict.fromkeys(quiet, False),
    )
    model.fit(events.dataset(events.training))
    # RecTools trained with a copy of the trainer, and so of the recorder.
    (recorder,) = (c for c in model.fit_trainer.callbacks if isinstance(c, Recorder))
    if recorder.best_weights:
        model.torch_model.load_state_dict(recorder.best_weights)
    return model, recorder


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train and judge one model."""
    seed_everything(options.seed)
    torch.set_num_threads(options.threads)
    events = read_events(options.events)
    model, recorder = train(options, events)
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    libraries = ("rectools", "torch", "pytorch-lightning", "numpy")
    ids = model_ids(events.frame.item_id, model)
    result = {
        "arguments": {
            **vars(options),
            "events": "/".join(options.events.parts[-2:]),
            "out": options.out.name,
        },
        "python": platform.python_version(),
        "versions": {name: version(name) for name in libraries},
        "cpu": cpu[1] if cpu else platform.machine(),
        "data": {
            "events": len(ids),
            "users": events.frame.user_id.nunique(),
            "items": events.frame.item_id.nunique(),
            "training_events": len(events.training),
            "items_of_model": len(np.unique(ids[ids > 0])),
            "asked_users": len(events.tests),
            "validation_answers_not_in_model": int((ids[events.tests - 1] == 0).sum()),
            "test_answers_not_in_model": int((ids[events.tests] == 0).sum()),
        },
        "parameters": sum(weights.numel() for weights in model.torch_model.parameters()),
        "training": recorder.summary(),
    }
    if not options.throughput:
        result["best_epoch"] = recorder.best_epoch
        result["validation"] = metrics(target_ranks(model, events, events.tests - 1))
        result["test"] = metrics(target_ranks(model, events, events.tests))
    if options.check:
        check_scores(model, events)
    return result


def main() -> None:
    """Read the command line, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("events", type=Path, help="parquet: user_id, item_id, timestamp")
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--minutes", type=float, required=True, help="budget of training alone")
    parser.add_argument("--out", type=Path, required=True, help="json")
    sizes = {"width": 64, "blocks": 2, "heads": 2, "length": 200, "batch": 128, "threads": 2}
    for name, default in {**sizes, "dropout": 0.2, "epochs": -1, "every": 1, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--throughput", action="store_true", help="measure speed alone")
    parser.add_argument("--check", action="store_true", help="compare scores with recommend()")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")  # RecTools, pydantic and lightning give some in every run
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(run(options), indent=2) + "\n")


if __name__ == "__main__":
    main()
