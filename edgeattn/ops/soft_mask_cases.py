# mypy: warn-return-any=False
"""Soft masks as people write them, and products with a sigmoid that are none; imported by the tests alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeattn.ops.base import Case

C, R = 6, 4


class Residual(nn.Module):
    """A stage of a residual attention network (arXiv 1704.06904); `how` says what is done otherwise."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.trunk, self.down = nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(C, C, 3, padding=1)
        self.inner, self.last = nn.Conv2d(C, C, 3, 2, 1), nn.Conv2d(C, 1 if how == "plane" else C, 1)
        self.up, self.how = nn.ConvTranspose2d(C, C, 2, 2), how

    def mask(self, x: Tensor) -> Tensor:
        if self.how == "flat":
            return self.last(F.relu(self.down(x)))
        low = F.relu(self.down(F.max_pool2d(x, 3, 2, 1)))
        if self.how == "transposed":
            return self.last(self.up(low))
        lower = F.interpolate(F.relu(self.inner(low)), size=low.shape[2:], mode="bilinear")
        z = F.interpolate(low + lower, size=x.shape[2:], mode="bilinear")
        if self.how == "concatenated":
            return self.last(torch.cat([z, x], 1)[:, :C])
        return self.last(z)

    def forward(self, x: Tensor) -> Tensor:
        trunk = F.relu(self.trunk(x))
        if self.how == "not-residual":
            return trunk * torch.sigmoid(self.mask(x))
        if self.how == "added":
            return trunk + trunk * torch.sigmoid(self.mask(x))
        if self.how == "hard":
            return F.hardsigmoid(self.mask(x)) * trunk
        if self.how == "expanded":
            return trunk * torch.sigmoid(self.mask(x)).expand_as(trunk)
        return (1 + torch.sigmoid(self.mask(x))) * trunk


class Bottleneck(nn.Module):
    """BAM as in github.com/Jongchan/attention-module; `form` says how the gate is used."""

    def __init__(self, product: bool = False, form: str = "residual") -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(C, R), nn.ReLU(), nn.Linear(R, C))
        self.places = nn.Sequential(
            nn.Conv2d(C, R, 1), nn.ReLU(), nn.Conv2d(R, R, 3, padding=2, dilation=2), nn.ReLU(), nn.Conv2d(R, 1, 1)
        )
        self.product, self.form = product, form

    def forward(self, x: Tensor) -> Tensor:
        channel = self.fc(x.mean((2, 3))).unsqueeze(2).unsqueeze(3).expand_as(x)
        spatial = self.places(x).expand_as(x)
        gate = torch.sigmoid(channel * spatial if self.product else channel + spatial)
        return x * gate + x if self.form == "added" else x * gate if self.form == "gate" else (1 + gate) * x


class Gathered(nn.Module):
    """Gather-excite without parameters (arXiv 1810.12348): the mean of a neighbourhood gates its places."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(F.interpolate(F.avg_pool2d(x, 3, 2, 1), size=x.shape[2:], mode="nearest"))


class Coordinate(nn.Module):
    """Coordinate attention (arXiv 2103.02907); `joined` multiplies both gates first."""

    def __init__(self, joined: bool = False) -> None:
        super().__init__()
        self.first, self.rows, self.columns = nn.Conv2d(C, R, 1), nn.Conv2d(R, C, 1), nn.Conv2d(R, C, 1)
        self.joined = joined

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        rows, columns = x.mean(3, keepdim=True), x.mean(2, keepdim=True).permute(0, 1, 3, 2)
        y = F.hardswish(self.first(torch.cat([rows, columns], 2)))
        rows, columns = torch.split(y, [h, w], dim=2)
        rows, columns = self.rows(rows).sigmoid(), self.columns(columns.permute(0, 1, 3, 2)).sigmoid()
        return x * (rows * columns) if self.joined else x * columns * rows


class Gated(nn.Module):
    """Products with a sigmoid that are activations or units: of the map itself, of a layer, after an hourglass."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.how = nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(C, C, 3, padding=1), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "silu":
            return F.silu(self.a(x))
        if self.how == "decoder":
            x = F.interpolate(F.relu(self.a(F.max_pool2d(x, 2))), size=x.shape[2:])
        return self.a(x) * torch.sigmoid(self.b(x))


class Recurrent(nn.Module):
    """The gates of a recurrent cell that reads a coarser state, as in RAFT-Stereo."""

    def __init__(self) -> None:
        super().__init__()
        self.z, self.q = nn.Conv2d(2 * C, C, 3, padding=1), nn.Conv2d(2 * C, C, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        coarse = F.interpolate(torch.tanh(F.avg_pool2d(h, 3, 2, 1)), size=h.shape[2:], mode="bilinear")
        z = torch.sigmoid(self.z(torch.cat([h, coarse], 1)))
        return z * h + (1 - z) * torch.tanh(self.q(torch.cat([z * h, coarse], 1)))


FOUND = ("SoftMask",)
MAP, EVEN, IMAGE = ((2, C, 7, 5),), ((2, C, 8, 6),), ("batch", "height", "width")
CASES = (
    Case("residual", Residual, MAP, FOUND, dynamic=IMAGE),
    Case("added", lambda: Residual("added"), MAP, FOUND),
    Case("not-residual", lambda: Residual("not-residual"), MAP, FOUND),
    Case("plane", lambda: Residual("plane"), MAP, FOUND),
    Case("hard", lambda: Residual("hard"), MAP, FOUND),
    Case("expanded", lambda: Residual("expanded"), MAP, FOUND),
    Case("transposed", lambda: Residual("transposed"), EVEN, FOUND),
    Case("gathered", Gathered, MAP, FOUND),
    Case("bottleneck", Bottleneck, MAP, FOUND, dynamic=IMAGE),
    Case("bottleneck-product", lambda: Bottleneck(product=True), MAP, FOUND),
    Case("bottleneck-added", lambda: Bottleneck(form="added"), MAP, FOUND),
    Case("bottleneck-gate", lambda: Bottleneck(form="gate"), MAP, FOUND),
    Case("no-hourglass", lambda: Residual("flat"), MAP, missed="expected logits from an hourglass"),
    Case("concatenated", lambda: Residual("concatenated"), MAP, missed="expected logits from an hourglass"),
    Case("coordinate", Coordinate, MAP, missed="as coordinate attention does"),
    Case("coordinate-joined", lambda: Coordinate(joined=True), MAP, missed="as coordinate attention does"),
    Case("silu", lambda: Gated("silu"), MAP),
    Case("gated-linear-unit", lambda: Gated("glu"), MAP),
    Case("gated-linear-unit-of-a-decoder", lambda: Gated("decoder"), EVEN),
    Case("recurrent", Recurrent, MAP),
)
