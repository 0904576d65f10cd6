"""The two steps that softmax mechanisms are made of, whatever their spelling: a product of tensors, and a softmax."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import onnx_ir as ir

from edgeattn.ops.walk import axes_of, constant, dims, integer, made_by

NEAR = 8  # nodes other than views beyond which a product and a softmax have nothing to do with each other


class Slot(NamedTuple):
    """An input of a node: what stands there after others were replaced, too."""

    node: ir.Node
    place: int

    @property
    def value(self) -> ir.Value:
        """The tensor there."""
        value = self.node.inputs[self.place]
        assert value is not None
        return value


@dataclass(frozen=True)
class Product:
    """A contraction of two tensors over one axis; labels name the axes of both and of the result."""

    node: ir.Node
    labels: tuple[str, str]
    out: str
    factor: float = 1.0

    def slot(self, side: int) -> Slot:
        """An operand."""
        return Slot(self.node, side)

    @property
    def summed(self) -> str:
        """The label that both operands have and the result has not."""
        return next(label for label in self.labels[0] if label not in self.out)

    def own(self, side: int) -> str:
        """The labels that only one operand has."""
        return "".join(label for label in self.labels[side] if label not in self.labels[1 - side])


@dataclass(frozen=True)
class Softmax:
    """A softmax over one axis, one node or written out."""

    anchor: ir.Node
    scores: ir.Value
    weights: ir.Value
    axis: int


def name_of(node: ir.Node) -> str:
    """An operator and its name, as messages say them."""
    return f"{node.op_type} {node.name!r}"


def product_of(node: ir.Node | None) -> Product | None:
    """The node as a contraction over one axis of two tensors, if it is one."""
    if node is None or node.domain not in ("", "ai.onnx") or len(node.inputs) < 2:
        return None
    left, right = dims(node.inputs[0]), dims(node.inputs[1])
    if left is None or right is None or min(len(left), len(right)) < 2:
        return None
    if node.op_type == "MatMul":
        batch = "ABCDEFGH"[: max(len(left), len(right)) - 2]
        labels = (batch[len(batch) + 2 - len(left) :] + "ix", batch[len(batch) + 2 - len(right) :] + "xj")
        return Product(node, labels, batch + "ij") if max(len(left), len(right)) <= 10 else None
    if node.op_type == "Gemm" and (len(node.inputs) < 3 or node.inputs[2] is None):
        alpha = node.attributes.get("alpha")
        labels = ("xi" if integer(node, "transA", 0) else "ix", "jx" if integer(node, "transB", 0) else "xj")
        return Product(node, labels, "ij", 1.0 if alpha is None else alpha.as_float())
    return _einsum(node) if node.op_type == "Einsum" and len(node.inputs) == 2 else None


def _einsum(node: ir.Node) -> Product | None:
    inputs, arrow, out = node.attributes["equation"].as_string().replace(" ", "").partition("->")
    left, _, right = inputs.partition(",")
    if not arrow or "." in inputs or any(len(set(labels)) != len(labels) for labels in (left, right, out)):
        return None
    gone = [label for label in {*left, *right} if label not in out]
    if len(gone) != 1 or gone[0] not in left or gone[0] not in right:
        return None
    return Product(node, (left, right), out)


def is_of_two_tensors(product: Product | None) -> bool:
    """Whether neither operand is the weight of a linear layer."""
    if product is None:
        return False
    sides = [product.slot(side).value for side in (0, 1)]
    return not any(len(dims(value) or ()) < 3 and is_fixed(value) for value in sides)


def is_fixed(value: ir.Value | None, depth: int = NEAR) -> bool:
    """Whether a value depends on no input of the graph, like a weight that is normalised; False where that is far."""
    if constant(value) is not None:
        return True
    node = value.producer() if value is not None else None
    fixed = node is not None and depth > 0 and bool(node.inputs)
    return fixed and node is not None and all(item is None or is_fixed(item, depth - 1) for item in node.inputs)


def softmaxes(graph: ir.Graph) -> Iterator[Softmax]:
    """Every softmax of a graph."""
    for node in graph:
        output = node.outputs[0] if node.outputs else None
        shape = dims(output)
        if not shape or output is None:
            continue
        if made_by(output, "Softmax") and node.inputs[0] is not None:
            yield Softmax(node, node.inputs[0], output, integer(node, "axis", -1) % len(shape))
        elif made_by(output, "Div"):
            yield from _written_out(node, len(shape))


def _written_out(node: ir.Node, rank: int) -> Iterator[Softmax]:
    """exp(x) / sum(exp(x)), with the maximum subtracted before or not."""
    top = made_by(node.inputs[0], "Exp")
    total = made_by(node.inputs[1], "ReduceSum")
    if top is None or total is None or total.inputs[0] is not node.inputs[0] or not integer(total, "keepdims", 1):
        return
    axes = axes_of(total, rank)
    value = top.inputs[0]
    if axes is None or len(axes) != 1 or value is None:
        return
    shift = made_by(value, "Sub")
    if shift is not None and (peak := made_by(shift.inputs[1], "ReduceMax")) is not None:
        over = axes_of(peak, rank)
        if peak.inputs[0] is shift.inputs[0] and over == axes and integer(peak, "keepdims", 1) and shift.inputs[0]:
            value = shift.inputs[0]
    yield Softmax(node, value, node.outputs[0], axes[0])
