"""A user whose state is kept ranks as the whole history, and beyond the maximum as a window."""

import copy
import hashlib
import json
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import ranklet
from ranklet import InputError, Ranker, Ranking
from ranklet.saved_user import DIGEST_BYTES, MAGIC
from ranklet.time_gaps import UNKNOWN, buckets_before, gap_buckets
from ranklet.user import User

ITEMS, HOUR = 60, 3600
APPENDED = 4  # new events; more are encoded anew
# Scores reach 14, where float32 has steps of 1e-6; half precision rounds rows to 1 in 2048.
TOLERANCE = {"fp32": 1e-4, "int8": 1e-4, "int4": 1e-4, "fp16": 3e-2}
Indices = NDArray[np.int64]


def draw(count: int, seed: int = 0) -> Indices:
    return np.random.default_rng(seed).integers(1, ITEMS + 1, count)


def names(indices: Indices) -> list[str]:
    return [f"i{index - 1:05}" for index in indices.tolist()]


def assert_scores(ranker: Ranker, found: Ranking, expected: Any, when: str) -> None:
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


def arrays(user: User) -> list[NDArray[np.float32]]:
    return [array.copy() for array in user._kept.state.arrays.values()]


# One event after another


def test_a_user_ranks_as_the_whole_history_and_then_as_a_window_that_rolls(
    any_model: Any, rolling_scores: Any
) -> None:
    ranker, history = any_model.ranker, draw(45, seed=1)
    assert ranker.manifest.max_length <= 12  # it is left three times
    expected, user = rolling_scores(any_model.model, history), ranker.user()
    for count, item in enumerate(names(history), 1):
        user.append(item)
        for k in (10, ITEMS):
            assert_scores(ranker, user.rank(k), expected[count - 1], f"{count} events")


def test_the_window_rolls_with_times(exported: Any, rolling_scores: Any) -> None:
    timed, history = exported(time_gaps=True), draw(40, seed=5)
    times = np.random.default_rng(0).integers(0, 90 * HOUR, 40).cumsum()
    waits = np.random.default_rng(1).integers(0, 90 * HOUR, 40)
    expected = rolling_scores(timed.model, history, buckets_before(times), gap_buckets(waits))
    untold = rolling_scores(timed.model, history, buckets_before(times))
    user = timed.ranker.user()
    for place, item in enumerate(names(history)):
        user.append(item, time=int(times[place]))
        found = user.rank(ITEMS, now=int(times[place] + waits[place]))
        assert_scores(timed.ranker, found, expected[place], f"{len(user)} events")
        # The same event again, for another question.
        assert_scores(timed.ranker, user.rank(ITEMS), untold[place], f"{len(user)} events, no now")


def test_events_with_and_without_times_may_follow_each_other(
    exported: Any, rolling_scores: Any
) -> None:
    timed, history = exported(time_gaps=True), draw(4)
    hour = int(gap_buckets(np.array([HOUR]))[0])
    expected = rolling_scores(timed.model, history, np.array([UNKNOWN, UNKNOWN, hour, UNKNOWN]))
    user = timed.ranker.user(names(history[:1]))
    user.extend(names(history[1:3]), times=[7, 7 + HOUR])
    assert_scores(timed.ranker, user.rank(ITEMS), expected[2], "three events")
    user.append(*names(history[3:]))
    assert_scores(timed.ranker, user.rank(ITEMS), expected[3], "four events")
    with pytest.raises(InputError, match="now was given without the time of the last event"):
        user.rank(now=10**6)


@pytest.mark.parametrize("begin", [1, 11, 12, 30])
def test_up_to_four_new_events_are_appended_and_more_encoded_anew(
    any_model: Any, begin: int, rolling_scores: Any
) -> None:
    ranker, longest = any_model.ranker, any_model.ranker.manifest.max_length
    history = draw(begin + 3 * APPENDED, seed=begin)
    for new in range(1, APPENDED + 4):
        user = ranker.user(names(history[:begin]))
        user.rank()
        user.extend(names(history[begin : begin + new]))
        start = max(0, begin - longest)  # of the window that rolls
        if new > APPENDED:
            start = max(0, begin + new - longest)
        expected = rolling_scores(any_model.model, history[start : begin + new])[-1]
        assert_scores(ranker, user.rank(ITEMS), expected, f"{new} new events")


