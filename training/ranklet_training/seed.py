"""The seed model, where this project began: kept as the simplest preset, to show the way since.

User embedding + item embedding -> single-head attention -> linear -> predicted rating, trained by
SGD on the squared error of ratings. A bundle knows no users, so it serves the mean user embedding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ranklet_training.attention import KeyValue, attention
from ranklet_training.model import Gaps, ItemTable, ModelConfig


class SeedModel(nn.Module):
    """Same interface as ``SequenceModel``; ``encode`` also takes who the users are."""

    def __init__(self, config: ModelConfig, items: int, users: int) -> None:
        super().__init__()
        self.config = config
        self.items = ItemTable(items, config.width)
        self.users = nn.Embedding(users, config.width)
        self.query = nn.Linear(config.width, config.width)
        self.key_value = nn.Linear(config.width, 2 * config.width)
        self.output = nn.Linear(config.width, config.width)

    def init_weights(self) -> None:
        """Draw embeddings from N(0, 0.1), so that SGD on their products moves from the start."""
        for parameter in (self.items.item, self.users.weight):
            nn.init.normal_(parameter, std=0.1)

    def table(self) -> Tensor:
        """Return the item table with a zero row for padding, (items + 1, D)."""
        return functional.pad(self.items()[1:], (0, 0, 1, 0))

    def encode(self, history: Tensor, table: Tensor, users: Tensor) -> Tensor:
        """Return the user vector after every event, (B, T, D); ``users`` is int64 (B,)."""
        x = functional.embedding(history, table) + self.users(users)[:, None]
        return self._attend(x, x, None, None, is_causal=True)[0]

    def serve(
        self,
        history: Tensor,
        past: Sequence[KeyValue],
        table: Tensor,
        gaps: Gaps | None = None,
        *,
        onnx_nodes: bool = False,
    ) -> tuple[Tensor, list[KeyValue]]:
        """Return the user vector of the mean user after the last event, see ``SequenceModel``."""
        assert gaps is None
        is_event = history != 0
        x = functional.embedding(history, table) + self.users.weight.mean(dim=0)
        last = (is_event.sum(dim=1, keepdim=True) - 1)[:, :, None]
        seen_before = torch.ones_like(past[0][0][:, 0, :, 0], dtype=torch.bool)
        may_attend = torch.cat([seen_before, is_event], dim=1)[:, None, None]
        user, present = self._attend(
            x.gather(1, last.expand(-1, -1, self.config.width)),
            x,
            past[0],
            may_attend,
            onnx_node=onnx_nodes,
        )
        return user[:, 0], [present]

    def empty_state(self, batch: int) -> list[KeyValue]:
        """Return the state before the first event, for ``serve``."""
        shape = (batch, 1, 0, self.config.width)
        return [(torch.zeros(shape), torch.zeros(shape))]

    def _attend(
        self,
        asking: Tensor,
        x: Tensor,
        past: KeyValue | None,
        may_attend: Tensor | None,
        *,
        is_causal: bool = False,
        onnx_node: bool = False,
    ) -> tuple[Tensor, KeyValue]:
        key, value = self.key_value(x)[:, None].chunk(2, dim=-1)  # (B, 1, T, D)
        attended, present = attention(
            self.query(asking)[:, None],
            key,
            value,
            past=past,
            may_attend=may_attend,
            is_causal=is_causal,
            onnx_node=onnx_node,
        )
        return self.output(attended[:, 0]), present
