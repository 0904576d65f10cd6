"""Activations and gates: read back from a graph whatever their spelling, and written as ONNX text and in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgeattn.ops import walk
from edgeattn.ops.layers import Unlike, bare

if TYPE_CHECKING:
    from torch import Tensor

RESIDUAL = "+1"  # the end of a gate's kind: x * (1 + gate) is x + x * gate


def gate(value: ir.Value) -> tuple[str, ir.Value] | None:
    """(kind, z) if a value is sigmoid(z), hardsigmoid(z) (slope 1/6) or tanh(z), each as an operator or written out.

    One more than that, which gates of residual attention are, is kind "sigmoid+1" and the like.
    """
    inner = _other(walk.made_by(value, "Add"), 1.0)
    found = _gate(value if inner is None else bare(inner))
    return found if inner is None or found is None else (f"{found[0]}{RESIDUAL}", found[1])


def _gate(value: ir.Value) -> tuple[str, ir.Value] | None:
    node = walk.made_by(value, "Sigmoid", "HardSigmoid", "Tanh", "Div", "Mul", "Reciprocal")
    source = node.inputs[0] if node is not None else None
    if node is None or source is None:
        return None
    if node.op_type in ("Sigmoid", "Tanh"):
        return node.op_type.lower(), source
    if node.op_type == "HardSigmoid":
        alpha, beta = (node.attributes.get(name) for name in ("alpha", "beta"))
        slope, offset = (0.2 if alpha is None else alpha.as_float()), (0.5 if beta is None else beta.as_float())
        return ("hardsigmoid", source) if math.isclose(slope, 1 / 6, rel_tol=1e-6) and offset == 0.5 else None
    return _logistic(node) or _ramp(node)


def _logistic(node: ir.Node) -> tuple[str, ir.Value] | None:
    """1 / (1 + exp(-z))."""
    divisor = node.inputs[0] if node.op_type == "Reciprocal" else None
    if node.op_type == "Div" and walk.scalar(node.inputs[0]) == 1:
        divisor = node.inputs[1]
    exp = walk.made_by(_other(walk.made_by(divisor, "Add"), 1.0), "Exp")
    minus = walk.made_by(exp.inputs[0], "Neg") if exp is not None else None
    return ("sigmoid", minus.inputs[0]) if minus is not None and minus.inputs[0] is not None else None


def _ramp(node: ir.Node) -> tuple[str, ir.Value] | None:
    """clip(z + 3, 0, 6) / 6."""
    if node.op_type == "Div":
        clipped = node.inputs[0] if walk.scalar(node.inputs[1]) == 6 else None
    else:
        clipped = next((_other(node, one) for one in (1 / 6, float(np.float32(1 / 6)), float(np.float16(1 / 6)))
                        if _other(node, one) is not None), None)  # fmt: skip
    clip = walk.made_by(clipped, "Clip")
    if clip is None or [walk.scalar(bound) for bound in clip.inputs[1:3]] != [0, 6]:
        return None
    source = _other(walk.made_by(clip.inputs[0], "Add"), 3.0)
    return None if source is None else ("hardsigmoid", source)


def _other(node: ir.Node | None, number: float) -> ir.Value | None:
    """The operand of a node of two whose other operand is this number."""
    for value, other in (node.inputs, node.inputs[::-1]) if node is not None and len(node.inputs) == 2 else ():
        if (
            walk.scalar(other) == number
            and other is not None
            and len(walk.dims(other) or ()) <= len(walk.dims(value) or ())
        ):
            return value
    return None


def activation(value: ir.Value) -> tuple[str, ir.Value]:
    """(kind, z) if a value is relu(z), silu(z), gelu(z), hardswish(z) or z itself ("identity").

    Raises:
        Unlike: it is an activation that gates are not known with.
    """
    value = bare(value)
    node = walk.made_by(
        value, "Relu", "HardSwish", "Gelu", "Mul", "Sigmoid", "Tanh", "PRelu", "LeakyRelu", "Elu", "Clip"
    )
    source = node.inputs[0] if node is not None else None
    if node is None or source is None:
        return "identity", value
    if node.op_type in ("Relu", "HardSwish"):
        return node.op_type.lower(), source
    if node.op_type == "Mul":
        return next(_products(node), ("identity", value))
    approximate = node.attributes.get("approximate")
    if node.op_type == "Gelu" and (approximate is None or approximate.as_string() == "none"):
        return "gelu", source
    raise Unlike(f"the activation is {node.op_type}, expected ReLU, SiLU, GELU or hard swish")


def _products(node: ir.Node) -> Iterator[tuple[str, ir.Value]]:
    """Products that are activations: z sigmoid(z), z hardsigmoid(z), z (1 + erf(z / sqrt 2)) / 2, however grouped."""
    known = {"sigmoid": "silu", "hardsigmoid": "hardswish"}
    for left, right in (node.inputs, node.inputs[::-1]):
        found = gate(right) if right is not None else None
        if found is not None and found[1] is left and found[0] in known:
            yield known[found[0]], found[1]
    factors, number = _factors(node)
    if len(factors) == 2 and number == 0.5:
        for z, other in (factors, factors[::-1]):
            erf = walk.made_by(_other(walk.made_by(other, "Add"), 1.0), "Erf")
            inner = walk.made_by(erf.inputs[0], "Div", "Mul") if erf is not None else None
            ratio = walk.scalar(inner.inputs[1]) if inner is not None and inner.inputs[0] is z else None
            if inner is not None and ratio is not None:
                ratio = 1 / ratio if inner.op_type == "Div" else ratio
                if _is(ratio, math.sqrt(0.5), z):
                    yield "gelu", z


def _factors(node: ir.Node) -> tuple[list[ir.Value], float]:
    """The factors of nested products, and the product of those that are single numbers."""
    factors, number, waiting = [], 1.0, [item for item in node.inputs if item is not None]
    while waiting:
        value = waiting.pop()
        inner, one = walk.made_by(value, "Mul"), walk.scalar(value)
        if one is not None:
            number *= one
        elif inner is not None and any(walk.scalar(item) is not None for item in inner.inputs):
            waiting += [item for item in inner.inputs if item is not None]
        else:
            factors.append(value)
    last = walk.made_by(factors[0], "Mul") if len(factors) == 1 else None
    return factors if last is None else [item for item in last.inputs if item is not None], number


def _is(found: float, expected: float, value: ir.Value) -> bool:
    """Whether a constant is this number in the type of a value."""
    tolerance = 1e-3 if value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) else 1e-6
    return math.isclose(found, expected, rel_tol=tolerance)


def activation_text(kind: str, before: str, after: str) -> str:
    """ONNX statements that compute `after` from `before`."""
    return {
        "identity": f"{after} = Identity ({before})",
        "relu": f"{after} = Relu ({before})",
        "hardswish": f"{after} = HardSwish ({before})",
        "silu": f"{after}_gate = Sigmoid ({before})\n{after} = Mul ({before}, {after}_gate)",
        "gelu": f"""
            {after}_root = Constant <value = float {{1.4142135}}> ()
            {after}_one = Constant <value = float {{1.0}}> ()
            {after}_half = Constant <value = float {{0.5}}> ()
            {after}_root_like = CastLike ({after}_root, {before})
            {after}_one_like = CastLike ({after}_one, {before})
            {after}_half_like = CastLike ({after}_half, {before})
            {after}_scaled = Div ({before}, {after}_root_like)
            {after}_erf = Erf ({after}_scaled)
            {after}_sum = Add ({after}_erf, {after}_one_like)
            {after}_whole = Mul ({before}, {after}_sum)
            {after} = Mul ({after}_whole, {after}_half_like)""",
    }[kind]


def gate_text(kind: str, before: str, after: str) -> str:
    """ONNX statements that compute `after` from `before`."""
    operator = {"sigmoid": "Sigmoid", "hardsigmoid": "HardSigmoid <alpha = 0.16666667, beta = 0.5>", "tanh": "Tanh"}
    plain = kind.removesuffix(RESIDUAL)
    if plain == kind:
        return f"{after} = {operator[kind]} ({before})"
    return f"""
        {after}_gate = {operator[plain]} ({before})
        {after}_one = Constant <value = float {{1.0}}> ()
        {after}_one_like = CastLike ({after}_one, {before})
        {after} = Add ({after}_gate, {after}_one_like)"""


def activate(kind: str, z: Tensor) -> Tensor:
    """An activation or gate in PyTorch."""
    import torch
    from torch.nn import functional as F

    known = {
        "identity": lambda z: z, "relu": F.relu, "silu": F.silu, "gelu": F.gelu, "hardswish": F.hardswish,
        "sigmoid": torch.sigmoid, "hardsigmoid": F.hardsigmoid, "tanh": torch.tanh,
    }  # fmt: skip
    result: Tensor = known[kind.removesuffix(RESIDUAL)](z)
    return 1 + result if kind.endswith(RESIDUAL) else result