# What is kept


def test_a_state_has_its_size_from_the_first_event_on(any_model: Any) -> None:
    ranker, config = any_model.ranker, any_model.model.config
    user, longest = ranker.user(), config.max_length
    shapes = {name: array.shape for name, array in user._kept.state.arrays.items()}
    window = min(config.attention_window or longest, longest)
    blocks = config.blocks if config.kind == "sequence" else 1
    keys, last = 2 * max(0, blocks - 1), min(1, blocks)
    assert sorted(shape[1] for shape in shapes.values()) == sorted(
        keys * [window] + last * [longest]
    )
    before = list(user._kept.state.arrays.values())
    for item in names(draw(longest + 9)):
        user.append(item)
        user.rank()
        for array, old in zip(user._kept.state.arrays.values(), before, strict=True):
            assert array is old


@pytest.mark.parametrize("count", [1, 2, 11, 12, 13, 29])
def test_an_event_changes_the_oldest_row_of_each_array(any_model: Any, count: int) -> None:
    history = names(draw(count + 1, seed=2))
    user = any_model.ranker.user(history[:1])
    for item in history[1:count]:
        user.rank()
        user.append(item)
    user.rank()
    before = arrays(user)
    user.append(history[count])
    user.rank()
    for old, new in zip(before, arrays(user), strict=True):
        changed = (old != new).any(axis=(0, 2))
        assert np.flatnonzero(changed).tolist() == [count % old.shape[1]]


def test_ranking_again_changes_nothing(any_model: Any) -> None:
    user = any_model.ranker.user()
    for item in names(draw(30, seed=3)):
        user.append(item)
        user.rank()
        user.rank()
        before, expected = arrays(user), user.rank(ITEMS)
        for k in (10, ITEMS):
            found = user.rank(k)
            assert found.items == expected.items[:k]
        for old, new in zip(before, arrays(user), strict=True):
            np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(("item", "time"), [(5, 9), ("i00004", 4), ("i00004", 9.5)])
def test_what_can_not_be_added_changes_nothing(exported: Any, item: Any, time: Any) -> None:
    user = exported(time_gaps=True).ranker.user(["i00003"], times=[5])
    before = user.save()
    with pytest.raises(InputError):
        user.extend(["i00009", item], times=[7, time])
    assert user.save() == before


# Interrupts

PACKAGE = str(Path(ranklet.__file__).parent)


def interrupted_at(line: int, call: Callable[[], object]) -> bool:
    """Raise before the ``line``-th line of ranklet that a call runs, if it runs as many."""
    left = line

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(PACKAGE):
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


def until_it_ends(call: Callable[[int], Callable[[], object]]) -> int:
    """Interrupt what ``call`` returns before each of its lines in turn; return how many."""
    line = 1
    while interrupted_at(line, call(line)):
        line += 1
    return line - 1


