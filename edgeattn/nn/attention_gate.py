"""Attention gate: what of a skip connection a coarser, deeper map finds relevant.

Source: Oktay et al., "Attention U-Net", arXiv 1804.03999, and github.com/ozan-oktay/Attention-Gated-Networks, whose
names of the parts are kept; the convolution that follows the gate there is left to the caller.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class AttentionGate(nn.Module):
    """Weigh each place of `x` by how it agrees with `g`.

    `y = x * up(sigmoid(psi(relu(theta(x) + resize(phi(g))))))`; with `sub_sample` 1 nothing is resampled.

    Args:
        channels: channels C of the skip connection and the output.
        gate_channels: channels G of the gating signal.
        inter_channels: channels in which the two are compared; half of C by default.
        sub_sample: factor by which the comparison is coarser than the skip connection.
    """

    def __init__(
        self, channels: int, gate_channels: int, inter_channels: int | None = None, sub_sample: int = 1
    ) -> None:
        super().__init__()
        inner = inter_channels or max(channels // 2, 1)
        self.sub_sample = sub_sample
        self.theta = nn.Conv2d(channels, inner, sub_sample, stride=sub_sample, bias=False)
        self.phi = nn.Conv2d(gate_channels, inner, 1)
        self.psi = nn.Conv2d(inner, 1, 1)

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        """Gate `x` (B, C, H, W) by `g` (B, G, H, W), or of any size if `sub_sample` is above 1; x's shape stays."""
        theta, phi = self.theta(x), self.phi(g)
        if self.sub_sample == 1:
            same: Tensor = x * self.psi(F.relu(theta + phi)).sigmoid()
            return same
        phi = F.interpolate(phi, size=theta.shape[2:], mode="bilinear")
        weights = self.psi(F.relu(theta + phi)).sigmoid()
        return x * F.interpolate(weights, size=x.shape[2:], mode="bilinear")
