"""A graph holds what the exporter writes, or onnxruntime never sees it."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from ranklet import BundleError, Manifest, Ranker
from ranklet.bundle.graph import (
    CONTRIB,
    INTEGERS,
    LARGEST_GRAPH,
    MOST_NODES,
    OPERATORS,
    TYPES,
    check_graphs,
    stored_tensors,
)
from ranklet.engine import programs
from ranklet.verify import verify
from ranklet_export.export import Settings

Change = Callable[[ModelProto], Any]


@pytest.fixture(autouse=True)
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test of this file reach onnxruntime."""

    def reach(*arguments: object) -> None:
        raise AssertionError("onnxruntime was given a graph that should have been refused")

    monkeypatch.setattr(programs, "create_session", reach)


def edit(bundle: Path, change: Change) -> None:
    model = onnx.load(bundle / "encode.onnx", load_external_data=False)
    change(model)
    (bundle / "encode.onnx").write_bytes(model.SerializeToString())


def stored(model: ModelProto) -> TensorProto:
    return next(t for t in model.graph.initializer if t.external_data)


def small(model: ModelProto) -> TensorProto:
    return next(t for t in model.graph.initializer if t.data_type == 7 and t.raw_data)


def lies(**entries: object) -> Change:
    """Change where the first stored tensor lies."""

    def change(model: ModelProto) -> None:
        tensor = stored(model)
        places = {entry.key: entry.value for entry in tensor.external_data} | entries
        del tensor.external_data[:]
        for key, value in places.items():
            tensor.external_data.add(key=key, value=str(value))

    return change


def append(*nodes: onnx.NodeProto) -> Change:
    return lambda model: model.graph.node.extend(nodes)


def loop(model: ModelProto) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"])],
        "body",
        [helper.make_tensor_value_info(n, t, []) for n, t in (("i", 7), ("c", 9))],
        [helper.make_tensor_value_info("d", 9, [])],
    )
    model.graph.node.append(helper.make_node("Loop", ["", "true"], ["x"], body=body))


def subgraph(model: ModelProto) -> None:
    attribute = AttributeProto(name="body", type=AttributeProto.GRAPH, g=model.graph)
    model.graph.node[0].attribute.append(attribute)


def tensor_attribute(model: ModelProto) -> None:
    value = numpy_helper.from_array(np.zeros(1))
    model.graph.node[0].attribute.append(helper.make_attribute("value", value))


def function(model: ModelProto) -> None:
    model.functions.append(helper.make_function("own", "f", [], [], [], []))


def node(model: ModelProto, operator: str) -> onnx.NodeProto:
    return next(each for each in model.graph.node if each.op_type == operator)


def batches(model: ModelProto) -> None:
    """onnxruntime 1.32 aborts."""
    node(model, "GatherND").attribute[0].i = -(2**63)