@pytest.mark.parametrize("shape", ["two blocks", "times"])
@pytest.mark.parametrize("new", [1, 3, 6])
@pytest.mark.parametrize("asked", ["rank", "again", "load", "users"])
def test_an_interrupt_between_any_two_lines_spoils_no_answer(
    exported: Any, tiny_ranker: Ranker, shape: str, asked: str, new: int
) -> None:
    ranker = tiny_ranker if shape == "two blocks" else exported(time_gaps=True).ranker
    history = names(draw(21, seed=4))
    times = [HOUR * place for place in range(21)]
    last: dict[str, Any] = {"times": times[-new:]} if shape == "times" else {}
    saved = ranker.user(history[:-new], **(last and {"times": times[:-new]}))
    saved.rank()
    start, other = saved.save(), ranker.user(history[-new:]).save()
    saved.extend(history[-new:], **last)
    others = ranker.user().load(start)
    others.extend(["i00042"] * new, **last)
    # After a load that was interrupted a user may be nobody, or the one that was loaded first.
    wanted = {21: saved, new: ranker.user(history[-new:]), 0: ranker.user(), 21 - new: others}
    expected = {count: user.rank(ITEMS).scores for count, user in wanted.items()}
    users = ranker.users([[], history[:3]])
    user = users[0]

    def prepare(line: int) -> Callable[[], object]:
        if line > 1:  # what the interrupt before this one left
            scores = expected[len(user)]
            if len(user) == 21 - new:  # what was half added must not count
                add(["i00042"] * new)
            for found in (user.rank(ITEMS), users.rank(ITEMS)[0]):
                difference = np.abs(found.scores - scores).max()
                assert difference < 1e-4, f"line {line - 1}: scores differ by {difference:.1e}"
        user.load(start)
        assert user.save() == start
        return call

    def add(items: list[str]) -> None:
        if new == 1 and not last:
            user.append(items[0])
        else:
            user.extend(items, **last)

    def call() -> None:
        if asked == "load":
            user.load(other)
            user.load(start)
        add(history[-new:])
        if asked == "again":
            user.rank()
        (users if asked == "users" else user).rank()

    assert until_it_ends(prepare) > 60


@pytest.mark.parametrize("filters", ["exclude_seen", "eligible", "both"])
def test_an_interrupt_between_any_two_lines_leaves_no_filter_behind(
    ranker: Ranker, tiny_ranker: Ranker, ids: list[str], filters: str
) -> None:
    some, history = ranker.eligible(ids[20:]), ids[:5]
    options: dict[str, Any] = {"exclude_seen": filters != "eligible"}
    if filters != "exclude_seen":
        options["eligible"] = some
    expected = tiny_ranker.rank(history, k=60).items
    unseen = tiny_ranker.rank(ids[30:32], k=30, exclude=ids[55:]).items

    def prepare(_: int) -> Callable[[], object]:
        assert ranker.rank(history, k=60).items == expected
        assert ranker.rank(ids[30:32], k=30, exclude=ids[55:]).items == unseen
        return lambda: ranker.rank(history, k=30, **options)

    assert until_it_ends(prepare) > 20


# Many users


def test_the_states_of_many_users_are_rows_of_one_array(ranker: Ranker, same_order: Any) -> None:
    users = ranker.users([names(draw(1 + row % 9, seed=row)) for row in range(70)])
    blocks = [np.asarray(users[place]._kept.state.arrays["events"]).base for place in range(70)]
    assert {id(block) for block in blocks[:64]} == {id(blocks[0])}
    assert [len(block) for block in (blocks[0], blocks[69]) if block is not None] == [64, 6]
    for step in range(2):
        for row, found in enumerate(users.rank(5)):
            events = names(draw(1 + row % 9, seed=row)) + step * ["i00007"]
            same_order(found, ranker.rank(events, k=5))
        users.append(["i00007"] * 70)


def test_many_users_have_times(exported: Any, same_order: Any) -> None:
    ranker, events = exported(time_gaps=True).ranker, names(draw(3))
    users = ranker.users([events[:2], events[:1], []], times=[[0, HOUR], None, []])
    users.append([events[2], None, events[0]], times=[2 * HOUR, None, 7])
    asked: list[dict[str, Any]] = [{"times": [0, HOUR, 2 * HOUR]}, {}, {"times": [7]}]
    for count, found, options in zip((3, 1, 1), users.rank(ITEMS), asked, strict=True):
        same_order(found, ranker.rank(events[:count], k=ITEMS, **options))


