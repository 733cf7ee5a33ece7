"""Users in a batch answer as each alone; users that were saved go on as if nothing had been."""

import copy
import hashlib
import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ranklet import InputError, Ranker, Ranking
from ranklet import ranker as ranker_module
from ranklet.user import DIGEST_BYTES, MAGIC, User

ITEMS = 60
TOLERANCE = {
    "fp32": 1e-4,
    "int8": 1e-4,
    "int4": 1e-4,
    "fp16": 1e-4,
}  # of the same bundle, in another batch
HOUR = 3600
LENGTHS = [0, 1, 3, 12, 13, 40, 2, 12, 0, 11]

same_user = settings(
    max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


def draw(ranker: Ranker, count: int, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return [str(item) for item in ranker.vocabulary.ids(random.integers(1, ITEMS + 1, count))]


def assert_same(found: Ranking, expected: Ranking, precision: str = "fp32") -> None:
    """Items may change places only where their scores differ by less than the tolerance."""
    tolerance = TOLERANCE[precision]
    assert len(found.items) == len(expected.items)
    difference = np.abs(found.scores - expected.scores).max(initial=0)
    assert difference <= tolerance, f"scores differ by {difference:.1e}"
    places = {item: place for place, item in enumerate(expected.items)}
    for a, b, score in zip(found.items, expected.items, expected.scores, strict=True):
        if a != b:
            assert abs(expected.scores[places[a]] - score) <= 2 * tolerance
    assert (found.unknown, found.cold) == (expected.unknown, expected.cold)


# Many users


@pytest.mark.parametrize("rows", [1, 3, 256], ids=lambda rows: f"{rows} a run")
def test_each_of_many_users_ranks_as_alone(
    any_model: Any, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranker, random = any_model.ranker, np.random.default_rng(1)
    monkeypatch.setattr(ranker_module, "MAX_SCORES", rows * ITEMS)
    histories = [draw(ranker, count, seed=row) for row, count in enumerate(LENGTHS)]
    histories[4].insert(2, "nowhere")
    users, alone = ranker.users(histories), [ranker.user(history) for history in histories]
    assert len(users) == len(LENGTHS)
    for place in range(30):
        for found, user in zip(users.rank(ITEMS), alone, strict=True):
            assert_same(found, user.rank(ITEMS))
        events = [
            None if random.random() < 0.4 else draw(ranker, 1, seed=100 * place + row)[0]
            for row in range(len(LENGTHS))
        ]
        users.append(events)
        for user, event in zip(alone, events, strict=True):
            if event is not None:
                user.append(event)


def test_a_user_may_be_asked_alone_between_batches(any_model: Any) -> None:
    ranker = any_model.ranker
    histories = [draw(ranker, count, seed=row) for row, count in enumerate(LENGTHS)]
    users, alone = ranker.users(histories), [ranker.user(history) for history in histories]
    for place in range(20):
        item = draw(ranker, 1, seed=place)[0]
        users[place % 10].append(item)
        alone[place % 10].append(item)
        assert_same(users[place % 10].rank(ITEMS), alone[place % 10].rank(ITEMS))
        for found, user in zip(users.rank(ITEMS), alone, strict=True):
            assert_same(found, user.rank(ITEMS))


def test_many_users_rank_what_is_eligible_and_new(any_model: Any) -> None:
    ranker = any_model.ranker
    histories = [draw(ranker, count, seed=row) for row, count in enumerate(LENGTHS)]
    users, some = ranker.users(histories), ranker.eligible(draw(ranker, 15, seed=99))
    for options in (
        {"exclude_seen": True},
        {"eligible": some},
        {"exclude_seen": True, "eligible": some},
    ):
        for k in (1, 8, ITEMS):
            expected = [ranker.user(history).rank(k, **options) for history in histories]
            for found, one in zip(users.rank(k, **options), expected, strict=True):
                assert_same(found, one)


def test_many_users_have_times(exported: Callable[..., Any]) -> None:
    ranker = exported(time_gaps=True).ranker
    history = draw(ranker, 5)
    users = ranker.users([history[:2], history[:1], []], times=[[0, HOUR], None, []])
    alone = [ranker.user(history[:2], times=[0, HOUR]), ranker.user(history[:1]), ranker.user()]
    users.append([history[2], None, history[3]], times=[HOUR, None, 7])
    alone[0].append(history[2], time=HOUR)
    alone[2].append(history[3], time=7)
    for found, user in zip(users.rank(ITEMS), alone, strict=True):
        assert_same(found, user.rank(ITEMS))
    assert_same(users[0].rank(ITEMS, now=9 * HOUR), alone[0].rank(ITEMS, now=9 * HOUR))


def test_no_users_rank_to_nothing(tiny_ranker: Ranker) -> None:
    users = tiny_ranker.users([])
    users.append([])
    assert (len(users), users.rank()) == (0, [])


def test_a_wrong_item_is_named_with_its_user(tiny_ranker: Ranker, ids: list[str]) -> None:
    with pytest.raises(InputError, match=r"histories\[2\]\[1\] is 5 \(int\)"):
        tiny_ranker.users([ids[:1], [], [ids[0], 5]])


@pytest.mark.parametrize(
    ("items", "times"), [([None], None), ([None] * 3, None), ([None] * 2, [1])], ids=str
)
def test_lists_of_another_length_than_the_users_are_refused(
    tiny_ranker: Ranker, ids: list[str], items: Any, times: Any
) -> None:
    with pytest.raises(InputError, match=rf"{len(items)} items, \d times, 2 users"):
        tiny_ranker.users([ids[:1], ids[:2]]).append(items, times=times)


def test_times_of_another_length_than_the_histories_are_refused(
    tiny_ranker: Ranker, ids: list[str]
) -> None:
    with pytest.raises(InputError, match="times has 1 lists for 2 histories"):
        tiny_ranker.users([ids[:1], ids[:2]], times=[[1]])


# Parked users


@pytest.mark.parametrize("length", [0, 1, 11, 12, 13, 50])
@pytest.mark.parametrize("has_ranked", [True, False], ids=["ranked", "not ranked"])
def test_a_saved_user_goes_on_where_it_was(any_model: Any, length: int, has_ranked: bool) -> None:
    ranker = any_model.ranker
    user = ranker.user(["nowhere", *draw(ranker, length)])
    if has_ranked:
        user.rank()
    other = ranker.user(draw(ranker, 5, seed=9)).load(user.save())
    assert (len(other), other.unknown) == (length, 1)
    assert other.save() == user.save()
    for item in ["", *draw(ranker, 30, seed=8)]:
        other.append(item)
        user.append(item)
        k = 10 if len(user) % 2 else ITEMS
        found, expected = other.rank(k), user.rank(k)
        assert found.items == expected.items
        assert (found.scores == expected.scores).all()
        assert found.unknown == expected.unknown


def test_a_saved_user_keeps_its_times(exported: Callable[..., Any]) -> None:
    ranker = exported(time_gaps=True).ranker
    user = ranker.user(draw(ranker, 3), times=[0, 5, HOUR])
    other = ranker.user().load(user.save())
    assert_same(other.rank(ITEMS, now=2 * HOUR), user.rank(ITEMS, now=2 * HOUR))
    with pytest.raises(InputError, match="times falls"):
        other.append(draw(ranker, 1)[0], time=HOUR - 1)


def test_a_saved_user_loads_in_another_process(tiny_bundle: Any, tiny_ranker: Ranker) -> None:
    user = tiny_ranker.user(draw(tiny_ranker, 9))
    expected, data = user.rank(ITEMS), bytearray(user.save())
    again = Ranker.load(tiny_bundle, provider="cpu").user().load(data)  # type: ignore[arg-type]
    assert again.rank(ITEMS).items == expected.items


@pytest.fixture(scope="module")
def saved(tiny_ranker: Ranker) -> bytes:
    user = tiny_ranker.user(draw(tiny_ranker, 7))
    user.rank()
    return user.save()


@pytest.fixture(scope="module")
def other(tiny_ranker: Ranker) -> User:
    """A user that no damaged bytes may change."""
    user = tiny_ranker.user(draw(tiny_ranker, 4, seed=3))
    user.rank()
    return user


@same_user
@given(data=st.data())
def test_a_damaged_byte_is_refused(saved: bytes, other: User, data: st.DataObject) -> None:
    before = other.save()
    damaged = bytearray(saved)
    damaged[data.draw(st.integers(0, len(saved) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(InputError, match=r"is damaged|are not a saved user"):
        other.load(bytes(damaged))
    assert other.save() == before


@same_user
@given(length=st.integers(0, 10**6))
def test_a_truncated_user_is_refused(saved: bytes, other: User, length: int) -> None:
    before = other.save()
    with pytest.raises(InputError, match=r"is damaged|are not a saved user"):
        other.load(saved[: length % len(saved)])
    assert other.save() == before


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "these 0 bytes are not a saved user"),
        (b"ranklet user 2\n", "is damaged"),
        (b"ranklet user 3\n" + bytes(99), "these 114 bytes are not a saved user"),
        (bytes(1000), "these 1000 bytes are not a saved user"),
        ("ranklet user 2\n", "a saved user is bytes, got 'ranklet user 2"),
        (None, "a saved user is bytes, got None"),
    ],
    ids=["nothing", "magic", "newer", "zeros", "text", "None"],
)
def test_what_is_no_saved_user_is_refused(other: User, data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        other.load(data)


@pytest.mark.parametrize("take", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
def test_a_copy_of_a_user_goes_on_alone(
    tiny_ranker: Ranker, take: Callable[[User], User], saved: bytes
) -> None:
    user = tiny_ranker.user().load(saved)
    expected = user.rank(ITEMS)
    other = take(user)
    other.append(draw(tiny_ranker, 1)[0])
    assert other.rank(ITEMS).items != expected.items
    assert (len(user), user.rank(ITEMS).items) == (7, expected.items)


@pytest.mark.parametrize("take", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_ranker_is_not_pickled_or_copied(tiny_ranker: Ranker, take: Any) -> None:
    with pytest.raises(TypeError, match="can't be pickled or copied: load the bundle in each"):
        take(tiny_ranker)


def test_a_user_is_not_pickled(other: User) -> None:
    with pytest.raises(TypeError, match=r"save\(\) gives bytes"):
        pickle.dumps(other)


def test_the_user_whose_item_is_wrong_is_named(tiny_ranker: Ranker) -> None:
    users = tiny_ranker.users([[], []])
    with pytest.raises(InputError, match=r"user 1: item\[0\] is 5 \(int\)"):
        users.append([draw(tiny_ranker, 1)[0], 5])
    assert [len(users[place]) for place in range(2)] == [0, 0]


def forge(saved: bytes, change: Callable[[dict[str, Any], NDArray[np.int64]], object]) -> bytes:
    """Change header and numbers of a saved user, and make its digest anew."""
    start = len(MAGIC) + 4
    end = start + int.from_bytes(saved[len(MAGIC) : start], "little")
    header, rest = json.loads(saved[start:end]), saved[end:-DIGEST_BYTES]
    size = 16 * header["events"]
    numbers = np.frombuffer(rest[:size], "<i8").copy().reshape(2, -1)
    change(header, numbers)
    text = json.dumps(header).encode()
    body = MAGIC + len(text).to_bytes(4, "little") + text + numbers.tobytes() + rest[size:]
    return body + hashlib.sha256(body).digest()


FORGERIES: dict[str, tuple[Callable[[dict[str, Any], NDArray[np.int64]], object], str]] = {
    "item -1": (lambda _, numbers: numbers[0].put(2, -1), "item from -1 to"),
    "item 0": (lambda _, numbers: numbers[0].put(0, 0), "item from 0 to"),
    "item beyond": (lambda _, numbers: numbers[0].put(6, ITEMS + 1), f"to {ITEMS + 1}"),
    "since": (lambda _, numbers: numbers[1].put(0, 48), "since from 0 to 48"),
    "encoded": (lambda header, _: header.update(encoded=8), "7 events, "),
    "encoded less": (lambda header, _: header.update(encoded=0), "7 events, "),
    "half": (lambda header, _: header.update(encoded=6.5), r"counts \[6.5, "),
    "position": (lambda header, _: header.update(position=10**9), "7 events, "),
    "events": (lambda header, _: header.update(events=10**9), "does not follow the format"),
    "shapes": (lambda header, _: header["shapes"].pop(), "a state of the shapes"),
    "no shapes": (lambda header, _: header.pop("shapes"), "does not follow the format: 'shapes'"),
    "no size": (lambda header, _: header.update(shapes=[[-1]]), "does not follow the format"),
}


@pytest.mark.parametrize(("change", "message"), FORGERIES.values(), ids=FORGERIES)
def test_a_user_that_cannot_be_is_refused_whatever_its_digest(
    saved: bytes, other: User, change: Any, message: str
) -> None:
    before = other.save()
    assert forge(saved, lambda *_: None) == saved
    with pytest.raises(InputError, match=message):
        other.load(forge(saved, change))
    assert other.save() == before


@pytest.mark.parametrize("header", [b"", b"[]", b"{", b"\xff"])
def test_a_header_that_is_none_is_refused(other: User, header: bytes) -> None:
    body = MAGIC + len(header).to_bytes(4, "little") + header
    with pytest.raises(InputError, match="does not follow the format"):
        other.load(body + hashlib.sha256(body).digest())


def test_bytes_after_the_end_are_refused(saved: bytes, other: User) -> None:
    with pytest.raises(InputError, match="is damaged"):
        other.load(saved + b"\0")


def test_a_user_of_another_bundle_is_refused(
    saved: bytes, exported: Callable[..., Any], any_model: Any
) -> None:
    user = any_model.ranker.user(draw(any_model.ranker, 3))
    before = user.save()
    with pytest.raises(
        InputError, match="the saved user belongs to another bundle: start it again"
    ):
        user.load(saved)
    assert user.save() == before


@pytest.mark.parametrize("wrong", [["x"], 7, None], ids=["list", "number", "late time"])
def test_what_can_not_be_appended_for_one_is_appended_for_nobody(
    wrong: Any, exported: Callable[..., Any]
) -> None:
    ranker = exported(time_gaps=True).ranker
    history = draw(ranker, 4)
    users, alone = ranker.users([history[:3], history]), ranker.user(history[:3])
    before = users[0].save()
    events = [history[3], history[0]]
    times = None
    if wrong is None:
        users.append(events, times=[5, 5])
        before, times = users[0].save(), [6, 4]
        alone.append(history[3], time=5)
    else:
        events[1] = wrong
    with pytest.raises(InputError):
        users.append(events, times=times)
    assert users[0].save() == before
    assert_same(users[0].rank(ITEMS), alone.rank(ITEMS))
