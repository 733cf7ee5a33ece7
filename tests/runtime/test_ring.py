"""Users whose state append.onnx changes where it lies answer as those whose state grows."""

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ranklet import Manifest, Ranker, Ranking
from ranklet import bound as bound_module
from ranklet import user as user_module
from ranklet.bound import BoundRun
from ranklet.bundle import APPEND, describe_files
from ranklet.ring import ROOM
from ranklet.user import User
from ranklet_export import graph as export_graph
from ranklet_export.export import Settings

ITEMS = 60
Same = Callable[[Ranking, Ranking], None]


@pytest.fixture
def ranker(tiny_bundle: Path) -> Ranker:
    return Ranker.load(tiny_bundle, provider="cpu")  # of 20 events at most


def started(ranker: Ranker, ids: list[str], count: int) -> User:
    """Return a user of so many events whose state is in a ring."""
    user = ranker.user(ids[: count - 1])
    user.rank()
    user.append(ids[count - 1])
    user.rank()
    return user


def rows(user: User) -> list[np.ndarray[Any, Any]]:
    assert user._ring is not None
    return [array.copy() for array in user._ring.arrays]


# Where a state lies


@pytest.mark.parametrize("count", [2, 19, 20, 21, 45])
def test_an_event_changes_one_row_of_each_array(ranker: Ranker, ids: list[str], count: int) -> None:
    user = started(ranker, ids, count)
    before, ring = rows(user), user._ring
    assert ring is not None
    user.append(ids[50])
    user.rank()
    assert user._ring is ring
    for old, new in zip(before, ring.arrays, strict=True):
        changed = (old != new).any(axis=(0, 2))
        assert np.flatnonzero(changed).tolist() == [(ring.events - 1) % ring.places]


def test_the_same_event_again_changes_nothing(ranker: Ranker, ids: list[str]) -> None:
    user = started(ranker, ids, 20)
    before = rows(user)
    user.rank(3)
    for old, new in zip(before, rows(user), strict=True):
        np.testing.assert_allclose(old, new, atol=1e-5)