@pytest.mark.parametrize(
    ("events", "times", "message"),
    [
        ([None], None, "1 items, 1 times, 1 kinds, 2 users"),
        ([None] * 2, [1], "2 items, 1 times, 2 kinds, 2 users"),
        (["i00001", ["x"]], None, r"user 1: item\[0\] is \['x'\] \(list\)"),
        (["i00001", "i00002"], [9, 4], r"user 1: times\[0\] is 4, before the last event, 5"),
    ],
)
def test_what_can_not_be_appended_for_one_is_appended_for_nobody(
    exported: Any, events: Any, times: Any, message: str
) -> None:
    users = exported(time_gaps=True).ranker.users([["i00003"]] * 2, times=[[5], [5]])
    before = [users[place].save() for place in range(2)]
    with pytest.raises(InputError, match=message):
        users.append(events, times=times)
    assert [users[place].save() for place in range(2)] == before


def test_users_in_threads_get_the_serial_answers(ranker: Ranker, ids: list[str]) -> None:
    def follow(start: int) -> list[list[str] | list[int]]:
        user, answers = ranker.user(ids[start : start + 5]), []
        for item in ids[start + 5 : start + 25]:
            user.append(item)
            answers.append(user.rank(8, exclude_seen=True).items)
        return answers

    serial = [follow(start) for start in range(16)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(follow, range(16))) == serial


# Parked users


@pytest.mark.parametrize("length", [0, 1, 12, 13, 50])
@pytest.mark.parametrize("has_ranked", [True, False], ids=["ranked", "not ranked"])
def test_a_saved_user_goes_on_where_it_was(any_model: Any, length: int, has_ranked: bool) -> None:
    user = any_model.ranker.user(["nowhere", *names(draw(length))])
    if has_ranked:
        user.rank()
        user.append("i00009")
        user.rank()
    other = any_model.ranker.users([names(draw(5, seed=9))])[0].load(bytearray(user.save()))
    assert (len(other), other.unknown) == (length + has_ranked, 1)
    assert other.save() == user.save()
    for item in ["", *names(draw(16, seed=8))]:
        other.append(item)
        user.append(item)
        found, expected = other.rank(ITEMS), user.rank(ITEMS)
        assert (found.items, found.unknown) == (expected.items, expected.unknown)
        assert (found.scores == expected.scores).all()


def test_a_saved_user_loads_in_another_ranker(ranker: Ranker, tiny_ranker: Ranker) -> None:
    user = tiny_ranker.user(names(draw(9)))
    expected = user.rank(ITEMS)
    assert ranker.user().load(user.save()).rank(ITEMS).items == expected.items


@pytest.fixture(scope="module")
def saved(tiny_ranker: Ranker) -> bytes:
    user = tiny_ranker.user(names(draw(7)))
    user.rank()
    return user.save()


def assert_refused(user: User, data: Any, message: str) -> None:
    before = user.save()
    with pytest.raises(InputError, match=message):
        user.load(data)
    assert user.save() == before


@pytest.fixture(scope="module")
def other(tiny_ranker: Ranker) -> User:
    """A user that no damaged bytes may change."""
    user = tiny_ranker.user(names(draw(4, seed=3)))
    user.rank()
    return user


def test_a_damaged_user_is_refused(saved: bytes, other: User) -> None:
    for place in np.random.default_rng(0).integers(0, len(saved), 100).tolist():
        damaged = bytearray(saved)
        damaged[place] ^= 1 << place % 8
        for data in (bytes(damaged), saved[:place], saved + bytes(place)):
            if data != saved:
                assert_refused(other, data, r"is damaged|are not a saved user")


NO_USERS: dict[str, tuple[Any, str]] = {
    "nothing": (b"", "these 0 bytes are not a saved user"),
    "older": (b"ranklet user 2\n" + bytes(99), "these 114 bytes are not a saved user"),
    "magic": (MAGIC, "is damaged"),
    "text": ("ranklet user 4\n", "a saved user is bytes, got 'ranklet user 4"),
    "None": (None, "a saved user is bytes, got None"),
}


@pytest.mark.parametrize(("data", "message"), NO_USERS.values(), ids=NO_USERS)
def test_what_is_no_saved_user_is_refused(other: User, data: Any, message: str) -> None:
    assert_refused(other, data, message)


