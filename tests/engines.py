"""Users for engines that rank all of them, and the answers that they must get."""

import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ranklet import Ranker

SCORE_TOLERANCE = 1e-4  # as a batch of another shape sums in another order


def draw_users(ranker: Ranker, count: int = 400) -> pa.Table:
    """Return users with histories, every fifth of which is empty, and with items to exclude."""
    random, ids = np.random.default_rng(0), list(ranker.ids)
    sizes = np.resize([0, 1, 5, 12, 40], count)
    histories = [[ids[at] for at in random.integers(0, len(ids), size)] for size in sizes]
    dropped = [None if user % 7 == 0 else history[:1] for user, history in enumerate(histories)]
    return pa.table({"user": np.arange(count), "history": histories, "dropped": dropped})


def check_ranked(ranked: pa.Table, users: pa.Table, ranker: Ranker, **options: Any) -> None:
    """Check that every user is there once, with the answer of ``rank_batch``."""
    assert ranked.column_names == [*users.column_names, "items", "scores"]
    ranked = ranked.sort_by("user")
    assert ranked.select(users.column_names).to_pylist() == users.to_pylist()
    expected = ranker.rank_batch(users["history"].to_pylist(), **options)
    assert ranked["items"].to_pylist() == [ranking.items for ranking in expected]
    for scores, ranking in zip(ranked["scores"].to_pylist(), expected, strict=True):
        assert np.allclose(scores, ranking.scores, rtol=0, atol=SCORE_TOLERANCE)


def deadly_option(marker: Path) -> Any:
    """Return an ``at_most`` of no attribute: the first process that ranks three batches dies."""

    class Deadly(Mapping[str, int]):
        batches = 0

        def __getitem__(self, name: str) -> int:
            raise KeyError(name)

        def __len__(self) -> int:
            return 0

        def __iter__(self) -> Iterator[str]:
            self.batches += 1
            if self.batches == 3 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return iter(())

    return Deadly()
