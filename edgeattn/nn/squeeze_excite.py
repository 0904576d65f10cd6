"""Squeeze-and-excitation: one gate per channel, from the channels' means.

Sources: Hu et al., "Squeeze-and-Excitation Networks", arXiv 1709.01507; effective: Lee and Park, "CenterMask", arXiv
1911.06667. Constructor words and parameter names are those of timm's `SEModule` and `EffectiveSEModule`, so their
checkpoints load.
"""

from __future__ import annotations

from torch import Tensor, nn


def reduced_width(channels: int, rd_ratio: float, rd_channels: int | None, rd_divisor: int) -> int:
    """Width of a gate's hidden layer: `rd_channels`, or channels * rd_ratio as the nearest multiple of `rd_divisor`."""
    return rd_channels or max(rd_divisor, int(channels * rd_ratio + rd_divisor / 2) // rd_divisor * rd_divisor)


class SqueezeExcite(nn.Module):
    """Weigh each channel by what all channels' means say.

    `y = x * gate(fc2(act(fc1(mean_hw(x)))))`.

    Args:
        channels: channels C of the input and the output.
        rd_ratio: width of the hidden layer over C.
        rd_channels: width of the hidden layer itself; wins over `rd_ratio`.
        rd_divisor: the width that `rd_ratio` gives is rounded to a multiple of it, and is at least it.
        bias: whether the two layers have a bias.
        act_layer: makes the activation between the layers.
        gate_layer: makes the gate.
    """

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
        *,
        bias: bool = True,
        act_layer: type[nn.Module] = nn.ReLU,
        gate_layer: type[nn.Module] = nn.Sigmoid,
    ) -> None:
        super().__init__()
        width = reduced_width(channels, rd_ratio, rd_channels, rd_divisor)
        self.fc1 = nn.Conv2d(channels, width, 1, bias=bias)
        self.act = act_layer()
        self.fc2 = nn.Conv2d(width, channels, 1, bias=bias)
        self.gate = gate_layer()

    def forward(self, x: Tensor) -> Tensor:
        """Gate `x` (B, C, H, W) by channel; the shape stays."""
        gated: Tensor = x * self.gate(self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True)))))
        return gated


class EffectiveSE(nn.Module):
    """`SqueezeExcite` with a single layer of full width: `y = x * gate(fc(mean_hw(x)))`.

    Args:
        channels: channels C of the input and the output.
        gate_layer: makes the gate.
    """

    def __init__(self, channels: int, *, gate_layer: type[nn.Module] = nn.Hardsigmoid) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)
        self.gate = gate_layer()

    def forward(self, x: Tensor) -> Tensor:
        """Gate `x` (B, C, H, W) by channel; the shape stays."""
        gated: Tensor = x * self.gate(self.fc(x.mean((2, 3), keepdim=True)))
        return gated
