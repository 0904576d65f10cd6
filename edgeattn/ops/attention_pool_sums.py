"""Sums of products as `AttentionPool` looks for them: a label for each axis, as `Einsum` has them, however spelled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from edgeattn.ops import walk
from edgeattn.ops.layout import VIEWS
from edgeattn.ops.products import Softmax, product_of

LABELS = "abcdefgh"
_AROUND = (*VIEWS, "Expand", "Max", "Clip", "Add")  # a norm that is kept from zero


@dataclass(frozen=True)
class Sum:
    """sum of left * right over the labels that `out` lacks; " " labels an axis that is left of a sum, of size one."""

    node: ir.Node
    values: tuple[ir.Value, ir.Value]
    labels: tuple[str, str]
    out: str


def sum_of(node: ir.Node) -> Sum | None:
    """The node as a sum of products; a sum that is summed on is none."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in ("ReduceSum", "ReduceMean"):
        summed_on = walk.users(node.outputs[0], "ReduceSum")
        found = _reduced(node.outputs[0]) if not summed_on else None
        return None if found is None else _products(node, *found)
    if node.op_type not in ("MatMul", "Gemm", "Einsum") or len(node.inputs) < 2:
        return None
    left, right = node.inputs[:2]
    if left is None or right is None:
        return None
    if node.op_type == "Einsum":
        inputs, arrow, out = node.attributes["equation"].as_string().replace(" ", "").partition("->")
        one, _, other = inputs.partition(",")
        plain = bool(arrow) and all(len(set(labels)) == len(labels) for labels in (one, other, out))
        ranks = [len(walk.dims(value) or ()) for value in node.inputs]
        return Sum(node, (left, right), (one, other), out) if plain and ranks == [len(one), len(other)] else None
    product = product_of(node)
    return (
        Sum(node, (left, right), product.labels, product.out) if product is not None and product.factor == 1 else None
    )


def _reduced(value: ir.Value | None) -> tuple[ir.Node, str] | None:
    """The product behind one or more sums, and the labels of its axes that are left."""
    node = walk.made_by(value, "ReduceSum", "ReduceMean", "Mul")
    shape = walk.dims(value)
    if node is None or shape is None:
        return None
    if node.op_type == "Mul":
        return (node, LABELS[: len(shape)]) if len(shape) <= len(LABELS) else None
    found = _reduced(node.inputs[0])
    axes = walk.axes_of(node, len(found[1])) if found is not None else None
    if found is None or not axes:
        return None
    left = " " if walk.integer(node, "keepdims", 1) else ""
    return found[0], "".join(left if place in axes else label for place, label in enumerate(found[1]))


def _products(node: ir.Node, product: ir.Node, out: str) -> Sum | None:
    left, right = product.inputs
    ranks = [len(walk.dims(value) or ()) for value in (left, right, product.outputs[0])]
    if left is None or right is None or 0 in ranks:
        return None
    labels = tuple(LABELS[ranks[2] - rank : ranks[2]] for rank in ranks[:2])
    return Sum(node, (left, right), (labels[0], labels[1]), out)


def behind(value: ir.Value, known: Mapping[ir.Value, Softmax]) -> tuple[Softmax | None, list[ir.Node]]:
    """The softmax that a value is a view of, and the views, the last one first."""
    views: list[ir.Node] = []
    while value not in known:
        node = walk.made_by(value, *VIEWS, "Expand")
        if node is None or node.inputs[0] is None:
            return None, views
        views.append(node)
        value = node.inputs[0]
    return known[value], views


def norm_of(total: Sum, side: int) -> ir.Node | None:
    """The division of weights, one for several numbers of an item, by their norm over the items: SwiftFormer's."""
    value = walk.behind(total.values[side], (*VIEWS, "Expand"))
    divided = walk.made_by(value, "Div")
    divisor = walk.behind(divided.inputs[1], _AROUND) if divided is not None and divided.inputs[1] is not None else None
    norm = walk.made_by(divisor, "ReduceL2", "ReduceL1")
    axes = walk.axes_of(norm, len(total.labels[side])) if norm is not None else None
    if norm is None or axes is None or len(walk.dims(norm.inputs[0]) or ()) != len(total.labels[side]):
        return None
    weights, items = (
        dict(zip(total.labels[at], walk.dims(total.values[at]) or (), strict=True)) for at in (side, 1 - side)
    )
    shared = any(size == 1 != items.get(label, 1) for label, size in weights.items() if label in total.out)
    summed = tuple(place for place, label in enumerate(total.labels[side]) if label not in total.out)
    return divided if shared and axes == summed else None
