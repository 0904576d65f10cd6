"""Spatial transformer: look at the part of a map that a small network chooses, straightened and at a fixed size.

Source: Jaderberg et al., "Spatial Transformer Networks", arXiv 1506.02025; as in PyTorch's tutorial, the localisation
starts at the identity, so an untrained transformer changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeattn.errors import UsageError


class SpatialTransformer(nn.Module):
    """Sample a map where an affine matrix puts a regular grid.

    `theta = localisation(x)`, `grid[h, w] = theta (x_w, y_h, 1)`, `y = grid_sample(x, grid)`.

    Args:
        localisation: any network from (B, C, H, W) to (B, 6), the rows of a 2x3 matrix; its last linear layer is set
            to give the identity for every input.
        size: height and width of the output; those of the input by default.
        mode: "bilinear", "nearest" (no gradient reaches the localisation) or "bicubic".
        padding_mode: what lies outside the map: "zeros", "border" or "reflection".
        align_corners: whether -1 and 1 are the centres of the corner pixels, or their outer edges.

    Raises:
        UsageError: the localisation's last linear layer has not 6 outputs and a bias.
    """

    def __init__(
        self,
        localisation: nn.Module,
        size: tuple[int, int] | None = None,
        mode: str = "bilinear",
        padding_mode: str = "zeros",
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        layers = [module for module in localisation.modules() if isinstance(module, nn.Linear)]
        if not layers or layers[-1].out_features != 6 or layers[-1].bias is None:
            found = layers[-1] if layers else "no linear layer"
            raise UsageError(f"the localisation ends in {found}, expected nn.Linear(..., 6) with a bias")
        nn.init.zeros_(layers[-1].weight)
        with torch.no_grad():
            layers[-1].bias.copy_(torch.eye(2, 3).flatten())
        self.localisation, self.size = localisation, size
        self.mode, self.padding_mode, self.align_corners = mode, padding_mode, align_corners

    def forward(self, x: Tensor) -> Tensor:
        """Sample `x` (B, C, H, W) to (B, C, *size)."""
        theta = self.localisation(x).view(-1, 2, 3)
        height, width = self.size or (x.shape[2], x.shape[3])
        grid = F.affine_grid(theta, [x.shape[0], x.shape[1], height, width], align_corners=self.align_corners)
        return F.grid_sample(x, grid, self.mode, self.padding_mode, self.align_corners)
