"""Encoders give the users that the model gives in plain torch, at any length and place."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ranklet.bundle.manifest import NEVER
from ranklet.engine.engine import Engine, Event, History
from ranklet.engine.state import State
from ranklet.time_gaps import BUCKETS
from ranklet_export.encoders import long_from
from ranklet_export.layers import ServedModel
from ranklet_export.masks import by_age, causal_mask
from ranklet_training.model.attention import rotary, rotary_tables
from ranklet_training.model.model import KIND_SCALE, SequenceModel
from ranklet_training.model.seed import SeedModel
from ranklet_training.runs.checkpoint import Model

USER_TOLERANCE = 2e-5  # of vectors that are 14 long, or 4 for dot products
ITEMS, LONGEST = 40, 70

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
    {"kinds": 3, "attention_window": 9},
    {"kinds": 1, "time_gaps": True, "heads": 1, "block": "gated", "blocks": 3},
    {"kinds": 2, "blocks": 1},
    {"blocks": 0, "scoring": "dot"},
    {"kind": "seed", "heads": 1},
]
NAMES = ("block", "activation", "scoring", "heads", "blocks")
VALUES = (("pre-norm", "gated"), ("gelu", "swiglu"), ("cosine", "dot"), (1, 2), (0, 1, 2, 3))
EVERY_SHAPE = [dict(zip(NAMES, values, strict=True)) for values in product(*VALUES)]


class Encoders(NamedTuple):
    """A model and its graphs."""

    model: Model
    engine: Engine

    @property
    def scale(self) -> float:
        """Return by what users are divided: item rows are stored times this."""
        return 1.0 if self.model.config.kind == "seed" else 4.0

    def expected(self, history: History) -> NDArray[Any]:
        """Return the user after a history by plain torch, (1, D)."""
        gaps = None
        if self.model.config.time_gaps:
            gaps = torch.from_numpy(history.since)[None], torch.tensor([history.until])
        kinds = None
        if self.model.kinds:
            assert history.objective is not None
            kinds = torch.from_numpy(history.kinds)[None], torch.from_numpy(history.objective)[None]
        items = torch.from_numpy(history.items)[None]
        return self.model.serve(items, self.model.table(), gaps, kinds).numpy() / self.scale

    def attention(self, history: History) -> NDArray[Any]:
        """Return the weights of the events by the exponentials of their scores, (H, T)."""
        model, items = self.model, torch.from_numpy(history.items)[None]
        if isinstance(model, SeedModel):
            x = model.table()[items] + model.users.weight.mean(dim=0)
            key = model.key_value(x).chunk(2, dim=-1)[0]
            scores = model.query(x[:, -1:]) @ key.mT / 4
        else:
            has_times, heads = model.config.time_gaps, model.config.heads
            x = model.embed(
                items,
                model.table(),
                torch.from_numpy(history.since)[None] if has_times else None,
                torch.from_numpy(history.kinds)[None] if model.kinds else None,
            )
            x = model._before_last(x)
            *_, last = model.each_block()
            key, _ = last.keys_values(last.attention_norm(x))
            x = x[:, -1:] + (model.until(torch.tensor([[history.until]])) if has_times else 0)
            if model.kinds:
                assert history.objective is not None
                x = x + KIND_SCALE * (torch.from_numpy(history.objective) @ model.objective)
            query = last.split_heads(last.query(last.attention_norm(x)))
            scores = (query @ key.mT)[0, :, 0] / (16 / heads) ** 0.5
            scores = scores + model.bias(len(history.items)).flip(-1)
        weights = scores.exp().reshape(-1, len(history.items))
        return (weights / weights.sum(dim=-1, keepdim=True)).numpy()

    def draw(self, length: int, seed: int = 0) -> History:
        random = np.random.default_rng((length, seed))
        since = random.integers(0, BUCKETS, length)
        items = random.integers(1, ITEMS + 1, length)
        kinds = random.integers(0, self.model.kinds + 1, length)
        weights = random.uniform(-1, 1, self.model.kinds + 1).astype(np.float32)
        return History(items, since, int(since[0]), kinds, weights)

    def put(self, state: State, *events: tuple[History, int, int]) -> NDArray[Any]:
        """Append event ``place`` of a history of each user, as its event number ``position``."""
        return self.engine.append(
            state,
            [
                Event(
                    int(history.items[place]),
                    position,
                    int(history.since[place]),
                    history.until,
                    int(history.kinds[place]),
                    history.objective,
                )
                for history, place, position in events
            ],
        )


def first(history: History, count: int, begin: int = 0) -> History:
    events = slice(begin, count)
    parts = {name: getattr(history, name)[events] for name in ("items", "since", "kinds")}
    return history._replace(**parts)


def assert_close(found: NDArray[Any], expected: NDArray[Any], what: object = "") -> None:
    difference = np.abs(found - expected).max()
    assert difference < USER_TOLERANCE, f"users differ by {difference:.1e} {what}"


@pytest.fixture(scope="module")
def encoders_of(
    make_model: Callable[..., Model], write_graphs: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Encoders]:
    def make(compact: bool = False, **settings: Any) -> Encoders:
        model, folder = make_model(**settings), tmp_path_factory.mktemp("encoders")
        return Encoders(model, write_graphs(model, folder, compact=compact, whole=False).load())

    return make


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def encoders(request: pytest.FixtureRequest, encoders_of: Callable[..., Encoders]) -> Encoders:
    return encoders_of(**request.param)


def check_users(encoders: Encoders, lengths: list[int]) -> None:
    """Encode histories of four lengths together, which are padded, and the longest alone."""
    for length in lengths:
        histories = [encoders.draw(int(n)) for n in np.linspace(length, 1, 4)]
        expected = np.concatenate([encoders.expected(history) for history in histories])
        assert_close(encoders.engine.encode(histories), expected, length)
        assert_close(encoders.engine.encode(histories[:1]), expected[:1], length)


def test_users_are_those_of_the_model(encoders: Encoders) -> None:
    check_users(encoders, [1, 2, 7, 8, 9, 16, 17, 31, 33, 63, 64, 65, 69, LONGEST])


@pytest.mark.slow
@pytest.mark.parametrize("settings", EVERY_SHAPE, ids=str)
def test_users_of_every_shape_at_every_length_are_those_of_the_model(
    settings: dict[str, Any], encoders_of: Callable[..., Encoders]
) -> None:
    check_users(encoders_of(**settings), [*range(1, LONGEST + 1)])


# Rows


def by_rows(encoders: Encoders, history: History) -> History:
    """Return a history of items that no table has, with the rows of others."""
    new = np.full_like(history.items, ITEMS + 7)
    return history._replace(items=new, rows=encoders.engine.table[history.items])


LENGTHS_OF_ROWS = [1, 2, 16, 17, 63, 64, LONGEST]


def test_rows_take_the_place_of_items(encoders: Encoders) -> None:
    for length in LENGTHS_OF_ROWS:
        histories = [encoders.draw(int(n)) for n in np.linspace(length, 1, 4)]
        expected = np.concatenate([encoders.expected(history) for history in histories])
        new = [by_rows(encoders, history) for history in histories]
        assert_close(encoders.engine.encode(new), expected, length)
        assert_close(encoders.engine.encode([*histories[:2], *new[2:]]), expected, length)
        states = [encoders.engine.encode_states(given)[1] for given in (histories, new)]
        for history, one, other in zip(histories, *states, strict=True):
            for array, by_row in zip(one, other, strict=True):
                count = len(history.items)
                assert_close(by_row[:count], array[:count], length)


def test_attention_is_that_of_the_last_query(encoders: Encoders) -> None:
    for length in LENGTHS_OF_ROWS:
        history = encoders.draw(length)
        expected = np.eye(length)[-1:]  # without a block the last event is all that counts
        if encoders.model.config.kind == "seed" or encoders.model.config.blocks:
            expected = encoders.attention(history)
        for given in (history, by_rows(encoders, history)):
            user, weights = encoders.engine.attention(given)
            np.testing.assert_allclose(weights, expected, atol=1e-5)
            assert_close(user, encoders.expected(history))


# The state


@pytest.mark.parametrize("kept", [1, 8, 30, 64, LONGEST - 1])
def test_the_state_of_a_history_goes_on_as_one_long_history(kept: int, encoders: Encoders) -> None:
    history, state = encoders.draw(LONGEST), encoders.engine.empty_state(2)
    # Beside a shorter one, so that the other is padded.
    for user, count in enumerate((kept, (kept + 1) // 2)):
        pair = [first(history, kept), first(history, count)]
        state.fill(user, encoders.engine.encode_states(pair)[1][1], count)
    for place in range(kept, min(kept + 12, LONGEST)):
        shorter = place - kept + (kept + 1) // 2
        users = encoders.put(state, (history, place, place), (history, shorter, shorter))
        expected = [encoders.expected(first(history, n + 1)) for n in (place, shorter)]
        assert_close(users, np.concatenate(expected), place)


def slow_users(model: SequenceModel, history: History) -> Iterator[Tensor]:
    """Yield the user after each event, event by event, with nothing but lists of what is kept."""
    longest, knows_times = model.config.max_length, model.config.time_gaps
    window = min(model.config.attention_window or longest, longest)
    base = model.config.rotary_base
    tables = rotary_tables(len(history.items), 16 // model.config.heads, base)
    kept: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(model.config.blocks)]
    for place, item in enumerate(history.items.tolist()):
        since = torch.tensor([[history.since[place]]]) if knows_times else None
        kind = torch.tensor([[history.kinds[place]]]) if model.kinds else None
        x = model.embed(torch.tensor([[item]]), model.table(), since, kind)
        for depth, block in enumerate(model.each_block()):
            is_last = depth == model.config.blocks - 1
            normed, at = block.attention_norm(x), torch.tensor([[place]])
            key, value = block.keys_values(normed)
            key = key if is_last else rotary(key, *tables, at)
            kept[depth] = [*kept[depth], (key, value)][-(longest if is_last else window) :]
            if is_last and knows_times:
                x = x + model.until(torch.tensor([history.until]))
                normed = block.attention_norm(x)
            if is_last and model.kinds:
                assert history.objective is not None
                for weight, asked in zip(history.objective.tolist(), model.objective, strict=True):
                    x = x + weight * 8 * asked
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
    history, state = encoders.draw(LONGEST + 30), encoders.engine.empty_state(1)
    if isinstance(encoders.model, SequenceModel):
        for place, expected in enumerate(slow_users(encoders.model, history)):
            user = encoders.put(state, (history, place, place))
            assert_close(user, expected.numpy() / encoders.scale, place)
            np.testing.assert_array_equal(encoders.put(state, (history, place, place)), user)


def test_users_of_a_batch_are_at_places_of_their_own(encoders: Encoders) -> None:
    history, batch = encoders.draw(LONGEST), encoders.engine.empty_state(3)
    # The second begins again where another history was, of which nothing may show.
    begins, states = (0, 50, 69), batch.rows()
    for begin, state in zip(begins, states, strict=True):
        for place in range(LONGEST - 1):
            encoders.put(state, (history, place, place - begin if place >= begin else place))
    last = LONGEST - 1
    users = encoders.put(batch, *((history, last, last - begin) for begin in begins))
    expected = [encoders.expected(first(history, LONGEST, begin)) for begin in begins]
    assert_close(users, np.concatenate(expected))


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
    mask = causal_mask(NEVER, window, queries, keys, begin)[0, 0]
    for row, column in product(range(queries), range(keys)):
        event, key = begin + row, begin + queries - keys + column
        is_seen = key >= 0 and event - window < key <= event
        assert mask[row, column] == (0 if is_seen else np.float32(NEVER))


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


@pytest.mark.parametrize(("settings", "length"), LENGTHS, ids=str)
def test_histories_are_long_from_twice_what_a_chunk_looks_at(
    settings: dict[str, Any], length: int | None, make_model: Callable[..., Model]
) -> None:
    assert long_from(ServedModel(make_model(**settings), with_rows=False)) == length
