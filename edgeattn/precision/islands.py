"""Which nodes must stay in float32 when a graph is lowered to a 16-bit dtype, each with the reason.

A value that the low dtype holds badly (a mask of -1e9, a sum of squares, an index) makes an island: the nodes from
where it appears to where values are ordinary numbers again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgeattn.graph import dtype_name
from edgeattn.precision.signatures import bound, constant, float32, is_float32, lowerable, op, signature

if TYPE_CHECKING:
    from edgeattn.tensors import Array

Islands = dict[ir.Node, str]


def _ops(names: str) -> frozenset[str]:
    return frozenset(names.split())


MOVES = _ops(
    "Concat DepthToSpace Expand Flatten Gather GatherElements GatherND Identity Reshape Slice SpaceToDepth Split "
    "Squeeze Tile Transpose Unsqueeze"
)
MEANS = _ops("AveragePool GlobalAveragePool ReduceMean ReduceSum")
# Cheap enough to compute indices in float32; a Conv that eats integers is no index arithmetic.
INDEX_MATH = MOVES | _ops(
    "Abs Add Cast Ceil Clip ConstantOfShape Cos Div Exp Floor Log Max Min Mod Mul Neg Pow Range Reciprocal ReduceMax "
    "ReduceMin ReduceProd ReduceSum Round Sign Sin Sqrt Sub Where"
)
INDEX_INPUTS = {
    "AffineGrid": {0},
    "GridSample": {1},
    "MaxRoiPool": {1},
    "NonMaxSuppression": {0, 1, 3, 4},
    "Range": {0, 1, 2},
    "Resize": {1, 2},
    "RoiAlign": {1},
    "Upsample": {1},
}
SAMPLERS = _ops("AffineGrid GridSample MaxRoiPool RoiAlign")
WIDE_INTS = frozenset({ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT32, ir.DataType.UINT64})

QUANTIZE = _ops("DynamicQuantizeLinear QuantizeLinear")  # of ONNX Runtime's own domain too

# Their results are ordinary numbers whatever goes in. Exp: float32 itself ends at exp(88).
BOUNDED = _ops(
    "BatchNormalization Cos Erf Exp GroupNormalization HardSigmoid InstanceNormalization LayerNormalization "
    "LpNormalization MeanVarianceNormalization RMSNormalization Sigmoid Sign Sin Softmax Softsign Tanh"
)
NORMS = _ops("LpNormalization MeanVarianceNormalization")
SQUARING = _ops("GlobalLpPool LpPool ReduceL2 ReduceSumSquare") | NORMS
# What a sum of squares, or a tiny epsilon, passes through on its way to the division that it is there for.
CARRIES = (MOVES | MEANS | SQUARING | _ops("Abs Clip Max Min Neg Pow ReduceMax Reciprocal Sqrt")) - NORMS
MEAN_AS_SUM = "a mean written as a sum needs float32's range"
ENDS = _ops("Div Log Mul")
# Where a single tiny number matters.
SENSITIVE = _ops("Add Clip Expand Greater GreaterOrEqual Less LessOrEqual Max Min Sub Where")

# The smallest normal and the largest number of a dtype.
LIMITS = {
    ir.DataType.FLOAT16: (2.0**-14, 65504.0),
    ir.DataType.BFLOAT16: (2.0**-126, (2 - 2.0**-7) * 2.0**127),
}


def islands(graph: ir.Graph, low: ir.DataType, opset: int) -> Islands:
    """The nodes that stay in float32 and why; where several reasons hold, the first found."""
    kept: Islands = {}
    for found in (
        _quantised(graph),
        _unlowerable(graph, low, opset),
        _indices(graph),
        _statistics(graph, low),
        _extremes(graph, low),
    ):
        for node, reason in found.items():
            kept.setdefault(node, reason)
    return kept


def _unlowerable(graph: ir.Graph, low: ir.DataType, opset: int) -> Islands:
    kept = {}
    for node in graph:
        found = signature(node, opset)
        values = [value for _, value in bound(node, opset)]
        if _has_body(node):
            kept[node] = "the bodies of control flow stay in float32"
        elif found is None:
            kept[node] = f"{node.domain}::{node.op_type} is no operator of ONNX's opset {opset}"
        elif any(isinstance(value.type, (ir.SequenceType, ir.OptionalType)) for value in values):
            kept[node] = "sequences stay in float32"
        elif any(value.type is None for value in values):
            kept[node] = "the dtype of a value is not known"
        elif op(node) in SAMPLERS:
            kept[node] = "sampling coordinates need float32"
        elif op(node) != "Constant" and float32(values) and not lowerable(node, low, opset):
            kept[node] = f"{op(node)} of opset {opset} computes in float32"
    return kept


def _has_body(node: ir.Node) -> bool:
    """Whether it is control flow: If, Loop, Scan."""
    return any(attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attr in node.attributes.values())


def _quantised(graph: ir.Graph) -> Islands:
    """What Q/DQ nodes touch, through data movement: the integer kernels that they mean expect float32 scales."""
    kept: Islands = {}
    reason = "next to quantisation"
    after: set[ir.Value] = set()
    before: set[ir.Value] = set()
    for node in graph:
        if not after.isdisjoint(node.inputs) or node.op_type in (*QUANTIZE, "DequantizeLinear"):
            kept[node] = reason
        if node.op_type == "DequantizeLinear" or (node in kept and op(node) in MOVES):
            after.update(node.outputs)
    for node in reversed(graph):
        if not before.isdisjoint(node.outputs):
            kept[node] = reason
        if node.op_type in QUANTIZE:
            before.update(float32(node.inputs[:1]))
        elif not before.isdisjoint(node.outputs) and op(node) in MOVES:
            before.update(float32(node.inputs))
    return kept


def _indices(graph: ir.Graph) -> Islands:
    """Float arithmetic on sizes and indices: 2049 is no float16, and a size that is off by one is another shape."""
    kept: Islands = {}
    reason = "shape and index arithmetic must be exact"
    exact: set[ir.Value] = set()
    for node in graph:
        inputs = float32(node.inputs)
        from_ints = op(node) == "Cast" and node.inputs[0] is not None and node.inputs[0].dtype in WIDE_INTS
        closed = any(v in exact for v in inputs) and all(v in exact or constant(v) is not None for v in inputs)
        if op(node) == "Range" or from_ints or (closed and op(node) in INDEX_MATH):
            exact.update(float32(node.outputs))
            if float32(node.outputs):
                kept[node] = reason
        elif op(node) == "Div" and node.inputs[1] in exact:
            producer = inputs[0].producer()
            summed = [producer] if producer and op(producer) == "ReduceSum" else []
            kept.update(dict.fromkeys([node, *summed], MEAN_AS_SUM))
    for node in reversed(graph):
        uses = [use for value in node.outputs for use in value.uses()]
        outside = not uses or any(value.is_graph_output() for value in node.outputs)
        if op(node) not in INDEX_MATH or not float32(node.outputs) or outside:
            continue
        if all(kept.get(user) == reason or _is_index(user, at) for user, at in uses):
            kept[node] = reason
    return kept


def _is_index(node: ir.Node, at: int) -> bool:
    if op(node) == "Cast":
        return node.outputs[0].dtype in WIDE_INTS
    return at in INDEX_INPUTS.get(op(node), ())


def _statistics(graph: ir.Graph, low: ir.DataType) -> Islands:
    """Sums of squares or exponentials, and tiny epsilons, as far as the division or logarithm they are there for.

    Decomposed LayerNorm: d = x - mean(x); d / sqrt(mean(d * d) + eps). Squares pass float16 at |d| = 256, and an
    epsilon of 1e-12 is zero there.
    """
    kept: Islands = {}
    fragile: dict[ir.Value, str] = {}
    summed = _summed(graph)
    for node in graph:
        grows, tiny = _grows(node, summed), _vanishes(node, low)
        carried = next((fragile[value] for value in node.inputs if value in fragile), None)
        goes_on = carried is not None and _carries(node, fragile)
        if grows or tiny or goes_on or (carried and op(node) in ENDS):
            kept[node] = grows or carried or tiny or ""
        if goes_on or (grows and op(node) not in NORMS) or (tiny and op(node) not in ENDS):
            fragile.update(dict.fromkeys(float32(node.outputs), kept[node]))
    for node in reversed(graph):
        if node in kept:
            for producer in [value.producer() for value in float32(node.inputs)]:
                if producer and _is_statistic(producer):
                    kept.setdefault(producer, kept[node])
    return kept


def _grows(node: ir.Node, summed: Collection[ir.Value]) -> str | None:
    if op(node) in SQUARING or (_is_square(node) and node.outputs[0] in summed):
        return "a sum of squares needs float32's range"
    if op(node) == "Exp" and node.outputs[0] in summed:
        return "a sum of exponentials needs float32's range"
    if op(node) == "ReduceSum" and any(_is_scaling(user) for user in node.outputs[0].consumers()):
        return MEAN_AS_SUM
    return None


def _summed(graph: ir.Graph) -> set[ir.Value]:
    """The values that a sum or a mean takes in, through data movement."""
    summed: set[ir.Value] = set()
    for node in reversed(graph):
        if op(node) in MEANS or (op(node) in MOVES and not summed.isdisjoint(node.outputs)):
            summed.update(float32(node.inputs))
    return summed


def _is_square(node: ir.Node) -> bool:
    if op(node) == "Pow":
        exponent = constant(node.inputs[1])
        return exponent is not None and exponent.size == 1 and float(exponent.numpy().item()) == 2
    return op(node) == "Mul" and node.inputs[0] is node.inputs[1]


def _is_scaling(node: ir.Node) -> bool:
    return op(node) in ("Div", "Mul") and any(constant(value) is not None for value in node.inputs)


def _is_statistic(node: ir.Node) -> bool:
    """A mean, a square, or the distance from a mean."""
    if op(node) != "Sub":
        return op(node) in MEANS or _is_square(node)
    return node.inputs[1] is not None and op(node.inputs[1].producer()) in MEANS


def _carries(node: ir.Node, fragile: Collection[ir.Value]) -> bool:
    """Whether what is fragile in a node's inputs is so in its output: arithmetic with data makes it ordinary."""
    if op(node) in ("Add", "Div", "Mul", "Sub"):
        if op(node) == "Div" and node.inputs[1] in fragile and constant(node.inputs[0]) is None:
            return False
        return all(value in fragile or constant(value) is not None or _from_mean(value) for value in node.inputs)
    return op(node) in CARRIES


