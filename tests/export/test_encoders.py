"""Encoders as graphs give the users that the model gives in plain torch, at any length and place."""

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ranklet.bundle.manifest import NEVER
from ranklet.time_gaps import BUCKETS
from ranklet_export.encoders import (
    AppendEncoder,
    HistoryEncoder,
    LongHistoryEncoder,
    by_age,
    causal_mask,
    long_from,
    state_rows,
)
from ranklet_export.layers import ServedModel
from ranklet_training.model.attention import rotary, rotary_tables
from ranklet_training.model.model import SequenceModel
from ranklet_training.runs.checkpoint import Model

USER_TOLERANCE = 2e-5  # of vectors that are 14 long, or 4 for dot products
ITEMS, LONGEST = 40, 70
Arrays = dict[str, NDArray[Any]]

# Every value of a setting meets every value of most others.
SHAPES: list[dict[str, Any]] = [
    {},
    {"heads": 1, "block": "gated", "scoring": "dot"},
    {"heads": 4, "activation": "swiglu", "attention_window": 18},
    {"block": "gated", "activation": "swiglu", "blocks": 3, "attention_window": 2},
    {"heads": 1, "blocks": 3, "attention_window": 0},
    {"attention_window": 0, "scoring": "dot", "block": "gated", "compact": True},
    {"heads": 1, "attention_window": 17, "compact": True},
    {"attention_window": 500, "activation": "swiglu"},
    {"blocks": 1, "heads": 2},
    {"blocks": 1, "heads": 1, "block": "gated", "scoring": "dot", "time_gaps": True},
    {"time_gaps": True, "attention_window": 9},
    {"blocks": 0, "scoring": "dot"},
    {"kind": "seed", "heads": 1},
]
FULL: list[dict[str, Any]] = [
    {"block": block, "activation": activation, "scoring": scoring, "heads": heads, "blocks": blocks}
    for block, activation, scoring, heads, blocks in product(
        ("pre-norm", "gated"), ("gelu", "swiglu"), ("cosine", "dot"), (1, 2), (0, 1, 2, 3)
    )
]


class Encoders(NamedTuple):
    """The encoders of a model, as sessions."""

    model: Model
    served: ServedModel
    encode: onnxruntime.InferenceSession
    encode_long: onnxruntime.InferenceSession | None
    append: onnxruntime.InferenceSession

    def reference(self, events: Arrays) -> NDArray[Any]:
        """Return users of whole histories by plain torch, (B, D)."""
        gaps = None
        if "since" in events:
            gaps = torch.from_numpy(events["since"]), torch.from_numpy(events["until"])
        user = self.model.serve(torch.from_numpy(events["history"]), self.model.table(), gaps)
        return user.numpy() / self.scale

    @property
    def scale(self) -> float:
        """Return by what users are divided: item rows are stored times this."""
        return 1.0 if self.model.config.kind == "seed" else 4.0

    def for_length(self, length: int) -> list[onnxruntime.InferenceSession]:
        """Return the graphs that take histories so long."""
        begin = long_from(self.served)
        return [self.encode] if begin is None or length < begin else [self.encode_long]

    def draw(self, batch: int, length: int) -> Arrays:
        """Return histories: the first is whole, the last one event, the others in between."""
        random = np.random.default_rng(length)
        events = random.integers(1, ITEMS + 1, (batch, length))
        counts = np.linspace(length, 1, batch).astype(int)
        drawn: Arrays = {"history": np.where(np.arange(length) < counts[:, None], events, 0)}
        if self.model.config.time_gaps:
            drawn["since"] = random.integers(0, BUCKETS, (batch, length))
            drawn["until"] = random.integers(0, BUCKETS, batch)
        return drawn

    def empty_state(self, batch: int) -> Arrays:
        rows = state_rows(self.served)
        return {name: np.zeros((batch, n, 16), np.float32) for name, n in rows.items()}

    def put(
        self, events: Arrays, place: int, state: Arrays, at: int
    ) -> tuple[NDArray[Any], Arrays]:
        """Append event ``place`` of each history; return users and the state with it."""
        batch = len(events["history"])
        inputs: Arrays = {"item": events["history"][:, place : place + 1], **state}
        inputs["position"] = np.full((batch, 1, 1), at)
        if "since" in events:
            inputs |= {"since": events["since"][:, place : place + 1], "until": events["until"]}
        names = {i.name for i in self.append.get_inputs()}
        found = run(self.append, {name: v for name, v in inputs.items() if name in names})
        return found["user"], {name: found[f"new_{name}"] for name in state}


def run(session: onnxruntime.InferenceSession, inputs: Arrays) -> Arrays:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def assert_close(found: NDArray[Any], expected: NDArray[Any], what: object = "") -> None:
    difference = np.abs(found - expected).max()
    assert difference < USER_TOLERANCE, f"users differ by {difference:.1e} {what}"


