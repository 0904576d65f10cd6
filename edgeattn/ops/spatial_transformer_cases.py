# mypy: warn-return-any=False
"""Spatial transformers as people write them, and what only looks like one; imported by the conformance tests alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeattn.ops.base import Case

C = 3
MAP = ((2, C, 7, 5),)


class Tutorial(nn.Module):
    """As PyTorch's tutorial: localisation by convolutions, affine_grid and grid_sample of the image's size."""

    def __init__(self) -> None:
        super().__init__()
        self.localization = nn.Sequential(
            nn.Conv2d(1, 8, kernel_size=7), nn.MaxPool2d(2, stride=2), nn.ReLU(True),
            nn.Conv2d(8, 10, kernel_size=5), nn.MaxPool2d(2, stride=2), nn.ReLU(True),
        )  # fmt: skip
        self.fc_loc = nn.Sequential(nn.Linear(10 * 3 * 3, 32), nn.ReLU(True), nn.Linear(32, 3 * 2))
        nn.init.normal_(self.fc_loc[2].weight, std=0.1)  # type: ignore[arg-type]
        nn.init.constant_(self.fc_loc[2].bias, 0.3)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        xs = self.localization(x).view(-1, 10 * 3 * 3)
        theta = self.fc_loc(xs).view(-1, 2, 3)
        return F.grid_sample(x, F.affine_grid(theta, list(x.size()), align_corners=False), align_corners=False)


class Affine(nn.Module):
    """A small localisation, and a function of the map and the parameters (B, count) that samples it."""

    def __init__(self, sample: Callable[[Tensor, Tensor], Tensor], count: int = 6) -> None:
        super().__init__()
        self.sample, self.fc = sample, nn.Linear(C, count)

    def forward(self, x: Tensor) -> Tensor:
        return self.sample(x, self.fc(x.flatten(2).mean(2)))


def plain(x: Tensor, theta: Tensor, size: tuple[int, int] | None = None, align: bool = False, **sampler: Any) -> Tensor:
    """The two functions; `size` is the output's, `align` that of affine_grid."""
    H, W = size or (x.shape[2], x.shape[3])
    grid = F.affine_grid(theta.view(-1, 2, 3), [x.shape[0], C, H, W], align_corners=align)
    return F.grid_sample(x, grid, **{"align_corners": align, **sampler})


def positions(x: Tensor, swapped: bool = False) -> Tensor:
    """(x, y, 1) at every place (H, W, 3), as a meshgrid."""
    H, W = x.shape[2], x.shape[3]
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, H), torch.linspace(-1, 1, W), indexing="ij")
    first, second = (rows, columns) if swapped else (columns, rows)
    return torch.stack([first, second, torch.ones_like(rows)], dim=-1).to(x.dtype)


def by_hand(x: Tensor, theta: Tensor, spelling: str = "bmm", swapped: bool = False) -> Tensor:
    """The grid from a meshgrid and a product, in one of the ways people write it."""
    theta, base = theta.view(-1, 2, 3), positions(x, swapped)
    H, W = x.shape[2], x.shape[3]
    if spelling == "bmm":
        grid = torch.bmm(base.view(1, H * W, 3).expand(x.shape[0], -1, -1), theta.transpose(1, 2)).view(-1, H, W, 2)
    elif spelling == "columns":  # as in ports from TensorFlow: (B, 2, 3) times (3, H W)
        grid = (theta @ base.permute(2, 0, 1).reshape(3, -1)).permute(0, 2, 1).reshape(-1, H, W, 2)
    elif spelling == "einsum":
        grid = torch.einsum("bij,hwj->bhwi", theta, base)
    else:
        grid = (base[None, :, :, None] * theta[:, None, None]).sum(-1)
    return F.grid_sample(x, grid, align_corners=True)


def flow(x: Tensor, parameters: Tensor) -> Tensor:
    """An optical flow's warp: positions plus an offset for each place."""
    offsets = x[:, :2].permute(0, 2, 3, 1) * parameters[:, :1, None, None]
    return F.grid_sample(x, positions(x)[None, :, :, :2] + offsets, align_corners=True)


def deformable(x: Tensor, parameters: Tensor) -> Tensor:
    """A grid that a network computes."""
    return (
        F.grid_sample(x, torch.tanh(x[:, :2]).permute(0, 2, 3, 1), align_corners=False) + parameters[:, :1, None, None]
    )


def homography(x: Tensor, parameters: Tensor) -> Tensor:
    """A projective matrix: the third coordinate divides."""
    matrix, (H, W) = parameters.view(-1, 3, 3), x.shape[2:]
    places = positions(x).view(1, -1, 3) @ matrix.transpose(1, 2)
    return F.grid_sample(x, (places[..., :2] / (places[..., 2:] + 8)).view(-1, H, W, 2), align_corners=True)


def unshifted(x: Tensor, parameters: Tensor) -> Tensor:
    """A matrix without translation."""
    H, W = x.shape[2:]
    grid = positions(x)[..., :2].reshape(1, H * W, 2) @ parameters.view(-1, 2, 2)
    return F.grid_sample(x, grid.view(-1, H, W, 2), align_corners=True)


def bent(x: Tensor, theta: Tensor) -> Tensor:
    """Positions that no regular grid has."""
    base = positions(x) ** torch.tensor([1, 1, 0]) + positions(x)[..., [1, 0, 2]] * torch.tensor([0.1, 0, 0])
    return F.grid_sample(x, torch.einsum("bij,hwj->bhwi", theta.view(-1, 2, 3), base.to(x.dtype)), align_corners=True)


class Fixed(nn.Module):
    """A matrix that does not depend on the image."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.randn(1, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return plain(x, self.theta.expand(x.shape[0], -1, -1).flatten(1))


FOUND = ("SpatialTransformer",)
IMAGE = ("batch", "height", "width")


def _found(name: str, sample: Callable[..., Tensor], *dynamic: str, **words: Any) -> Case:
    return Case(name, lambda: Affine(partial(sample, **words)), MAP, FOUND, dynamic=dynamic or ("batch",))


def _missed(name: str, sample: Callable[[Tensor, Tensor], Tensor], reason: str, count: int = 6) -> Case:
    return Case(name, lambda: Affine(sample, count), MAP, missed=reason)


CASES = (
    Case("tutorial", Tutorial, ((2, 1, 28, 28),), FOUND),
    _found("plain", plain, *IMAGE),
    _found("aligned", plain, *IMAGE, align=True),
    _found("zoomed", plain, size=(4, 3)),
    _found("one-place", plain, size=(1, 1)),
    _found("one-row", plain, size=(1, 5)),
    _found("corners-differ", plain, align=True, align_corners=False),
    _found("border", plain, padding_mode="border"),
    _found("reflection-bicubic", plain, padding_mode="reflection", mode="bicubic"),
    _found("nearest", plain, mode="nearest"),
    _found("by-hand", by_hand),
    _found("by-hand-columns", by_hand, spelling="columns"),
    _found("by-hand-einsum", by_hand, spelling="einsum"),
    _found("by-hand-sum", by_hand, spelling="sum"),
    _missed("swapped", partial(by_hand, swapped=True), "(x, y, 1) of a regular grid"),
    _missed("bent", bent, "(x, y, 1) of a regular grid"),
    _missed("flow", flow, "expected an affine matrix"),
    _missed("deformable", deformable, "expected an affine matrix"),
    _missed("homography", homography, "expected an affine matrix", 9),
    _missed("unshifted", unshifted, "expected (B, 2, 3)", 4),
    Case("fixed", Fixed, MAP, missed="a constant"),
)
