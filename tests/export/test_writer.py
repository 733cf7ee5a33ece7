"""Graphs share one file of weights, and the manifest tells their contracts."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from ranklet import Manifest, Ranker
from ranklet.bundle.manifest import CODE_BITS, PROGRAMS, WEIGHTS
from ranklet.files.atomic import sha256
from ranklet_export import graphs, writer
from ranklet_export.scorer import LARGEST_TWICE
from ranklet_export.writer import PAGE, SMALLEST_STORED, GraphWriter, WeightFile

FLOATS = np.arange(SMALLEST_STORED, dtype=np.float32)


def graph_of(bundle: Path, program: str) -> onnx.GraphProto:
    return onnx.load(bundle / f"{program}.onnx", load_external_data=False).graph


def place_of(tensor: onnx.TensorProto) -> tuple[int, int]:
    """Return offset and bytes of a stored tensor."""
    place = {entry.key: entry.value for entry in tensor.external_data}
    assert place["location"] == WEIGHTS
    return int(place["offset"]), int(place["length"])


def folder_of(ranker: Ranker) -> Path:
    return ranker._opened.folder


# The file of weights


def test_equal_arrays_are_stored_once_and_others_at_pages_of_their_own() -> None:
    with TemporaryFile() as file:
        weights = WeightFile(file)
        stored = [weights.store(a, "x") for a in (FLOATS, FLOATS.copy(), FLOATS + 1, FLOATS[1:])]
        kinds = [weights.store(FLOATS.astype(np.float64), "x"), weights.store(FLOATS[None], "x")]
        file.seek(0)
        data = file.read()
    places = [place_of(tensor) for tensor in [*stored, *kinds]]
    assert places[0] == places[1]
    assert len(set(places)) == 5
    for (offset, size), array in zip(places[1:4], (FLOATS, FLOATS + 1, FLOATS[1:]), strict=True):
        assert offset % PAGE == 0
        assert data[offset : offset + size] == array.tobytes()


def test_large_arrays_are_known_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "LARGEST_COMPARED", FLOATS.nbytes - 1)
    with TemporaryFile() as file:
        weights = WeightFile(file)
        names = [weights.store(values, name) for name in "ab" for values in (FLOATS, FLOATS)]
    assert [place_of(tensor)[0] for tensor in names] == [0, 0, FLOATS.nbytes, FLOATS.nbytes]


def test_rows_of_zeros_are_added_in_the_file() -> None:
    with TemporaryFile() as file:
        tensor = WeightFile(file).store(FLOATS.reshape(-1, 4), "x", rows=300)
        file.seek(0)
        data = np.frombuffer(file.read(), np.float32).reshape(300, 4)
    assert list(tensor.dims) == [300, 4]
    assert (data[:256] == FLOATS.reshape(-1, 4)).all()
    assert not data[256:].any()


def test_small_arrays_stay_in_the_graph_and_equal_constants_are_one() -> None:
    with TemporaryFile() as file:
        made = GraphWriter(WeightFile(file))
        assert made.constant([1, 2]) == made.constant(np.array([1, 2]))
        assert made.constant([1, 2]) != made.constant(np.array([1, 2], dtype=np.float32))
        made.weight("large", FLOATS)
    assert [bool(tensor.external_data) for tensor in made.graph.initializer] == [False, False, True]


# The graphs of a bundle


def test_graphs_share_the_bytes_of_equal_weights(any_ranker: Ranker) -> None:
    stored: dict[tuple[int, int], set[str]] = {}
    for program in any_ranker.manifest.programs:
        for tensor in graph_of(folder_of(any_ranker), program).initializer:
            if tensor.external_data:
                stored.setdefault(place_of(tensor), set()).add(program)
            else:
                assert len(tensor.raw_data) < SMALLEST_STORED
    places = sorted(stored)
    assert all(offset % PAGE == 0 for offset, _ in places)
    ends = [offset + size for offset, size in places]
    assert all(end <= offset for end, (offset, _) in zip(ends, places[1:], strict=False))
    assert ends[-1] == (folder_of(any_ranker) / WEIGHTS).stat().st_size
    table = any_ranker.manifest.table
    of_table = next(programs for (offset, _), programs in stored.items() if offset == table.offset)
    assert of_table == set(any_ranker.manifest.programs)


def check_contracts(folder: Path, manifest: Manifest) -> None:
    for name, program in manifest.programs.items():
        session = onnxruntime.InferenceSession(
            str(folder / program.file), providers=["CPUExecutionProvider"]
        )
        for expected, tensors in (
            (program.inputs, session.get_inputs()),
            (program.outputs, session.get_outputs()),
        ):
            told = [(t.name, t.type, list(t.shape)) for t in tensors]
            assert [(t.name, t.type, t.shape) for t in expected] == told, name
            axes = {axis for tensor in expected for axis in tensor.shape if isinstance(axis, str)}
            assert axes <= {"batch", "length", "events", "biases", "k", "pool"}, name
        assert program.purpose


def test_the_manifest_tells_the_contract_of_each_session(
    two_block_graphs: Any, any_ranker: Ranker
) -> None:
    check_contracts(two_block_graphs.folder, two_block_graphs.manifest)
    check_contracts(folder_of(any_ranker), any_ranker.manifest)


def test_a_bundle_has_every_program_that_it_can_use(
    two_block_graphs: Any, degenerate_model: Any
) -> None:
    assert tuple(two_block_graphs.manifest.programs) == PROGRAMS
    expected = {"encode", "append", "score", "model"}
    if degenerate_model.settings.precision == "int8":
        expected.add("score_many")
    manifest = degenerate_model.ranker.manifest
    assert set(manifest.programs) == expected
    check_contracts(folder_of(degenerate_model.ranker), manifest)


def test_encoders_share_the_lengths_of_histories(two_block_graphs: Any) -> None:
    programs = two_block_graphs.manifest.programs
    assert programs["encode"].lengths == [1, 63]
    assert programs["encode_long"].lengths == [64, 70]
    assert [p.least_users for p in programs.values()].count(1) == 5


def slow_scan(graph: onnx.GraphProto) -> int:
    """Return the bytes of stored tensors that some node takes, but to look rows of them up."""
    total = 0
    for tensor in graph.initializer:
        names = {tensor.name, *(n.output[0] for n in graph.node if list(n.input) == [tensor.name])}
        users = [
            (node.op_type, place)
            for node in graph.node
            for place, name in enumerate(node.input)
            if name in names and list(node.input) != [tensor.name]
        ]
        if tensor.external_data and any(user != ("Gather", 0) for user in users):
            total += place_of(tensor)[1]
    return total


def test_scanned_bytes_are_those_of_a_slow_count(any_ranker: Ranker) -> None:
    manifest = any_ranker.manifest
    for name, program in manifest.programs.items():
        if name != "score_many":  # whose codes go through a node of one input each
            graph = graph_of(folder_of(any_ranker), name)
            assert program.scanned_bytes == slow_scan(graph), name


def test_a_scorer_scans_the_codes_or_the_table(any_ranker: Ranker) -> None:
    rows, width = 64, 16
    expected = {
        "fp32": 4 * rows * width,
        "fp16": 2 * rows * width,
        "int8": rows * width,  # the scales are too few to be stored
        "int4": rows * width // 2 if rows * width // 2 >= SMALLEST_STORED else 0,
    }
    manifest = any_ranker.manifest
    assert manifest.programs["score"].scanned_bytes == expected[manifest.precision]
    if manifest.precision in CODE_BITS and "score_many" in manifest.programs:
        assert manifest.programs["score_many"].scanned_bytes == rows * width


def test_exporting_twice_gives_the_same_bytes(
    two_block_graphs: Any, write_graphs: Callable[..., Any], tmp_path: Path
) -> None:
    write_graphs(two_block_graphs.model, tmp_path, "int8")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted([WEIGHTS, *(f"{program}.onnx" for program in PROGRAMS)])
    for name in names:
        assert sha256(tmp_path / name) == sha256(two_block_graphs.folder / name), name


def test_a_compact_bundle_has_no_rows_and_answers_alike(
    two_block_graphs: Any,
    write_graphs: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compact = write_graphs(two_block_graphs.model, tmp_path / "compact", "int8", compact=True)
    monkeypatch.setattr(graphs, "LARGEST_ROWS", 4 * 41 * 3 * 16 - 1)
    large = write_graphs(two_block_graphs.model, tmp_path / "large", "int8")
    rows = {"queries", "keys", "values"}
    for written, expected in ((two_block_graphs, rows), (compact, set()), (large, set())):
        for program in ("encode", "encode_long", "append"):
            tensors = {tensor.name for tensor in graph_of(written.folder, program).initializer}
            assert tensors & rows == expected
    assert compact.check().max_score_difference < 1e-4


def test_the_graph_for_many_users_is_left_out_of_huge_bundles() -> None:
    assert 64 * 200_000 < LARGEST_TWICE < 64 * 1_000_000


@pytest.mark.parametrize("trace", [b"site-packages", b".py", b"/tmp", b"/home", b"File "])
def test_no_local_path_or_stack_trace_is_in_a_graph(trace: bytes, tiny_bundle: Path) -> None:
    for path in tiny_bundle.glob("*.onnx"):
        assert trace not in path.read_bytes(), path.name
