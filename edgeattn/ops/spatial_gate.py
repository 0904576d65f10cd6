"""SpatialGate: one weight for each position, from what the channels agree on.

    SpatialGate(x, w, b) = x * gate(conv(cat(mean_c x, max_c x), w) + b)

x (B, C, H, W); w (1, 2, k, k), b (1): the convolution keeps H and W. A normalisation between convolution and gate is
an affine map of one channel and is folded into w and b. Variants by gate: sigmoid, hardsigmoid, tanh, and each "+1",
x * (1 + gate), as residual gates have it. The variants
"conv-GATE" (w (1, C, 1, 1)) weigh a position by all its channels: x * gate(conv(x, w) + b).

Source: Woo et al., "CBAM: Convolutional Block Attention Module", 2018, arXiv 1807.06521, section 3, equation 3; for
"conv-GATE" Roy et al., "Concurrent Spatial and Channel Squeeze & Excitation", 2018, arXiv 1803.02579, section 2.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from edgeattn.ops import walk
from edgeattn.ops.activations import activate, gate, gate_text
from edgeattn.ops.base import AttentionOp, Case, Facts, Match, Miss
from edgeattn.ops.layers import Layer, Unlike, elements, itemsize, layer, sizes, unspread, weighed_maps

if TYPE_CHECKING:
    from torch import Tensor

    from edgeattn.tensors import Array

PLANES = {"ReduceMean": "mean", "ReduceMax": "max"}


def function(variant: str) -> str:
    """The body of a variant."""
    kind = variant.removeprefix("conv-")
    if kind != variant:
        return f"""
            SpatialGate (x, w, b) => (y) {{
                z = Conv (x, w, b)
                {gate_text(kind, "z", "weights")}
                y = Mul (x, weights)
            }}"""
    return f"""
        SpatialGate <pads, kernel_shape> (x, w, b) => (y) {{
            channels = Constant <value_ints = [1]> ()
            mean = ReduceMean <keepdims = 1> (x, channels)
            max = ReduceMax <keepdims = 1> (x, channels)
            both = Concat <axis = 1> (mean, max)
            z = Conv <kernel_shape: ints = @kernel_shape, pads: ints = @pads> (both, w, b)
            {gate_text(kind, "z", "weights")}
            y = Mul (x, weights)
        }}"""


def reference(variant: str, x: Tensor, w: Tensor, b: Tensor, **window: Sequence[int]) -> Tensor:
    """The formula in PyTorch; `window` holds the convolution's `pads` and `kernel_shape`."""
    import torch
    from torch.nn import functional as F

    kind = variant.removeprefix("conv-")
    if kind != variant:
        return x * activate(kind, F.conv2d(x, w, b))
    top, left, bottom, right = window["pads"]
    both = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
    return x * activate(kind, F.conv2d(F.pad(both, (left, right, top, bottom)), w, b))


# Search


def find(graph: ir.Graph) -> Iterator[Match | Miss]:
    """From every product of a map and a plane, back through gate and convolution to the map."""
    return weighed_maps(graph, "SpatialGate", _match)


def _match(node: ir.Node, x: ir.Value, weights: ir.Value) -> Match | None:
    expand = walk.made_by(weights, "Expand")
    inner = weights if expand is None else expand.inputs[0]
    found = gate(inner) if inner is not None and (walk.dims(inner) or ())[1:2] == (1,) else None
    convolution = layer(found[1]) if found is not None else None
    if found is None or convolution is None or convolution.weight.ndim != 4 or convolution.weight.shape[0] != 1:
        return None
    kind = found[0]
    attributes: dict[str, Sequence[int]] = {}
    if convolution.source is x and convolution.pointwise is not None:
        variant, weight = f"conv-{kind}", convolution.weight
    else:
        source = walk.made_by(convolution.source, "Concat", *PLANES, "Unsqueeze")
        planes = [] if source is None else _planes(source, convolution.source)
        if not planes:
            return None
        variant, weight, attributes = kind, *_two_planes(convolution, planes, x)
    unspread(weights, x)
    return Match(
        "SpatialGate",
        variant,
        node,
        tuple(walk.between(node.outputs[0], {x})),
        node.outputs[0],
        lambda tape: [x, tape.constant(weight), tape.constant(convolution.bias)],
        attributes,
        _facts(x, weight),
    )


