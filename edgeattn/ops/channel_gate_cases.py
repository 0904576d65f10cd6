# mypy: warn-return-any=False
"""Channel gates as people write them, and what only looks like one; imported by the conformance tests alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeattn.ops.base import Case

C, R = 12, 5
MAP = ((2, C, 7, 5),)
TWO = (*MAP, *MAP)


class Linears(nn.Module):
    """As in most tutorials and in github.com/moskomule/senet.pytorch."""

    def __init__(self, act: nn.Module | None = None, bias: bool = False) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(C, R, bias=bias), act or nn.ReLU(inplace=True), nn.Linear(R, C, bias=bias), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        y = self.avg_pool(x).view(b, c)
        y = self.fc(y).view(b, c, 1, 1)
        return x * y.expand_as(x)


class Convolutions(nn.Module):
    """As timm's SEModule and torchvision's SqueezeExcitation: 1x1 convolutions, any activation and gate."""

    def __init__(self, act: nn.Module, gate: nn.Module, norm: nn.Module | None = None, groups: int = 1) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(C, 6, 1, groups=groups), nn.Conv2d(6, C, 1)
        self.norm, self.act, self.gate = norm or nn.Identity(), act, gate

    def forward(self, x: Tensor) -> Tensor:
        y = x.mean((2, 3), keepdim=True)
        return self.gate(self.fc2(self.act(self.norm(self.fc1(y))))) * x


class Residual(Convolutions):
    """x + x g: the product is a gate, the sum stays."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Eca(nn.Module):
    """As in github.com/BangguWu/ECANet."""

    def __init__(self, kernel: int = 3, padding: int | None = None) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2 if padding is None else padding, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.avg_pool(x).squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * self.sigmoid(y).expand_as(x)


class EcaOfTimm(Eca):
    """As timm's EcaModule."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.mean((2, 3)).view(x.shape[0], 1, -1))
        return x * y.view(x.shape[0], -1, 1, 1).sigmoid().expand_as(x)


class Effective(nn.Module):
    """As timm's EffectiveSEModule."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.fc(x.mean((2, 3), keepdim=True)))


class CbamChannel(nn.Module):
    """As in github.com/Jongchan/attention-module; `own` gives the maximum layers of its own."""

    def __init__(self, own: bool = False) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(C, R), nn.ReLU(), nn.Linear(R, C))
        self.max_mlp = nn.Sequential(nn.Flatten(), nn.Linear(C, R), nn.ReLU(), nn.Linear(R, C)) if own else self.mlp

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mlp(F.avg_pool2d(x, MAP[0][2:], stride=MAP[0][2:]))
        peak = self.max_mlp(F.max_pool2d(x, MAP[0][2:], stride=MAP[0][2:]))
        scale = torch.sigmoid(mean + peak).unsqueeze(2).unsqueeze(3).expand_as(x)
        return x * scale


class TwoSteps(Linears):
    """Mean over width, then over height."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean(3).mean(2))[:, :, None, None]


class Flat(Linears):
    """Mean over all places of a flattened map."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.flatten(2).mean(-1)).unsqueeze(-1).unsqueeze(-1)


class WrittenOut(Linears):
    """The sigmoid in elementary functions."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.fc[:-1](x.mean((2, 3)))
        return x * (1 / (1 + torch.exp(-z)))[:, :, None, None]


class Elsewhere(Linears):
    """The gate of one map applied to another."""

    def forward(self, x: Tensor, other: Tensor) -> Tensor:  # type: ignore[override]
        return other * self.fc(x.mean((2, 3)))[:, :, None, None]


class Altered(Linears):
    """Everything that a channel gate is not, by name."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "rows":
            return x * self.fc(x.mean(3).transpose(1, 2)).transpose(1, 2)[..., None]
        z = self.fc[:-1](x.mean((2, 3)))[:, :, None, None]
        if self.how == "added":
            return x + torch.sigmoid(z)
        if self.how == "softmax":
            return x * torch.softmax(z, 1)
        return x * (1 + torch.sigmoid(z))


