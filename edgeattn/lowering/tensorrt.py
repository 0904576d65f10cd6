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

from edgeattn.backends.trt.capabilities import NAMESPACE, RELEASES, Capabilities, capabilities, plugin_route
from edgeattn.backends.trt.codes import absorb, quantiser
from edgeattn.backends.trt.layouts import relay
from edgeattn.backends.trt.plugins import ADDED, ATTENTION, in_codes, request_of
from edgeattn.backends.trt.registry import obstacle
from edgeattn.graph import Graph
from edgeattn.kernels import KERNELS
from edgeattn.lowering.body import BODY, NO_KERNEL, Plan, insert, sizes
from edgeattn.ops.base import DOMAIN, Tape
from edgeattn.ops.walk import dims

FUSED = "TensorRT native fused MHA"
PRECISIONS = ("float16", "bfloat16", "float32")
HEAD_SIZES = range(16, 257, 8)  # once padded to a multiple of 8
PLUGIN = "TensorRT plugin"
PLUGINS = frozenset(KERNELS)  # the ops that have one


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


def choose(graph: Graph, how: str, precision: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Which attentions TensorRT shall run as plugins here, as forms by the name of the node, and notes on the others.

    Args:
        graph: a fused graph.
        how: `native` for none; `plugin` for all that can; `auto` for those that TensorRT does not fuse by itself, which
            is where a build begins to measure.
        precision: the dtype that the graph will be typed in; empty for its own.
    """
    forms, notes = {}, []
    for node in [node for node in graph.model.graph if node.domain == DOMAIN and how != "native"]:
        if how == "auto" and plan(node, precision or "float32", "tensorrt").runs.startswith(FUSED):
            continue
        why = _no_plugin(node, precision)
        if not why:
            forms[node.name or ""] = PLUGIN
        elif how == "plugin" or node.op_type in PLUGINS:
            notes.append(f"{node.name} stays a function: {why}")
    return forms, tuple(notes)


def has_plugin(node: ir.Node) -> bool:
    """Whether TensorRT can run a canonical node as a plugin on this machine, in some precision."""
    return any(not _no_plugin(node, name) for name in PRECISIONS)


def _no_plugin(node: ir.Node, precision: str) -> str:
    """Why TensorRT cannot run a canonical node as a plugin on this machine; empty where it can."""
    if node.op_type not in PLUGINS:
        return "it has no kernel"
    if node.op_type != ATTENTION and dims(node.outputs[0]) not in (None, dims(node.inputs[0])):
        return "its result is not shaped as its first input"
    return obstacle(request_of(node, precision))


def to_plugin(model: ir.Model, node: ir.Node) -> None:
    """Make a canonical node one that TensorRT's parser takes for a plugin's: named in its attributes, without a body.

    It takes its operands as they lie in memory, before they are transposed, and adds its input along. Which plugin it
    will be is settled when TensorRT's version is known (`edgeattn.backends.trt.registry`).
    """
    asked = request_of(node).attributes
    if {"layout", "residual"} & set(asked):
        relay(model, node)
    found = {**asked, **dict(zip(ADDED, (node.overload, NAMESPACE, "1"), strict=True))}
    node.attributes.update({item.name: item for item in ir.convenience.convert_attributes(found)})
    node.overload = PLUGIN  # that no function has


def give_codes(graph: Graph) -> tuple[Graph, tuple[str, ...]]:
    """Let plugins of gates write INT8 codes, where a QuantizeLinear alone reads them and there is a kernel for it.

    Args:
        graph: typed, its attentions in their forms; it is not changed.

    Returns:
        The graph, and a note on each gate that would, but has no such kernel here.
    """
    notes: list[str] = []
    if not any(map(_is_gate, graph.model.graph)):
        return graph, ()
    edited = graph.copy()
    main = edited.model.graph
    for node in filter(_is_gate, list(main)):
        last = quantiser(node)
        why = obstacle(in_codes(request_of(node))) if last is not None else ""
        if why:
            notes.append(f"{node.name} does not write INT8 itself: {why}; edgeattn plugins build --int8 makes one")
        elif last is not None:
            absorb(main, node, last)
            node.attributes["codes"] = ir.AttrInt64("codes", 1)
    return edited, tuple(notes)


def _is_gate(node: ir.Node) -> bool:
    return node.domain == DOMAIN and node.op_type in PLUGINS - {ATTENTION}


def repeat_shared_heads(model: ir.Model, node: ir.Node) -> None:
    """Give every head a key and a value of its own, where some share one: TensorRT fuses no product that broadcasts."""
    if node.op_type != ATTENTION:
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
    why = _no_fused_attention(node, precision, can)
    if not why:
        return Plan(FUSED)
    offer = "; a plugin can run it: --attention plugin" if node.op_type in PLUGINS and plugin_route(can) else ""
    return Plan(BODY, f"{why}{offer}")


def _no_fused_attention(node: ir.Node, precision: str, can: Capabilities) -> str:
    """Why TensorRT does not fuse an attention by itself; empty where it does."""
    if node.op_type != ATTENTION:
        return "it fuses softmax attention only" if node.op_type in PLUGINS else NO_KERNEL
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
