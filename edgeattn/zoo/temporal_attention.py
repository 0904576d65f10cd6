"""A clip classifier: features of each frame, and attention over time that says which frames matter.

Source: attention pooling over frame features as in Long et al., "Attention Clusters", arXiv 1711.09550, with one
cluster and the gated scores of arXiv 1802.04712.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgeattn.nn import AttentionPool
from edgeattn.zoo.blocks import ResidualBlock, conv_bn_act
from edgeattn.zoo.weights import ready


class TemporalAttention(nn.Module):
    """One encoder for all frames, attention over them, classifier.

    Args:
        dim: features of a frame.
        in_channels: channels of a frame.
        classes: length of the logits.
        attends: False takes the mean over the frames.
    """

    def __init__(self, dim: int = 48, in_channels: int = 1, classes: int = 10, *, attends: bool = True) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            conv_bn_act(in_channels, 16, 3, 2), ResidualBlock(16, 32, 2), ResidualBlock(32, dim, 2)
        )
        self.pool = AttentionPool(dim, 24, gated=True) if attends else None
        self.head = nn.Linear(dim, classes)

    def forward(self, frames: Tensor) -> Tensor:
        """Classify clips `frames` (B, T, in_channels, H, W); returns logits (B, classes)."""
        features = self.encoder(frames.flatten(0, 1)).amax((2, 3)).unflatten(0, frames.shape[:2])
        pooled = features.mean(1) if self.pool is None else self.pool(features).squeeze(1)
        logits: Tensor = self.head(pooled)
        return logits


@ready("frames:1x8x1x32x32")
def temporal_attention() -> TemporalAttention:
    """Attention over eight frames."""
    return TemporalAttention()


@ready("frames:1x8x1x32x32")
def temporal_mean() -> TemporalAttention:
    """The same without attention: the mean over eight frames."""
    return TemporalAttention(attends=False)
