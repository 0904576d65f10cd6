# mypy: warn-return-any=False
"""Spatial gates as people write them, and what only looks like one; imported by the conformance tests alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeattn.ops.base import Case

C = 6
MAP = ((2, C, 9, 7),)
TWO = (*MAP, *MAP)


class Jongchan(nn.Module):
    """As in github.com/Jongchan/attention-module: maximum first, BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 1, 7, padding=3, bias=False), nn.BatchNorm2d(1)
        with torch.no_grad():
            for value in (self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var):
                value.uniform_(0.5, 1.5)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        planes = torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)
        return x * torch.sigmoid(self.bn(self.conv(planes)))


class Plain(nn.Module):
    """As everyone writes it; the arguments say what is done otherwise."""

    def __init__(self, order: str = "mean max", axis: int = 1, gate: nn.Module | None = None, **conv: int) -> None:
        super().__init__()
        self.order, self.axis, self.gate = order.split(), axis, gate or nn.Sigmoid()
        self.conv = nn.Conv2d(len(self.order), 1, **{"kernel_size": 7, "padding": 3, **conv})  # type: ignore[arg-type]

    def planes(self, x: Tensor) -> Tensor:
        known = {"mean": torch.mean(x, self.axis, keepdim=True), "max": torch.max(x, self.axis, keepdim=True)[0]}
        return torch.cat([known[name] for name in self.order], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(self.conv(self.planes(x))) * x


class Elsewhere(Plain):
    """The gate of one map applied to another."""

    def forward(self, x: Tensor, other: Tensor) -> Tensor:  # type: ignore[override]
        return other * self.gate(self.conv(self.planes(x)))


class Added(Plain):
    """The gate added instead of multiplied."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gate(self.conv(self.planes(x)))


class OnePlus(Plain):
    """x (1 + gate), as a residual."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + self.gate(self.conv(self.planes(x))))


class RowsAndChannels(Plain):
    """Mean and maximum over channels and height."""

    def planes(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)], dim=1)


class ConcurrentSpatial(nn.Module):
    """scSE's spatial half (arXiv 1803.02579)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv(x).sigmoid()


class Concurrent(ConcurrentSpatial):
    """scSE: the maximum of a channel gate's and a spatial gate's result."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(C, 3, 1), nn.Conv2d(3, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        channel = torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))))
        return torch.maximum(x * channel, super().forward(x))


FOUND = ("SpatialGate",)
IMAGE = ("batch", "height", "width")
CASES = (
    Case("plain", Plain, MAP, FOUND, dynamic=IMAGE),
    Case("max-first-normalised", Jongchan, MAP, FOUND, dynamic=IMAGE),
    Case("kernel-3-hardsigmoid", lambda: Plain(gate=nn.Hardsigmoid(), kernel_size=3, padding=1), MAP, FOUND),
    Case("one-channel", lambda: Plain(kernel_size=3, padding=1), ((1, 1, 3, 5),), FOUND),
    Case("one-plus", OnePlus, MAP, FOUND),
    Case("concurrent-spatial", ConcurrentSpatial, MAP, FOUND, dynamic=IMAGE),
    Case("concurrent", Concurrent, MAP, ("ChannelGate", "SpatialGate")),
    Case("other-map", Elsewhere, TWO, missed="expected the same tensor"),
    Case("added", Added, MAP),
    Case("mean-only", lambda: Plain("mean"), MAP, missed="reads mean over the channels"),
    Case("mean-twice", lambda: Plain("mean max mean"), MAP, missed="mean and max and mean"),
    Case("dilated", lambda: Plain(dilation=2, padding=6), MAP, missed="undilated"),
    Case("no-padding", lambda: Plain(padding=0), ((2, C, 7, 7),), missed="keeps the map's size"),
    Case("wrong-axes", lambda: RowsAndChannels(kernel_size=(1, 7), padding=(0, 3)), MAP, missed="axes (1, 2)"),  # type: ignore[arg-type]
    Case("softmax-of-planes", lambda: Plain(gate=nn.Softmax(dim=2)), MAP),
)
