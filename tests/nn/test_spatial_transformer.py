from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgeattn.errors import UsageError
from edgeattn.nn import SpatialTransformer
from tests.graphs import Array
from tests.nn.oracles import close, prepared, run


def localisation(channels: int = 2) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5), nn.ReLU(), nn.Linear(5, 6))


def sampled(image: Array, x: float, y: float) -> Array:
    """The bilinear sample of (C, H, W) at a place in pixels; zero outside."""
    total = np.zeros(len(image))
    for row in (int(np.floor(y)), int(np.floor(y)) + 1):
        for column in (int(np.floor(x)), int(np.floor(x)) + 1):
            if 0 <= row < image.shape[1] and 0 <= column < image.shape[2]:
                total += image[:, row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("size", [None, (3, 4)])
def test_an_untrained_transformer_only_resizes(size: tuple[int, int] | None, align: bool) -> None:
    x = torch.randn(2, 2, 5, 7, dtype=torch.float64)
    found = SpatialTransformer(localisation().double(), size, align_corners=align)(x)
    expected = x
    if size is not None:
        expected = nn.functional.interpolate(x, size, mode="bilinear", align_corners=align)
    assert close(found.detach().numpy(), expected.numpy())


@pytest.mark.parametrize("align", [False, True])
def test_a_transformer_is_its_formula(align: bool) -> None:
    module, _ = prepared(SpatialTransformer(localisation(), (3, 4), align_corners=align))
    x = np.random.default_rng(0).normal(size=(2, 2, 5, 7))
    with torch.no_grad():
        matrices = module.localisation(torch.from_numpy(x)).view(-1, 2, 3).numpy()  # type: ignore[operator]
    expected = np.zeros((2, 2, 3, 4))
    for b, row, column in np.ndindex(2, 3, 4):
        u, v = (2 * column / 3 - 1, row - 1.0) if align else ((2 * column + 1) / 4 - 1, (2 * row + 1) / 3 - 1)
        gx, gy = matrices[b] @ (u, v, 1.0)
        place = ((gx + 1) * 3, (gy + 1) * 2) if align else (((gx + 1) * 7 - 1) / 2, ((gy + 1) * 5 - 1) / 2)
        expected[b, :, row, column] = sampled(x[b], *place)
    assert close(run(module, x), expected)


def test_the_localisation_learns() -> None:
    module = SpatialTransformer(localisation())
    module(torch.randn(2, 2, 5, 7)).square().sum().backward()
    assert module.localisation[-1].bias.grad.abs().sum() > 0  # type: ignore[index, union-attr, operator]


@pytest.mark.parametrize("head", [nn.Linear(2, 5), nn.Linear(2, 6, bias=False), nn.Flatten()])
def test_a_localisation_that_gives_no_matrix_is_refused(head: nn.Module) -> None:
    with pytest.raises(UsageError, match=r"expected nn\.Linear\(\.\.\., 6\) with a bias"):
        SpatialTransformer(head)
