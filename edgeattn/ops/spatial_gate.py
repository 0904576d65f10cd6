"""SpatialGate: one weight for each position, from what the channels agree on.

    SpatialGate(x, w, b) = x * gate(conv(cat(mean_c x, max_c x), w) + b)

x (B, C, H, W); w (1, 2, k, k), b (1): the convolution keeps H and W (k odd, padding k // 2). A normalisation between
convolution and gate is an affine map of one channel and is folded into w and b.

Source: Woo et al., "CBAM: Convolutional Block Attention Module", 2018, arXiv 1807.06521, section 3, equation 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from edgeattn.ops.base import AttentionOp, Case, Match, Miss

if TYPE_CHECKING:
    from torch import Tensor

GATES = {"sigmoid": "Sigmoid", "hardsigmoid": "HardSigmoid"}


def function(variant: str) -> str:
    """The body for `sigmoid` or `hardsigmoid`."""
    gate = {"sigmoid": "Sigmoid (z)", "hardsigmoid": "HardSigmoid <alpha = 0.16666667, beta = 0.5> (z)"}[variant]
    return f"""
        SpatialGate <pads, kernel_shape> (x, w, b) => (y) {{
            channels = Constant <value_ints = [1]> ()
            mean = ReduceMean <keepdims = 1> (x, channels)
            max = ReduceMax <keepdims = 1> (x, channels)
            both = Concat <axis = 1> (mean, max)
            z = Conv <kernel_shape: ints = @kernel_shape, pads: ints = @pads> (both, w, b)
            gate = {gate}
            y = Mul (x, gate)
        }}"""


def reference(
    variant: str, x: Tensor, w: Tensor, b: Tensor, pads: Sequence[int], kernel_shape: Sequence[int]
) -> Tensor:
    """The formula in PyTorch; `kernel_shape` is that of `w`."""
    import torch
    from torch.nn import functional as F

    both = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
    z = F.conv2d(both, w, b, padding=tuple(pads[:2]))
    return x * (torch.sigmoid(z) if variant == "sigmoid" else F.hardsigmoid(z))