def signed(header: bytes, rest: bytes = b"") -> bytes:
    body = MAGIC + len(header).to_bytes(4, "little") + header + rest
    return body + hashlib.sha256(body).digest()


def forge(saved: bytes, change: Callable[[dict[str, Any], Indices], object]) -> bytes:
    """Change header and numbers of a saved user, and make its digest anew."""
    start = len(MAGIC) + 4
    end = start + int.from_bytes(saved[len(MAGIC) : start], "little")
    header, rest = json.loads(saved[start:end]), saved[end:-DIGEST_BYTES]
    size = 16 * header["counts"][0]
    numbers = np.frombuffer(rest[:size], "<i8").copy().reshape(2, -1)
    change(header, numbers)
    return signed(json.dumps(header).encode(), numbers.tobytes() + rest[size:])


def count(place: int, value: object) -> Callable[[dict[str, Any], Indices], object]:
    """Return a change of one of the counts: events, aside, unknown, encoded, position."""
    return lambda header, _: header["counts"].__setitem__(place, value)


def aside(*events: list[Any]) -> Callable[[dict[str, Any], Indices], object]:
    """Return a change of the events that do not count."""

    def change(header: dict[str, Any], _: Indices) -> None:
        header["aside"], header["counts"][1] = [*events], len(events)

    return change


FORGERIES: dict[str, tuple[Callable[[dict[str, Any], Indices], object], str]] = {
    "item -1": (lambda _, numbers: numbers[0].put(2, -1), f"item outside 1 to {ITEMS}"),
    "item 0": (lambda _, numbers: numbers[0].put(0, 0), f"item outside 1 to {ITEMS}"),
    "item beyond": (lambda _, n: n[0].put(6, ITEMS + 1), f"item outside 1 to {ITEMS}"),
    "since": (lambda _, numbers: numbers[1].put(0, 48), "since outside 0 to 47"),
    "encoded": (count(3, 8), "7 events, "),
    "encoded less": (count(3, 0), "7 events, "),
    "half": (count(3, 6.5), r"counts \[7, 0, 0, 6.5, "),
    "true": (count(0, True), "does not follow the format"),
    "position": (count(4, 10**9), "7 events, "),
    "many events": (count(0, 10**9), "does not follow the format"),
    "very many events": (count(0, 10**30), "does not follow the format"),
    "fewer than none": (count(0, -2), "does not follow the format"),
    "aside": (count(1, 1), "0 events aside"),
    "aside at a time": (aside([0, "x", "now", 0]), "time outside -9223372036854775"),
    "aside at no place": (aside([8, "x", None, 0]), "place outside 0 to 7"),
    "aside out of order": (aside([5, "x", None, 0], [2, "y", None, 0]), "not in order"),
    "aside of no text": (aside([0, "\ud800", None, 0]), "not valid Unicode"),
    "aside of three": (aside([0, "x", None]), "does not follow the format"),
    "state of lists": (lambda header, _: header.update(aside=[[]] * 9), "does not follow"),
    "late": (
        lambda header, _: header.update(times=[2**63] * 7),
        "time outside -9223372036854775",
    ),
    "kind": (lambda header, _: header.update(kinds=[1] * 7), "kind outside 0 to 0"),
    "few kinds": (lambda header, _: header.update(kinds=[0]), "7 times, 1 kinds, 0 events aside"),
    "few times": (lambda header, _: header.update(times=[5]), "1 times, 7 kinds, 0 events aside"),
    "no count": (lambda header, _: header["counts"].pop(), "does not follow the format"),
    "more counts": (lambda header, _: header["counts"].append(1), "does not follow the format"),
    "added": (
        lambda header, _: header.update(added={"61": "x"}),
        "^the saved user has events of add",
    ),
    "another bundle": (lambda header, _: header.update(bundle="0"), "^the saved user belongs to"),
    "no bundle": (lambda header, _: header.pop("bundle"), "does not follow the format"),
}


