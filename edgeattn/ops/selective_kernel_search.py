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
from edgeattn.ops.layers import Unlike, elements, itemsize, layer, pooled, sizes, vector
from edgeattn.ops.layout import VIEWS, Axes, Dim, Frame

if TYPE_CHECKING:
    from edgeattn.tensors import Array

MOST_BRANCHES = 8


@dataclass(frozen=True)
class _Weights:
    """A softmax whose axes are branches, samples and channels, as leaves of a frame; () where of size one."""

    softmax: ir.Node
    frame: Frame
    axes: Axes
    many: tuple[int, ...]
    wide: tuple[int, ...]


@dataclass(frozen=True)
class _Choice:
    """Branches (B, C, H, W), or a single stack of all, what weighs them, and the axis of the stack, if there is one."""

    branches: tuple[ir.Value, ...]
    weights: _Weights
    axis: int | None = None

    @property
    def count(self) -> int:
        """How many branches there are."""
        return int(self.weights.frame.size(self.weights.many) or 0)


def match(node: ir.Node) -> Match | None:
    """The selection that ends in this sum; None where there is none.

    Raises:
        Unlike: the sum is of branches with softmax weights for each channel, but something differs.
    """
    choice = _stacked(node) if node.op_type == "ReduceSum" else _separate(node)
    if choice is None:
        return None
    count, channels = choice.count, int(choice.weights.frame.size(choice.weights.wide) or 0)
    if count > MOST_BRANCHES:
        raise Unlike(f"there are {count} branches, expected 2 to {MOST_BRANCHES}")
    act, arrays, descriptor = _layers(choice.weights, count, channels)
    pool = pooled(descriptor)
    if pool is None:
        raise Unlike(f"the weights come from {descriptor.name!r}, expected the mean over height and width")
    if pool[0] != "avg" or not _is_sum(pool[1], choice):
        raise Unlike(f"the weights come from the {pool[0]} of {pool[1].name!r}, expected the mean of the branches' sum")
    kept = choice.axis is not None and walk.integer(node, "keepdims", 1)
    return Match(
        "SelectiveKernel",
        f"{'stack-' if len(choice.branches) == 1 else ''}{count}-{act}",
        node,
        tuple(walk.between(node.outputs[0], set(choice.branches))),
        node.outputs[0],
        lambda tape: [*choice.branches, *(tape.constant(array) for array in arrays)],
        {},
        _facts(choice, arrays),
        lambda tape, value: tape.op("Unsqueeze", [value, tape.constant(np.array([choice.axis]))]) if kept else value,
    )


def _weights(
    value: ir.Value, axes: Axes, frame: Frame, many: tuple[int, ...], wide: tuple[int, ...]
) -> _Weights | None:
    """The softmax across branches that a value is a view of; None where it is no softmax.

    Raises:
        Unlike: it is over another axis, or a view mixes its axes.
    """
    source, found = _viewed(value, axes, frame)
    node = walk.made_by(source, "Softmax")
    if node is None or found is None:
        return None
    axis = walk.integer(node, "axis", -1) % len(found)
    if frame.resolve(found[axis]) != frame.resolve(many):
        place = next((place for place, item in enumerate(found) if frame.resolve(item) == frame.resolve(many)), "?")
        raise Unlike(f"the softmax is over axis {axis} of {walk.dims(source)}, expected the branches, {place}")
    return _Weights(node, frame, found, many, wide)


def _viewed(value: ir.Value, axes: Axes, frame: Frame) -> tuple[ir.Value, Axes | None]:
    """What a value is a view of, and its axes there; None for axes that a view on the way to a softmax mixes."""
    while (node := walk.made_by(value, *VIEWS)) is not None and node.inputs[0] is not None:
        inner = frame.through(node, axes, back=True)
        if inner is None:
            return _last(value), None
        value, axes = node.inputs[0], inner
    return value, frame.resolved(axes)


def _last(value: ir.Value) -> ir.Value:
    while (node := walk.made_by(value, *VIEWS)) is not None and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


def _leaves(count: int, *sizes: Dim) -> tuple[Frame, tuple[tuple[int, ...], ...]]:
    """A frame with leaves for branches and the given sizes, () for a size of one."""
    frame = Frame()
    return frame, tuple(frame.leaf(size) if size != 1 else () for size in (count, *sizes))


