"""Check on the target machine that a bundle is whole and answers as it did where it was made."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ranklet.bundle import Manifest
from ranklet.errors import BundleError
from ranklet.graph import SMALLEST_BATCH, Events
from ranklet.provider import Provider
from ranklet.ranker import Ranker
from ranklet.requests import Ranking

# Another processor or provider sums in another order; cosines over the temperature reach 14.
SCORE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class VerifyReport:
    """What was checked, all of it with success."""

    files: int
    bytes: int
    items: int
    golden: int
    max_score_difference: float
    provider: str


def verify(path: str | Path, *, provider: Provider = "auto", threads: int = 1) -> VerifyReport:
    """Check digests, the graph's contract and the golden answers of a bundle.

    Args:
        path: Folder of the bundle.
        provider: Where the golden answers are computed again.
        threads: As in ``Ranker.load``.

    Raises:
        BundleError: Something is not as the manifest says, or an answer differs.
        ProviderError: CUDA was asked for and does not run.
    """
    path = Path(path)
    Manifest.read(path, hash_up_to=sys.maxsize)  # every file, however large
    ranker = Ranker.load(path, provider=provider, threads=threads, check_digests=False)
    try:
        golden = json.loads((path / "golden.json").read_bytes())
        differences = [_compare(ranker, answer, n) for n, answer in enumerate(golden)]
        _check_codes(ranker, [answer["history"] for answer in golden])
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path / 'golden.json'} is damaged: {error!r}") from error
    if not differences:
        raise BundleError(f"{path / 'golden.json'} holds no answers")
    files = ranker.manifest.files
    return VerifyReport(
        files=len(files),
        bytes=sum(file.size for file in files.values()),
        items=len(ranker),
        golden=len(golden),
        max_score_difference=max(differences),
        provider=ranker.provider,
    )


def _check_codes(ranker: Ranker, histories: list[Any]) -> None:
    """Check that scores by codes are as near to fp32 as claimed, alone and in a batch."""
    graphs, plain = ranker.graphs, ranker.plain
    if not graphs.is_rounded:
        return
    pool = min(graphs.smallest_pool, len(ranker))
    for history in histories:
        row = ranker.vocabulary.index(history)[None]
        found = {
            f"in a batch of {batch}": graphs.rank(
                Events(row.repeat(batch, axis=0)), pool, pool=pool
            )
            for batch in (1, SMALLEST_BATCH)
        }
        if plain is not None:
            found["alone"] = plain.rank(row[0], pool, pool)
        for how, best in found.items():
            off = graphs.off_by(best)
            if off > 0:
                raise BundleError(
                    f"scores by codes are off by {off:.2e} more than rounding explains, {how}, "
                    "on this machine: export with --precision fp32"
                )


def _compare(ranker: Ranker, answer: dict[str, Any], number: int) -> float:
    """Return the largest difference of a score; items may change places only where scores tie.

    Asked for the whole history at once, and for a kept user after its last event.
    """
    history, k = answer["history"], len(answer["items"])
    user = ranker.user(history[:-1])
    user.rank(k)
    user.append(history[-1])
    return max(
        _difference(found, answer, f"golden answer {number}{how}")
        for found, how in ((ranker.rank(history, k=k), ""), (user.rank(k), " of a kept user"))
    )


def _difference(found: Ranking, answer: dict[str, Any], name: str) -> float:
    expected = np.array(answer["scores"])
    difference = float(np.abs(found.scores - expected).max())
    gaps = np.abs(np.diff(expected, prepend=np.inf, append=-np.inf))
    is_tied = np.minimum(gaps[:-1], gaps[1:]) <= 2 * SCORE_TOLERANCE
    moved = np.array([a != b for a, b in zip(found.items, answer["items"], strict=True)])
    if not difference <= SCORE_TOLERANCE or (moved & ~is_tied).any():
        raise BundleError(
            f"{name} differs on this machine: expected {answer['items']}, got "
            f"{found.items}; scores differ by {difference:.2e} (tolerance {SCORE_TOLERANCE})"
        )
    return difference
