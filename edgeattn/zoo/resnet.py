"""Small residual networks, plain and with one attention mechanism each: what a gate buys, at equal depth and width.

Source: He et al., "Deep Residual Learning", arXiv 1512.03385. Channel and spatial gates weigh the output of a block's
convolutions before the shortcut is added (arXiv 1709.01507, figure 3; 1807.06521, figure 3; 1910.03151); a selective
kernel (1903.06586) replaces the second convolution; self-attention (1805.08318) and the non-local block (1711.07971)
stand once, after the second stage.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from edgeattn.nn import CBAM, ECA, NonLocal2d, SelectiveKernel, SelfAttention2d, SqueezeExcite
from edgeattn.zoo.blocks import ResidualBlock, conv_bn_act
from edgeattn.zoo.weights import ready

Maker = Callable[[int], nn.Module]


class ResNet(nn.Module):
    """Stem, stages of `ResidualBlock`s, global average, linear classifier.

    Args:
        widths: channels of each stage; every stage after the first halves the map.
        depth: blocks in a stage.
        attention: makes each block's gate, from its channels.
        mixer: makes each block's second convolution, from its channels.
        after_second: makes what follows the second stage, from its channels.
        in_channels: channels of the image.
        classes: length of the logits.
    """

    def __init__(
        self,
        widths: tuple[int, ...] = (16, 32, 48),
        depth: int = 1,
        *,
        attention: Maker | None = None,
        mixer: Maker | None = None,
        after_second: Maker | None = None,
        in_channels: int = 1,
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.stem = conv_bn_act(in_channels, widths[0], 3, 2)
        blocks: list[nn.Module] = []
        before = widths[0]
        for stage, width in enumerate(widths):
            for block in range(depth):
                blocks.append(ResidualBlock(before, width, 2 if stage and not block else 1, attention, mixer))
                before = width
            if stage == 1 and after_second is not None:
                blocks.append(after_second(width))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images `x` (B, in_channels, H, W); returns logits (B, classes)."""
        logits: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


@ready("1x1x48x48")
def resnet() -> ResNet:
    """Without attention: what the others are compared with."""
    return ResNet()


@ready("1x1x48x48")
def se_resnet() -> ResNet:
    """Squeeze-and-excitation in every block."""
    return ResNet(attention=partial(SqueezeExcite, rd_ratio=1 / 4))


@ready("1x1x48x48")
def eca_resnet() -> ResNet:
    """Efficient channel attention in every block."""
    return ResNet(attention=ECA)


@ready("1x1x48x48")
def cbam_resnet() -> ResNet:
    """CBAM in every block."""
    return ResNet(attention=partial(CBAM, rd_ratio=1 / 4))


@ready("1x1x48x48")
def sk_resnet() -> ResNet:
    """A selective kernel of two paths in every block."""
    return ResNet(mixer=SelectiveKernel)


@ready("1x1x48x48")
def self_attention_resnet() -> ResNet:
    """SAGAN's self-attention with its gamma residual, over 12 x 12 places."""
    return ResNet(after_second=SelfAttention2d)


@ready("1x1x48x48")
def non_local_resnet() -> ResNet:
    """A non-local block, over 12 x 12 places."""
    return ResNet(after_second=NonLocal2d)


@ready("1x1x32x32")
def cbam_resnet_digits() -> ResNet:
    """CBAM in every block, two blocks a stage, for the plain digits of `calibration/digits.toml`."""
    return ResNet((16, 32, 64), 2, attention=partial(CBAM, rd_ratio=1 / 8))
