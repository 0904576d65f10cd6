"""DeepLabV3+, plain and with squeeze-and-excitation.

Source: Chen et al., "Encoder-Decoder with Atrous Separable Convolution", arXiv 1802.02611, figure 2: atrous spatial
pyramid pooling on the encoder's map, joined with early features in a small decoder. The attention variant weighs the
channels of the pyramid and of the decoder (arXiv 1709.01507).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeattn.nn import SqueezeExcite
from edgeattn.zoo.blocks import ResidualBlock, conv_bn_act, upsampled
from edgeattn.zoo.weights import ready


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1x1 convolution, dilated 3x3 ones and the map's mean, side by side.

    Args:
        in_channels: channels of the input.
        channels: channels of each branch and of the output.
        dilations: of the 3x3 convolutions.
    """

    def __init__(self, in_channels: int, channels: int, dilations: tuple[int, ...] = (2, 4)) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                conv_bn_act(in_channels, channels, 1),
                *(conv_bn_act(in_channels, channels, dilation=step) for step in dilations),
            ]
        )
        self.image = nn.Sequential(nn.Conv2d(in_channels, channels, 1), nn.ReLU())
        self.project = conv_bn_act(channels * (len(dilations) + 2), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (B, in_channels, H, W) to (B, channels, H, W)."""
        image = self.image(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        mixed: Tensor = self.project(torch.cat([*(branch(x) for branch in self.branches), image], 1))
        return mixed


class DeepLabV3Plus(nn.Module):
    """Encoder to an eighth, `ASPP`, decoder at a quarter, scores.

    Args:
        classes: channels of the result.
        attends: whether squeeze-and-excitation follows the pyramid and the decoder.
    """

    def __init__(self, classes: int = 6, *, attends: bool = False) -> None:
        super().__init__()
        self.low = nn.Sequential(conv_bn_act(3, 16, 3, 2), ResidualBlock(16, 24, 2))
        self.high = ResidualBlock(24, 40, 2)
        self.aspp = ASPP(40, 24)
        self.weigh_aspp = SqueezeExcite(24, rd_ratio=1 / 4) if attends else nn.Identity()
        self.reduce = conv_bn_act(24, 12, 1)
        self.decode = conv_bn_act(36, 32)
        self.weigh_decoder = SqueezeExcite(32, rd_ratio=1 / 4) if attends else nn.Identity()
        self.head = nn.Conv2d(32, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Segment `x` (B, 3, H, W); returns class scores (B, classes, H, W)."""
        low = self.low(x)
        high = self.weigh_aspp(self.aspp(self.high(low)))
        decoded = self.decode(torch.cat([self.reduce(low), upsampled(high, low)], 1))
        return upsampled(self.head(self.weigh_decoder(decoded)), x)


@ready("1x3x64x64")
def deeplabv3plus() -> DeepLabV3Plus:
    """Without attention."""
    return DeepLabV3Plus()


@ready("1x3x64x64")
def se_deeplabv3plus() -> DeepLabV3Plus:
    """Squeeze-and-excitation after the pyramid and the decoder."""
    return DeepLabV3Plus(attends=True)
