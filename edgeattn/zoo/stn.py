"""A classifier behind a spatial transformer, which first turns and cuts the picture to what is to be read.

Source: Jaderberg et al., "Spatial Transformer Networks", arXiv 1506.02025, section 4.1 (affine, cluttered digits).
"""

from __future__ import annotations

from torch import Tensor, nn

from edgeattn.nn import SpatialTransformer
from edgeattn.zoo.blocks import ResidualBlock, conv_bn_act
from edgeattn.zoo.weights import ready


class STNClassifier(nn.Module):
    """`SpatialTransformer` to a smaller picture, then a small residual network.

    Args:
        size: height and width that the classifier sees.
        in_channels: channels of the image.
        classes: length of the logits.
        transforms: False shows the classifier the picture as it is.
    """

    def __init__(self, size: int = 24, in_channels: int = 1, classes: int = 10, *, transforms: bool = True) -> None:
        super().__init__()
        localisation = nn.Sequential(
            nn.AvgPool2d(2), conv_bn_act(in_channels, 12), nn.MaxPool2d(2), conv_bn_act(12, 16), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(16 * 36, 32), nn.ReLU(), nn.Linear(32, 6),
        )  # fmt: skip
        self.transformer = SpatialTransformer(localisation, (size, size)) if transforms else nn.Identity()
        self.classifier = nn.Sequential(
            conv_bn_act(in_channels, 16), ResidualBlock(16, 24, 2), ResidualBlock(24, 48, 2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Classify images `x` (B, in_channels, 48, 48); returns logits (B, classes)."""
        logits: Tensor = self.classifier(self.transformer(x))
        return logits


@ready("1x1x48x48")
def stn_classifier() -> STNClassifier:
    """Affine, from 48 x 48 to 24 x 24."""
    return STNClassifier()


@ready("1x1x48x48")
def cnn_classifier() -> STNClassifier:
    """The same classifier without the transformer, on all 48 x 48."""
    return STNClassifier(transforms=False)
