"""Selective kernel: convolutions with different views, mixed for each channel by what the map holds.

Source: Li et al., "Selective Kernel Networks", arXiv 1903.06586. Constructor words and parameter names are those of
timm's `SelectiveKernel`, so its checkpoints load.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgeattn.errors import UsageError
from edgeattn.nn.squeeze_excite import reduced_width


class _Select(nn.Module):
    """Softmax across the paths (B, M, C, H, W) of two layers on their sum's mean: (B, M, C, 1, 1)."""

    def __init__(self, channels: int, paths: int, width: int) -> None:
        super().__init__()
        self.fc_reduce = nn.Conv2d(channels, width, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)
        self.fc_select = nn.Conv2d(width, channels * paths, 1, bias=False)

    def forward(self, paths: Tensor) -> Tensor:
        count, channels = paths.shape[1:3]
        hidden = self.act(self.bn(self.fc_reduce(paths.sum(1).mean((2, 3), keepdim=True))))
        weights: Tensor = self.fc_select(hidden).view(-1, count, channels, 1, 1).softmax(dim=1)
        return weights


class SelectiveKernel(nn.Module):
    """Convolve in several paths, and add them with weights that a softmax chooses for each channel.

    `u_m = relu(bn(conv_m(x)))`, `a = softmax_m(fc_select(relu(bn(fc_reduce(mean_hw(sum_m u_m))))))`,
    `y = sum_m a_m u_m`.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; those of the input by default.
        kernel_size: one odd size for each path.
        stride: step of all convolutions.
        dilation: dilation of all convolutions.
        groups: groups of all convolutions.
        rd_ratio: width of the hidden layer over the output's channels.
        rd_channels: width of the hidden layer itself; wins over `rd_ratio`.
        rd_divisor: the width that `rd_ratio` gives is rounded to a multiple of it, and is at least it.
        keep_3x3: larger kernels become dilated ones of size 3.
        split_input: each path reads its own part of the input's channels.

    Raises:
        UsageError: the input's channels do not split into the paths, or a kernel is even.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernel_size: Sequence[int] = (3, 5),
        stride: int = 1,
        dilation: int = 1,
        *,
        groups: int = 1,
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
        keep_3x3: bool = True,
        split_input: bool = True,
    ) -> None:
        super().__init__()
        out_channels, count = out_channels or in_channels, len(kernel_size)
        if split_input and in_channels % count:
            raise UsageError(f"{in_channels} channels do not split into {count} paths; choose a multiple of {count}")
        if any(size % 2 == 0 for size in kernel_size):
            raise UsageError(f"kernel_size is {tuple(kernel_size)}, expected odd sizes")
        self.parts = count if split_input else 1
        sizes = [(3, dilation * (size - 1) // 2) if keep_3x3 else (size, dilation) for size in kernel_size]
        self.paths = nn.ModuleList(
            nn.Sequential(
                OrderedDict(
                    conv=nn.Conv2d(
                        in_channels // self.parts,
                        out_channels,
                        size,
                        stride,
                        padding=step * (size - 1) // 2,
                        dilation=step,
                        groups=min(out_channels, groups),
                        bias=False,
                    ),
                    bn=nn.BatchNorm2d(out_channels),
                    act=nn.ReLU(inplace=True),
                )
            )
            for size, step in sizes
        )
        self.attn = _Select(out_channels, count, reduced_width(out_channels, rd_ratio, rd_channels, rd_divisor))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x` (B, C, H, W) to (B, out_channels, H / stride, W / stride)."""
        inputs = x.chunk(self.parts, dim=1) if self.parts > 1 else [x] * len(self.paths)
        paths = torch.stack([path(part) for path, part in zip(self.paths, inputs, strict=True)], dim=1)
        selected: Tensor = (paths * self.attn(paths)).sum(1)
        return selected
