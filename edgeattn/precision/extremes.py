"""Constants that a low dtype makes infinite or rounds away, and whatever they reach."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgeattn.graph import dtype_name
from edgeattn.precision.signatures import Islands, constant, float32, has_body, is_float32, kinds, op

if TYPE_CHECKING:
    from edgeattn.tensors import Array

# The smallest normal and the largest number of a dtype.
LIMITS = {
    ir.DataType.FLOAT16: (2.0**-14, 65504.0),
    ir.DataType.BFLOAT16: (2.0**-126, (2 - 2.0**-7) * 2.0**127),
}
# Their results are ordinary numbers whatever goes in. Exp: float32 itself ends at exp(88).
BOUNDED = kinds(
    "BatchNormalization Cos Erf Exp GroupNormalization HardSigmoid InstanceNormalization LayerNormalization "
    "LpNormalization MeanVarianceNormalization RMSNormalization Sigmoid Sign Sin Softmax Softsign Tanh"
)
# Where a single tiny number matters.
SENSITIVE = kinds("Add Clip Expand Greater GreaterOrEqual Less LessOrEqual Max Min Sub Where")


def extremes(graph: ir.Graph, low: ir.DataType) -> Islands:
    """Constants beyond the low dtype's range, and whatever they reach until a bounded function takes it in."""
    kept: Islands = {}
    wild: dict[ir.Value, str] = {}
    for node in graph:
        if has_body(node):
            continue
        reason = next((wild[value] for value in node.inputs if value in wild), None) or _extreme_constant(node, low)
        if reason:
            kept[node] = reason
            if not _bounds(node, wild, low):
                wild.update(dict.fromkeys(float32(node.outputs), reason))
    return kept


def _extreme_constant(node: ir.Node, low: ir.DataType) -> str | None:
    found = next((worst for tensor in _constants(node) if (worst := _overflowing(tensor, low)) is not None), None)
    name = dtype_name(low)
    return None if found is None else f"the constant {found:.4g} exceeds {name}, which ends at {LIMITS[low][1]:.4g}"


def _bounds(node: ir.Node, wild: Collection[ir.Value], low: ir.DataType) -> bool:
    """Whether a node that takes in extreme values gives ordinary ones."""
    name, inputs = op(node), node.inputs
    if name == "Div":
        return inputs[0] not in wild and not _infinite_as(inputs[0], low)
    if name in ("Clip", "Max", "Min") and not any(value in wild for value in inputs):
        # A bound so far away that it never holds leaves ordinary data ordinary.
        least = inputs[1:2] if name == "Clip" else inputs if name == "Max" else ()
        most = inputs[2:] if name == "Clip" else inputs if name == "Min" else ()
        return all(_infinite_as(value, low) <= 0 for value in least) and all(
            _infinite_as(value, low) >= 0 for value in most
        )
    if name == "Clip":
        return len(inputs) == 3 and all(constant(v) is not None and not _infinite_as(v, low) for v in inputs[1:])
    return name in BOUNDED


def _infinite_as(value: ir.Value | None, low: ir.DataType) -> float:
    """A constant's value that the low dtype makes infinite, else 0."""
    tensor = constant(value)
    return 0.0 if tensor is None else _overflowing(tensor, low) or 0.0


def vanishes(node: ir.Node, low: ir.DataType) -> str | None:
    """An epsilon or a factor that the low dtype rounds to zero. A tensor of tiny summands is no loss."""
    for tensor in _constants(node):
        if op(node) in ("Div", "Mul") or (tensor.size == 1 and op(node) in SENSITIVE):
            lost = _vanishing(tensor, low)
            if lost is not None:
                return f"the constant {lost:.3g} vanishes in {dtype_name(low)}"
    return None


def _constants(node: ir.Node) -> Iterator[ir.TensorProtocol]:
    """The constant tensors that become float32 numbers in a node."""
    fill = node.attributes.get("value")
    if op(node) == "ConstantOfShape" and fill is not None:
        yield fill.as_tensor()
    for value in node.inputs:
        into_float = op(node) == "Cast" and is_float32(node.outputs[0])
        tensor = constant(value) if into_float or is_float32(value) else None
        if tensor is not None and tensor.dtype != ir.DataType.STRING:
            yield tensor


def _vanishing(tensor: ir.TensorProtocol, low: ir.DataType) -> float | None:
    """The largest magnitude of a tensor whose values the low dtype rounds to zero or to a few bits, else None."""
    top = max(abs(end) for end in ends(tensor.numpy()))
    if not 0 < top < LIMITS[low][0]:
        return None
    values = tensor.numpy().astype(np.float64)
    error = np.linalg.norm(values - values.astype(low.numpy()).astype(np.float64))
    return top if error > np.linalg.norm(values) / 256 else None


def _overflowing(tensor: ir.TensorProtocol, low: ir.DataType) -> float | None:
    """The value of largest magnitude in a tensor where the low dtype makes it infinite, else None."""
    worst = max(ends(tensor.numpy()), key=abs)
    with np.errstate(over="ignore"):
        return worst if np.isinf(np.float64(worst).astype(low.numpy())) else None


def ends(values: Array) -> tuple[float, float]:
    """The smallest and the largest finite value; infinities exist in every dtype."""
    if values.size == 0:
        return 0.0, 0.0
    first, last = float(values.min()), float(values.max())
    if not (np.isfinite(first) and np.isfinite(last)):
        return ends(values[np.isfinite(values)])
    return first, last