def _planes(node: ir.Node, value: ir.Value) -> list[tuple[str, tuple[int, ...], ir.Value]]:
    """(mean or max, axes, map) of what a convolution reads; empty where something else is among it."""
    values = node.inputs if node.op_type == "Concat" else [value]
    if node.op_type == "Concat" and walk.integer(node, "axis", 0) not in (1, -3):
        return []
    planes = [_plane(item) for item in values if item is not None]
    return [] if None in planes else [plane for plane in planes if plane is not None]


def _plane(value: ir.Value) -> tuple[str, tuple[int, ...], ir.Value] | None:
    shape = walk.dims(value)
    lifted = walk.made_by(value, "Unsqueeze", "Reshape")
    if lifted is not None and lifted.inputs[0] is not None:
        before = walk.dims(lifted.inputs[0])
        if shape is None or before is None or None in before or shape != (before[0], 1, *before[1:]):
            return None
        value = lifted.inputs[0]
    node = walk.made_by(value, *PLANES)
    before = walk.dims(node.inputs[0]) if node is not None else None
    axes = walk.axes_of(node, len(before)) if node is not None and before is not None else None
    if node is None or axes is None or before is None or node.inputs[0] is None or len(before) != 4:
        return None
    if (lifted is None) != bool(walk.integer(node, "keepdims", 1)):
        return None
    return PLANES[node.op_type], axes, node.inputs[0]


def _two_planes(
    convolution: Layer, planes: list[tuple[str, tuple[int, ...], ir.Value]], x: ir.Value
) -> tuple[Array, dict[str, Sequence[int]]]:
    """(weight in the order mean, max; attributes) of a convolution of the mean and the maximum of x."""
    kinds = [kind for kind, _, _ in planes]
    if sorted(kinds) != ["max", "mean"]:
        raise Unlike(f"the convolution reads {' and '.join(kinds)} over the channels, expected mean and max")
    for kind, axes, source in planes:
        if axes != (1,):
            raise Unlike(f"the {kind} is over axes {axes}, expected the channels, (1,)")
        if source is not x:
            raise Unlike(
                f"the gate reads the {kind} of {source.name!r} but weighs {x.name!r}, expected the same tensor"
            )
    window, kernel = convolution.window, convolution.weight.shape[2:]
    pads = window["pads"]
    kept = all(pads[axis] + pads[axis + 2] == kernel[axis] - 1 for axis in (0, 1))
    if not kept or set(window["strides"] + window["dilations"]) != {1}:
        raise Unlike(f"the convolution {kernel} has {window}, expected one that keeps the map's size, undilated")
    if walk.integer(convolution.node, "group", 1) != 1:
        raise Unlike("the convolution is grouped, expected one group")
    weight = convolution.weight[:, [kinds.index("mean"), kinds.index("max")]]
    return weight, {"pads": pads, "kernel_shape": kernel}


def _facts(x: ir.Value, weight: Array) -> Facts:
    named = {**sizes(x, "batch", "channels", "height", "width"), "kernel": weight.shape[2]}
    count, area, width = elements(x), elements(x), itemsize(x)
    if count is None or area is None:
        return Facts(named)
    area = count // int(named["channels"])
    planes = weight.shape[1] if weight.shape[2] > 1 or weight.shape[1] == 2 else 0
    return Facts(
        named,
        flops=(1 + planes) * count + 2 * area * weight.size,
        bytes_decomposed=width * ((2 + max(planes, 1)) * count + (4 * planes + 3) * area),
        bytes_fused=width * (2 * count + weight.size),
    )


def cases() -> Sequence[Case]:
    """Modules that must match and that must not."""
    from edgeattn.ops.spatial_gate_cases import CASES

    return CASES


OP = AttentionOp("SpatialGate", "arXiv 1807.06521, 1803.02579", find, function, reference, cases, maps=("weights",))
