"""Attention, rotary positions and relative bias.

Both positions are append-stable: later events do not change a key. Rotary positions rotate a key by
its own position, and a relative bias does not touch keys.

Histories are padded on the right. Under a causal mask no real event attends to padding, and no row
is fully masked, on which execution providers differ (onnxruntime#28904, #29020).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

WAVES = 8  # of a relative bias
# Wavelengths from 6 to 2,650 events: the longest is nearly a straight line over most histories.
FREQUENCIES: NDArray[np.float64] = 1000.0 ** (-np.arange(WAVES) / WAVES)
STEP = 4.0  # scale of the bias: Adam moves a parameter by about its learning rate a step
WHOLE = 8  # windows; shorter histories are not cut, as large products are faster


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Return softmax(QK^T / sqrt(d_k))V, (B, H, T, d_v).

    Query is (B, H, T, d_k), key (B, H, S, d_k), value (B, H, S, d_v). A mask broadcasts to
    (B, H, T, S): floats are added to the scores, a bool hides keys where it is False. ``scale``
    replaces 1 / sqrt(d_k). Source: Vaswani et al., "Attention Is All You Need", 2017, equation 1.
    """
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=is_causal, scale=scale
    )


def local_attention(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    """Return causal attention to the latest ``window`` events, the query's own included; 0: all.

    Long histories are cut into chunks that attend to themselves and the chunk before: time and
    memory are linear in the length. Query, key and value are (B, H, T, d). Source: Beltagy et al.,
    "Longformer", 2020, section 3.1, its causal half.
    """
    length = query.shape[2]
    if not 0 < window < length:
        return attention(query, key, value, is_causal=True)
    if length <= WHOLE * window:
        places = torch.arange(length, device=query.device)
        distance = places[:, None] - places
        return attention(query, key, value, mask=(distance >= 0) & (distance < window))
    batch, heads = query.shape[:2]
    chunks = -(-length // window)
    sizes = (batch, heads, chunks, window, -1)
    query, key, value = (
        functional.pad(x, (0, 0, 0, chunks * window - length)).view(*sizes)
        for x in (query, key, value)
    )  # (B, H, C, W, d)
    key, value = (
        torch.cat([functional.pad(x[:, :, :-1], (0, 0, 0, 0, 1, 0)), x], dim=3)
        for x in (key, value)
    )  # (B, H, C, 2 W, d), with padding before the first chunk
    places = torch.arange(2 * window, device=query.device)
    distance = places[window:, None] - places
    mask = ((distance >= 0) & (distance < window)).repeat(chunks, 1, 1)
    mask[0, :, :window] = False
    query, key, value = (x.flatten(1, 2) for x in (query, key, value))  # chunks as heads
    attended = attention(query, key, value, mask=mask.repeat(heads, 1, 1))
    return attended.view(batch, heads, chunks * window, -1)[:, :, :length]


def rotary_tables(positions: int, head_width: int, base: float) -> tuple[Tensor, Tensor]:
    """Return cos and sin of every position and frequency, each (positions, head_width / 2)."""
    frequencies = base ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * frequencies
    return angles.cos().float(), angles.sin().float()


def rotary(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> Tensor:
    """Rotate pairs of channels of x (B, H, T, d_k) by angles proportional to the position.

    ``cos`` and ``sin`` are from ``rotary_tables``; positions are int64 (B, T) or (1, T). Source: Su
    et al., "RoFormer", 2021, section 3.2; halves instead of neighbours are paired, as in the ONNX
    operator RotaryEmbedding.
    """
    c, s = cos[positions][:, None], sin[positions][:, None]  # (B, 1, T, d_k / 2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * c - second * s, second * c + first * s], dim=-1)


class RelativeBias(nn.Module):
    """Relative bias of a head at distance n: sum_f a_f cos(w_f n) + b_f sin(w_f n).

    Additive as in T5 (Raffel et al., 2020), but each term is a product of a factor of the query
    position and a factor of the key position. Training appends the factors to queries and keys as
    channels: attention stays fused, unlike with a learned matrix of biases.
    """

    frequencies: Tensor

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.steps = nn.Parameter(torch.zeros(2, heads, WAVES))
        self.register_buffer("frequencies", torch.from_numpy(FREQUENCIES), persistent=False)

    def waves(self) -> Tensor:
        """Return a and b, (2, H, WAVES)."""
        return STEP * self.steps

    def channels(self, length: int) -> tuple[Tensor, Tensor]:
        """Return channels of queries (H, T, 2 WAVES) and keys (T, 2 WAVES): products are biases."""
        cos, sin = self._cos_sin(length)
        a, b = self.waves()[:, :, None]  # (H, 1, WAVES)
        query = torch.cat([a * cos + b * sin, a * sin - b * cos], dim=-1)
        return query, torch.cat([cos, sin], dim=-1)

    def forward(self, length: int) -> Tensor:
        """Return the bias of the distances 0 to length - 1, (H, T)."""
        cos, sin = self._cos_sin(length)
        a, b = self.waves()
        bias: Tensor = a @ cos.T + b @ sin.T
        return bias

    def _cos_sin(self, length: int) -> tuple[Tensor, Tensor]:
        places = torch.arange(length, device=self.frequencies.device)
        angles = places[:, None] * self.frequencies  # (T, WAVES), float64
        return angles.cos().to(self.steps), angles.sin().to(self.steps)


def biased_attention(query: Tensor, key: Tensor, value: Tensor, bias: RelativeBias) -> Tensor:
    """Return causal attention with a relative bias, for training; shapes as ``attention``.

    Query, key and value share one width, as fused attention needs.
    """
    batch, heads, length, width = query.shape
    scale = width**-0.5
    by_query, by_key = bias.channels(length)
    query = torch.cat([query, (by_query / scale).expand(batch, -1, -1, -1)], dim=-1)
    key = torch.cat([key, by_key.expand(batch, heads, -1, -1)], dim=-1)
    value = functional.pad(value, (0, by_key.shape[-1]))
    return attention(query, key, value, is_causal=True, scale=scale)[..., :width]
