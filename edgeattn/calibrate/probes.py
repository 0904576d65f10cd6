"""Which values of a graph calibration looks at.

Every value that leaves a runtime costs: it must be stored, and what would have been fused with its reader is not. So
each is looked at once, where that hinders least, and what follows from it is computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from edgeattn.ops.walk import behind
from edgeattn.precision.signatures import constant, op

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
MOVES = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
BOUNDS = frozenset({"Relu", "Clip"})
WEIGHTS = frozenset({"Sigmoid", "HardSigmoid", "Softmax"})  # make numbers from 0 to 1


@dataclass(frozen=True)
class Derived:
    """A value in terms of another: `of` times `factor`, plus `least` to `most`; where it is `shrunk`, times 0 to 1."""

    of: str
    factor: float = 1.0
    least: float = 0.0
    most: float = 0.0
    shrunk: bool = False

    def after(self, first: Derived) -> Derived | None:
        """This one, where `of` itself is derived by `first`; None where it moves what is shrunk, which comes last."""
        if first.shrunk and (self.least, self.most) != (0.0, 0.0):
            return None
        least, most = sorted((first.least * self.factor, first.most * self.factor))
        shrunk = first.shrunk or self.shrunk
        return Derived(first.of, first.factor * self.factor, least + self.least, most + self.most, shrunk)


@dataclass(frozen=True)
class Probes:
    """The values to look at, each with a lower bound that its operator gives (a Relu's 0), and those that follow."""

    observed: Mapping[str, float | None]
    derived: Mapping[str, Derived]


def probes(graph: ir.Graph) -> Probes:
    """Decide where to look at a graph's floating-point values.

    A moved value (reshaped, transposed) is what it was; a value and its multiple by a constant follow from each other,
    and bounds of a product from its sum with a bias; the weights of an attention lie between 0 and 1, and what a gate
    leaves for a sum between zero and the map. What only a Relu or a Clip reads, and what lies between an Erf and its
    product, is left out: no precision pass asks for it, and runtimes fuse it away.
    """
    values = {value.name or "": value for value in _computed(graph) if not _is_inside(value)}
    links = {name: link for name, value in values.items() if (link := _link(value)) is not None}
    ends = {name: _end(name, links) for name in values}
    roots = {end.of for end in ends.values()}
    return Probes(
        {name: 0.0 if op(value.producer()) == "Relu" else None for name, value in values.items() if name in roots},
        {name: end for name, end in ends.items() if name not in roots and end.of in values},
    )


def _end(name: str, links: Mapping[str, Derived]) -> Derived:
    """How a value follows from the last that links lead to."""
    end = Derived(name)
    while (link := links.get(end.of)) is not None and (further := end.after(link)) is not None:
        end = further
    return end


def _computed(graph: ir.Graph) -> Iterator[ir.Value]:
    """The inputs, and what nodes compute and somebody reads; floating-point tensors."""
    made = (value for node in graph for value in node.outputs if value.uses() or value.is_graph_output())
    for value in (*graph.inputs, *made):
        is_float = value.dtype in FLOATS and isinstance(value.type, ir.TensorType)
        if is_float and value.name and constant(value) is None:
            yield value


def _is_inside(value: ir.Value) -> bool:
    """Whether a value never leaves what runtimes fuse: what a bound reads, and what an Erf gives a Gelu."""
    readers, node = value.consumers(), value.producer()
    if node is None or value.is_graph_output():
        return False
    shifted = op(node) == "Add" and any(item is not None and op(item.producer()) == "Erf" for item in node.inputs)
    return shifted or op(node) == "Erf" or all(op(user) in BOUNDS and user.inputs[0] is value for user in readers)


def _link(value: ir.Value) -> Derived | None:
    """The value that one follows from: its source, or the only one that is made of it."""
    node = value.producer()
    if node is None:
        return None
    source = node.inputs[0] if node.inputs else None
    if source is not None and constant(source) is None:
        if op(node) in MOVES:
            return Derived(source.name or "")
        if op(node) == "Softmax" and _only_weighs(value):
            return Derived(source.name or "", 0.0, 0.0, 1.0)
    if (gated := _gated(node)) is not None and all(op(user) == "Add" for user in value.consumers()):
        return Derived(gated.name or "", shrunk=True)
    scaled = _scaled(node)
    if scaled is not None and not _is_fused_with_reader(scaled[0]):
        return Derived(scaled[0].name or "", scaled[1])
    return _from_reader(value, op(node)) if _is_fused_with_reader(value) else None


def _only_weighs(value: ir.Value) -> bool:
    """Whether a value is multiplied with computed ones and nothing else, so that nobody asks how large it is."""
    readers = [] if value.is_graph_output() else value.consumers()
    return bool(readers) and all(
        op(user) == "MatMul" and all(constant(item) is None for item in user.inputs) for user in readers
    )


def _gated(node: ir.Node) -> ir.Value | None:
    """What a Mul multiplies by numbers from 0 to 1."""
    if op(node) != "Mul" or node.outputs[0].is_graph_output():
        return None
    for x, gate in (node.inputs, reversed(node.inputs)):
        if x is not None and gate is not None and constant(x) is None and op(behind(gate, MOVES).producer()) in WEIGHTS:
            return x
    return None


def _is_fused_with_reader(value: ir.Value) -> bool:
    """Whether a runtime may compute a value only together with what its single reader makes of it."""
    alone = len(value.uses()) == 1 and not value.is_graph_output()
    return alone and op(value.producer()) in PRODUCTS | {"Mul"}


def _from_reader(value: ir.Value, kind: str) -> Derived | None:
    """How a value follows from what its only reader makes of it."""
    reader = value.consumers()[0]
    if (scaled := _scaled(reader)) is not None:
        return Derived(reader.outputs[0].name or "", 1 / scaled[1])
    biases = [tensor.numpy() for tensor in map(constant, reader.inputs) if tensor is not None and tensor.size]
    if kind in PRODUCTS and op(reader) == "Add" and biases:
        return Derived(reader.outputs[0].name or "", 1.0, -float(biases[0].max()), -float(biases[0].min()))
    return None


def _scaled(node: ir.Node) -> tuple[ir.Value, float] | None:
    """The value that a node multiplies by a single constant, and that constant."""
    kind = op(node)
    for place in (1,) if kind == "Div" else (0, 1) if kind == "Mul" else ():
        tensor, source = constant(node.inputs[place]), node.inputs[1 - place]
        if tensor is not None and tensor.size == 1 and source is not None and constant(source) is None:
            number = float(tensor.numpy().item())
            factor = number if kind == "Mul" else 1 / number if number else 0.0
            return (source, factor) if math.isfinite(factor) and 1e-30 < abs(factor) < 1e30 else None
    return None
