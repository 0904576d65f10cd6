"""An image as a bag of regions, of which attention says which matter.

Source: Ilse et al., "Attention-based Deep Multiple Instance Learning", arXiv 1802.04712, equation 9 (gated attention),
with regions cut from one image as in their section 4.3.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgeattn.nn import AttentionPool
from edgeattn.zoo.blocks import ResidualBlock, conv_bn_act, patches
from edgeattn.zoo.weights import ready


class AttentionMIL(nn.Module):
    """Overlapping regions, one encoder for all, gated attention over them, classifier.

    Args:
        region: height and width of a region.
        step: places between two regions.
        dim: features of a region.
        in_channels: channels of the image.
        classes: length of the logits.
    """

    def __init__(self, region: int = 24, step: int = 6, dim: int = 48, in_channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.region, self.step = region, step
        self.encoder = nn.Sequential(
            conv_bn_act(in_channels, 16, 3, 2), ResidualBlock(16, 32, 2), ResidualBlock(32, dim, 2)
        )
        self.pool = AttentionPool(dim, 24, gated=True)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images `x` (B, in_channels, H, W); returns logits (B, classes)."""
        regions = patches(x, self.region, self.step)
        items = self.encoder(regions.flatten(0, 1)).amax((2, 3)).unflatten(0, regions.shape[:2])
        logits: Tensor = self.head(self.pool(items).squeeze(1))
        return logits


@ready("1x1x48x48")
def attention_mil() -> AttentionMIL:
    """25 regions of 24 x 24."""
    return AttentionMIL()
