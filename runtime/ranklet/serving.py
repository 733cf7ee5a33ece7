"""Serving: a bundle and its catalogue, everything that answers a request, replaced as one."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ranklet.answer import Answers
from ranklet.attributes import Attributes
from ranklet.bundle.folder import Opened, read_vocabulary
from ranklet.bundle.manifest import FILE_NAMES, Manifest
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
        cls, owner: object, path: Path, provider: Provider, threads: int, *, check_digests: bool
    ) -> "Serving":
        """Open a bundle, see ``Ranker.load``; ``owner`` is the ranker."""
        opened = Opened(path)
        with opened.unchanged(*FILE_NAMES) as folder:
            manifest = Manifest.read(folder, check_digests=check_digests)
            opened.files = manifest.files
            engine = Engine(opened, manifest, provider, threads)
            vocabulary = read_vocabulary(folder, manifest)
            attributes = Attributes.read(folder, manifest)
        return cls.of(owner, opened, manifest, engine, vocabulary, attributes)

    @classmethod
    def of(cls, owner, opened, manifest, engine, vocabulary, attributes) -> "Serving":
        nothing = np.zeros(0, dtype=np.float32)
        added = Added(nothing.reshape(0, manifest.width), nothing, np.zeros(0), in_histories=False)
        catalogue = Catalogue(
            owner=owner,
            vocabulary=vocabulary,
            table=engine.table,
            titles=Titles(opened, manifest, vocabulary),
            attributes=attributes,
            added=added,
            own=Bias.of(engine.bias, nothing),
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
