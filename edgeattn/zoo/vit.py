"""A small vision transformer.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv 2010.11929, figure 1, with the convolutional stem of
Xiao et al., "Early Convolutions Help Transformers See Better", arXiv 2106.14881, which small data needs, and the mean
of all tokens in place of a class token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeattn.nn import CrossAttention
from edgeattn.zoo.blocks import conv_bn_act
from edgeattn.zoo.weights import ready


class TransformerBlock(nn.Module):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`.

    Args:
        dim: features of a token.
        num_heads: heads of the attention.
        mlp_ratio: width of the mlp over `dim`.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: int = 2) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = CrossAttention(dim, num_heads)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.GELU(), nn.Linear(mlp_ratio * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens `x` (B, N, dim) to the same shape."""
        normed = self.norm1(x)
        x = x + self.attention(normed, normed)
        mixed: Tensor = x + self.mlp(self.norm2(x))
        return mixed


class ViT(nn.Module):
    """Convolutional stem with stride 4, learned positions, `TransformerBlock`s, mean over tokens, classifier.

    Args:
        size: height and width of the image.
        dim: features of a token.
        depth: blocks.
        num_heads: heads of each.
        in_channels: channels of the image.
        classes: length of the logits.
    """

    def __init__(
        self,
        size: int = 48,
        dim: int = 48,
        depth: int = 3,
        num_heads: int = 3,
        *,
        in_channels: int = 1,
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv_bn_act(in_channels, dim // 2, 3, 2), conv_bn_act(dim // 2, dim, 3, 2), nn.Conv2d(dim, dim, 1)
        )
        self.positions = nn.Parameter(0.02 * torch.randn(1, (size // 4) ** 2, dim))
        self.blocks = nn.Sequential(*(TransformerBlock(dim, num_heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images `x` (B, in_channels, size, size); returns logits (B, classes)."""
        tokens = self.stem(x).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits


@ready("1x1x48x48")
def vit() -> ViT:
    """Three blocks over 144 tokens."""
    return ViT()
