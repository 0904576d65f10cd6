"""The function body, which is the way out of every backend, and what all lowerings share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common

from edgeattn.graph import dtype_name
from edgeattn.normalise import infer_types
from edgeattn.ops.base import Tape
from edgeattn.ops.walk import dims
from edgeattn.tensors import numpy_dtype

BODY = "function body"
NO_KERNEL = "no backend has a kernel for it: the plain operators run"


@dataclass(frozen=True)
class Plan:
    """What will run one attention in one backend, and why nothing better does (empty where nothing is better)."""

    runs: str
    why: str = ""


def sizes(node: ir.Node) -> Mapping[str, int | str | None]:
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


def insert(model: ir.Model, node: ir.Node, tape: Tape, label: str) -> None:
    """Put what a tape holds before a node, its values named after the node's output."""
    for number, value in enumerate([*tape.constants, *(made.outputs[0] for made in tape.nodes)]):
        value.name = f"{node.outputs[0].name}/{label}_{number}"
    for value in tape.constants:
        model.graph.register_initializer(value)
    model.graph.insert_before(node, tape.nodes)


def settle_constants(model: ir.Model) -> None:
    """Write the constants of inlined bodies in the dtype they are used in.

    A body says CastLike, since it serves every dtype; ONNX Runtime resolves that too late to fuse a scale into its
    product.
    """
    casts = [node for node in model.graph if node.op_type == "CastLike"]
    if any(like is not None and like.dtype is None for node in casts for like in node.inputs[1:]):
        infer_types(model)
    for node in casts:
        literal, like = node.inputs
        tensor = ir.convenience.get_const_tensor(literal) if literal is not None else None
        if tensor is None or like is None or like.dtype is None:
            continue
        value = node.outputs[0]
        cast = ir.tensor(tensor.numpy().astype(numpy_dtype(dtype_name(like.dtype))))
        settled = ir.Value(const_value=cast, shape=ir.Shape(cast.shape.numpy()), type=ir.TensorType(cast.dtype))
        settled.name, value.name = value.name, None
        ir.convenience.replace_all_uses_with(value, settled)
        model.graph.remove(node, safe=True)
        model.graph.register_initializer(settled)
    common.RemoveUnusedNodesPass()(model)
