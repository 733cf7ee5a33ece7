"""Rounding stays within its bounds, and the selection is that of a full sort."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ranklet import Ranking
from ranklet.bundle import CHUNK, CODE_BITS, NEVER, Precision, Rounding
from ranklet.requests import Margin
from ranklet_export import head
from ranklet_export.head import Codes, add_head, can_batch, quantize

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
ROWS, WIDTH = 7 * CHUNK, 16
ITEMS = ROWS - 5  # rows from here on are padding
FP32 = 1e-5  # relative error of sums in fp32
BITS = [*CODE_BITS.values()]
TINY = 1e-18  # squares of less vanish
slow = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
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


@pytest.mark.parametrize("width", [1, 8, 16, 17, 64, 300])
@slow
@given(data=st.data())
def test_a_component_is_off_by_half_a_step_at_most(width: int, data: st.DataObject) -> None:
    table = data.draw(tables(width))
    codes = quantize(table, CHUNK)
    steps = np.repeat(codes.scales[: len(table)], codes.codes.shape[2], axis=1)[:, :width]
    largest = np.abs(table).max(axis=1, keepdims=True)
    if width <= 256:
        is_zero = largest < 1e-35  # beyond what a score can tell
        assert (is_zero | (np.abs(steps * 127 - largest) <= 1e-6 * largest)).all()
    error = np.abs(restore(codes, table) - table)
    error[steps == 0] *= np.abs(table[steps == 0]) > 1e-35  # as above
    assert (error <= steps * (0.5 + 1e-5)).all(), f"off by {error.max()}"


@pytest.mark.parametrize("width", [1, 16, 64])
@slow
@given(data=st.data())
def test_steps_of_4_bits_lose_least_of_those_tried(width: int, data: st.DataObject) -> None:
    table = data.draw(tables(width))
    lost = np.square(restore(quantize(table, CHUNK, 4), table, 4) - table).sum(axis=1)
    for row, found in zip(table.astype(np.float64), lost, strict=True):
        for share in (1, 0.95, 0.9, 0.85, 0.8, 0.75):
            step = max(np.abs(row).max() / 7 * share, 1e-30)
            restored = np.clip(np.rint(row / step), -8, 7) * step
            assert found <= np.square(restored - row).sum() * (1 + 1e-3) + 1e-5


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("width", [1, 16, 300])
@slow
@given(data=st.data())
def test_what_a_row_loses_is_below_the_bounds(width: int, bits: int, data: st.DataObject) -> None:
    table = data.draw(tables(width))
    codes = quantize(table, CHUNK, bits)
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
    codes = quantize(table, CHUNK, bits)
    restored = restore(codes, table, bits)
    assert (restored[table == 0] == 0).all()
    assert (codes.codes[[0, 7]] == zeros).all()
    assert (codes.codes[20:] == zeros).all()


@pytest.mark.parametrize("precision", CODE_BITS)
def test_zeros_score_nothing_by_codes(precision: Precision) -> None:
    table = np.zeros((CHUNK, WIDTH), dtype=np.float32)
    table[1] = 1e-3
    users = 100 * np.random.default_rng(0).random((3, WIDTH), dtype=np.float32)
    bias, first = np.zeros(CHUNK, dtype=np.float32), np.zeros((3, 1), dtype=np.int64)
    found = ask(make_session(table, precision), users, 1, CHUNK, bias, first)
    assert (found["pool_scores"][:, 0] > 0).all()
    assert (found["pool_scores"][:, 1:-1] == 0).all()


@pytest.mark.parametrize(
    ("width", "shape"),
    [(1, (1, 16)), (16, (1, 16)), (17, (1, 32)), (64, (1, 64)), (256, (1, 256)), (257, (2, 256))],
    ids=lambda value: str(value),
)
def test_blocks_are_powers_of_two_that_hold_the_width(width: int, shape: tuple[int, int]) -> None:
    for bits in BITS:
        codes = quantize(np.ones((3, width), dtype=np.float32), CHUNK, bits)
        assert codes.codes.shape == (CHUNK, shape[0], shape[1] * bits // 8)
        assert codes.scales.shape == (CHUNK, shape[0])


@pytest.mark.parametrize("bits", BITS)
def test_a_large_table_is_rounded_in_parts_as_in_one(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32)
    whole = quantize(table, 256, bits)
    monkeypatch.setattr(head, "ROWS_AT_ONCE", 64)
    parts = quantize(table, 256, bits)
    assert (parts.codes == whole.codes).all()
    assert (parts.scales == whole.scales).all()
    assert (parts.row_error, parts.row_norm) == (whole.row_error, whole.row_norm)


# Selection


def precision_of(kind: str) -> Precision:
    precision: Precision = "int8" if kind == IN_BATCHES else kind  # type: ignore[assignment]
    return precision


# What scores: a precision, or int8 as batches are scored.
IN_BATCHES = "int8 in batches"
KINDS = [*CODE_BITS, IN_BATCHES]


def make_graph(table: Floats, kind: str) -> onnx.ModelProto:
    """Return a graph that takes users and picks from the rows of a table."""
    batched, precision = kind == IN_BATCHES, precision_of(kind)
    encoder = [helper.make_node("Identity", ["x"], ["user_row"])]
    encoder += [helper.make_node("Squeeze", ["user_row", "axis"], ["user"])]
    graph = helper.make_graph(
        encoder,
        "head",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, table.shape[1]])],
        [],
        [numpy_helper.from_array(np.array([1]), "axis"), numpy_helper.from_array(table, "table")],
    )
    if bits := CODE_BITS.get(precision):
        codes = quantize(table, len(table), bits)
        for name, values in (("codes", codes.codes), ("scales", codes.scales)):
            graph.initializer.append(numpy_helper.from_array(values, name))
    add_head(graph, len(table), precision, batched=batched)
    domains = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=domains)
    model.ir_version = 10
    onnx.checker.check_model(model)
    return model


def make_session(table: Floats, kind: str) -> onnxruntime.InferenceSession:
    """Return a session of ``make_graph``."""
    options = onnxruntime.SessionOptions()
    # As ranklet.provider does: without VNNI, products of 8-bit numbers overflow.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(
        make_graph(table, kind).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@pytest.fixture(params=[True, False], ids=["two levels", "one level"])
def head_of(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Floats, str], onnxruntime.InferenceSession]:
    for name in ("TWO_LEVELS_FROM", "TWO_LEVELS_OF_BATCHES_FROM"):
        monkeypatch.setattr(head, name, 1 if request.param else ROWS + 1)
    return make_session


def ask(
    session: onnxruntime.InferenceSession,
    users: Floats,
    k: int,
    pool: int,
    bias: Floats,
    exclude: Ints,
) -> dict[str, NDArray[Any]]:
    inputs = {"x": users[:, None], "k": np.array([k]), "pool": np.array([pool])}
    inputs |= {"bias": bias, "exclude": exclude}
    names = [output.name for output in session.get_outputs()]
    wanted = [tensor.name for tensor in session.get_inputs()]
    found = session.run(None, {name: inputs[name] for name in wanted})
    return dict(zip(names, found, strict=True))


def sort_fully(scores: NDArray[Any], k: int) -> tuple[Ints, NDArray[Any]]:
    """Return the k best places of each row, ties by place, and their scores."""
    places = np.stack([np.lexsort((np.arange(len(row)), -row)) for row in scores])[:, :k]
    return places, np.take_along_axis(scores, places, axis=1)


USERS = np.eye(WIDTH, dtype=np.float32)[:3] * np.array([[1], [-1], [2]], dtype=np.float32)
seeds = st.integers(0, 2**32 - 1)


def draw(seed: int, levels: int) -> tuple[Floats, Floats, Ints, int]:
    """Return a table of whole numbers, a bias, items to exclude and how many are left to rank.

    Users are one-hot, so that scores are exact and many of them tied.
    """
    random = np.random.default_rng(seed)
    table = random.integers(-levels, levels + 1, (ROWS, WIDTH)).astype(np.float32)
    table[0] = table[ITEMS:] = 0
    bias = np.where(random.random(ROWS) < 0.3, np.float32(NEVER), np.float32(0))
    bias[0] = bias[ITEMS:] = NEVER
    allowed, count = np.flatnonzero(bias == 0), int(random.integers(1, 60))
    exclude = np.stack([random.permutation(allowed)[:count] for _ in USERS])
    repeated = np.concatenate([exclude, exclude[:, :3], np.zeros((3, 2), dtype=np.int64)], axis=1)
    return table, bias, repeated, len(allowed) - count


@slow
@given(seed=seeds, levels=st.sampled_from([1, 3, 100]), share=st.floats(0, 1))
def test_fp32_picks_what_a_full_sort_picks(
    head_of: Any, seed: int, levels: int, share: float
) -> None:
    table, bias, exclude, available = draw(seed, levels)
    k = max(1, round(share * available))
    scores = USERS @ table.T + bias
    np.put_along_axis(scores, exclude, np.float32(NEVER), axis=1)
    found = ask(head_of(table, "fp32"), USERS, k, 0, bias, exclude)
    items, expected = sort_fully(scores, k)
    np.testing.assert_array_equal(found["items"], items)
    np.testing.assert_array_equal(found["scores"], expected)


@pytest.mark.parametrize("kind", KINDS)
@slow
@given(seed=seeds, levels=st.sampled_from([1, 3, 127]), share=st.floats(0, 1))
def test_codes_with_a_pool_of_all_items_pick_what_a_full_sort_picks(
    head_of: Any, kind: str, seed: int, levels: int, share: float
) -> None:
    table, bias, exclude, available = draw(seed, levels)
    k = max(1, round(share * available))
    scores = USERS @ table.T + bias
    np.put_along_axis(scores, exclude, np.float32(NEVER), axis=1)
    found = ask(head_of(table, kind), USERS, k, available, bias, exclude)
    items, expected = sort_fully(scores, k)
    np.testing.assert_array_equal(found["items"], items)
    np.testing.assert_array_equal(found["scores"], expected)


@pytest.mark.parametrize("kind", KINDS)
@slow
@given(seed=seeds, share=st.floats(0, 1))
def test_no_score_by_codes_outside_the_pool_is_above_its_last(
    head_of: Any, kind: str, seed: int, share: float
) -> None:
    bits = CODE_BITS[precision_of(kind)]
    table, bias, exclude, available = draw(seed, 100)
    pool = max(1, round(share * available))
    session = head_of(table, kind)
    found = ask(session, USERS, pool, pool, bias, exclude)
    everything = ask(session, USERS, available, available, bias, exclude)
    assert (np.diff(found["pool_scores"], axis=1) <= 0).all()
    rounded = USERS @ restore(quantize(table, ROWS, bits), table, bits).T
    tolerance = 1e-3 * np.abs(rounded).max()  # users are rounded, too
    for row, last in enumerate(found["pool_scores"][:, -1]):
        outside = np.setdiff1d(everything["items"][row], found["items"][row])
        assert (rounded[row, found["items"][row]] >= last - tolerance).all()
        assert (rounded[row, outside] <= last + tolerance).all()


@pytest.mark.parametrize("width", [16, 17, 50])
@pytest.mark.parametrize("k", [1, 63, 64, 65, 300])
@pytest.mark.parametrize("kind", ["fp32", *KINDS])
def test_equal_rows_are_ranked_by_index(head_of: Any, kind: str, k: int, width: int) -> None:
    random = np.random.default_rng(k)
    # Codes of 4 bits hold them exactly, so that a pool that ends among equal rows holds the best.
    kinds = random.integers(-7, 8, (5, width)).astype(np.float32)
    kinds[:, 0] = 7
    table = np.tile(kinds, (ROWS // 5 + 1, 1))[:ROWS]
    users = random.normal(size=(4, width)).astype(np.float32)
    nothing = np.zeros((4, 1), dtype=np.int64)
    bias = np.zeros(ROWS, dtype=np.float32)
    bias[0] = NEVER
    found = ask(head_of(table, kind), users, k, min(2 * k, ROWS - 1), bias, nothing)
    scores = (users @ table[:5].T)[:, np.arange(ROWS) % 5]
    scores[:, 0] = NEVER
    np.testing.assert_array_equal(found["items"], sort_fully(scores, k)[0])


@pytest.mark.usefixtures("head_of")
@pytest.mark.parametrize("kind", ["fp32", *KINDS])
def test_what_topk_reads_on_the_host_is_known_there(kind: str) -> None:
    # On CUDA another node would compute it on the device, and no run could be recorded.
    graph = make_graph(np.ones((ROWS, WIDTH), dtype=np.float32), kind).graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    sizes = [made_by.get(node.input[1]) for node in graph.node if node.op_type == "TopK"]
    assert set(sizes) <= {None, "Shape"}  # None: an input


@pytest.mark.parametrize("width", [1, 16, 17, 50, 256])
def test_batches_are_scored_as_one_user_is(head_of: Any, width: int) -> None:
    random = np.random.default_rng(width)
    table = random.normal(size=(ROWS, width)).astype(np.float32)
    # Users of any size side by side, zeros among them: each is rounded by its own.
    users = random.normal(size=(9, width)).astype(np.float32) * 10.0 ** np.arange(-4, 5)[:, None]
    users = np.concatenate([users, np.zeros((1, width))]).astype(np.float32)
    bias, nothing = np.zeros(ROWS, dtype=np.float32), np.zeros((10, 1), dtype=np.int64)
    one, batch = (ask(head_of(table, kind), users, 5, 40, bias, nothing) for kind in KINDS[::2])
    np.testing.assert_array_equal(one["items"], batch["items"])
    np.testing.assert_array_equal(one["scores"], batch["scores"])
    sizes = np.abs(users).max(axis=1, keepdims=True) * np.abs(table).max() * width
    difference = np.abs(one["pool_scores"] - batch["pool_scores"])
    assert (difference <= 1e-6 * sizes).all()


def test_wide_tables_are_not_scored_in_batches() -> None:
    tables = [np.ones((CHUNK, width), dtype=np.float32) for width in (256, 257)]
    assert [can_batch(quantize(table, CHUNK)) for table in tables] == [True, False]
    assert not can_batch(quantize(tables[0], CHUNK, 4))


def test_very_many_codes_are_not_packed_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = quantize(np.ones((CHUNK, 16), dtype=np.float32), CHUNK)
    for size, expected in ((CHUNK * 16, True), (CHUNK * 16 - 1, False)):
        monkeypatch.setattr(head, "LARGEST_TWICE", size)
        assert can_batch(codes) == expected


# What proves that the pool was large enough

# (user, rows): of the pool of two, the first row is the best; the third row is better, but its
# 8-bit score is below both, since the parts of its score lie just below half a step.
ADVERSARIES = {
    "rows": ([1.0] * 16, [[131.0] + [0.0] * 15, [127.5] + [0.0] * 15, [127.0] + [0.49] * 15]),
    "users": ([127.0] + [0.49] * 15, [[103.0] + [0.0] * 15, [101.0] + [0.0] * 15, [100.0] * 16]),
}


@pytest.mark.parametrize(("user", "rows"), ADVERSARIES.values(), ids=ADVERSARIES.keys())
def test_a_better_row_that_rounds_badly_is_not_ruled_out(
    user: list[float], rows: list[list[float]]
) -> None:
    table = np.zeros((CHUNK, WIDTH), dtype=np.float32)
    table[1:4], users = rows, np.array([user], dtype=np.float32)
    bias = np.full(CHUNK, NEVER, dtype=np.float32)
    bias[1:4] = 0
    session, nothing = make_session(table, "int8"), np.zeros((1, 1), dtype=np.int64)
    codes = quantize(table, CHUNK)
    assert ask(session, users, 1, 3, bias, nothing)["items"] == 3
    found = ask(session, users, 1, 2, bias, nothing)
    assert found["items"] == 1
    last, floor = found["scores"].item(0, -1), found["pool_scores"].item(0, -1)
    margin = Margin(users[0], last, floor, Rounding(codes.row_error, codes.row_norm))
    assert not Ranking(["x"], found["scores"][0], 0, cold=False, _margin=margin).exact
