"""Golden answers of a bundle: histories with their right answers, to check it on this machine."""

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ranklet.bundle.manifest import (
    ENCODE_ROWS,
    GOLDEN,
    MAX_MANIFEST_BYTES,
    MODEL,
    SCORE_MANY,
    SEARCH,
    Index,
    Manifest,
)
from ranklet.bundle.vocabulary import Vocabulary
from ranklet.catalogue import Bias
from ranklet.engine.engine import Engine, History
from ranklet.engine.programs import Programs
from ranklet.engine.sessions import ORT_ERRORS
from ranklet.errors import BundleError
from ranklet.ranking import Ranking
from ranklet.values import Ids, show

if TYPE_CHECKING:
    from ranklet.ranker import Ranker

# What golden answers of another form lead to.
MALFORMED: tuple[type[Exception], ...] = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError),
    RecursionError,
)
# Another processor or provider sums in another order; cosines over the temperature reach 14.
SCORE_TOLERANCE = 1e-3
# The golden answers are of full precision: fp16 rounds tables to one part in 2048.
FP16_TOLERANCE = 3e-2
LEAST_FOUND = 0.5  # of the golden items that an index should find


def check_golden(ranker: "Ranker", *, with_model: bool = True) -> list[float]:
    """Compare a ranker with the golden answers of its bundle.

    Args:
        ranker: The ranker, as it was loaded.
        with_model: Whether the programs are asked, too, that few requests use: model.onnx and
            encode_rows.onnx.

    Returns:
        The largest difference of a score of each answer.

    Raises:
        BundleError: An answer differs, or there is none.
    """
    engine, vocabulary, path = ranker.engine, ranker.vocabulary, ranker.path / GOLDEN
    tolerance = _tolerance(ranker.manifest)
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ValueError(f"it is larger than {MAX_MANIFEST_BYTES:,} bytes")
        golden = json.loads(path.read_bytes())
        differences, index = list[float](), ranker.manifest.index
        scans = with_model or index is None  # requests of an index never load score.onnx
        if scans:
            differences += [_compare(ranker, answer, n) for n, answer in enumerate(golden)]
        if index:
            differences.append(_compare_found(ranker, golden, index))
        for number, answer in enumerate(golden if with_model else []):
            ranking = ask_model(
                engine.programs, vocabulary, answer["history"], len(answer["items"])
            )
            name = f"golden answer {number} of {MODEL}"
            differences.append(_difference(ranking, answer, name, tolerance))
            if ENCODE_ROWS in ranker.manifest.programs:
                ranking = ask_rows(engine, vocabulary, answer["history"], answer["items"])
                name = f"golden answer {number} of {ENCODE_ROWS}"
                differences.append(_difference(ranking, answer, name, tolerance))
        if scans:
            check_codes(engine, [vocabulary.index(answer["history"]) for answer in golden])
    except MALFORMED as error:
        raise BundleError(f"{path} is damaged: {show(error)}") from error
    if not differences:
        raise BundleError(f"{path} holds no answers")
    return differences


def ask_model(programs: Programs, vocabulary: Vocabulary, history: Ids, k: int) -> Ranking:
    """Rank with model.onnx, as a program without ranklet does."""
    session = programs.session(MODEL)
    events = vocabulary.index(history)[None]
    inputs = {"history": events, "k": np.array([k])}
    if programs.manifest.uses_times:
        inputs |= {"since": np.zeros_like(events), "until": np.zeros(1, dtype=np.int64)}
    if programs.manifest.kinds:
        inputs |= {"kind": np.zeros_like(events), "objective": programs.manifest.objective[None]}
    try:
        items, scores = session.run(["items", "scores"], inputs)
    except ORT_ERRORS as error:
        raise BundleError(f"{MODEL}.onnx can't be run: {error}") from error
    return Ranking(vocabulary.ids(items[0]), scores[0], 0, cold=False)


