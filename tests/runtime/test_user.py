"""A user whose state is kept ranks as the whole history, and beyond the maximum as a window."""

import copy
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ranklet import InputError, Ranker, Ranking
from ranklet import user as user_module
from ranklet.time_gaps import UNKNOWN, buckets_before, gap_buckets
from ranklet_training.model.seed import SeedModel
from ranklet_training.runs.checkpoint import Model

ITEMS = 60
# Scores reach 14, where float32 has steps of 1e-6; half precision rounds rows to 1 in 2048.
TOLERANCE = {"fp32": 1e-4, "int8": 1e-4, "int4": 1e-4, "fp16": 3e-2}
Indices = NDArray[np.int64]
HOUR = 3600


def draw(count: int, seed: int = 0) -> Indices:
    return np.random.default_rng(seed).integers(1, ITEMS + 1, count)


def names(ranker: Ranker, indices: Indices) -> list[str]:
    return [str(item) for item in ranker.vocabulary.ids(indices)]


def assert_scores(ranker: Ranker, found: Ranking, expected: NDArray[np.float64], when: str) -> None:
    """Compare a ranking with the scores of all items, in index order."""
    tolerance = TOLERANCE[ranker.manifest.precision]
    shown = ranker.vocabulary.index(found.items) - 1
    difference = np.abs(found.scores - expected[shown]).max()
    assert difference <= tolerance, f"{when}: scores differ by {difference:.1e}"
    assert (np.diff(found.scores) <= 0).all()
    assert len(set(shown.tolist())) == len(shown)
    left_out = np.delete(expected, shown).max(initial=-np.inf)
    # A bundle of codes says where its choice of a few items is proven.
    if found.exact:
        assert left_out <= found.scores[-1] + tolerance, f"{when}: a better item was left out"


def assert_same(ranker: Ranker, found: Ranking, expected: Ranking, when: str = "") -> None:
    """Compare a ranking with one of all items."""
    assert len(expected.items) == len(ranker)
    scores = np.empty(len(ranker))
    scores[ranker.vocabulary.index(expected.items) - 1] = expected.scores
    assert_scores(ranker, found, scores, when)
    assert (found.unknown, found.cold) == (expected.unknown, expected.cold)


def rolling_scores(
    model: Model, history: Indices, since: Indices | None = None, until: Indices | None = None
) -> NDArray[np.float64]:
    """Score every item after each event, (N, items), all at once, in float64.

    In every block an event attends to the ``max_length`` latest events, itself included, in all but
    the last one to the ``attention_window`` latest.
    """
    model = copy.deepcopy(model).double()
    count, window = len(history), model.config.max_length
    age = torch.arange(count)[:, None] - torch.arange(count)
    may_attend = (age >= 0) & (age < window)
    table = model.table()
    if isinstance(model, SeedModel):
        x = table[history] + model.users.weight.mean(dim=0)
        key, value = model.key_value(x).chunk(2, dim=-1)
        weights = (model.query(x) @ key.T / model.config.width**0.5).masked_fill(
            ~may_attend, -torch.inf
        )
        users = model.output(weights.softmax(dim=-1) @ value)
        return np.asarray(users @ table[1:].T)
    x = table[history] * model.config.width**0.5
    unknown = np.full(count, UNKNOWN)
    if model.config.time_gaps:
        x = x + model.since(torch.from_numpy(unknown if since is None else since))
    for place, block in enumerate(model.each_block(), 1):
        normed = block.attention_norm(x)
        key, value = block.key_value(normed).chunk(2, dim=-1)
        if model.config.time_gaps and place == model.config.blocks:
            x = x + model.until(torch.from_numpy(unknown if until is None else until))
            normed = block.attention_norm(x)
        split = [part.chunk(block.heads, dim=1) for part in (block.query(normed), key, value)]
        heads, waves = [], model.bias.waves().transpose(0, 1)
        for q, k, v, (a, b) in zip(*split, waves, strict=True):
            seen = may_attend
            if place < model.config.blocks:
                seen = may_attend & (age < (model.config.attention_window or count))
                base = model.config.rotary_base
                weights = rotate(q, base) @ rotate(k, base).T / q.shape[1] ** 0.5
            else:
                angles = age[..., None] * 1000.0 ** (-torch.arange(8, dtype=torch.float64) / 8)
                weights = q @ k.T / q.shape[1] ** 0.5 + angles.cos() @ a + angles.sin() @ b
            heads.append(weights.masked_fill(~seen, -torch.inf).softmax(dim=-1) @ v)
        x = block.merge(x[None], torch.stack(heads)[None])[0]
    return np.asarray(model.user(x) @ table[1:].T)


