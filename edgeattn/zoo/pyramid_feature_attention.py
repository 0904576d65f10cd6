"""A network that finds what stands out: channel attention on what it understands, spatial attention on where it is.

Source: Zhao and Wu, "Pyramid Feature Attention Network for Saliency Detection", arXiv 1903.00179: context by dilated
convolutions with channel attention on the deep features (sections 3.1, 3.2), which then steer spatial attention on the
shallow ones (section 3.3). Here the spatial attention is CBAM's, on both together.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeattn.nn import SpatialAttention, SqueezeExcite
from edgeattn.zoo.blocks import ResidualBlock, conv_bn_act, upsampled
from edgeattn.zoo.weights import ready


class PyramidFeatureAttention(nn.Module):
    """Encoder, context with channel attention, shallow features with spatial attention, one map of probabilities.

    Args:
        dilations: of the convolutions that read the deep features.
    """

    def __init__(self, dilations: tuple[int, ...] = (1, 2, 4)) -> None:
        super().__init__()
        self.shallow = nn.Sequential(conv_bn_act(3, 16, 3, 2), ResidualBlock(16, 16))
        self.middle, self.deep = ResidualBlock(16, 24, 2), ResidualBlock(24, 32, 2)
        self.context = nn.ModuleList(conv_bn_act(32, 16, dilation=step) for step in dilations)
        self.channels = SqueezeExcite(16 * len(dilations), rd_ratio=1 / 4)
        self.reduce = conv_bn_act(16 * len(dilations) + 24, 24)
        self.places = SpatialAttention()
        self.refine = conv_bn_act(16 + 24, 24)
        self.head = nn.Conv2d(24, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (B, 3, H, W) to the probability that each pixel belongs to what stands out, (B, 1, H, W)."""
        shallow = self.shallow(x)
        middle = self.middle(shallow)
        deep = self.deep(middle)
        context = self.channels(torch.cat([layer(deep) for layer in self.context], 1))
        understood = self.reduce(torch.cat([upsampled(context, middle), middle], 1))
        both = self.places(torch.cat([shallow, upsampled(understood, shallow)], 1))
        return torch.sigmoid(upsampled(self.head(self.refine(both)), x))


@ready("1x3x64x64")
def pyramid_feature_attention() -> PyramidFeatureAttention:
    """Dilations 1, 2 and 4."""
    return PyramidFeatureAttention()