CHANGES: dict[str, tuple[Change, str]] = {
    "Loop": (loop, "operator 'Loop' of domain ''"),
    "If": (append(helper.make_node("If", ["x"], ["y"])), "operator 'If' of domain ''"),
    "Constant": (append(helper.make_node("Constant", [], ["y"])), "operator 'Constant'"),
    "another domain": (
        append(helper.make_node("Add", ["x", "x"], ["y"], domain="evil")),
        "operator 'Add' of domain 'evil'",
    ),
    "an operator of onnxruntime": (
        append(helper.make_node("QMoE", ["x"], ["y"], domain="com.microsoft")),
        "operator 'QMoE' of domain 'com.microsoft'",
    ),
    "a subgraph": (subgraph, "it has a field 6 of wire type 2"),
    "a tensor as an attribute": (tensor_attribute, "it has a field 5 of wire type 2"),
    "an attribute without a type": (
        lambda model: model.graph.node[0].attribute.add(name="x"),
        "attribute 'x' of Sign is 0",
    ),
    "an attribute of another operator": (
        lambda model: model.graph.node[0].attribute.append(helper.make_attribute("axis", 0)),
        "attribute 'axis' of Sign is 0",
    ),
    "more outputs than parts": (  # onnxruntime 1.32 aborts
        append(helper.make_node("Split", ["x"], ["y", "z"], num_outputs=1)),
        "attribute 'num_outputs' of Split is 1",
    ),
    "more parts": (
        append(helper.make_node("Split", ["x"], ["y", "z"], num_outputs=3)),
        "attribute 'num_outputs' of Split is 3",
    ),
    "a cast to another type": (
        append(helper.make_node("Cast", ["x"], ["y"], to=11)),
        "attribute 'to' of Cast is 11",
    ),
    "codes of 9 bits": (
        append(helper.make_node("MatMulNBits", ["x"] * 3, ["y"], domain=CONTRIB, bits=9)),
        "attribute 'bits' of MatMulNBits is 9",
    ),
    "another accuracy": (
        append(helper.make_node("MatMulNBits", ["x"] * 3, ["y"], domain=CONTRIB, accuracy_level=5)),
        "attribute 'accuracy_level' of MatMulNBits is 5",
    ),
    "a huge axis of a node": (batches, "attribute 'batch_dims' of GatherND is 9223372036854775808"),
    "an empty input": (
        lambda model: node(model, "LayerNormalization").input.__setitem__(2, ""),
        "LayerNormalization of 3 inputs and 1 outputs",
    ),
    "no input": (
        lambda model: node(model, "MatMul").ClearField("input"),
        "MatMul of 0 inputs and 1 outputs",
    ),
    "a function": (function, "it has a field 25 of wire type 2"),
    "metadata": (
        lambda model: model.metadata_props.add(key="ort_config", value="{}"),
        "it has a field 14 of wire type 2",
    ),
    "a sparse tensor": (
        lambda model: model.graph.sparse_initializer.add(),
        "it has a field 15 of wire type 2",
    ),
    "opset 99": (lambda model: setattr(model.opset_import[0], "version", 99), "opset 99 of ''"),
    "opset 19": (lambda model: setattr(model.opset_import[0], "version", 19), "opset 19 of ''"),
    "opset 24": (lambda model: setattr(model.opset_import[0], "version", 24), "opset 24 of ''"),
    **{
        f"opset {version} of onnxruntime": (
            lambda model, version=version: model.opset_import.add(domain=CONTRIB, version=version),
            f"opset {version} of 'com.microsoft'",
        )
        for version in (0, 2)
    },
    "opset of another domain": (
        lambda model: model.opset_import.add(domain="ai.onnx.ml", version=3),
        "opset 3 of 'ai.onnx.ml'",
    ),
    "no node": (lambda model: model.graph.ClearField("node"), "it has 0 nodes"),
    "many nodes": (
        append(*[helper.make_node("Add", ["x", "x"], ["y"])] * MOST_NODES),
        "it has 4,... nodes, of 1 to 4,096",
    ),
    "many bytes": (
        lambda model: setattr(model.graph, "name", "x" * LARGEST_GRAPH),
        "it is larger than 4,194,304 bytes",
    ),
    "a negative axis": (lambda model: small(model).dims.append(-1), "of shape .* has"),
    "a huge axis": (lambda model: small(model).dims.append(2**62), "of shape .* has"),
    "text tensors": (lambda model: setattr(small(model), "data_type", 8), "has the type 8"),
    "no type": (lambda model: small(model).ClearField("data_type"), "has the type None"),
    "packed numbers": (
        lambda model: small(model).int64_data.append(1),
        "it has a field 7 of wire type 2",
    ),
    "NaN inside": (
        lambda model: model.graph.initializer.append(
            numpy_helper.from_array(np.array([np.nan], np.float32), "bad")
        ),
        "tensor 'bad' is not finite",
    ),
    "an address in memory": (
        lies(location="*/_ORT_MEM_ADDR_/*", offset=140_000_000_000_000),
        "lies at {.*_ORT_MEM_ADDR_",
    ),
    **{
        f"stored in {place!r}": (lies(location=place), "lies at {'location'")
        for place in (
            "../weights.bin",
            "/etc/passwd",
            "sub/../../x",
            "golden.json",
            "",
            "weights.bin\0",
        )
    },
    "an offset behind the end": (lies(offset=2**40), "of shape .* lies at .* of "),
    "a huge offset": (lies(offset=2**64), "a tensor lies at '18446744073709551616'"),
    "a negative offset": (lies(offset=-4096), "a tensor lies at '-4096'"),
    "an offset with a sign": (lies(offset="+0"), r"a tensor lies at '\+0'"),
    "another length": (lies(length=8), "of shape .* lies at"),
    "a dunder key": (lies(__class__="x"), "lies at {.*__class__"),
    "a checksum": (lies(checksum="x"), "lies at {.*checksum"),
    "an entry twice": (
        lambda model: stored(model).external_data.add(key="offset", value="0"),
        "lies at",
    ),
    "content beside a place": (lambda model: setattr(stored(model), "raw_data", b"x"), "lies at"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_what_the_exporter_does_not_write_is_refused(
    bundle: Path, sign: Any, change: Change, message: str
) -> None:
    manifest = Manifest.read(bundle)
    edit(bundle, change)
    sign(bundle, manifest)
    with pytest.raises(BundleError, match=rf"encode\.onnx is no graph of a bundle: .*{message}"):
        Ranker.load(bundle)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it has 0 nodes"),
        (b"\x3a\x7f\x0a", "it ends inside a field"),
        (b"\x3a", "index out of range"),
        (b"\xff" * 20, "a number of more than 64 bits"),
        (b"\x3a\x00\x3a\x00", r"\['graph'\] is there twice"),
        (b"\x3b\x00", "it has a field 7 of wire type 3"),
        (b"\x38\x01", "it has a field 7 of wire type 0"),
        (b"no graph", "it has a field 13 of wire type 6"),
        (b"\x42\x03\x0a\x01\xff", "'utf-8' codec can't decode"),
    ],
)
def test_bytes_that_are_no_graph_are_refused(
    bundle: Path, sign: Any, data: bytes, message: str
) -> None:
    manifest = Manifest.read(bundle)
    (bundle / "append.onnx").write_bytes(data)
    sign(bundle, manifest)
    with pytest.raises(BundleError, match=rf"append\.onnx is no graph of a bundle: .*{message}"):
        Ranker.load(bundle)


