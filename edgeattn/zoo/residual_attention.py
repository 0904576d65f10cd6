"""A residual attention network: a trunk, and beside it a mask that says where the trunk is to be believed.

Source: Wang et al., "Residual Attention Network for Image Classification", arXiv 1704.06904, figure 2: stages of
`(1 + mask(x)) * trunk(x)`, equation 3, with the mixed attention of equation 4 (a sigmoid for each place and channel).
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from edgeattn.zoo.blocks import ResidualBlock, conv_bn_act, upsampled
from edgeattn.zoo.weights import ready


class AttentionStage(nn.Module):
    """`(1 + sigmoid(mask(x))) * trunk(x)`; the mask looks at half the resolution and comes back up.

    Args:
        channels: channels C of the input and the output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.trunk = ResidualBlock(channels, channels)
        self.down = ResidualBlock(channels, channels)
        self.mask = nn.Sequential(conv_bn_act(channels, channels, 1), nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Weigh `x` (B, C, H, W) place by place and channel by channel; the shape stays."""
        coarse = self.down(F.max_pool2d(x, 3, 2, 1))
        mask = self.mask(upsampled(coarse, x)).sigmoid()
        weighed: Tensor = (1 + mask) * self.trunk(x)
        return weighed


class ResidualAttentionNetwork(nn.Module):
    """Stem, stages of a `ResidualBlock` that halves the map and an `AttentionStage`, global average, classifier.

    Args:
        widths: channels of the stem and of each stage.
        in_channels: channels of the image.
        classes: length of the logits.
    """

    def __init__(self, widths: tuple[int, ...] = (16, 24, 32), in_channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.stem = conv_bn_act(in_channels, widths[0], 3, 2)
        pairs = pairwise(widths)
        self.stages = nn.Sequential(
            *(nn.Sequential(ResidualBlock(before, width, 2), AttentionStage(width)) for before, width in pairs)
        )
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images `x` (B, in_channels, H, W); returns logits (B, classes)."""
        logits: Tensor = self.head(self.stages(self.stem(x)).mean((2, 3)))
        return logits


@ready("1x1x48x48")
def residual_attention_network() -> ResidualAttentionNetwork:
    """Two attention stages, at 12 x 12 and 6 x 6 places."""
    return ResidualAttentionNetwork()
