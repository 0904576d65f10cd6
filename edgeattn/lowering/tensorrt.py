"""TensorRT and TensorRT-RTX: what their own fusion does with an attention, by version, and what it needs for that.

The conditions are those of TensorRT's guide to fused attention; all GPUs from compute capability 7.5 on have it. Plans
with a range of versions say what older ones do instead.

The operator `Attention` (opset 23) is not used. Built with TensorRT-RTX 1.7 in float16, at head sizes from 8 to 512,
one and several heads, self and cross, fixed and dynamic batches, with every form of bias: the function body ends in the
same fused kernel wherever the operator does, in every variant (masks, guards, a softmax in float32), and the operator
does not take head sizes that differ. The one exception is heads that share a key or value: repeated for every head,
these fuse too. A single head fuses where TensorRT finds it worth it: at 4,096 positions, not at 1,024.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeattn.backends.trt.capabilities import RELEASES, Capabilities, capabilities, plugin_route
from edgeattn.lowering.body import BODY, NO_KERNEL, Plan, insert, sizes
from edgeattn.ops.base import Tape

FUSED = "TensorRT native fused MHA"
HEAD_SIZES = range(16, 257, 8)  # once padded to a multiple of 8
PLUGINS: frozenset[str] = frozenset()  # the ops that have one


def plan(node: ir.Node, precision: str, flavour: str, version: str = "") -> Plan:
    """What runs a canonical node in one version of a flavour, or in all of them.

    Raises:
        UnsupportedError: the version is older than the oldest one known.
    """
    if version:
        return _plan(node, precision, capabilities(version, flavour))
    plans = [(release, _plan(node, precision, capabilities(release, flavour))) for release in RELEASES[flavour]]
    since, newest = plans.pop()
    while plans and plans[-1][1] == newest:
        since, _ = plans.pop()
    if not plans:
        return newest
    before = plans[-1][1]
    return Plan(f"{newest.runs} (>= {since})", f"{newest.why}; before, {before.runs}: {before.why}".lstrip("; "))


def repeat_shared_heads(model: ir.Model, node: ir.Node) -> None:
    """Give every head a key and a value of its own, where some share one: TensorRT fuses no product that broadcasts."""
    if node.op_type != "SoftmaxAttention":
        return
    known = sizes(node)
    heads, tape = known["heads"], Tape()
    for place, name in ((1, "key heads"), (2, "value heads")):
        value = node.inputs[place]
        if value is not None and isinstance(heads, int) and known[name] == 1 and heads > 1:
            each = tape.constant(np.array([1, heads, 1, 1]))
            node.replace_input_with(place, tape.op("Expand", [value, each]))
    insert(model, node, tape, "repeated")


def _plan(node: ir.Node, precision: str, can: Capabilities) -> Plan:
    obstacle = _no_fused_attention(node, precision, can)
    if not obstacle:
        return Plan(FUSED)
    route = plugin_route(can) if node.op_type in PLUGINS else None
    return Plan(f"{route.kind} plugin" if route else BODY, obstacle)


def _no_fused_attention(node: ir.Node, precision: str, can: Capabilities) -> str:
    """Why TensorRT does not fuse an attention by itself; empty where it does."""
    if node.op_type != "SoftmaxAttention":
        return NO_KERNEL
    known = sizes(node)
    if precision not in ("float16", "bfloat16"):
        return f"fused attention needs float16 or bfloat16, this is {precision}"
    dynamic = [name for name in ("heads", "d_qk", "d_v") if not isinstance(known[name], int)]
    if dynamic:
        return f"fused attention needs fixed {', '.join(dynamic)}"
    return _no_fused_size(int(known["d_qk"] or 0), int(known["d_v"] or 0), can)


def _no_fused_size(d_qk: int, d_v: int, can: Capabilities) -> str:
    if d_qk != d_v:
        return f"head size {d_qk} of query and key differs from {d_v} of value"
    if -(-d_qk // 8) * 8 not in HEAD_SIZES:
        return f"head size {d_qk} is not within 16 to 256"
    return f"head size {d_qk} is not a multiple of 8" if d_qk % 8 and not can.pads_heads else ""
