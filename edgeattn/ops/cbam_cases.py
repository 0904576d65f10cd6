# mypy: warn-return-any=False
"""CBAM as people write it, and what has its two halves but not as one; imported by the conformance tests alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeattn.ops.base import Case

C, R = 12, 3
MAP = ((2, C, 7, 9),)


class Channel(nn.Module):
    """As in github.com/luuuyi/CBAM.PyTorch: returns the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.avg_pool, self.max_pool = nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)
        self.fc = nn.Sequential(nn.Conv2d(C, R, 1, bias=False), nn.ReLU(), nn.Conv2d(R, C, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.fc(self.avg_pool(x)) + self.fc(self.max_pool(x)))


class Spatial(nn.Module):
    """As in github.com/luuuyi/CBAM.PyTorch: returns the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mean, (peak, _) = torch.mean(x, dim=1, keepdim=True), torch.max(x, dim=1, keepdim=True)
        return torch.sigmoid(self.conv1(torch.cat([mean, peak], dim=1)))


class Products(nn.Module):
    """`ca(x) * x`, then `sa(x) * x`; `reuse` reads the map between them a second time."""

    def __init__(self, reuse: bool = False) -> None:
        super().__init__()
        self.ca, self.sa, self.reuse = Channel(), Spatial(), reuse

    def forward(self, x: Tensor) -> Tensor:
        gated = self.ca(x) * x
        out = self.sa(gated) * gated
        return out + gated if self.reuse else out


class SpatialFirst(Products):
    """The order of the two gates swapped."""

    def forward(self, x: Tensor) -> Tensor:
        gated = self.sa(x) * x
        return self.ca(gated) * gated


class Block(nn.Module):
    """In a residual block, between a convolution and the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.cbam = nn.Conv2d(C, C, 3, padding=1), Products()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.cbam(self.conv(x)))


IMAGE = ("batch", "height", "width")
CASES = (
    Case("products", Products, MAP, ("CBAM",), dynamic=IMAGE),
    Case("block", Block, MAP, ("CBAM",), dynamic=IMAGE),
    Case("between-read-twice", lambda: Products(reuse=True), MAP, ("ChannelGate", "SpatialGate")),
    Case("spatial-first", SpatialFirst, MAP, ("SpatialGate", "ChannelGate")),
    Case("spatial-alone", Spatial, MAP),
)
