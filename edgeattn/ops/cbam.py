"""CBAM: a channel gate, and a spatial gate on what it lets through, as one node.

    CBAM(x, w1, b1, w2, b2, w, b) = SpatialGate(ChannelGate(x, w1, b1, w2, b2), w, b)

x (B, C, H, W), w1 (R, C), b1 (R), w2 (C, R), b2 (C), w (1, 2, k, k), b (1); the channel gate pools mean and maximum,
both gates are sigmoids. Variants by the MLP's activation: relu, silu, gelu, hardswish, identity.

Source: Woo et al., "CBAM: Convolutional Block Attention Module", 2018, arXiv 1807.06521, equation 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from edgeattn.ops.activations import activate, activation_text
from edgeattn.ops.base import DOMAIN, AttentionOp, Case, Facts, Match, Miss
from edgeattn.ops.layers import elements, itemsize, sizes

if TYPE_CHECKING:
    from torch import Tensor


def function(variant: str) -> str:
    """The body of a variant."""
    return f"""
        CBAM <pads, kernel_shape> (x, w1, b1, w2, b2, w, b) => (y) {{
            places = Constant <value_ints = [2, 3]> ()
            channels = Constant <value_ints = [1]> ()
            avg = ReduceMean <keepdims = 0> (x, places)
            avg_in = Gemm <transB = 1> (avg, w1, b1)
            {activation_text(variant, "avg_in", "avg_act")}
            avg_out = Gemm <transB = 1> (avg_act, w2, b2)
            peak = ReduceMax <keepdims = 0> (x, places)
            peak_in = Gemm <transB = 1> (peak, w1, b1)
            {activation_text(variant, "peak_in", "peak_act")}
            peak_out = Gemm <transB = 1> (peak_act, w2, b2)
            sum = Add (avg_out, peak_out)
            channel = Sigmoid (sum)
            channel_weights = Unsqueeze (channel, places)
            gated = Mul (x, channel_weights)
            mean_plane = ReduceMean <keepdims = 1> (gated, channels)
            max_plane = ReduceMax <keepdims = 1> (gated, channels)
            planes = Concat <axis = 1> (mean_plane, max_plane)
            z = Conv <kernel_shape: ints = @kernel_shape, pads: ints = @pads> (planes, w, b)
            place_weights = Sigmoid (z)
            y = Mul (gated, place_weights)
        }}"""


def reference(variant: str, x: Tensor, *weights: Tensor, **window: Sequence[int]) -> Tensor:
    """The formula in PyTorch; `window` holds the convolution's `pads` and `kernel_shape`."""
    import torch
    from torch.nn import functional as F

    w1, b1, w2, b2, w, b = weights
    outs = [F.linear(activate(variant, F.linear(pool, w1, b1)), w2, b2) for pool in (x.mean((2, 3)), x.amax((2, 3)))]
    gated = x * torch.sigmoid(outs[0] + outs[1])[:, :, None, None]
    top, left, bottom, right = window["pads"]
    planes = F.pad(
        torch.cat([gated.mean(1, keepdim=True), gated.amax(1, keepdim=True)], dim=1), (left, right, top, bottom)
    )
    return gated * torch.sigmoid(F.conv2d(planes, w, b))


def find(graph: ir.Graph) -> Iterator[Match | Miss]:
    """From every spatial gate to a channel gate that only it reads."""
    for node in graph:
        channel = node.inputs[0].producer() if _is(node, "SpatialGate", "sigmoid") and node.inputs[0] else None
        if channel is None or channel.op_type != "ChannelGate" or channel.domain != DOMAIN:
            continue
        pool, act, *gates = channel.overload.split("-")
        gated = channel.outputs[0]
        if pool == "avgmax" and gates == ["sigmoid"] and len(gated.uses()) == 1 and not gated.is_graph_output():
            yield _match(channel, node, act)


def _is(node: ir.Node, name: str, variant: str) -> bool:
    return (node.domain, node.op_type, node.overload) == (DOMAIN, name, variant)


def _match(channel: ir.Node, spatial: ir.Node, act: str) -> Match:
    window = {name: spatial.attributes[name].as_ints() for name in ("pads", "kernel_shape")}
    operands = [value for value in (*channel.inputs, *spatial.inputs[1:]) if value is not None]
    x = operands[0]
    return Match(
        "CBAM",
        act,
        channel,
        (channel, spatial),
        spatial.outputs[0],
        lambda tape: operands,
        window,
        _facts(x, operands[1:], window["kernel_shape"]),
    )


def _facts(x: ir.Value, weights: Sequence[ir.Value], kernel: Sequence[int]) -> Facts:
    named = {**sizes(x, "batch", "channels", "height", "width"), "kernel": kernel[0]}
    if (shape := weights[0].shape) is not None and isinstance(shape[0], int):
        named["reduced"] = shape[0]
    count, width = elements(x), itemsize(x)
    if count is None:
        return Facts(named)
    numbers = [value.const_value.size for value in weights if value.const_value is not None]
    area = count // int(named["channels"])
    return Facts(
        named,
        flops=6 * count + 4 * sum(numbers[:4]) + 2 * area * numbers[4],
        bytes_decomposed=width * (8 * count + 11 * area + sum(numbers)),
        bytes_fused=width * (2 * count + sum(numbers)),
    )


def cases() -> Sequence[Case]:
    """Modules that must match and that must not."""
    from edgeattn.ops.cbam_cases import CASES

    return CASES


OP = AttentionOp("CBAM", "arXiv 1807.06521", find, function, reference, cases, maps=("channel", "place_weights"))
