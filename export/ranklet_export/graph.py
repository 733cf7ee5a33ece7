"""The graph of a bundle: history and state in, best items, scores, user vector and state out.

One graph serves a cold history (an empty past) and a single new event (a past of any length).
Batch, length and past are dynamic.
"""

import warnings
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

from ranklet_training.attention import KeyValue
from ranklet_training.checkpoint import Model
from ranklet_training.model import SHORTEST_EXPORT

OPSETS = range(18, 24)
# From here on attention and rotary positions are one ONNX node each.
FUSED_OPSET = 23
# Below every score, and still a finite number: padding never ranks.
NEVER = -3e38
# Sizes to trace with; 0 and 1 would be taken for constants (pytorch#151582). The parity gate
# uses none of them.
TRACED_BATCH, TRACED_LENGTH, TRACED_PAST, TRACED_K = 3, 7, 4, 5


class ServingGraph(nn.Module):
    """Exactly what the runtime needs of a model, on its folded table."""

    table: Tensor
    bias: Tensor

    def __init__(self, model: Model, *, onnx_nodes: bool) -> None:
        super().__init__()
        self.model = model
        self.onnx_nodes = onnx_nodes
        self.gaps = len(gap_names(model))
        with torch.no_grad():
            table = model.table().detach().contiguous()  # (items + 1, D)
        bias = torch.zeros(len(table))
        bias[0] = NEVER
        self.register_buffer("table", table)
        self.register_buffer("bias", bias)

    def forward(self, history: Tensor, k: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """Rank all items.

        Args:
            history: Item indices, oldest first, 0 pads on the right, int64 (B, T).
            k: How many items to return, int64, from 1 to the number of items.
            others: With ``time_gaps``, buckets before each event (B, T) and until the question
                (B,); then keys and values of each block in turn, each (B, H, P, D / H).

        Returns:
            items (B, k), scores (B, k), user (B, D), then keys and values (B, H, P + T, D / H).
        """
        gaps, past = others[: self.gaps], others[self.gaps :]
        user, present = self.model.serve(
            history,
            list(zip(past[0::2], past[1::2], strict=True)),
            self.table,
            (gaps[0], gaps[1]) if gaps else None,
            onnx_nodes=self.onnx_nodes,
        )
        count = k.item()
        torch._check(count >= 1)  # type: ignore[no-untyped-call]
        torch._check(count < len(self.table))  # type: ignore[no-untyped-call]
        # linear becomes one Gemm on the table as it lies; a transposed copy would double the file.
        all_scores = functional.linear(user, self.table, self.bias)  # (B, items + 1)
        scores, items = all_scores.topk(count)  # type: ignore[arg-type]  # symbolic
        return (items, scores, user, *flatten(present))


def flatten(state: list[KeyValue]) -> list[Tensor]:
    """Return keys and values of each block, one after another."""
    return [tensor for pair in state for tensor in pair]


def state_names(model: Model, prefix: str) -> list[str]:
    """Return the names of the state's tensors, in the order of ``flatten``."""
    blocks = range(len(model.empty_state(1)))
    return [f"{prefix}_{part}_{block}" for block in blocks for part in ("key", "value")]


def gap_names(model: Model) -> list[str]:
    """Return the names of the inputs that tell time."""
    return ["since", "until"] if model.config.time_gaps else []


def export_graph(model: Model, path: Path, opset: int) -> ServingGraph:
    """Write the graph of a model to ``path``, weights inside, and return what was traced.

    Args:
        model: In evaluation mode.
        path: Of the ONNX file.
        opset: From 18; from 23 on attention is one node, see ``FUSED_OPSET``.
    """
    batch = torch.export.Dim("batch", min=1)
    longest = max(model.config.max_length, SHORTEST_EXPORT)
    length = torch.export.Dim("length", min=1, max=longest)
    past = torch.export.Dim("past", min=0, max=longest)
    state = [
        tensor.new_zeros(TRACED_BATCH, tensor.shape[1], TRACED_PAST, tensor.shape[3])
        for tensor in flatten(model.empty_state(1))
    ]
    history = torch.ones(TRACED_BATCH, TRACED_LENGTH, dtype=torch.int64)
    shapes: dict[str, object] = {"history": {0: batch, 1: length}, "k": {}}
    gaps = [torch.ones_like(history), torch.ones_like(history[:, 0])][: len(gap_names(model))]
    others = (
        *({0: batch, 1: length}, {0: batch})[: len(gaps)],
        *({0: batch, 2: past} for _ in state),
    )
    if others:
        shapes["others"] = others
    serving = ServingGraph(model, onnx_nodes=opset >= FUSED_OPSET).eval()
    with torch.no_grad(), warnings.catch_warnings():
        # The exporter warns of its own internals, and that axes of one name share that name.
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message="# The axis name")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        program = torch.onnx.export(
            serving,
            (history, torch.tensor(TRACED_K), *gaps, *state),
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=["history", "k", *gap_names(model), *state_names(model, "past")],
            output_names=["items", "scores", "user", *state_names(model, "present")],
            opset_version=opset,
            verbose=False,
        )
    assert program is not None
    program.save(path, external_data=False)
    _tidy(path)
    return serving


def _tidy(path: Path) -> None:
    """Drop the exporter's stack traces (they hold local paths) and name the unknown axis ``k``."""
    graph = onnx.load(path)
    graph.producer_name, graph.producer_version = "ranklet", ""
    graph.doc_string = "history and past in; items, scores, user and present out"
    del graph.metadata_props[:]
    graph.graph.name = "ranklet"
    del graph.graph.metadata_props[:]
    del graph.graph.value_info[:]
    for node in graph.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for tensor in (*graph.graph.input, *graph.graph.output, *graph.graph.initializer):
        tensor.doc_string = ""
        del tensor.metadata_props[:]
    for output in graph.graph.output[:2]:
        output.type.tensor_type.shape.dim[1].dim_param = "k"
    onnx.checker.check_model(graph)
    onnx.save(graph, path)


def find_table(path: Path, table: Tensor) -> int:
    """Return the offset of the item table's bytes in an ONNX file.

    Raises:
        RuntimeError: They are not there exactly once: the tied table has been copied or changed.
    """
    data, rows = path.read_bytes(), table.numpy().astype("<f4").tobytes()
    if data.count(rows) != 1:
        raise RuntimeError(f"the item table is in the graph {data.count(rows)} times, not once")
    return data.index(rows)