@pytest.fixture(scope="module")
def encoders_of(make_model: Callable[..., Model], load_graph: Any) -> Callable[..., Encoders]:
    made: dict[str, Encoders] = {}

    def make(compact: bool = False, **settings: Any) -> Encoders:
        key = repr((compact, settings))
        if key not in made:
            model = make_model(**settings)
            served = ServedModel(model, with_rows=not compact)
            kinds = [HistoryEncoder, LongHistoryEncoder, AppendEncoder]
            encode, encode_long, append = (
                None
                if kind is LongHistoryEncoder and not long_from(served)
                else load_graph(lambda writer, kind=kind: kind(writer, served, "<f4").write())
                for kind in kinds
            )
            made[key] = Encoders(model, served, encode, encode_long, append)
        return made[key]

    return make


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def encoders(request: pytest.FixtureRequest, encoders_of: Callable[..., Encoders]) -> Encoders:
    return encoders_of(**request.param)


def check_users(encoders: Encoders, lengths: list[int]) -> None:
    for length in lengths:
        events = encoders.draw(4, length)
        for session in encoders.for_length(length):
            assert_close(run(session, events)["user"], encoders.reference(events), length)


def test_users_are_those_of_the_model(encoders: Encoders) -> None:
    check_users(encoders, [1, 2, 7, 8, 9, 16, 17, 31, 33, 63, 64, 65, 69, LONGEST])


@pytest.mark.slow
@pytest.mark.parametrize("settings", FULL, ids=str)
def test_users_of_every_shape_at_every_length_are_those_of_the_model(
    settings: dict[str, Any], encoders_of: Callable[..., Encoders]
) -> None:
    check_users(encoders_of(**settings), [*range(1, LONGEST + 1)])


@pytest.mark.parametrize("length", [5, 64])
def test_padding_changes_neither_users_nor_the_state_of_events(
    length: int, encoders: Encoders
) -> None:
    events = encoders.draw(1, length)
    padded = {**events, "history": np.pad(events["history"], [(0, 0), (0, 6)])}
    if "since" in events:
        padded["since"] = np.pad(events["since"], [(0, 0), (0, 6)])
    for session in encoders.for_length(length):
        alone, beside = run(session, events), run(session, padded)
        for name, values in alone.items():
            kept = values if name == "user" else values[:, :length]
            assert_close(beside[name][:, : kept.shape[1]], kept, name)


def test_a_row_of_a_batch_is_encoded_as_alone(encoders: Encoders) -> None:
    for length in (3, LONGEST):
        events = encoders.draw(5, length)
        for session in encoders.for_length(length):
            users = run(session, events)["user"]
            alone = [
                run(session, {name: values[row : row + 1] for name, values in events.items()})
                for row in range(5)
            ]
            assert_close(np.concatenate([found["user"] for found in alone]), users, length)


# The state


@pytest.mark.parametrize("kept", [1, 8, 30, 64, LONGEST - 1])
def test_the_state_of_a_history_goes_on_as_one_long_history(kept: int, encoders: Encoders) -> None:
    if not encoders.model.config.blocks:
        return  # keeps nothing: its user is that of the last event
    events = encoders.draw(1, LONGEST)
    part = {n: v if n == "until" else v[:, :kept] for n, v in events.items()}
    for session in encoders.for_length(kept):
        found, state = run(session, part), encoders.empty_state(1)
        for name, rows in state.items():
            for place in range(kept):  # event p lies in row p modulo the rows
                rows[0, place % rows.shape[1]] = found[name][0, place]
        for place in range(kept, min(kept + 12, LONGEST)):
            user, state = encoders.put(events, place, state, place)
            whole = {n: v if n == "until" else v[:, : place + 1] for n, v in events.items()}
            assert_close(user, encoders.reference(whole), place)


def slow_users(model: SequenceModel, events: Arrays) -> Iterator[Tensor]:
    """Yield the user after each event, event by event, with nothing but lists of what was kept."""
    longest = model.config.max_length
    window = min(model.config.attention_window or longest, longest)
    tables = rotary_tables(
        events["history"].shape[1], 16 // model.config.heads, model.config.rotary_base
    )
    kept: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(model.config.blocks)]
    for place, item in enumerate(events["history"][0].tolist()):
        since = torch.tensor([[events["since"][0, place]]]) if "since" in events else None
        x = model.embed(torch.tensor([[item]]), model.table(), since)
        for depth, block in enumerate(model.each_block()):
            is_last = depth == model.config.blocks - 1
            normed, at = block.attention_norm(x), torch.tensor([[place]])
            key, value = block.keys_values(normed)
            key = key if is_last else rotary(key, *tables, at)
            kept[depth] = [*kept[depth], (key, value)][-(longest if is_last else window) :]
            if is_last and "until" in events:
                x = x + model.until(torch.from_numpy(events["until"]))
                normed = block.attention_norm(x)
            query = block.split_heads(block.query(normed))
            query = query if is_last else rotary(query, *tables, at)
            keys, values = (torch.cat(part, dim=2) for part in zip(*kept[depth], strict=True))
            scores = query @ keys.mT / query.shape[-1] ** 0.5
            if is_last:
                scores += model.bias(longest)[:, : len(kept[depth])].flip(-1)[None, :, None]
            x = block.merge(x, scores.softmax(dim=-1) @ values)
        yield model.user(x)[:, 0]


