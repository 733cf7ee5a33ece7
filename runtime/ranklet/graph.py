"""Run the graphs of a bundle: item indices and kept states in, best items and user vectors out.

Inputs of one user are views of arrays that were made at load: a request makes none but its own ids.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ranklet import pages
from ranklet.bound import MOST_KEPT, Arrays, BoundRun
from ranklet.bundle import (
    APPEND,
    BATCH,
    CHUNK,
    CODE_BITS,
    DATA,
    ENCODER,
    GRAPH,
    NEVER,
    PLAIN,
    BlockMask,
    Manifest,
    Opened,
    Precision,
    TensorContract,
    map_table,
    of_one_event,
    of_whole_history,
)
from ranklet.device import STATE, DeviceArray, DeviceSession, Inputs
from ranklet.errors import BundleError, ProviderError
from ranklet.positions import known_positions, relative_bias
from ranklet.provider import ORT_ERRORS, Provider, create_session, is_sure_of_cpu
from ranklet.time_gaps import UNKNOWN

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    Session: TypeAlias = InferenceSession | DeviceSession

logger = logging.getLogger(__name__)
T = TypeVar("T")
Change: TypeAlias = Callable[[dict[str, list[int | str]]], dict[str, list[int | str]]]
Indices = NDArray[np.int64]
Floats = NDArray[np.float32]
# Keys and values (B, H, R, D / H) of each block but the last; what entered that, (B, P, D). Of keys
# and values at least those that the window shows to the next event.
State = Sequence[Floats | DeviceArray]
NONE: Indices = np.zeros(0, dtype=np.int64)

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
LONGEST_KEPT = 512  # events at once of which masks are kept for requests alike
# From so many users on batch.onnx is faster (docs/log.md).
SMALLEST_BATCH = 8
# On CUDA histories are padded to at least so many events, and to powers of two.
SHORTEST_PADDED = 8
SUMS = 1e-4  # relative; sums of fp32 products are off by far less


class Events(NamedTuple):
    """New events of users who share the length of their pasts; an empty array stands for none."""

    history: Indices  # (B, T), 0 pads on the right
    counts: Indices = NONE  # events in each row, (B,); none: T in all of them
    starts: Indices = NONE  # position of each row's first event, (B,); none: 0
    since: Indices = NONE  # buckets before each event, (B, T); none: unknown
    until: Indices = NONE  # buckets from the last event to the question, (B,); none: unknown
    past: State = ()  # none: an empty one


class Best(NamedTuple):
    """The best items of some users, as model.onnx gives them; on CUDA rows of padding follow."""

    items: Indices  # (B, k)
    scores: Floats  # (B, k)
    users: Floats | None = None  # (B, D), of codes
    pool_scores: Floats | None = None  # by codes, of what was scored again, (B, pool)
    state: State = ()  # with these events; empty if nobody asked to keep it


class locked_property(cached_property[T]):  # noqa: N801 (as what it extends)
    """A ``cached_property`` that two threads do not compute at once, as from Python 3.12 on."""

    def __get__(self, graphs: Any, owner: type | None = None) -> Any:  # noqa: ANN401
        """Wait for whoever computes one."""
        with graphs.loading:
            return super().__get__(graphs, owner)


class Graphs:
    """The graphs of a bundle, loaded when they are first asked for."""

    def __init__(
        self, opened: Opened, manifest: Manifest, provider: Provider, threads: int
    ) -> None:
        """Load what most requests need, see ``Ranker.load``."""
        self._opened, self._folder = opened, opened.folder
        self._manifest, self._threads = manifest, threads
        self.loading = RLock()
        self.provider = provider
        self._sessions: list[Session] = []  # while they live, so do their mappings
        self._mapped: list[pages.Region] = []  # where a lookup brings a huge table into memory
        self._lookups = 0
        # plain.onnx and append.onnx are for the CPU.
        self.has_plain = PLAIN in manifest.files and is_sure_of_cpu(provider)
        _ = self.plain if self.has_plain else self.session
        with self._mapping():
            self.table = map_table(self._folder, manifest)
        self._has_batch = BATCH in manifest.files and self.provider == "cpu"
        self.is_rounded = manifest.precision in CODE_BITS
        self._pool_times, self.smallest_pool = POOLS[manifest.precision]
        names = [tensor.name for tensor in manifest.inputs]
        self.uses_times = "since" in names
        self._pasts = [t for t in manifest.inputs if t.name.startswith("past_")]
        self.past_names = [t.name for t in self._pasts]
        self.present_names = [t.name for t in manifest.outputs if t.name.startswith(STATE)]
        self.answers = ["items", "scores", *(["user", "pool_scores"] if self.is_rounded else [])]
        # The inputs of one user are views of these.
        self.positions = known_positions(manifest.max_length)
        self._uses_positions = "positions" in names
        self._steps = np.arange(self.positions, dtype=np.int64)[None]
        self.ramps = [_ramp(mask, self.positions) for mask in manifest.masks]
        self._masks: dict[tuple[int, int, int], Arrays] = {}  # by both pasts and length
        self._kept_bytes = 0  # of masks
        self.bias = np.zeros(-(-(manifest.items + 1) // CHUNK) * CHUNK, dtype=np.float32)
        self.bias[0] = self.bias[manifest.items + 1 :] = NEVER
        self._nothing = np.zeros((1, 1), dtype=np.int64)
        self._nobody = self.empty_state(1)
        # Where not on the CPU, onnxruntime copies inputs when they are bound.
        self.can_bind = self.provider == "cpu" and not self.uses_times and not self._mapped
        # What blocks before the last see; 0: all.
        self.attention_window = manifest.masks[0].window if manifest.masks else 0
        self.plain_names: list[str] = []
        if self.has_plain:
            self.plain_names = [t.name for t in _of(of_whole_history, manifest.inputs)]
        self.window = manifest.max_length
        self.can_append = APPEND in manifest.files and self.provider == "cpu" and not self._mapped
        self.append_names = [t.name for t in _of(of_one_event, manifest.inputs)]

    def _load(self, name: str) -> "Session":
        """Return the session of a graph, with as little memory as it can do with."""
        data = str((self._folder / DATA).resolve())
        size = self._manifest.files[DATA].size
        before = pages.regions("") if size >= LARGE_DATA else []
        kept_out = pages.kept_out(data) if size >= HUGE_DATA else nullcontext()
        with self._opened.unchanged(name, DATA) as folder, self._mapping(), kept_out:
            loaded = create_session(folder / name, self.provider, self._threads)
        session, self.provider = loaded
        if self.provider == "cuda":
            session = DeviceSession(session, "cuda")
        self._sessions.append(session)
        if size >= LARGE_DATA and self.provider == "cpu":
            pages.use_huge_pages(before)
        pages.forget_pages(self._mapped)
        return session

    @contextmanager
    def _mapping(self) -> Iterator[None]:
        """Note where a huge table is mapped meanwhile, by this thread alone."""
        if self._manifest.files[DATA].size < HUGE_DATA or self.provider == "cuda":
            yield
            return
        with pages.new_regions(str((self._folder / DATA).resolve())) as found:
            yield
        self._mapped += found

    @locked_property
    def session(self) -> "Session":
        """Return the session of model.onnx."""
        session = self._load(GRAPH)
        contract = self._manifest.inputs, self._manifest.outputs
        _check_contract(session, *contract, self._folder / GRAPH)
        return session

    @locked_property
    def plain(self) -> "Session":
        """Return the session of plain.onnx, which ``ranklet.plain`` runs."""
        return self._load_special(PLAIN, of_whole_history)

    @locked_property
    def append(self) -> "Session":
        """Return the session of append.onnx, which ``ranklet.ring`` runs."""
        return self._load_special(APPEND, of_one_event)

    def _load_special(self, name: str, change: Change) -> "Session":
        session = self._load(name)
        contract = _of(change, self._manifest.inputs), _of(change, self._manifest.outputs)
        _check_contract(session, *contract, self._folder / name)
        return session

    @locked_property
    def encoder(self) -> "Session":
        """Return the session of encoder.onnx."""
        return self._load(ENCODER)

    @locked_property
    def batch(self) -> "Session":
        """Return the session of batch.onnx, or that of model.onnx where it computes wrongly."""
        session = self._load(BATCH)
        contract = self._manifest.inputs, self._manifest.outputs
        _check_contract(session, *contract, self._folder / BATCH)
        drawn = np.random.default_rng(0)
        events = Events(drawn.integers(1, self._manifest.items + 1, (SMALLEST_BATCH, 4)))
        pool = min(self.smallest_pool, self._manifest.items)
        inputs = self.rank_inputs(events, pool, pool=pool)
        off = self.off_by(self._best(self._run(session, self.answers, inputs)))
        if off > 0:
            message = "batch.onnx is off by %.2g on this processor: model.onnx ranks batches"
            logger.warning(message, off)
            return self.session
        return session

    def off_by(self, best: Best) -> float:
        """Return by how much scores by codes miss those of fp32, beyond what rounding explains.

        Args:
            best: Of codes, with k the size of the pool: then both are scores of the same items.
        """
        rounding = self._manifest.rounding
        assert rounding is not None
        assert best.users is not None
        assert best.pool_scores is not None
        missed = np.abs(best.scores - best.pool_scores).max(axis=1)
        slack = SUMS * (1 + np.abs(best.scores).max(axis=1))
        bounds = [rounding.bound(user) for user in best.users]
        return float((missed - slack - bounds).max())

    @property
    def lengths(self) -> list[int]:
        """Return the lengths of histories that run otherwise than shorter ones: see ``_padded``."""
        longest = self._manifest.max_length if self.provider == "cuda" else 1
        return sorted({_columns(length, longest) for length in range(1, longest + 1)})

    def session_for(self, batch: int) -> "Session":
        """Return what ranks so many users at once."""
        return self.batch if self._has_batch and batch >= SMALLEST_BATCH else self.session

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
        """Run model.onnx, or batch.onnx for many users.

        Args:
            events: What is new.
            k: From 1 to the number of items that may be ranked.
            pool: How many of the best by codes are scored again, from k to that number.
            exclude: Items that may not be ranked, (B, X), 0 where a row has fewer.
            bias: Added to every score, (rows,); None: ``self.bias``.
            keep: Return the state with these events, too.
        """
        inputs = self.rank_inputs(events, k, pool=pool, exclude=exclude, bias=bias)
        names = self.answers + self.present_names if keep else self.answers
        return self._best(self._run(self.session_for(len(events.history)), names, inputs))

    def run_bound(self, bound: BoundRun, bias: Floats | None = None) -> Best:
        """Run a graph on arrays that are bound to it, and return copies of its answers."""
        try:
            if bias is None:
                bound.run()
            else:
                bound.read("bias", bias)
                bound.run()
                bound.read("bias", self.bias)  # what it was must not be kept alive
        except ORT_ERRORS as error:
            raise self.failed(error) from error
        return self._best([bound.arrays[name].copy() for name in self.answers])

    def answer_arrays(self, k: int, pool: int) -> Arrays:
        """Return arrays for the answers to one user."""
        arrays: Arrays = {
            "items": np.zeros((1, k), dtype=np.int64),
            "scores": np.zeros((1, k), dtype=np.float32),
            "user": np.zeros((1, self._manifest.table.columns), dtype=np.float32),
            "pool_scores": np.zeros((1, pool), dtype=np.float32),
        }
        return {name: arrays[name] for name in self.answers}

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
    ) -> Inputs:
        """Return what model.onnx takes, see ``rank``; on CUDA with rows and events of padding."""
        if self.provider == "cuda" and not events.past:
            events, exclude = _padded(events, exclude, self._manifest.max_length)
        inputs = self._inputs(events)
        inputs["k"] = np.array([k], dtype=np.int64)
        if self.is_rounded:
            inputs["pool"] = np.array([pool], dtype=np.int64)
        if exclude is None:
            batch = len(events.history)
            exclude = self._nothing if batch == 1 else np.zeros((batch, 1), dtype=np.int64)
        inputs["exclude"] = exclude
        inputs["bias"] = self.bias if bias is None else bias
        return inputs

    def encode(self, events: Events) -> tuple[Floats, State]:
        """Run encoder.onnx and return user vectors (B, D) and the state with these events."""
        names = ["user", *self.present_names]
        users, *state = self._run(self.encoder, names, self._inputs(events))
        return users, state

    def empty_state(self, batch: int) -> State:
        """Return the state of users without an event."""
        sizes = {"batch": batch, "past": 0, "recent": 0}
        shapes = [
            [sizes[axis] if isinstance(axis, str) else axis for axis in t.shape]
            for t in self._pasts
        ]
        return [np.zeros(shape, dtype=np.float32) for shape in shapes]

    def _inputs(self, events: Events) -> Inputs:
        """Return what all graphs take."""
        history = events.history
        batch, length = history.shape
        inputs: Inputs = {"history": history}
        if self.uses_times:
            unknown = np.full_like(history, UNKNOWN)
            inputs["since"] = events.since if events.since.size else unknown
            inputs["until"] = events.until if events.until.size else unknown[:, 0]
        past = events.past or (self._nobody if batch == 1 else self.empty_state(batch))
        kept = recent = 0
        if past:
            kept, recent = past[-1].shape[-2], past[0].shape[-2]
            inputs.update(zip(self.past_names, past, strict=True))
        if self._uses_positions:
            starts = events.starts if events.starts.size else np.zeros(batch, dtype=np.int64)
            # Padding may lie beyond the table of positions.
            places = np.minimum(starts[:, None] + np.arange(length), self.positions - 1)
            inputs["positions"] = places
        if batch == 1 and not events.counts.size:
            inputs["last"] = self._steps[:, length - 1 : length, None]
            return inputs | self._masks_of_one(kept, recent, length)
        counts = events.counts if events.counts.size else np.full(batch, length, np.int64)
        inputs["last"] = (counts - 1)[:, None, None]
        return inputs | self._masks_of_batch(kept, recent, length, counts)

    def _masks_of_one(self, kept: int, recent: int, length: int) -> Arrays:
        """Return the masks of one user's new events; small ones are kept for the next request."""
        found = self._masks.get((kept, recent, length))
        if found is not None:
            return found
        last = len(self.ramps) - 1
        found = {
            f"mask_{place}": np.ascontiguousarray(
                _causal_mask(ramp, recent, length) if place < last else _row(ramp, kept + length)
            )
            for place, ramp in enumerate(self.ramps)
        }
        if length <= LONGEST_KEPT:
            size = sum(mask.nbytes for mask in found.values())
            self._kept_bytes += size
            if self._kept_bytes > MOST_KEPT:
                self._masks, self._kept_bytes = {}, size
            self._masks[kept, recent, length] = found
        return found

    def chunk_masks(
        self, length: int, chunks: int, events: int, visible: int
    ) -> tuple[Floats, Floats]:
        """Return the masks of plain.onnx, for a history that is cut as ``ranklet.plain`` does."""
        before = visible - events
        first = _causal_mask(self.ramps[0], before, events)  # (1, 1, events, visible)
        masks = first.repeat(chunks, axis=0)
        for chunk in range(-(-before // events)):  # where the history has not begun
            masks[chunk, ..., : before - chunk * events] = self.ramps[0][0, -1]
        middle = self.ramps[1].shape[1] // 2
        last = self.ramps[1][None, :, None, middle - length : middle - length + chunks * events]
        return masks, np.ascontiguousarray(last)

    def _masks_of_batch(self, kept: int, recent: int, length: int, counts: Indices) -> Arrays:
        """Return the masks of rows of so many events each, the rest is padding."""
        masks = dict(self._masks_of_one(kept, recent, length))  # those of all blocks but the last
        if self.ramps:
            ramp = self.ramps[-1]
            last = kept + counts[:, None] - 1
            places = ramp.shape[1] // 2 - 1 + np.arange(kept + length) - last  # (B, P + T)
            masks[f"mask_{len(masks) - 1}"] = ramp[:, places].transpose(1, 0, 2)[:, :, None]
        return masks

    def count_lookups(self, rows: int) -> None:
        """Forget the pages of a huge table before they become many."""
        if not self._mapped:
            return
        self._lookups += rows
        if self._lookups > MOST_LOOKUPS:
            pages.forget_pages(self._mapped)
            self._lookups = 0

    def _run(self, session: "Session", names: list[str], inputs: Inputs) -> list[Any]:
        batch, length = inputs["history"].shape
        self.count_lookups(batch * (length + self.smallest_pool))
        try:
            return session.run(names, inputs)
        except ORT_ERRORS as error:
            raise self.failed(error) from error

    def failed(self, error: Exception) -> ProviderError:
        """Return an error that says where onnxruntime failed."""
        return ProviderError(f"onnxruntime failed on {self.provider}: {error}")


def _padded(events: Events, exclude: Indices | None, longest: int) -> tuple[Events, Indices | None]:
    """Return events of one of few shapes: more of them and longer, what is added is padding.

    Args:
        events: Without a past.
        exclude: As in ``Graphs.rank``.
        longest: No history is padded beyond so many events.
    """
    batch, length = events.history.shape
    rows, columns = _power(batch), _columns(length, longest)
    counts = events.counts if events.counts.size else np.full(batch, length, np.int64)
    if exclude is not None:
        exclude = _fill(exclude, 0, rows, _power(exclude.shape[1]))
    padded = Events(
        _fill(events.history, 0, rows, columns),
        _fill(counts, 1, rows),  # a row needs an event, and be it padding
        starts=_fill(events.starts, 0, rows),
        since=_fill(events.since, UNKNOWN, rows, columns),
        until=_fill(events.until, UNKNOWN, rows),
    )
    return padded, exclude


def _columns(length: int, longest: int) -> int:
    """Return to how many events so many are padded."""
    return max(length, min(longest, max(SHORTEST_PADDED, _power(length))))


def _power(size: int) -> int:
    """Return the least power of two that is no less."""
    return 1 << (size - 1).bit_length()


def _fill(array: Indices, value: int, *shape: int) -> Indices:
    """Return an array of this shape with another in its corner; an empty one as it is."""
    if not array.size:
        return array
    filled = np.full(shape, value, dtype=np.int64)
    filled[tuple(map(slice, array.shape))] = array
    return filled


def _of(change: Change, tensors: list[TensorContract]) -> list[TensorContract]:
    """Return what another graph takes or gives in the place of what model.onnx does."""
    shapes = change({tensor.name: tensor.shape for tensor in tensors})
    kinds = {tensor.name: tensor.type for tensor in tensors}
    return [
        TensorContract(name, kinds.get(name, "tensor(int64)"), shape)
        for name, shape in shapes.items()
    ]


def _check_contract(
    session: "Session", inputs: list[TensorContract], outputs: list[TensorContract], path: Path
) -> None:
    """Compare what a graph takes and gives with what the manifest says."""
    found = [
        {t.name: TensorContract(t.name, t.type, list(t.shape)) for t in tensors}
        for tensors in (session.get_inputs(), session.get_outputs())
    ]
    if found != [{t.name: t for t in tensors} for tensors in (inputs, outputs)]:
        raise BundleError(f"{path} does not take and give what the manifest says")


def _ramp(mask: BlockMask, longest: int) -> Floats:
    """Return a bias from the farthest event on the left to the event itself, then what hides."""
    bias = relative_bias(mask.cosines, mask.sines, longest)[:, ::-1]
    if mask.window:
        bias[:, : max(0, longest - mask.window)] = mask.hidden
    return np.hstack([bias, np.full_like(bias, mask.hidden)])  # (H, 2 longest)


def _row(ramp: Floats, total: int) -> Floats:
    """Return the mask of the last of so many events, (1, H, 1, total)."""
    middle = ramp.shape[1] // 2
    return ramp[None, :, None, middle - total : middle]


def _causal_mask(ramp: Floats, kept: int, length: int) -> Floats:
    """Return the mask of new events after kept ones, (1, H, T, P + T): a view of the ramp."""
    begin, step = ramp.shape[1] // 2 - 1 - kept, ramp.itemsize
    shape, strides = (1, len(ramp), length, kept + length), (0, ramp.strides[0], -step, step)
    return np.lib.stride_tricks.as_strided(ramp[:, begin:], shape, strides)