# Branches stacked on an axis


def _stacked(node: ir.Node) -> _Choice | None:
    """ReduceSum over axis 0 or 1 of a stack times softmax weights."""
    product = walk.made_by(node.inputs[0], "Mul")
    over = walk.axes_of(node, len(walk.dims(node.inputs[0]) or ()) or 5)
    if product is None or over not in ((0,), (1,)):
        return None
    (axis,) = over
    for stack, weights in (product.inputs, product.inputs[::-1]):
        shape, other = walk.dims(stack), walk.dims(weights)
        if stack is None or weights is None or shape is None or other is None or len(shape) != len(other):
            continue
        if len(shape) != 5 or other[2] != shape[2]:
            continue
        count, channels = shape[axis], shape[2]
        if not isinstance(count, int) or not isinstance(channels, int) or count == 1:
            continue
        if other[axis] != count or other[2:] != (channels, 1, 1):
            continue
        frame, (many, batch, wide) = _leaves(count, other[1 - axis], channels)
        axes = ((many, batch) if axis == 0 else (batch, many)) + (wide, (), ())
        found = _weights(weights, axes, frame, many, wide)
        if found is None:
            if walk.made_by(_last(weights), "Softmax"):
                raise Unlike(
                    f"the axes of {weights.name!r} cannot be told from those of its softmax, "
                    "expected one softmax across the branches for each channel"
                )
            continue
        branches = _branches(stack, axis)
        if branches is None and axis == 0:
            raise Unlike(
                f"the branches are not stacked by a Concat: {stack.name!r}, expected that or a stack on axis 1"
            )
        return _Choice(branches or (stack,), found, axis)
    return None


def _branches(stack: ir.Value | None, axis: int) -> tuple[ir.Value, ...] | None:
    """What a stack of maps, (B, M, C, H, W) or (M, B, C, H, W), was put together from."""
    node = walk.made_by(stack, "Concat")
    if node is None or walk.integer(node, "axis", 0) % 5 != axis:
        return None
    parts: list[ir.Value] = []
    for item in node.inputs:
        lifted = walk.made_by(item, "Unsqueeze", "Reshape", "Concat")
        inner = _branches(item, axis) if lifted is not None and lifted.op_type == "Concat" else None
        source = lifted.inputs[0] if lifted is not None else None
        before, after = walk.dims(source), walk.dims(item)
        if inner is not None:
            parts += inner
        elif lifted is not None and source is not None and before is not None and after is not None:
            same = None not in before and (*before[:axis], 1, *before[axis:]) == after
            plain = lifted.op_type == "Unsqueeze" and walk.axes_of(lifted, 5) == (axis,)
            if len(before) != 4 or not (same or plain):
                return None
            parts.append(source)
        else:
            return None
    return tuple(parts)


# Branches each by itself


@dataclass(frozen=True)
class _Term:
    """A branch weighed by one place of a softmax across branches, `local` where its own places have weights each."""

    branch: ir.Value
    weights: _Weights
    place: int
    local: bool


def _separate(node: ir.Node) -> _Choice | None:
    """A sum of products of a branch with one part of a softmax each."""
    if any(user.op_type in ("Add", "Sum") and _terms(user) for user in walk.users(node.outputs[0])):
        return None  # a part of a longer sum
    terms = _terms(node)
    if terms is None or len(terms) < 2:
        return None
    if len({(term.weights.softmax, term.weights.axes) for term in terms}) != 1:
        return None
    weights, count = terms[0].weights, len(terms)
    if [term.place for term in terms] != list(range(count)) or weights.frame.size(weights.many) != count:
        places = [term.place for term in terms]
        raise Unlike(
            f"{count} branches are summed, weighed by places {places} of a softmax "
            f"over {walk.dims(weights.softmax.outputs[0])}, expected each place once"
        )
    if terms[0].local:
        raise Unlike("the branches are weighed place by place, expected one weight for each channel")
    shapes = {walk.dims(term.branch) for term in terms}
    if len(shapes) != 1 or None in (shapes.copy().pop() or (None,)):
        raise Unlike("the branches are not known to be of one shape")
    return _Choice(tuple(term.branch for term in terms), weights)


