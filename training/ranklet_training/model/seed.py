"""Seed model, the origin of this project and its simplest preset.

User embedding + item embedding -> single-head attention -> linear -> predicted rating, trained by
SGD on the squared error of ratings. A bundle has no users and serves the mean user embedding.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ranklet_training.model.attention import attention
from ranklet_training.model.item_table import ItemTable
from ranklet_training.model.model import Gaps, Kinds, ModelConfig


class SeedModel(nn.Module):
    """Rating model with the interface of ``SequenceModel``; ``encode`` also takes user indices."""

    kinds = 0

    def __init__(self, config: ModelConfig, items: int, users: int) -> None:
        super().__init__()
        self.config = config
        self.items = ItemTable(items, config.width)
        self.users = nn.Embedding(users, config.width)
        self.query = nn.Linear(config.width, config.width)
        self.key_value = nn.Linear(config.width, 2 * config.width)
        self.output = nn.Linear(config.width, config.width)

    def init_weights(self) -> None:
        """Draw embeddings from N(0, 0.1): SGD on products of smaller ones hardly starts."""
        for parameter in (self.items.item, self.users.weight):
            nn.init.normal_(parameter, std=0.1)

    def table(self) -> Tensor:
        """Return the item table with a zero row for padding, (items + 1, D)."""
        return functional.pad(self.items()[1:], (0, 0, 1, 0))

    def encode(self, history: Tensor, table: Tensor, users: Tensor) -> Tensor:
        """Return the user vector after every event, (B, T, D); ``users`` is int64 (B,)."""
        x = functional.embedding(history, table) + self.users(users)[:, None]
        return self._attend(x, x, None)

    def serve(
        self,
        history: Tensor,
        table: Tensor,
        gaps: Gaps | None = None,
        kinds: Kinds | None = None,
    ) -> Tensor:
        """Return the user vector of the mean user after the last event, see ``SequenceModel``."""
        assert gaps is None
        assert kinds is None
        is_event = history != 0
        x = functional.embedding(history, table) + self.users.weight.mean(dim=0)
        last = (is_event.sum(dim=1) - 1)[:, None, None].expand(-1, 1, self.config.width)
        mask = torch.zeros(is_event.shape).masked_fill(~is_event, -torch.inf)[:, None, None]
        return self._attend(x.gather(1, last), x, mask)[:, 0]

    def _attend(self, asking: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return attention to x (B, T, D), causal if there is no mask (B, 1, 1, T)."""
        key, value = self.key_value(x)[:, None].chunk(2, dim=-1)  # (B, 1, T, D)
        query = self.query(asking)[:, None]
        attended = attention(query, key, value, mask=mask, is_causal=mask is None)
        output: Tensor = self.output(attended[:, 0])
        return output
