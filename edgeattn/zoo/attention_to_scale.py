"""Segmentation at several scales, with attention that decides place by place which scale to believe.

Source: Chen et al., "Attention to Scale: Scale-aware Semantic Image Segmentation", arXiv 1511.03339, figure 2: one
network, shared by all scales; a second small one reads all its features and gives a softmax across the scales.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeattn.zoo.blocks import ResidualBlock, conv_bn_act, upsampled
from edgeattn.zoo.weights import ready


class AttentionToScale(nn.Module):
    """`sum_s softmax_s(attention(features))_s * up(score(features_s))`.

    Args:
        classes: channels of the result.
        scales: sizes of the image that the shared network sees, as factors.
        width: channels of its features.
    """

    def __init__(self, classes: int = 6, scales: tuple[float, ...] = (1.0, 0.5), width: int = 40) -> None:
        super().__init__()
        self.scales = scales
        self.trunk = nn.Sequential(
            conv_bn_act(3, 16, 3, 2),
            ResidualBlock(16, 24, 2),
            conv_bn_act(24, width),
            conv_bn_act(width, width, dilation=2),
            conv_bn_act(width, width, dilation=4),
        )
        self.score = nn.Conv2d(width, classes, 1)
        self.attention = nn.Sequential(conv_bn_act(width * len(scales), 32), nn.Conv2d(32, len(scales), 1))

    def forward(self, x: Tensor) -> Tensor:
        """Segment `x` (B, 3, H, W); returns class scores (B, classes, H, W)."""
        seen = [x if scale == 1 else F.interpolate(x, scale_factor=scale, mode="bilinear") for scale in self.scales]
        features = [self.trunk(image) for image in seen]
        finest = features[0]
        weights = self.attention(torch.cat([upsampled(item, finest) for item in features], 1)).softmax(1)
        scores = [upsampled(self.score(item), finest) for item in features]
        mixed = torch.stack(scores, 1).mul(weights.unsqueeze(2)).sum(1)
        return upsampled(mixed, x)


@ready("1x3x64x64")
def attention_to_scale() -> AttentionToScale:
    """Scales 1 and 1/2."""
    return AttentionToScale()
