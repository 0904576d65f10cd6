"""AttentionPool: items summed with weights that a softmax over the items gives.

    AttentionPool(scores, x)_m = sum_n softmax_n(scores_m)_n * x_n

Two variants for weights that all numbers of an item share, so that x, the large tensor, is never transposed; M
weighted sums are made at once:

    "items" scores (B, M, N), x (B, N, C), y (B, M, C)
    "map"   scores (B, N, M), x (B, C, N), y (B, C, M)

There may be more leading axes, and they broadcast as those of MatMul. Where an item has several weights, one for each
place or channel, x stays as it lies:

    "along-K" the items lie on axis -K of x; scores have the rank of x, and size 1 where numbers share a weight; y is x
              without that axis

The scores may be of another float type than x; then the weights are cast to that of x. What computes the scores stays
outside.

Source: Ilse et al., "Attention-based Deep Multiple Instance Learning", 2018, arXiv 1802.04712, equation 7; Cao et al.,
"GCNet", 2019, arXiv 1904.11492, equation 6 (over the places of a map); Chen et al., "Attention to Scale", 2016, arXiv
1511.03339, equation 2 ("along", over scales); Mehta and Rastegari, "Separable Self-attention", 2022, arXiv 2206.02680,
equation 4 ("along", over the patches).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgeattn.ops.attention_pool_search import find
from edgeattn.ops.base import AttentionOp, Case

if TYPE_CHECKING:
    from torch import Tensor

_PRODUCTS = {"items": (-1, "weights, x"), "map": (-2, "x, weights")}  # axis of the softmax, operands


def function(variant: str) -> str:
    """The body of a variant."""
    if variant not in _PRODUCTS:
        axis = -int(variant.removeprefix("along-"))
        return f"""
            AttentionPool (scores, x) => (y) {{
                over = Constant <value_ints = [{axis}]> ()
                shares = Softmax <axis = {axis}> (scores)
                weights = CastLike (shares, x)
                weighed = Mul (weights, x)
                y = ReduceSum <keepdims = 0> (weighed, over)
            }}"""
    axis, product = _PRODUCTS[variant]
    return f"""
        AttentionPool (scores, x) => (y) {{
            shares = Softmax <axis = {axis}> (scores)
            weights = CastLike (shares, x)
            y = MatMul ({product})
        }}"""


def reference(variant: str, scores: Tensor, x: Tensor) -> Tensor:
    """The formula in PyTorch."""
    if variant == "items":
        return scores.softmax(-1).to(x.dtype) @ x
    if variant == "map":
        return x @ scores.softmax(-2).to(x.dtype)
    axis = -int(variant.removeprefix("along-"))
    return (scores.softmax(axis).to(x.dtype) * x).sum(axis)


def cases() -> Sequence[Case]:
    """Modules that must match and that must not."""
    from edgeattn.ops.attention_pool_cases import CASES

    return CASES


OP = AttentionOp(
    "AttentionPool",
    "arXiv 1802.04712, 1904.11492, 1511.03339, 2206.02680",
    find,
    function,
    reference,
    cases,
    maps=("shares",),
)
