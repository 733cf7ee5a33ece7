"""Titles of a catalogue: names of items for people, read at first use."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from ranklet.bundle.folder import Opened, read_titles
from ranklet.bundle.manifest import TITLE_FILES, Manifest
from ranklet.bundle.vocabulary import ItemId, Vocabulary
from ranklet.errors import InputError
from ranklet.values import flat, show


class Titles:
    """The titles of an opened bundle, which may have none."""

    def __init__(self, opened: Opened, manifest: Manifest, vocabulary: Vocabulary) -> None:
        """Read nothing yet."""
        self._opened, self._manifest, self._vocabulary = opened, manifest, vocabulary

    def __deepcopy__(self, _: object) -> "Titles":
        """Return itself: copies of a ranking share their titles."""
        return self

    def of(self, items: Sequence[ItemId]) -> list[str]:
        """Return the title of each item, or its id if it has none."""
        titles, ids = self._all, flat(items, "items")
        if titles is None:
            return [str(item) for item in ids]
        indices = self._vocabulary.index(ids, "items").tolist()
        pairs = zip(ids, indices, strict=True)
        return [titles[index - 1] or str(item) if index else str(item) for item, index in pairs]

    def find(self, text: str) -> list[str] | list[int]:
        """Return the ids of items whose title contains ``text``, ignoring case."""
        if not isinstance(text, str):
            raise InputError(f"text is {show(text)}; pass a part of a title")
        part = text.casefold()
        places = [i for i, title in enumerate(self._all or [], 1) if part in title.casefold()]
        return self._vocabulary.ids(np.array(places, dtype=np.int64))

    @cached_property
    def _all(self) -> Sequence[str] | None:
        with self._opened.unchanged(*TITLE_FILES) as folder:
            return read_titles(folder, self._manifest)
