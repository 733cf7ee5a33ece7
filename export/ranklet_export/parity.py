"""The gate that a graph must pass before it becomes a bundle: it answers like its torch model.

Compared are names, dynamic axes, shapes, values and order, at (batch, length, past) that tracing
never saw, with and without padding; and a state that grows event by event against one long run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from ranklet.errors import ParityError
from ranklet.gaps import BUCKETS
from ranklet.provider import create_session
from ranklet_export.graph import flatten, gap_names, state_names
from ranklet_training.checkpoint import Model

# Scores are sums of fp32 products whose order of summation differs: cosines over the temperature
# reach about 14, where 1 unit in the last place is 1e-6. A hundred of these are still no fault.
SCORE_TOLERANCE = 1e-4
TOP = 10
APPENDED_TO, APPENDED = 50, 10

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class ParityReport:
    """How far the graph was from the model, over all points."""

    points: list[str]
    max_score_difference: float
    max_state_difference: float


def check_parity(path: Path, model: Model, table: Tensor, seed: int = 0) -> ParityReport:
    """Compare a graph with its model.

    Args:
        path: The ONNX file.
        model: In evaluation mode.
        table: The folded item table, (items + 1, D).
        seed: Draws histories and states.

    Raises:
        ParityError: They differ; the message names the point and by how much.
    """
    session, _ = create_session(path, "cpu", 1)
    _check_contract(session, model)
    points: list[str] = []
    score_difference = state_difference = 0.0
    random = np.random.default_rng(seed)
    for batch, length, past in _points(model):
        point = f"batch {batch}, length {length}, past {past}"
        history = random.integers(1, len(table), (batch, length))
        for row in range(1, batch):  # row 0 is whole, the others are padded more and more
            history[row, max(1, length - row) :] = 0
        state = [
            torch.from_numpy(random.standard_normal((batch, s.shape[1], past, s.shape[3])))
            for s in flatten(model.empty_state(1))
        ]
        state = [tensor.float() for tensor in state]
        gaps = [random.integers(0, BUCKETS, size) for size in ((batch, length), batch)]
        gaps = gaps if model.config.time_gaps else []
        expected = reference(model, table, torch.from_numpy(history), state, gaps)
        # The first point ranks all items: a fault in one row of the table may never reach a top.
        k = min(TOP, len(table) - 1) if points else len(table) - 1
        found = run(session, model, history, [s.numpy() for s in state], k, gaps)
        score, kept = _compare(point, expected, found)
        points.append(point)
        score_difference = max(score_difference, score)
        state_difference = max(state_difference, kept)
    if flatten(model.empty_state(1)):
        score_difference = max(score_difference, _check_append(session, model, table, random))
        points.append("events appended one by one equal one long history")
    return ParityReport(points, score_difference, state_difference)


def reference(
    model: Model,
    table: Tensor,
    history: Tensor,
    state: list[Tensor],
    gaps: Sequence[NDArray[np.int64]] = (),
) -> Arrays:
    """Return what the graph must give, from plain torch: all scores, user and present."""
    pairs = list(zip(state[0::2], state[1::2], strict=True))
    since_until = (torch.from_numpy(gaps[0]), torch.from_numpy(gaps[1])) if gaps else None
    with torch.no_grad():
        user, present = model.serve(history, pairs, table, since_until)
        scores = user @ table[1:].T
    names = state_names(model, "present")
    kept = zip(names, flatten(present), strict=True)
    return {"scores": scores.numpy(), "user": user.numpy(), **{n: t.numpy() for n, t in kept}}


def run(
    session: onnxruntime.InferenceSession,
    model: Model,
    history: NDArray[np.int64],
    state: list[NDArray[np.float32]],
    k: int,
    gaps: Sequence[NDArray[np.int64]] = (),
) -> Arrays:
    """Run the graph and return its outputs by name; without ``gaps`` times are unknown."""
    inputs: Arrays = {"history": history, "k": np.array(k, dtype=np.int64)}
    gaps = gaps or (np.zeros_like(history), np.zeros_like(history[:, 0]))
    inputs.update(zip(gap_names(model), gaps, strict=False))
    inputs.update(zip(state_names(model, "past"), state, strict=True))
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def _points(model: Model) -> Iterator[tuple[int, int, int]]:
    """Yield (batch, length, past), none of them as traced, lengths 1 and maximum among them."""
    longest = model.config.max_length
    yield from [(1, 1, 0), (1, longest, 0), (2, longest, 0), (5, min(12, longest), 0)]
    if flatten(model.empty_state(1)):
        yield from [(1, 1, longest - 1), (4, 1, 9), (2, min(5, longest), 11), (1, 2, 1)]


def _check_contract(session: onnxruntime.InferenceSession, model: Model) -> None:
    """Check names, and that batch, length and past are symbols and nothing else is."""
    states = flatten(model.empty_state(1))
    past = [["batch", s.shape[1], "past", s.shape[3]] for s in states]
    grown = [["batch", s.shape[1], s.shape[3]] for s in states]
    expected_inputs = {
        "history": ["batch", "length"],
        "k": [],
        **dict(zip(gap_names(model), (["batch", "length"], ["batch"]), strict=False)),
        **dict(zip(state_names(model, "past"), past, strict=True)),
    }
    inputs = {i.name: list(i.shape) for i in session.get_inputs()}
    if inputs != expected_inputs:
        raise ParityError(f"the graph takes {inputs}, not {expected_inputs}")
    expected_outputs = {
        "items": ["batch", "k"],
        "scores": ["batch", "k"],
        "user": ["batch", model.config.width],
        **dict(zip(state_names(model, "present"), grown, strict=True)),
    }
    outputs = {o.name: list(o.shape) for o in session.get_outputs()}
    for name in state_names(model, "present"):
        grows = outputs.get(name, [0, 0, 0, 0]).pop(2)
        if not isinstance(grows, str):
            raise ParityError(f"axis 2 of {name} is fixed at {grows}")
    if outputs != expected_outputs:
        raise ParityError(f"the graph gives {outputs}, not {expected_outputs}")


def _compare(point: str, expected: Arrays, found: Arrays) -> tuple[float, float]:
    """Return the largest differences of scores and state, both within the tolerance."""
    items, scores = found["items"], found["scores"]
    all_scores = expected["scores"]
    rows = np.arange(len(items))[:, None]
    if not np.isfinite(scores).all():
        raise ParityError(f"{point}: the graph gives scores that are not finite")
    if items.min() < 1 or items.max() > all_scores.shape[1]:
        raise ParityError(f"{point}: the graph ranks an item that does not exist: {items}")
    if any(len(set(row)) < len(row) for row in items.tolist()):
        raise ParityError(f"{point}: the graph ranks an item twice: {items}")
    # The scores must be those of the items that stand there, and those of the best items: then
    # the order is right up to items whose scores differ by less than the tolerance.
    best = -np.sort(-all_scores, axis=1)[:, : items.shape[1]]
    differences = {
        "scores": max(
            float(np.abs(scores - all_scores[rows, items - 1]).max()),
            float(np.abs(scores - best).max()),
        )
    }
    for name, value in expected.items():
        if name != "scores":
            if value.shape != found[name].shape:
                raise ParityError(f"{point}: {name} is {found[name].shape}, not {value.shape}")
            differences[name] = float(np.abs(value - found[name]).max())
    for name, difference in differences.items():
        if not difference <= SCORE_TOLERANCE:  # also catches NaN
            raise ParityError(
                f"{point}: {name} differs by {difference:.2e} from the torch model, "
                f"more than {SCORE_TOLERANCE}"
            )
    state = [v for name, v in differences.items() if name.startswith("present")]
    return differences["scores"], max(state, default=0.0)


def _check_append(
    session: onnxruntime.InferenceSession,
    model: Model,
    table: Tensor,
    random: np.random.Generator,
) -> float:
    """Check that a history with events appended one by one equals the same history at once."""
    total = min(APPENDED_TO + APPENDED, model.config.max_length)
    first = max(1, total - APPENDED)
    history = random.integers(1, len(table), (2, total))
    k = min(TOP, len(table) - 1)
    empty = [s.numpy() for s in flatten(model.empty_state(2))]
    at_once = run(session, model, history, empty, k)
    now = run(session, model, history[:, :first], empty, k)
    for place in range(first, total):
        state = [now[name] for name in state_names(model, "present")]
        now = run(session, model, history[:, place : place + 1], state, k)
    difference = float(np.abs(at_once["scores"] - now["scores"]).max())
    if not difference <= SCORE_TOLERANCE:
        raise ParityError(
            f"{first} events and {total - first} appended ones differ by {difference:.2e} "
            f"from {total} at once, more than {SCORE_TOLERANCE}"
        )
    return difference
