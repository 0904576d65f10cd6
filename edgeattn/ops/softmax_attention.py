"""SoftmaxAttention: every query takes a weighted mean of the values, weighted by how well their keys fit.

    SoftmaxAttention(q, k, v[, bias]) = softmax(scale * q k^T + bias) v

q (B, H, N, d), k (B, H or 1, M, d), v (B, H or 1, M, e), bias broadcastable to (B, H, N, M); y (B, H, N, e). The
softmax runs over the M keys. Self and cross, single and multi head, grouped keys, masks (a bias of 0 and -inf),
relative positions and image layouts all come to this. A variant says what there is more, in this order:

    bias        what is added to the scores; it may have a wider type than q, then it is added in that
    filled      an input `keep` of truth values; where it is false, `fill` replaces the score (masks of -1e9 or -100)
    guarded     a query whose weights are not numbers, since all its keys are masked by -inf, yields zeros, as in
                PyTorch's scaled_dot_product_attention
    f32softmax  the softmax runs in float32, whatever the types of q and v

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
    """The body for any of `bias`, `filled`, `guarded` and `f32softmax`, joined by hyphens."""
    has = variant.split("-")
    wide = "f32softmax" in has
    inputs = ["q", "k", "v", *(["bias"] if "bias" in has else []), *(["keep"] if "filled" in has else [])]
    steps, scores, weights = [], "scores", "weights"
    if "bias" in has:
        steps += ["typed = CastLike (scores, bias)"] if wide else []
        steps += [f"biased = Add ({'typed' if wide else 'scores'}, bias)"]
        scores = "biased"
    if wide:
        steps, scores = [*steps, f"wide = Cast <to = 1> ({scores})"], "wide"
    if "filled" in has:
        steps += ["number = Constant <value_float: float = @fill> ()", f"lowest = CastLike (number, {scores})"]
        steps, scores = [*steps, f"filled = Where (keep, {scores}, lowest)"], "filled"
    steps += [f"weights = Softmax <axis = -1> ({scores})"]
    if "guarded" in has:
        steps += ["failed = IsNaN (weights)", "zero = Constant <value_float = 0.0> ()"]
        steps += ["none = CastLike (zero, weights)", "safe = Where (failed, none, weights)"]
        weights = "safe"
    if wide:
        steps, weights = [*steps, f"narrow = CastLike ({weights}, v)"], "narrow"
    lines = "\n            ".join(steps)
    return f"""
        SoftmaxAttention <scale{", fill" if "filled" in has else ""}> ({", ".join(inputs)}) => (y) {{
            factor = Constant <value_float: float = @scale> ()
            scale = CastLike (factor, q)
            scaled = Mul (q, scale)
            turned = Transpose <perm = [0, 1, 3, 2]> (k)
            scores = MatMul (scaled, turned)
            {lines}
            y = MatMul ({weights}, v)
        }}"""


def reference(variant: str, q: Tensor, k: Tensor, v: Tensor, *more: Tensor, scale: float, fill: float = 0.0) -> Tensor:
    """The formula in PyTorch."""
    import torch

    has, rest = variant.split("-"), list(more)
    scores = scale * q @ k.transpose(-2, -1)
    if "bias" in has:
        bias = rest.pop(0)
        scores = scores.to(bias.dtype) + bias
    if "f32softmax" in has:
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if "filled" in has:
        scores = scores.masked_fill(~rest.pop(0), fill)
    weights = torch.softmax(scores, dim=-1)
    return (weights.masked_fill(weights.isnan(), 0) if "guarded" in has else weights).to(v.dtype) @ v


def cases() -> Sequence[Case]:
    """Modules that must match and modules that must not."""
    from edgeattn.ops.softmax_attention_cases import CASES

    return CASES


OP = AttentionOp(
    NAME, "arXiv 1706.03762; 1711.07971, 1805.08318 for maps", find, function, reference, cases, maps=("weights",)
)
