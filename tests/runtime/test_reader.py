"""What a request becomes, beside a slow reading of it: indices, gaps, kinds, filters."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ranklet import InputError, Manifest, Ranker
from ranklet.catalogue import Catalogue
from ranklet.engine.engine import NONE
from ranklet.request import Reader, Request, beside
from ranklet.serving import Serving
from ranklet.time_gaps import UNKNOWN

ITEMS, ADDED, LENGTH = 60, 5, 12
SILENT = {3, 7, 8, 62}
KINDS = ["buy", "cart", "view"]


def grown(path: Path, added: int) -> Serving:
    """Serve a bundle with some items more."""
    ranker = Ranker.load(path, provider="cpu")
    vectors = np.random.default_rng(0).normal(size=(added, ranker.manifest.width))
    ranker.add_items([{"item_id": f"x{number}"} for number in range(added)], vectors=vectors)
    return ranker._serving


@pytest.fixture(scope="module")
def served(exported: Callable[..., Any]) -> tuple[Catalogue, Manifest]:
    """A model with times and kinds, five added items and four that do not count as events."""
    serving = grown(exported(time_gaps=True, kinds="use").ranker.path, ADDED)
    silent = np.isin(np.arange(ITEMS + ADDED + 1), list(SILENT))
    return replace(serving.catalogue, silent=silent), serving.manifest


@pytest.fixture
def reader(served: tuple[Catalogue, Manifest]) -> Reader:
    return Reader(*served)


def bucket(gap: int) -> int:
    return min(1 + math.floor(math.log2(1 + max(gap, 0))), 47)


def test_a_request_holds_what_a_slow_reading_finds(reader: Reader) -> None:
    rng = np.random.default_rng(0)
    ids = ["", *(str(item) for item in reader.vocabulary.all_ids)]
    for _ in range(400):
        places = rng.integers(0, len(ids), rng.integers(0, 20)).tolist()
        times = sorted(rng.integers(0, 10**6, len(places)).tolist())
        kinds = rng.integers(0, 4, len(places)).tolist()
        wanted, dropped, shown = (rng.integers(0, len(ids), 9).tolist() for _ in range(3))
        has_times, has_now, has_kinds, exclude_seen = (rng.random(4) < 0.7).tolist()
        now = times[-1] + int(rng.integers(0, 999)) if times else 0
        found = reader.read(
            [ids[place] for place in places],
            times if has_times else None,
            now if has_times and has_now else None,
            [ids[place] for place in wanted],
            {ids[place] for place in dropped},
            exclude_seen,
            demoted={ids[place] for place in shown},
            kinds=[[None, *KINDS][kind] for kind in kinds] if has_kinds else None,
        )
        counts = [n for n, place in enumerate(places) if place and place not in SILENT]
        latest = counts[-LENGTH:]
        known = {place for place in places if place}
        assert found.unknown == places.count(0)
        excluded = (known if exclude_seen else set()) | {place for place in dropped if place}
        assert set(found.excluded.tolist()) == excluded
        assert found.candidates is not None
        assert found.candidates.tolist() == sorted({*wanted} - excluded - {0})
        assert set(found.demoted.tolist()) == {*shown} - {0}
        if not counts:
            assert found.history is None
            continue
        assert found.history is not None
        items = [places[n] for n in latest]
        assert found.history.items.tolist() == items
        gaps = [bucket(times[b] - times[a]) for a, b in pairwise(counts)]
        since = [UNKNOWN, *gaps][-LENGTH:] if has_times else []
        assert found.history.since.tolist() == since
        until = bucket(now - times[counts[-1]]) if has_times and has_now else UNKNOWN
        assert found.history.until == until
        assert found.history.kinds.tolist() == ([kinds[n] for n in latest] if has_kinds else [])
        rows = found.history.rows
        assert (rows is None) == (max(items) <= ITEMS)
        if rows is not None:
            np.testing.assert_array_equal(rows, reader.catalogue.rows(np.array(items)))


def test_nothing_is_filtered_where_nothing_was_asked(reader: Reader) -> None:
    found = reader.read(["i00001"])
    assert found.candidates is None
    assert (found.excluded.size, found.demoted.size, found.unknown) == (0, 0, 0)
    assert found.history is not None
    assert (found.history.until, found.history.objective, found.history.rows) == (0, None, None)
    assert reader.read(["i00001"], exclude=["i00002"]).candidates is None
    none = reader.read(["i00001"], candidates=[]).candidates
    assert none is not None
    assert none.tolist() == []


def test_one_added_item_has_its_row(tiny_bundle: Path) -> None:
    serving = grown(tiny_bundle, 1)
    reader = Reader(replace(serving.catalogue, silent=None), serving.manifest)
    history = reader.read(["i00001", "x0"]).history
    assert history is not None
    assert history.rows is not None
    assert history.rows.shape[0] == len(history.items) == 2


@pytest.mark.parametrize("default", [True, False])
def test_seen_items_are_excluded_as_the_bundle_says_if_nothing_is_asked(
    served: tuple[Catalogue, Manifest], default: bool
) -> None:
    catalogue, manifest = served
    reader = Reader(catalogue, replace(manifest, exclude_seen=default))
    assert reader.excludes_seen(None) is default
    assert reader.excludes_seen(True) is reader.excludes_seen(np.bool_(True)) is True  # type: ignore[arg-type]
    assert reader.excludes_seen(False) is False
    with pytest.raises(InputError, match=r"^exclude_seen must be True or False, got 'no'$"):
        reader.excludes_seen("no")  # type: ignore[arg-type]


def test_a_bundle_of_order_alone_says_so(tiny_ranker: Ranker) -> None:
    words = "^this bundle does not use times: its model was trained on order alone$"
    for ask in (
        lambda reader: reader.read([], [], None),
        lambda reader: reader.read([], now=5),
        lambda reader: reader.instants([], 0, "times"),
        lambda reader: reader.until(5, 5),
    ):
        with pytest.raises(InputError, match=words):
            ask(tiny_ranker._serving.reader)


def test_items_that_lose_points_are_named_alone_and_may_be_a_set(reader: Reader) -> None:
    with pytest.raises(InputError, match=r"^seen_recently\[1\] is 5 \(int\)"):
        reader.demoted(["", 5])
    assert reader.demoted({"i00001"}).tolist() == reader.demoted(["x", "i00001"]).tolist() == [2]


def test_a_request_demotes_nothing_by_default() -> None:
    assert Request(None, 0, NONE, None).demoted.size == 0


def test_an_objective_goes_with_the_history(reader: Reader) -> None:
    weights = np.ones(4, dtype=np.float32)
    found = reader.read(["i00001"], objective=weights)
    assert found.history is not None
    assert found.history.objective is weights


def test_times_of_items_that_do_not_count_are_checked_and_their_now_is_too(reader: Reader) -> None:
    assert reader.read(["i00002"], [5], 6).history is None
    with pytest.raises(InputError, match=r"^now is 'soon' \(str\)"):
        reader.read(["i00002"], [5], "soon")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^times has 1 times for 2 events: pass one for each$"):
        reader.read(["i00002", "i00003"], [5])


PLACES: dict[str, tuple[dict[str, Any], str]] = {
    "history": ({"history": [5]}, r"histories\[3\]\[0\] is 5 \(int\)"),
    "exclude": ({"exclude": ["", 5]}, r"exclude\[3\]\[1\] is 5 \(int\)"),
    "candidates": ({"candidates": [5]}, r"candidates\[3\]\[0\] is 5 \(int\)"),
    "unknown candidates": (
        {"candidates": ["i00001", "x"], "unknown": "error"},
        r"candidates\[3\]\[1\] is 'x', which the catalogue does not have",
    ),
    "demoted": ({"demoted": ["", 5]}, r"seen_recently\[3\]\[1\] is 5 \(int\)"),
    "kinds": ({"history": [""], "kinds": ["sale"]}, r"kinds\[3\]\[0\] is 'sale', and the kinds"),
    "number of kinds": ({"kinds": ["buy"]}, r"kinds\[3\] has 1 kinds for 0 events: pass one"),
    "times": (
        {"history": ["", ""], "times": [7, 6]},
        r"times\[3\]\[1\] is 6, before times\[3\]\[0\], 7: pass events oldest first$",
    ),
    "number of times": ({"times": [5]}, r"times\[3\] has 1 times for 0 events: pass one for each$"),
    "now": (
        {"history": ["i00001"], "times": [7], "now": 6},
        r"now\[3\] is 6, before the last event of histories\[3\], 7$",
    ),
    "now as text": ({"times": [], "now": "x"}, r"now\[3\] is 'x' \(str\)"),
    "now alone": ({"now": 6}, r"now was given without times\[3\]: it counts from the last event$"),
}


@pytest.mark.parametrize(("values", "message"), PLACES.values(), ids=PLACES)
def test_a_wrong_value_of_a_batch_is_named_with_its_row(
    reader: Reader, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        reader.read(**{"history": [], "name": "histories[3]", **values})


@pytest.mark.parametrize(
    ("name", "expected"),
    [("history", "times"), ("histories[3]", "times[3]"), ("user 5: history", "user 5: times")],
)
def test_another_argument_has_the_place_of_its_history(name: str, expected: str) -> None:
    assert beside(name, "times") == expected


def test_equal_times_are_in_order_and_the_first_that_falls_is_named(reader: Reader) -> None:
    assert reader.instants([5, 5, 9], 3, "times", last=5).tolist() == [5, 5, 9]
    assert reader.instants([], 0, "times", last=5).tolist() == []
    message = r"^times\[2\] is 6, before times\[1\], 7: pass events oldest first$"
    with pytest.raises(InputError, match=message):
        reader.instants([5, 7, 6, 4], 4, "times")
    message = r"^times\[0\] is 4, before the last event, 5: pass events oldest first$"
    with pytest.raises(InputError, match=message):
        reader.instants([4, 6], 2, "times", last=5)


def test_the_present_may_be_the_time_of_the_last_event(reader: Reader) -> None:
    assert reader.until(5, 5) == bucket(0)
    assert reader.until(8, 5) == bucket(3)
    with pytest.raises(InputError, match=r"^now is 4, before the last event, 5$"):
        reader.until(4, 5)


SECOND = 1_700_000_000


def test_a_time_of_our_age_in_another_unit_is_refused(
    served: tuple[Catalogue, Manifest],
) -> None:
    catalogue, manifest = served
    data = {**manifest.data, "reading": {"time_unit": "ms", "checked_unit": "ms"}}
    reader = Reader(catalogue, replace(manifest, data=data))
    message = (
        rf" holds {SECOND}, which is in s by its size; the times of this bundle are in ms since "
        "1970: convert them$"
    )
    for wrong in ([SECOND, 10**18], [5, SECOND]):
        with pytest.raises(InputError, match=f"^times{message}"):
            reader.instants(wrong, 2, "times")
    with pytest.raises(InputError, match=f"^now{message}"):
        reader.until(SECOND, 5)
    good = [5, SECOND * 1000]
    assert reader.instants(good, 2, "times").tolist() == good
    assert Reader(*served).instants([5, SECOND], 2, "times").tolist() == [5, SECOND]
