"""The parity gate lets no graph pass that answers another way than its model."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ranklet.bundle.manifest import ITEM, PROGRAMS, SEARCH
from ranklet.errors import BundleError, ParityError, RankletError
from ranklet_export import scorer
from ranklet_export.items import check_items, read_item_source
from ranklet_training.runs.checkpoint import Run

Graph = onnx.GraphProto
Change = Callable[[NDArray[Any]], None]
OFF = "|".join(
    (
        *("scores differ by", "users differ by", "(queries|keys|values) differ by"),
        *("codes miss scores by", "an item that does not exist", r"\w+ of the state differs by"),
    )
)

# Of a model without attributes; an index is checked by what it finds (test_index.py).
WITHOUT_ITEMS = tuple(name for name in PROGRAMS if name not in (ITEM, SEARCH))
# What the message must name, of each program.
WHERE = {
    "encode": r"^batch \d, length \d+: ",
    "encode_long": r"^batch \d, length (6[4-9]|70): ",
    "encode_rows": r"^encode_rows: batch \d, length \d+: ",
    "append": r"^append: (batch 2, length \d+: )?",
    "first_block": "^first_block: ",
    "score": r"^batch 1, length \d+: ",
    "score_many": r"^batch 8, length \d+: ",
    "model": r"^model: batch \d, length \d+: ",
}

# Every tensor.


def spoil(values: NDArray[Any]) -> None:
    """Change values as little as may be, and so that they stand for something else."""
    if values.dtype == np.uint8:
        values[7] = values[8]  # the codes of another item
    elif values.size == 1:
        values *= 0.5
    elif values.min() < -10:
        values[...] = np.roll(values, 1, axis=-1)  # what is hidden moves by one
    elif values.ndim == 1:
        values[-1] += 0.5
    else:
        values[1:, ..., -1] += 0.5  # attention does not see what is added to all scores alike


def tensors_of(graph: Graph) -> list[str]:
    """Return the names of codes and floats, but for tiny bounds and the lowest score."""
    names = []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        is_bound = values.size == 1 and (values < -1e30 or values < 1e-6)
        is_code = values.dtype == np.uint8 and values.size > 1
        if (is_code or values.dtype == np.float32) and not is_bound:
            names.append(tensor.name)
    return names


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("program", WITHOUT_ITEMS)
def test_a_change_of_any_tensor_fails_the_gate(
    program: str, every: int, two_block_graphs: Any, damage: Any, tmp_path: Path
) -> None:
    names = tensors_of(onnx.load(two_block_graphs.folder / f"{program}.onnx").graph)
    for place, name in enumerate(names[::every]):
        copy = two_block_graphs.change(
            tmp_path / str(place), program, lambda graph, name=name: damage(graph, name, spoil)
        )
        with pytest.raises(ParityError, match=f"{WHERE[program]}({OFF})"):
            copy.check()


# Faults of each program.


def node_of(graph: Graph, operator: str, number: int = 0) -> onnx.NodeProto:
    return [node for node in graph.node if node.op_type == operator][number]


def edit(
    operator: str, number: int, place: int, change: Callable[[Any], Any]
) -> Callable[..., None]:
    """Replace a constant that a node takes, wherever else it is taken."""

    def apply(graph: Graph) -> None:
        name = node_of(graph, operator, number).input[place]
        tensor = next(tensor for tensor in graph.initializer if tensor.name == name)
        values = numpy_helper.to_array(tensor)
        changed = np.asarray(change(values.copy()), dtype=values.dtype)
        tensor.CopyFrom(numpy_helper.from_array(changed, name))

    return apply


def set_attribute(operator: str, number: int, **values: Any) -> Callable[..., None]:
    def apply(graph: Graph) -> None:
        node = node_of(graph, operator, number)
        kept = [attribute for attribute in node.attribute if attribute.name not in values]
        del node.attribute[:]
        node.attribute.extend(kept)
        node.attribute.extend(helper.make_attribute(*pair) for pair in values.items())

    return apply


def rewire(operator: str, number: int, place: int, source: str) -> Callable[..., None]:
    return lambda graph: node_of(graph, operator, number).input.__setitem__(place, source)


def swap_names(first: str, second: str) -> Callable[..., None]:
    """Swap two outputs that some nodes of the graph take, too."""
    names = {first: second, second: first}

    def apply(graph: Graph) -> None:
        for node in graph.node:
            for part in (node.input, node.output):
                part[:] = [names.get(name, name) for name in part]

    return apply


def show(values: NDArray[Any]) -> NDArray[Any]:
    return np.where(values < -10, 0, values)


def later(values: NDArray[Any]) -> NDArray[Any]:
    return np.roll(values, 1, axis=-1)


def double_one(values: NDArray[Any]) -> NDArray[Any]:
    values[37] *= 2
    return values


FAULTS: dict[str, tuple[str, Callable[..., None]]] = {
    "a mask off by one": ("encode", edit("Slice", 0, 0, later)),
    "rotation by the other sign": ("encode", edit("RotaryEmbedding", 0, 2, np.negative)),
    "ages from the front": ("encode", set_attribute("CumSum", 0, reverse=0)),
    "ages off by one": ("encode", set_attribute("CumSum", 0, exclusive=1)),
    "the first event asks": ("encode", set_attribute("ArgMax", 0, select_last_index=0)),
    "padding is seen": ("encode", edit("Gather", -1, 0, show)),
    "an epsilon of a norm": ("encode", set_attribute("LayerNormalization", 0, epsilon=1e-3)),
    "scores of attention by another scale": ("encode", set_attribute("Attention", 1, scale=0.25)),
    "keys for values in the state": ("encode", swap_names("key_0", "value_0")),
    "a chunk off by one": ("encode_long", edit("Slice", 0, 0, lambda a: np.maximum(a - 1, 0))),
    "the mask of the first chunk": ("encode_long", edit("Slice", 1, 0, np.zeros_like)),
    "a mask of chunks off by one": ("encode_long", edit("Gather", -2, 0, later)),
    "values for events in the state": ("encode_long", swap_names("value_0", "events")),
    "the last query by another scale": ("encode_rows", edit("Mul", 0, 1, lambda a: a * 2)),
    "attention after padding": ("encode_rows", edit("Gather", -1, 0, show)),
    "ages in the wrong order": ("append", edit("Add", 1, 1, lambda a: a[..., ::-1])),
    "a row of the window off": ("append", edit("Mod", 0, 1, lambda a: a - 1)),
    "a row of the events off": ("append", edit("Mod", 1, 1, lambda a: a - 1)),
    "keys turned the other way": ("append", edit("RotaryEmbedding", 0, 2, np.negative)),
    "rows without an event are seen": ("append", edit("Gather", -2, 0, show)),
    "hidden events are seen": ("append", edit("Gather", -1, 0, show)),
    "one row of the table": ("score", edit("Gather", 0, 0, double_one)),
    "one scale of the codes": ("score", edit("MatMulNBits", 0, 2, double_one)),
    "a pool of the worst": ("score", set_attribute("TopK", 0, largest=0)),
    "a bias that is not added": ("score", rewire("TopK", 0, 0, "MatMulNBits_0")),
    "k for the pool": ("score", rewire("TopK", 0, 1, "k")),
    "the pool for k": ("score", rewire("TopK", -1, 1, "pool")),
    "scales of other items": ("score_many", edit("Squeeze", 1, 0, lambda a: np.roll(a, 1, axis=0))),
    "a step of users": ("score_many", edit("QuantizeLinear", 0, 1, lambda a: a / 2)),
    "one row of the table for many": ("score_many", edit("Gather", 0, 0, double_one)),
    "padded rows win": ("model", edit("Gemm", 0, 2, lambda a: np.zeros_like(a))),
    "one row of the single table": ("model", edit("Gemm", 0, 1, double_one)),
    "an event more than the longest": ("model", edit("Less", 0, 1, lambda a: a + 1)),
    "a window off by one": ("model", edit("Less", 1, 1, lambda a: a + 1)),
}


@pytest.mark.parametrize(("program", "fault"), FAULTS.values(), ids=FAULTS)
def test_a_fault_fails_the_gate(
    program: str, fault: Callable[..., None], two_block_graphs: Any, tmp_path: Path
) -> None:
    copy = two_block_graphs.change(tmp_path / "copy", program, fault)
    with pytest.raises(RankletError) as caught:
        copy.check()
    # A state is wrong where it is compared with that of appended events.
    where = rf"{WHERE[program]}({OFF})|^append: .* of the state differs"
    assert re.search(f"{where}|^onnxruntime failed on cpu: ", str(caught.value))


TWO_LEVELS = {
    "the number of a chunk": lambda graph: node_of(graph, "Sub", -1).input.__setitem__(
        1, node_of(graph, "Sub", -1).input[0]
    ),
    "items of a chunk": edit("Div", -1, 1, lambda a: a + 1),
    "chunks of the worst": set_attribute("TopK", 0, largest=0),
}


@pytest.mark.parametrize("program", ["score", "score_many"])
@pytest.mark.parametrize("fault", TWO_LEVELS.values(), ids=TWO_LEVELS)
def test_a_fault_of_two_levels_fails_the_gate(
    fault: Callable[..., None],
    program: str,
    random_run: Callable[..., Run],
    write_graphs: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scorer, "TWO_LEVELS_FROM", 1)
    monkeypatch.setattr(scorer, "TWO_LEVELS_OF_MANY_FROM", 1)
    # Of 47 chunks a pool takes 32.
    model = random_run(items=3000, blocks=0, heads=1).load_model()
    written = write_graphs(model, tmp_path / "graphs", "int8")
    written.check()
    with pytest.raises(ParityError, match=WHERE[program]):
        written.change(tmp_path / "copy", program, fault).check()


def test_a_graph_that_gives_nan_fails_the_gate(two_block_graphs: Any, tmp_path: Path) -> None:
    fault = edit("LayerNormalization", -1, 2, lambda bias: bias * np.nan)
    for program in ("encode", "encode_long", "encode_rows", "append", "model"):
        copy = two_block_graphs.change(tmp_path / program, program, fault)
        with pytest.raises(ParityError, match=rf"{WHERE[program]}scores that are not finite"):
            copy.check()


def test_the_gate_says_where_and_by_how_much(two_block_graphs: Any, tmp_path: Path) -> None:
    fault = edit("LayerNormalization", -1, 2, lambda bias: bias + 1)
    message = r"^batch 1, length 1: scores differ by \d.* from the torch model, more than 0\.0001$"
    with pytest.raises(ParityError, match=message):
        two_block_graphs.change(tmp_path / "copy", "encode", fault).check()


@pytest.mark.parametrize("last_row_only", [False, True])
def test_a_change_of_any_tensor_for_new_items_fails_the_gate(
    last_row_only: bool, exported: Any, two_block_graphs: Any, damage: Any, tmp_path: Path
) -> None:
    run, model, ranker, _ = exported()
    source, scale = read_item_source(run, model), ranker.manifest.width**0.5
    written = two_block_graphs._replace(folder=ranker.path, manifest=ranker.manifest)
    assert check_items(written.load(), source, scale) == "item: 2 items of 64 features"

    def spoil_last(values: NDArray[Any]) -> None:
        values[-1] += 0.5

    graph = onnx.load(ranker.path / "item.onnx").graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    names = [name for name, values in tensors.items() if values.dtype.kind == "f"]
    assert len(names) == 3  # map, mean and length
    for place, name in enumerate(names):
        spoiled = spoil_last if last_row_only else spoil
        copy = written.change(
            tmp_path / str(place),
            ITEM,
            lambda graph, name=name, by=spoiled: damage(graph, name, by),
        )
        with pytest.raises(ParityError, match=r"^item: rows differ by \d"):
            check_items(copy.load(), source, scale)


def test_graphs_of_another_contract_fail(two_block_graphs: Any, tmp_path: Path) -> None:
    def rename(graph: Graph) -> None:
        graph.input[0].type.tensor_type.shape.dim[1].dim_param = "events"

    for program in WITHOUT_ITEMS:
        copy = two_block_graphs.change(tmp_path / program, program, rename)
        with pytest.raises(BundleError, match=f"{program}.onnx has another contract"):
            copy.check()


@pytest.mark.parametrize("program", ["encode", "append", "model"])
@pytest.mark.parametrize("table", ["kind", "objective"])
def test_a_fault_of_one_kind_fails_the_gate(
    table: str,
    program: str,
    make_model: Any,
    write_graphs: Any,
    damage: Any,
    tmp_path: Path,
) -> None:
    model = make_model(kinds=3)
    written = write_graphs(model, tmp_path / "right")
    written.check()
    right = 8 * getattr(model, table).numpy()

    def change(graph: Graph) -> None:
        name = next(
            tensor.name
            for tensor in graph.initializer
            if np.array_equal(numpy_helper.to_array(tensor), right)
        )
        damage(graph, name, lambda values: values.put(np.arange(16, 48), values[[2, 1]]))

    with pytest.raises(ParityError, match="differ"):
        written.change(tmp_path / "wrong", program, change).check()


def test_the_report_names_points_of_every_program(two_block_graphs: Any) -> None:
    report = two_block_graphs.check()
    # Around 64, from where encode_long.onnx takes over; eight users are many.
    lengths = [1, 2, 36, 63, 64, 65, 70]
    expected = [f"batch {batch}, length {length}" for length in lengths for batch in (1, 8)]
    assert report.points[: len(expected)] == expected
    by_rows = [f"encode_rows: {point}" for point in expected]
    assert report.points[len(expected) : 2 * len(expected)] == by_rows
    assert "append: batch 2, length 70" in report.points
    assert "append: 80 events, 10 past the window" in report.points
    assert report.points[-1] == "model: batch 1, length 70"
    assert 0 < report.max_score_difference < 1e-4
