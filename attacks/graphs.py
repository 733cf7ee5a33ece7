"""Attacks by the graphs: onnxruntime would run, read or allocate what they say."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from attacks.bundle import Bundle, attack


def _node(model: onnx.ModelProto, operator: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == operator)


def _stored(model: onnx.ModelProto) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.external_data)


def _lies(model: onnx.ModelProto, **entries: object) -> None:
    """Change where a stored tensor lies."""
    tensor = _stored(model)
    places: dict[str, object] = {entry.key: entry.value for entry in tensor.external_data}
    del tensor.external_data[:]
    for key, value in {**places, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))


def _after(model: onnx.ModelProto, output: str, operator: str, number: Any) -> None:  # noqa: ANN401
    """Put an operator with a constant behind an output of a graph."""
    for node in model.graph.node:
        node.output[:] = [f"{name}_raw" if name == output else name for name in node.output]
        node.input[:] = [f"{name}_raw" if name == output else name for name in node.input]
    model.graph.initializer.append(numpy_helper.from_array(np.array(number), "by"))
    model.graph.node.append(helper.make_node(operator, [f"{output}_raw", "by"], [output]))


@attack
def endless_loop(bundle: Bundle) -> None:
    """A Loop whose condition stays true: the request never ends, and no signal stops it."""
    with bundle.graph() as model:
        names = [("i", TensorProto.INT64), ("go", TensorProto.BOOL)]
        inputs = [helper.make_tensor_value_info(name, kind, []) for name, kind in names]
        goes_on = helper.make_tensor_value_info("goes_on", TensorProto.BOOL, [])
        step = helper.make_node("Identity", ["go"], ["goes_on"])
        body = helper.make_graph([step], "body", inputs, [goes_on])
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "true"))
        model.graph.node.insert(0, helper.make_node("Loop", ["", "true"], [], body=body))
    bundle.sign()


@attack
def branch(bundle: Bundle) -> None:
    """An If with graphs inside, which a check of the outer nodes does not see."""
    with bundle.graph() as model:
        model.graph.node.append(
            helper.make_node("If", ["x"], ["y"], then_branch=model.graph, else_branch=model.graph)
        )
    bundle.sign()


@attack
def hidden_subgraph(bundle: Bundle) -> None:
    """A graph as an attribute of an innocent operator."""
    with bundle.graph() as model:
        kind = onnx.AttributeProto.GRAPH
        _node(model, "MatMul").attribute.append(
            onnx.AttributeProto(name="x", type=kind, g=model.graph)
        )
    bundle.sign()


@attack
def function_of_the_model(bundle: Bundle) -> None:
    """A function with the name of an operator, which is expanded to other nodes."""
    with bundle.graph() as model:
        node = helper.make_node("Loop", ["x"], ["y"])
        opsets = [helper.make_opsetid("", 23)]
        model.functions.append(helper.make_function("", "MatMul", ["x"], ["y"], [node], opsets))
    bundle.sign()


@attack
def custom_operator(bundle: Bundle) -> None:
    """onnxruntime-genai#2267: an operator of a library, which someone may have registered."""
    with bundle.graph() as model:
        _node(model, "Sign").domain = "evil"
        model.opset_import.add(domain="evil", version=1)
    bundle.sign()


@attack
def compiled_context(bundle: Bundle) -> None:
    """EPContext names a compiled binary that a provider loads and runs."""
    with bundle.graph() as model:
        node = helper.make_node(
            "EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context="../outside/x.so"
        )
        model.graph.node.append(node)
        model.opset_import.add(domain="com.microsoft", version=1)
    bundle.sign()


@attack
def settings_in_metadata(bundle: Bundle) -> None:
    """Session settings in the model, which ORT_LOAD_CONFIG_FROM_MODEL=1 would follow."""
    with bundle.graph() as model:
        model.metadata_props.add(key="ort_config", value='{"session_options": {"x": 1}}')
    bundle.sign()


@attack
def opset_of_the_future(bundle: Bundle) -> None:
    """Opset 99: operators mean something else there."""
    with bundle.graph() as model:
        model.opset_import[0].version = 99
    bundle.sign()


