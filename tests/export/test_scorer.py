"""Rounding stays within its bounds, and the selection is that of a full sort."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from ranklet import Ranking
from ranklet.answer import Margin
from ranklet.bundle.manifest import CHUNK, CODE_BITS, NEVER, Precision, Rounding
from ranklet_export import scorer
from ranklet_export.scorer import Codes, Scorer, can_score_many, quantize
from ranklet_export.writer import GraphWriter

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Session = onnxruntime.InferenceSession
ROWS, WIDTH = 7 * CHUNK, 16
ITEMS = ROWS - 5  # rows from here on are padding
FP32 = 1e-5  # relative error of sums in fp32
BITS = [*CODE_BITS.values()]
TINY = 1e-18  # squares of less vanish
examples = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

# Rounding


def tables(width: int) -> st.SearchStrategy[Floats]:
    shapes = st.tuples(st.integers(1, 9), st.just(width))
    return arrays(np.float32, shapes, elements=st.floats(-1e4, 1e4, width=32))


def restore(codes: Codes, table: Floats, bits: int = 8) -> NDArray[np.float64]:
    """Return what the codes stand for, in float64 and in the shape of the table."""
    numbers = codes.codes
    if bits == 4:
        pairs = np.stack([numbers & 15, numbers >> 4], axis=-1)
        numbers = pairs.reshape(*codes.scales.shape, -1)
    whole = (numbers.astype(np.float64) - 2 ** (bits - 1)) * codes.scales[..., None]
    flat = whole.reshape(len(whole), -1)
    assert not flat[len(table) :].any()
    assert not flat[:, table.shape[1] :].any()
    return flat[: len(table), : table.shape[1]]


@pytest.mark.parametrize("width", [1, 8, 17, 64, 300])
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


@pytest.mark.parametrize("width", [1, 16, 64])
@examples
@given(data=st.data())
def test_steps_of_4_bits_lose_least_of_those_tried(width: int, data: st.DataObject) -> None:
    table = data.draw(tables(width))
    lost = np.square(restore(quantize(table, 4), table, 4) - table).sum(axis=1)
    for row, found in zip(table.astype(np.float64), lost, strict=True):
        for share in (1, 0.95, 0.9, 0.85, 0.8, 0.75):
            step = max(np.abs(row).max() / 7 * share, 1e-30)
            restored = np.clip(np.rint(row / step), -8, 7) * step
            assert found <= np.square(restored - row).sum() * (1 + 1e-3) + 1e-5


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("width", [1, 16, 300])
@examples
@given(data=st.data())
def test_what_a_row_loses_is_below_the_bounds(width: int, bits: int, data: st.DataObject) -> None:
    table = data.draw(tables(width))
    codes = quantize(table, bits)
    restored = restore(codes, table, bits)
    lost = np.linalg.norm(restored - table, axis=1).max()
    norm = np.linalg.norm(restored, axis=1).max()
    assert lost <= codes.row_error * (1 + FP32) + FP32 * norm + TINY
    assert norm <= codes.row_norm * (1 + FP32) + TINY


@pytest.mark.parametrize(("bits", "zeros"), [(8, 128), (4, 0x88)])
@pytest.mark.parametrize("width", [1, 16, 40, 300])
def test_zeros_stay_zeros(width: int, bits: int, zeros: int) -> None:
    table = np.random.default_rng(0).normal(size=(20, width)).astype(np.float32)
    table[0] = table[7] = 0
    table[3, ::2] = 0
    codes = quantize(table, bits)
    assert (restore(codes, table, bits)[table == 0] == 0).all()
    assert (codes.codes[[0, 7]] == zeros).all()
    assert (codes.codes[20:] == zeros).all()
    assert len(codes.codes) == CHUNK


@pytest.mark.parametrize(
    ("width", "shape"),
    [(1, (1, 16)), (16, (1, 16)), (17, (1, 32)), (64, (1, 64)), (256, (1, 256)), (257, (2, 256))],
    ids=str,
)
def test_blocks_are_powers_of_two_that_hold_the_width(width: int, shape: tuple[int, int]) -> None:
    for bits in BITS:
        codes = quantize(np.ones((3, width), dtype=np.float32), bits)
        assert codes.codes.shape == (CHUNK, shape[0], shape[1] * bits // 8)
        assert codes.scales.shape == (CHUNK, shape[0])


@pytest.mark.parametrize("bits", BITS)
def test_a_large_table_is_rounded_in_parts_as_in_one(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32)
    whole = quantize(table, bits)
    monkeypatch.setattr(scorer, "ROWS_AT_ONCE", 64)
    parts = quantize(table, bits)
    assert (parts.codes == whole.codes).all()
    assert (parts.scales == whole.scales).all()
    assert (parts.row_error, parts.row_norm) == (whole.row_error, whole.row_norm)


# Selection

# What scores: a precision, or score_many.onnx of int8.
MANY = "int8, many users"
KINDS = [*CODE_BITS, MANY]


def precision_of(kind: str) -> Precision:
    precision: Precision = "int8" if kind == MANY else kind  # type: ignore[assignment]
    return precision


@pytest.fixture
def make_session(load_graph: Any) -> Callable[[Floats, str], Session]:
    """Load a graph that picks from the rows of a table."""

    def make(table: Floats, kind: str) -> Session:
        precision = precision_of(kind)
        codes = quantize(table, CODE_BITS[precision]) if precision in CODE_BITS else None

        def write(writer: GraphWriter) -> None:
            Scorer(writer, table, precision, many=kind == MANY).write(codes)
            # On CUDA another node would compute it on the device.
            made_by = {name: node.op_type for node in writer.graph.node for name in node.output}
            sizes = [made_by.get(n.input[1]) for n in writer.graph.node if n.op_type == "TopK"]
            assert set(sizes) <= {None, "Min"}, "TopK reads on the host how many to pick"

        session: Session = load_graph(write)
        return session

    return make


@pytest.fixture(params=[True, False], ids=["two levels", "one level"])
def scorer_of(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, make_session: Any
) -> Callable[[Floats, str], Session]:
    for name in ("TWO_LEVELS_FROM", "TWO_LEVELS_OF_MANY_FROM"):
        monkeypatch.setattr(scorer, name, 1 if request.param else ROWS + 1)
    made: Callable[[Floats, str], Session] = make_session
    return made


def ask(session: Session, users: Floats, k: int, pool: int, bias: Floats) -> dict[str, Any]:
    inputs = {"user": users, "k": np.array([k]), "pool": np.array([pool])}
    inputs["bias"] = np.atleast_2d(bias)
    names = [output.name for output in session.get_outputs()]
    wanted = [tensor.name for tensor in session.get_inputs()]
    found = session.run(None, {name: inputs[name] for name in wanted})
    return dict(zip(names, found, strict=True))


def sort_fully(scores: NDArray[Any], k: int) -> tuple[Ints, NDArray[Any]]:
    """Return the k best places of each row, ties by place, and their scores."""
    places = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return places, np.take_along_axis(scores, places, axis=1)


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


@pytest.mark.parametrize("kind", ["fp32", *KINDS])
@examples
@given(seed=seeds, levels=st.sampled_from([1, 3, 7]), share=st.floats(0, 1))
def test_a_pool_of_all_items_picks_what_a_full_sort_picks(
    scorer_of: Any, kind: str, seed: int, levels: int, share: float
) -> None:
    table, bias, left = draw(seed, levels)
    k = max(1, round(share * left))
    found = ask(scorer_of(table, kind), USERS, k, left, bias)
    items, expected = sort_fully(USERS @ table.T + bias, k)
    np.testing.assert_array_equal(found["items"], items)
    np.testing.assert_array_equal(found["scores"], expected)


@pytest.mark.parametrize("kind", KINDS)
@examples
@given(seed=seeds, share=st.floats(0, 1))
def test_no_score_by_codes_outside_the_pool_is_above_its_last(
    scorer_of: Any, kind: str, seed: int, share: float
) -> None:
    bits = CODE_BITS[precision_of(kind)]
    table, bias, left = draw(seed, 100)
    pool = max(1, round(share * left))
    session = scorer_of(table, kind)
    found = ask(session, USERS, pool, pool, bias)
    everything = ask(session, USERS, left, left, bias)
    assert (np.diff(found["pool_scores"], axis=1) <= 0).all()
    rounded = USERS @ restore(quantize(table, bits), table, bits).T
    tolerance = 1e-3 * np.abs(rounded).max()  # users are rounded, too
    for row, last in enumerate(found["pool_scores"][:, -1]):
        outside = np.setdiff1d(everything["items"][row], found["items"][row])
        assert (rounded[row, found["items"][row]] >= last - tolerance).all()
        assert (rounded[row, outside] <= last + tolerance).all()


@pytest.mark.parametrize("width", [16, 17, 50])
@pytest.mark.parametrize("k", [1, 64, 300])
@pytest.mark.parametrize("kind", ["fp32", *KINDS])
def test_equal_rows_are_ranked_by_index(scorer_of: Any, kind: str, k: int, width: int) -> None:
    random = np.random.default_rng(k)
    # Codes of 4 bits hold them exactly, so that a pool that ends among equal rows holds the best.
    kinds = random.integers(-7, 8, (5, width)).astype(np.float32)
    kinds[:, 0] = 7
    table = np.tile(kinds, (ROWS // 5 + 1, 1))[:ROWS]
    users = random.normal(size=(4, width)).astype(np.float32)
    bias = np.zeros(ROWS, dtype=np.float32)
    bias[0] = NEVER
    found = ask(scorer_of(table, kind), users, k, min(2 * k, ROWS - 1), bias)
    scores = (users @ table[:5].T)[:, np.arange(ROWS) % 5]
    scores[:, 0] = NEVER
    np.testing.assert_array_equal(found["items"], sort_fully(scores, k)[0])


@pytest.mark.parametrize("kind", ["fp32", *KINDS])
@pytest.mark.parametrize("k", [1, 257, 258, 900])  # there are 257 chunks
def test_a_large_catalogue_is_picked_from_in_two_levels(
    make_session: Any, kind: str, k: int
) -> None:
    rows = 257 * CHUNK
    assert rows > scorer.TWO_LEVELS_FROM
    table = np.random.default_rng(0).integers(-7, 8, (rows, 4)).astype(np.float32)
    session, bias = make_session(table, kind), np.zeros(rows, dtype=np.float32)
    assert ask(session, USERS[:, :4], k, rows, bias)["items"].shape == (3, k)
    bias[-9:] = bias[0] = NEVER
    found = ask(session, USERS[:, :4], k, rows - 10, bias)
    np.testing.assert_array_equal(found["items"], sort_fully(USERS[:, :4] @ table.T + bias, k)[0])


@pytest.mark.parametrize("kind", ["fp32", *KINDS])
def test_rows_of_padding_never_win(scorer_of: Any, kind: str) -> None:
    table = np.full((ROWS - 70, WIDTH), -1, dtype=np.float32)  # 64 rows are added
    table[0] = table[-3:] = 0
    bias = np.zeros(-(-len(table) // CHUNK) * CHUNK, dtype=np.float32)
    bias[0] = bias[len(table) - 3 :] = NEVER
    left = len(table) - 4
    found = ask(scorer_of(table, kind), np.ones((2, WIDTH), np.float32), left, left, bias)
    assert found["items"].tolist() == [[*range(1, left + 1)]] * 2


@pytest.mark.parametrize("precision", CODE_BITS)
def test_zeros_score_nothing_by_codes(make_session: Any, precision: str) -> None:
    table = np.zeros((CHUNK, WIDTH), dtype=np.float32)
    table[1] = 1e-3
    users = 100 * np.random.default_rng(0).random((3, WIDTH), dtype=np.float32)
    bias = np.zeros(CHUNK, dtype=np.float32)
    found = ask(make_session(table, precision), users, 1, CHUNK, bias)
    assert (found["pool_scores"][:, 0] > 0).all()
    assert (found["pool_scores"][:, 1:] == 0).all()


@pytest.mark.parametrize("width", [1, 16, 17, 256])
def test_many_users_are_scored_as_one_is(scorer_of: Any, width: int) -> None:
    random = np.random.default_rng(width)
    table = random.normal(size=(ROWS, width)).astype(np.float32)
    # Users of any size side by side, zeros among them: each is rounded by its own.
    users = random.normal(size=(9, width)).astype(np.float32) * 10.0 ** np.arange(-4, 5)[:, None]
    users = np.concatenate([users, np.zeros((1, width))]).astype(np.float32)
    bias = np.zeros(ROWS, dtype=np.float32)
    one, many = (ask(scorer_of(table, kind), users, 5, 40, bias) for kind in ("int8", MANY))
    np.testing.assert_array_equal(one["items"], many["items"])
    np.testing.assert_array_equal(one["scores"], many["scores"])
    sizes = np.abs(users).max(axis=1, keepdims=True) * np.abs(table).max() * width
    difference = np.abs(one["pool_scores"] - many["pool_scores"])
    assert (difference <= 1e-6 * sizes).all()


def test_wide_tables_and_4_bits_have_no_graph_for_many_users() -> None:
    tables = [np.ones((CHUNK, width), dtype=np.float32) for width in (256, 257)]
    assert [can_score_many(quantize(table)) for table in tables] == [True, False]
    assert not can_score_many(quantize(tables[0], 4))


def test_very_many_codes_are_not_packed_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = quantize(np.ones((CHUNK, 16), dtype=np.float32))
    for size, expected in ((CHUNK * 16, True), (CHUNK * 16 - 1, False)):
        monkeypatch.setattr(scorer, "LARGEST_TWICE", size)
        assert can_score_many(codes) == expected


# What proves that the pool was large enough

# (user, rows): of the pool of two, the first row is the best; the third row is better, but its
# 8-bit score is below both, since the parts of its score lie just below half a step.
ADVERSARIES = {
    "rows": ([1.0] * 16, [[131.0] + [0.0] * 15, [127.5] + [0.0] * 15, [127.0] + [0.49] * 15]),
    "users": ([127.0] + [0.49] * 15, [[103.0] + [0.0] * 15, [101.0] + [0.0] * 15, [100.0] * 16]),
}


@pytest.mark.parametrize(("user", "rows"), ADVERSARIES.values(), ids=ADVERSARIES)
def test_a_better_row_that_rounds_badly_is_not_ruled_out(
    user: list[float], rows: list[list[float]], make_session: Any
) -> None:
    table = np.zeros((CHUNK, WIDTH), dtype=np.float32)
    table[1:4], users = rows, np.array([user], dtype=np.float32)
    bias = np.full(CHUNK, NEVER, dtype=np.float32)
    bias[1:4] = 0
    session, codes = make_session(table, "int8"), quantize(table)
    assert ask(session, users, 1, 3, bias)["items"] == 3
    found = ask(session, users, 1, 2, bias)
    assert found["items"] == 1
    last, floor = found["scores"].item(0, -1), found["pool_scores"].item(0, -1)
    margin = Margin(users[0], last, floor, Rounding(codes.row_error, codes.row_norm))
    assert not Ranking(["x"], found["scores"][0], 0, cold=False, _margin=margin).exact
