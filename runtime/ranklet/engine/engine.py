"""Inference engine: encode histories, append events, score users, all on arrays of indices.

Every request takes this path. Single histories and batches, short and long ones, differ only in the
program that the manifest names for them. The calls are in one file because they share a pool of
runs.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from ranklet.bundle.damage import check_items, check_unique, states_of
from ranklet.bundle.folder import Opened, read_bias
from ranklet.bundle.manifest import (
    APPEND,
    BIAS,
    ENCODE,
    ENCODE_LONG,
    ENCODE_ROWS,
    MOST_PROBED,
    NEVER,
    SCORE,
    SCORE_MANY,
    SEARCH,
    Index,
    Manifest,
)
from ranklet.engine.programs import Programs
from ranklet.engine.runs import MOST_KEPT, Arrays, Run, Runs
from ranklet.engine.sessions import Provider
from ranklet.engine.state import State
from ranklet.errors import BundleError
from ranklet.time_gaps import UNKNOWN

Indices = NDArray[np.int64]
Floats = NDArray[np.float32]
NONE: Indices = np.zeros(0, dtype=np.int64)

# Most events of one run, padding included: their arrays stay in the caches.
MOST_EVENTS = 2_048
# Most users and most scores (64 MiB) of one run.
MOST_USERS, MOST_SCORES = 64, 1 << 24
SUMS = 1e-4  # relative error of sums of fp32 products; the real one is far smaller


class History(NamedTuple):
    """The events of one user as an encoder takes them."""

    items: Indices  # (T,), T from 1 to the maximum, oldest first
    since: Indices = NONE  # bucket of the gap before each event, (T,); empty: unknown
    until: int = UNKNOWN  # bucket of the gap from the last event to now
    kinds: Indices = NONE  # kind of each event, (T,); empty: unknown
    objective: Floats | None = None  # weight of each kind asked for, (K + 1,); None: the bundle's
    rows: Floats | None = None  # of the events in the item table, (T, D); None: looked up


class Event(NamedTuple):
    """The newest event of one user as append.onnx takes it."""

    item: int
    position: int  # number of events put into the state before it
    since: int = UNKNOWN  # bucket of the gap before it
    until: int = UNKNOWN  # bucket of the gap from it to now
    kind: int = 0
    objective: Floats | None = None  # as in History


class Best(NamedTuple):
    """The best items of some users."""

    items: Indices  # (B, k)
    scores: Floats  # (B, k)
    pool_scores: Floats | None = None  # by codes, of the re-scored items, (B, pool); see ``score``


class Engine:
    """The programs of a bundle and the arrays of their calls; threads may share one engine."""

    def __init__(
        self, opened: Opened, manifest: Manifest, provider: Provider, threads: int
    ) -> None:
        """Load the encoder; the other programs load when they are needed, see ``Ranker.load``."""
        self.programs = Programs(opened, manifest, provider, threads)
        self.manifest, self.provider, self.threads = manifest, self.programs.provider, threads
        self.table = self.programs.table
        self._uses_times, self._uses_kinds = manifest.uses_times, bool(manifest.kinds)
        self._objective = manifest.objective
        self._width = manifest.width
        programs = manifest.programs
        self._long_from = programs[ENCODE].lengths[1] + 1
        self._many_from = programs[SCORE_MANY].least_users if SCORE_MANY in programs else 0
        if self.provider != "cpu":
            self._many_from = 0  # its layout is for processors
        self._index = manifest.index if self.provider == "cpu" else None
        self.state_rows = manifest.state_rows
        bias = programs[SCORE].input("bias")
        assert bias is not None
        self.bias = np.zeros((1, int(bias.shape[1])), dtype=np.float32)
        self.bias[0, 0] = self.bias[0, manifest.items + 1 :] = NEVER
        with opened.unchanged(BIAS) as folder:
            if (of_items := read_bias(folder, manifest)) is not None:
                self.bias[0, 1 : manifest.items + 1] = of_items
        self.has_own_bias = of_items is not None
        self._has_boosts = self.has_own_bias and bool(self.bias[self.bias > NEVER / 2].any())
        # A run that excludes items holds a bias of its own, which is large in a large catalogue.
        self._runs = Runs(MOST_KEPT + 2 * self.bias.nbytes)
        self.has_codes = manifest.rounding is not None
        self.most_users = max(1, min(MOST_USERS, MOST_SCORES // self.bias.shape[1]))  # of a score

    @property
    def users_of_state(self) -> int:
        """Return the most users of one state: one on CUDA, where memory has no parts to share."""
        return MOST_USERS if self.provider == "cpu" else 1

    def encode(self, histories: Sequence[History]) -> Floats:
        """Return the user vectors of histories, (B, D); equal lengths are fastest."""
        return self._encode(histories, keep=False)[0]

    def encode_states(self, histories: Sequence[History]) -> tuple[Floats, list[list[Floats]]]:
        """Return user vectors (B, D), and for each history the arrays for ``State.fill``."""
        return self._encode(histories, keep=True)[:2]

    def attention(self, history: History) -> tuple[Floats, Floats]:
        """Return the user vector (1, D), and the weights of the events in the last block, (H, T).

        The weights are those of the last query and add up to 1 for each head. Without blocks the
        last event has them all.

        Raises:
            BundleError: The bundle has no graph that gives them.
        """
        given = history._replace(rows=self._rows(history))
        users, _, weights = self._encode([given], keep=False)
        if weights is None:
            weights = np.zeros((1, 1, len(history.items)), dtype=np.float32)
            weights[..., -1] = 1
        return users, weights[0]

    def _rows(self, history: History) -> Floats:
        """Return the rows of the events in the item table, (T, D)."""
        if history.rows is not None:
            return history.rows
        rows: Floats = self.table[history.items].astype(np.float32, copy=False)
        return rows

    def _encode(
        self, histories: Sequence[History], *, keep: bool
    ) -> tuple[Floats, list[list[Floats]], Floats | None]:
        batch, length, with_rows = len(histories), len(histories[0].items), False
        for history in histories:
            length = max(length, len(history.items))
            with_rows |= history.rows is not None
        idle = self._runs.idle(("encode", batch, length, keep, with_rows))
        try:
            run = idle.pop()
        except IndexError:
            run = self._encode_run(batch, length, keep=keep, with_rows=with_rows)
        events = run.inputs["history"]
        for row, history in enumerate(histories):
            count = len(history.items)
            events[row, :count] = history.items
            if count < length:
                events[row, count:] = 0
        if self._uses_times:
            self._fill_times(run.inputs, histories)
        if self._uses_kinds:
            self._fill_kinds(run.inputs, histories)
        if with_rows:
            self._fill_rows(run.inputs["rows"], histories)
        if self.programs.mapped:
            self.programs.count_lookups(batch * length)
        run.go()
        users = run.outputs["user"].copy()
        states = states_of(run.grown(), batch, length) if keep else []
        attention = run.outputs["attention"].copy() if "attention" in run.outputs else None
        idle.append(run)
        return users, states, attention

    @staticmethod
    def _fill_times(inputs: Arrays, histories: Sequence[History]) -> None:
        inputs["since"][:] = UNKNOWN
        for row, history in enumerate(histories):
            inputs["since"][row, : len(history.since)] = history.since
            inputs["until"][row] = history.until

    def _fill_kinds(self, inputs: Arrays, histories: Sequence[History]) -> None:
        inputs["kind"][:] = 0
        for row, history in enumerate(histories):
            inputs["kind"][row, : len(history.kinds)] = history.kinds
            inputs["objective"][row] = self._weights(history.objective)

    def _fill_rows(self, rows: Floats, histories: Sequence[History]) -> None:
        rows[:] = 0
        for row, history in enumerate(histories):
            rows[row, : len(history.items)] = self._rows(history)

    def _encode_run(self, batch: int, length: int, *, keep: bool, with_rows: bool) -> Run:
        name = ENCODE if length < self._long_from else ENCODE_LONG
        inputs: Arrays = {"history": np.zeros((batch, length), dtype=np.int64)}
        if self._uses_times:
            inputs["since"] = np.zeros((batch, length), dtype=np.int64)
            inputs["until"] = np.zeros(batch, dtype=np.int64)
        if self._uses_kinds:
            inputs |= self._kind_inputs(batch, length)
        outputs: Arrays = {"user": np.zeros((batch, self._width), dtype=np.float32)}
        if with_rows:
            if ENCODE_ROWS not in self.manifest.programs:
                raise BundleError(f"the bundle has no {ENCODE_ROWS}.onnx: export its run again")
            name = ENCODE_ROWS
            inputs["rows"] = np.zeros((batch, length, self._width), dtype=np.float32)
            if heads := self.manifest.attention_heads:
                outputs["attention"] = np.zeros((batch, heads, length), dtype=np.float32)
        session, grown = self.programs.session(name), tuple(self.state_rows) if keep else ()
        return self._runs.made(Run(session, self.provider, inputs, outputs, grown))

    def _kind_inputs(self, batch: int, length: int) -> Arrays:
        weights = np.zeros((batch, len(self._objective)), dtype=np.float32)
        return {"kind": np.zeros((batch, length), dtype=np.int64), "objective": weights}

    def _weights(self, objective: Floats | None) -> Floats:
        return self._objective if objective is None else objective

    def empty_state(self, users: int) -> State:
        """Return the states of users without an event, at most ``users_of_state``."""
        return State.empty(self.state_rows, users, self._width, self.provider)

    def append(self, state: State, events: Sequence[Event]) -> Floats:
        """Put an event of each user into a state, and return their vectors, (B, D).

        Repeating it changes nothing, so the caller may count the event after this has returned.
        """
        batch = len(events)
        idle = self._runs.idle(("append", batch))
        try:
            run = idle.pop()
        except IndexError:
            run = self._append_run(batch)
        for row, (item, position, since, until, kind, objective) in enumerate(events):
            run.inputs["item"][row, 0] = item
            run.inputs["position"][row, 0, 0] = position
            if self._uses_times:
                run.inputs["since"][row, 0] = since
                run.inputs["until"][row] = until
            if self._uses_kinds:
                run.inputs["kind"][row, 0] = kind
                run.inputs["objective"][row] = self._weights(objective)
        run.change(state.values)
        if self.programs.mapped:
            self.programs.count_lookups(batch)
        run.go()
        users: Floats = run.outputs["user"].copy()
        idle.append(run)
        return users

    def _append_run(self, batch: int) -> Run:
        inputs: Arrays = {
            "item": np.zeros((batch, 1), dtype=np.int64),
            "position": np.zeros((batch, 1, 1), dtype=np.int64),
        }
        if self._uses_times:
            inputs["since"] = np.zeros((batch, 1), dtype=np.int64)
            inputs["until"] = np.zeros(batch, dtype=np.int64)
        if self._uses_kinds:
            inputs |= self._kind_inputs(batch, 1)
        outputs: Arrays = {"user": np.zeros((batch, self._width), dtype=np.float32)}
        run = Run(self.programs.session(APPEND), self.provider, inputs, outputs)
        # An idle run holds the state that it was bound to last.
        run.bytes += 4 * batch * self._width * sum(self.state_rows.values())
        return self._runs.made(run)

    def score(
        self,
        users: Floats,
        k: int,
        pool: int,
        bias: Floats | None = None,
        has_boosts: bool = False,
        excluded: Sequence[Indices] = (),
        demoted: Sequence[Indices] = (),
        penalty: float = 0.0,
        probes: Sequence[int] = (),
    ) -> Best:
        """Return the best items of users.

        Args:
            users: (B, D), B at most ``most_users``.
            k: From 1 to ``pool``.
            pool: The number of re-scored items, from k to the number that may be ranked.
            bias: Added to the scores of every user, (1, rows); None: ``self.bias``.
            has_boosts: Whether the bias has other values than 0 and ``NEVER``.
            excluded: Items of each user that may not be ranked; empty: no items of any.
            demoted: Items of each user that lose ``penalty``; empty: no items of any.
            penalty: Points.
            probes: Clusters of the index to read for each user, more until the pool is full; 0 or
                none: scan all items, as is needed where points may make an item of any cluster the
                best.
                Items that were not read may have any score: ``pool_scores`` are then infinite.
        """
        base = self.bias if bias is None else bias
        has_boosts |= base is self.bias and self._has_boosts
        asked = k, pool, base, has_boosts, penalty
        if not self._index or not any(probes):
            return self._scan(users, *asked, excluded, demoted)
        bests = []
        for row, count in enumerate(probes):
            one = slice(row, row + 1)
            scan = partial(self._scan, users[one], *asked, excluded[one], demoted[one])
            bests.append(_search(self._index, count, pool, scan) or scan())
        return Best(*map(np.concatenate, zip(*bests, strict=True)))

    def _scan(
        self,
        users: Floats,
        k: int,
        pool: int,
        base: Floats,
        has_boosts: bool,
        penalty: float,
        excluded: Sequence[Indices],
        demoted: Sequence[Indices],
        probes: int = 0,
    ) -> Best:
        """Return the best items of users, among all or those of ``probes`` clusters."""
        batch, own = len(users), bool(excluded or demoted)
        # The graphs of codes add the bias while they choose the pool, and not when they re-score.
        adds_bias = self.has_codes and (has_boosts or bool(demoted))
        best_of = pool if adds_bias else k
        # Those of score_many.onnx add it to a share of the score.
        many = bool(self._many_from) and batch >= self._many_from and not adds_bias
        name = SEARCH if probes else SCORE_MANY if many else SCORE
        idle = self._runs.idle((name, batch, best_of, pool, own))
        try:
            run = idle.pop()
        except IndexError:
            run = self._score_run(name, batch, best_of, pool, own=own)
        run.inputs["user"][:] = users
        if probes:
            run.inputs["probes"][0] = probes
        added = self._change_bias(run, base, excluded, demoted, penalty) if own else base
        if run.large["bias"].array is not added or own:
            run.read("bias", added)
        if self.programs.mapped:
            self.programs.count_lookups(batch * pool)
        run.go()
        outputs = run.outputs
        items, scores = outputs["items"].copy(), outputs["scores"].copy()
        is_full = not probes or outputs["pool_scores"][0, -1] > NEVER / 2
        if adds_bias and is_full:
            check_items(items, self.manifest.items)
            scores += np.take_along_axis(np.broadcast_to(added, (batch, added.shape[1])), items, 1)
            order = np.lexsort((items, -scores))[:, :k]
            items, scores = (np.take_along_axis(part, order, 1) for part in (items, scores))
        best = Best(items, scores, outputs["pool_scores"].copy() if self.has_codes else None)
        if own:
            for changed in (demoted, excluded):
                for row, places in enumerate(changed):
                    added[row, places] = base[0, places]
        elif base is not self.bias:
            run.read("bias", self.bias)  # an idle run must not keep the bias of a request alive
        idle.append(run)
        return best

    @staticmethod
    def _change_bias(
        run: Run,
        base: Floats,
        excluded: Sequence[Indices],
        demoted: Sequence[Indices],
        penalty: float,
    ) -> Floats:
        """Return the bias of a run's own, (B, rows), with what the users may not be shown."""
        own: Floats = run.large["bias"].array
        if run.base is None or run.base() is not base:
            own[:] = base
            run.base = ref(base)
        for row, items in enumerate(demoted):
            own[row, items] -= np.float32(penalty)
        for row, items in enumerate(excluded):
            own[row, items] = NEVER
        return own

    def _score_run(self, name: str, batch: int, k: int, pool: int, *, own: bool) -> Run:
        inputs: Arrays = {
            "user": np.zeros((batch, self._width), dtype=np.float32),
            "k": np.array([k], dtype=np.int64),
        }
        outputs: Arrays = {
            "items": np.zeros((batch, k), dtype=np.int64),
            "scores": np.zeros((batch, k), dtype=np.float32),
        }
        if self.has_codes:
            inputs["pool"] = np.array([pool], dtype=np.int64)
            outputs["pool_scores"] = np.zeros((batch, pool), dtype=np.float32)
        if name == SEARCH:
            inputs["probes"] = np.zeros(1, dtype=np.int64)
        run = Run(self.programs.session(name), self.provider, inputs, outputs)
        bias = np.repeat(self.bias, batch, axis=0) if own else self.bias
        run.read("bias", bias)
        if own:
            run.base = ref(self.bias)
            run.bytes += bias.nbytes
        return self._runs.made(run)

    def score_rows(self, user: Floats, items: Indices) -> Floats:
        """Return the scores of items for a user (D,), from mapped rows of the item table."""
        # A BLAS product rounds equal rows differently by their place, so equal scores would differ.
        rows = self.table[items].astype(np.float32, copy=False)
        self.programs.count_lookups(len(items))
        scores: Floats = np.einsum("nd,d->n", rows, user)
        return scores

    def off_by(self, users: Floats, best: Best) -> float:
        """Return the error of scores by codes beyond its bound, negative if within.

        Args:
            users: (B, D).
            best: Their best items with k = pool: then both scores are of the same items.
        """
        rounding = self.manifest.rounding
        assert rounding is not None
        assert best.pool_scores is not None
        missed = np.abs(best.scores - best.pool_scores).max(axis=1)
        slack = SUMS * (1 + np.abs(best.scores).max(axis=1))
        bounds = [rounding.bound(user) for user in users]
        return float((missed - slack - bounds).max())


def _search(index: Index, probes: int, pool: int, scan: Callable[..., Best]) -> Best | None:
    """Return the best items of the clusters that are nearest to a user.

    None: no clusters are to be read, or too few of their items may be ranked to fill the pool.
    """
    most = max(probes, MOST_PROBED * index.clusters)
    while 0 < probes <= most:
        if probes * index.size >= pool:
            best = scan(probes=probes)
            assert best.pool_scores is not None
            if best.pool_scores[0, -1] > NEVER / 2:
                check_unique(best.items[0])
                return best._replace(pool_scores=np.full_like(best.pool_scores, np.inf))
        probes *= 2
    return None
