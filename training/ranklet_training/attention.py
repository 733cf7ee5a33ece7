"""The two formulas that every model here shares: scaled dot-product attention and rotary positions.

Each has two forms that must agree (the export's parity gate compares them): plain PyTorch for
training, and one ONNX node (opset 23) for graphs, where a node with the past inside costs a third
of the nodes that the written-out form does.

* Rotary positions are append-stable: an event's key depends on its own place alone, so keys that
  were computed once stay right when later events arrive.
* Histories are padded on the right. Under a causal mask no real event attends to padding, and no
  row is ever fully masked (execution providers differ there: onnxruntime#28904, #29020).
"""

import torch
from torch import Tensor
from torch.nn import functional

KeyValue = tuple[Tensor, Tensor]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    past: KeyValue | None = None,
    may_attend: Tensor | None = None,
    is_causal: bool = False,
    onnx_node: bool = False,
) -> tuple[Tensor, KeyValue]:
    """Return softmax(QK^T / sqrt(d_k))V and the keys and values that it looked at.

    Source: Vaswani et al., "Attention Is All You Need", 2017, equation 1.

    Args:
        query: (B, H, T, d_k).
        key: (B, H, S, d_k), for the events of ``history``; ``past`` comes before them.
        value: (B, H, S, d_k).
        past: Keys and values of earlier events, each (B, H, P, d_k); P may be 0.
        may_attend: (B, 1, T, P + S); boolean, True where a query may look at a key, or a float that
            is added to its score.
        is_causal: Query t looks at the past and at keys 0 to t only.
        onnx_node: Write one ONNX Attention node instead of its parts (only while exporting).

    Returns:
        The attended values (B, H, T, d_k), and the present: keys and values (B, H, P + S, d_k).
    """
    if onnx_node and past is not None:
        attended, present_key, present_value, _ = torch.onnx.ops.attention(
            query, key, value, may_attend, past[0], past[1], is_causal=is_causal
        )
        return attended, (present_key, present_value)
    if past is not None:
        key = torch.cat([past[0], key], dim=2)  # (B, H, P + S, d_k)
        value = torch.cat([past[1], value], dim=2)
        if is_causal:
            steps = torch.arange(key.shape[2], device=key.device)
            may_attend = steps <= steps[past[0].shape[2] :, None]  # (T, P + S)
            is_causal = False
    attended = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=may_attend, is_causal=is_causal
    )
    return attended, (key, value)


def rotary_tables(positions: int, head_width: int, base: float) -> tuple[Tensor, Tensor]:
    """Return cos and sin of every position and frequency, each (positions, head_width / 2)."""
    frequencies = base ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * frequencies
    return angles.cos().float(), angles.sin().float()


def rotary(
    x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, *, onnx_node: bool = False
) -> Tensor:
    """Rotate pairs of channels by an angle proportional to the position.

    Source: Su et al., "RoFormer", 2021, section 3.2; halves instead of neighbours are paired, as
    in the ONNX operator RotaryEmbedding.

    Args:
        x: Queries or keys, (B, H, T, d_k).
        cos: Table from ``rotary_tables``, (positions, d_k / 2).
        sin: Table from ``rotary_tables``, (positions, d_k / 2).
        positions: Place of each event in its history, int64 (B, T) or (1, T).
        onnx_node: Write one ONNX RotaryEmbedding node (only while exporting).
    """
    if onnx_node:
        rotated: Tensor = torch.onnx.ops.rotary_embedding(x, cos, sin, positions)
        return rotated
    c, s = cos[positions][:, None], sin[positions][:, None]  # (B, 1, T, d_k / 2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * c - second * s, second * c + first * s], dim=-1)
