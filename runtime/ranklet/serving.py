"""Serving: a bundle and its catalogue, everything that answers a request, replaced as one."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ranklet.answer import Answers
from ranklet.attributes import Attributes
from ranklet.bundle.folder import Opened, read_silent, read_vocabulary
from ranklet.bundle.graph import check_graphs
from ranklet.bundle.manifest import FILE_NAMES, HASHED_FIRST, SILENT, WEIGHTS, Manifest
from ranklet.bundle.vocabulary import Vocabulary
from ranklet.catalogue import Added, Bias, Catalogue
from ranklet.engine.engine import Engine
from ranklet.engine.sessions import Provider
from ranklet.request import Reader
from ranklet.titles import Titles


@dataclass(frozen=True, eq=False)
class Serving:
    """An opened bundle with its catalogue; nothing of it changes."""

    opened: Opened
    manifest: Manifest
    engine: Engine
    catalogue: Catalogue
    reader: Reader
    answers: Answers

    @classmethod
    def open(
        cls, path: Path, provider: Provider, threads: int, *, owner: object, check_digests: bool
    ) -> "Serving":
        """Open a bundle, see ``Ranker.load``; ``owner`` is what its filters belong to."""
        opened = Opened(path)
        with opened.unchanged(*FILE_NAMES) as folder:
            manifest = Manifest.read(folder, check_digests=check_digests, hash_up_to=HASHED_FIRST)
            opened.files = manifest.files
            is_small = manifest.files[WEIGHTS].size <= HASHED_FIRST
            check_graphs(folder, manifest, with_weights=check_digests and is_small)
            with manifest.hashing_large(folder) if check_digests else nullcontext():
                engine = Engine(opened, manifest, provider, threads)
                vocabulary = read_vocabulary(folder, manifest)
                attributes = Attributes.read(folder, manifest)
        return cls.start(opened, manifest, engine, vocabulary, attributes, owner)

    @classmethod
    def start(
        cls,
        opened: Opened,
        manifest: Manifest,
        engine: Engine,
        vocabulary: Vocabulary,
        attributes: Attributes,
        owner: object,
    ) -> "Serving":
        """Serve a bundle as it is, without added items."""
        nothing = np.zeros(0, dtype=np.float32)
        added = Added(nothing.reshape(0, manifest.width), nothing, np.zeros(0))
        titles = Titles(opened, manifest, vocabulary)
        own = Bias(engine.bias, nothing, manifest.items, 0, has_boosts=False)
        if engine.has_own_bias:
            own = Bias.of(engine.bias, nothing)
        with opened.unchanged(SILENT) as folder:
            silent = read_silent(folder, manifest)
        catalogue = Catalogue(
            owner, vocabulary, engine.table, titles, attributes, added, own, silent
        )
        return cls._with(opened, manifest, engine, catalogue)

    @classmethod
    def _with(
        cls, opened: Opened, manifest: Manifest, engine: Engine, catalogue: Catalogue
    ) -> "Serving":
        reader = Reader(catalogue, manifest)
        answers = Answers(engine, manifest, catalogue, opened)
        return cls(opened, manifest, engine, catalogue, reader, answers)

    def changed(self, catalogue: Catalogue) -> "Serving":
        """Return the same bundle with another catalogue."""
        return self._with(self.opened, self.manifest, self.engine, catalogue)


@dataclass
class Current:
    """The serving of a ranker at present, for everyone who must follow it."""

    serving: Serving
