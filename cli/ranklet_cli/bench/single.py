"""One request alone: where its time goes, and what one more event costs on a kept state."""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ranklet.device import Inputs
from ranklet.graph import Events
from ranklet.ranker import Ranker
from ranklet.vocabulary import Ids
from ranklet_cli.bench.bundles import random_histories
from ranklet_cli.bench.cases import (
    REQUESTS,
    SETTLE,
    Blocks,
    bare_runs,
    block_medians,
    milliseconds,
    run_graph,
)
from ranklet_cli.bench.report import Append, Setting, Stages

if TYPE_CHECKING:
    from ranklet.graph import Session

PARTS = ("rank", "lookup", "graph", "ids", "whole", "encode")
APART = REQUESTS // 3  # requests between those that one pass takes


class _Request(NamedTuple):
    history: Ids
    session: "Session"
    inputs: Inputs  # of the session
    last: Inputs  # of model.onnx, for the last event alone


@dataclass
class StageTimer:
    """A whole request, then the parts of another one, so that the caches are as in a request.

    Scoring is what model.onnx takes longer than encoder.onnx, for one event: both do the same else.
    """

    setting: Setting
    ranker: Ranker
    seed: int
    times: dict[str, Blocks] = field(default_factory=lambda: {name: [] for name in PARTS})

    def __post_init__(self) -> None:
        """Draw the requests."""
        length, k = self.setting.length, self.setting.k
        rows = random_histories(self.ranker, REQUESTS, length, self.seed)
        graphs = self.ranker.graphs
        pool = min(graphs.pool_of(k), len(self.ranker))
        self.requests = [
            _Request(
                row,
                *next(bare_runs(self.ranker, [row], k)),
                graphs.rank_inputs(
                    Events(self.ranker.vocabulary.index(row[-1:])[None]), min(k, pool), pool=pool
                ),
            )
            for row in rows
        ]

    def time_block(self, begin: int, count: int) -> None:
        """Time some requests, those of number ``begin`` and on."""
        passes = [self._time_parts(begin + number) for number in range(SETTLE + count)]
        for name, times in zip(PARTS, zip(*passes[SETTLE:], strict=True), strict=True):
            self.times[name].append(list(times))

    def _time_parts(self, number: int) -> list[int]:
        """Return nanoseconds of the whole request and of its parts."""
        graphs, vocabulary, clock = self.ranker.graphs, self.ranker.vocabulary, time.perf_counter_ns
        whole, parts, encoded = (
            self.requests[(number + place * APART) % REQUESTS] for place in range(3)
        )
        names = [tensor.name for tensor in graphs.encoder.get_inputs()]
        encoder_inputs = {name: encoded.last[name] for name in names}
        marks = [clock()]
        self.ranker.rank(whole.history, k=self.setting.k)
        marks.append(clock())
        vocabulary.index(parts.history)
        marks.append(clock())
        items, *_ = run_graph(parts.session, graphs.answers, parts.inputs)
        marks.append(clock())
        vocabulary.ids(items[0])
        marks.append(clock())
        run_graph(graphs.session, graphs.answers, encoded.last)
        marks.append(clock())
        run_graph(graphs.encoder, ["user"], encoder_inputs)
        marks.append(clock())
        return np.diff(marks).tolist()

    def stages(self) -> Stages:
        """Return what was found."""
        p50 = {name: float(np.median(milliseconds(self.times[name]))) for name in PARTS}
        score = p50["whole"] - p50["encode"]
        return Stages(
            **vars(self.setting),
            rank_ms=p50["rank"],
            lookup_ms=p50["lookup"],
            encode_ms=p50["graph"] - score,
            score_ms=score,
            ids_ms=p50["ids"],
            python_ms=p50["rank"] - p50["lookup"] - p50["graph"] - p50["ids"],
        )


@dataclass
class AppendTimer:
    """One more event of a user whose state is kept, beside the whole history ranked again."""

    setting: Setting
    ranker: Ranker
    seed: int
    times: Blocks = field(default_factory=list)
    rank_times: Blocks = field(default_factory=list)

    def __post_init__(self) -> None:
        """Draw a history and encode it, and draw what may come next."""
        (self.history,) = random_histories(self.ranker, 1, self.setting.length, self.seed)
        (self.events,) = random_histories(self.ranker, 1, REQUESTS, self.seed + 1)
        user = self.ranker.user(self.history[:-1])
        user.rank(self.setting.k)
        self.saved = user.save()

    def time_block(self, begin: int, count: int) -> None:
        """Time some events, those of number ``begin`` and on, each after the same history."""
        pairs = [self._time_pair(begin + number) for number in range(SETTLE + count)]
        appended, ranked = zip(*pairs[SETTLE:], strict=True)
        self.times.append(list(appended))
        self.rank_times.append(list(ranked))

    def _time_pair(self, number: int) -> tuple[int, int]:
        """Return nanoseconds of the event and of the whole history with it."""
        user, k = self.ranker.user().load(self.saved), self.setting.k
        user.append(self.history[-1])
        user.rank(k)  # from here on the state lies where events are put
        event = self.events[number % REQUESTS]
        whole = [*self.history, event]
        start = time.perf_counter_ns()
        user.append(event)
        user.rank(k)
        middle = time.perf_counter_ns()
        self.ranker.rank(whole, k=k)
        return middle - start, time.perf_counter_ns() - middle

    def append(self) -> Append:
        """Return what was found."""
        return Append(
            **vars(self.setting),
            append_p50_ms=float(np.median(milliseconds(self.times))),
            rank_p50_ms=float(np.median(milliseconds(self.rank_times))),
            blocks_ms=block_medians(self.times),
        )
