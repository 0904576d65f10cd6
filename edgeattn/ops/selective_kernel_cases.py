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
        z = torch.stack(maps).sum(0).mean((2, 3))
        z = z if self.single else self.fc(z)
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


class SplitAttention(nn.Module):
    """ResNeSt's (arXiv 2004.08955): `listed` as in github.com/zhanghang1989/ResNeSt, else as timm's."""

    def __init__(self, groups: int = 1, listed: bool = False) -> None:
        super().__init__()
        self.conv, self.groups, self.listed = nn.Conv2d(C, 2 * C, 3, padding=1, groups=2), groups, listed
        self.fc1, self.fc2 = nn.Conv2d(C, 4, 1, groups=groups), nn.Conv2d(4, 2 * C, 1, groups=groups)

    def weights(self, gap: Tensor) -> Tensor:
        logits = self.fc2(F.relu(self.fc1(gap.mean((2, 3), keepdim=True))))
        b = logits.shape[0]
        return logits.view(b, self.groups, 2, -1).transpose(1, 2).softmax(1).reshape(b, -1).view(b, -1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        b, c, h, w = x.shape
        if self.listed:
            parts = torch.split(x, c // 2, dim=1)
            weights = torch.split(self.weights(sum(parts)), c // 2, dim=1)  # type: ignore[arg-type]
            return weights[0] * parts[0] + weights[1] * parts[1]
        x = x.reshape(b, 2, c // 2, h, w)
        return (x * self.weights(x.sum(1)).reshape(b, 2, c // 2, 1, 1)).sum(1)


class Fusion(nn.Module):
    """Adaptively spatial feature fusion (arXiv 1911.09516): three maps, weighed place by place."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(C, C, 3, padding=1) for _ in range(3)])
        self.levels = nn.Conv2d(3 * C, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = (conv(x) for conv in self.convs)
        weights = self.levels(torch.cat([a, b, c], 1)).softmax(1)
        return a * weights[:, 0:1] + b * weights[:, 1:2] + c * weights[:, 2:]


class OfFirst(Timm):
    """The weights come from one branch alone."""

    def pool(self, paths: Tensor) -> Tensor:
        return paths[:, 0].mean((2, 3), keepdim=True)


class Separate(Timm):
    """Each branch weighed by itself; `swapped` gives each the other's weights."""

    def __init__(self, swapped: bool = False, of_first: bool = False) -> None:
        super().__init__()
        self.swapped, self.of_first = swapped, of_first

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.maps(x)
        described = first if self.of_first else first + second
        weights = torch.softmax(self.logits(described.mean((2, 3), keepdim=True)), dim=1)
        if self.swapped:
            first, second = second, first
        return first * weights[:, 0] + second * weights[:, 1]


FOUND = ("SelectiveKernel",)
POOLED = ("AttentionPool",)  # a softmax across branches that are stacked, but no selective kernel
CASES = (
    Case("paper", Paper, MAP, FOUND, dynamic=("batch", "height", "width")),
    Case("paper-3", lambda: Paper(3), MAP, FOUND),
    Case("timm", Timm, MAP, FOUND, dynamic=("batch", "height", "width")),
    Case("timm-3", lambda: Timm(3), MAP, FOUND),
    Case("separate", Separate, MAP, FOUND),
    Case("separate-swapped", lambda: Separate(swapped=True), MAP, FOUND),
    Case("over-channels", lambda: Timm(axis=2), MAP, missed="expected the branches"),
    Case("of-one-branch", lambda: Separate(of_first=True), MAP, missed="expected the mean of the branches' sum"),
    Case("of-one-branch-stacked", OfFirst, MAP, POOLED),
    Case("interleaved", Interleaved, MAP, FOUND),
    Case("first-axis", First, MAP, FOUND, dynamic=("batch", "height", "width")),
    Case("first-axis-square", lambda: First(2), ((2, C, 2, 2),), FOUND),
    Case("first-axis-separate", lambda: FirstSeparate(3), MAP, FOUND),
    Case("channels-last", Split, MAP, POOLED),
    Case("eight", lambda: Timm(8), MAP, FOUND),
    Case("nine", lambda: Timm(9), MAP, POOLED),
    Case("one-layer", lambda: FirstSeparate(3, single=True), MAP, missed="an activation and another one"),
    Case("one-layer-stacked", lambda: First(3, single=True), MAP, POOLED),
    Case("split-attention", SplitAttention, MAP, FOUND, dynamic=("batch", "height", "width")),
    Case("split-attention-listed", lambda: SplitAttention(listed=True), MAP, FOUND),
    Case("split-attention-listed-grouped", lambda: SplitAttention(2, listed=True), MAP, missed="expected an ungrouped"),
    Case("place-by-place", Fusion, MAP, missed="expected one weight for each channel"),
)
