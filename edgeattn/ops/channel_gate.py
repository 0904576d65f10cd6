"""ChannelGate: one weight for each channel, from what a pooling over the map leaves of it.

    ChannelGate(x, w1, b1, w2, b2) = x * gate(W2 act(W1 pool(x) + b1) + b2)

x (B, C, H, W), w1 (R, C), b1 (R), w2 (C, R), b2 (C). Variants "POOL-ACT-GATE": POOL is avg, max, avgmax, where one
MLP serves both and the results are added before the gate, or attn; ACT relu, silu, gelu, hardswish, identity; GATE
sigmoid, hardsigmoid (slope 1/6), tanh, one of these "+1" (x * (1 + gate), as residual gates have it), or add, where
the result is added to x instead of multiplied:

    "attn-..." (x, s, ...): pool(x) = sum_n softmax_n(s x_n)_n x_n over the places n, s (1, C)
    "POOL-ln-ACT-GATE" (x, w1, b1, g, h, w2, b2) <epsilon>: LayerNorm with scale g (R) and offset h (R) before act

Some have fewer layers:

    "ese-GATE" (x, w, b) = x * gate(W mean(x) + b), w (C, C), b (C)
    "attn-ese-GATE" (x, s, w, b), the same of the attention pooling
    "eca-GATE" (x, w) = x * gate(w * mean(x)), a convolution over the channels, w (1, 1, k), zeros outside
    "eca-bias-GATE" (x, w, b), the same with a bias, b (1)

Normalisation in inference is folded into the weights; a missing bias is zero. A sequence (B, C, N) or a volume
(B, C, T, H, W) is laid out as a map before the node, and back after it.

Source: Hu et al., "Squeeze-and-Excitation Networks", arXiv 1709.01507, equations 2 to 4; Woo et al., "CBAM",
arXiv 1807.06521, equation 2 (avgmax); Wang et al., "ECA-Net", arXiv 1910.03151, equation 7; Lee and Park,
"CenterMask", arXiv 1911.06667, section 3.4 (effective SE); Cao et al., "GCNet", arXiv 1904.11492, equation 6 (global
context: attn, ln, add) and equation 4 (attn-ese-add).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgeattn.ops.activations import activate, activation_text, gate_text
from edgeattn.ops.base import AttentionOp, Case
from edgeattn.ops.channel_gate_search import find

if TYPE_CHECKING:
    from torch import Tensor

POOLS = {"avg": ("avg",), "max": ("max",), "avgmax": ("avg", "max"), "attn": ("attn",)}


def _words(variant: str) -> tuple[str, list[str], str]:
    """(pool, layers, gate) of a variant other than eca."""
    *words, gate = variant.split("-")
    return ("avg", words, gate) if words == ["ese"] else (words[0], words[1:], gate)


def function(variant: str) -> str:
    """The body of a variant."""
    if variant.startswith("eca-"):
        weights, gate = ("w, b" if "bias" in variant else "w"), variant.rpartition("-")[2]
        header = f"ChannelGate <pads> (x, {weights})"
        layers = f"""
            avg = ReduceMean <keepdims = 0> (x, places)
            row = Unsqueeze (avg, channels)
            mixed = Conv <pads: ints = @pads> (row, {weights})
            z = Squeeze (mixed, channels)"""
    else:
        pool, words, gate = _words(variant)
        names = [*(["s"] if pool == "attn" else []), *_weights(words)]
        header = f"ChannelGate {'<epsilon> ' if 'ln' in words else ''}(x, {', '.join(names)})"
        layers = "\n".join(_pool_text(name) + _layers_text(name, words) for name in POOLS[pool])
        layers += "\nz = Add (avg_out, max_out)" if pool == "avgmax" else f"\nz = Identity ({pool}_out)"
    end = "spread = Unsqueeze (z, places)\ny = Add (x, spread)"
    if gate != "add":
        end = f"{gate_text(gate, 'z', 'weights')}\nspread = Unsqueeze (weights, places)\ny = Mul (x, spread)"
    return f"""
        {header} => (y) {{
            places = Constant <value_ints = [2, 3]> ()
            channels = Constant <value_ints = [1]> ()
            {layers}
            {end}
        }}"""


def _weights(words: Sequence[str]) -> list[str]:
    if "ese" in words:
        return ["w", "b"]
    return ["w1", "b1", *(["g", "h"] if "ln" in words else []), "w2", "b2"]


def _pool_text(name: str) -> str:
    if name == "attn":
        return """
            rows = Constant <value_ints = [0, 0, -1]> ()
            last = Constant <value_ints = [2]> ()
            flat = Reshape (x, rows)
            scores = MatMul (s, flat)
            shares = Softmax <axis = -1> (scores)
            column = Transpose <perm = [0, 2, 1]> (shares)
            context = MatMul (flat, column)
            attn = Squeeze (context, last)"""
    operator = {"avg": "ReduceMean", "max": "ReduceMax"}[name]
    return f"\n{name} = {operator} <keepdims = 0> (x, places)"


def _layers_text(pool: str, words: Sequence[str]) -> str:
    if "ese" in words:
        return f"\n{pool}_out = Gemm <transB = 1> ({pool}, w, b)"
    hidden = f"{pool}_norm" if "ln" in words else f"{pool}_in"
    norm = f"{hidden} = LayerNormalization <axis = -1, epsilon: float = @epsilon> ({pool}_in, g, h)"
    return f"""
        {pool}_in = Gemm <transB = 1> ({pool}, w1, b1)
        {norm if "ln" in words else ""}
        {activation_text(words[-1], hidden, f"{pool}_act")}
        {pool}_out = Gemm <transB = 1> ({pool}_act, w2, b2)"""


def reference(variant: str, x: Tensor, *weights: Tensor, pads: Sequence[int] = (), epsilon: float = 0.0) -> Tensor:
    """The formula in PyTorch; `pads` are those of the convolution of `eca`, `epsilon` is the LayerNorm's."""
    from torch.nn import functional as F

    mean = x.mean((2, 3))
    if variant.startswith("eca-"):
        z = F.conv1d(F.pad(mean[:, None], tuple(pads)), weights[0], (*weights, None)[1])[:, 0]
        return x * activate(variant.rpartition("-")[2], z)[:, :, None, None]
    pool, words, gate = _words(variant)
    pools = {"avg": mean, "max": x.amax((2, 3))}
    if pool == "attn":
        flat, scores, weights = x.flatten(2), weights[0] @ x.flatten(2), weights[1:]
        pools["attn"] = (flat * scores.softmax(-1)).sum(-1)

    def layers(y: Tensor) -> Tensor:
        if "ese" in words:
            return F.linear(y, *weights)
        y = F.linear(y, *weights[:2])
        y = F.layer_norm(y, y.shape[1:], weights[2], weights[3], epsilon) if "ln" in words else y
        return F.linear(activate(words[-1], y), *weights[-2:])

    first, *others = (layers(pools[name]) for name in POOLS[pool])
    z = sum(others, first)[:, :, None, None]
    return x + z if gate == "add" else x * activate(gate, z)


def cases() -> Sequence[Case]:
    """Modules that must match and that must not."""
    from edgeattn.ops.channel_gate_cases import CASES

    return CASES


OP = AttentionOp(
    "ChannelGate",
    "arXiv 1709.01507, 1807.06521, 1910.03151, 1911.06667, 1904.11492",
    find,
    function,
    reference,
    cases,
    maps=("shares", "weights"),
)