def _terms(node: ir.Node, depth: int = MOST_BRANCHES) -> list[_Term] | None:
    """Every summand, by place; None where one is something else."""
    terms: list[_Term] = []
    for item in node.inputs:
        inner = walk.made_by(item, "Add", "Sum", "Mul")
        if inner is None or depth == 0:
            return None
        found = _term(inner) if inner.op_type == "Mul" else _terms(inner, depth - 1)
        if found is None:
            return None
        terms += found
    return sorted(terms, key=lambda term: term.place)


def _term(product: ir.Node) -> list[_Term] | None:
    for branch, weights in (product.inputs, product.inputs[::-1]):
        shape, other = walk.dims(branch), walk.dims(weights)
        if branch is None or weights is None or shape is None or other is None or len(shape) != 4 or len(other) != 4:
            continue
        if not isinstance(shape[1], int) or shape[2:] == (1, 1) or other[1:] not in ((shape[1], 1, 1), (1, *shape[2:])):
            continue
        part = _part(_last(weights), int(other[1] or 0))
        if part is None:
            continue
        whole, axis, place, taken, merged = part
        count = (walk.dims(whole) or ())[axis]
        if not isinstance(count, int) or count == 1:
            continue
        count //= shape[1] if merged else 1
        frame, (many, batch, wide, *places) = _leaves(count, *other)
        _, axes = _viewed(weights, (batch, wide, *places), frame)
        if axes is None or (merged and axes[axis] != wide):
            continue
        own = (*many, *wide) if merged else many
        found = _weights(whole, (*axes[:axis], own, *axes[axis + (not taken) :]), frame, many, wide)
        if found is not None:
            return [_Term(branch, found, place % count, other[2:] != (1, 1))]
    return None


