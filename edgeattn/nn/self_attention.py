"""Self-attention on a feature map, with a gate that starts closed.

Source: Zhang et al., "Self-Attention Generative Adversarial Networks", 2018, arXiv:1805.08318, section 3. Their code
pools keys and values; here, as in the paper and in most others' code, every place attends to every place.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SelfAttention2d(nn.Module):
    """Every place of a map looks at all others: `y = gamma * softmax(q k^T) v + x`, unscaled, gamma learned from 0.

    Args:
        channels: channels C of the input and the output.
        rd_ratio: channels of queries and keys over C.
        rd_channels: channels of queries and keys themselves; wins over `rd_ratio`.
    """

    def __init__(self, channels: int, rd_ratio: float = 1 / 8, rd_channels: int | None = None) -> None:
        super().__init__()
        width = rd_channels or max(1, int(channels * rd_ratio))
        self.query = nn.Conv2d(channels, width, 1)
        self.key = nn.Conv2d(channels, width, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (B, C, H, W) to the same shape."""
        q, k, v = (layer(x).flatten(2).transpose(1, 2) for layer in (self.query, self.key, self.value))  # (B, HW, .)
        out = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        return self.gamma * out.transpose(1, 2).reshape(x.shape) + x