def _from_mean(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and (_is_square(producer) or op(producer) in MEANS)


def _vanishes(node: ir.Node, low: ir.DataType) -> str | None:
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
    top = max(abs(end) for end in _ends(tensor.numpy()))
    if not 0 < top < LIMITS[low][0]:
        return None
    values = tensor.numpy().astype(np.float64)
    error = np.linalg.norm(values - values.astype(low.numpy()).astype(np.float64))
    return top if error > np.linalg.norm(values) / 256 else None


def _overflowing(tensor: ir.TensorProtocol, low: ir.DataType) -> float | None:
    """The value of largest magnitude in a tensor where the low dtype makes it infinite, else None."""
    worst = max(_ends(tensor.numpy()), key=abs)
    with np.errstate(over="ignore"):
        return worst if np.isinf(np.float64(worst).astype(low.numpy())) else None


def _ends(values: Array) -> tuple[float, float]:
    """The smallest and the largest finite value; infinities exist in every dtype."""
    if values.size == 0:
        return 0.0, 0.0
    first, last = float(values.min()), float(values.max())
    if not (np.isfinite(first) and np.isfinite(last)):
        return _ends(values[np.isfinite(values)])
    return first, last


def _extremes(graph: ir.Graph, low: ir.DataType) -> Islands:
    """Constants beyond the low dtype's range, and whatever they reach until a bounded function takes it in."""
    kept: Islands = {}
    wild: dict[ir.Value, str] = {}
    for node in graph:
        if _has_body(node):
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