def _part(value: ir.Value, channels: int) -> tuple[ir.Value, int, int, bool, bool] | None:
    """(whole, axis, m, whether the axis is gone, whether it holds branches and channels) if a value is place m."""
    node = walk.made_by(value, "Gather", "Split", "Slice")
    whole = node.inputs[0] if node is not None else None
    rank = len(walk.dims(whole) or ())
    if node is None or whole is None or rank == 0:
        return None
    if node.op_type == "Split":
        axis = walk.integer(node, "axis", 0) % rank
        each = {(walk.dims(output) or (0,) * rank)[axis] for output in node.outputs}
        return (whole, axis, node.outputs.index(value), False, each != {1}) if each in ({1}, {channels}) else None
    if node.op_type == "Gather":
        index, shape = walk.scalar(node.inputs[1]), walk.dims(node.inputs[1])
        single = index is not None and shape in ((), (1,))
        return (whole, walk.integer(node, "axis", 0) % rank, int(index or 0), shape == (), False) if single else None
    start, _, along, step = [*(walk.scalar(item) for item in node.inputs[1:]), *[None] * 2][:4]
    axis = int(along or 0) % rank
    size = (walk.dims(value) or (0,) * rank)[axis]
    if start is None or along is None or step not in (1, None) or size not in (1, channels) or start % size:
        return None
    return whole, axis, int(start // size), False, size != 1


# The weights


def _layers(weights: _Weights, count: int, channels: int) -> tuple[str, list[Array], ir.Value]:
    """(activation, [w1, b1, w2, b2], descriptor) behind the softmax.

    Raises:
        Unlike: they are not two linear layers, the second for all branches or one for each.
    """
    scores = weights.softmax.inputs[0]
    assert scores is not None
    value, axes = _viewed(scores, weights.axes, weights.frame)
    parts = _parts(value, axes, weights) if axes is not None else None
    lasts = [layer(part) for part, _ in parts or []]
    matrices = [last.pointwise for last in lasts if last is not None]
    if parts is None or not lasts or any(matrix is None for matrix in matrices) or len(matrices) != len(lasts):
        raise Unlike(
            f"the softmax reads {_maker(value)}, expected an ungrouped linear layer for all branches, or one for each"
        )
    w2 = np.concatenate([matrix for matrix in matrices if matrix is not None])
    b2 = np.concatenate([last.bias for last in lasts if last is not None])
    sources = {last.source for last in lasts if last is not None}
    if len(w2) != count * channels or len(parts) not in (1, count) or len(sources) != 1:
        raise Unlike(f"{len(parts)} layers give {len(w2)} logits for {count} branches of {channels} channels")
    if parts[0][1] == (*weights.wide, *weights.many) != (*weights.many, *weights.wide):  # branches change fastest
        w2 = w2.reshape(channels, count, -1).swapaxes(0, 1).reshape(count * channels, -1)
        b2 = b2.reshape(channels, count).T.reshape(-1)
    act, hidden = activation(sources.pop())
    first = layer(hidden)
    w1 = first.pointwise if first is not None else None
    if first is None or w1 is None:
        raise Unlike(f"the logits come from {_maker(hidden)}, expected a linear layer, an activation and another one")
    return act, [w1, first.bias, w2, b2], first.source


def _maker(value: ir.Value) -> str:
    node = value.producer()
    return "the graph's input" if node is None else f"{node.op_type} {node.name!r}"


def _parts(value: ir.Value, axes: Axes, weights: _Weights) -> list[tuple[ir.Value, tuple[int, ...]]] | None:
    """The vectors that logits are joined from, each with what its one axis is; None where they are no vectors."""
    frame, many, wide = weights.frame, weights.frame.resolve(weights.many), weights.frame.resolve(weights.wide)
    node = walk.made_by(value, "Concat")
    axes = frame.resolved(axes)
    axis = walk.integer(node, "axis", 0) % len(axes) if node is not None else 0
    if node is None or axes[axis] not in (many, (*many, *wide)):
        own = tuple(leaf for item in axes[1:] for leaf in item)
        first = set(axes[0]) & {*many, *wide} if axes else {0}
        ordered = own in (wide, (*many, *wide), (*wide, *many))
        return [(value, own)] if ordered and not first and vector(value) is not None else None
    parts: list[tuple[ir.Value, tuple[int, ...]]] = []
    for item in node.inputs:
        size = (walk.dims(item) or (None,) * len(axes))[axis]
        each = frame.size(axes[axis][len(many) :])
        if item is None or not isinstance(size, int) or not isinstance(each, int):
            return None
        left = axes[axis][len(many) :] if size == each else axes[axis]
        source, inner = _viewed(item, (*axes[:axis], left, *axes[axis + 1 :]), frame) if size == each else (item, axes)
        found = _parts(source, inner, weights) if inner is not None else None
        if found is None:
            return None
        parts += found
    return parts


def _is_sum(value: ir.Value, choice: _Choice) -> bool:
    """Whether a value is the sum of all branches, each once."""
    node = walk.made_by(value, "ReduceSum")
    if node is not None:
        axis = walk.axes_of(node, 5)
        plain = axis in ((0,), (1,)) and not walk.integer(node, "keepdims", 1)
        if plain and axis == (1,) and choice.branches == (node.inputs[0],):
            return True
        summed = _branches(node.inputs[0], axis[0]) if plain and axis is not None else None
    else:
        summed = _summands(value, choice.branches)
    return summed is not None and sorted(map(id, summed)) == sorted(map(id, choice.branches))


def _summands(value: ir.Value, branches: Sequence[ir.Value]) -> tuple[ir.Value, ...]:
    node = walk.made_by(value, "Add", "Sum")
    if value in branches or node is None:
        return (value,)
    added = [item for item in node.inputs if item is not None and walk.scalar(item) != 0]
    return tuple(part for item in added for part in _summands(item, branches))


def _facts(choice: _Choice, arrays: Sequence[Array]) -> Facts:
    x, many, stacked = choice.branches[0], choice.count, len(choice.branches) == 1
    names = ("batch", "branches", "channels") if stacked else ("batch", "channels")
    named = {**sizes(x, *names, "height", "width"), "branches": many, "reduced": int(arrays[0].shape[0])}
    count, width = elements(x), itemsize(x)
    if count is None:
        return Facts(named)
    count //= many if stacked else 1
    parameters = sum(array.size for array in arrays)
    return Facts(
        named,
        flops=3 * many * count + 2 * parameters,
        bytes_decomposed=width * ((5 * many + 4) * count + parameters),
        bytes_fused=width * ((many + 1) * count + parameters),
    )
