"""model.onnx: histories to best items in one graph of standard operators (opset 20).

It is for programs that run ONNX without ranklet. It keeps no state and takes histories of any
length: item indices, oldest first, padded with 0 on the right. It scores in fp32 and is slower than
the programs of the Python runtime.
"""

import warnings
from copy import deepcopy
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import DTypeLike
from onnx import TensorProto
from torch import Tensor, nn
from torch.nn import functional

from ranklet.bundle.manifest import CHUNK, MODEL, NEVER, WEIGHTS, Manifest
from ranklet.errors import InputError
from ranklet.files.atomic import atomic_write
from ranklet_export.layers import ServedModel
from ranklet_export.writer import Axes, GraphWriter, offset_of, size_of
from ranklet_training.model.attention import attention, rotary
from ranklet_training.model.model import Block, SequenceModel
from ranklet_training.model.seed import SeedModel

OPSET = 20
# Sizes to trace with; 0 and 1 would be taken for constants (pytorch#151582). The table is cut to a
# few rows: only its name matters here.
TRACED_BATCH, TRACED_LENGTH, TRACED_ITEMS = 3, 7, 5
LARGEST_PROTOBUF = 2**31 - 1  # bytes


class WholeModel(nn.Module):
    """Encoder of histories of any length, of which the latest ``max_length`` events count."""

    bias: Tensor
    kinds: Tensor | None
    objectives: Tensor | None

    def __init__(self, served: ServedModel) -> None:
        """Use the layers of a served model."""
        super().__init__()
        self.model, self.served = served.model, served
        self.table = nn.Parameter(torch.zeros(TRACED_ITEMS, served.width), requires_grad=False)
        self.register_buffer("bias", torch.from_numpy(served.bias))
        self.register_buffer("kinds", served.kinds)
        self.register_buffer("objectives", served.objectives)
        self.scale = 1.0 if isinstance(served.model, SeedModel) else served.width**-0.5
        if isinstance(served.last, Block):
            self.last = deepcopy(served.last)
            self.last.output = served.output

    def forward(
        self,
        history: Tensor,
        since: Tensor | None = None,
        until: Tensor | None = None,
        kind: Tensor | None = None,
        objective: Tensor | None = None,
    ) -> Tensor:
        """Return user vectors, (B, D).

        Args:
            history: Item indices, oldest first, 0 pads on the right, int64 (B, T).
            since: Bucket of the gap before each event, int64 (B, T), of a model with times.
            until: Bucket of the gap from the last event to now, int64 (B,).
            kind: Kind of each event, int64 (B, T), of a model with kinds.
            objective: Weight of each kind that is asked for, float (B, kinds + 1).
        """
        model, served, longest = self.model, self.served, self.served.max_length
        last = (history != 0).sum(dim=1, keepdim=True) - 1  # (B, 1)
        places = torch.arange(history.shape[1])[None]  # (1, T)
        age = last - places  # (B, T); padding is younger than the last event
        counts = (age >= 0) & (age < longest)
        x = functional.embedding(history, self.table)  # (B, T, D)
        if isinstance(model, SeedModel):
            x = x + model.users.weight.mean(dim=0)
        if isinstance(model, SequenceModel) and since is not None:
            x = x + model.since(since)
        if self.kinds is not None and kind is not None:
            x = x + functional.embedding(kind, self.kinds)
        if isinstance(model, SequenceModel) and served.blocks:
            cos_sin = model.cos, model.sin
            distance = places[0, :, None] - places  # (T, T)
            sees = (distance >= 0) & (distance < (served.window or longest))
            may_attend = (sees & counts[:, None] | (distance == 0))[:, None]  # (B, 1, T, T)
            turned = (longest - 1 - age).clamp(0, longest - 1)
        for block in served.blocks:
            normed = block.attention_norm(x)
            key, value = block.keys_values(normed)
            query = rotary(block.split_heads(block.query(normed)), *cos_sin, turned)
            key = rotary(key, *cos_sin, turned)
            x = block.merge(x, attention(query, key, value, mask=may_attend))
        events = self._enter_last(x)
        x = x.gather(1, last[:, :, None].expand(-1, -1, served.width))  # (B, 1, D)
        if isinstance(model, SequenceModel) and until is not None:
            x = x + model.until(until)[:, None]
        if self.objectives is not None and objective is not None:
            x = x + (objective @ self.objectives)[:, None]
        if served.last is not None:
            query = served.query(self._enter_last(x)).unflatten(-1, (served.heads, served.width))
            keys = events[:, None].expand(-1, served.heads, -1, -1)  # (B, H, T, D)
            mask = self.bias[:, age.clamp(0, longest - 1)].transpose(0, 1)  # (B, H, T)
            mask = mask.masked_fill(~counts[:, None], NEVER)[:, :, None]
            scale = (served.width // served.heads) ** -0.5
            attended = attention(query.transpose(1, 2), keys, keys, mask=mask, scale=scale)
            if isinstance(model, SeedModel):
                x = served.output(attended.flatten(2))
            else:
                x = self.last.merge(x, attended)
        user: Tensor = x if isinstance(model, SeedModel) else model.user(x)
        return user[:, 0] * self.scale

    def _enter_last(self, x: Tensor) -> Tensor:
        normed: Tensor = self.last.attention_norm(x) if hasattr(self, "last") else x
        return normed


def write_model(writer: GraphWriter, served: ServedModel, dtype: DTypeLike) -> None:
    """Write model.onnx: the traced encoder, and the scores of an item table stored as ``dtype``."""
    axes: dict[str, Axes] = {"history": ["batch", "length"]}
    if served.config.time_gaps:
        axes |= {"since": ["batch", "length"], "until": ["batch"]}
    if served.objectives is not None:
        axes |= {"kind": ["batch", "length"], "objective": ["batch", len(served.objectives)]}
    writer.adopt(_trace(WholeModel(served).eval(), axes), axes, without="table")
    table, items = writer.table(served.table, dtype), len(served.table) - 1
    writer.input("k", TensorProto.INT64, [1])
    never = np.zeros(-(-len(served.table) // CHUNK) * CHUNK, dtype=np.float32)
    never[0] = never[items + 1 :] = NEVER
    scores = writer.node("Gemm", "user", table, writer.constant(never), transB=1)
    writer.top(scores, "k", "scores", "items")
    writer.output("items", TensorProto.INT64, ["batch", "k"])
    writer.output("scores", TensorProto.FLOAT, ["batch", "k"])
    writer.output("user", TensorProto.FLOAT, ["batch", served.width])


def _trace(model: WholeModel, axes: dict[str, Axes]) -> onnx.GraphProto:
    dims = {"batch": torch.export.Dim("batch", min=1), "length": torch.export.Dim("length", min=1)}
    sizes: dict[int | str, int] = {"batch": TRACED_BATCH, "length": TRACED_LENGTH}
    traced = {
        name: torch.ones(
            [sizes[axis] if axis in sizes else int(axis) for axis in shape],
            dtype=torch.float32 if name == "objective" else torch.int64,
        )
        for name, shape in axes.items()
    }
    with torch.no_grad(), warnings.catch_warnings():
        # The exporter warns of its own internals, and that axes of one name share that name.
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message="# The axis name")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        program = torch.onnx.export(
            model,
            kwargs=traced,
            dynamo=True,
            dynamic_shapes={
                name: {place: dims[axis] for place, axis in enumerate(shape) if axis in dims}
                for name, shape in axes.items()
            },
            input_names=list(axes),
            output_names=["user"],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    return program.model_proto.graph


def write_single_file(bundle: Path, path: Path) -> int:
    """Write model.onnx of a bundle with its weights inside, and return the bytes of the file.

    Args:
        bundle: The folder of a bundle.
        path: The file; one that is there is replaced, whole or not at all.

    Raises:
        BundleError: The bundle is missing or damaged.
        InputError: The weights are too large for one file.
    """
    manifest = Manifest.read(bundle)
    if manifest.table.offset + 4 * manifest.table.rows * manifest.width > LARGEST_PROTOBUF:
        raise InputError(
            f"{manifest.items:,} items do not fit into one file: ONNX allows 2 GiB; copy "
            f"{manifest.programs[MODEL].file} and {WEIGHTS} together instead"
        )
    model = onnx.load(bundle / manifest.programs[MODEL].file, load_external_data=False)
    with (bundle / WEIGHTS).open("rb") as weights:  # onnx reads no file that has links
        for tensor in model.graph.initializer:
            if tensor.external_data:
                weights.seek(offset_of(tensor))
                tensor.raw_data = weights.read(size_of(tensor))
                tensor.ClearField("external_data")
                tensor.ClearField("data_location")
    content = model.SerializeToString()
    atomic_write(path, content)
    return len(content)