class GlobalContext(nn.Module):
    """GCNet (arXiv 1904.11492) with a product: attention over the positions instead of a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.fc = nn.Conv2d(C, 1, 1), nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.score(x).flatten(2).softmax(-1)  # (B, 1, N)
        context = x.flatten(2) @ weights.transpose(1, 2)  # (B, C, 1)
        return x * torch.sigmoid(self.fc(context[..., None]))


class BamChannel(nn.Module):
    """BAM's channel half (arXiv 1807.06514), added to a spatial half and used as x (1 + gate)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(C, R), nn.BatchNorm1d(R), nn.ReLU(), nn.Linear(R, C))
        self.place = nn.Conv2d(C, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        z = self.fc(x.mean((2, 3)))[:, :, None, None].expand_as(x)
        return x * (1 + torch.sigmoid(z * self.place(x).expand_as(x)))


def _norm() -> nn.Module:
    norm = nn.BatchNorm2d(6)
    with torch.no_grad():
        for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            value.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return norm


FOUND = ("ChannelGate",)
IMAGE = ("batch", "height", "width")
CASES = (
    Case("linears", Linears, MAP, FOUND, dynamic=IMAGE),
    Case("linears-bias-gelu", lambda: Linears(nn.GELU(), bias=True), MAP, FOUND),
    Case("one-channel-map", lambda: Linears(nn.Identity()), ((1, C, 1, 3),), FOUND),
    Case("convolutions-relu", lambda: Convolutions(nn.ReLU(), nn.Sigmoid()), MAP, FOUND, dynamic=IMAGE),
    Case("convolutions-silu", lambda: Convolutions(nn.SiLU(), nn.Sigmoid()), MAP, FOUND),
    Case("mobilenet-v3", lambda: Convolutions(nn.ReLU(), nn.Hardsigmoid()), MAP, FOUND),
    Case("relu6-gate", lambda: Convolutions(nn.Hardswish(), _Ramp()), MAP, FOUND),
    Case("normalised", lambda: Convolutions(nn.ReLU(), nn.Tanh(), _norm()), MAP, FOUND),
    Case("residual", lambda: Residual(nn.ReLU(), nn.Sigmoid()), MAP, FOUND),
    Case("eca", lambda: Eca(5), MAP, FOUND, dynamic=IMAGE),
    Case("eca-timm", EcaOfTimm, MAP, FOUND, dynamic=IMAGE),
    Case("effective", Effective, MAP, FOUND),
    Case("cbam-channel", CbamChannel, MAP, FOUND),
    Case("two-steps", TwoSteps, MAP, FOUND, dynamic=IMAGE),
    Case("flat", Flat, MAP, FOUND),
    Case("written-out", WrittenOut, MAP, FOUND),
    Case("other-map", Elsewhere, TWO, missed="expected the same tensor"),
    Case("own-layers-for-max", lambda: CbamChannel(own=True), MAP, missed="different weights"),
    Case("prelu", lambda: Convolutions(nn.PReLU(), nn.Sigmoid()), MAP, missed="PRelu"),
    Case("grouped", lambda: Convolutions(nn.ReLU(), nn.Sigmoid(), groups=2), MAP, missed="groups"),
    Case("softmax", lambda: Altered("softmax"), MAP, missed="Softmax"),
    Case("one-plus", lambda: Altered("one-plus"), MAP, missed="made by Add"),
    Case("added", lambda: Altered("added"), MAP),
    Case("rows", lambda: Altered("rows"), MAP),
    Case("global-context", GlobalContext, MAP, missed="the mean or maximum over height and width"),
    Case("bam", BamChannel, MAP),
)


class _Ramp(nn.Module):
    """Hard sigmoid as MobileNetV3's first implementations wrote it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3) / 6
