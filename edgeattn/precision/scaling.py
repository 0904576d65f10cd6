"""Scores that overflow only because they are scaled after the product are scaled before it, exactly.

    (q k^T) * s = ((q 2^e) k^T) * (s / 2^e)

A power of two changes no digit of a float. With all of the scale's powers of two before the product, what the product
gives is no larger than what the scale left of it, so that no part has to stay in float32.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgeattn.ops.walk import dims, number, users
from edgeattn.precision.extremes import LIMITS
from edgeattn.precision.observed import MARGIN, peak_of, too_large
from edgeattn.precision.ranges import Ranges
from edgeattn.precision.signatures import constant, float32, is_float32, op

if TYPE_CHECKING:
    from edgeattn.tensors import Array


def scale_before(graph: ir.Graph, low: ir.DataType, ranges: Ranges) -> tuple[str, ...]:
    """Move scales from behind the products that overflow to before them, in place; says where and by how much.

    The larger operand is scaled: the other would lose more of its small numbers.
    """
    notes = []
    for node in list(graph):
        found = _scaling(node, low, ranges)
        if found is None:
            continue
        scale, exponent, rest = found
        product = node.outputs[0]
        peaks = [peak_of(value, ranges) or 0.0 for value in float32(node.inputs)]
        place = peaks.index(max(peaks))
        peak = too_large(peak_of(product, ranges) or 0.0, low)
        before = f"scaled by 2^{exponent} before the product instead of after it, which is exact"
        notes.append(f"{node.op_type} {node.name!r}: values of up to {peak}: {before}")
        _scale(graph, node, place, exponent)
        product.name = f"{product.name}/scaled"  # what was observed is no longer what it holds
        _leave(graph, scale, product, rest)
    return tuple(notes)


def _scaling(node: ir.Node, low: ir.DataType, ranges: Ranges) -> tuple[ir.Node, int, float] | None:
    """The node that scales a product which overflows, the power of two to move, and the scale that remains."""
    product = node.outputs[0]
    readers = users(product)
    computed = all(is_float32(value) and constant(value) is None for value in node.inputs)
    if op(node) != "MatMul" or not computed or product.is_graph_output() or len(readers) != 1:
        return None
    scale = readers[0]
    places = [1] if op(scale) == "Div" else [0, 1] if op(scale) == "Mul" else []
    factor = next((found for place in places if (found := number(scale.inputs[place])) is not None), 0.0)
    if dims(product) is None or dims(scale.outputs[0]) != dims(product):  # a factor may have more axes
        return None
    peak, after = peak_of(product, ranges), peak_of(scale.outputs[0], ranges)
    if not factor or peak is None or after is None or not peak * MARGIN > LIMITS[low][1] >= after * MARGIN:
        return None
    fraction, exponent = math.frexp(factor)  # 0.5 <= |fraction| < 1
    if op(scale) == "Div" and abs(fraction) > 0.5:
        return scale, -exponent, fraction
    return scale, exponent - 1 if op(scale) == "Mul" else 1 - exponent, 2 * fraction


def _scale(graph: ir.Graph, node: ir.Node, place: int, exponent: int) -> None:
    """Multiply an operand of a product by a power of two."""
    operand, name = float32(node.inputs)[place], f"{node.outputs[0].name}/before"
    factor = _constant(graph, np.array(2.0**exponent, np.float32), f"{name}_factor")
    scaler = ir.node("Mul", [operand, factor], name=f"{node.name}/before")
    result = scaler.outputs[0]
    result.name, result.type, result.shape = name, operand.type, operand.shape
    graph.insert_before(node, scaler)
    node.replace_input_with(place, result)


def _leave(graph: ir.Graph, scale: ir.Node, product: ir.Value, rest: float) -> None:
    """What remains of the node that scaled: nothing, where the scale was a power of two."""
    if rest != 1:
        place = 1 if scale.inputs[0] is product else 0
        old = scale.inputs[place]
        shape = [1] * len(dims(old) or ())
        scale.replace_input_with(place, _constant(graph, np.full(shape, rest, np.float32), f"{product.name}_rest"))
        return
    result = scale.outputs[0]
    ir.convenience.replace_all_uses_with(result, product, replace_graph_outputs=True)
    product.name, result.name = result.name, None
    graph.remove(scale, safe=True)


def _constant(graph: ir.Graph, array: Array, name: str) -> ir.Value:
    tensor = ir.tensor(array)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
