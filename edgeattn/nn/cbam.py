"""CBAM: a channel gate and then a spatial gate on a feature map.

Source: Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018, arXiv:1807.06521. Constructor words,
parameter names and the order (average, maximum) of the spatial gate's two planes are those of timm's `CbamModule`,
so its checkpoints load.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from edgeattn.nn.squeeze_excite import reduced_width


class ChannelAttention(nn.Module):
    """What to look at: one gate per channel, from its mean and its maximum over the map.

    `y = x * sigmoid(mlp(mean_hw(x)) + mlp(max_hw(x)))`, with one `mlp = fc2(relu(fc1(.)))` for both.

    Args:
        channels: channels C of the input and the output.
        rd_ratio: width of the mlp over C.
        rd_channels: width of the mlp itself; wins over `rd_ratio`.
        rd_divisor: the width that `rd_ratio` gives is rounded to a multiple of it, and is at least it.
        mlp_bias: whether the two layers have a bias.
    """

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 1,
        *,
        mlp_bias: bool = False,
    ) -> None:
        super().__init__()
        width = reduced_width(channels, rd_ratio, rd_channels, rd_divisor)
        self.fc1 = nn.Conv2d(channels, width, 1, bias=mlp_bias)
        self.act = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(width, channels, 1, bias=mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Gate `x` (B, C, H, W) by channel; the shape stays."""
        mean = self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True))))
        peak = self.fc2(self.act(self.fc1(x.amax((2, 3), keepdim=True))))
        return x * torch.sigmoid(mean + peak)


class SpatialAttention(nn.Module):
    """Where to look: one gate per place, from the mean and the maximum over the channels there.

    `y = x * sigmoid(bn(conv([mean_c(x), max_c(x)])))`.

    Args:
        kernel_size: side of the convolution, odd.
    """

    def __init__(self, kernel_size: int = 7) -> None:
        super().__init__()
        conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.conv = nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(1)))

    def forward(self, x: Tensor) -> Tensor:
        """Gate `x` (B, C, H, W) by place; the shape stays."""
        planes = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)  # (B, 2, H, W)
        return x * torch.sigmoid(self.conv(planes))


class CBAM(nn.Module):
    """`ChannelAttention`, then `SpatialAttention`; the arguments are theirs."""

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 1,
        spatial_kernel_size: int = 7,
        *,
        mlp_bias: bool = False,
    ) -> None:
        super().__init__()
        self.channel = ChannelAttention(channels, rd_ratio, rd_channels, rd_divisor, mlp_bias=mlp_bias)
        self.spatial = SpatialAttention(spatial_kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Gate `x` (B, C, H, W) by channel and then by place; the shape stays."""
        gated: Tensor = self.spatial(self.channel(x))
        return gated
