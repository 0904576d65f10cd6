# mypy: warn-return-any=False
"""Attention U-Net's gate as people write it, and what only looks like it; imported by the conformance tests alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeattn.ops.base import Case

C, G, INNER = 6, 8, 5
ENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "softplus": F.softplus,
    "softmax": lambda z: z.flatten(2).softmax(2).view_as(z),
    "hardsigmoid": F.hardsigmoid,
    "nothing": lambda z: z,
}


def _normalised(channels: int, out: int) -> nn.Sequential:
    norm = nn.BatchNorm2d(out)
    with torch.no_grad():
        for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            value.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return nn.Sequential(nn.Conv2d(channels, out, 1), norm)


class Same(nn.Module):
    """As in github.com/LeeJunHyun/Image_Segmentation."""

    def __init__(self) -> None:
        super().__init__()
        self.W_g, self.W_x = _normalised(G, INNER), _normalised(C, INNER)
        self.psi = nn.Sequential(*_normalised(INNER, 1), nn.Sigmoid())
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        g1 = self.W_g(g)
        x1 = self.W_x(x)
        return x * self.psi(self.relu(g1 + x1))


class Grid(nn.Module):
    """As in github.com/ozan-oktay/Attention-Gated-Networks; the arguments say what is done otherwise."""

    def __init__(self, mode: str = "bilinear", late: bool = False) -> None:
        super().__init__()
        self.theta, self.phi = nn.Conv2d(C, INNER, 2, stride=2, bias=False), nn.Conv2d(G, INNER, 1)
        self.psi, self.mode, self.late = nn.Conv2d(INNER, 1, 1), mode, late

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        theta = self.theta(x)
        phi = F.interpolate(self.phi(g), size=theta.shape[2:], mode=self.mode)
        z = self.psi(F.relu(theta + phi))
        if self.late:
            weights = torch.sigmoid(F.interpolate(z, size=x.shape[2:], mode=self.mode))
        else:
            weights = F.interpolate(torch.sigmoid(z), size=x.shape[2:], mode=self.mode)
        return weights.expand_as(x) * x


class Altered(Same):
    """What the gate is not, by name."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        if self.how == "signal":
            return g * self.psi(self.relu(self.W_x(x) + self.W_x(torch.sin(x))))
        if self.how in ENDS:
            return x * ENDS[self.how](self.psi[:2](self.relu(self.W_g(g) + self.W_x(x))))
        if self.how == "added":
            return x + self.psi(self.relu(self.W_g(g) + self.W_x(x)))
        return x * self.psi(self.W_g(g) + self.W_x(x))


FOUND = ("AttentionGate",)
EQUAL, COARSE = ((2, C, 7, 5), (2, G, 7, 5)), ((2, C, 8, 10), (2, G, 3, 4))
CASES = (
    Case("same", Same, EQUAL, FOUND, dynamic=("batch", "height", "width")),
    Case("grid-bilinear", Grid, COARSE, FOUND),
    Case("grid-nearest", lambda: Grid("nearest"), COARSE, FOUND),
    Case("resampled-before-sigmoid", lambda: Grid(late=True), COARSE, FOUND),
    Case("resampled-nearest-before-sigmoid", lambda: Grid("nearest", late=True), COARSE, FOUND),
    Case("of-another-map", lambda: Altered("signal"), EQUAL, missed="neither summand is a convolution"),
    Case("ends-in-softplus", lambda: Altered("softplus"), EQUAL, missed="the gate ends in Softplus"),
    Case("ends-in-softmax", lambda: Altered("softmax"), EQUAL, missed="the gate ends in Softmax"),
    Case("ends-in-hardsigmoid", lambda: Altered("hardsigmoid"), EQUAL, missed="the gate ends in hardsigmoid"),
    Case("ends-in-nothing", lambda: Altered("nothing"), EQUAL, missed="the gate ends in no sigmoid"),
    Case("added", lambda: Altered("added"), EQUAL),
    Case("no-relu", lambda: Altered("no-relu"), EQUAL),
)
