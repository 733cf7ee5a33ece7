"""A model of NVIDIA Triton: model.onnx of a bundle, its configuration, and a client.

Triton batches requests whose inputs have one shape, and expects the batch first on every input, so
``k`` becomes one number for each history here; the largest is answered.
"""

import json
import shutil
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from ranklet.bundle.manifest import MANIFEST, MODEL, WEIGHTS, Manifest, Tensor
from ranklet.errors import InputError
from ranklet.files.atomic import atomic_folder

MOST_BATCHED = 64  # histories of one run
TYPES = {"tensor(int64)": "TYPE_INT64", "tensor(float)": "TYPE_FP32"}
IDS = ("items.i64", "items.utf8", "items.ends.i64", "silent.i64")
CLIENT = Path(__file__).with_name("triton_client.py")


def write_triton(bundle: Path, folder: Path) -> None:
    """Write a model for a Triton model repository.

    Args:
        bundle: The folder of a bundle.
        folder: The new folder of the model, whose name is that of the model.

    Raises:
        BundleError: The bundle is missing or damaged.
        InputError: The folder exists.
    """
    manifest = Manifest.read(bundle)
    if folder.exists():
        raise InputError(f"{folder} exists: choose another name")
    with atomic_folder(folder) as new:
        version = new / "1"
        version.mkdir()
        (version / "model.onnx").write_bytes(_batched(bundle / manifest.programs[MODEL].file))
        shutil.copyfile(bundle / WEIGHTS, version / WEIGHTS)
        (new / "config.pbtxt").write_text(_configuration(manifest, folder.name))
        for name in (MANIFEST, *filter(manifest.files.__contains__, IDS)):
            shutil.copyfile(bundle / name, new / name)
        shutil.copyfile(CLIENT, new / "client.py")


def _batched(path: Path) -> bytes:
    """Return the graph with k for each history, (batch, 1)."""
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    for node in graph.node:
        node.input[:] = ["largest_k" if name == "k" else name for name in node.input]
    axes = helper.make_tensor("batch_axis", TensorProto.INT64, [1], [0])
    graph.initializer.append(axes)
    graph.node.insert(
        0, helper.make_node("ReduceMax", ["k", "batch_axis"], ["largest_k"], keepdims=0)
    )
    for given in graph.input:
        if given.name == "k":
            given.CopyFrom(helper.make_tensor_value_info("k", TensorProto.INT64, ["batch", 1]))
    content: bytes = model.SerializeToString()
    return content


def _configuration(manifest: Manifest, name: str) -> str:
    program = manifest.programs[MODEL]
    tensors = [f"input {_tensor(each)}" for each in program.inputs]
    tensors += [f"output {_tensor(each)}" for each in program.outputs]
    return "\n".join(
        [
            f"name: {json.dumps(name)}",
            'platform: "onnxruntime_onnx"',
            f"max_batch_size: {MOST_BATCHED}",
            *tensors,
            "dynamic_batching { }",
            f'parameters {{ key: "ranklet" value {{ string_value: "{manifest.digest}" }} }}',
            "",
        ]
    )


def _tensor(tensor: Tensor) -> str:
    """Return a tensor without its first axis, the batch; Triton does without an axis as well."""
    axes = tensor.shape if tensor.name == "k" else tensor.shape[1:]
    dims = ", ".join(str(axis if isinstance(axis, int) else -1) for axis in axes or [1])
    scalar = "" if axes else " reshape { shape: [ ] }"
    return f'{{ name: "{tensor.name}" data_type: {TYPES[tensor.type]} dims: [ {dims} ]{scalar} }}'
