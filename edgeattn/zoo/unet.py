"""U-Nets: plain, with attention gates in the skips, and with CBAM.

Source: Ronneberger et al., "U-Net", arXiv 1505.04597; Oktay et al., "Attention U-Net", arXiv 1804.03999, figure 1:
each skip passes a gate that the coarser decoder map opens. CBAM (1807.06521) follows each stage of the encoder.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeattn.nn import CBAM, AttentionGate
from edgeattn.zoo.blocks import conv_bn_act, upsampled
from edgeattn.zoo.weights import ready


class UNet(nn.Module):
    """Stages of two convolutions, halved by maxima on the way down, and joined with their skips on the way up.

    Args:
        classes: channels of the result.
        widths: channels of the encoder's stages.
        attention: "gate" for attention gates in the skips, "cbam" for CBAM after each stage of the encoder.
        in_channels: channels of the image.
    """

    def __init__(
        self,
        classes: int = 6,
        widths: tuple[int, ...] = (8, 16, 24, 40),
        attention: Literal["gate", "cbam"] | None = None,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(_stage(a, b, attention) for a, b in [(in_channels, widths[0]), *pairs])
        self.gates = nn.ModuleList(AttentionGate(a, b) if attention == "gate" else Passing() for a, b in pairs)
        self.up = nn.ModuleList(_stage(a + b, a) for a, b in pairs)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Segment `x` (B, in_channels, H, W), sides multiples of 8; returns class scores (B, classes, H, W)."""
        skips: list[Tensor] = []
        for depth, stage in enumerate(self.down):
            x = stage(F.max_pool2d(x, 2) if depth else x)
            skips.append(x)
        for skip, gate, stage in zip(skips[-2::-1], reversed(self.gates), reversed(self.up), strict=True):
            coarse = upsampled(x, skip)
            x = stage(torch.cat([gate(skip, coarse), coarse], 1))
        scores: Tensor = self.head(x)
        return scores


class Passing(nn.Module):
    """Where there is no gate: the skip as it is."""

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        """Return `x`."""
        return x


def _stage(in_channels: int, channels: int, attention: str | None = None) -> nn.Sequential:
    weigh = [CBAM(channels, rd_ratio=1 / 4)] if attention == "cbam" else []
    return nn.Sequential(conv_bn_act(in_channels, channels), conv_bn_act(channels, channels), *weigh)


@ready("1x3x64x64")
def unet() -> UNet:
    """Without attention: what the others are compared with."""
    return UNet()


@ready("1x3x64x64")
def attention_unet() -> UNet:
    """An attention gate in each of three skips."""
    return UNet(attention="gate")


@ready("1x3x64x64")
def cbam_unet() -> UNet:
    """CBAM after each of the encoder's four stages."""
    return UNet(attention="cbam")
