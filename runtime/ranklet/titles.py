"""Titles of a catalogue: names of items for people, read at first use."""

from collections.abc import Mapping, Sequence

import numpy as np

from ranklet.bundle.folder import Opened, read_titles
from ranklet.bundle.manifest import TITLE_FILES, Manifest
from ranklet.bundle.vocabulary import ItemId, Vocabulary
from ranklet.errors import InputError
from ranklet.forks import cached_property
from ranklet.values import flat, plain, show


class Titles:
    """The titles of an opened bundle, which may have none."""

    def __init__(
        self,
        opened: Opened,
        manifest: Manifest,
        vocabulary: Vocabulary,
        changed: Mapping[int, str] | None = None,
    ) -> None:
        """Read nothing yet; ``changed`` are titles by index that take the place of the bundle's."""
        self._opened, self._manifest, self._vocabulary = opened, manifest, vocabulary
        self.changed = dict(changed or {})

    def __deepcopy__(self, _: object) -> "Titles":
        """Return itself: copies of a ranking share their titles."""
        return self

    def with_titles(self, vocabulary: Vocabulary, changed: Mapping[int, str]) -> "Titles":
        """Return other titles of some items of a grown vocabulary."""
        return Titles(self._opened, self._manifest, vocabulary, {**self.changed, **changed})

    def of(self, items: Sequence[ItemId]) -> list[str]:
        """Return the title of each item, or its id if it has none."""
        ids = flat(items, "items")
        indices = self._vocabulary.index(ids, "items").tolist()
        return [self._at(i) or str(plain(item)) for item, i in zip(ids, indices, strict=True)]

    def find(self, text: str) -> list[str] | list[int]:
        """Return the ids of items whose title contains ``text``, ignoring case."""
        text = plain(text)
        if type(text) is not str:
            raise InputError(f"text is {show(text)}; pass a part of a title")
        part, titles = text.casefold(), enumerate(self._of_bundle or [], 1)
        found = {i for i, title in titles if i not in self.changed and part in title.casefold()}
        found |= {i for i, title in self.changed.items() if part in title.casefold()}
        return self._vocabulary.ids(np.array(sorted(found), dtype=np.int64))

    def _at(self, index: int) -> str:
        """Return the title of an index, empty if it has none."""
        if index in self.changed:
            return self.changed[index]
        titles = self._of_bundle or []
        return titles[index - 1] if 0 < index <= len(titles) else ""

    @cached_property
    def _of_bundle(self) -> Sequence[str] | None:
        with self._opened.unchanged(*TITLE_FILES) as folder:
            return read_titles(folder, self._manifest)
