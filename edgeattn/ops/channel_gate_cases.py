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

    def __init__(self, kernel: int = 3, bias: bool = False) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=bias)
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
        return x * ((1 if self.how == "one-plus" else 2) + torch.sigmoid(z))


class Context(nn.Module):
    """Global context (arXiv 1904.11492): attention over the places, two layers, and a product or a sum.

    `norm` is "", "last" (as timm's LayerNorm2d), "all" (as the paper's repository) or "written-out"; `scores` are
    those of the map itself or of another.
    """

    def __init__(self, fuse: str = "mul", norm: str = "last", pool: str = "attn", scores: str = "own") -> None:
        super().__init__()
        self.fuse, self.norm, self.pool, self.scores = fuse, norm, pool, scores
        self.conv, self.fc1, self.fc2 = nn.Conv2d(C, 1, 1), nn.Conv2d(C, R, 1), nn.Conv2d(R, C, 1)
        self.g, self.h = nn.Parameter(torch.rand(R) + 0.5), nn.Parameter(torch.rand(R))

    def context(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        if self.pool == "avg":
            return F.adaptive_avg_pool2d(x, 1)
        mask = self.conv(x if self.scores == "own" else x.flip(1)).view(b, 1, h * w).softmax(dim=2).unsqueeze(-1)
        return torch.matmul(x.view(b, c, h * w).unsqueeze(1), mask).view(b, c, 1, 1)

    def hidden(self, y: Tensor) -> Tensor:
        y = self.fc1(y)
        if self.norm == "last":
            return F.layer_norm(y.permute(0, 2, 3, 1), (R,), self.g, self.h, 1e-6).permute(0, 3, 1, 2)
        if self.norm == "all":
            return F.layer_norm(y, (R, 1, 1), self.g[:, None, None], self.h[:, None, None])
        if self.norm == "written-out":
            y = (y - y.mean(1, keepdim=True)) / torch.sqrt((y - y.mean(1, keepdim=True)).pow(2).mean(1, True) + 1e-5)
            return self.g[:, None, None] * y + self.h[:, None, None]
        return y

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc2(torch.relu(self.hidden(self.context(x))))
        if self.fuse == "both":
            return x * torch.sigmoid(y) + y
        return x * torch.sigmoid(y) if self.fuse == "mul" else x + y


class Simplified(Context):
    """The simplified non-local block of the same paper: one layer, and a sum or (`gated`) a product."""

    def __init__(self, gated: bool = False) -> None:
        super().__init__()
        self.fc, self.gated = nn.Conv2d(C, C, 1), gated

    def forward(self, x: Tensor) -> Tensor:
        weights = self.conv(x).flatten(2).softmax(-1)  # (B, 1, N)
        y = self.fc((x.flatten(2) @ weights.transpose(1, 2))[..., None])
        return x * torch.sigmoid(y) if self.gated else x + y


class Sequence(nn.Module):
    """Squeeze and excitation of a sequence (B, C, N) or a volume (B, C, T, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(C, R), nn.ReLU(), nn.Linear(R, C), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x.mean(tuple(range(2, x.ndim))))
        return x * y.view(*y.shape, *[1] * (x.ndim - 2))


class Last(Sequence):
    """The same of tokens (B, N, C) or a map (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean(tuple(range(1, x.ndim - 1)), keepdim=True))


class RootMeanSquare(nn.Module):
    """A normalisation of tokens, which multiplies by one number for each token, too."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


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
    Case("eca-bias", lambda: Eca(3, bias=True), MAP, FOUND),
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
    Case("one-plus", lambda: Altered("one-plus"), MAP, FOUND),
    Case("two-plus", lambda: Altered("two-plus"), MAP, missed="made by Add"),
    Case("added", lambda: Altered("added"), MAP),
    Case("rows", lambda: Altered("rows"), MAP),
    Case("context", Context, MAP, FOUND, dynamic=IMAGE),
    Case("context-add", lambda: Context("add", "all"), MAP, FOUND, dynamic=IMAGE),
    Case("context-written-out", lambda: Context("mul", "written-out"), MAP, FOUND),
    Case("context-without-norm", lambda: Context("add", ""), MAP, FOUND),
    Case("context-of-means", lambda: Context("add", "last", "avg"), MAP, FOUND),
    Case("context-one-layer", Simplified, MAP, FOUND),
    Case("context-one-layer-gate", lambda: Simplified(gated=True), MAP, FOUND),
    Case("context-of-one", Context, ((1, C, 7, 5),), FOUND),
    Case("context-both", lambda: Context("both"), MAP, ("AttentionPool", "ChannelGate"), missed="is added to"),
    Case("context-elsewhere", lambda: Context(scores="other"), MAP, ("AttentionPool",), missed="1x1 convolution of"),
    Case("sequence", Sequence, ((2, C, 7),), FOUND),
    Case("volume", Sequence, ((2, C, 3, 5, 4),), FOUND),
    Case(
        "volume-dynamic", Sequence, ((2, C, 3, 5, 4),), FOUND, dynamic=("batch", "x:2=depth", "x:3=height", "x:4=width")
    ),
    Case("tokens", Last, ((2, 7, C),), missed="expected channels on axis 1"),
    Case("channels-last", Last, ((2, 7, 5, C),), missed="expected channels on axis 1"),
    Case("root-mean-square", RootMeanSquare, ((2, 7, C),)),
    Case("bam", BamChannel, MAP, ("SoftMask",)),
)


class _Ramp(nn.Module):
    """Hard sigmoid as MobileNetV3's first implementations wrote it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3) / 6
