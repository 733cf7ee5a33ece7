"""Open a bundle and ask it everything, and say how that ended."""

import math
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from ranklet import Ranker, Ranking, RankletError
from ranklet.verify import verify
from ranklet_cli.bundle import inspect

HISTORY = ["1", "2571", "260", "50", "6"]
LONGEST_MESSAGE = 2_000  # characters
AS_BEFORE, OTHERWISE, REFUSED = (
    "answered as before",
    "answered from its catalogue",
    "refused by name",
)


def open_bundle(folder: Path, expected: list[Any] | None = None) -> str:
    """Load a bundle, rank in every way, verify and inspect it.

    Args:
        folder: The folder of the bundle.
        expected: The answers of the shipped bundle; None: nothing is compared.

    Returns:
        How it ended, one of the three texts above, and what the error says.

    Raises:
        Exception: Something that is no error of ranklet's, or a wrong answer.
    """
    try:
        found = answers(Ranker.load(folder, provider="cpu"))
        verify(folder, provider="cpu")
        shown = CliRunner().invoke(inspect, [str(folder)])
        if shown.exception:
            raise shown.exception
    except RankletError as error:
        if len(str(error)) > LONGEST_MESSAGE:
            raise AssertionError(f"a message of {len(str(error))} characters") from error
        return f"{REFUSED}: {error}"
    return AS_BEFORE if found == expected else OTHERWISE


def answers(ranker: Ranker) -> list[Any]:
    """Return answers of every kind of request."""
    ids = [str(item) for item in ranker.ids[:3]]
    history = [*HISTORY, *ids]
    user = ranker.user(history[:-1])
    rankings = [
        ranker.rank(history),
        ranker.rank(history, k=200, exclude_seen=True, exclude=ids[:1]),
        ranker.rank(history * 20),
        ranker.rank(history, candidates=ids),
        ranker.rank(history, diversity=0.5, seen_recently=ids, skip=2, boost=[({}, 1.0)]),
        ranker.rank(history, explain=True),
        ranker.rank([], cold="popular"),
        ranker.similar(ids[0]),
        *ranker.rank_batch([history] * 9),
        user.rank(),
    ]
    user.append(history[-1])
    rankings += [user.rank(), ranker.user().load(user.save()).rank()]
    for name in ranker.attributes:
        rankings.append(ranker.rank(history, where={name: ["a", "b"]}, at_most={name: 2}))
    every = set(ranker.ids)
    for ranking in rankings:
        if not every.issuperset(ranking.items) or len({*ranking.items}) < len(ranking.items):
            raise AssertionError(f"items {ranking.items[:20]}")
        if not all(map(math.isfinite, ranking.scores.tolist())):
            raise AssertionError(f"scores {ranking.scores[:20]}")
    vector = ranker.user_vector(history)
    if not all(map(math.isfinite, vector.tolist())):
        raise AssertionError(f"user vector {vector[:20]}")
    return [*map(_plain, rankings), ranker.titles(ids), ranker.find("matrix")]


def _plain(ranking: Ranking) -> tuple[Any, ...]:
    scores = [round(score, 4) for score in ranking.scores.tolist()]
    return ranking.items, scores, ranking.cold, ranking.exact
