"""Layer normalisation written out becomes the operator, whose statistics every runtime computes in float32.

    d = x - mean(x)    y = d / sqrt(mean(d^2) + eps) [* scale] [+ bias]

over the last axes, or over any others, as the channels of (B, C, H, W) maps: then between two transposes, since the
operator normalises the last axes only. Exact: the same formula over the same numbers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from edgeattn.errors import InputError
from edgeattn.normalise import infer_types, upgraded
from edgeattn.ops.base import Tape
from edgeattn.ops.walk import constant, dims, integer, ints, made_by, number, users

if TYPE_CHECKING:
    from edgeattn.tensors import Array

Axes = tuple[int, ...]
OPSET = 17  # the first with LayerNormalization


class _Norm(NamedTuple):
    """A normalisation of `x` over `axes` of these sizes; `y` is its result before any scale and bias."""

    x: ir.Value
    y: ir.Value
    axes: Axes
    sizes: tuple[int, ...]
    epsilon: float


def merge_norms(model: ir.Model) -> ir.Model:
    """Replace every layer normalisation that is written out in float32, in a model whose shapes are inferred.

    In place where the operator set has the operator; a model of an older one is carried over where that can be done,
    and stays as it is where not.
    """
    if not any(_norm(node) for node in model.graph):
        return model
    if model.opset_imports.get("", 1) < OPSET:
        try:
            model = upgraded(model, OPSET)
        except InputError:
            return model
        infer_types(model)
    for node in list(model.graph):
        norm = _norm(node)
        if norm is not None:
            _replace(model.graph, norm)
    common.RemoveUnusedNodesPass()(model)
    common.NameFixPass()(model)
    return model


def _norm(node: ir.Node) -> _Norm | None:
    """What a division by a standard deviation, or a product with its reciprocal, normalises."""
    pairs: list[tuple[ir.Value | None, ir.Value | None]] = []
    if made_by(node.outputs[0], "Div"):
        pairs = [(node.inputs[0], _under_root(node.inputs[1]))]
    elif made_by(node.outputs[0], "Mul"):
        pairs = [(node.inputs[place], _under_inverse_root(node.inputs[1 - place])) for place in (0, 1)]
    for distance, inside in pairs:
        centred = _centred(distance)
        if centred is None or inside is None:
            continue
        (x, axes), (variance, epsilon) = centred, _without_epsilon(inside)
        sizes = [size for place, size in enumerate(dims(x) or ()) if place in axes and isinstance(size, int)]
        square, over = _mean(variance, dims(x) or ())
        same = over == axes and _centred(_squared(square)) == centred
        if same and 0 < len(sizes) == len(axes) and x.dtype == ir.DataType.FLOAT:
            return _Norm(x, node.outputs[0], axes, tuple(sizes), epsilon)
    return None


def _under_root(value: ir.Value | None) -> ir.Value | None:
    """What a value is the square root of."""
    root = made_by(value, "Sqrt", "Pow")
    return root.inputs[0] if root is not None and (root.op_type == "Sqrt" or number(root.inputs[1]) == 0.5) else None


def _under_inverse_root(value: ir.Value | None) -> ir.Value | None:
    """What a value is one over the square root of."""
    inverse = made_by(value, "Reciprocal", "Div", "Pow")
    if inverse is None or (inverse.op_type == "Div" and number(inverse.inputs[0]) != 1):
        return None
    if inverse.op_type == "Pow":
        return inverse.inputs[0] if number(inverse.inputs[1]) == -0.5 else None
    return _under_root(inverse.inputs[-1])


def _without_epsilon(inside: ir.Value) -> tuple[ir.Value, float]:
    """The variance under a root, and the number that is added to it."""
    added = made_by(inside, "Add")
    for value, other in [added.inputs, added.inputs[::-1]] if added is not None else []:
        epsilon = number(other)
        if value is not None and epsilon is not None and epsilon >= 0:
            return value, epsilon
    return inside, 0.0


def _squared(value: ir.Value | None) -> ir.Value | None:
    """What a value is the square of."""
    node = made_by(value, "Mul", "Pow")
    if node is None:
        return None
    is_square = node.inputs[0] is node.inputs[1] if node.op_type == "Mul" else number(node.inputs[1]) == 2
    return node.inputs[0] if is_square else None


def _centred(value: ir.Value | None) -> tuple[ir.Value, Axes] | None:
    """The x and the axes of x - mean(x)."""
    node = made_by(value, "Sub")
    x = node.inputs[0] if node is not None else None
    if node is None or x is None:
        return None
    averaged, axes = _mean(node.inputs[1], dims(x) or ())
    return (x, axes) if averaged is x else None


def _mean(value: ir.Value | None, shape: tuple[int | str | None, ...]) -> tuple[ir.Value | None, Axes]:
    """What a value is the mean of, and over which axes of that shape: each is kept as a size of one."""
    divided = made_by(value, "Div")  # a sum over its count
    inner, shaped = divided.inputs[0] if divided is not None else value, False
    while (reshape := made_by(inner, "Reshape", "Unsqueeze")) is not None:
        inner, shaped = reshape.inputs[0], True
    reduce = made_by(inner, "ReduceMean" if divided is None else "ReduceSum")
    if reduce is None or not shape:
        return None, ()
    axes = _axes(reduce, len(shape))
    if divided is not None:
        sizes = [size for axis in axes if isinstance(size := shape[axis], int)]
        if len(sizes) < len(axes) or number(divided.inputs[1]) != math.prod(sizes):
            return None, ()
    wide = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    kept = bool(integer(reduce, "keepdims", 1)) and not shaped
    return (reduce.inputs[0], axes) if kept or (None not in wide and dims(value) == wide) else (None, ())


def _axes(reduce: ir.Node, rank: int) -> Axes:
    """The axes a node reduces, in order; none where they are not known."""
    given = constant(reduce.inputs[1]) if len(reduce.inputs) > 1 else None
    axes = given.ravel().tolist() if given is not None else ints(reduce, "axes", ()) or ()
    return tuple(sorted(int(axis) % rank for axis in axes))


def _replace(graph: ir.Graph, norm: _Norm) -> None:
    """Put the operator, with the scale and the bias that follow, in the place of a normalisation."""
    scale, result = _affine(norm, norm.y, "Mul")
    bias, result = _affine(norm, result, "Add")
    place = result.producer()
    assert place is not None
    shape = dims(norm.x) or ()
    order = [*(axis for axis in range(len(shape)) if axis not in norm.axes), *norm.axes]
    tape, x = Tape(), norm.x
    if order != sorted(order):
        x = tape.op("Transpose", [x], perm=order)
    weights = [np.ones(norm.sizes, np.float32) if scale is None else scale, *([] if bias is None else [bias])]
    operands = [x, *(tape.constant(array) for array in weights)]
    y = tape.op("LayerNormalization", operands, axis=-len(norm.axes), epsilon=norm.epsilon)
    for node in tape.nodes:
        node.outputs[0].shape = ir.Shape([shape[axis] for axis in order])
    if order != sorted(order):
        y = tape.op("Transpose", [y], perm=np.argsort(order).tolist())
    _insert(graph, place, tape, result, y)


def _affine(norm: _Norm, value: ir.Value, kind: str) -> tuple[Array | None, ir.Value]:
    """The constant over the normalised axes that is all that a value is multiplied by or added to, and the result."""
    readers = users(value)
    if len(readers) != 1 or not made_by(readers[0].outputs[0], kind) or value.is_graph_output():
        return None, value
    left, right = readers[0].inputs
    array = constant(right if left is value else left)
    rank = len(dims(norm.x) or ())
    if array is None or array.ndim > rank:
        return None, value
    array = array.reshape((1,) * (rank - array.ndim) + array.shape)
    if any(size != 1 for axis, size in enumerate(array.shape) if axis not in norm.axes):
        return None, value
    own = array.reshape([array.shape[axis] for axis in norm.axes])
    return np.ascontiguousarray(np.broadcast_to(own, norm.sizes)), readers[0].outputs[0]


def _insert(graph: ir.Graph, place: ir.Node, tape: Tape, old: ir.Value, new: ir.Value) -> None:
    """Insert a tape before the node that made `old`, under its name; `new` takes the name and the uses of `old`."""
    new.shape, name = old.shape, old.name
    for index, value in enumerate([*tape.constants, *(node.outputs[0] for node in tape.nodes)]):
        value.name, value.type = f"{name}/norm_{index}", ir.TensorType(ir.DataType.FLOAT)
    for value in tape.constants:
        graph.register_initializer(value)
    for node in tape.nodes:
        node.name = place.name if node.op_type == "LayerNormalization" else None
        node.metadata_props.update(place.metadata_props)
    graph.insert_before(place, tape.nodes)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    new.name, old.name, place.name = name, None, None