def ask_rows(engine: Engine, vocabulary: Vocabulary, history: Ids, items: Ids) -> Ranking:
    """Score items with encode_rows.onnx, which takes the rows of the events."""
    user, _ = engine.attention(History(vocabulary.index(history)))
    indices = vocabulary.index(items)
    scores = engine.score_rows(user[0], indices) + engine.bias[0, indices]
    return Ranking(list(items), scores, 0, cold=False)


def check_codes(engine: Engine, histories: list[NDArray[np.int64]]) -> None:
    """Check that the error of scores by codes is within its bound, for one user and many.

    Raises:
        BundleError: It is larger.
    """
    if not engine.has_codes:
        return
    manifest = engine.manifest
    own = Bias.of(engine.bias, np.zeros(0, dtype=np.float32))
    pool, many = min(manifest.pool.minimum, own.items), manifest.programs.get(SCORE_MANY)
    for history in histories:
        user = engine.encode([History(history)])
        for batch in {1, many.least_users if many else 1}:
            users = user.repeat(batch, axis=0)
            best = engine.score(users, pool, pool, has_boosts=own.has_boosts)
            off = engine.off_by(users, best)
            if off > 0:
                raise BundleError(
                    f"scores by codes are off by {off:.2e} more than rounding explains, for "
                    f"{batch} user(s), on this machine: export with --precision fp32"
                )


def _compare(ranker: "Ranker", answer: dict[str, Any], number: int) -> float:
    """Return the largest difference of a score; items may change places only where scores tie.

    Both the whole history and a kept user with its last event appended are ranked.
    """
    history, k = answer["history"], len(answer["items"])
    user = ranker.user(history[:-1])
    user.rank(k)
    user.append(history[-1])
    fresh = ranker.rank(history, k=k, exclude_seen=False, exact=True)
    kept = user.rank(k, exclude_seen=False, exact=True)
    return max(
        _difference(ranking, answer, f"golden answer {number}{how}", _tolerance(ranker.manifest))
        for ranking, how in ((fresh, ""), (kept, " of a kept user"))
    )


def _compare_found(ranker: "Ranker", golden: list[dict[str, Any]], index: Index) -> float:
    """Return the largest difference of a score of the golden items that the index finds.

    Another machine may read another cluster, so that some may be missing, but never many.
    """
    differences, wanted = [0.0], 0
    for answer in golden:
        wanted += len(answer["items"])
        found = ranker.rank(answer["history"], k=len(answer["items"]), exclude_seen=False)
        scores = dict(zip(found.items, found.scores.tolist(), strict=True))
        pairs = zip(answer["items"], answer["scores"], strict=True)
        differences += [abs(scores[item] - score) for item, score in pairs if item in scores]
    count, recall = len(differences) - 1, float(index.figures.get("recall@10", 0))
    if not max(differences) <= SCORE_TOLERANCE or count < LEAST_FOUND * recall * wanted:
        raise BundleError(
            f"{SEARCH}.onnx finds {count} of {wanted} golden items on this machine, and their "
            f"scores differ by {max(differences):.2e} (tolerance {SCORE_TOLERANCE})"
        )
    return max(differences)


def _tolerance(manifest: Manifest) -> float:
    return FP16_TOLERANCE if manifest.precision == "fp16" else SCORE_TOLERANCE


def _difference(ranking: Ranking, answer: dict[str, Any], name: str, tolerance: float) -> float:
    expected = np.array(answer["scores"])
    difference = float(np.abs(ranking.scores - expected).max())
    gaps = np.abs(np.diff(expected, prepend=np.inf, append=-np.inf))
    is_tied = np.minimum(gaps[:-1], gaps[1:]) <= 2 * tolerance
    moved = np.array([a != b for a, b in zip(ranking.items, answer["items"], strict=True)])
    if not difference <= tolerance or (moved & ~is_tied).any():
        raise BundleError(
            f"{name} differs on this machine: expected {show(answer['items'])}, got "
            f"{show(ranking.items)}; scores differ by {difference:.2e} (tolerance {tolerance})"
        )
    return difference
