"""Axes known by a letter each, followed backwards through views to where a tensor comes from.

A search that knows what every axis of a result is (batch, height, ...) asks what the axes of its source are. A role is
a string of letters: "h", "hw" for two merged axes, "" for a size of one. A reshape is settled where all sizes but one
are known to agree, since that one follows from the count of elements; so it works where height and width are dynamic,
which `edgeattn.ops.layout` (no letters in advance, all sizes known) does not try.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations_with_replacement, pairwise
from math import prod

import numpy as np
import onnx_ir as ir

from edgeattn.ops import walk
from edgeattn.ops.layout import Dim, same

Roles = tuple[str, ...]
Sizes = Mapping[str, Dim]

MERGED = ("hw", "bk")  # what people flatten; other merges are only tried where these do not fit
_ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Cast", "Identity", "Neg")


def back(node: ir.Node, roles: Roles, sizes: Sizes) -> Roles | None:
    """The roles of a view's source from those of its result; None where it is no view or a size is not certain.

    A letter that an Expand or Tile spreads a size of one over is gone from the source.
    """
    value = node.inputs[0] if node.inputs else None
    source, result = extents(value), walk.dims(node.outputs[0])
    found: Roles | None = None
    if value is None or source is None or result is None or len(result) != len(roles):
        return None
    if node.op_type in ("Identity", "Cast") and value.dtype == node.outputs[0].dtype is not None:
        found = roles
    elif node.op_type == "Transpose":
        perm = walk.ints(node, "perm") or tuple(reversed(range(len(source))))
        found = tuple(roles[perm.index(axis)] for axis in range(len(perm)))
    elif node.op_type in ("Expand", "Tile"):
        found = _unspread(roles, source, result, sizes)
    elif node.op_type in ("Squeeze", "Unsqueeze"):
        found = _unsqueezed(node, roles, source)
    if found is None and node.op_type in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        found = min(_groupings("".join(roles), source, sizes), key=_oddness, default=None)
    return found


def _unsqueezed(node: ir.Node, roles: Roles, source: Sequence[Dim]) -> Roles | None:
    ones = walk.axes_of(node, max(len(source), len(roles)))
    if ones is None or (node.op_type == "Unsqueeze" and any(roles[axis] for axis in ones)):
        return None
    if node.op_type == "Unsqueeze":
        return tuple(role for axis, role in enumerate(roles) if axis not in ones)
    rest = iter(roles)
    return tuple("" if axis in ones else next(rest) for axis in range(len(source)))


def _unspread(roles: Roles, source: Sequence[Dim], result: Sequence[Dim], sizes: Sizes) -> Roles | None:
    found: list[str] = []
    missing = len(result) - len(source)
    for role, before, after in zip(roles[missing:], source, result[missing:], strict=True):
        if before == 1 and after != 1:
            found.append("")
        elif same(before, after) or _agrees(role, before, sizes):
            found.append(role)
        else:
            return None
    return tuple(found)


def _groupings(letters: str, source: Sequence[Dim], sizes: Sizes) -> Iterator[Roles]:
    """The ways to deal letters, in order, to axes of these sizes, at most one of which is not known to agree."""
    for cuts in combinations_with_replacement(range(len(letters) + 1), max(len(source) - 1, 0)):
        roles = tuple(letters[start:end] for start, end in pairwise((0, *cuts, len(letters))))
        open_ = [(role, dim) for role, dim in zip(roles, source, strict=False) if not _agrees(role, dim, sizes)]
        fits = all(role and not (isinstance(dim, int) and _count(role, sizes) is not None) for role, dim in open_)
        if len(roles) == len(source) and len(open_) <= 1 and fits:
            yield roles


def _count(role: str, sizes: Sizes) -> int | None:
    known = [sizes.get(letter) for letter in role]
    return prod(size for size in known if isinstance(size, int)) if all(isinstance(x, int) for x in known) else None


def _agrees(role: str, dim: Dim, sizes: Sizes) -> bool:
    """Whether an axis is known to have the size of its role."""
    return same(dim, _count(role, sizes)) or (len(role) == 1 and same(dim, sizes.get(role)))


def _oddness(roles: Roles) -> tuple[int, int]:
    return sum(len(role) > 1 and role not in MERGED for role in roles), roles.count("")


# Sizes and rows of numbers that a graph computes


def size_of(value: ir.Value | None) -> Dim:
    """The size, a number or a name, that a value with one element holds; None where it is something else."""
    number = walk.scalar(value)
    if number is not None:
        return int(number) if number == int(number) else None
    node = walk.made_by(value, "Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape", "Gather", "Shape")
    if node is None:
        return None
    if node.op_type == "Shape":
        sizes = _sizes_in(node)
        return sizes[0] if len(sizes) == 1 else None
    if node.op_type != "Gather":
        return size_of(node.inputs[0])
    place, shape = walk.scalar(node.inputs[1]), walk.made_by(node.inputs[0], "Shape")
    sizes = _sizes_in(shape) if shape is not None else ()
    return sizes[int(place)] if place is not None and -len(sizes) <= place < len(sizes) else None


def _sizes_in(shape: ir.Node) -> tuple[Dim, ...]:
    end = shape.attributes.get("end")
    sizes = walk.dims(shape.inputs[0]) or ()
    return sizes[walk.integer(shape, "start", 0) : None if end is None else end.as_int()]


def counted(value: ir.Value | None) -> Dim:
    """The length n of a value that is 0, 1, ..., n - 1; None of any other."""
    array = walk.constant(value)
    if array is not None:
        return len(array) if array.ndim == 1 and np.array_equal(array, np.arange(len(array))) else None
    node = walk.made_by(value, "Range")
    if node is None or walk.scalar(node.inputs[0]) != 0 or walk.scalar(node.inputs[2]) != 1:
        return None
    return size_of(node.inputs[1])


def extents(value: ir.Value | None) -> tuple[Dim, ...] | None:
    """The sizes of a value; that of a vector also where it follows only from the range it is computed from."""
    shape, node = walk.dims(value), walk.made_by(value, *_ELEMENTWISE, "Range", "Unsqueeze", "Tile")
    if node is None or shape is None or not any(str(size).startswith("unk__") for size in shape):
        return shape
    if node.op_type == "Unsqueeze":
        inner = extents(node.inputs[0]) or ()
        return tuple(1 if size == 1 else inner[0] for size in shape) if len(inner) == 1 else shape
    if node.op_type == "Tile":
        repeats, source = walk.constant(node.inputs[1]), extents(node.inputs[0])
        if source is None or repeats is None:
            return shape
        return tuple(own if count == 1 else size for own, count, size in zip(source, repeats, shape, strict=True))
    if node.op_type == "Range":
        count = counted(value)
        return shape if count is None else (count,)
    spread = [item for item in node.inputs if set(walk.dims(item) or ()) - {1}]
    return extents(spread[0]) if len(shape) == len(spread) == 1 else shape
