"""Loss of a batch, of which each process computes its share.

What is drawn - negatives, rows without time gaps or kinds - depends on (seed, step) and is of the
whole batch, so that it is the same with any number of processes.
"""

import numpy as np
import torch
from torch import Tensor

from ranklet.time_gaps import UNKNOWN
from ranklet_training import processes
from ranklet_training.data.sequences import Batch, Ints
from ranklet_training.model.losses import gbce_loss, rating_loss, sampled_softmax_loss, softmax_loss
from ranklet_training.model.model import Gaps, Kinds, SequenceModel
from ranklet_training.model.seed import SeedModel
from ranklet_training.runs.checkpoint import Model, Run

# Share of rows that train without their time gaps, so that a bundle also ranks without times.
WITHOUT_GAPS = 0.1
# The same for the kinds of events, and for the kind that is asked for. Cases of any kind ask for
# none, so that with them more rows train for it.
WITHOUT_KINDS, WITHOUT_TARGET = 0.1, 0.5


def batch_loss(run: Run, model: Model, batch: Batch, step: int) -> tuple[Tensor, int]:
    """Return the share of this process in the mean loss of a batch, and the number of targets."""
    mine = processes.share(len(batch.history))
    targets, own = _count(batch.targets), _count(batch.targets[mine])
    rows = slice(mine.start, max(mine.stop, mine.start + 1))  # one without rows exchanges too
    return _mean_loss(run, model, batch, rows, step) * (own / targets), targets


def _mean_loss(run: Run, model: Model, batch: Batch, rows: slice, step: int) -> Tensor:
    """Return the mean loss of some rows of a batch."""
    config = run.config.train
    history, targets = map(processes.to_device, (batch.history[rows], batch.targets[rows]))
    is_target = targets != 0
    right = targets[is_target]  # (N,)
    if isinstance(model, SeedModel):
        assert batch.ratings is not None
        table = model.table()
        users = model.encode(history, table, processes.to_device(batch.users[rows]))[is_target]
        ratings = processes.to_device(batch.ratings[rows])[is_target] - run.data["rating_mean"]
        return rating_loss(users, table, right, ratings)
    dtype = getattr(torch, config.head_dtype)
    random = np.random.Generator(np.random.Philox([config.seed, step]))
    gaps = _gaps(batch, random, rows) if run.config.model.time_gaps else None
    kinds = _kinds(batch, random, rows, is_asked=run.target > 0) if model.kinds else None
    if config.loss == "softmax":
        table = model.table()
        users = _encode(model, history, table, gaps, kinds)[is_target]  # (N, D)
        return softmax_loss(users, table, right, dtype)
    items = run.catalogue.height
    if config.loss == "sampled-softmax":
        negatives = draw_negatives(random, config.negatives, items).to(processes.device())
    else:
        size = (_count(batch.targets), config.negatives)
        drawn = random.integers(1, items, size, endpoint=True)
        first = _count(batch.targets[: rows.start])
        negatives = processes.to_device(drawn[first : first + len(right)])
    # The table has only the rows of this step.
    needed = torch.cat([history.new_zeros(1), history.flatten(), right, negatives.flatten()])
    items_of_step, place = torch.unique(needed, return_inverse=True)  # sorted
    parts = place[1:].split([history.numel(), len(right), negatives.numel()])
    table = model.table(items_of_step)
    users = _encode(model, parts[0].view_as(history), table, gaps, kinds)[is_target]
    if config.loss == "sampled-softmax":
        return sampled_softmax_loss(users, table, parts[1], parts[2], items, dtype)
    wrong = parts[2].view_as(negatives)
    return gbce_loss(users, table, parts[1], wrong, items, config.calibration)


def _count(targets: Ints) -> int:
    return int(np.count_nonzero(targets))


def _encode(
    model: SequenceModel, history: Tensor, table: Tensor, gaps: Gaps | None, kinds: Kinds | None
) -> Tensor:
    with processes.mixed_precision():
        return model.encode(history, table, gaps, kinds).float()


def _gaps(batch: Batch, random: np.random.Generator, rows: slice) -> Gaps:
    """Return the time gaps of some rows of a batch, unknown for a random share of all rows."""
    assert batch.since is not None
    assert batch.until is not None
    is_known = random.random((len(batch.history), 2, 1)) >= WITHOUT_GAPS
    since = np.where(is_known[:, 0], batch.since, UNKNOWN)
    until = np.where(is_known[:, 1], batch.until, UNKNOWN)
    return processes.to_device(since[rows]), processes.to_device(until[rows])


def _kinds(batch: Batch, random: np.random.Generator, rows: slice, *, is_asked: bool) -> Kinds:
    """Return the kinds of some rows of a batch, unknown for a random share of all rows.

    The share of unknown targets is larger unless a kind ``is_asked`` for by default.
    """
    assert batch.kinds is not None
    assert batch.target_kinds is not None
    shares = WITHOUT_KINDS, WITHOUT_KINDS if is_asked else WITHOUT_TARGET
    is_known = random.random((len(batch.history), 2)) >= shares
    kinds = np.where(is_known[:, :1], batch.kinds, 0)
    asked = np.where(is_known[:, 1:], batch.target_kinds, 0)
    return processes.to_device(kinds[rows]), processes.to_device(asked[rows])


def draw_negatives(random: np.random.Generator, count: int, items: int) -> Tensor:
    """Draw ``count`` distinct item indices, sorted, or all items."""
    if count >= items:
        return torch.arange(1, items + 1)
    return torch.from_numpy(np.sort(random.choice(items, count, replace=False, shuffle=False)) + 1)