@pytest.mark.parametrize("count", [1, 4, ROOM - 1, ROOM, ROOM + 1, 19])
def test_there_is_room_for_some_more_events_up_to_the_window(
    ranker: Ranker, ids: list[str], count: int
) -> None:
    ring = started(ranker, ids, count + 1)._ring
    assert ring is not None
    assert ring.places == min(20, ROOM * (count // ROOM + 1))


def test_a_state_that_fills_the_window_is_not_copied(ranker: Ranker, ids: list[str]) -> None:
    user = ranker.user(ids[:20])
    user.rank()
    keys = user._state[0]
    user.append(ids[20])
    user.rank()
    assert user._ring is not None
    assert np.shares_memory(np.asarray(keys), user._ring.arrays[0])


@pytest.mark.parametrize("count", [2, 15, 16, 20, 21, 47])
def test_a_state_is_read_with_its_oldest_event_first(
    ranker: Ranker, ids: list[str], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown = ranker.user(ids[: count - 1])
    with monkeypatch.context() as patch:
        patch.setattr(ranker.graphs, "can_append", False)
        grown.rank()
        grown.append(ids[count - 1])
        grown.rank()
    ring = started(ranker, ids, count)._ring
    assert ring is not None
    for found, expected in zip(ring.read(), grown._state, strict=True):
        np.testing.assert_allclose(found, np.asarray(expected), atol=1e-5)


# Runs


def test_users_alike_share_a_run(ranker: Ranker, ids: list[str]) -> None:
    users = [started(ranker, ids[place:], 10) for place in range(5)]
    for user in users:
        user.append(ids[30])
        user.rank(7)
    assert {places: len(runs) for places, runs in ranker.appender._idle.runs.items()} == {ROOM: 1}


def test_idle_runs_are_dropped_before_they_keep_much(
    ranker: Ranker, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    short, user, appender = started(ranker, ids, 10), started(ranker, ids, 20), ranker.appender
    idle = appender._idle
    assert sorted(idle.runs) == [ROOM, 20]
    most = 3 * idle.bytes
    monkeypatch.setattr(bound_module, "MOST_KEPT", most)
    for item in ids[20:40]:
        idle.runs[20] = []  # another thread has them
        user.append(item)
        user.rank()
        assert idle.bytes <= most
    assert list(idle.runs) == [20]
    short.append(ids[10])
    assert short.rank().items == ranker.rank(ids[:11]).items


def test_a_user_may_outlive_another_of_the_same_run(
    ranker: Ranker, ids: list[str], same_order: Same
) -> None:
    gone, kept = started(ranker, ids, 10), started(ranker, ids, 12)
    gone.append(ids[40])
    gone.rank()
    del gone
    gc.collect()
    kept.append(ids[41])
    same_order(kept.rank(), ranker.rank([*ids[:12], ids[41]]))


def test_an_answer_stays_when_the_next_comes(ranker: Ranker, ids: list[str]) -> None:
    user = started(ranker, ids, 10)
    first = user.rank(5)
    items, scores, exact = list(first.items), first.scores.tolist(), first.exact
    user.append(ids[33])
    assert user.rank(5).scores.tolist() != scores
    assert (first.items, first.scores.tolist(), first.exact) == (items, scores, exact)


def test_users_in_threads_get_the_serial_answers(ranker: Ranker, ids: list[str]) -> None:
    def follow(start: int) -> list[list[str] | list[int]]:
        user = ranker.user(ids[start : start + 5])
        answers = []
        for item in ids[start + 5 : start + 35]:
            user.append(item)
            answers.append(user.rank(8).items)
        return answers

    serial = [follow(start) for start in range(24)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(follow, range(24))) == serial


# Requests


@pytest.mark.parametrize("k", [1, 10, ITEMS])
def test_filters_answer_as_for_the_whole_history(any_model: Any, k: int, same_order: Same) -> None:
    ranker = any_model.ranker
    ids = [str(item) for item in ranker.vocabulary.all_ids]
    user, length = ranker.user(ids[:1]), ranker.manifest.max_length
    user.rank()
    some, few = ranker.eligible(ids[10:50]), ranker.eligible(ids[:3])
    for place in range(1, min(length, 9)):
        user.append(ids[place])
        for options in (
            {"exclude_seen": True},
            {"exclude": ids[20:40]},
            {"eligible": some},
            {"eligible": few, "exclude_seen": True},
            {"eligible": some, "exclude": ids[30:]},
        ):
            expected = ranker.rank(ids[: place + 1], k=k, **options)
            found = user.rank(k, **options)
            same_order(found, expected)
            assert (found.cold, found.exact) == (expected.cold, expected.exact)
            assert (user._ring is not None) == ranker.graphs.can_append
        assert np.count_nonzero(some.bias == 0) == some.count
    assert ranker.graphs.bias[1] == 0


def test_more_answers_than_are_kept_come_from_the_other_graph(
    ranker: Ranker, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_module, "MOST_ANSWERS", 5)
    user = ranker.user(ids[:3])
    user.rank()
    for k, has_ring in ((6, False), (5, True), (6, False)):
        user.append(ids[9])
        assert len(user.rank(k).items) == k
        assert (user._ring is not None) == has_ring


def test_to_save_leaves_the_state_where_it_lies(ranker: Ranker, ids: list[str]) -> None:
    user = started(ranker, ids, 30)
    ring, saved = user._ring, user.save()
    assert user._ring is ring
    assert ranker.user().load(saved).save() == saved


@pytest.mark.parametrize("count", [5, 40])
def test_an_event_that_failed_after_it_was_written_is_written_once_more(
    ranker: Ranker, ids: list[str], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, expected = started(ranker, ids, count), started(ranker, ids, count)
    run = BoundRun.run

    def interrupted(self: BoundRun) -> None:
        run(self)
        raise KeyboardInterrupt

    for item in ids[41:50]:
        user.append(item)
        expected.append(item)
        with monkeypatch.context() as patch:
            patch.setattr(BoundRun, "run", interrupted)
            with pytest.raises(KeyboardInterrupt):
                user.rank()
        found, wanted = user.rank(ITEMS), expected.rank(ITEMS)
        assert found.items == wanted.items
        np.testing.assert_array_equal(found.scores, wanted.scores)


# Bundles without it


def test_a_bundle_without_the_graph_ranks_users_alike(
    tiny_bundle: Path, tmp_path: Path, ids: list[str], same_order: Same
) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    for path in tiny_bundle.iterdir():
        if path.name != APPEND:
            (folder / path.name).write_bytes(path.read_bytes())
    replace(Manifest.read(tiny_bundle), files=describe_files(folder)).write(folder)
    without, ranker = (Ranker.load(p, provider="cpu") for p in (folder, tiny_bundle))
    users = [each.user(ids[:5]) for each in (without, ranker)]
    for item in ids[5:45]:
        for user in users:
            user.append(item)
        same_order(*(user.rank(ITEMS) for user in users))
    assert users[0]._ring is None
    assert users[1]._ring is not None


def test_a_large_catalogue_is_not_held_twice(
    exported: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for precision, size in (("int8", 64 * 16), ("fp32", 64 * 16 * 4)):
        for limit in (size - 1, size):
            monkeypatch.setattr(export_graph, "LARGEST_TWICE", limit)
            settings = Settings(precision=precision, allow_drop=limit / 2**20)  # its own bundle
            made = exported(settings)
            assert (APPEND in made.ranker.manifest.files) == (limit == size), (precision, limit)