def test_every_truncation_of_a_graph_is_refused(bundle: Path, sign: Any) -> None:
    manifest, path = Manifest.read(bundle), bundle / "score.onnx"
    data = path.read_bytes()
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(BundleError, match=r"score\.onnx is no graph of a bundle"):
            check_graphs(bundle, manifest, with_weights=False)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(bundle: Path, sign: Any, value: float) -> None:
    manifest = Manifest.read(bundle)
    weights = np.memmap(bundle / "weights.bin", "<f4", "r+", manifest.table.offset)
    weights[7 * manifest.width + 3] = value
    weights.flush()
    sign(bundle, manifest)
    for load in (Ranker.load, verify):
        with pytest.raises(BundleError, match=r"weights\.bin holds NaN or infinity at byte"):
            load(bundle)
    with pytest.raises(AssertionError, match="onnxruntime was given"):
        Ranker.load(bundle, check_digests=False)


@pytest.fixture(scope="session")
def fp16(exported: Callable[..., Any]) -> Path:
    made: Path = exported(Settings(precision="fp16", allow_drop=1), blocks=0).ranker.path
    return made


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E01])
def test_weights_of_16_bits_that_are_not_finite_are_refused(
    fp16: Path, tmp_path: Path, sign: Any, bits: int
) -> None:
    bundle = Path(shutil.copytree(fp16, tmp_path / "fp16"))
    manifest = Manifest.read(bundle)
    weights = np.memmap(bundle / "weights.bin", "<u2", "r+", manifest.table.offset)
    weights[5] = bits
    weights.flush()
    sign(bundle, manifest)
    with pytest.raises(BundleError, match=r"weights\.bin holds NaN or infinity at byte"):
        Ranker.load(bundle)