@attack
def million_nodes(bundle: Bundle) -> None:
    """A million nodes take minutes to load."""
    with bundle.graph() as model:
        model.graph.node.extend([helper.make_node("Neg", ["x"], ["y"])] * 10**6)
    bundle.sign()


@attack
def weights_in_parent_folder(bundle: Bundle) -> None:
    """CVE-2022-25882: external data at ``../``."""
    with bundle.graph() as model:
        _lies(model, location="../outside/weights.bin")
    bundle.sign()


@attack
def weights_behind_a_detour(bundle: Bundle) -> None:
    """CVE-2024-27318: external data at ``sub/../../``, which the first fix let through."""
    with bundle.graph() as model:
        _lies(model, location="sub/../../outside/weights.bin")
    bundle.sign()


@attack
def weights_at_absolute_path(bundle: Bundle) -> None:
    """External data at an absolute path: any file of this machine becomes weights."""
    with bundle.graph() as model:
        _lies(model, location=bundle.outside / "weights.bin")
    bundle.sign()


@attack
def weights_in_another_file(bundle: Bundle) -> None:
    """External data in another file of the bundle: titles become weights."""
    with bundle.graph() as model:
        _lies(model, location="titles.utf8", offset=0)
    bundle.sign()


@attack
def weights_at_an_address(bundle: Bundle) -> None:
    """onnxruntime#28709: a marker for data in memory, with an address as its offset."""
    with bundle.graph() as model:
        _lies(model, location="*/_ORT_MEM_ADDR_/*", offset=0x7F0000000000)
    bundle.sign()


@attack
def weights_behind_the_end(bundle: Bundle) -> None:
    """CVE-2024-27319: an offset behind the end of the file."""
    with bundle.graph() as model:
        _lies(model, offset=2**40)
    bundle.sign()


@attack
def weights_before_the_start(bundle: Bundle) -> None:
    """A negative offset."""
    with bundle.graph() as model:
        _lies(model, offset=-4096)
    bundle.sign()


@attack
def weights_of_a_huge_length(bundle: Bundle) -> None:
    """CVE-2026-34445: a length far beyond the file, allocated before it is compared."""
    with bundle.graph() as model:
        _lies(model, length=2**62)
    bundle.sign()


@attack
def weights_with_a_dunder_key(bundle: Bundle) -> None:
    """CVE-2026-34445: keys of external data that were set as attributes of a Python object."""
    with bundle.graph() as model:
        _lies(model, __class__="x", __dict__="y")
    bundle.sign()


@attack
def shape_of_billions(bundle: Bundle) -> None:
    """A shape that says more numbers than the tensor has."""
    with bundle.graph() as model:
        _stored(model).dims[0] = 2**40
    bundle.sign()


@attack
def shape_that_wraps(bundle: Bundle) -> None:
    """Axes whose product is right in 64 bits: 2**32 * 2**32 * n."""
    with bundle.graph() as model:
        _stored(model).dims.extend([2**32, 2**32])
    bundle.sign()


@attack
def negative_axis(bundle: Bundle) -> None:
    """A negative axis of a tensor (Triton: negative_dimensions)."""
    with bundle.graph() as model:
        tensor = _stored(model)
        tensor.dims[0] = -tensor.dims[0]
    bundle.sign()


@attack
def text_for_numbers(bundle: Bundle) -> None:
    """A tensor of texts where numbers are read."""
    with bundle.graph() as model:
        _stored(model).data_type = TensorProto.STRING
    bundle.sign()


@attack
def parts_that_are_not_there(bundle: Bundle) -> None:
    """Split says one part and has two outputs: onnxruntime 1.32 aborts the process."""
    with bundle.graph() as model:
        for attribute in _node(model, "Split").attribute:
            attribute.i = 1 if attribute.name == "num_outputs" else attribute.i
    bundle.sign()


@attack
def batches_below_zero(bundle: Bundle) -> None:
    """GatherND with batch_dims -2**63: onnxruntime 1.32 aborts the process."""
    with bundle.graph() as model:
        _node(model, "GatherND").attribute[0].i = -(2**63)
    bundle.sign()


