"""ChannelGate: one weight for each channel, from the channels' means or maxima over the map.

    ChannelGate(x, w1, b1, w2, b2) = x * gate(W2 act(W1 pool(x) + b1) + b2)

x (B, C, H, W), w1 (R, C), b1 (R), w2 (C, R), b2 (C). Variants "POOL-ACT-GATE": POOL is avg, max, or avgmax, where one
MLP serves both and the results are added before the gate; ACT relu, silu, gelu, hardswish, identity; GATE sigmoid,
hardsigmoid (slope 1/6), tanh. Two have fewer layers:

    "ese-GATE" (x, w, b) = x * gate(W mean(x) + b), w (C, C), b (C)
    "eca-GATE" (x, w) = x * gate(w * mean(x)), a convolution over the channels, w (1, 1, k), zeros outside

Normalisation in inference is folded into the weights; a missing bias is zero.

Source: Hu et al., "Squeeze-and-Excitation Networks", arXiv 1709.01507, equations 2 to 4; Woo et al., "CBAM",
arXiv 1807.06521, equation 2 (avgmax); Wang et al., "ECA-Net", arXiv 1910.03151, equation 7; Lee and Park,
"CenterMask", arXiv 1911.06667, section 3.4 (effective SE).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from edgeattn.ops import walk
from edgeattn.ops.activations import activate, activation, activation_text, gate, gate_text
from edgeattn.ops.base import AttentionOp, Case, Facts, Match, Miss
from edgeattn.ops.layers import (
    POOLS,
    Unlike,
    bare,
    channel_axis,
    elements,
    itemsize,
    layer,
    pooled,
    sizes,
    unspread,
    vector,
)

if TYPE_CHECKING:
    from torch import Tensor

    from edgeattn.tensors import Array


def function(variant: str) -> str:
    """The body of a variant."""
    kind, *words = variant.split("-")
    layers = {"eca": _eca_text, "ese": _ese_text}.get(kind, _mlp_text)(kind, *words[:-1])
    header = {"eca": "ChannelGate <pads> (x, w)", "ese": "ChannelGate (x, w, b)"}
    return f"""
        {header.get(kind, "ChannelGate (x, w1, b1, w2, b2)")} => (y) {{
            places = Constant <value_ints = [2, 3]> ()
            channels = Constant <value_ints = [1]> ()
            {layers}
            {gate_text(words[-1], "z", "weights")}
            spread = Unsqueeze (weights, places)
            y = Mul (x, spread)
        }}"""


def _eca_text(kind: str) -> str:
    return """
        avg = ReduceMean <keepdims = 0> (x, places)
        row = Unsqueeze (avg, channels)
        mixed = Conv <pads: ints = @pads> (row, w)
        z = Squeeze (mixed, channels)"""


def _ese_text(kind: str) -> str:
    return """
        avg = ReduceMean <keepdims = 0> (x, places)
        z = Gemm <transB = 1> (avg, w, b)"""


def _mlp_text(kind: str, act: str) -> str:
    pools = {"avg": ["avg"], "max": ["max"], "avgmax": ["avg", "max"]}[kind]
    lines = ""
    for pool in pools:
        operator = {"avg": "ReduceMean", "max": "ReduceMax"}[pool]
        lines += f"""
            {pool} = {operator} <keepdims = 0> (x, places)
            {pool}_in = Gemm <transB = 1> ({pool}, w1, b1)
            {activation_text(act, f"{pool}_in", f"{pool}_act")}
            {pool}_out = Gemm <transB = 1> ({pool}_act, w2, b2)"""
    return lines + ("\nz = Add (avg_out, max_out)" if len(pools) == 2 else f"\nz = Identity ({pools[0]}_out)")


def reference(variant: str, x: Tensor, *weights: Tensor, pads: Sequence[int] = ()) -> Tensor:
    """The formula in PyTorch; `pads` are those of the convolution of `eca`."""
    from torch.nn import functional as F

    kind, *words = variant.split("-")
    mean = x.mean((2, 3))
    if kind == "eca":
        z = F.conv1d(F.pad(mean[:, None], tuple(pads)), weights[0])[:, 0]
    elif kind == "ese":
        z = F.linear(mean, *weights)
    else:
        w1, b1, w2, b2 = weights
        pools = {"avg": [mean], "max": [x.amax((2, 3))], "avgmax": [mean, x.amax((2, 3))]}[kind]
        outs = [F.linear(activate(words[0], F.linear(pool, w1, b1)), w2, b2) for pool in pools]
        z = sum(outs[1:], outs[0])
    return x * activate(words[-1], z)[:, :, None, None]


# Search


def find(graph: ir.Graph) -> Iterator[Match | Miss]:
    """From every product of a map and a vector, back through gate, layers and pooling to the map."""
    for node in graph:
        if node.op_type != "Mul" or node.domain:
            continue
        for x, weights in (node.inputs, node.inputs[::-1]):
            if x is None or weights is None or not _near(x, weights):
                continue
            try:
                yield _match(node, x, weights)
            except Unlike as err:
                yield Miss("ChannelGate", node, (node,), str(err))
            break


def _near(x: ir.Value, weights: ir.Value) -> bool:
    """Whether channels of a map are weighed by a vector that comes from a pooling or attention over a map."""
    expand = walk.made_by(weights, "Expand")
    weights = expand.inputs[0] if expand is not None and expand.inputs[0] is not None else weights
    shape, channels = walk.dims(x), vector(weights)
    if shape is None or len(shape) != 4 or channels is None or shape[1] != channels or shape[2:] == (1, 1):
        return False
    if len(walk.dims(weights) or ()) != 4 or channel_axis(weights) != 1:
        return False
    waiting, seen = [weights], set()
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if node is None or value in seen:
            continue
        seen.add(value)
        inputs = [item for item in node.inputs if item is not None and item.const_value is None]
        maps = [item for item in inputs if item is x or vector(item) is None]
        if node.op_type in POOLS and maps:
            return True
        if node.op_type == "MatMul" and any(_softmax(item) for item in inputs):
            return True
        waiting += [item for item in inputs if item not in maps]
    return False


def _softmax(value: ir.Value) -> bool:
    while (node := walk.made_by(value, "Reshape", "Unsqueeze", "Squeeze", "Transpose")) and node.inputs[0] is not None:
        value = node.inputs[0]
    return walk.made_by(value, "Softmax") is not None


def _match(node: ir.Node, x: ir.Value, weights: ir.Value) -> Match:
    weights = bare(unspread(weights, x))
    found = gate(weights)
    if found is None:
        raise Unlike(f"the gate is made by {_maker(weights)}, expected sigmoid, hard sigmoid of slope 1/6, or tanh")
    kind, z = found[0], bare(found[1])
    attributes: dict[str, Sequence[int]] = {}
    if (eca := _eca(z)) is not None:
        arrays, source, reduced, attributes = [eca[0]], eca[1], None, {"pads": eca[2]}
        variant = f"eca-{kind}"
    else:
        variant, arrays, source = _mlps(z)
        variant, reduced = f"{variant}-{kind}", len(arrays[0]) if len(arrays) == 4 else None
    if source is not x:
        raise Unlike(f"the gate comes from {source.name!r} but weighs {x.name!r}, expected the same tensor")
    return Match(
        "ChannelGate",
        variant,
        node,
        tuple(walk.between(node.outputs[0], {x})),
        node.outputs[0],
        lambda tape: [x, *(tape.constant(array) for array in arrays)],
        attributes,
        _facts(x, arrays, reduced, 2 if variant.startswith("avgmax") else 1),
    )


def _maker(value: ir.Value) -> str:
    node = value.producer()
    return "the graph's input" if node is None else f"{node.op_type} {node.name!r}"


def _eca(z: ir.Value) -> tuple[Array, ir.Value, tuple[int, ...]] | None:
    """(weight, map, pads) of a convolution over the pooled channels; None if it is another layer."""
    found = layer(z)
    if found is None or found.node.op_type != "Conv" or found.weight.ndim != 3:
        return None
    window = found.window
    if found.weight.shape[:2] != (1, 1) or vector(found.source) == 1:
        return None
    pads, kernel = window["pads"], found.weight.shape[2]
    if set(window["strides"] + window["dilations"]) != {1} or sum(pads) != kernel - 1:
        raise Unlike(
            f"the convolution over channels has {window}, expected stride 1 and as many channels after as before"
        )
    if found.bias.any():
        raise Unlike("the convolution over channels has a bias, expected none")
    pool, source = _pool(found.source)
    if pool != "avg":
        raise Unlike("the convolution over channels reads their maxima, expected their means")
    return found.weight, source, pads


def _mlps(z: ir.Value) -> tuple[str, list[Array], ir.Value]:
    """(variant without gate, weights, map) of one MLP, or of the sum of one applied to means and to maxima."""
    add = walk.made_by(z, "Add")
    if layer(z) is not None or add is None:
        return _mlp(z)
    left, right = (_mlp(item) for item in add.inputs if item is not None)
    if walk.dims(add.inputs[0]) != walk.dims(add.inputs[1]) or {left[0][:3], right[0][:3]} != {"avg", "max"}:
        raise Unlike(f"{left[0]} and {right[0]} are added, expected an MLP of the mean and one of the maximum")
    if left[0][3:] != right[0][3:] or len(left[1]) != len(right[1]) or left[2] is not right[2]:
        raise Unlike("mean and maximum go through different layers, expected the same")
    if any(one.shape != other.shape or (one != other).any() for one, other in zip(left[1], right[1], strict=True)):
        raise Unlike("mean and maximum go through layers with different weights, expected shared ones")
    if len(left[1]) != 4:
        raise Unlike("mean and maximum go through one layer, expected two")
    return f"avgmax{left[0][3:]}", left[1], left[2]


def _mlp(z: ir.Value) -> tuple[str, list[Array], ir.Value]:
    last, weight = _linear(z)
    act, hidden = activation(last)
    if act == "identity" and pooled(hidden) is not None:
        pool, source = _pool(hidden)
        if pool != "avg":
            raise Unlike("one layer reads the channels' maxima, expected their means")
        return "ese", weight, source
    first, before = _linear(hidden)
    pool, source = _pool(first)
    return f"{pool}-{act}", [*before, *weight], source


def _linear(value: ir.Value) -> tuple[ir.Value, list[Array]]:
    """(input, [weight, bias]) of a linear layer or a 1x1 convolution of a vector."""
    found = layer(value)
    weight = found.pointwise if found is not None else None
    if found is None:
        raise Unlike(
            f"{_maker(bare(value))} feeds the gate, expected a linear layer, a 1x1 convolution, "
            "or the mean or maximum over height and width"
        )
    if weight is None or weight.shape[1] != vector(found.source):
        raise Unlike(f"{found.node.op_type} {found.node.name!r} mixes places or groups, expected a linear layer")
    return found.source, [weight, found.bias]


def _pool(value: ir.Value) -> tuple[str, ir.Value]:
    found = pooled(value)
    if found is None:
        raise Unlike(f"the gate reads {_maker(bare(value))}, expected the mean or maximum over height and width")
    return found


def _facts(x: ir.Value, arrays: list[Array], reduced: int | None, pools: int) -> Facts:
    named = sizes(x, "batch", "channels", "height", "width")
    if reduced is not None:
        named["reduced"] = reduced
    count, width = elements(x), itemsize(x)
    if count is None:
        return Facts(named)
    parameters = sum(array.size for array in arrays)
    return Facts(
        named,
        flops=(pools + 1) * count + 2 * pools * parameters,
        bytes_decomposed=width * ((pools + 2) * count + parameters),
        bytes_fused=width * (2 * count + parameters),
    )


def cases() -> Sequence[Case]:
    """Modules that must match and that must not."""
    from edgeattn.ops.channel_gate_cases import CASES

    return CASES


OP = AttentionOp(
    "ChannelGate", "arXiv 1709.01507, 1807.06521, 1910.03151, 1911.06667", find, function, reference, cases
)
