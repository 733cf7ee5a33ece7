"""The programs of a bundle as sessions of onnxruntime, loaded when they are first needed."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from threading import RLock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ranklet.bundle.folder import Opened, map_table
from ranklet.bundle.manifest import ENCODE, WEIGHTS, Manifest, Tensor
from ranklet.engine import memory
from ranklet.engine.runs import Device
from ranklet.engine.sessions import Provider, create_session
from ranklet.errors import BundleError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

# Bytes of weights from which on memory pages matter, and from which on lookups could fill memory;
# after so many looked-up rows (each maps up to 2 MiB) they are forgotten.
LARGE_WEIGHTS, HUGE_WEIGHTS, MOST_LOOKUPS = 1 << 26, 1 << 30, 256


class Programs:
    """The sessions of a bundle, and its item table.

    Attributes:
        provider: Where they run.
        table: The rows of the items, (items + 1, D), mapped.
        mapped: Where a lookup brings a huge table into memory; empty for others.
    """

    def __init__(
        self, opened: Opened, manifest: Manifest, provider: Provider, threads: int
    ) -> None:
        """Load encode.onnx, which decides where all of them run, see ``Ranker.load``."""
        self.manifest = manifest
        self._opened, self._threads = opened, threads
        self._loading = RLock()
        self._sessions: dict[str, InferenceSession] = {}  # while they live, so do their mappings
        self.mapped: list[memory.Region] = []  # where a lookup brings a huge table into memory
        self._lookups = 0
        self._size = manifest.files[WEIGHTS].size
        session, self.provider = self._load(ENCODE, provider)
        self._sessions[ENCODE] = session
        with self._mapping():
            self.table: NDArray[np.floating] = map_table(opened.folder, manifest)

    def session(self, name: str) -> "InferenceSession":
        """Return the session of a program; two threads do not load one at once."""
        session = self._sessions.get(name)
        if session is None:
            with self._loading:
                session = self._sessions.get(name)
                if session is None:
                    session, _ = self._load(name, self.provider)
                    self._sessions[name] = session
        return session

    def count_lookups(self, rows: int) -> None:
        """Forget the pages of a huge table before the rows that were looked up become many."""
        self._lookups += rows
        if self._lookups > MOST_LOOKUPS:
            memory.forget_pages(self.mapped)
            self._lookups = 0

    def _load(self, name: str, provider: Provider) -> "tuple[InferenceSession, Device]":
        """Return the session of a program, with as little memory as it can do with."""
        program = self.manifest.programs[name]
        weights = str((self._opened.folder / WEIGHTS).resolve())
        before = memory.regions("") if self._size >= LARGE_WEIGHTS else []
        kept_out = memory.kept_out(weights) if self._size >= HUGE_WEIGHTS else nullcontext()
        with self._opened.unchanged(program.file, WEIGHTS) as folder, self._mapping(), kept_out:
            session, device = create_session(folder / program.file, provider, self._threads)
        if self._size >= LARGE_WEIGHTS and device == "cpu":
            memory.use_huge_pages(before)
        memory.forget_pages(self.mapped)
        for tensors, expected in (
            (session.get_inputs(), program.inputs),
            (session.get_outputs(), program.outputs),
        ):
            found = {t.name: Tensor(t.name, t.type, list(t.shape)) for t in tensors}
            if found != {t.name: t for t in expected}:
                raise BundleError(
                    f"{self._opened.folder / program.file} has another contract than the manifest "
                    "says: export the run again"
                )
        return session, device

    @contextmanager
    def _mapping(self) -> Iterator[None]:
        """Note where a huge table is mapped meanwhile, by this thread alone."""
        if self._size < HUGE_WEIGHTS:
            yield
            return
        weights = str((self._opened.folder / WEIGHTS).resolve())
        with memory.new_regions(weights) as regions:
            yield
        self.mapped += regions
