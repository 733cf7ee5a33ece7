"""The gate that a graph must pass before it becomes a bundle: it answers like its torch model.

Compared are names, dynamic axes, shapes, values and order, at (batch, length, past) that tracing
never saw, with and without padding. The past of a point is what the graph itself kept of the events
before, so that a state is judged by what it is for: torch gets the whole history.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ranklet.bound import MOST_ANSWERS
from ranklet.bundle import BATCH, CODE_BITS, Manifest, Precision
from ranklet.errors import ParityError
from ranklet.graph import NONE, POOLS, SMALLEST_BATCH, Best, Events, Graphs, State
from ranklet.plain import Layout, Plain
from ranklet.ring import Appender, Event
from ranklet.time_gaps import BUCKETS
from ranklet_export.graph import input_contract, state_contract
from ranklet_training.runs.checkpoint import Model

# Scores are sums of fp32 products whose order of summation differs: cosines over the temperature
# reach about 14, where 1 unit in the last place is 1e-6. A hundred of these are still no fault.
# int8 and int4 give fp32 scores, too; fp16 rounds tables to one part in 2048.
SCORE_TOLERANCE: dict[Precision, float] = {
    "fp32": 1e-4,
    "int8": 1e-4,
    "int4": 1e-4,
    "fp16": 3e-2,
}
TOP, RANKING_ALL = 10, 2
LARGEST_POOL = 1 << 16  # of scores by codes: with it the best items are never left out
APPENDED_TO, APPENDED = 50, 10


@dataclass(frozen=True)
class ParityReport:
    """How far the graph was from the model, over all points."""

    points: list[str]
    max_score_difference: float


@dataclass(frozen=True)
class _Point:
    """Histories of equal past; row 0 is whole, the others are padded more and more."""

    history: NDArray[np.int64]  # (B, P + T)
    past: int
    since: NDArray[np.int64]  # (B, P + T)
    until: NDArray[np.int64]  # (B,)

    def __str__(self) -> str:
        batch, length = self.history.shape
        return f"batch {batch}, length {length - self.past}, past {self.past}"


def check_parity(
    graphs: Graphs, manifest: Manifest, model: Model, table: Tensor, seed: int = 0
) -> ParityReport:
    """Compare the graphs of a bundle with its model.

    Args:
        graphs: Of the bundle.
        manifest: What it says of itself.
        model: In evaluation mode.
        table: What ``model.table()`` returned, (items + 1, D).
        seed: Draws histories.

    Raises:
        ParityError: They differ; the message names the point and by how much.
    """
    check_contract(manifest, model)
    points: list[str] = []
    difference = 0.0
    random = np.random.default_rng(seed)
    for batch, length, past in _points(model):
        history = random.integers(1, len(table), (batch, past + length))
        for row in range(1, batch):
            history[row, past + max(1, length - row) :] = 0
        history[1:][-1:, past + 1 :] = 0  # one event, and nothing but padding
        since = random.integers(0, BUCKETS, history.shape)
        point = _Point(history, past, since, random.integers(0, BUCKETS, batch))
        # The first points, one of them a batch, rank all items: a fault in one row of the table
        # may never reach a top.
        most = LARGEST_POOL // (2 * POOLS[manifest.precision][0])
        k = min(most if len(points) < RANKING_ALL else TOP, len(table) - 1)
        difference = max(difference, _compare(graphs, model, table, point, k, manifest.precision))
        points.append(str(point))
    if BATCH in manifest.files and graphs.batch is graphs.session:
        raise ParityError("batch.onnx: codes miss scores by more than rounding explains")
    if state_contract(model, "past"):
        history = random.integers(1, len(table), (2, min(APPENDED_TO, model.config.max_length)))
        # With all in the pool, codes of nearly equal users choose alike.
        pool = min(LARGEST_POOL, len(table) - 1)
        appended = _check_append(graphs, history, min(TOP, len(table) - 1), pool)
        difference = max(difference, appended)
        points.append("events appended one by one equal one long history")
    if graphs.has_plain:
        difference = max(difference, _check_plain(graphs, model, table, random, manifest.precision))
        points.append("plain.onnx gives what the model does, where it cuts a history, too")
    if graphs.can_append:
        difference = max(difference, _check_ring(graphs, model, random))
        points.append("append.onnx gives what model.onnx does, where the window rolls, too")
    return ParityReport(points, difference)


def check_contract(manifest: Manifest, model: Model) -> None:
    """Check names, and that batch, length, past, k and excluded items are symbols, nothing else.

    Raises:
        ParityError: The graph takes or gives something else.
    """
    rounded = manifest.precision in CODE_BITS
    bias = next((tensor.shape for tensor in manifest.inputs if tensor.name == "bias"), [])
    inputs = {
        **input_contract(model),
        "k": [1],
        "exclude": ["batch", "excluded"],
        "bias": bias,
        **({"pool": [1]} if rounded else {}),
    }
    outputs = {
        "user": ["batch", model.config.width],
        **state_contract(model, "present"),
        "items": ["batch", "k"],
        "scores": ["batch", "k"],
        **({"pool_scores": ["batch", "pool"]} if rounded else {}),
    }
    for kind, expected, tensors in (
        ("takes", inputs, manifest.inputs),
        ("gives", outputs, manifest.outputs),
    ):
        found = {tensor.name: tensor.shape for tensor in tensors}
        if found != expected:
            raise ParityError(f"the graph {kind} {found}, not {expected}")
    if len(bias) != 1 or not isinstance(bias[0], int) or bias[0] <= manifest.items:
        raise ParityError(f"bias has the shape {bias} for {manifest.items} items")


def _points(model: Model) -> Iterator[tuple[int, int, int]]:
    """Yield (batch, length, past), none of them as traced, lengths 1 and maximum among them."""
    longest = model.config.max_length
    yield from [(1, 1, 0), (SMALLEST_BATCH, min(5, longest), 0)]
    yield from [(1, longest, 0), (2, longest, 0), (5, min(12, longest), 0)]
    if state_contract(model, "past"):
        yield from [(1, 1, longest - 1), (4, 1, 9), (2, min(5, longest), 11), (1, 2, 1)]


def _compare(
    graphs: Graphs, model: Model, table: Tensor, point: _Point, k: int, precision: Precision
) -> float:
    """Return the largest difference of scores and users; it is within the tolerance."""
    told = model.config.time_gaps
    expected_user, all_scores = _reference(model, table, point)
    past: State = ()
    if point.past:
        parts = point.history[:, : point.past], point.since[:, : point.past]
        past = graphs.encode(Events(parts[0], since=parts[1] if told else NONE))[1]
    new = point.history[:, point.past :]
    counts = (new > 0).sum(axis=1)
    events = Events(
        new,
        counts=NONE if len(new) == 1 else counts,
        starts=np.full(len(new), point.past),
        since=point.since[:, point.past :] if told else NONE,
        until=point.until if told else NONE,
        past=past,
    )
    user, state = graphs.encode(events)
    best = graphs.rank(events, k, pool=min(LARGEST_POOL, len(table) - 1), keep=True)
    for a, b in zip(state, best.state, strict=True):
        if not np.array_equal(a, b):
            raise ParityError(f"{point}: encoder.onnx keeps another state than what ranks")
    differences = {
        "scores": _score_difference(point, best, all_scores),
        # A row of the table is about 1, or divided by sqrt(D) as users are multiplied by it.
        "user": float(np.abs(user * model.config.width**0.5 - expected_user).max())
        if model.config.kind == "sequence"
        else float(np.abs(user - expected_user).max()),
    }
    for name, difference in differences.items():
        if not difference <= SCORE_TOLERANCE[precision]:  # also catches NaN
            raise ParityError(
                f"{point}: {name} differs by {difference:.2e} from the torch model, "
                f"more than {SCORE_TOLERANCE[precision]}"
            )
    if graphs.is_rounded and (off := graphs.off_by(graphs.rank(events, k, pool=k))) > 0:
        raise ParityError(f"{point}: codes miss scores by {off:.2e} more than rounding explains")
    return differences["scores"]


def _reference(
    model: Model, table: Tensor, point: _Point
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return users and all scores of items from 1 on, from plain torch and the whole history."""
    gaps = (torch.from_numpy(point.since), torch.from_numpy(point.until))
    history = torch.from_numpy(point.history)
    told = gaps if model.config.time_gaps else None
    with torch.no_grad():
        user = model.serve(history, table, told)
        return user.numpy(), (user @ table[1:].T).numpy()


