"""Efficient channel attention: one gate per channel, from the means of its neighbours in channel order.

Source: Wang et al., "ECA-Net", arXiv 1910.03151. Constructor words and parameter names are those of timm's
`EcaModule`, so its checkpoints load.
"""

from __future__ import annotations

import math

from torch import Tensor, nn


class ECA(nn.Module):
    """Weigh each channel by a convolution over the channels' means.

    `y = x * sigmoid(conv(mean_hw(x)))`. With `channels` C, the kernel is the odd number at or above
    |log2(C) + beta| / gamma (rounded down), and at least 3.

    Args:
        channels: sets the kernel's size; None for `kernel_size`.
        kernel_size: odd size of the kernel where no channels are given.
        gamma: see above.
        beta: see above.
    """

    def __init__(self, channels: int | None = None, kernel_size: int = 3, gamma: float = 2, beta: float = 1) -> None:
        super().__init__()
        if channels is not None:
            size = int(abs(math.log2(channels) + beta) / gamma)
            kernel_size = max(size if size % 2 else size + 1, 3)
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Gate `x` (B, C, H, W) by channel; the shape stays."""
        row = x.mean((2, 3)).unsqueeze(1)  # (B, 1, C)
        gated: Tensor = x * self.conv(row).sigmoid().squeeze(1)[:, :, None, None]
        return gated
