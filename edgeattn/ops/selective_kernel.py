"""SelectiveKernel: a weighted sum of branches, the weights chosen for each channel by a softmax across the branches.

    SelectiveKernel(u_1, ..., u_M, w1, b1, w2, b2) = sum_m a_m * u_m
    a = softmax_m(W2 act(W1 mean_hw(sum_m u_m) + b1) + b2)

u_m (B, C, H, W), w1 (R, C), b1 (R), w2 (M C, R), b2 (M C): the logits of branch m are rows m C to (m + 1) C - 1.
Variants "M-ACT": 2 to 8 branches; relu, silu, gelu, hardswish or identity. Normalisation in inference is folded in.
"stack-M-ACT" takes branches that are one tensor already, u (B, M, C, H, W), in the place of all u_m.

Source: Li et al., "Selective Kernel Networks", 2019, arXiv 1903.06586, section 3.1; Zhang et al., "ResNeSt", 2020,
arXiv 2004.08955, section 3.1, with one cardinal group (stack).
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


def _count(variant: str) -> int:
    return int(variant.removeprefix("stack-").partition("-")[0])


def function(variant: str) -> str:
    """The body of a variant."""
    count, act, stacked = _count(variant), variant.rpartition("-")[2], variant.startswith("stack-")
    branches = ["u"] if stacked else [f"u{branch}" for branch in range(count)]
    total, choice = _stacked_text() if stacked else _separate_text(count)
    return f"""
        SelectiveKernel ({", ".join(branches)}, w1, b1, w2, b2) => (y) {{
            places = Constant <value_ints = [2, 3]> ()
            rows = Constant <value_ints = [0, {count}, -1]> ()
            {total}
            mean = ReduceMean <keepdims = 0> (sum, places)
            h = Gemm <transB = 1> (mean, w1, b1)
            {activation_text(act, "h", "active")}
            flat = Gemm <transB = 1> (active, w2, b2)
            logits = Reshape (flat, rows)
            a = Softmax <axis = 1> (logits)
            {choice}
        }}"""


def _stacked_text() -> tuple[str, str]:
    """The sum of all branches, and their weighted sum, of one tensor."""
    total = "over = Constant <value_ints = [1]> ()\nsum = ReduceSum <keepdims = 0> (u, over)"
    choice = """
            ends = Constant <value_ints = [3, 4]> ()
            columns = Unsqueeze (a, ends)
            parts = Mul (u, columns)
            y = ReduceSum <keepdims = 0> (parts, over)"""
    return total, choice


def _separate_text(count: int) -> tuple[str, str]:
    """The same of one tensor for each branch."""
    sums = ["u0", *(f"sum{branch}" for branch in range(1, count - 1)), "sum"]
    adds = "\n".join(f"{sums[m]} = Add ({sums[m - 1]}, u{m})" for m in range(1, count))
    parts = "\n".join(f"column{m} = Reshape (a{m}, column)\npart{m} = Mul (u{m}, column{m})" for m in range(count))
    totals = ["part0", *(f"total{branch}" for branch in range(1, count - 1)), "y"]
    ends = "\n".join(f"{totals[m]} = Add ({totals[m - 1]}, part{m})" for m in range(1, count))
    choice = f"""
            column = Constant <value_ints = [0, -1, 1, 1]> ()
            {", ".join(f"a{m}" for m in range(count))} = Split <axis = 1, num_outputs = {count}> (a)
            {parts}
            {ends}"""
    return adds, choice


def reference(variant: str, *inputs: Tensor) -> Tensor:
    """The formula in PyTorch."""
    import torch
    from torch.nn import functional as F

    w1, b1, w2, b2 = inputs[-4:]
    branches = inputs[0] if variant.startswith("stack-") else torch.stack(inputs[:-4], dim=1)
    logits = F.linear(activate(variant.rpartition("-")[2], F.linear(branches.sum(1).mean((2, 3)), w1, b1)), w2, b2)
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


OP = AttentionOp("SelectiveKernel", "arXiv 1903.06586, 2004.08955", find, function, reference, cases, maps=("a",))
