"""Sums of squares and of exponentials, sums of many numbers, tiny epsilons: what float16 holds badly by its nature."""

from __future__ import annotations

import math
from collections.abc import Collection

import onnx_ir as ir

from edgeattn.ops.walk import dims, ints
from edgeattn.precision.extremes import vanishes
from edgeattn.precision.signatures import MOVES, Islands, constant, float32, kinds, op

MEANS = kinds("AveragePool GlobalAveragePool ReduceMean ReduceSum")
# Others say by their definition that they compute in float32.
NORMS = kinds("InstanceNormalization LpNormalization MeanVarianceNormalization")
SQUARING = kinds("GlobalLpPool LpPool ReduceL2 ReduceSumSquare") | NORMS
# What a sum of squares, or a tiny epsilon, passes through on its way to the division that it is there for.
CARRIES = (MOVES | MEANS | SQUARING | kinds("Abs Clip Max Min Neg Pow ReduceMax Reciprocal Sqrt")) - NORMS
MEAN_AS_SUM = "a mean written as a sum needs float32's range"
ENDS = kinds("Div Log Mul")
# A sum of so many numbers of an ordinary size passes what float16 holds.
MANY = 2**14


def statistics(graph: ir.Graph, low: ir.DataType) -> Islands:
    """Sums of squares or exponentials, and tiny epsilons, as far as the division or logarithm they are there for.

    Decomposed LayerNorm: d = x - mean(x); d / sqrt(mean(d * d) + eps). Squares pass float16 at |d| = 256, and an
    epsilon of 1e-12 is zero there.
    """
    kept: Islands = {}
    fragile: dict[ir.Value, str] = {}
    summed = _summed(graph)
    for node in graph:
        if op(node) in MEANS and (terms(node) or 0) >= MANY:
            kept[node] = f"a sum of {terms(node)} numbers needs float32's range"
            if op(node) == "ReduceSum":
                fragile.update(dict.fromkeys(node.outputs, kept[node]))
        grows, tiny = _grows(node, summed), vanishes(node, low)
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
    if op(node) in SQUARING or (is_square(node) and node.outputs[0] in summed):
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


def is_square(node: ir.Node) -> bool:
    """Whether a node multiplies a value by itself."""
    if op(node) == "Pow":
        exponent = constant(node.inputs[1])
        return exponent is not None and exponent.size == 1 and float(exponent.numpy().item()) == 2
    return op(node) == "Mul" and node.inputs[0] is node.inputs[1]


def _is_scaling(node: ir.Node) -> bool:
    return op(node) in ("Div", "Mul") and any(constant(value) is not None for value in node.inputs)


def _is_statistic(node: ir.Node) -> bool:
    """A mean, a square, or the distance from a mean."""
    if op(node) != "Sub":
        return op(node) in MEANS or is_square(node)
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
    return producer is not None and (is_square(producer) or op(producer) in MEANS)


def terms(node: ir.Node) -> int | None:
    """How many numbers each result of a pooling or a reduction sums up; None where that is not known."""
    if op(node) == "AveragePool":
        return math.prod(ints(node, "kernel_shape", ()) or ())
    shape = dims(node.inputs[0])
    if shape is None:
        return None
    given = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = given.numpy().ravel().tolist() if given is not None else ints(node, "axes", tuple(range(len(shape))))
    sizes = shape[2:] if op(node).startswith("Global") else [shape[axis] for axis in axes or ()]
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if len(known) == len(sizes) else None
