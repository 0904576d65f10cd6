"""Whether an attention runs over channels: XCiT's cross-covariance, DANet's channel attention, Restormer's.

Its form is that of any softmax attention, with features in the place of tokens. What tells them apart is where the
axes come from: the features of a layer are compared with each other, each described by its values at all positions.
"""

from __future__ import annotations

import onnx_ir as ir

from edgeattn.ops.layout import Dim, regrouped
from edgeattn.ops.walk import axes_of, constant, dims, integer, ints, made_by

Origins = frozenset[object]  # CHANNELS, POSITIONS, or (graph input, axis)
CHANNELS, POSITIONS, UNKNOWN = "channels", "positions", frozenset({"unknown"})
_SAME = (
    "Add", "Sub", "Mul", "Div", "Identity", "Cast", "Dropout", "Slice", "Split", "Clip", "Sqrt", "Sigmoid", "Tanh",
    "Relu", "LeakyRelu", "PRelu", "Elu", "Gelu", "HardSigmoid", "HardSwish", "Softplus",
    "BatchNormalization", "LayerNormalization", "InstanceNormalization", "GroupNormalization",
)  # fmt: skip
_POOLING = ("MaxPool", "AveragePool")
_FARTHEST = 48  # nodes


def over_channels(q: ir.Value, k: ir.Value, attended: tuple[int, int], contracted: tuple[int, int]) -> bool:
    """Whether it is certain that queries and keys are channels.

    Args:
        q: the queries, in whatever layout.
        k: the keys, in whatever layout.
        attended: the axis of `q` that tells queries apart, and that of `k` for keys.
        contracted: the axes that the product of both sums over.
    """
    columns = origins(q, contracted[0])
    if CHANNELS in columns or CHANNELS in origins(k, contracted[1]):
        return False
    rows = origins(q, attended[0])
    if rows != origins(k, attended[1]):
        return False
    maps = [value for value, axis in _inputs(rows) if axis == 1]
    is_itself = len(rows) == len(maps) == 1 and columns == {(maps[0], 2), (maps[0], 3)} == origins(k, contracted[1])
    return rows == {CHANNELS} or is_itself


def _inputs(origin: Origins) -> list[tuple[ir.Value, int]]:
    return [item for item in origin if isinstance(item, tuple)]


def origins(value: ir.Value | None, axis: int, depth: int = _FARTHEST) -> Origins:
    """What an axis of a tensor is: features of a layer, positions of a map, or axes of the graph's image inputs."""
    node, shape = made_by(value), dims(value)
    if value is None or shape is None or depth == 0:
        return UNKNOWN
    if node is None:
        is_image = value.is_graph_input() and len(shape) == 4
        return frozenset({(value, axis)}) if is_image else UNKNOWN
    kind, source = node.op_type, dims(node.inputs[0]) if node.inputs else None
    place: int | None = axis
    if kind == "Conv" or (kind in _POOLING and axis > 1):
        return frozenset({CHANNELS if axis == 1 else POSITIONS}) if axis else UNKNOWN
    if kind in ("MatMul", "Gemm") and _is_layer(node) and axis == len(shape) - 1:
        return frozenset({CHANNELS})
    if kind in ("Reshape", "Flatten") and source is not None:
        return _merged(node, source, shape, axis, depth)
    first = 0
    if kind in _SAME:
        first = next((place for place, item in enumerate(node.inputs) if _is_alike(item, node)), 0)
    elif kind not in _POOLING and not _is_layer(node):
        place = None if source is None else _before(node, axis, len(source), len(shape))
    return UNKNOWN if place is None else origins(node.inputs[first], place, depth - 1)


def _merged(node: ir.Node, source: tuple[Dim, ...], shape: tuple[Dim, ...], axis: int, depth: int) -> Origins:
    """An axis of a reshape: all that the axes are which it was merged from."""
    groups = regrouped(source, shape) or []
    olds = [old for olds, news in groups if axis in news for old in olds if source[old] != 1]
    found = [origins(node.inputs[0], old, depth // (len(olds) + 1)) for old in olds]
    return frozenset().union(*found) or UNKNOWN


def _is_alike(value: ir.Value | None, node: ir.Node) -> bool:
    """Whether a value is what an elementwise node changes, and not what it changes it by."""
    own, made = dims(value) or (), dims(node.outputs[0]) or ()
    return constant(value) is None and len(own) == len(made) and own.count(1) == made.count(1)


def _is_layer(node: ir.Node) -> bool:
    """Whether a node is a linear layer."""
    weight = constant(node.inputs[1]) if node.op_type in ("MatMul", "Gemm") else None
    return weight is not None and weight.ndim == 2 and not integer(node, "transA", 0)


def _before(node: ir.Node, axis: int, before: int, after: int) -> int | None:
    """The place of an axis before a node that only moves axes; None for any other node."""
    if node.op_type == "Transpose":
        return (ints(node, "perm") or tuple(reversed(range(after))))[axis]
    if node.op_type == "Gather":  # of one index, which takes an axis away
        gone = integer(node, "axis", 0) % before
        return (axis + (axis >= gone)) if after == before - 1 else None
    axes = axes_of(node, max(before, after)) if node.op_type in ("Squeeze", "Unsqueeze") else None
    if axes is None:
        return None
    own = [place for place in range(max(before, after)) if place not in axes]
    if node.op_type == "Squeeze":
        return own[axis]
    return own.index(axis) if axis in own else None
