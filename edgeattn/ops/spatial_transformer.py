"""SpatialTransformer: a map sampled where an affine matrix, one for each sample, puts a regular grid.

    SpatialTransformer(x, theta, xs, ys) = grid_sample(x, grid)
    grid[b, h, w] = theta[b] (xs[w], ys[h], 1)

x (B, C, H, W), theta (B, 2, 3), xs (W'), ys (H'), y (B, C, H', W'). The positions xs and ys are operands, fixed or
computed from dynamic sizes, so every spelling of the grid keeps its own numbers, and a grid with other corners than
the sampler's (`align_corners`), or of another size than x, needs no form of its own. Attributes: `mode` in the words
of the graph's opset (bilinear, bicubic; linear, cubic from 20 on; nearest), `padding_mode` (zeros, border,
reflection) and `align_corners` of GridSample. No variants. The network that computes theta stays outside.

Coordinates are equal up to rounding, as with any other order of a sum; `nearest` may round a tie to the other side.

Source: Jaderberg et al., "Spatial Transformer Networks", 2015, arXiv 1506.02025, section 3, equations 1 to 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from edgeattn.ops import walk
from edgeattn.ops.base import AttentionOp, Case, Facts, Match, Miss
from edgeattn.ops.layers import Unlike, itemsize, sizes
from edgeattn.ops.spatial_transformer_search import Affine, affine

if TYPE_CHECKING:
    from torch import Tensor

NAME = "SpatialTransformer"
TAPS = {"nearest": 1, "bilinear": 4, "linear": 4, "bicubic": 16, "cubic": 16}
PADDING = ("zeros", "border", "reflection")
RENAMED = 20  # the opset in which GridSample's modes got other names


def function(variant: str) -> str:
    """The body; there is one."""
    return """
        SpatialTransformer <mode, padding_mode, align_corners> (x, theta, xs, ys) => (y) {
            second = Constant <value_ints = [1]> ()
            last = Constant <value_ints = [3]> ()
            planes = Unsqueeze (theta, last)
            across, down, shift = Split <axis = 2, num_outputs = 3> (planes)
            rows = Unsqueeze (ys, second)
            moved = Mul (down, rows)
            start = Add (moved, shift)
            step = Mul (across, xs)
            both = Add (step, start)
            grid = Transpose <perm = [0, 2, 3, 1]> (both)
            y = GridSample <mode: string = @mode, padding_mode: string = @padding_mode,
                            align_corners: int = @align_corners> (x, grid)
        }"""


def reference(
    variant: str,
    x: Tensor,
    theta: Tensor,
    xs: Tensor,
    ys: Tensor,
    *,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: int = 0,
) -> Tensor:
    """The formula in PyTorch."""
    import torch
    from torch.nn import functional as F

    y, x_ = torch.meshgrid(ys, xs, indexing="ij")
    grid = torch.einsum("bkj,hwj->bhwk", theta, torch.stack([x_, y, torch.ones_like(y)], -1))
    known = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    return F.grid_sample(x, grid, known, padding_mode, bool(align_corners))


def find(graph: ir.Graph) -> Iterator[Match | Miss]:
    """From every GridSample, back through its grid to a matrix and fixed positions."""
    for node in graph:
        if node.op_type == "GridSample" and not node.domain:
            try:
                yield _match(node, graph.opset_imports.get("", 1))
            except Unlike as err:
                yield Miss(NAME, node, (node,), str(err))


def _match(node: ir.Node, opset: int) -> Match:
    x, grid = node.inputs[:2]
    shape = walk.dims(x)
    if x is None or grid is None or shape is None or len(shape) != 4:
        raise Unlike(f"{node.name} samples a tensor of shape {shape}, expected a map (B, C, H, W)")
    words = {name: node.attributes[name].as_string() for name in ("mode", "padding_mode") if name in node.attributes}
    words = {"mode": "linear" if opset >= RENAMED else "bilinear", "padding_mode": "zeros", **words}
    if words["mode"] not in TAPS or words["padding_mode"] not in PADDING:
        raise Unlike(f"{node.name} samples with {words}, expected one of {sorted(TAPS)} and one of {PADDING}")
    found = affine(grid, shape[0])
    return Match(
        NAME,
        "",
        node,
        tuple(walk.between(node.outputs[0], {x, found.source})),
        node.outputs[0],
        lambda tape: [x, found.theta(tape), found.xs(tape), found.ys(tape)],
        {**words, "align_corners": walk.integer(node, "align_corners", 0)},
        _facts(x, grid, words["mode"], found),
    )


def _facts(x: ir.Value, grid: ir.Value, mode: str, found: Affine) -> Facts:
    named = {**sizes(x, "batch", "channels", "height", "width"), "taps": TAPS[mode]}
    outputs = sizes(grid, "batch", "output height", "output width")
    named |= {name: size for name, size in outputs.items() if name != "batch"}
    C, H, W, h, w = (named.get(name) for name in ("channels", "height", "width", "output height", "output width"))
    if not (isinstance(C, int) and isinstance(H, int) and isinstance(W, int)):
        return Facts(named)
    if not (isinstance(h, int) and isinstance(w, int)):
        return Facts(named)
    moved, whole = itemsize(x) * C * (H * W + h * w), itemsize(found.source)
    return Facts(
        named,
        flops=h * w * (4 + 2 * C * TAPS[mode]),
        bytes_decomposed=moved + whole * 8 * h * w,
        bytes_fused=moved + whole * (6 + h + w),
    )


def cases() -> Sequence[Case]:
    """Modules that must match and that must not."""
    from edgeattn.ops.spatial_transformer_cases import CASES

    return CASES


OP = AttentionOp(NAME, "arXiv 1506.02025", find, function, reference, cases, maps=("grid",))
