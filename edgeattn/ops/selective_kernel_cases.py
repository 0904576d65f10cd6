# mypy: warn-return-any=False
"""Selective kernels as people write them, and what only looks like one; imported by the conformance tests alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeattn.ops.base import Case

C, R = 6, 5
MAP = ((2, C, 7, 5),)


class Branches(nn.Module):
    """M convolutions of growing dilation."""

    def __init__(self, count: int = 2) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(C, C, 3, padding=1 + m, dilation=1 + m) for m in range(count)])

    def maps(self, x: Tensor) -> list[Tensor]:
        return [conv(x) for conv in self.convs]


class Paper(Branches):
    """As in github.com/pppLang/SKNet: one linear layer for each branch's logits."""

    def __init__(self, count: int = 2) -> None:
        super().__init__(count)
        self.fc, self.fcs = nn.Linear(C, R), nn.ModuleList([nn.Linear(R, C) for _ in range(count)])
        self.softmax = nn.Softmax(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        feas, *others = [fea.unsqueeze(1) for fea in self.maps(x)]
        for fea in others:
            feas = torch.cat([feas, fea], dim=1)
        fea_z = self.fc(torch.sum(feas, dim=1).mean(-1).mean(-1))
        vectors, *more = [fc(fea_z).unsqueeze(1) for fc in self.fcs]
        for vector in more:
            vectors = torch.cat([vectors, vector], dim=1)
        return (feas * self.softmax(vectors).unsqueeze(-1).unsqueeze(-1)).sum(dim=1)


class Timm(Branches):
    """As timm's SelectiveKernelAttn; `axis` is the softmax's."""

    def __init__(self, count: int = 2, axis: int = 1) -> None:
        super().__init__(count)
        self.reduce, self.select = nn.Conv2d(C, R, 1, bias=False), nn.Conv2d(R, C * count, 1, bias=False)
        self.norm, self.count, self.axis = nn.BatchNorm2d(R), count, axis
        with torch.no_grad():
            for value in (self.norm.weight, self.norm.bias, self.norm.running_mean, self.norm.running_var):
                value.uniform_(0.5, 1.5)  # type: ignore[union-attr]

    def logits(self, y: Tensor) -> Tensor:
        y = self.select(torch.relu(self.norm(self.reduce(y))))
        b, c, h, w = y.shape
        return y.view(b, self.count, c // self.count, h, w)

    def forward(self, x: Tensor) -> Tensor:
        paths = torch.stack(self.maps(x), dim=1)
        return (paths * torch.softmax(self.logits(self.pool(paths)), dim=self.axis)).sum(1)

    def pool(self, paths: Tensor) -> Tensor:
        return paths.sum(1).mean((2, 3), keepdim=True)


class Interleaved(Timm):
    """The logits of one channel's branches are neighbours."""

    def logits(self, y: Tensor) -> Tensor:
        y = self.select(torch.relu(self.norm(self.reduce(y))))
        return y.view(y.shape[0], C, self.count).transpose(1, 2)[..., None, None]


class First(Branches):
    """Branches on the first axis, summed one by one, as in github.com/xmu-xiaoma666/External-Attention-pytorch."""

    def __init__(self, count: int = 4, single: bool = False) -> None:
        super().__init__(count)
        self.fc, self.fcs = nn.Linear(C, R), nn.ModuleList([nn.Linear(C if single else R, C) for _ in range(count)])
        self.softmax, self.single = nn.Softmax(dim=0), single

    def forward(self, x: Tensor) -> Tensor:
        maps = self.maps(x)
        z = sum(maps).mean(-1).mean(-1)  # type: ignore[union-attr]
        z = z if self.single else self.fc(z)
        logits = torch.stack([fc(z).view(x.shape[0], C, 1, 1) for fc in self.fcs], 0)
        return (self.softmax(logits) * torch.stack(maps, 0)).sum(0)


class FirstSeparate(First):
    """The same, each branch weighed by itself, its axis kept."""

    def forward(self, x: Tensor) -> Tensor:
        maps = self.maps(x)
        z = self.fc(torch.stack(maps).sum(0).mean((2, 3)))
        weights = torch.stack([fc(z) for fc in self.fcs]).softmax(0)
        return sum(u * w[..., None, None] for u, w in zip(maps, weights, strict=True))


class Split(nn.Module):
    """Split attention over maps (B, M, N, C), as in S2-MLPv2 (arXiv 2108.01072)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(C, R), nn.Linear(R, 3 * C)

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(2).transpose(1, 2)
        maps = torch.stack([y, y.roll(1, 1), y.roll(-1, 1)], 1)
        logits = self.fc2(F.gelu(self.fc1(maps.sum(1).sum(1)))).reshape(-1, 3, C)
        return (maps * logits.softmax(1).unsqueeze(-2)).sum(1)


class OfFirst(Timm):
    """The weights come from one branch alone."""

    def pool(self, paths: Tensor) -> Tensor:
        return paths[:, 0].mean((2, 3), keepdim=True)


class Separate(Timm):
    """Each branch weighed by itself; `swapped` gives each the other's weights."""

    def __init__(self, swapped: bool = False) -> None:
        super().__init__()
        self.swapped = swapped

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.maps(x)
        weights = torch.softmax(self.logits((first + second).mean((2, 3), keepdim=True)), dim=1)
        if self.swapped:
            first, second = second, first
        return first * weights[:, 0] + second * weights[:, 1]


FOUND = ("SelectiveKernel",)
CASES = (
    Case("paper", Paper, MAP, FOUND, dynamic=("batch", "height", "width")),
    Case("paper-3", lambda: Paper(3), MAP, FOUND),
    Case("timm", Timm, MAP, FOUND, dynamic=("batch", "height", "width")),
    Case("timm-3", lambda: Timm(3), MAP, FOUND),
    Case("separate", Separate, MAP, FOUND),
    Case("separate-swapped", lambda: Separate(swapped=True), MAP, FOUND),
    Case("over-channels", lambda: Timm(axis=2), MAP, missed="expected the branches"),
    Case("of-one-branch", OfFirst, MAP, missed="expected the mean of the branches' sum"),
    Case("interleaved", Interleaved, MAP, FOUND),
    Case("first-axis", First, MAP, FOUND, dynamic=("batch", "height", "width")),
    Case("first-axis-square", lambda: First(2), ((2, C, 2, 2),), FOUND),
    Case("first-axis-separate", lambda: FirstSeparate(3), MAP, FOUND),
    Case("channels-last", Split, MAP, missed="expected them on axis 2"),
    Case("eight", lambda: Timm(8), MAP, FOUND),
    Case("nine", lambda: Timm(9), MAP, missed="expected 2 to 8"),
    Case("one-layer", lambda: First(3, single=True), MAP, missed="an activation and another one"),
)
