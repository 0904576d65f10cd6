"""ONNX Runtime: `com.microsoft.MultiHeadAttention`, a flash kernel, where it pays.

Measured on two cores with ONNX Runtime 1.31 (`scripts/bench_attention`): at 16,384 positions it takes 0.75 times the
time of the decomposition and 13 MB instead of 2.1 GB; at 1,024 and below it is no faster. The operator `Attention`
(opset 23) takes the time and the memory of the decomposition.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeattn.lowering.body import BODY, NO_KERNEL, Plan, insert, sizes
from edgeattn.ops.base import Tape
from edgeattn.ops.walk import dims

CONTRIB = "com.microsoft"
FLASH = f"{CONTRIB}.MultiHeadAttention"
LENGTHS = ("queries", "keys")
FLASH_FROM = 2048 * 2048  # scores per head; from here the flash kernel is as fast, and far smaller


def plan(node: ir.Node) -> Plan:
    """What runs a canonical node in ONNX Runtime."""
    if node.op_type != "SoftmaxAttention":
        return Plan(BODY, NO_KERNEL)
    obstacle = no_flash(node) or _not_worth_flash(node)
    return Plan(BODY, obstacle) if obstacle else Plan(FLASH)


def no_flash(node: ir.Node) -> str:
    """Why ONNX Runtime's flash kernel cannot run a canonical node; empty where it can."""
    if node.op_type != "SoftmaxAttention":
        return "it runs softmax attention only"
    known = sizes(node)
    dynamic = [name for name in known if name not in LENGTHS and not isinstance(known[name], int)]
    if dynamic:
        return f"its flash kernel needs fixed {', '.join(dynamic)}"
    if not known["heads"] == known["key heads"] == known["value heads"]:
        return "its flash kernel takes no key or value that heads share"
    if node.overload not in ("", "bias"):
        return f"its flash kernel has no form for {node.overload}"
    bias = dims(node.inputs[3]) if len(node.inputs) > 3 else None
    lengths = tuple(known[name] for name in LENGTHS)
    if bias is not None and (len(bias) != 4 or bias[2:] != lengths or None in lengths):
        return "its flash kernel takes no bias that is the same for every query or key"
    return ""


def _not_worth_flash(node: ir.Node) -> str:
    """Why ONNX Runtime's flash kernel is not planned for an attention; empty where it is."""
    queries, keys = (sizes(node)[name] for name in LENGTHS)
    if not isinstance(queries, int) or not isinstance(keys, int):
        return f"its flash kernel pays from {FLASH_FROM} scores a head on, and their number is dynamic"
    if queries * keys < FLASH_FROM:
        return f"below {FLASH_FROM} scores a head the plain operators are as fast"
    if node.overload != "":
        return "with a bias its kernel is not the flash one: it writes all scores as the plain operators do"
    return ""


def to_flash(model: ir.Model, node: ir.Node) -> None:
    """Replace a node by the flash kernel: (B, H, N, d) operands to its (B, N, H d), the operator, and back."""
    known = sizes(node)
    heads, tape = int(known["heads"] or 1), Tape()
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
    result = _heads(tape, fused.outputs[0], heads, int(known["d_v"] or 0))
    old = node.outputs[0]
    insert(model, node, tape, "flash")
    result.type, result.shape = old.type, old.shape
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
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
