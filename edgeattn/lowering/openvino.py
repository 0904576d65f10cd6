"""OpenVINO: it recognises the plain decomposition by itself, and runs its own fused attention (memory stays flat)."""

from __future__ import annotations

import onnx_ir as ir

from edgeattn.lowering.body import BODY, NO_KERNEL, Plan


def plan(node: ir.Node) -> Plan:
    """What runs a canonical node in OpenVINO."""
    if node.op_type != "SoftmaxAttention":
        return Plan(BODY, NO_KERNEL)
    return Plan("OpenVINO scaled dot product attention")
