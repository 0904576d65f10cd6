"""SoftmaxAttention: every query takes a weighted mean of the values, weighted by how well their keys fit.

    SoftmaxAttention(q, k, v[, bias]) = softmax(scale * q k^T + bias) v

q (B, H, N, d), k (B, H or 1, M, d), v (B, H or 1, M, e), bias broadcastable to (B, H, N, M); y (B, H, N, e). The
softmax runs over the M keys. Self and cross, single and multi head, grouped keys, masks (a bias of 0 and -inf),
relative positions and image layouts all come to this. In the variant `bias-guarded` a query whose keys are all masked
yields zeros, as PyTorch's scaled_dot_product_attention has it; in `bias` it yields what is not a number.

Source: Vaswani et al., "Attention Is All You Need", 2017, arXiv 1706.03762, section 3.2.1. The scale stands before the
product, where TensorRT's own fusion looks for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgeattn.ops.base import AttentionOp, Case
from edgeattn.ops.softmax_attention_search import NAME, find

if TYPE_CHECKING:
    from torch import Tensor


def function(variant: str) -> str:
    """The body for "", `bias` or `bias-guarded`."""
    bias = variant != ""
    guard = """
            failed = IsNaN (weights)
            zero = Constant <value_float = 0.0> ()
            none = CastLike (zero, weights)
            safe = Where (failed, none, weights)"""
    return f"""
        SoftmaxAttention <scale> (q, k, v{", bias" if bias else ""}) => (y) {{
            factor = Constant <value_float: float = @scale> ()
            scale = CastLike (factor, q)
            scaled = Mul (q, scale)
            turned = Transpose <perm = [0, 1, 3, 2]> (k)
            scores = MatMul (scaled, turned)
            {"biased = Add (scores, bias)" if bias else ""}
            weights = Softmax <axis = -1> ({"biased" if bias else "scores"}){guard if "guarded" in variant else ""}
            y = MatMul ({"safe" if "guarded" in variant else "weights"}, v)
        }}"""


def reference(variant: str, q: Tensor, k: Tensor, v: Tensor, *bias: Tensor, scale: float) -> Tensor:
    """The formula in PyTorch."""
    import torch

    weights = torch.softmax(sum(bias, scale * q @ k.transpose(-2, -1)), dim=-1)
    return (weights.masked_fill(weights.isnan(), 0) if "guarded" in variant else weights) @ v


def cases() -> Sequence[Case]:
    """Modules that must match and modules that must not."""
    from edgeattn.ops.softmax_attention_cases import CASES

    return CASES


OP = AttentionOp(NAME, "arXiv 1706.03762; 1711.07971, 1805.08318 for maps", find, function, reference, cases)
