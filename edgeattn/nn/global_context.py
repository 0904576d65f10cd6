"""Global context: what a softmax over all places gathers, given back to every place.

Source: Cao et al., "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond", arXiv 1904.11492.
Constructor words and parameter names are those of timm's `GlobalContext`, so its checkpoints load.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from edgeattn.nn.squeeze_excite import reduced_width


class _LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of a map (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GlobalContext(nn.Module):
    """Gather one context vector by attention over the places, and scale and shift all places by it.

    `context = sum_n softmax_n(conv_attn(x))_n x_n`, `y = x * sigmoid(mlp_scale(context)) + mlp_add(context)`, with
    `mlp = fc2(relu(layer_norm(fc1(.))))`; either half may be missing.

    Args:
        channels: channels C of the input and the output.
        use_attn: False for the mean over the places instead of attention.
        fuse_add: whether the context is added.
        fuse_scale: whether the context scales.
        rd_ratio: width of an mlp over C.
        rd_channels: width of an mlp itself; wins over `rd_ratio`.
        rd_divisor: the width that `rd_ratio` gives is rounded to a multiple of it, and is at least it.
    """

    def __init__(
        self,
        channels: int,
        use_attn: bool = True,
        fuse_add: bool = False,
        fuse_scale: bool = True,
        *,
        rd_ratio: float = 1 / 8,
        rd_channels: int | None = None,
        rd_divisor: int = 1,
    ) -> None:
        super().__init__()
        width = reduced_width(channels, rd_ratio, rd_channels, rd_divisor)
        self.conv_attn = nn.Conv2d(channels, 1, 1) if use_attn else None
        self.mlp_add = self._mlp(channels, width) if fuse_add else None
        self.mlp_scale = self._mlp(channels, width) if fuse_scale else None

    @staticmethod
    def _mlp(channels: int, width: int) -> nn.Sequential:
        layers = OrderedDict(
            fc1=nn.Conv2d(channels, width, 1),
            norm=_LayerNorm2d(width, eps=1e-6),
            act=nn.ReLU(),
            fc2=nn.Conv2d(width, channels, 1),
        )
        return nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Give `x` (B, C, H, W) its context; the shape stays."""
        if self.conv_attn is None:
            context = x.mean((2, 3), keepdim=True)
        else:
            weights = self.conv_attn(x).flatten(2).softmax(-1)  # (B, 1, H * W)
            context = (x.flatten(2) @ weights.transpose(1, 2)).unsqueeze(-1)  # (B, C, 1, 1)
        if self.mlp_scale is not None:
            x = x * self.mlp_scale(context).sigmoid()
        return x if self.mlp_add is None else x + self.mlp_add(context)