def test_appended_events_roll_out_of_the_windows(encoders: Encoders) -> None:
    if not encoders.model.config.blocks or not isinstance(encoders.model, SequenceModel):
        return
    events, state = encoders.draw(1, LONGEST + 30), encoders.empty_state(1)
    for place, expected in enumerate(slow_users(encoders.model, events)):
        user, state = encoders.put(events, place, state, place)
        assert_close(user, expected.numpy() / encoders.scale, place)


def test_an_event_that_is_put_again_changes_nothing(encoders: Encoders) -> None:
    events, state = encoders.draw(2, LONGEST + 9), encoders.empty_state(2)
    events["history"][events["history"] == 0] = 7
    for place in range(LONGEST + 9):
        user, state = encoders.put(events, place, state, place)
    again, same = encoders.put(events, LONGEST + 8, state, LONGEST + 8)
    np.testing.assert_array_equal(again, user)
    for name in state:
        np.testing.assert_array_equal(same[name], state[name])


def test_what_another_history_left_in_a_state_is_not_seen(encoders: Encoders) -> None:
    events, state = encoders.draw(1, LONGEST), encoders.empty_state(1)
    for place in range(LONGEST):
        _, state = encoders.put(events, place, state, place)
    for place in range(9, 20):  # another one begins
        user, state = encoders.put(events, place, state, place - 9)
        part = {n: v if n == "until" else v[:, 9 : place + 1] for n, v in events.items()}
        assert_close(user, encoders.reference(part), place)


def test_users_of_a_batch_are_at_places_of_their_own(encoders: Encoders) -> None:
    events, places = encoders.draw(3, LONGEST), [0, 11, 69]
    events["history"][events["history"] == 0] = 7
    states, expected = [], []
    for row, place in enumerate(places):
        alone = {name: values[row : row + 1] for name, values in events.items()}
        state = encoders.empty_state(1)
        for before in range(place):
            _, state = encoders.put(alone, before, state, before)
        states.append(state)
        expected.append(encoders.put(alone, place, state, place)[0])
    inputs = {name: np.concatenate([s[name] for s in states]) for name in states[0]}
    last = {n: v if n == "until" else v[range(3), places][:, None] for n, v in events.items()}
    inputs |= {"item": last.pop("history"), "position": np.array(places)[:, None, None], **last}
    names = {tensor.name for tensor in encoders.append.get_inputs()}
    found = run(encoders.append, {n: v for n, v in inputs.items() if n in names})["user"]
    assert_close(found, np.concatenate(expected))


# Tables and lengths


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_table_by_age_tells_the_age_of_each_row(count: int) -> None:
    table = by_age(np.arange(count, dtype=np.float32), -1)
    rows: list[int | None] = [None] * count  # the event in each
    for position in range(3 * count):
        rows[position % count] = position
        newest = min(position, position % count + count)
        found = [table[count - 1 + newest - row] for row in range(count)]
        assert found == [-1 if event is None else position - event for event in rows]


@pytest.mark.parametrize(("queries", "keys", "begin"), [(9, 9, 0), (4, 12, 0), (4, 12, 8)])
@pytest.mark.parametrize("window", [1, 3, 20])
def test_a_mask_shows_the_window_before_each_event(
    window: int, queries: int, keys: int, begin: int
) -> None:
    mask = causal_mask(NEVER, window, queries, keys, begin)
    assert mask.shape == (1, 1, queries, keys)
    first = begin + queries - keys  # the event beside the first key
    for row, column in product(range(queries), range(keys)):
        event, key = begin + row, first + column
        is_seen = key >= 0 and event - window < key <= event
        assert mask[0, 0, row, column] == (0 if is_seen else np.float32(NEVER))


LENGTHS = [
    ({"attention_window": 8}, 64),  # a chunk looks at itself and at one chunk before it
    ({"attention_window": 17}, 64),
    ({"attention_window": 18, "max_length": 96}, 96),
    ({"attention_window": 18, "max_length": 95}, None),
    ({"attention_window": 1}, 32),
    ({"attention_window": 0}, None),
    ({"blocks": 1}, None),
    ({"kind": "seed", "heads": 1}, None),
]


@pytest.mark.parametrize(("settings", "length"), LENGTHS, ids=lambda value: str(value))
def test_histories_are_long_from_twice_what_a_chunk_looks_at(
    settings: dict[str, Any], length: int | None, make_model: Callable[..., Model]
) -> None:
    served = ServedModel(make_model(**settings), with_rows=False)
    assert long_from(served) == length


def test_a_model_hides_by_the_lowest_score_where_it_must(
    make_model: Callable[..., Model], load_graph: Any
) -> None:
    model = make_model()
    next(iter(model.each_block())).query.weight.mul_(300)
    served = ServedModel(model, with_rows=True)
    session = load_graph(lambda writer: HistoryEncoder(writer, served, "<f4").write())
    history = np.random.default_rng(0).integers(1, ITEMS + 1, (2, 11))
    expected = model.serve(torch.from_numpy(history), model.table(), None).numpy() / 4
    assert math.isclose(served.hidden[0], NEVER)
    assert_close(run(session, {"history": history})["user"], expected)
