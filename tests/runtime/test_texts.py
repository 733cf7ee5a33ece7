"""Ids and titles of a large catalogue stay in their file, and are found there as in a dict."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranklet import BundleError, InputError, Manifest, Ranker
from ranklet import bundle as bundle_module
from ranklet import vocabulary as vocabulary_module
from ranklet.bundle import read_vocabulary
from ranklet.vocabulary import Texts, Vocabulary


def texts_of(ids: list[str]) -> Texts:
    """Return sorted ids as one blob."""
    encoded = [text.encode() for text in ids]
    ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
    return Texts(memoryview(b"".join(encoded)), ends.data)


@pytest.fixture(scope="module")
def mapped(tiny_bundle: Path) -> Any:
    """The tiny bundle, whose few texts are treated as too many for memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle_module, "TEXTS_IN_MEMORY", 0)
        ranker = Ranker.load(tiny_bundle, provider="cpu")
        assert ranker.titles(["nowhere"]) == ["nowhere"]  # reads the titles
    assert isinstance(ranker.vocabulary.all_ids, Texts)
    return ranker


sorted_ids = st.sets(st.text(max_size=6), min_size=1, max_size=40).map(
    lambda ids: sorted(ids, key=str.encode)
)


@given(ids=sorted_ids, others=st.lists(st.text(max_size=6)))
def test_every_id_is_found_and_no_other(ids: list[str], others: list[str]) -> None:
    index_of = {text: place for place, text in enumerate(ids, 1)}
    texts = texts_of(ids)
    for text in [*ids, *others, *ids]:
        assert texts.get(text) == index_of.get(text)


@given(ids=sorted_ids)
def test_texts_are_a_sequence(ids: list[str]) -> None:
    texts = texts_of(ids)
    assert list(texts) == ids
    assert len(texts) == len(ids)
    assert (texts[0], texts[-1]) == (ids[0], ids[-1])
    assert texts[: len(ids) // 2] == ids[: len(ids) // 2]
    with pytest.raises(IndexError, match="out of range"):
        texts[len(ids)]


def test_what_is_remembered_does_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary_module, "REMEMBERED", 5)
    ids = [f"{number:03}" for number in range(100)]
    texts = texts_of(ids)
    for _ in range(2):
        assert [texts.get(text) for text in ids] == list(range(1, 101))
        assert len(texts._found) <= 5


@pytest.mark.parametrize("value", [None, 5, 5.0, b"a", ["a"], "\ud800"], ids=repr)
def test_what_is_no_text_is_named_as_in_a_small_catalogue(value: Any) -> None:
    small, large = Vocabulary(["a", "b"]), Vocabulary(texts_of(["a", "b"]))
    for vocabulary in (small, large):
        with pytest.raises(InputError, match=r"history\[1\] is "):
            vocabulary.index(["a", value])


def test_a_large_catalogue_ranks_as_a_small_one(
    mapped: Ranker, tiny_ranker: Ranker, ids: list[str]
) -> None:
    for history in (ids[:5], [*ids[:3], "nowhere"], [], ids[::-1]):
        found, expected = mapped.rank(history, k=60), tiny_ranker.rank(history, k=60)
        assert found.items == expected.items
        assert (found.unknown, found.cold) == (expected.unknown, expected.cold)
    assert mapped.rank(ids[:5], candidates=ids[9:3:-1]).items == (
        tiny_ranker.rank(ids[:5], candidates=ids[9:3:-1]).items
    )


def test_titles_of_a_large_catalogue_are_found(
    mapped: Ranker, tiny_ranker: Ranker, ids: list[str]
) -> None:
    assert mapped.titles([*ids, "nowhere"]) == tiny_ranker.titles([*ids, "nowhere"])
    text = tiny_ranker.titles([ids[7]])[0].upper()
    assert mapped.find(text) == tiny_ranker.find(text) == [ids[7]]


def test_bytes_that_are_no_text_are_named_when_they_are_shown() -> None:
    texts = Texts(memoryview(b"a\xff"), np.array([1, 2]).data)
    assert texts[0] == "a"
    with pytest.raises(BundleError, match="text 1 of the catalogue is not UTF-8"):
        Vocabulary(texts).ids(np.array([1, 2]))


@pytest.mark.parametrize("shift", [1, -1], ids=["past the end", "short of the end"])
def test_wrong_ends_of_a_large_catalogue_are_refused(
    shift: int, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_module, "TEXTS_IN_MEMORY", 0)
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    ends = np.load(bundle / "items.offsets.npy")
    np.save(bundle / "items.offsets.npy", ends + shift)
    with pytest.raises(BundleError, match="do not fit together"):
        read_vocabulary(bundle, Manifest.read(bundle, check_digests=False))
