"""A fully convolutional network whose dilated convolutions see far at a fixed resolution.

Source: Long et al., "Fully Convolutional Networks", arXiv 1411.4038; Yu and Koltun, "Multi-Scale Context Aggregation by
Dilated Convolutions", arXiv 1511.07122, table 1.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgeattn.zoo.blocks import ResidualBlock, conv_bn_act, upsampled
from edgeattn.zoo.weights import ready


class DilatedFCN(nn.Module):
    """Down to a quarter, then convolutions of growing dilation, scores, and up again.

    Args:
        classes: channels of the result.
        width: channels of the context module.
        dilations: of its convolutions, in order.
    """

    def __init__(self, classes: int = 6, width: int = 32, dilations: tuple[int, ...] = (1, 2, 4, 8, 1)) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn_act(3, 16, 3, 2), ResidualBlock(16, width, 2))
        self.context = nn.Sequential(*(conv_bn_act(width, width, dilation=step) for step in dilations))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Segment `x` (B, 3, H, W); returns class scores (B, classes, H, W)."""
        return upsampled(self.head(self.context(self.stem(x))), x)


@ready("1x3x64x64")
def fcn_dilated() -> DilatedFCN:
    """Dilations up to 8."""
    return DilatedFCN()
