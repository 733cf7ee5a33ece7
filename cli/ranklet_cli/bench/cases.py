"""Calls one after another: whole requests, and the bare runs of the graph inside them."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ranklet.device import Inputs
from ranklet.errors import ProviderError
from ranklet.graph import Events
from ranklet.provider import ORT_ERRORS
from ranklet.ranker import Ranker, batches
from ranklet.vocabulary import Ids
from ranklet_cli.bench.bundles import random_histories
from ranklet_cli.bench.limit import least_bytes
from ranklet_cli.bench.report import Measurement, Setting

if TYPE_CHECKING:
    from ranklet.graph import Session

WARM_UP = 10  # calls of each case before anything is timed
BLOCK = 20  # timed calls of a case before the next one has its turn
SETTLE = 3  # untimed calls at the start of a block: caches are cold, other threads still spin
REQUESTS = 16  # different requests of a case, so that no single history stays in the caches
RUNS_OF_P99_9 = 1000

Blocks = list[list[int]]  # times of calls in ns, a list for each block


@dataclass
class Case:
    """One combination: its requests, the bare runs that they become, and its times."""

    setting: Setting
    ranker: Ranker
    seed: int
    times: Blocks = field(default_factory=list)
    session_times: Blocks = field(default_factory=list)

    def __post_init__(self) -> None:
        """Draw the requests, and warm up."""
        batch, length = self.setting.batch, self.setting.length
        self.requests = [
            random_histories(self.ranker, batch, length, self.seed + number)
            for number in range(REQUESTS)
        ]
        k = self.setting.k
        self.bare = [list(bare_runs(self.ranker, rows, k)) for rows in self.requests]
        for call in (self.rank, self.run_session):
            for number in range(WARM_UP):
                call(number)

    def rank(self, number: int) -> None:
        """Answer one of the requests."""
        histories = self.requests[number % REQUESTS]
        if self.setting.batch == 1:
            self.ranker.rank(histories[0], k=self.setting.k)
        else:
            self.ranker.rank_batch(histories, k=self.setting.k)

    def run_session(self, number: int) -> None:
        """Run the graph alone as such a request does."""
        for session, inputs in self.bare[number % REQUESTS]:
            run_graph(session, self.ranker.graphs.answers, inputs)

    def time_block(self, begin: int, count: int) -> None:
        """Time some calls, those of number ``begin`` and on."""
        for call, times in ((self.rank, self.times), (self.run_session, self.session_times)):
            times.append(time_calls(call, begin, count))

    def measurement(self, bandwidth: float | None) -> Measurement:
        """Return what was found; ``bandwidth`` is in bytes a second."""
        found = milliseconds(self.times)
        p50, p95, p99, p99_9 = np.percentile(found, [50, 95, 99, 99.9]).tolist()
        mean, least = float(found.mean()), least_bytes(self.ranker.manifest)
        return Measurement(
            **vars(self.setting),
            runs=len(found),
            p50_ms=p50,
            p95_ms=p95,
            p99_ms=p99,
            p99_9_ms=p99_9 if len(found) >= RUNS_OF_P99_9 else None,
            mean_ms=mean,
            users_per_second=1e3 * self.setting.batch / mean,
            session_p50_ms=float(np.median(milliseconds(self.session_times))),
            read_bytes=least,
            limit_ms=None if bandwidth is None else 1e3 * least / bandwidth,
            blocks_ms=block_medians(self.times),
        )


def time_calls(call: Callable[[int], None], begin: int, count: int) -> list[int]:
    """Return nanoseconds of each call, after some that are not timed."""
    for number in range(SETTLE):
        call(begin + number)
    times = []
    for number in range(begin, begin + count):
        start = time.perf_counter_ns()
        call(number)
        times.append(time.perf_counter_ns() - start)
    return times


def milliseconds(blocks: Blocks) -> NDArray[np.float64]:
    """Return the times of all blocks."""
    return np.concatenate(blocks) / 1e6


def block_medians(blocks: Blocks) -> list[float]:
    """Return the median of each block in milliseconds."""
    return [float(np.median(block)) / 1e6 for block in blocks]


def bare_runs(ranker: Ranker, histories: list[Ids], k: int) -> "Iterator[tuple[Session, Inputs]]":
    """Yield a session and what it gets, run by run, for histories of one length as ``Ranker``."""
    graphs, plain = ranker.graphs, ranker.plain
    pool = min(graphs.pool_of(k), len(ranker))
    for part in batches(histories, len(ranker)):
        indices = np.stack([ranker.vocabulary.index(history) for history in part])
        is_alone = len(histories) == 1 and pool < len(ranker)
        if is_alone and plain is not None and plain.can_rank(indices.shape[1], k):
            yield plain.bare(indices[0], k, pool)
        else:
            inputs = graphs.rank_inputs(Events(indices), min(k, pool), pool=pool)
            yield graphs.session_for(len(part)), inputs


def run_graph(session: "Session", names: list[str], inputs: Inputs) -> list[Any]:
    """Run a graph.

    Raises:
        ProviderError: onnxruntime fails.
    """
    try:
        return session.run(names, inputs)
    except ORT_ERRORS as error:
        raise ProviderError(f"onnxruntime failed: {error}") from error
