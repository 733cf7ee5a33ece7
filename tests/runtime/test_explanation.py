"""An explanation says what each event of a history does to the score of each item."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ranklet import Ranker
from ranklet.engine.engine import Engine, History
from ranklet.explanation import EXAMINED, Effects, Explanation, explain, without
from ranklet.time_gaps import UNKNOWN

SHOWN = np.array([3, 9, 27, 1])


def scores(any_model: Any, history: History) -> NDArray[Any]:
    """Return the scores of the shown items by plain torch, 0 after no event."""
    model, table = any_model.model, any_model.model.table()
    if not len(history.items):
        return np.zeros(len(SHOWN))
    gaps = None
    if model.config.time_gaps:
        gaps = torch.from_numpy(history.since)[None], torch.tensor([history.until])
    kinds = None
    if model.kinds:
        assert history.objective is not None
        kinds = torch.from_numpy(history.kinds)[None], torch.from_numpy(history.objective)[None]
    with torch.no_grad():
        user = model.serve(torch.from_numpy(history.items)[None], table, gaps, kinds)[0]
    return (table[SHOWN] @ user).numpy()


def rows(engine: Engine) -> NDArray[np.float32]:
    return engine.table[SHOWN].astype(np.float32)


def draw(any_model: Any, length: int) -> History:
    longest = any_model.model.config.max_length
    random, count = np.random.default_rng(length), min(length, longest)
    items = random.integers(1, 61, count)
    items[-1] = items[0]  # an item twice is two events
    history = History(items)
    if any_model.model.config.time_gaps:
        since = random.integers(0, 48, count)
        history = history._replace(since=since, until=int(random.integers(0, 48)))
    if kinds := any_model.model.kinds:
        weights = random.uniform(-1, 1, kinds + 1).astype(np.float32)
        of_events = random.integers(0, kinds + 1, count)
        history = history._replace(kinds=of_events, objective=weights)
    return history


# Effects


@pytest.mark.parametrize("length", [1, 2, 5, 12])
def test_drops_are_those_of_leaving_each_event_out(length: int, any_model: Any) -> None:
    history, is_fp16 = draw(any_model, length), any_model.settings.precision == "fp16"
    effects = explain(any_model.ranker.engine, history, rows(any_model.ranker.engine), length)
    assert sorted(effects.examined) == [*range(len(history.items))]
    whole = scores(any_model, history)
    for drops, place in zip(effects.drops.T, effects.examined.tolist(), strict=True):
        expected = whole - scores(any_model, without(history, place))
        np.testing.assert_allclose(drops, expected, atol=3e-2 if is_fp16 else 1e-4)


def test_the_events_of_most_attention_are_examined(any_model: Any) -> None:
    engine, history = any_model.ranker.engine, draw(any_model, 12)
    effects = explain(engine, history, rows(engine), 3)
    np.testing.assert_array_equal(effects.attention, engine.attention(history)[1].mean(axis=0))
    places = range(len(history.items))
    by_attention = sorted(places, key=lambda place: (-effects.attention[place], -place))
    assert effects.examined.tolist() == by_attention[:3]
    every = explain(engine, history, rows(engine), 12)
    np.testing.assert_allclose(effects.drops, every.drops[:, : effects.drops.shape[1]], atol=1e-5)


def test_a_long_history_is_examined_in_several_runs(
    tiny_ranker: Ranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, history = tiny_ranker.engine, History(np.arange(1, 13))
    expected = explain(engine, history, rows(engine), 12)
    monkeypatch.setattr("ranklet.explanation.MOST_EVENTS", 40)
    found = explain(engine, history, rows(engine), 12)
    np.testing.assert_allclose(found.drops, expected.drops, atol=1e-5)


def test_events_known_by_their_rows_have_the_same_effects(any_model: Any) -> None:
    engine, history = any_model.ranker.engine, draw(any_model, 9)
    given = engine.table[history.items].astype(np.float32)
    new = history._replace(items=np.full_like(history.items, 1000), rows=given)
    found, expected = (explain(engine, one, rows(engine)) for one in (new, history))
    for part, of_known in zip(found, expected, strict=True):
        np.testing.assert_allclose(part, of_known, atol=1e-3)


# Histories without an event


def test_the_longer_gap_stays_where_an_event_was() -> None:
    history = History(np.array([5, 6, 7]), np.array([UNKNOWN, 4, 2]), until=3)
    gaps = [without(history, place)[:3] for place in range(3)]
    assert [(items.tolist(), since.tolist(), until) for items, since, until in gaps] == [
        ([6, 7], [UNKNOWN, 2], 3),  # nothing is before the first event
        ([5, 7], [UNKNOWN, 4], 3),
        ([5, 6], [UNKNOWN, 4], 3),
    ]


def test_a_gap_beside_an_unknown_one_becomes_unknown() -> None:
    history = History(np.array([5, 6, 7]), np.array([9, UNKNOWN, 2]), until=3)
    assert without(history, 1).since.tolist() == [9, UNKNOWN]
    assert without(history, 0).since.tolist() == [UNKNOWN, 2]
    assert without(history._replace(since=np.array([9, 2, UNKNOWN])), 2).until == UNKNOWN


def test_rows_leave_with_their_events() -> None:
    history = History(np.array([5, 6, 7]), rows=np.eye(3, dtype=np.float32))
    left = without(history, 1)
    assert left.rows is not None
    assert (left.items.tolist(), left.rows.tolist()) == ([5, 7], [[1, 0, 0], [0, 0, 1]])
    assert history.rows is not None
    assert len(history.items) == len(history.rows) == 3


# Reading


@pytest.fixture
def explanation() -> Explanation:
    attention = np.array([0.125, 0.5, 0.375], dtype=np.float32)
    drops = np.array([[0.25, 1.5], [-0.5, 0.25]], dtype=np.float32)
    return Explanation(["a", "b"], ["x", "y", "x"], Effects(attention, np.array([1, 2]), drops))


def test_reasons_are_sorted_by_the_drop(explanation: Explanation) -> None:
    assert explanation.reasons(0) == [(2, "x", 1.5, 0.375), (1, "y", 0.25, 0.5)]
    assert explanation.reasons(1) == [(2, "x", 0.25, 0.375), (1, "y", -0.5, 0.5)]


def test_an_explanation_is_json(explanation: Explanation) -> None:
    found = explanation.to_dict()
    assert json.loads(json.dumps(found)) == found
    assert found["events"][1] == {"item": "y", "title": "y", "attention": 0.5}
    assert found["items"][1] == {
        "item": "b",
        "title": "b",
        "because": [
            {"event": 2, "item": "x", "title": "x", "drop": 0.25},
            {"event": 1, "item": "y", "title": "y", "drop": -0.5},
        ],
    }


def test_an_explanation_is_read_at_a_glance(explanation: Explanation) -> None:
    assert repr(explanation).splitlines() == [
        "<Explanation of 2 items, 2 of 3 events examined",
        "  a: x +1.50, y +0.25",
        "  b: x +0.25, y -0.50>",
    ]


def test_a_long_explanation_is_cut(tiny_ranker: Ranker) -> None:
    items, history = tiny_ranker.vocabulary.ids(np.arange(1, 13)), History(np.arange(1, 13))
    effects = explain(tiny_ranker.engine, history, tiny_ranker.engine.table[1:13])
    events = tiny_ranker.vocabulary.ids(history.items)
    shown = repr(
        Explanation(items, events, effects, tiny_ranker._serving.catalogue.titles)
    ).splitlines()
    assert shown[0] == f"<Explanation of 12 items, {EXAMINED} of 12 events examined"
    assert shown[1].startswith(f"  {tiny_ranker.titles(items)[0]}: ")
    assert shown[-1] == "  ...>"
    assert len(shown) == 12
