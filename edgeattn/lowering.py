"""What runs each attention: the plan per backend, and the graph edits that carry it out.

A canonical node always has its function body as the way out. Where a backend has something measured or documented to
be better, its plan says so, and `to_backend` puts that in the node's place.

Measured on two cores with ONNX Runtime 1.31 (`scripts/bench_attention`): `com.microsoft.MultiHeadAttention` is a flash
kernel. At 16,384 positions it takes 0.75 times the time of the decomposition and 13 MB instead of 2.1 GB; at 1,024 and
below it is no faster. OpenVINO recognises the decomposition itself and runs its own fused attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from edgeattn.graph import Graph
from edgeattn.ops.base import DOMAIN, Tape
from edgeattn.ops.walk import dims

CONTRIB = "com.microsoft"
FLASH_FROM = 2048 * 2048  # scores per head; from here ONNX Runtime's flash kernel is as fast, and far smaller
MHA_HEAD_SIZES = range(16, 257, 8)  # of TensorRT's fused attention, in float16 and bfloat16


@dataclass(frozen=True)
class Plan:
    """What will run one attention in one backend, and why nothing better does (empty where nothing is better)."""

    runs: str
    why: str = ""


def plan(node: ir.Node, backend: str, precision: str = "float32") -> Plan:
    """Say what runs a canonical node in a backend: a pure function of the node, the backend and the precision.

    Args:
        node: a node of domain `edgeattn` in a fused graph, its shapes inferred.
        backend: a name in `edgeattn.backends.BACKENDS`.
        precision: the dtype that the graph will be typed in.
    """
    if node.op_type != "SoftmaxAttention":
        return Plan("function body", "no backend has a kernel for it: the plain operators run")
    if backend == "openvino":
        return Plan("OpenVINO scaled dot product attention")
    obstacle = _no_flash(node) if backend == "onnxruntime" else _no_native_mha(node, precision)
    best = f"{CONTRIB}.MultiHeadAttention" if backend == "onnxruntime" else "TensorRT native fused MHA"
    return Plan("function body", obstacle) if obstacle else Plan(best)


def to_backend(graph: Graph, backend: str) -> Graph:
    """Give every canonical node its backend's best form, and expand the rest into their bodies.

    The result holds no node of domain `edgeattn`. A graph without any comes back as it is.
    """
    if not any(node.domain == DOMAIN for node in graph.model.graph):
        return graph
    edited = graph.copy()
    for node in [node for node in edited.model.graph if node.domain == DOMAIN]:
        if plan(node, backend).runs.startswith(CONTRIB):
            _to_multi_head_attention(edited.model, node)
    common.RemoveUnusedFunctionsPass()(edited.model)  # type: ignore[no-untyped-call]
    common.InlinePass()(edited.model)
    common.RemoveUnusedOpsetsPass()(edited.model)
    return edited


def _sizes(node: ir.Node) -> Mapping[str, int | str | None]:
    """Heads, lengths and head sizes of a SoftmaxAttention node, dynamic ones by name or None."""
    q, k, v = (dims(value) or (None,) * 4 for value in node.inputs[:3])
    return {
        "heads": q[1],
        "key heads": k[1],
        "value heads": v[1],
        "queries": q[2],
        "keys": k[2],
        "d_qk": q[3],
        "d_v": v[3],
    }


def _no_flash(node: ir.Node) -> str:
    """Why ONNX Runtime's flash kernel does not run an attention; empty where it does."""
    sizes = _sizes(node)
    dynamic = [name for name, size in sizes.items() if not isinstance(size, int)]
    if dynamic:
        return f"its flash kernel needs fixed {', '.join(dynamic)}"
    if int(sizes["queries"] or 0) * int(sizes["keys"] or 0) < FLASH_FROM:
        return f"below {FLASH_FROM} scores a head the plain operators are as fast"
    if not sizes["heads"] == sizes["key heads"] == sizes["value heads"]:
        return "its flash kernel takes no key or value that heads share"
    if node.overload not in ("", "bias"):
        return f"its flash kernel has no form for {node.overload}"
    bias = dims(node.inputs[3]) if len(node.inputs) > 3 else None
    if bias is not None and (len(bias) != 4 or bias[2:] != (sizes["queries"], sizes["keys"])):
        return "its flash kernel takes no bias that is the same for every query or key"
    return ""


def _no_native_mha(node: ir.Node, precision: str) -> str:
    """Why TensorRT will not fuse an attention by itself; the conditions are those of its guide."""
    sizes = _sizes(node)
    d_qk, d_v = sizes["d_qk"], sizes["d_v"]
    if precision not in ("float16", "bfloat16"):
        return f"fused attention needs float16 or bfloat16, this is {precision}"
    if d_qk != d_v:
        return f"head size {d_qk} of query and key differs from {d_v} of value"
    if d_qk not in MHA_HEAD_SIZES:
        return f"head size {d_qk} is not a multiple of 8 from 16 to 256"
    return ""


def _to_multi_head_attention(model: ir.Model, node: ir.Node) -> None:
    """(B, H, N, d) operands to ONNX Runtime's (B, N, H d), its operator, and back."""
    sizes = _sizes(node)
    heads, tape = int(sizes["heads"] or 1), Tape()
    operands = [_tokens(tape, value, heads) for value in node.inputs[:3]]
    bias = node.inputs[3] if len(node.inputs) > 3 else None
    scale = node.attributes["scale"].as_float()
    fused = ir.Node(
        CONTRIB,
        "MultiHeadAttention",
        [*operands, *([None, None, bias] if bias is not None else [])],
        ir.convenience.convert_attributes({"num_heads": heads, "scale": scale}),
        name=node.name,
    )
    tape.nodes.append(fused)
    result = _heads(tape, fused.outputs[0], heads, int(sizes["d_v"] or 0))
    main, old = model.graph, node.outputs[0]
    for number, value in enumerate([*tape.constants, *(made.outputs[0] for made in tape.nodes)]):
        value.name = f"{old.name}/flash_{number}"
    for value in tape.constants:
        main.register_initializer(value)
    main.insert_before(node, tape.nodes)
    result.type, result.shape = old.type, old.shape
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    main.remove(node, safe=True)
    result.name = old.name
    model.opset_imports[CONTRIB] = 1


def _tokens(tape: Tape, value: ir.Value | None, heads: int) -> ir.Value:
    assert value is not None
    if heads == 1:
        return tape.op("Squeeze", [value, tape.constant(np.array([1]))])
    size = int((dims(value) or (0,))[-1] or 0)
    swapped = tape.op("Transpose", [value], perm=[0, 2, 1, 3])
    return tape.op("Reshape", [swapped, tape.constant(np.array([0, 0, heads * size]))])


def _heads(tape: Tape, value: ir.Value, heads: int, size: int) -> ir.Value:
    if heads == 1:
        return tape.op("Unsqueeze", [value, tape.constant(np.array([1]))])
    split = tape.op("Reshape", [value, tape.constant(np.array([0, 0, heads, size]))])
    return tape.op("Transpose", [split], perm=[0, 2, 1, 3])
