"""How the operands of an attention lie in memory before they are transposed: kernels read and write them as they are.

A layout is an order of b, h, n, d: batch, heads, tokens, channels. The canonical one is "bhnd"; a map of channels, as
convolutions make it, is "bhdn" with one head.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeattn.ops.base import Tape
from edgeattn.ops.walk import dims
from edgeattn.tensors import Dim

CANONICAL = "bhnd"


@dataclass(frozen=True)
class Operand:
    """A tensor in memory: `source` lacks the axis of heads where `axes` does; there is one then."""

    source: ir.Value
    axes: str

    @property
    def layout(self) -> str:
        """The order of all four."""
        return self.axes if "h" in self.axes else f"bh{self.axes[1:]}"

    @property
    def shape(self) -> tuple[Dim | None, ...]:
        """The sizes in that order."""
        known = dict(zip(self.axes, dims(self.source) or (), strict=False))
        return tuple(1 if axis not in self.axes else known.get(axis) for axis in self.layout)


def operand(value: ir.Value) -> Operand:
    """The tensor that an operand is made of by transposing and an axis of size 1; itself where it is not."""
    found, at, axes = Operand(value, CANONICAL), value, CANONICAL
    while (node := at.producer()) is not None and node.inputs[0] is not None:
        source = node.inputs[0]
        if node.op_type == "Transpose" and "perm" in node.attributes:
            perm = node.attributes["perm"].as_ints()
            axes = "".join(axis for _, axis in sorted(zip(perm, axes, strict=True)))
            if axes[0] == "b" and set(axes) >= set("bnd"):
                found = Operand(source, axes)
        elif node.op_type == "Unsqueeze" and (gone := _one(node.inputs[1])) is not None and 0 <= gone < len(axes):
            axes = axes[:gone] + axes[gone + 1 :]
        else:
            break
        at = source
    return found


def result(node: ir.Node) -> ir.Node | None:
    """The Transpose that brings an attention's result to another layout, if nothing else sees the result."""
    user = only_user(node.outputs[0])
    if user is not None and user.op_type in ("Squeeze", "Gather") and _drops_heads(node, user):
        user = only_user(user.outputs[0])
    return user if user is not None and user.op_type == "Transpose" and "perm" in user.attributes else None


def layouts(node: ir.Node) -> tuple[str, ...]:
    """Those of q, k, v and y of a canonical node, as they can be read and written."""
    found = [operand(value).layout for value in node.inputs[:3] if value is not None]
    last = result(node)
    if last is None:
        return (*found, CANONICAL)
    perm = last.attributes["perm"].as_ints()
    axes = CANONICAL if len(perm) == len(CANONICAL) else "bnd"
    order = "".join(axes[place] for place in perm)
    return (*found, order if "h" in order else f"bh{order[1:]}" if order[0] == "b" else CANONICAL)


@dataclass(frozen=True)
class Residual:
    """What follows an attention where its kernel can do it along: `add` is gamma y + x."""

    x: ir.Value
    gamma: ir.Value
    add: ir.Node


def residual(node: ir.Node) -> Residual | None:
    """The scaled sum that takes an attention's result and nothing else does, as SAGAN and non-local networks have it.

    In between may be what changes no byte: the head taken out, a Reshape.
    """
    last = result(node)
    if last is not None and layouts(node)[3] == CANONICAL:  # no layout that a kernel writes: the Transpose stays
        return None
    product = only_user(last.outputs[0] if last is not None else node.outputs[0])
    if last is None and product is not None and _drops_heads(node, product):
        product = only_user(product.outputs[0])
    if product is not None and product.op_type == "Reshape":
        product = only_user(product.outputs[0])
    if product is None or product.op_type != "Mul":
        return None
    add = only_user(product.outputs[0])
    gamma = next((value for value in product.inputs if value is not None and _is_number(value)), None)
    if add is None or add.op_type != "Add" or gamma is None:
        return None
    (x,) = (value for value in add.inputs if value is not product.outputs[0])
    shapes = [dims(value) for value in (x, product.outputs[0], add.outputs[0])]
    same = shapes[0] is not None and None not in shapes[0] and shapes.count(shapes[0]) == len(shapes)
    return Residual(x, gamma, add) if x is not None and same else None