def rotate(x: Tensor, base: float) -> Tensor:
    """Turn each pair of channels by the position times a frequency, as complex numbers."""
    half = x.shape[1] // 2
    frequencies = base ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(len(x))[:, None] * frequencies
    turned = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=1)


@pytest.fixture(params=["append.onnx", "model.onnx"])
def way(request: pytest.FixtureRequest, any_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Append by each of the graphs that can."""
    graphs = any_model.ranker.graphs
    can_append = graphs.can_append and request.param == "append.onnx"
    monkeypatch.setattr(graphs, "can_append", can_append)


# What is kept


@pytest.mark.usefixtures("way")
def test_a_state_keeps_no_keys_that_a_window_hides(any_model: Any) -> None:
    ranker, config = any_model.ranker, any_model.model.config
    if config.kind == "seed" or config.blocks < 2:
        pytest.skip("this model has no block before the last")
    user, shown = ranker.user(), config.attention_window or config.max_length
    for count, item in enumerate(names(ranker, draw(config.max_length + 3)), 1):
        user.append(item)
        user.rank()
        state = user._state if user._ring is None else user._ring.read()
        kept = min(count, config.max_length)
        assert [part.shape[-2] for part in state] == [min(kept, shown)] * (len(state) - 1) + [kept]


# Interrupts


def interrupted_at(line: int, call: Callable[[], object]) -> bool:
    """Raise before the ``line``-th line of ranklet.user that a call runs, if it runs as many."""
    left = line

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename != user_module.__file__:
            return None
        if event == "line":
            left -= 1
            if not left:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("new", [1, 3, 12])
@pytest.mark.parametrize("asked", ["rank", "candidates", "again", "load"])
@pytest.mark.usefixtures("way")
def test_an_interrupt_between_any_two_lines_spoils_no_answer(
    any_model: Any, asked: str, new: int
) -> None:
    ranker = any_model.ranker
    history = names(ranker, draw(ranker.manifest.max_length + 9, seed=4))
    saved = ranker.user(history[:-new])
    saved.rank()
    start = saved.save()
    other = ranker.user(history[-new:]).save()
    plain = ranker.user().load(start)
    plain.extend(history[-new:])
    expected = plain.rank(ITEMS)
    for line in range(1, 1000):
        user = ranker.user().load(start)

        def call(user: Any = user) -> None:
            user.extend(history[-new:])
            if asked == "again":
                user.rank()
            if asked == "load":
                user.load(other)
                user.load(start)
                user.extend(history[-new:])
            user.rank(**{"candidates": {"candidates": history[:3]}}.get(asked, {}))

        was_interrupted = interrupted_at(line, call)
        assert len(user.save()) > 0
        if len(user) == len(plain):  # else the interrupt came before the events
            assert_same(ranker, user.rank(ITEMS), expected, f"line {line}")
        if not was_interrupted:
            break
    assert line > 20


# One event after another


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("k", [1, 10, ITEMS])
def test_a_user_ranks_as_the_whole_history_up_to_the_maximum(any_model: Any, k: int) -> None:
    ranker = any_model.ranker
    history = names(ranker, draw(ranker.manifest.max_length))
    user = ranker.user()
    for count, item in enumerate(history, 1):
        user.append(item)
        expected = ranker.rank(history[:count], k=ITEMS)
        assert_same(ranker, user.rank(k), expected, f"{count} events")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("k", [1, 10, ITEMS])
def test_the_window_rolls_beyond_the_maximum(any_model: Any, k: int) -> None:
    # 110 events: the table of positions is left three times.
    ranker, history = any_model.ranker, draw(110, seed=1)
    assert ranker.graphs.positions < 40
    expected = rolling_scores(any_model.model, history)
    user = ranker.user()
    for count, item in enumerate(names(ranker, history), 1):
        user.append(item)
        assert_scores(ranker, user.rank(k), expected[count - 1], f"{count} events")


def test_a_longer_first_history_counts_by_its_end(any_model: Any) -> None:
    ranker, history = any_model.ranker, draw(80, seed=2)
    window, whole = ranker.manifest.max_length, names(ranker, history)
    user = ranker.user(whole[:40])
    assert_same(ranker, user.rank(ITEMS), ranker.rank(whole[:40], k=ITEMS))
    expected = rolling_scores(any_model.model, history[40 - window :])[window:]
    for item, scores in zip(whole[40:], expected, strict=True):
        user.append(item)
        k = 10 if len(user) % 2 else ITEMS
        assert_scores(ranker, user.rank(k), scores, f"{len(user)} events")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("begin", [1, 5, 12, 13, 30])
def test_many_events_at_once_equal_one_by_one(any_model: Any, begin: int) -> None:
    ranker = any_model.ranker
    history = names(ranker, draw(begin + 3 + 1 + 12 + 7 + 40, seed=begin))
    one, many = ranker.user(history[:begin]), ranker.user(history[:begin])
    one.rank(), many.rank()
    for count in (3, 1, 12, 7, 40):
        events = history[len(one) : len(one) + count]
        many.extend(events)
        for item in events:
            one.append(item)
            one.rank()
        assert len(one) == len(many)
        assert_same(ranker, many.rank(ITEMS), one.rank(ITEMS), f"{len(one)} events")


@pytest.mark.usefixtures("way")
def test_ranking_again_changes_nothing(any_model: Any) -> None:
    ranker, history = any_model.ranker, names(any_model.ranker, draw(50, seed=3))
    often, once = ranker.user(), ranker.user()
    for item in history:
        often.append(item)
        once.append(item)
        expected = once.rank(ITEMS)
        for k in (10, ITEMS, 10):
            assert_same(ranker, often.rank(k), expected, f"{len(once)} events")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("seed", range(3))
def test_any_sequence_of_calls_ranks_as_the_window(any_model: Any, seed: int) -> None:
    ranker, random = any_model.ranker, np.random.default_rng(seed)
    users, history, begin = ranker.users([[]]), np.zeros(0, dtype=np.int64), 0
    has_ranked = False
    for _ in range(60):
        new = draw(int(random.choice([0, 1, 1, 1, 2, 5, 17])), seed=int(random.integers(10**6)))
        users[0].extend(names(ranker, new))
        history = np.concatenate([history, new])
        how = random.choice(["nothing", "alone", "alone", "batch", "candidates", "filters", "park"])
        if how == "park":
            users[0].load(users[0].save())
        if how in ("nothing", "park") or not len(history):
            continue
        if not has_ranked:
            begin, has_ranked = max(0, len(history) - ranker.manifest.max_length), True
        expected = rolling_scores(any_model.model, history[begin:])[-1]
        k, some = int(random.choice([1, 10, ITEMS])), names(ranker, np.unique(draw(40, seed)))
        when = f"{how}, {len(history)} events"
        if how in ("alone", "batch"):
            found = users[0].rank(k) if how == "alone" else users.rank(k)[0]
            assert_scores(ranker, found, expected, when)
            continue
        options: dict[str, Any] = {"candidates": some} if how == "candidates" else {"exclude": some}
        found = users[0].rank(ITEMS, **options)
        shown = ranker.vocabulary.index(found.items) - 1
        assert (how == "candidates") == (set(found.items) == set(some))
        difference = np.abs(found.scores - expected[shown]).max(initial=0)
        assert difference <= TOLERANCE[ranker.manifest.precision], when


def test_an_answer_depends_on_the_order_of_events(any_model: Any) -> None:
    ranker, history = any_model.ranker, names(any_model.ranker, draw(12, seed=4))
    found, other = (ranker.user(events).rank(ITEMS) for events in (history, history[::-1]))
    assert np.abs(found.scores - other.scores).max() > 1e-3


# Times


@pytest.fixture(scope="module")
def timed(exported: Callable[..., Any]) -> Any:
    return exported(time_gaps=True)


def test_a_user_with_times_ranks_as_the_whole_history(timed: Any) -> None:
    ranker = timed.ranker
    history = names(ranker, draw(12))
    times = np.random.default_rng(0).integers(0, 90 * HOUR, 12).cumsum().tolist()
    user = ranker.user()
    for count, (item, time) in enumerate(zip(history, times, strict=True), 1):
        user.append(item, time=time)
        for now in (None, time, time + HOUR, time + 10**9):
            asked = {"times": times[:count], "now": now, "k": ITEMS}
            expected = ranker.rank(history[:count], **asked)
            assert_same(ranker, user.rank(ITEMS, now=now), expected, f"{count} events, {now}")


def test_the_window_rolls_with_times(timed: Any) -> None:
    ranker, history = timed.ranker, draw(80, seed=5)
    times = np.random.default_rng(0).integers(0, 90 * HOUR, 80).cumsum()
    waits = np.random.default_rng(1).integers(0, 90 * HOUR, 80)
    expected = rolling_scores(timed.model, history, buckets_before(times), gap_buckets(waits))
    user = ranker.user()
    for place, item in enumerate(names(ranker, history)):
        user.append(item, time=int(times[place]))
        found = user.rank(ITEMS, now=int(times[place] + waits[place]))
        assert_scores(ranker, found, expected[place], f"{len(user)} events")


def test_times_of_unknown_items_are_skipped_with_them(timed: Any) -> None:
    user, known = timed.ranker.user(), timed.ranker.user(["i00003", "i00004"], times=[0, HOUR])
    user.extend(["i00003", "nowhere"], times=[0, 5])
    user.append("i00004", time=HOUR)
    found, expected = (u.rank(ITEMS, now=2 * HOUR) for u in (user, known))
    assert found.items == expected.items
    assert np.abs(found.scores - expected.scores).max() < 1e-6


def test_events_with_and_without_times_may_follow_each_other(timed: Any) -> None:
    history, buckets = draw(4), gap_buckets(np.array([HOUR]))
    user = timed.ranker.user(names(timed.ranker, history[:1]))
    user.extend(names(timed.ranker, history[1:3]), times=[7, 7 + HOUR])
    assert_scores(
        timed.ranker,
        user.rank(ITEMS),
        rolling_scores(timed.model, history[:3], np.array([UNKNOWN, UNKNOWN, buckets[0]]))[-1],
        "three events",
    )
    user.append(*names(timed.ranker, history[3:]))
    since = np.array([UNKNOWN, UNKNOWN, buckets[0], UNKNOWN])
    expected = rolling_scores(timed.model, history, since)[-1]
    assert_scores(timed.ranker, user.rank(ITEMS), expected, "four events")
    with pytest.raises(InputError, match="now was given without the time of the last event"):
        user.rank(now=10**6)


def test_a_gap_as_wide_as_int64_is_the_longest(timed: Any) -> None:
    ranker, (first, last) = timed.ranker, (-(2**63), 2**63 - 1)
    found = ranker.user(["i00003"], times=[first]).rank(ITEMS, now=last)
    assert_same(ranker, found, ranker.rank(["i00003"], times=[first], now=last, k=ITEMS))
    assert_same(ranker, found, ranker.rank(["i00003"], times=[0], now=2**60, k=ITEMS))


WRONG_TIMES: dict[str, tuple[dict[str, Any], str]] = {
    "falling": ({"times": [5, 4]}, "times falls"),
    "before the last": ({"times": [1, 2]}, "times falls: .3, 1, 2.*oldest first"),
    "one missing": ({"times": [5]}, "times has 1 times for 2 events"),
    "text": ({"times": ["a", "b"]}, r"times\[0\] is 'a'"),
    "fraction": ({"times": [5.5, 6]}, r"times\[0\] is 5.5 \(float\)"),
}


@pytest.mark.parametrize(("values", "message"), WRONG_TIMES.values(), ids=WRONG_TIMES.keys())
def test_times_that_make_no_sense_change_nothing(
    timed: Any, values: dict[str, Any], message: str
) -> None:
    user = timed.ranker.user(["i00003"], times=[3])
    before = user.save()
    with pytest.raises(InputError, match=message):
        user.extend(["i00004", "i00005"], **values)
    assert user.save() == before


@pytest.mark.parametrize(
    ("now", "message"), [(2, "now is 2, before the last event, 3"), ("x", "now")]
)
def test_a_wrong_instant_is_named(timed: Any, now: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        timed.ranker.user(["i00003"], times=[3]).rank(now=now)


def test_a_bundle_of_order_alone_refuses_times(tiny_ranker: Ranker, ids: list[str]) -> None:
    user = tiny_ranker.user(ids[:1])
    with pytest.raises(InputError, match="this bundle does not use times"):
        user.append(ids[0], time=1)
    with pytest.raises(InputError, match="this bundle does not use times"):
        user.rank(now=1)
    assert len(user) == 1