@attack
def norm_without_a_bias(bundle: Bundle) -> None:
    """LayerNormalization with an empty third input: onnxruntime 1.32 dies of SIGSEGV."""
    with bundle.graph() as model:
        _node(model, "LayerNormalization").input[2] = ""
    bundle.sign()


@attack
def item_far_behind_the_last(bundle: Bundle) -> None:
    """The scorer answers item + 10**6, an index behind every array."""
    with bundle.graph("score") as model:
        _after(model, "items", "Add", 10**6)
    bundle.sign()


@attack
def item_zero(bundle: Bundle) -> None:
    """The scorer answers item 0, padding, which Python takes for the last one."""
    with bundle.graph("score") as model:
        _after(model, "items", "Mul", 0)
    bundle.sign()


@attack
def item_below_zero(bundle: Bundle) -> None:
    """The scorer answers -item, which Python counts from the end: wrong items, in silence."""
    with bundle.graph("score") as model:
        _after(model, "items", "Mul", -1)
    bundle.sign()


@attack
def many_users_get_item_zero(bundle: Bundle) -> None:
    """Only the program of many users lies."""
    with bundle.graph("score_many") as model:
        _after(model, "items", "Mul", 0)
    bundle.sign()


@attack
def scores_are_infinite(bundle: Bundle) -> None:
    """Scores times 3e38 are infinity, which ranks first everywhere."""
    with bundle.graph("score") as model:
        _after(model, "scores", "Mul", np.float32(3e38))
    bundle.sign()


@attack
def scores_are_no_numbers(bundle: Bundle) -> None:
    """0 / 0: NaN is neither below nor above any score."""
    with bundle.graph("score") as model:
        _after(model, "scores", "Mul", np.float32(0))
        model.graph.node[-1].output[0] = "zero"
        model.graph.node.append(helper.make_node("Div", ["zero", "zero"], ["scores"]))
    bundle.sign()


@attack
def users_are_no_numbers(bundle: Bundle) -> None:
    """The encoder gives NaN, which candidates and user vectors would show."""
    with bundle.graph() as model:
        _after(model, "user", "Mul", np.float32(0))
        model.graph.node[-1].output[0] = "zero"
        model.graph.node.append(helper.make_node("Div", ["zero", "zero"], ["user"]))
    bundle.sign()


@attack
def state_of_no_events(bundle: Bundle) -> None:
    """The encoder gives the state of no event, though it says one for each."""
    with bundle.graph() as model:
        for name in ("none", "one"):
            array = np.array([0 if name == "none" else 1])
            model.graph.initializer.append(numpy_helper.from_array(array, name))
        for node in model.graph.node:
            node.output[:] = ["events_raw" if name == "events" else name for name in node.output]
            node.input[:] = ["events_raw" if name == "events" else name for name in node.input]
        node = helper.make_node("Slice", ["events_raw", "none", "none", "one"], ["events"])
        model.graph.node.append(node)
    bundle.sign()


@attack
def contract_of_another_program(bundle: Bundle) -> None:
    """append.onnx is a copy of score.onnx: its inputs are not those of the manifest."""
    bundle.write("append.onnx", (bundle.folder / "score.onnx").read_bytes())
    bundle.sign()


@attack
def no_graph_at_all(bundle: Bundle) -> None:
    """A graph is an .ort file, a ZIP, a picture or a script."""
    bundle.write("encode.onnx", b"PK\x03\x04" + b"\0ORTM" * 1_000)
    bundle.sign()


@attack
def graph_inside_a_graph(bundle: Bundle) -> None:
    """Two graphs in one model: protobuf merges them, and a check may look at one alone."""
    data = (bundle.folder / "encode.onnx").read_bytes()
    bundle.write("encode.onnx", data + data)
    bundle.sign()


@attack
def number_of_many_bytes(bundle: Bundle) -> None:
    """A protobuf number of 20 bytes, which readers cut in different ways."""
    data = (bundle.folder / "encode.onnx").read_bytes()
    bundle.write("encode.onnx", data + b"\x08" + b"\xff" * 20 + b"\x01")
    bundle.sign()
