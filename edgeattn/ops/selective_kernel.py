"""SelectiveKernel: a weighted sum of branches, the weights chosen for each channel by a softmax across the branches.

    SelectiveKernel(u_1, ..., u_M, w1, b1, w2, b2) = sum_m a_m * u_m
    a = softmax_m(W2 act(W1 mean_hw(sum_m u_m) + b1) + b2)

u_m (B, C, H, W), w1 (R, C), b1 (R), w2 (M C, R), b2 (M C): the logits of branch m are rows m C to (m + 1) C - 1.
Variants "M-ACT": 2 to 8 branches; relu, silu, gelu, hardswish or identity. Normalisation in inference is folded in.

Source: Li et al., "Selective Kernel Networks", 2019, arXiv 1903.06586, section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from edgeattn.ops.activations import activate, activation_text
from edgeattn.ops.base import AttentionOp, Case, Match, Miss
from edgeattn.ops.layers import Unlike
from edgeattn.ops.selective_kernel_search import match

if TYPE_CHECKING:
    from torch import Tensor


def function(variant: str) -> str:
    """The body of a variant."""
    number, _, act = variant.partition("-")
    count = int(number)
    branches = [f"u{branch}" for branch in range(count)]
    sums = ["u0", *(f"sum{branch}" for branch in range(1, count))]
    adds = "\n".join(f"sum{m} = Add ({sums[m - 1]}, u{m})" for m in range(1, count))
    parts = "\n".join(f"column{m} = Reshape (a{m}, column)\npart{m} = Mul (u{m}, column{m})" for m in range(count))
    totals = ["part0", *(f"total{branch}" for branch in range(1, count - 1)), "y"]
    ends = "\n".join(f"{totals[m]} = Add ({totals[m - 1]}, part{m})" for m in range(1, count))
    return f"""
        SelectiveKernel ({", ".join(branches)}, w1, b1, w2, b2) => (y) {{
            places = Constant <value_ints = [2, 3]> ()
            rows = Constant <value_ints = [0, {count}, -1]> ()
            column = Constant <value_ints = [0, -1, 1, 1]> ()
            {adds}
            mean = ReduceMean <keepdims = 0> ({sums[-1]}, places)
            h = Gemm <transB = 1> (mean, w1, b1)
            {activation_text(act, "h", "active")}
            flat = Gemm <transB = 1> (active, w2, b2)
            logits = Reshape (flat, rows)
            a = Softmax <axis = 1> (logits)
            {", ".join(f"a{m}" for m in range(count))} = Split <axis = 1, num_outputs = {count}> (a)
            {parts}
            {ends}
        }}"""


def reference(variant: str, *inputs: Tensor) -> Tensor:
    """The formula in PyTorch."""
    import torch
    from torch.nn import functional as F

    branches, (w1, b1, w2, b2) = torch.stack(inputs[:-4], dim=1), inputs[-4:]
    logits = F.linear(activate(variant.partition("-")[2], F.linear(branches.sum(1).mean((2, 3)), w1, b1)), w2, b2)
    weights = torch.softmax(logits.view(*branches.shape[:3], 1, 1), dim=1)
    return (branches * weights).sum(1)


def find(graph: ir.Graph) -> Iterator[Match | Miss]:
    """From every sum, back to products of branches with parts of one softmax, and from there to the branches again."""
    for node in graph:
        if node.op_type in ("ReduceSum", "Add", "Sum") and not node.domain:
            try:
                found = match(node)
            except Unlike as err:
                yield Miss("SelectiveKernel", node, (node,), str(err))
                continue
            if found is not None:
                yield found


def cases() -> Sequence[Case]:
    """Modules that must match and that must not."""
    from edgeattn.ops.selective_kernel_cases import CASES

    return CASES


OP = AttentionOp("SelectiveKernel", "arXiv 1903.06586", find, function, reference, cases, maps=("a",))