@pytest.mark.parametrize(("change", "message"), FORGERIES.values(), ids=FORGERIES)
def test_a_user_that_cannot_be_is_refused_whatever_its_digest(
    saved: bytes, other: User, change: Any, message: str
) -> None:
    assert forge(saved, lambda *_: None) == saved
    assert_refused(other, forge(saved, change), message)


def test_a_state_of_another_size_or_not_finite_is_refused(saved: bytes, other: User) -> None:
    whole, not_a_number = saved[:-DIGEST_BYTES], np.array(np.nan, "<f4").tobytes()
    for body in (whole + bytes(4), whole[:-4], whole[:-4] + not_a_number):
        data = body + hashlib.sha256(body).digest()
        assert_refused(other, data, r"does not follow the format: .*(read|buffer|not finite)")


@pytest.mark.parametrize("header", [b"", b"[]", b"{", b"5", b"\xff", b"[" * 10**5], ids=len)
def test_a_header_that_is_none_is_refused(other: User, header: bytes) -> None:
    assert_refused(other, signed(header), "does not follow the format")


def test_a_user_of_another_bundle_is_refused(saved: bytes, exported: Any) -> None:
    user = exported(time_gaps=True).ranker.user(names(draw(3)))
    assert_refused(user, saved, "belongs to another bundle: start it again")


@pytest.mark.parametrize("take", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
def test_a_copy_of_a_user_goes_on_alone(tiny_ranker: Ranker, take: Any, saved: bytes) -> None:
    user = tiny_ranker.user().load(saved)
    expected, other = user.rank(ITEMS), take(user)
    other.append("i00004")
    assert other.rank(ITEMS).items != expected.items
    assert (len(user), user.rank(ITEMS).items) == (7, expected.items)


@pytest.mark.parametrize("has_ranked", [True, False])
@pytest.mark.parametrize("take", [copy.copy, copy.deepcopy])
def test_copied_users_go_on_alone(tiny_ranker: Ranker, take: Any, has_ranked: bool) -> None:
    users = tiny_ranker.users([["i00001", "i00002"], [], ["i00003"]])
    expected = [
        ranking.items for ranking in tiny_ranker.users([["i00001", "i00002"], [], []]).rank(ITEMS)
    ]
    if has_ranked:
        users.rank()
    others = take(users)
    others.append(["i00004", "i00005", None])
    alone = tiny_ranker.users([["i00001", "i00002", "i00004"], ["i00005"], ["i00003"]])
    assert [r.items for r in others.rank(ITEMS)] == [r.items for r in alone.rank(ITEMS)]
    users[2].append("i00006")
    assert len(others[2]) == 1
    assert [ranking.items for ranking in users.rank(ITEMS)][:2] == expected[:2]


def test_a_user_is_not_pickled(other: User) -> None:
    with pytest.raises(TypeError, match=r"save\(\) gives bytes"):
        pickle.dumps(other)


def test_users_are_not_pickled(tiny_ranker: Ranker) -> None:
    with pytest.raises(TypeError, match=r"users\[place\]\.save\(\) gives bytes"):
        pickle.dumps([tiny_ranker.users([[]])])


def test_a_filter_is_not_pickled_and_its_copy_is_itself(tiny_ranker: Ranker) -> None:
    eligible = tiny_ranker.eligible(["i00001"])
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="pickle its ids, and make it anew"):
            pickle.dumps({"filter": eligible}, protocol)
    assert copy.copy(eligible) is copy.deepcopy([eligible])[0] is eligible


def test_a_ranking_is_pickled_and_copied(tiny_ranker: Ranker) -> None:
    ranking = tiny_ranker.rank(["i00001"])
    for other in (pickle.loads(pickle.dumps(ranking)), copy.deepcopy(ranking)):
        assert other.items == ranking.items
        assert other.scores.tolist() == ranking.scores.tolist()
        assert other.exact == ranking.exact
