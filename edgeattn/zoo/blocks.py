"""The few layers that the zoo's networks share."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F


def conv_bn_act(in_channels: int, channels: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """`relu(bn(conv(x)))`; without a stride the map keeps its size."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel, stride, padding, dilation, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


class ResidualBlock(nn.Module):
    """`relu(attention(bn(conv(relu(bn(conv(x)))))) + shortcut(x))`: He et al. 2016, and a gate's usual place.

    Args:
        in_channels: channels of the input.
        channels: channels of the output.
        stride: step of the first convolution and of the shortcut.
        attention: makes what weighs the body's output, from its channels; nothing by default.
        mixer: makes what takes the second convolution's place, from its channels (selective kernels).
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        attention: Callable[[int], nn.Module] | None = None,
        mixer: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        second = [nn.Conv2d(channels, channels, 3, 1, 1, bias=False)] if mixer is None else [mixer(channels)]
        weigh = [] if attention is None else [attention(channels)]
        self.body = nn.Sequential(
            *conv_bn_act(in_channels, channels, 3, stride), *second, nn.BatchNorm2d(channels), *weigh
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (B, in_channels, H, W) to (B, channels, H / stride, W / stride)."""
        return F.relu(self.body(x) + self.shortcut(x))


def picked(items: Tensor, index: Tensor) -> Tensor:
    """The items (B, N, C) at places `index` (B, k), in its order: (B, k, C)."""
    return items.gather(1, index.unsqueeze(2).expand(-1, -1, items.shape[2]))


def patches(x: Tensor, size: int, step: int) -> Tensor:
    """The squares of side `size`, `step` apart, of images `x` (B, C, H, W), row by row: (B, N, C, size, size)."""
    squares = x.unfold(2, size, step).unfold(3, size, step)  # (B, C, rows, columns, size, size)
    return squares.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)


def upsampled(x: Tensor, like: Tensor) -> Tensor:
    """`x` (B, C, h, w), bilinear, at the height and width of `like`."""
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)
