"""The non-local block: every place of a map becomes a mean over all places, added to it.

Source: Wang et al., "Non-local Neural Networks", 2017, arXiv:1711.07971, section 3: three of the four pairwise
functions (not the concatenation), the block's residual form, and its subsampling.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeattn.errors import UsageError, did_you_mean

MODES = ("embedded_gaussian", "gaussian", "dot_product")


class NonLocal2d(nn.Module):
    """`y = norm(w(f(theta(x), phi(x)) g(x))) + x`, the identity at first.

    `f` is softmax(theta phi^T) for `embedded_gaussian`, softmax(x x^T) for `gaussian`, theta phi^T / M for
    `dot_product`, with M places of keys; none scales the scores.

    Args:
        channels: channels C of the input and the output.
        mode: the pairwise function.
        rd_ratio: channels inside over C.
        rd_channels: channels inside themselves; wins over `rd_ratio`.
        pool: keys and values are the maximum over windows of this side; 1 keeps all.

    Raises:
        UsageError: no such mode.
    """

    def __init__(
        self,
        channels: int,
        mode: str = "embedded_gaussian",
        rd_ratio: float = 1 / 2,
        rd_channels: int | None = None,
        pool: int = 1,
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise UsageError(f"no non-local mode {mode!r}; {did_you_mean(mode, MODES)}")
        width = rd_channels or max(1, int(channels * rd_ratio))
        self.mode = mode
        embeds = mode != "gaussian"
        self.theta = nn.Conv2d(channels, width, 1) if embeds else nn.Identity()
        self.phi = nn.Conv2d(channels, width, 1) if embeds else nn.Identity()
        self.g = nn.Conv2d(channels, width, 1)
        self.pool = nn.MaxPool2d(pool) if pool > 1 else nn.Identity()
        self.w = nn.Conv2d(width, channels, 1)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (B, C, H, W) to the same shape."""
        q, k, v = (
            layer.flatten(2).transpose(1, 2) for layer in (self.theta(x), self.pool(self.phi(x)), self.pool(self.g(x)))
        )
        if self.mode == "dot_product":
            out = torch.matmul(torch.matmul(q, k.transpose(1, 2)) / k.shape[1], v)
        else:
            out = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        y = self.w(out.transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:]))
        residual: Tensor = self.norm(y) + x
        return residual
