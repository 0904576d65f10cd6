"""Two image streams, colour and depth, that look at each other.

Source: cross-attention between streams as in Chen et al., "CrossViT", arXiv 2103.14899, section 3.3, here from each
place of one camera's map to all places of the other's; the residual form is that of a transformer's block.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeattn.nn import AttentionPool, CrossAttention
from edgeattn.zoo.blocks import ResidualBlock, conv_bn_act
from edgeattn.zoo.weights import ready


def stream(in_channels: int, dim: int) -> nn.Sequential:
    """Three convolutional stages, from an image (B, in_channels, H, W) to a map (B, dim, H / 8, W / 8)."""
    return nn.Sequential(conv_bn_act(in_channels, 16, 3, 2), ResidualBlock(16, 24, 2), ResidualBlock(24, dim, 2))


class CrossAttentionFusion(nn.Module):
    """A stream for colour and one for depth; each asks the other; what matters of both is classified together.

    Args:
        size: height and width of both images.
        dim: features of a token.
        num_heads: heads of each attention.
        classes: length of the logits.
        attends: False leaves the attention between the streams out: they meet at the classifier alone.
    """

    def __init__(
        self, size: int = 48, dim: int = 32, num_heads: int = 4, classes: int = 10, *, attends: bool = True
    ) -> None:
        super().__init__()
        self.rgb, self.depth = stream(3, dim), stream(1, dim)
        self.positions = nn.Parameter(0.2 * torch.randn(1, (size // 8) ** 2, dim))  # a place is the same in both
        self.rgb_asks = CrossAttention(dim, num_heads) if attends else None
        self.depth_asks = CrossAttention(dim, num_heads) if attends else None
        self.rgb_pool, self.depth_pool = AttentionPool(dim), AttentionPool(dim)
        self.mlp = nn.Sequential(nn.LayerNorm(2 * dim), nn.Linear(2 * dim, 2 * dim), nn.GELU())
        self.head = nn.Linear(2 * dim, classes)

    def forward(self, rgb: Tensor, depth: Tensor) -> Tensor:
        """Classify `rgb` (B, 3, size, size) with `depth` (B, 1, size, size); returns logits (B, classes)."""
        colours, distances = (
            part(image).flatten(2).transpose(1, 2) + self.positions
            for part, image in ((self.rgb, rgb), (self.depth, depth))
        )
        if self.rgb_asks is not None and self.depth_asks is not None:
            colours, distances = (
                colours + self.rgb_asks(colours, distances),
                distances + self.depth_asks(distances, colours),
            )
        pooled = torch.cat([self.rgb_pool(colours), self.depth_pool(distances)], dim=-1).squeeze(1)
        logits: Tensor = self.head(self.mlp(pooled))
        return logits


@ready("rgb:1x3x48x48,depth:1x1x48x48")
def cross_attention_fusion() -> CrossAttentionFusion:
    """Both streams of 36 tokens ask each other."""
    return CrossAttentionFusion()


@ready("rgb:1x3x48x48,depth:1x1x48x48")
def late_fusion() -> CrossAttentionFusion:
    """The same streams without attention between them: neither can know what the other shows where."""
    return CrossAttentionFusion(attends=False)