def border(node: ir.Node) -> tuple[list[ir.Value], ir.Value]:
    """What an attention's kernel reads where its operands lie in memory, and what it writes in the end."""
    last, tail = result(node), residual(node)
    reads = [operand(value).source for value in node.inputs[:3] if value is not None]
    reads += [value for value in node.inputs[3:] if value is not None]
    if tail is not None:
        return [*reads, tail.x, tail.gamma], tail.add.outputs[0]
    return reads, last.outputs[0] if last is not None and layouts(node)[3] != CANONICAL else node.outputs[0]


def relay(model: ir.Model, node: ir.Node) -> None:
    """Give a canonical node its operands as they lie in memory, and let it write its result as it is needed.

    The node then computes something else than its function's body: its layouts are for the caller to note.
    """
    layout, tail, tape = layouts(node)[3], residual(node), Tape()
    for place in range(3):
        value = node.inputs[place]
        found = operand(value) if value is not None else None
        if found is not None and found.source is not value:
            node.replace_input_with(place, _with_heads(tape, found))
    for number, made in enumerate([*tape.constants, *(step.outputs[0] for step in tape.nodes)]):
        made.name = f"{node.outputs[0].name}/laid_{number}"
    for constant in tape.constants:
        model.graph.register_initializer(constant)
    model.graph.insert_before(node, tape.nodes)
    if layout != CANONICAL:
        _write_as(node, layout)
    if tail is not None:
        _add_along(model.graph, node, tail)


def _with_heads(tape: Tape, found: Operand) -> ir.Value:
    """An operand with all four axes."""
    if "h" in found.axes:
        return found.source
    value = tape.op("Unsqueeze", [found.source, tape.constant(np.array([1]))])
    value.type, value.shape = found.source.type, ir.Shape(found.shape)
    return value


def _write_as(node: ir.Node, layout: str) -> None:
    """Let a node write its result in another layout, and drop the Transpose that did it."""
    y, last = node.outputs[0], result(node)
    assert last is not None
    old, before = last.outputs[0], last.inputs[0]
    assert before is not None
    known = dict(zip(CANONICAL, dims(y) or (None,) * 4, strict=True))
    y.shape = ir.Shape([known[axis] for axis in layout])
    before.shape = old.shape
    ir.convenience.replace_all_uses_with(old, before, replace_graph_outputs=True)
    before.name, old.name = old.name, before.name


def _add_along(graph: ir.Graph, node: ir.Node, tail: Residual) -> None:
    """Let a node take x and gamma too, and give what their sum with its result gave; what did so is left unused."""
    count, y, old = len(node.inputs), node.outputs[0], tail.add.outputs[0]
    node.resize_inputs(count + 2)
    node.replace_input_with(count, tail.x)
    node.replace_input_with(count + 1, tail.gamma)
    ir.convenience.replace_all_uses_with(old, y, replace_graph_outputs=True)
    y.shape, y.name, old.name = old.shape, old.name, y.name
    graph.remove(node)
    graph.insert_before(tail.add, node)  # by then, x is there


def only_user(value: ir.Value) -> ir.Node | None:
    """The one node that reads a value; None where there are more, or the graph gives it out."""
    users = list(value.consumers())
    return users[0] if len(value.uses()) == 1 and not value.is_graph_output() else None


def _drops_heads(node: ir.Node, user: ir.Node) -> bool:
    """Whether a node takes the only head out of an attention's result."""
    sizes = dims(node.outputs[0])
    if sizes is None or sizes[1] != 1:
        return False
    if user.op_type == "Squeeze":
        return len(user.inputs) > 1 and _one(user.inputs[1]) == 1
    index = ir.convenience.get_const_tensor(user.inputs[1]) if user.inputs[1] is not None else None
    axis = user.attributes["axis"].as_int() if "axis" in user.attributes else 0
    return axis == 1 and index is not None and index.numpy().ndim == 0


def _is_number(value: ir.Value) -> bool:
    tensor = ir.convenience.get_const_tensor(value)
    return tensor is not None and tensor.size == 1


def _one(axes: ir.Value | None) -> int | None:
    """The axis that a Squeeze or an Unsqueeze is about, where it is one."""
    tensor = ir.convenience.get_const_tensor(axes) if axes is not None else None
    numbers = [] if tensor is None else tensor.numpy().reshape(-1).tolist()
    return int(numbers[0]) if len(numbers) == 1 else None