def _score_difference(point: _Point, best: Best, all_scores: NDArray[np.float32]) -> float:
    items, scores = best.items, best.scores
    rows = np.arange(len(items))[:, None]
    if not np.isfinite(scores).all():
        raise ParityError(f"{point}: the graph gives scores that are not finite")
    if items.min() < 1 or items.max() > all_scores.shape[1]:
        raise ParityError(f"{point}: the graph ranks an item that does not exist: {items}")
    if any(len(set(row)) < len(row) for row in items.tolist()):
        raise ParityError(f"{point}: the graph ranks an item twice: {items}")
    # The scores must be those of the items that stand there, and those of the best items: then
    # the order is right up to items whose scores differ by less than the tolerance.
    ordered = torch.from_numpy(all_scores).topk(items.shape[1]).values.numpy()
    return max(
        float(np.abs(scores - all_scores[rows, items - 1]).max()),
        float(np.abs(scores - ordered).max()),
    )


def _check_append(graphs: Graphs, history: NDArray[np.int64], k: int, pool: int) -> float:
    """Check that a history with events appended one by one equals the same history at once."""
    total = history.shape[1]
    first = max(1, total - APPENDED)
    starts = np.zeros(len(history), dtype=np.int64)
    at_once = graphs.rank(Events(history), k, pool=pool)
    state: State = graphs.encode(Events(history[:, :first]))[1]
    now = at_once
    for place in range(first, total):
        events = Events(history[:, place : place + 1], starts=starts + place, past=state)
        now = graphs.rank(events, k, pool=pool, keep=True)
        state = now.state
    difference = float(np.abs(at_once.scores - now.scores).max())
    if not difference <= SCORE_TOLERANCE["fp32"]:
        raise ParityError(
            f"{first} events and {total - first} appended ones differ by {difference:.2e} "
            f"from {total} at once, more than {SCORE_TOLERANCE['fp32']}"
        )
    return difference


