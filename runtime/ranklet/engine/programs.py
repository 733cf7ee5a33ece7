"""Onnxruntime sessions of a bundle's programs, loaded on first use."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ranklet.bundle.folder import Opened, map_table
from ranklet.bundle.manifest import ENCODE, WEIGHTS, Manifest, Program, Tensor
from ranklet.engine import memory
from ranklet.engine.runs import Device
from ranklet.engine.sessions import Provider, create_session
from ranklet.errors import BundleError, ProviderError
from ranklet.forks import INHERITED, ProcessLock, leak

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

# Bytes of weights up to which they are copied into memory and from which memory pages matter, and
# from which lookups could fill memory; rows of lookups (each maps up to 2 MiB) after which their
# pages are dropped.
LARGE_WEIGHTS, HUGE_WEIGHTS, MOST_LOOKUPS = 1 << 26, 1 << 30, 256


class Programs:
    """The sessions of a bundle, and its item table.

    Attributes:
        provider: Where they run.
        table: The rows of the items, (items + 1, D), mapped.
        mapped: Mapped regions of a huge table, which lookups make resident; else empty.
    """

    def __init__(
        self, opened: Opened, manifest: Manifest, provider: Provider, threads: int
    ) -> None:
        """Load encode.onnx, which decides the provider of all programs, see ``Ranker.load``."""
        self.manifest = manifest
        self._opened, self._threads = opened, threads
        self._loading, self._is_of_parent = ProcessLock(), False
        self._sessions: dict[str, InferenceSession] = {}  # while they live, so do their mappings
        self.mapped: list[memory.Region] = []
        self._lookups = 0
        self._size = manifest.files[WEIGHTS].size
        weights = opened.folder / WEIGHTS
        self._copy = None
        if self._size < LARGE_WEIGHTS:
            with opened.unchanged(WEIGHTS), suppress(AttributeError, OSError):
                self._copy = memory.Copy(weights)
        session, self.provider = self._load(ENCODE, provider)
        self._sessions[ENCODE] = session
        with self._mapping():
            self.table: NDArray[np.floating] = map_table(
                self._copy.open() if self._copy else weights, manifest.table
            )
        INHERITED.add(self)

    def after_fork(self) -> None:
        """Leave the sessions alone: a forked child can neither run nor free them."""
        leak(self._sessions)
        self._sessions, self._is_of_parent = {}, True

    def session(self, name: str) -> "InferenceSession":
        """Return the session of a program; concurrent calls load it once."""
        session = self._sessions.get(name)
        if session is None:
            with self._loading.lock:
                session = self._sessions.get(name)
                if session is None:
                    if self._is_of_parent:
                        raise ProviderError(
                            f"{self._opened.folder} was loaded before this process was forked, and "
                            "onnxruntime works only where it was started: load it in the child"
                        )
                    session, _ = self._load(name, self.provider)
                    self._sessions[name] = session
        return session

    def count_lookups(self, rows: int) -> None:
        """Count looked-up rows; drop the pages of a huge table after ``MOST_LOOKUPS``."""
        self._lookups += rows
        if self._lookups > MOST_LOOKUPS:
            memory.forget_pages(self.mapped)
            self._lookups = 0

    def _load(self, name: str, provider: Provider) -> "tuple[InferenceSession, Device]":
        """Return the session of a program, loaded with little memory."""
        program = self.manifest.programs[name]
        weights = str((self._opened.folder / WEIGHTS).resolve())
        before = memory.regions("") if self._size >= LARGE_WEIGHTS else []
        kept_out = memory.kept_out(weights) if self._size >= HUGE_WEIGHTS else nullcontext()
        with (
            self._opened.unchanged(program.file, WEIGHTS) as folder,
            memory.mapped_to(self._copy, weights),
            self._mapping(),
            kept_out,
        ):
            session, device = create_session(folder / program.file, provider, self._threads)
            self._check_contract(session, program)  # mappings of a refused one end with it
        if self._size >= LARGE_WEIGHTS and device == "cpu":
            memory.use_huge_pages(before)
        memory.forget_pages(self.mapped)
        return session, device

    def _check_contract(self, session: "InferenceSession", program: Program) -> None:
        """Raise BundleError if a graph has other inputs or outputs than the manifest says."""
        for tensors, expected in (
            (session.get_inputs(), program.inputs),
            (session.get_outputs(), program.outputs),
        ):
            contract = {t.name: Tensor(t.name, t.type, list(t.shape)) for t in tensors}
            if contract != {t.name: t for t in expected}:
                raise BundleError(
                    f"{self._opened.folder / program.file} has another contract than the manifest "
                    "says: export the run again"
                )

    @contextmanager
    def _mapping(self) -> Iterator[None]:
        """Record the regions of a huge table that this thread maps inside."""
        if self._size < HUGE_WEIGHTS:
            yield
            return
        weights = str((self._opened.folder / WEIGHTS).resolve())
        with memory.new_regions(weights) as regions:
            yield
        self.mapped += regions
