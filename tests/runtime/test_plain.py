"""A history that is cut into chunks gets the answer of the whole one."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ranklet import Ranker, Ranking
from ranklet import plain as plain_module
from ranklet.bundle import PLAIN, describe_files
from ranklet.plain import Layout
from ranklet_export.export import Settings

WINDOW, LONGEST = 5, 40
SHAPES: dict[str, dict[str, Any]] = {
    "two heads": {},
    "one head, gated": {"heads": 1, "block": "gated", "scoring": "dot"},
}
# Sums of a chunk are made in the order of those of the whole. What still differs now and then is
# the last bit of one of them, and weights of 0.2 make more of it.
LAST_BITS = 1e-5
Same = Callable[..., None]


@pytest.fixture(scope="module", params=SHAPES)
def made(request: pytest.FixtureRequest, exported: Callable[..., Any]) -> Iterator[Any]:
    """A bundle whose histories are cut into chunks of 4, from 16 events on."""
    shape = {"attention_window": WINDOW, "max_length": LONGEST, **SHAPES[request.param]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain_module, "CHUNK_EVENTS", 4)
        yield exported(Settings(precision="int8"), **shape)


@pytest.fixture
def ids(made: Any) -> list[str]:
    return [str(item) for item in made.ranker.vocabulary.all_ids]


def drawn(ids: list[str], length: int, seed: int = 0) -> list[str]:
    return [ids[place] for place in np.random.default_rng(seed).integers(0, len(ids), length)]


# How a history is cut


@given(length=st.integers(1, 3000), window=st.integers(0, 300))
def test_every_event_lies_in_one_chunk_beside_all_that_it_may_see(length: int, window: int) -> None:
    chunks, events, visible = Layout.of(length, window)
    assert chunks * events >= length > (chunks - 1) * events
    if chunks > 1:
        assert visible - events >= window - 1  # of the first event of a chunk
        assert 2 * visible <= length
    else:
        assert (events, visible) == (length, length)


@pytest.mark.parametrize(
    ("length", "window", "expected"),
    [
        (95, 32, (1, 95, 95)),
        (96, 32, (6, 16, 48)),
        (200, 32, (13, 16, 48)),
        (200, 33, (13, 16, 48)),
        (200, 34, (13, 16, 64)),
        (200, 1, (13, 16, 16)),
        (200, 200, (1, 200, 200)),
        (200, 0, (1, 200, 200)),
    ],
)
def test_long_histories_are_cut(length: int, window: int, expected: tuple[int, int, int]) -> None:
    assert Layout.of(length, window) == expected


def test_masks_show_what_a_window_does(made: Any) -> None:
    graphs, length = made.ranker.graphs, 22
    chunks, events, visible = layout = Layout.of(length, WINDOW)
    assert layout == (6, 4, 8)
    first, last = graphs.chunk_masks(length, *layout)
    assert first.shape == (chunks, 1, events, visible)
    for chunk, row, column in np.ndindex(chunks, events, visible):
        event, seen = chunk * events + row, chunk * events + column - (visible - events)
        is_hidden = not (seen >= 0 and 0 <= event - seen < WINDOW)
        hidden = graphs._manifest.masks[0].hidden
        assert first[chunk, 0, row, column] == (hidden if is_hidden else 0), (event, seen)
    whole = graphs._masks_of_one(0, 0, length)["mask_1"]
    assert np.array_equal(last[..., :length], whole)
    assert (last[..., length:] == graphs._manifest.masks[1].hidden).all()


# What it answers


def assert_as_whole(found: Ranking, expected: Ranking, same_order: Same) -> None:
    same_order(found, expected, LAST_BITS)
    assert (found.unknown, found.cold) == (expected.unknown, expected.cold)


@pytest.mark.parametrize("k", [1, 10])
def test_every_length_ranks_as_in_a_batch(
    made: Any, ids: list[str], same_order: Same, k: int
) -> None:
    for length in range(1, LONGEST + 2):
        history = drawn(ids, length, seed=length)
        (expected,) = made.ranker.rank_batch([history], k=k)
        assert_as_whole(made.ranker.rank(history, k=k), expected, same_order)


def test_every_length_ranks_as_torch(made: Any, ids: list[str]) -> None:
    table = made.model.table()
    for length in range(1, LONGEST + 1):
        history = drawn(ids, length, seed=length)
        found = made.ranker.rank(history, k=len(ids))
        indices = torch.from_numpy(made.ranker.vocabulary.index(history))[None]
        scores = (made.model.serve(indices, table) @ table[1:].T)[0].numpy()
        shown = made.ranker.vocabulary.index(found.items) - 1
        assert np.abs(found.scores - scores[shown]).max() < 1e-4, length


@settings(deadline=None)
@given(
    length=st.integers(16, LONGEST + 5),
    k=st.integers(1, 12),
    exclude_seen=st.booleans(),
    chosen=st.none() | st.sets(st.integers(0, 59), min_size=50),
    seed=st.integers(0, 2**16),
)
def test_any_request_ranks_as_in_a_batch(
    made: Any,
    same_order: Same,
    length: int,
    k: int,
    exclude_seen: bool,
    chosen: set[int] | None,
    seed: int,
) -> None:
    ranker: Ranker = made.ranker
    ids = [str(item) for item in ranker.vocabulary.all_ids]
    history = drawn(ids[: 10 + seed % 50], length, seed)
    history.insert(seed % len(history), "nowhere")
    options: dict[str, Any] = {"k": k, "exclude_seen": exclude_seen}
    if chosen is not None:
        options["eligible"] = ranker.eligible([ids[place] for place in chosen])
    (expected,) = ranker.rank_batch([history], **options)
    for _ in range(2):  # the second on arrays that the first left
        found = ranker.rank(history, **options)
        assert_as_whole(found, expected, same_order)
        assert not (exclude_seen and set(found.items) & set(history))


def test_what_one_request_excludes_the_next_may_get(made: Any, ids: list[str]) -> None:
    first, second = ids[:20], ids[20:40]
    expected = made.ranker.rank_batch([second], exclude_seen=True)[0]
    made.ranker.rank(first, exclude_seen=True)
    found = made.ranker.rank(second, exclude_seen=True)
    assert found.items == expected.items
    assert set(found.items) & set(first)


def test_what_lies_before_the_window_still_counts(made: Any, ids: list[str]) -> None:
    history = drawn(ids, 30)
    other = [ids[0] if history[0] != ids[0] else ids[1], *history[1:]]
    found, changed = (made.ranker.rank(h).scores.tolist() for h in (history, other))
    assert found != changed


# Where there is no plain.onnx


def test_a_bundle_without_it_ranks_alike(
    made: Any, ids: list[str], same_order: Same, sign: Any, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for path in made.ranker._opened.folder.iterdir():
        if path.name != PLAIN:
            (bundle / path.name).write_bytes(path.read_bytes())
    sign(bundle, made.ranker.manifest)
    assert PLAIN not in describe_files(bundle)
    other = Ranker.load(bundle, provider="cpu")
    for length in (1, 15, 16, 30, LONGEST):
        history = drawn(ids, length)
        for seen in (False, True):
            found, expected = (
                ranker.rank(history, k=5, exclude_seen=seen) for ranker in (other, made.ranker)
            )
            assert_as_whole(found, expected, same_order)


@pytest.mark.parametrize(
    ("how", "shape"),
    [
        (Settings(compact=True), {}),
        (Settings(opset=22), {}),
        (Settings(), {"blocks": 1}),
        (Settings(), {"blocks": 3}),
        (Settings(), {"time_gaps": True}),
    ],
    ids=["compact", "old opset", "one block", "three blocks", "times"],
)
def test_some_bundles_have_none(
    exported: Callable[..., Any], how: Settings, shape: dict[str, Any]
) -> None:
    ranker = exported(how, **shape).ranker
    assert PLAIN not in ranker.manifest.files
    assert len(ranker.rank([str(item) for item in ranker.vocabulary.all_ids[:5]]).items) == 10