def _check_plain(
    graphs: Graphs, model: Model, table: Tensor, random: np.random.Generator, precision: Precision
) -> float:
    """Check that plain.onnx answers as the model, for whole histories and for those in chunks."""
    longest, items = model.config.max_length, len(table) - 1
    plain, difference = Plain(graphs), 0.0
    window, every = graphs.attention_window, range(1, longest + 1)
    cut = next((length for length in every if Layout.of(length, window).chunks > 1), 2)
    for length in sorted({1, cut - 1, cut, longest // 2 + 1, longest - 1, longest} & {*every}):
        history = random.integers(1, items + 1, (1, length))
        point = _Point(history, 0, np.zeros_like(history), np.zeros(1, dtype=np.int64))
        best = plain.rank(history[0], min(TOP, items), min(LARGEST_POOL, items))
        _, scores = _reference(model, table, point)
        found = _score_difference(point, best, scores)
        if not found <= SCORE_TOLERANCE[precision]:
            raise ParityError(
                f"plain.onnx: {length} events differ by {found:.2e} from the torch model, "
                f"more than {SCORE_TOLERANCE[precision]}"
            )
        difference = max(difference, found)
    return difference


def _check_ring(graphs: Graphs, model: Model, random: np.random.Generator) -> float:
    """Check that append.onnx answers as model.onnx, before and after the window is full."""
    longest, items = model.config.max_length, len(graphs.table) - 1
    total = longest + APPENDED
    history = random.integers(1, items + 1, (1, total))
    since = random.integers(0, BUCKETS, (1, total))
    until = random.integers(0, BUCKETS, 1)
    told = model.config.time_gaps
    first, pool, difference = max(1, longest - 1), min(LARGEST_POOL, items), 0.0
    start = Events(history[:, :first], since=since[:, :first] if told else NONE)
    state: State = graphs.encode(start)[1]
    appender = Appender(graphs)
    ring = appender.ring([np.array(part) for part in state])
    for place in range(first, total):
        k = min(pool, MOST_ANSWERS if place == first else TOP)
        event = Event(int(history[0, place]), place, int(since[0, place]), int(until[0]))
        found = appender.rank(ring, event, place, k, pool)
        now = slice(place, place + 1)
        new = Events(
            history[:, now],
            starts=np.array([place]),
            since=since[:, now] if told else NONE,
            until=until if told else NONE,
            past=[part[..., max(0, part.shape[-2] + 1 - longest) :, :] for part in state],
        )
        expected = graphs.rank(new, k, pool=pool, keep=True)
        state = expected.state
        difference = max(difference, float(np.abs(found.scores - expected.scores).max()))
    if not difference <= SCORE_TOLERANCE["fp32"]:
        raise ParityError(
            f"append.onnx differs by {difference:.2e} from model.onnx, "
            f"more than {SCORE_TOLERANCE['fp32']}"
        )
    return difference
