"""Parity gate: the graphs must rank like their torch model before they become a bundle.

Items, scores and their order are compared, with and without padding: for histories of one user and
of many, around every length where another program takes over; for events that are appended one by
one, past the end of the window; for the whole catalogue; for rows of items that have no index; and
for model.onnx on histories longer than the model's maximum.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ranklet.bundle.manifest import (
    APPEND,
    ENCODE_LONG,
    ENCODE_ROWS,
    FIRST_BLOCK,
    FIRST_BLOCK_ROWS,
    MODEL,
    SCORE_MANY,
    Precision,
)
from ranklet.engine.engine import Engine, Event, Floats, History
from ranklet.engine.sessions import ORT_ERRORS
from ranklet.engine.state import State
from ranklet.errors import ParityError
from ranklet.time_gaps import BUCKETS
from ranklet_training.model.attention import attention, local_attention, rotary, rotary_tables
from ranklet_training.model.model import KIND_SCALE, SequenceModel
from ranklet_training.runs.checkpoint import Model

# Scores are sums of fp32 products whose order of summation differs: cosines over the temperature
# reach about 14, where 1 unit in the last place is 1e-6. A hundred of these are still no fault.
# int8 and int4 give fp32 scores, too; fp16 rounds tables to one part in 2048.
SCORE_TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "int8": 1e-4, "int4": 1e-4, "fp16": 3e-2}
TOP = 10
LARGEST_POOL = 1 << 16  # of scores by codes: with it the best items are never left out
APPENDED = 10  # events past the end of the window
MOST_ROWS = 1024  # of the item table, for which the first block is compared


@dataclass(frozen=True)
class ParityReport:
    """The compared points and the largest score difference between graphs and model."""

    points: list[str]
    max_score_difference: float


@dataclass(frozen=True)
class _Point:
    """A batch of histories; row 0 is whole, the rows below are padded more and more."""

    items: NDArray[np.int64]  # (B, T)
    since: NDArray[np.int64]  # (B, T)
    until: NDArray[np.int64]  # (B,)
    kinds: NDArray[np.int64]  # (B, T)
    objective: Floats  # (B, kinds + 1)
    name: str = field(default="")

    def __str__(self) -> str:
        batch, length = self.items.shape
        return f"{self.name}batch {batch}, length {length}"

    @classmethod
    def draw(
        cls, random: np.random.Generator, items: int, batch: int, length: int, kinds: int
    ) -> "_Point":
        drawn = random.integers(1, items + 1, (batch, length))
        for row in range(1, batch):
            drawn[row, max(1, length - row) :] = 0
        drawn[1:][-1:, 1:] = 0  # one event, and nothing but padding
        return cls.around(random, drawn, kinds)

    @classmethod
    def around(cls, random: np.random.Generator, drawn: NDArray[np.int64], kinds: int) -> "_Point":
        """Draw times, kinds and objectives of some items."""
        since = random.integers(0, BUCKETS, drawn.shape)
        until = random.integers(0, BUCKETS, len(drawn))
        weights = random.uniform(-1, 1, (len(drawn), kinds + 1)).astype(np.float32)
        return cls(drawn, since, until, random.integers(0, kinds + 1, drawn.shape), weights)

    def cut(self, events: slice, name: str, rows: slice = slice(None)) -> "_Point":
        """Return some events of some rows."""
        items, since, kinds = (p[rows, events] for p in (self.items, self.since, self.kinds))
        return _Point(items, since, self.until[rows], kinds, self.objective[rows], name)

    def histories(self) -> list[History]:
        counts = (self.items > 0).sum(axis=1)
        rows = zip(
            self.items, self.since, self.until, self.kinds, self.objective, counts, strict=True
        )
        return [
            History(items[:n], since[:n], int(until), kinds[:n], objective)
            for items, since, until, kinds, objective, n in rows
        ]


class _Check:
    """Comparison of an engine with its torch model."""

    def __init__(self, engine: Engine, model: Model, table: Tensor) -> None:
        self.engine, self.model, self.table = engine, model, table
        self.items, self.uses_times = len(table) - 1, model.config.time_gaps
        self.kinds = model.kinds
        self.tolerance = SCORE_TOLERANCE[engine.manifest.precision]
        self.points: list[str] = []
        self.difference = 0.0

    def reference(self, point: _Point) -> Floats:
        """Return the torch scores of all items from 1 on, (B, items)."""
        with torch.no_grad():
            return (self.vectors(point) @ self.table[1:].T).numpy()

    def vectors(self, point: _Point) -> Tensor:
        """Return the torch user vectors, (B, D)."""
        gaps = (torch.from_numpy(point.since), torch.from_numpy(point.until))
        kinds = (torch.from_numpy(point.kinds), torch.from_numpy(point.objective))
        return self.model.serve(
            torch.from_numpy(point.items),
            self.table,
            gaps if self.uses_times else None,
            kinds if self.kinds else None,
        )

    def users(self, point: _Point, users: Floats, k: int) -> None:
        """Compare the best items of user vectors with those of the model."""
        engine, pool = self.engine, min(LARGEST_POOL, self.items)
        best = engine.score(users, min(k, pool), pool)
        self.answers(point, best.items, best.scores)
        if engine.has_codes:
            size = min(pool, engine.manifest.pool.size(TOP))
            every, some = (self.pool_scores(point, users, count) for count in (pool, size))
            if not np.array_equal(every[:, :size], some):
                raise ParityError(f"{point}: {size} items of a pool are not the best by codes")

    def pool_scores(self, point: _Point, users: Floats, pool: int) -> Floats:
        """Return the scores by codes of a pool, (B, pool), once their error is checked."""
        best = self.engine.score(users, pool, pool)
        assert best.pool_scores is not None
        off = self.engine.off_by(users, best)
        if off > 0:
            raise ParityError(f"{point}: codes miss scores by {off:.2e} more than rounding does")
        return best.pool_scores

    def answers(self, point: _Point, items: NDArray[np.int64], scores: Floats) -> None:
        """Compare items and their scores with those of the model."""
        expected = self.reference(point)
        if not np.isfinite(scores).all():
            raise ParityError(f"{point}: scores that are not finite")
        if items.min() < 1 or items.max() > self.items:
            raise ParityError(f"{point}: an item that does not exist: {items}")
        if any(len(set(row)) < len(row) for row in items.tolist()):
            raise ParityError(f"{point}: an item stands twice: {items}")
        # The scores must be those of the items that stand there, and those of the best items: then
        # the order is right up to items whose scores differ by less than the tolerance.
        rows = np.arange(len(items))[:, None]
        ordered = torch.from_numpy(expected).topk(items.shape[1]).values.numpy()
        difference = max(
            float(np.abs(scores - expected[rows, items - 1]).max()),
            float(np.abs(scores - ordered).max()),
        )
        if not difference <= self.tolerance:  # also catches NaN
            raise ParityError(
                f"{point}: scores differ by {difference:.2e} from the torch model, more than "
                f"{self.tolerance}"
            )
        self.difference = max(self.difference, difference)
        self.points.append(str(point))

    def by_rows(self, histories: list[History]) -> list[History]:
        """Return histories whose items are known by their rows alone."""
        new, table = self.items + 1, self.engine.table  # an index that no table has
        return [
            history._replace(items=np.full_like(history.items, new), rows=table[history.items])
            for history in histories
        ]

    def rows(self, point: _Point) -> None:
        """Compare ``by_rows`` with the model; attention sums up the events in the graph itself."""
        histories = self.by_rows(point.histories())
        point = replace(point, name=f"{ENCODE_ROWS}: ")
        self.users(point, self.engine.encode(histories), TOP)
        for history in histories:
            weights = self.engine.attention(history)[1]
            if weights.min() < 0 or not np.abs(weights.sum(axis=1) - 1).max() <= self.tolerance:
                raise ParityError(f"{point}: attention that does not add up to 1: {weights}")

    def rolled(self, point: _Point) -> Floats:
        """Return the torch user vectors after more events than the model's maximum, (B, D).

        Blocks before the last see their window of all events, the last one the latest ones.
        """
        model, longest = self.model, self.model.config.max_length
        with torch.no_grad():
            if not isinstance(model, SequenceModel) or model.config.blocks < 2:
                return self.vectors(point.cut(slice(-longest, None), "")).numpy()
            *blocks, last = list(model.each_block())
            history, since, kinds, until, objective = map(
                torch.from_numpy,
                (point.items, point.since, point.kinds, point.until, point.objective),
            )
            x = model.embed(
                history,
                self.table,
                since if self.uses_times else None,
                kinds if self.kinds else None,
            )
            places = torch.arange(history.shape[1])[None]
            width = model.config.width // model.config.heads
            tables = rotary_tables(places.shape[1], width, model.config.rotary_base)
            for block in blocks:
                normed = block.attention_norm(x)
                key, value = block.keys_values(normed)
                query = block.split_heads(block.query(normed))
                query, key = (rotary(part, *tables, places) for part in (query, key))
                window = model.config.attention_window or longest
                x = block.merge(x, local_attention(query, key, value, min(window, longest)))
            key, value = last.keys_values(last.attention_norm(x[:, -longest:]))
            x = x[:, -1:]
            if self.uses_times:
                x = x + model.until(until)[:, None]
            if self.kinds:
                x = x + KIND_SCALE * (objective @ model.objective)[:, None]
            query = last.split_heads(last.query(last.attention_norm(x)))
            mask = model.bias(longest).flip(-1)[None, :, None]
            return model.user(last.merge(x, attention(query, key, value, mask=mask)))[:, 0].numpy()

    def state(self, point: _Point, appended: State, histories: list[History]) -> None:
        """Compare the state from an encoder with the state after appending the same events."""
        encoded = self.engine.empty_state(len(histories))
        for row, events in enumerate(self.engine.encode_states(histories)[1]):
            encoded.fill(row, events, len(histories[row].items))
        for name, array in encoded.arrays.items():
            difference = float(np.abs(array - appended.arrays[name]).max())
            if not difference <= self.tolerance * max(1.0, float(np.abs(array).max())):
                raise ParityError(f"{point}: {name} of the state differs by {difference:.2e}")

    def appended(self, point: _Point) -> None:
        """Compare appended events with whole histories, past the window with ``rolled``."""
        engine, longest = self.engine, self.model.config.max_length
        batch, total = point.items.shape
        state = engine.empty_state(batch)
        checked = {1, 2, longest // 2, longest - 1, longest} & {*range(1, longest + 1)}
        for place in range(total):
            events = [
                Event(int(item), place, int(since), int(until), int(kind), objective)
                for item, since, until, kind, objective in zip(
                    point.items[:, place],
                    point.since[:, place],
                    point.until,
                    point.kinds[:, place],
                    point.objective,
                    strict=True,
                )
            ]
            users = engine.append(state, events)
            if place + 1 in checked:
                part = point.cut(slice(0, place + 1), f"{APPEND}: ")
                self.users(part, users, TOP)
                histories = part.histories()
                self.state(part, state, histories)
                part = replace(part, name=f"{ENCODE_ROWS}: ")
                self.state(part, state, self.by_rows(histories))
        again = engine.append(state, events)
        if not np.array_equal(users, again):
            raise ParityError(f"{APPEND}: an event that is put again changes the user")
        scale = engine.manifest.width**0.5 if self.model.config.kind == "sequence" else 1.0
        off = float(np.abs(users * scale - self.rolled(point)).max())
        if not off <= self.tolerance:
            raise ParityError(f"{APPEND}: users differ by {off:.2e} where the window has rolled")
        self.points.append(f"{APPEND}: {total} events, {total - longest} past the window")


def check_parity(engine: Engine, model: Model, table: Tensor, seed: int = 0) -> ParityReport:
    """Compare the graphs of a bundle with its model.

    Args:
        engine: The engine of the bundle.
        model: The model in evaluation mode.
        table: Its item table, (items + 1, D).
        seed: Of the drawn histories.

    Raises:
        ParityError: They differ; the message names the point and by how much.
    """
    check, random = _Check(engine, model, table), np.random.default_rng(seed)
    longest, items = model.config.max_length, len(table) - 1
    points = [_Point.draw(random, items, *sizes, model.kinds) for sizes in _points(engine, longest)]
    for point in points:
        # The first point ranks all items of most catalogues: a fault in one row of the table may
        # never reach a top. Codes need a pool of twice as many, and more.
        k = TOP if check.points else LARGEST_POOL // (2 * engine.manifest.pool.factor)
        check.users(point, engine.encode(point.histories()), k)
    for point in points:
        check.rows(point)
    whole = random.integers(1, items + 1, (2, longest + APPENDED))
    check.appended(_Point.around(random, whole, model.kinds))
    if FIRST_BLOCK in engine.manifest.programs:
        _check_first_block(check)
    _check_model(check, random)
    return ParityReport(check.points, check.difference)


def _points(engine: Engine, longest: int) -> Iterator[tuple[int, int]]:
    """Yield (batch, length) from 1 to the maximum, around the lengths where programs change."""
    programs = engine.manifest.programs
    many = programs[SCORE_MANY].least_users if SCORE_MANY in programs else 3
    lengths = {1, 2, longest // 2 + 1, longest}
    if ENCODE_LONG in programs:
        begin = programs[ENCODE_LONG].lengths[0]
        lengths |= {begin - 1, begin, begin + 1, begin + 16}
    for length in sorted(lengths & {*range(1, longest + 1)}):
        yield from ((1, length), (many, length))


def _check_first_block(check: _Check) -> None:
    """Compare what the first block makes of items, before attention, with the model."""
    assert isinstance(check.model, SequenceModel)
    block = next(check.model.each_block())
    with torch.no_grad():
        rows = check.table[:MOST_ROWS] * check.table.shape[1] ** 0.5
        x = (rows[:, None] + KIND_SCALE * check.model.kind).flatten(0, 1) if check.kinds else rows
        normed = block.attention_norm(x)
        key, value = block.key_value(normed).chunk(2, dim=-1)
        # Weights add up to 1: with one head, values go through the output layer first.
        expected = [block.query(normed), key, block.output(value) if block.heads == 1 else value]
        if block.attention_gate is not None:
            expected.append(block.attention_gate(x).sigmoid())
    found = check.engine.programs.session(FIRST_BLOCK).run(None, {"rows": rows.numpy()})
    for name, part, right in zip(FIRST_BLOCK_ROWS, found, expected, strict=False):
        off = float(np.abs(part - right.numpy()).max())
        if not off <= check.tolerance * max(1.0, float(right.abs().max())):
            raise ParityError(f"{FIRST_BLOCK}: {name} differ by {off:.2e} from the torch model")
    check.points.append(f"{FIRST_BLOCK}: {len(rows)} items")


def _check_model(check: _Check, random: np.random.Generator) -> None:
    """Compare model.onnx with the model, also on histories longer than its maximum."""
    session, longest = check.engine.programs.session(MODEL), check.model.config.max_length
    for batch, length in ((1, 1), (3, min(5, longest)), (2, longest), (2, longest + APPENDED)):
        point = _Point.draw(random, check.items, batch, length, check.kinds)
        k = min(LARGEST_POOL, check.items)  # of all items, so that no row of padding is among them
        inputs = {"history": point.items, "k": np.array([k])}
        if check.uses_times:
            inputs |= {"since": point.since, "until": point.until}
        if check.kinds:
            inputs |= {"kind": point.kinds, "objective": point.objective}
        try:
            items, scores = session.run(["items", "scores"], inputs)
        except ORT_ERRORS as error:
            raise ParityError(f"{MODEL}: {point} can't be run: {error}") from error
        cut = slice(max(0, length - longest), None)  # of row 0, which alone is so long
        rows = slice(0, 1) if length > longest else slice(None)
        check.answers(point.cut(cut, f"{MODEL}: ", rows), items[rows], scores[rows])