def test_a_table_of_the_manifest_that_is_no_tensor_is_refused(bundle: Path, sign: Any) -> None:
    manifest = Manifest.read(bundle)
    sign(bundle, manifest, table=replace(manifest.table, offset=manifest.table.offset + 4))
    message = "score.onnx is no graph of a bundle: it does not have the item table of the manifest"
    with pytest.raises(BundleError, match=message):
        Ranker.load(bundle)


def test_every_graph_of_every_precision_is_let_through(any_precision: Ranker) -> None:
    check_graphs(any_precision.path, any_precision.manifest, with_weights=True)


def test_no_operator_is_let_through_that_runs_a_graph_or_reads_a_file() -> None:
    names = {name for operators in OPERATORS.values() for name in operators}
    assert not names & {"Loop", "If", "Scan", "SequenceMap", "Constant", "EPContext", "Optional"}
    for name in OPERATORS[""]:
        schema = onnx.defs.get_schema(name)
        kinds = {attribute.type for attribute in schema.attributes.values()}
        assert onnx.defs.OpSchema.AttrType.GRAPH not in kinds


def test_the_operators_have_inputs_and_attributes_of_onnx() -> None:
    for name, (fewest, most, attributes) in OPERATORS[""].items():
        schema = onnx.defs.get_schema(name)
        assert schema.min_input <= fewest <= most <= schema.max_input, name
        assert {*attributes.split()} <= {*schema.attributes}, name
    fewest, most, _ = OPERATORS[CONTRIB]["MatMulIntegerToFloat"]
    assert (fewest, most) == (6, 6)
    every = [names.split() for operators in OPERATORS.values() for *_, names in operators.values()]
    assert {*INTEGERS} <= {*chain.from_iterable(every)}


@pytest.mark.parametrize("nodes", [1, MOST_NODES])
def test_a_graph_has_as_many_nodes_as_this(nodes: int) -> None:
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])] * nodes, "g", [], [])
    for number, dtype in TYPES.items():
        tensor = helper.make_tensor(
            f"t{number}", number, [1], np.ones(1, dtype).tobytes(), raw=True
        )
        graph.initializer.append(tensor)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    assert list(stored_tensors(model.SerializeToString(), 0)) == []


BOUNDS = {
    **dict.fromkeys(("axis", "start", "end", "perm"), (-1, 3)),
    **dict.fromkeys(("allowzero", "batch_dims", "exclusive", "is_causal", "keepdims"), (0, 1)),
    **dict.fromkeys(("largest", "noop_with_empty_axes", "reverse", "select_last_index"), (0, 1)),
    **dict.fromkeys(("sorted", "stash_type", "transB"), (0, 1)),
    **dict.fromkeys(("kv_num_heads", "num_heads", "q_num_heads"), (1, 1024)),
    **{"num_outputs": (2, 2), "to": (1, 10), "accuracy_level": (4, 4), "bits": (4, 8)},
    **{"K": (1, 16_384), "block_size": (16, 16_384), "N": (64, 2**40)},
}


def test_integer_attributes_have_these_bounds() -> None:
    assert BOUNDS == INTEGERS


def transpose(*axes: int) -> bytes:
    graph = helper.make_graph([helper.make_node("Transpose", ["x"], ["y"], perm=axes)], "g", [], [])
    opsets = [helper.make_opsetid("", 23)]
    return bytes(helper.make_model(graph, opset_imports=opsets).SerializeToString())


@pytest.mark.parametrize("axes", [(0, 4), (-2, 1), (1, 2**62)])
def test_each_number_of_a_list_has_its_bounds(axes: tuple[int, int]) -> None:
    assert list(stored_tensors(transpose(-1, 3), 0)) == []
    with pytest.raises(ValueError, match="attribute 'perm' of Transpose is"):
        list(stored_tensors(transpose(*axes), 0))
