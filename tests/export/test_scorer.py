"""Rounding stays within its bounds, and the selection is that of a full sort."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from ranklet import Ranking
from ranklet.bundle.manifest import CHUNK, CODE_BITS, NEVER, WEIGHTS, Precision, Rounding
from ranklet.engine.sessions import create_session
from ranklet.ranking import Margin
from ranklet_export import scorer
from ranklet_export.scorer import Codes, Scorer, can_score_many, quantize
from ranklet_export.writer import GraphWriter, WeightFile

Floats = NDArray[np.float32]
Session = onnxruntime.InferenceSession
ROWS, WIDTH = 7 * CHUNK, 16
ITEMS = ROWS - 5  # rows from here on are padding
FP32 = 1e-5  # relative error of sums in fp32
TINY = 1e-18  # squares of less vanish
# What scores: a precision, or score_many.onnx of int8.
MANY = "int8, many users"
KINDS: dict[str, Precision] = {"fp32": "fp32", "int8": "int8", "int4": "int4", MANY: "int8"}
CODED = ["int8", "int4", MANY]
each_kind = pytest.mark.parametrize("kind", KINDS)
each_number_of_bits = pytest.mark.parametrize("bits", CODE_BITS.values())
examples = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

# Rounding


def tables(width: int) -> st.SearchStrategy[Floats]:
    shapes = st.tuples(st.integers(1, 9), st.just(width))
    return arrays(np.float32, shapes, elements=st.floats(-1e4, 1e4, width=32))


def restore(codes: Codes, table: Floats) -> NDArray[np.float64]:
    """Return what the codes stand for, in float64 and in the shape of the table."""
    numbers = codes.codes
    if codes.bits == 4:
        pairs = np.stack([numbers & 15, numbers >> 4], axis=-1)
        numbers = pairs.reshape(*codes.scales.shape, -1)
    whole = (numbers.astype(np.float64) - 2 ** (codes.bits - 1)) * codes.scales[..., None]
    flat = whole.reshape(len(whole), -1)
    assert not flat[len(table) :].any()
    assert not flat[:, table.shape[1] :].any()
    return flat[: len(table), : table.shape[1]]


@pytest.mark.parametrize("width", [1, 17, 64, 300])
@examples
@given(data=st.data())
def test_a_component_is_off_by_half_a_step_at_most(width: int, data: st.DataObject) -> None:
    table = data.draw(tables(width))
    codes = quantize(table)
    steps = np.repeat(codes.scales[: len(table)], codes.codes.shape[2], axis=1)[:, :width]
    largest = np.abs(table).max(axis=1, keepdims=True)
    if width <= 256:
        is_zero = largest < 1e-35  # beyond what a score can tell
        assert (is_zero | (np.abs(steps * 127 - largest) <= 1e-6 * largest)).all()
    error = np.abs(restore(codes, table) - table)
    error[steps == 0] *= np.abs(table[steps == 0]) > 1e-35  # as above
    assert (error <= steps * (0.5 + 1e-5)).all(), f"off by {error.max()}"


@each_number_of_bits
@pytest.mark.parametrize("width", [1, 16, 300])
@examples
@given(data=st.data())
def test_what_a_row_loses_is_below_the_bounds(width: int, bits: int, data: st.DataObject) -> None:
    table = data.draw(tables(width))
    codes = quantize(table, bits)
    restored = restore(codes, table)
    lost = np.linalg.norm(restored - table, axis=1).max()
    norm = np.linalg.norm(restored, axis=1).max()
    assert lost <= codes.row_error * (1 + FP32) + FP32 * norm + TINY
    assert norm <= codes.row_norm * (1 + FP32) + TINY


@each_number_of_bits
def test_zeros_stay_zeros_and_large_tables_are_rounded_in_parts(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = np.random.default_rng(0).normal(size=(200, 40)).astype(np.float32)
    table[0] = table[7] = 0
    table[3, ::2] = 0
    whole = quantize(table, bits)
    assert (restore(whole, table)[table == 0] == 0).all()
    assert (whole.scales[[0, 7]] == 0).all()
    monkeypatch.setattr(scorer, "ROWS_AT_ONCE", 64)
    parts = quantize(table, bits)
    assert (parts.codes == whole.codes).all()
    assert (parts.scales == whole.scales).all()
    assert (parts.row_error, parts.row_norm) == (whole.row_error, whole.row_norm)


def test_steps_of_4_bits_lose_least_of_those_tried() -> None:
    table = np.random.default_rng(0).standard_cauchy((50, 16)).astype(np.float32)
    found = np.square(restore(quantize(table, 4), table) - table).sum(axis=1)
    for share in (1, 0.95, 0.9, 0.85, 0.8, 0.75):
        step = np.abs(table).max(axis=1, keepdims=True) / 7 * share
        lost = np.square(np.clip(np.rint(table / step), -8, 7) * step - table).sum(axis=1)
        assert (found <= lost * (1 + 1e-3)).all()


def test_only_narrow_tables_of_8_bits_that_are_not_huge_have_a_graph_for_many_users(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    narrow, wide = (np.ones((CHUNK, width), dtype=np.float32) for width in (256, 257))
    assert can_score_many(quantize(narrow))
    assert not can_score_many(quantize(wide))
    assert not can_score_many(quantize(narrow, 4))
    monkeypatch.setattr(scorer, "LARGEST_TWICE", narrow.size - 1)
    assert not can_score_many(quantize(narrow))


# Selection


def load(table: Floats, kind: str) -> Session:
    """Load a graph that picks from the rows of a table, as the runtime would."""
    precision = KINDS[kind]
    codes = quantize(table, CODE_BITS[precision]) if precision in CODE_BITS else None
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "score.onnx"
        with path.with_name(WEIGHTS).open("wb") as file:
            writer = GraphWriter(WeightFile(file))
            Scorer(writer, table, precision, many=kind == MANY).write(codes)
        path.write_bytes(writer.model(23).SerializeToString())
        onnx.checker.check_model(path, full_check=True)
        # On CUDA, how many to pick must be known on the host: it is an input, or the least of two.
        made_by = {name: node.op_type for node in writer.graph.node for name in node.output}
        sizes = [made_by.get(node.input[1]) for node in writer.graph.node if node.op_type == "TopK"]
        assert set(sizes) <= {None, "Min"}
        return create_session(path, "cpu", 1)[0]


@pytest.fixture(params=[1, ROWS + 1], ids=["two levels", "one level"])
def load_either(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Floats, str], Session]:
    for name in ("TWO_LEVELS_FROM", "TWO_LEVELS_OF_MANY_FROM"):
        monkeypatch.setattr(scorer, name, request.param)
    return load


def ask(session: Session, users: Floats, k: int, pool: int, bias: Floats) -> dict[str, Any]:
    values = {"user": users, "k": np.array([k]), "pool": np.array([pool])}
    values["bias"] = np.atleast_2d(bias)
    inputs = {tensor.name: values[tensor.name] for tensor in session.get_inputs()}
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def sort_fully(scores: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Return the k best places of each row, ties by place."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


USERS = np.eye(WIDTH, dtype=np.float32)[:3] * np.array([[1], [-1], [2]], dtype=np.float32)
seeds = st.integers(0, 2**32 - 1)


def draw(seed: int, levels: int) -> tuple[Floats, Floats, int]:
    """Return a table of whole numbers, a bias (of each user or of all) and how many it leaves.

    Users are one-hot, so that scores are exact and many of them tied.
    """
    random = np.random.default_rng(seed)
    table = random.integers(-levels, levels + 1, (ROWS, WIDTH)).astype(np.float32)
    table[0] = table[ITEMS:] = 0
    bias = np.zeros((len(USERS) if seed % 2 else 1, ROWS), dtype=np.float32)
    bias[:, 0] = bias[:, ITEMS:] = NEVER
    count = int(random.integers(ITEMS - 1))
    for row in bias:
        row[1 + random.permutation(ITEMS - 1)[:count]] = NEVER
    return table, bias, ITEMS - 1 - count


@each_kind
@examples
@given(seed=seeds, levels=st.sampled_from([1, 3, 7]), share=st.floats(0, 1))
def test_a_pool_of_all_items_picks_what_a_full_sort_picks(
    load_either: Any, kind: str, seed: int, levels: int, share: float
) -> None:
    table, bias, left = draw(seed, levels)
    k = max(1, round(share * left))
    found = ask(load_either(table, kind), USERS, k, left, bias)
    scores = USERS @ table.T + bias
    np.testing.assert_array_equal(found["items"], sort_fully(scores, k))
    np.testing.assert_array_equal(found["scores"], -np.sort(-scores, axis=1)[:, :k])


@pytest.mark.parametrize("kind", CODED)
@examples
@given(seed=seeds, share=st.floats(0, 1))
def test_no_score_by_codes_outside_the_pool_is_above_its_last(
    load_either: Any, kind: str, seed: int, share: float
) -> None:
    table, bias, left = draw(seed, 100)
    pool = max(1, round(share * left))
    found = ask(load_either(table, kind), USERS, pool, pool, bias)
    assert (np.diff(found["pool_scores"], axis=1) <= 0).all()
    rounded = USERS @ restore(quantize(table, CODE_BITS[KINDS[kind]]), table).T + bias
    tolerance = 1e-3 * 2 * np.abs(table).max()  # users are rounded, too
    for row, last in enumerate(found["pool_scores"][:, -1]):
        assert (rounded[row, found["items"][row]] >= last - tolerance).all()
        assert (np.delete(rounded[row], found["items"][row]) <= last + tolerance).all()


@pytest.mark.parametrize(("width", "k"), [(16, 1), (17, 64), (50, 300)])
@each_kind
def test_equal_rows_are_ranked_by_index(load_either: Any, kind: str, k: int, width: int) -> None:
    random = np.random.default_rng(k)
    # Codes of 4 bits hold them exactly, so that a pool that ends among equal rows holds the best.
    rows = random.integers(-7, 8, (5, width)).astype(np.float32)
    rows[:, 0] = 7
    table = np.tile(rows, (ROWS // 5 + 1, 1))[:ROWS]
    users = random.normal(size=(4, width)).astype(np.float32)
    bias = np.zeros(ROWS, dtype=np.float32)
    bias[0] = NEVER
    found = ask(load_either(table, kind), users, k, min(2 * k, ROWS - 1), bias)
    scores = (users @ rows.T)[:, np.arange(ROWS) % 5] + bias
    np.testing.assert_array_equal(found["items"], sort_fully(scores, k))


@each_kind
@pytest.mark.parametrize("k", [1, 257, 258, 900])  # there are 257 chunks
def test_a_large_catalogue_is_picked_from_in_two_levels(kind: str, k: int) -> None:
    rows = 257 * CHUNK
    assert rows > scorer.TWO_LEVELS_FROM
    table = np.random.default_rng(0).integers(-7, 8, (rows - 9, 4)).astype(np.float32)
    bias = np.zeros(rows, dtype=np.float32)
    bias[0] = bias[-9:] = NEVER  # rows of padding are added
    found = ask(load(table, kind), USERS[:, :4], k, rows - 10, bias)
    scores = USERS[:, :4] @ table.T + bias[:-9]
    np.testing.assert_array_equal(found["items"], sort_fully(scores, k))


@pytest.mark.parametrize("width", [1, 17, 256])
def test_many_users_are_scored_as_one_is(load_either: Any, width: int) -> None:
    random = np.random.default_rng(width)
    table = random.normal(size=(ROWS, width)).astype(np.float32)
    # Users of any size side by side, zeros among them: each is rounded by its own.
    users = random.normal(size=(9, width)).astype(np.float32) * 10.0 ** np.arange(-4, 5)[:, None]
    users = np.concatenate([users, np.zeros((1, width))]).astype(np.float32)
    bias = np.zeros(ROWS, dtype=np.float32)
    one, many = (ask(load_either(table, kind), users, 5, 40, bias) for kind in ("int8", MANY))
    np.testing.assert_array_equal(one["items"], many["items"])
    np.testing.assert_array_equal(one["scores"], many["scores"])
    sizes = np.abs(users).max(axis=1, keepdims=True) * np.abs(table).max() * width
    assert (np.abs(one["pool_scores"] - many["pool_scores"]) <= 1e-6 * sizes).all()


# (user, rows): of the pool of two, the first row is the best; the third row is better, but its
# 8-bit score is below both, since the parts of its score lie just below half a step.
ADVERSARIES = {
    "rows": ([1.0] * 16, [[131.0] + [0.0] * 15, [127.5] + [0.0] * 15, [127.0] + [0.49] * 15]),
    "users": ([127.0] + [0.49] * 15, [[103.0] + [0.0] * 15, [101.0] + [0.0] * 15, [100.0] * 16]),
}


@pytest.mark.parametrize(("user", "rows"), ADVERSARIES.values(), ids=ADVERSARIES)
def test_a_better_row_that_rounds_badly_is_not_ruled_out(
    user: list[float], rows: list[list[float]]
) -> None:
    table, users = np.zeros((CHUNK, WIDTH), dtype=np.float32), np.array([user], dtype=np.float32)
    table[1:4] = rows
    bias = np.full(CHUNK, NEVER, dtype=np.float32)
    bias[1:4] = 0
    session, codes = load(table, "int8"), quantize(table)
    assert ask(session, users, 1, 3, bias)["items"] == 3
    found = ask(session, users, 1, 2, bias)
    assert found["items"] == 1
    last, floor = found["scores"].item(0, -1), found["pool_scores"].item(0, -1)
    margin = Margin(users[0], last, floor, Rounding(codes.row_error, codes.row_norm))
    assert not Ranking(["x"], found["scores"][0], 0, cold=False, _margin=margin).exact
