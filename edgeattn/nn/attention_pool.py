"""Attention pooling: a weighted mean of items, the weights learned.

Source: Ilse et al., "Attention-based Deep Multiple Instance Learning", arXiv 1802.04712, equations 7 to 9.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AttentionPool(nn.Module):
    """Sum items with weights that a softmax over them gives, one set of weights for each query.

    `y_m = sum_n softmax_n(score(x_n)_m)_n x_n`, `score(x) = fc(tanh(value(x)))`; gated,
    `score(x) = fc(tanh(value(x)) * sigmoid(gate(x)))`.

    Args:
        channels: channels C of an item.
        hidden_channels: width of the hidden layer; half of C by default.
        queries: how many weighted means M are made.
        gated: whether the hidden layer is gated.
    """

    def __init__(
        self, channels: int, hidden_channels: int | None = None, queries: int = 1, *, gated: bool = False
    ) -> None:
        super().__init__()
        hidden = hidden_channels or max(channels // 2, 1)
        self.value = nn.Linear(channels, hidden)
        self.gate = nn.Linear(channels, hidden) if gated else None
        self.fc = nn.Linear(hidden, queries)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool `x` (B, N, C), or a map (B, C, H, W) over its places, to (B, M, C).

        `mask` (B, N) is true for the items that count; each sample needs one.
        """
        items = x.flatten(2).transpose(1, 2) if x.ndim == 4 else x
        hidden = torch.tanh(self.value(items))
        if self.gate is not None:
            hidden = hidden * torch.sigmoid(self.gate(items))
        scores = self.fc(hidden).transpose(1, 2)  # (B, M, N)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], float("-inf"))
        weights = scores.softmax(-1)
        pooled: Tensor = weights @ items
        return pooled
