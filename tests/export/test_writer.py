"""Graphs share one file of weights, and the manifest tells their contracts."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import onnx
import pytest

from ranklet import Manifest, Ranker
from ranklet.bundle.manifest import ENCODE_ROWS, FIRST_BLOCK, ITEM, PROGRAMS, SEARCH, WEIGHTS
from ranklet.files.atomic import sha256
from ranklet_export import graphs, writer
from ranklet_export.writer import PAGE, SMALLEST_STORED, GraphWriter, WeightFile

# Of a model without attributes, in a bundle without an index.
WITHOUT_ITEMS = tuple(name for name in PROGRAMS if name not in (ITEM, SEARCH))

FLOATS = np.arange(SMALLEST_STORED, dtype=np.float32)


def place_of(tensor: onnx.TensorProto) -> tuple[int, int]:
    """Return offset and bytes of a stored tensor."""
    place = {entry.key: entry.value for entry in tensor.external_data}
    assert place["location"] == WEIGHTS
    return int(place["offset"]), int(place["length"])


def graph_of(bundle: Path, program: str) -> onnx.GraphProto:
    return onnx.load(bundle / f"{program}.onnx", load_external_data=False).graph


def test_equal_arrays_are_stored_once_and_others_at_pages_of_their_own() -> None:
    arrays = [FLOATS, FLOATS.copy(), FLOATS + 1, FLOATS[1:], FLOATS.astype(np.float64)]
    with TemporaryFile() as file:
        weights = WeightFile(file)
        places = [place_of(weights.store(array, "x")) for array in arrays]
        rows = weights.store(FLOATS.reshape(-1, 4), "x", rows=300)
        file.seek(0)
        data = file.read()
    assert places[0] == places[1]
    assert len(set(places)) == 4
    for (offset, size), array in zip(places, arrays, strict=True):
        assert offset % PAGE == 0
        assert data[offset : offset + size] == array.tobytes()
    assert list(rows.dims) == [300, 4]
    offset, size = place_of(rows)
    assert data[offset : offset + size] == FLOATS.tobytes() + bytes(44 * 4 * 4)


def test_large_arrays_are_known_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "LARGEST_COMPARED", FLOATS.nbytes - 1)
    with TemporaryFile() as file:
        weights = WeightFile(file)
        stored = [weights.store(FLOATS, name) for name in "aabb"]
    assert [place_of(tensor)[0] for tensor in stored] == [0, 0, FLOATS.nbytes, FLOATS.nbytes]


def test_small_arrays_stay_in_the_graph_and_equal_constants_are_one() -> None:
    with TemporaryFile() as file:
        made = GraphWriter(WeightFile(file))
        assert made.constant([1, 2]) == made.constant(np.array([1, 2]))
        assert made.constant([1, 2]) != made.constant(np.array([1, 2], dtype=np.float32))
        made.weight("large", FLOATS)
    assert [bool(tensor.external_data) for tensor in made.graph.initializer] == [False, False, True]


def test_graphs_share_the_bytes_of_equal_weights(any_ranker: Ranker) -> None:
    folder, manifest = any_ranker.path, any_ranker.manifest
    stored: dict[tuple[int, int], set[str]] = {}
    for program in manifest.programs:
        for tensor in graph_of(folder, program).initializer:
            if tensor.external_data:
                stored.setdefault(place_of(tensor), set()).add(program)
            else:
                assert len(tensor.raw_data) < SMALLEST_STORED
    places = sorted(stored)
    ends = [0, *(offset + size for offset, size in places)]
    assert all(end <= offset for end, (offset, _) in zip(ends, places, strict=False))
    assert ends[-1] == (folder / WEIGHTS).stat().st_size
    (of_table,) = [stored[place] for place in places if place[0] == manifest.table.offset]
    look_nothing_up = {FIRST_BLOCK, ENCODE_ROWS, ITEM}
    assert of_table == set(manifest.programs) - look_nothing_up


def axes_of(manifest: Manifest) -> set[str]:
    tensors = [
        t for program in manifest.programs.values() for t in program.inputs + program.outputs
    ]
    return {axis for tensor in tensors for axis in tensor.shape if isinstance(axis, str)}


def test_a_bundle_has_every_program_that_it_can_use(
    two_block_graphs: Any, degenerate_model: Any
) -> None:
    programs = two_block_graphs.manifest.programs
    assert tuple(programs) == WITHOUT_ITEMS
    assert [programs[name].lengths for name in WITHOUT_ITEMS[:2]] == [[1, 63], [64, 70]]
    assert [name for name in WITHOUT_ITEMS if programs[name].least_users > 1] == ["score_many"]
    manifest = degenerate_model.ranker.manifest
    many = ["score_many"] if manifest.precision == "int8" else []
    every = ["encode", "encode_rows", "append", "score", *many, "model", "item"]
    assert sorted(manifest.programs) == sorted(every)
    axes = {"batch", "length", "events", "biases", "k", "pool", "items", "features"}
    for each in (two_block_graphs.manifest, manifest):
        assert axes_of(each) <= axes


def slow_scan(graph: onnx.GraphProto) -> int:
    """Return the bytes of stored tensors that some node takes, but to look rows of them up."""
    total = 0
    for tensor in graph.initializer:
        names = {tensor.name, *(n.output[0] for n in graph.node if list(n.input) == [tensor.name])}
        takers = [
            (node.op_type, place)
            for node in graph.node
            for place, name in enumerate(node.input)
            if name in names and list(node.input) != [tensor.name]
        ]
        if tensor.external_data and any(taker != ("Gather", 0) for taker in takers):
            total += place_of(tensor)[1]
    return total


def test_scanned_bytes_are_those_of_a_slow_count(any_ranker: Ranker) -> None:
    for name, program in any_ranker.manifest.programs.items():
        assert program.scanned_bytes == slow_scan(graph_of(any_ranker.path, name)), name


def test_exporting_twice_gives_the_same_bytes_and_compact_leaves_rows_out(
    two_block_graphs: Any,
    write_graphs: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, folder = two_block_graphs.model, two_block_graphs.folder
    again = write_graphs(model, tmp_path / "again", "int8")
    for name in (WEIGHTS, *(f"{program}.onnx" for program in WITHOUT_ITEMS)):
        assert sha256(again.folder / name) == sha256(folder / name), name
    compact = write_graphs(model, tmp_path / "compact", "int8", compact=True)
    monkeypatch.setattr(graphs, "LARGEST_ROWS", 4 * 41 * 3 * 16 - 1)
    large = write_graphs(model, tmp_path / "large", "int8")
    rows = {"queries", "keys", "values"}
    for written, expected in ((again, rows), (compact, set()), (large, set())):
        for program in ("encode", "encode_long", "append"):
            tensors = {tensor.name for tensor in graph_of(written.folder, program).initializer}
            assert tensors & rows == expected
        of_rows = graph_of(written.folder, "encode_rows").initializer
        assert not {"table", *rows} & {tensor.name for tensor in of_rows}
    assert compact.check().max_score_difference < 1e-4
