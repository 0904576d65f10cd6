"""How a graph is searched for `SelectiveKernel`: branches stacked on an axis of their own, or each by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgeattn.ops import walk
from edgeattn.ops.activations import activation
from edgeattn.ops.base import Facts, Match
from edgeattn.ops.layers import Unlike, bare, elements, itemsize, layer, pooled, sizes, vector

if TYPE_CHECKING:
    from edgeattn.tensors import Array

VIEWS = ("Reshape", "Unsqueeze", "Squeeze")
MOST_BRANCHES = 3


@dataclass(frozen=True)
class _Choice:
    """Branches (B, C, H, W), and the softmax that weighs them, its branches along `axis`."""

    branches: tuple[ir.Value, ...]
    softmax: ir.Node


def match(node: ir.Node) -> Match | None:
    """The selection that ends in this sum; None where there is none.

    Raises:
        Unlike: the sum is of branches with softmax weights from their own mean, but something differs.
    """
    choice = _stacked(node) if node.op_type == "ReduceSum" else _separate(node)
    if choice is None or choice.softmax.inputs[0] is None:
        return None
    channels = (walk.dims(choice.branches[0]) or ())[1]
    assert isinstance(channels, int)
    found = _layers(choice.softmax.inputs[0], len(choice.branches), channels)
    if found is None:
        return None
    act, arrays, descriptor = found
    pool = pooled(descriptor)
    if pool is None:
        raise Unlike(f"the weights come from {descriptor.name!r}, expected the mean over height and width")
    if pool[0] != "avg" or not _is_sum(pool[1], choice.branches):
        raise Unlike(f"the weights come from the {pool[0]} of {pool[1].name!r}, expected the mean of the branches' sum")
    count = len(choice.branches)
    if not 2 <= count <= MOST_BRANCHES:
        raise Unlike(f"there are {count} branches, expected 2 to {MOST_BRANCHES}")
    return Match(
        "SelectiveKernel",
        f"{count}-{act}",
        node,
        tuple(walk.between(node.outputs[0], set(choice.branches))),
        node.outputs[0],
        lambda tape: [*choice.branches, *(tape.constant(array) for array in arrays)],
        {},
        _facts(choice.branches, arrays),
    )


def _sizes_of(value: ir.Value | None) -> list[int | str | None]:
    """The sizes of a value that are not 1, the first axis aside."""
    return [dim for dim in (walk.dims(value) or ())[1:] if dim != 1]


# Branches stacked on an axis


def _stacked(node: ir.Node) -> _Choice | None:
    """ReduceSum over axis 1 of a stack times softmax weights."""
    product = walk.made_by(node.inputs[0], "Mul")
    if product is None or walk.axes_of(node, 5) != (1,) or walk.integer(node, "keepdims", 1):
        return None
    for stack, weights in (product.inputs, product.inputs[::-1]):
        shape, other = walk.dims(stack), walk.dims(weights)
        if stack is None or weights is None or shape is None or other is None or len(shape) != 5:
            continue
        if not isinstance(shape[1], int) or not isinstance(shape[2], int) or other[1:] != (*shape[1:3], 1, 1):
            continue
        softmax = _softmax(weights, shape[1], shape[2])
        if softmax is None:
            continue
        branches = _branches(stack)
        if branches is None:
            raise Unlike(f"the branches are not stacked by a Concat: {stack.name!r}")
        return _Choice(branches, softmax)
    return None


def _branches(stack: ir.Value | None) -> tuple[ir.Value, ...] | None:
    """What a stack (B, M, C, H, W) was put together from."""
    node = walk.made_by(stack, "Concat")
    if node is None or walk.integer(node, "axis", 0) not in (1, -4):
        return None
    parts: list[ir.Value] = []
    for item in node.inputs:
        lifted = walk.made_by(item, "Unsqueeze", "Reshape", "Concat")
        inner = _branches(item) if lifted is not None and lifted.op_type == "Concat" else None
        source = lifted.inputs[0] if lifted is not None else None
        before, after = walk.dims(source), walk.dims(item)
        if inner is not None:
            parts += inner
        elif source is not None and before is not None and None not in before and _lifted(before) == after:
            parts.append(source)
        else:
            return None
    return tuple(parts)


def _lifted(shape: tuple[int | str | None, ...]) -> tuple[int | str | None, ...] | None:
    """The shape of a map (B, C, H, W) with an axis for the branches."""
    return (shape[0], 1, *shape[1:]) if len(shape) == 4 else None


def _softmax(weights: ir.Value, count: int, channels: int) -> ir.Node | None:
    """The Softmax over `count` branches whose result (B, count, channels) a value is, in any view.

    Raises:
        Unlike: it is over another axis.
    """
    wide = [size for size in (count, channels) if size != 1]
    value = weights
    while (view := walk.made_by(value, *VIEWS)) and view.inputs[0] is not None and _sizes_of(value) == wide:
        value = view.inputs[0]
    node = walk.made_by(value, "Softmax")
    if node is None or _sizes_of(value) != wide or count == 1:
        return None
    shape = walk.dims(value) or ()
    axis = walk.integer(node, "axis", -1) % len(shape)
    branch_axis = next(place for place, dim in enumerate(shape) if place and dim == count)
    if axis != branch_axis:
        raise Unlike(f"the softmax is over axis {axis} of {shape}, expected the branches, {branch_axis}")
    return node


# Branches each by itself


def _separate(node: ir.Node) -> _Choice | None:
    """A sum of products of a branch with one part of a softmax each."""
    if any(user.op_type == "Add" and _terms(user) for user in walk.users(node.outputs[0])):
        return None  # a part of a longer sum
    terms = _terms(node)
    if terms is None or len(terms) < 2:
        return None
    softmaxes = {softmax for _, softmax, _ in terms}
    if len(softmaxes) != 1 or [place for _, _, place in terms] != list(range(len(terms))):
        return None
    softmax = softmaxes.pop()
    if (walk.dims(softmax.outputs[0]) or ())[1] != len(terms):
        raise Unlike(f"{len(terms)} branches are summed, but the softmax is over {walk.dims(softmax.outputs[0])}")
    shapes = {walk.dims(branch) for branch, _, _ in terms}
    if len(shapes) != 1 or None in (shapes.copy().pop() or (None,)):
        raise Unlike("the branches are not known to be of one shape")
    return _Choice(tuple(branch for branch, _, _ in terms), softmax)


def _terms(node: ir.Node, depth: int = MOST_BRANCHES) -> list[tuple[ir.Value, ir.Node, int]] | None:
    """(branch, softmax, place) of every summand, by place; None where a summand is something else."""
    terms: list[tuple[ir.Value, ir.Node, int]] = []
    for item in node.inputs:
        inner = walk.made_by(item, "Add", "Mul")
        if inner is None or depth == 0:
            return None
        found = _terms(inner, depth - 1) if inner.op_type == "Add" else _term(inner)
        if found is None:
            return None
        terms += found
    return sorted(terms, key=lambda term: term[2])


def _term(product: ir.Node) -> list[tuple[ir.Value, ir.Node, int]] | None:
    for branch, weights in (product.inputs, product.inputs[::-1]):
        shape, channels = walk.dims(branch), vector(weights)
        if branch is None or weights is None or shape is None or len(shape) != 4 or channels is None:
            continue
        if (walk.dims(weights) or ())[1:] != (channels, 1, 1) or shape[1] != channels:
            continue
        part = _part(bare(weights))
        count = (walk.dims(part[0]) or (0, 0))[1] if part is not None else None
        softmax = _softmax(part[0], count, channels) if part is not None and isinstance(count, int) else None
        if part is not None and softmax is not None:
            return [(branch, softmax, part[1])]
    return None


def _part(value: ir.Value) -> tuple[ir.Value, int] | None:
    """(whole, m) if a value is place m along axis 1 of another."""
    node = walk.made_by(value, "Gather", "Split", "Slice")
    whole = node.inputs[0] if node is not None else None
    if node is None or whole is None:
        return None
    if node.op_type == "Split":
        even = all((walk.dims(output) or (0, 0))[1] == 1 for output in node.outputs)
        place = node.outputs.index(value) if even and walk.integer(node, "axis", 0) == 1 else None
    elif node.op_type == "Gather":
        index = walk.scalar(node.inputs[1])
        place = int(index) if index is not None and walk.integer(node, "axis", 0) == 1 else None
    else:
        start, end, axis, step = [*(walk.scalar(item) for item in node.inputs[1:]), *[None] * 2][:4]
        single = start is not None and end == start + 1 and axis == 1 and step in (1, None)
        place = int(start) if single and start is not None else None
    return (whole, place) if place is not None and place >= 0 else None


# The weights


def _layers(logits: ir.Value, count: int, channels: int) -> tuple[str, list[Array], ir.Value] | None:
    """(activation, [w1, b1, w2, b2], descriptor) behind the logits (B, count, channels); None where it is no MLP."""
    value = logits
    wide = [size for size in (count, channels) if size != 1]
    while (view := walk.made_by(value, *VIEWS)) and view.inputs[0] is not None and _sizes_of(value) == wide:
        value = view.inputs[0]
    parts = _concatenated(value, channels) or [value]
    if len(parts) not in (1, count) or (len(parts) == 1 and vector(value) != count * channels):
        return None
    layers = [layer(part) for part in parts]
    lasts = [found for found in layers if found is not None and found.pointwise is not None]
    if len(lasts) != len(layers) or any(last.source is not lasts[0].source for last in lasts):
        return None
    act, hidden = activation(lasts[0].source)
    first = layer(hidden)
    if first is None or first.pointwise is None:
        return None
    weights = [last.pointwise for last in lasts if last.pointwise is not None]
    arrays = [first.pointwise, first.bias, np.concatenate(weights), np.concatenate([last.bias for last in lasts])]
    return act, arrays, first.source


def _concatenated(value: ir.Value, channels: int) -> list[ir.Value] | None:
    """The logits of each branch (B, C), where they are joined along axis 1."""
    node = walk.made_by(value, "Concat")
    if node is None or walk.integer(node, "axis", 0) != 1:
        return None
    parts: list[ir.Value] = []
    for item in node.inputs:
        if item is None or vector(item) != channels:
            inner = _concatenated(item, channels) if item is not None else None
            if inner is None:
                return None
            parts += inner
        else:
            parts.append(bare(item))
    return parts


def _is_sum(value: ir.Value, branches: Sequence[ir.Value]) -> bool:
    """Whether a value is the sum of all branches, each once."""
    node = walk.made_by(value, "ReduceSum")
    if node is not None:
        kept = walk.integer(node, "keepdims", 1)
        summed = _branches(node.inputs[0]) if walk.axes_of(node, 5) == (1,) and not kept else None
    else:
        summed = _summands(value, branches)
    return summed is not None and sorted(map(id, summed)) == sorted(map(id, branches))


def _summands(value: ir.Value, branches: Sequence[ir.Value]) -> tuple[ir.Value, ...]:
    node = walk.made_by(value, "Add", "Sum")
    if value in branches or node is None:
        return (value,)
    return tuple(part for item in node.inputs if item is not None for part in _summands(item, branches))


def _facts(branches: Sequence[ir.Value], arrays: Sequence[Array]) -> Facts:
    x, many = branches[0], len(branches)
    named = {**sizes(x, "batch", "channels", "height", "width"), "branches": many, "reduced": int(arrays[0].shape[0])}
    count, width = elements(x), itemsize(x)
    if count is None:
        return Facts(named)
    parameters = sum(array.size for array in arrays)
    return Facts(
        named,
        flops=3 * many * count + 2 * parameters,
        bytes_decomposed=width * ((5 * many + 4) * count + parameters),
        bytes_fused=width * ((many + 1) * count + parameters),
    )
