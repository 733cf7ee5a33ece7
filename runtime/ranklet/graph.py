"""Run the graphs of a bundle: item indices and kept states in, best items and user vectors out.

Inputs of one user are views of arrays that were made at load: a request makes none but its own ids.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ranklet import pages
from ranklet.bundle import (
    CHUNK,
    CODE_BITS,
    DATA,
    ENCODER,
    GRAPH,
    NEVER,
    Manifest,
    Precision,
    TensorContract,
)
from ranklet.errors import BundleError, ProviderError
from ranklet.gaps import UNKNOWN
from ranklet.provider import ORT_ERRORS, Provider, create_session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Indices = NDArray[np.int64]
Floats = NDArray[np.float32]
State = Sequence[Floats]  # keys and values of each block in turn, (B, H, P, D / H) each
Arrays = dict[str, NDArray[Any]]
NONE: Indices = np.zeros(0, dtype=np.int64)

# A graph takes this many events even if the model keeps fewer, as in ranklet_training.model.
SHORTEST_EXPORT = 16
# Of the best by codes so many are scored again: so many times k, and at least so many.
POOLS: dict[Precision, tuple[int, int]] = {
    "fp32": (1, 1),
    "fp16": (1, 1),
    "int8": (2, 32),
    "int4": (4, 128),
}
# Bytes of weights from which on memory pages matter, and from which on lookups could fill memory;
# after so many looked-up rows (each maps up to 2 MiB) they are forgotten.
LARGE_DATA, HUGE_DATA, MOST_LOOKUPS = 1 << 26, 1 << 30, 256


class Events(NamedTuple):
    """New events of users who share the length of their pasts; an empty array stands for none."""

    history: Indices  # (B, T), 0 pads on the right
    counts: Indices = NONE  # events in each row, (B,); none: T in all of them
    starts: Indices = NONE  # position of each row's first event, (B,); none: 0
    since: Indices = NONE  # buckets before each event, (B, T); none: unknown
    until: Indices = NONE  # buckets from the last event to the question, (B,); none: unknown
    past: State = ()  # none: an empty one


class Best(NamedTuple):
    """The best items of some users, as model.onnx gives them."""

    items: Indices  # (B, k)
    scores: Floats  # (B, k)
    users: Floats | None = None  # (B, D), of codes
    pool_scores: Floats | None = None  # by codes, of what was scored again, (B, pool)
    state: State = ()  # with these events; empty if nobody asked to keep it


class Graphs:
    """Both graphs of a bundle; the encoder is loaded when it is first asked for."""

    def __init__(self, folder: Path, manifest: Manifest, provider: Provider, threads: int) -> None:
        """Load model.onnx, see ``Ranker.load``."""
        data = str((folder / DATA).resolve())
        is_large, is_huge = (manifest.files[DATA].size >= size for size in (LARGE_DATA, HUGE_DATA))
        before = pages.regions("") if is_large else []
        with pages.kept_out(data) if is_huge else nullcontext():
            self.session, self.provider = create_session(folder / GRAPH, provider, threads)
        _check_contract(self.session, manifest, folder)
        self._folder, self._threads = folder, threads
        self.is_rounded = manifest.precision in CODE_BITS
        self._pool_times, self.smallest_pool = POOLS[manifest.precision]
        names = [tensor.name for tensor in manifest.inputs]
        self.uses_times = "since" in names
        self._unused = {"positions", "last", "last_position", "may_attend"} - set(names)
        self._pasts = [t for t in manifest.inputs if t.name.startswith("past_")]
        self._past_names = [t.name for t in self._pasts]
        self._presents = [t.name for t in manifest.outputs if t.name.startswith("present_")]
        self.answers = ["items", "scores", *(["user", "pool_scores"] if self.is_rounded else [])]
        self._mapped: list[tuple[int, int]] = []  # what a lookup brings into memory
        self._lookups = 0
        if is_large and self.provider == "cpu":
            pages.use_huge_pages(before)
        if is_huge and self.provider == "cpu":
            self._mapped = pages.regions(data)
            pages.forget_pages(self._mapped)
        self._answers_and_state = self.answers + self._presents
        # The inputs of one user are views of these.
        longest = 2 * max(manifest.max_length, SHORTEST_EXPORT)
        self.positions = longest  # that the graph knows
        self._steps = np.arange(longest, dtype=np.int64)[None]
        self._may_attend = np.ones((1, 1, 1, longest), dtype=np.bool_)
        hidden = manifest.hidden_score
        self._causal_mask = None if hidden is None else _causal_mask(longest, hidden)
        self.bias = np.zeros(-(-(manifest.items + 1) // CHUNK) * CHUNK, dtype=np.float32)
        self.bias[0] = self.bias[manifest.items + 1 :] = NEVER
        self._nothing = np.zeros((1, 1), dtype=np.int64)
        self._nobody = self.empty_state(1)
        # What is the same in every plain request, see ``rank_plain``.
        self._plain: Arrays = dict(zip(self._past_names, self._nobody, strict=True))
        self._plain |= {"exclude": self._nothing, "bias": self.bias}
        # InferenceSession.run first looks for every input in a list of all: a tenth of a request.
        self._run_plain = getattr(self.session, "_sess", self.session).run
        self.has_plain = not self._unused and not self.uses_times and not self._mapped

    @cached_property
    def encoder(self) -> "InferenceSession":
        """Return the session of encoder.onnx."""
        return create_session(self._folder / ENCODER, self.provider, self._threads)[0]

    def pool_of(self, k: int) -> int:
        """Return how many of the best by codes are scored again."""
        return max(self._pool_times * k, self.smallest_pool)

    def rank(
        self,
        events: Events,
        k: int,
        *,
        pool: int,
        exclude: Indices | None = None,
        bias: Floats | None = None,
        keep: bool = False,
    ) -> Best:
        """Run model.onnx.

        Args:
            events: What is new.
            k: From 1 to the number of items that may be ranked.
            pool: How many of the best by codes are scored again, from k to that number.
            exclude: Items that may not be ranked, (B, X), 0 where a row has fewer.
            bias: Added to every score, (rows,); None: ``self.bias``.
            keep: Return the state with these events, too.
        """
        inputs = self.rank_inputs(events, k, pool=pool, exclude=exclude, bias=bias)
        names = self._answers_and_state if keep else self.answers
        return self._best(self._run(self.session, names, inputs))

    def rank_plain(
        self,
        history: Indices,
        k: int,
        pool: int,
        exclude: Indices | None = None,
        bias: Floats | None = None,
        past: State = (),
        start: int = 0,
    ) -> Best:
        """Run model.onnx for one user: ``rank`` in a third of its time in Python.

        For graphs of which ``has_plain`` holds; ``history`` is (T,), T at least 1. The state is
        returned where a past is given.
        """
        length, steps, names, kept = len(history), self._steps, self.answers, 0
        end = start + length
        inputs = self._plain.copy()
        if past:
            kept, names = past[0].shape[2], self._answers_and_state
            inputs.update(zip(self._past_names, past, strict=True))
        inputs["history"] = history[None]
        inputs["positions"] = steps[:, start:end]
        inputs["last"] = steps[:, length - 1 : length, None]
        inputs["last_position"] = steps[:, end - 1 : end]
        inputs["may_attend"] = self._may_attend[..., : kept + length]
        if self._causal_mask is not None:
            inputs["causal_mask"] = self._mask_after(kept, length)
        inputs["k"] = np.array([k])
        if self.is_rounded:
            inputs["pool"] = np.array([pool])
        if exclude is not None:
            inputs["exclude"] = exclude[None]
        if bias is not None:
            inputs["bias"] = bias
        try:
            found = self._run_plain(names, inputs, None)
        except ORT_ERRORS as error:
            raise self._failed(error) from error
        return self._best(found)

    def _best(self, found: list[Any]) -> Best:
        """Return what a run gave: the answers, perhaps the state after them."""
        if self.is_rounded:
            return Best(found[0], found[1], found[2], found[3], found[4:])
        return Best(found[0], found[1], None, None, found[2:])

    def rank_inputs(
        self,
        events: Events,
        k: int,
        *,
        pool: int,
        exclude: Indices | None = None,
        bias: Floats | None = None,
    ) -> Arrays:
        """Return what model.onnx takes, see ``rank``."""
        inputs = self._inputs(events)
        inputs["k"] = np.array([k])
        if self.is_rounded:
            inputs["pool"] = np.array([pool])
        if exclude is None:
            batch = len(events.history)
            exclude = self._nothing if batch == 1 else np.zeros((batch, 1), dtype=np.int64)
        inputs["exclude"] = exclude
        inputs["bias"] = self.bias if bias is None else bias
        return inputs

    def encode(self, events: Events) -> tuple[Floats, State]:
        """Run encoder.onnx and return user vectors (B, D) and the state with these events."""
        names = ["user", *self._presents]
        users, *state = self._run(self.encoder, names, self._inputs(events))
        return users, state

    def empty_state(self, batch: int) -> State:
        """Return the state of users without an event."""
        shapes = [(batch, int(t.shape[1]), 0, int(t.shape[3])) for t in self._pasts]
        return [np.zeros(shape, dtype=np.float32) for shape in shapes]

    def _inputs(self, events: Events) -> Arrays:
        """Return what both graphs take."""
        history = events.history
        batch, length = history.shape
        inputs: Arrays = {"history": history}
        past = events.past or (self._nobody if batch == 1 else self.empty_state(batch))
        kept = 0
        if past:
            kept = past[0].shape[2]
            inputs.update(zip(self._past_names, past, strict=True))
        if batch == 1 and not events.counts.size:
            start = int(events.starts[0]) if events.starts.size else 0
            end, steps = start + length, self._steps
            inputs["positions"] = steps[:, start:end]
            inputs["last"] = steps[:, length - 1 : length, None]
            inputs["last_position"] = steps[:, end - 1 : end]
            inputs["may_attend"] = self._may_attend[..., : kept + length]
        else:
            self._place_batch(inputs, events, kept)
        if self._causal_mask is not None:
            inputs["causal_mask"] = self._mask_after(kept, length)
        for name in self._unused:
            del inputs[name]
        if self.uses_times:
            unknown = np.full_like(history, UNKNOWN)
            inputs["since"] = events.since if events.since.size else unknown
            inputs["until"] = events.until if events.until.size else unknown[:, 0]
        return inputs

    def _place_batch(self, inputs: Arrays, events: Events, kept: int) -> None:
        batch, length = events.history.shape
        counts = events.counts if events.counts.size else np.full(batch, length)
        starts = events.starts if events.starts.size else np.zeros_like(counts)
        steps = np.arange(length)
        # Padding may lie beyond the table of positions.
        inputs["positions"] = np.minimum(starts[:, None] + steps, self.positions - 1)
        inputs["last"] = (counts - 1)[:, None, None]
        inputs["last_position"] = (starts + counts - 1)[:, None]
        may_attend = np.ones((batch, 1, 1, kept + length), dtype=np.bool_)
        may_attend[:, 0, 0, kept:] = steps < counts[:, None]
        inputs["may_attend"] = may_attend

    def _mask_after(self, kept: int, length: int) -> Floats:
        """Return the causal mask of new events, (1, 1, T, P + T)."""
        assert self._causal_mask is not None
        middle = self.positions
        return self._causal_mask[..., :length, middle - kept : middle + length]

    def _count_lookups(self, rows: int) -> None:
        """Forget the pages of a huge table before they become many."""
        self._lookups += rows
        if self._lookups > MOST_LOOKUPS:
            pages.forget_pages(self._mapped)
            self._lookups = 0

    def _run(self, session: "InferenceSession", names: list[str], inputs: Arrays) -> list[Any]:
        if self._mapped:
            self._count_lookups(
                inputs["history"].size + len(inputs["history"]) * self.smallest_pool
            )
        try:
            return session.run(names, inputs)  # type: ignore[no-any-return]
        except ORT_ERRORS as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> ProviderError:
        return ProviderError(f"onnxruntime failed on {self.provider}: {error}")


def _check_contract(session: "InferenceSession", manifest: Manifest, folder: Path) -> None:
    """Compare what the graph takes and gives with what the manifest says."""
    found = [
        [TensorContract(t.name, t.type, list(t.shape)) for t in tensors]
        for tensors in (session.get_inputs(), session.get_outputs())
    ]
    if found != [manifest.inputs, manifest.outputs]:
        raise BundleError(f"the graph of {folder} does not take and give what the manifest says")


def _causal_mask(longest: int, hidden: float) -> Floats:
    """Return a view (1, 1, L, 2 L): row t is 0 up to column L + t, and ``hidden`` from there on.

    Where P events are kept, columns from L - P on are the mask of what comes after them.
    """
    ramp = np.full(3 * longest, hidden, dtype=np.float32)
    ramp[: 2 * longest + 1] = 0
    step, shape = ramp.itemsize, (1, 1, longest, 2 * longest)
    return np.lib.stride_tricks.as_strided(ramp[longest:], shape, (0, 0, -step, step))
