"""The search for hard attention: which items a gather takes, and by which scores, in any of its spellings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeattn.ops import walk
from edgeattn.ops.layers import Unlike
from edgeattn.ops.layout import Dim, same
from edgeattn.ops.roles import Roles, Sizes, back, counted, extents, size_of

CHOICES = ("TopK", "ArgMax")
GATHERS = ("GatherElements", "GatherND", "Gather")
STEPS = ("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Tile", "Mod", "Add")
INDEX = (ir.DataType.INT64, ir.DataType.INT32)
SIZES = ("Shape", "Size")
LAYERS = ("Conv", "Gemm", "MatMul")
_FAR = 32


@dataclass(frozen=True)
class Gathered:
    """A gather along `axis` of `items` at `index`, whose axes are samples "b", choices "k" and those of an item "c".

    An axis that is known to be of size one has no letter. With `offset`, the index counts through the items of all
    samples. `form` says how the result holds samples and choices: as two axes, without the latter, or as one.
    """

    items: ir.Value
    index: ir.Value
    roles: Roles
    axis: int = 1
    offset: bool = False
    form: str = "apart"  # or "squeezed", "merged"


@dataclass(frozen=True)
class Choice:
    """The `count` best of `scores` along `axis`; all other axes but the first are of size one."""

    node: ir.Node
    scores: ir.Value
    axis: int
    count: int


def chooser(node: ir.Node) -> ir.Node | None:
    """The TopK or ArgMax that a gather's index comes from, if it is near."""
    waiting, seen = list(node.inputs[1:2]), 0
    while waiting and (seen := seen + 1) < _FAR:
        value = waiting.pop()
        made = walk.made_by(value, *CHOICES, *STEPS, "Concat")
        if made is not None and made.op_type in CHOICES:
            return made if value is made.outputs[-1] else None
        if made is not None and value is not None and value.dtype in INDEX:
            waiting += made.inputs if made.op_type in ("Add", "Concat") else made.inputs[:1]
    return None


def count_of(node: ir.Node) -> int:
    """How many items a TopK or ArgMax chooses.

    Raises:
        Unlike: it is not known, or the order is not that of falling scores, the first of equal ones first.
    """
    if node.op_type == "ArgMax":
        if walk.integer(node, "select_last_index", 0):
            raise Unlike(f"{node.name} takes the last of equal scores, expected the first")
        return 1
    count = walk.scalar(node.inputs[1])
    if count is None:
        raise Unlike(f"{node.name} computes how many it takes, expected a constant")
    if not walk.integer(node, "largest", 1):
        raise Unlike(f"{node.name} takes the lowest scores, expected the highest")
    if not walk.integer(node, "sorted", 1):
        raise Unlike(f"{node.name} leaves the order open, expected falling scores")
    return int(count)


# The gather


def gathered(node: ir.Node, count: int) -> Gathered:
    """Read a gather of `count` items for each sample.

    Raises:
        Unlike: it takes something else than whole items of each sample.
    """
    data, index = node.inputs[0], node.inputs[1]
    shape, places = walk.dims(data), walk.dims(index)
    if data is None or index is None or not shape or not places:
        raise Unlike(f"the shapes of {node.op_type} {node.name} are not known")
    if node.op_type == "GatherElements":
        return _of_elements(node, data, index, count)
    if node.op_type == "Gather":
        axis = walk.integer(node, "axis", 0) % len(shape)
        if axis == 0:
            return _of_rows(_unmerged(data), index, count, offset=True)
        if axis == 1 and shape[0] == 1 and len(places) == 1:
            return Gathered(data, index, ("k" * (count > 1),))
        raise Unlike(f"{node.op_type} {node.name} takes the same along axis {axis} of {shape} for every sample")
    width, batched = places[-1], walk.integer(node, "batch_dims", 0)
    if width == 1 and batched == 0:
        return _of_rows(_unmerged(data), index, count, offset=True, width=True)
    if width == 1 and batched == 1:
        return _of_rows(data, index, count, width=True)
    pair = walk.made_by(index, "Concat")
    if width == 2 and batched == 0 and pair is not None and len(pair.inputs) == 2:
        rows, chosen = pair.inputs
        last = walk.integer(pair, "axis", 0) in (-1, len(places) - 1)
        found = _of_rows(data, chosen, count, width=True) if chosen is not None and last else None
        if found is not None and rows is not None and _is_rows(rows, found.roles, {"b": shape[0]}, 1):
            return found
    raise Unlike(f"{node.op_type} {node.name} does not take items of each sample")


def _of_rows(items: ir.Value, index: ir.Value, count: int, *, offset: bool = False, width: bool = False) -> Gathered:
    """Whole items at an index (B, k) or flat, with a last axis of size one where it has `width`."""
    b, k = "b" * ((walk.dims(items) or (None,))[0] != 1), "k" * (count > 1)
    rank, last = len(walk.dims(index) or ()) - width, ("",) * width
    if rank == 2:
        return Gathered(items, index, (b, k, *last), offset=offset)
    if rank == 1:
        return Gathered(items, index, (b + k, *last), offset=offset, form="merged" if k else "squeezed")
    raise Unlike(f"an index of rank {rank} is no choice (B, k)")


def _of_elements(node: ir.Node, data: ir.Value, index: ir.Value, count: int) -> Gathered:
    shape, places = walk.dims(data) or (), extents(index) or ()
    axis = walk.integer(node, "axis", 0) % len(shape)
    unequal = [place for place in range(len(shape)) if place != axis and not same(shape[place], places[place])]
    if axis == 0 or unequal:
        raise Unlike(f"{node.op_type} {node.name} takes {places} along axis {axis} of {shape}, expected whole items")
    letters = ["k" if place == axis else "c" if place else "b" for place in range(len(shape))]
    single = [size == 1 or (place == axis and count == 1) for place, size in enumerate(places)]
    return Gathered(data, index, tuple("" if one else it for it, one in zip(letters, single, strict=True)), axis)


def _unmerged(data: ir.Value) -> ir.Value:
    """The items (B, N, ...) that were laid out as (B N, ...)."""
    node = walk.made_by(data, "Reshape", "Flatten")
    source = node.inputs[0] if node is not None else None
    before, after = walk.dims(source) or (), walk.dims(data) or ()
    if source is None or len(before) != len(after) + 1 or not all(map(same, before[2:], after[1:])):
        raise Unlike(f"{data.name!r} of shape {after} has no axis of samples")
    return source


def _is_rows(value: ir.Value, roles: Roles, sizes: Sizes, stride: Dim) -> bool:
    """Whether a value is `stride` times the number of the sample, along its axis of samples."""
    while True:
        array, node, B = walk.constant(value), walk.made_by(value), sizes["b"]
        if array is not None:
            first = next((role[0] for role in roles if role), "b")
            if not isinstance(B, int) or not isinstance(stride, int) or (B > 1 and first != "b") or array.size % B:
                return False
            return bool((array.reshape(B, -1) == np.arange(B)[:, None] * stride).all())
        if roles == ("b",) and stride == 1 and same(counted(value), B):
            return True
        if node is None or node.inputs[0] is None:
            return False
        if node.op_type == "Mul" and stride != 1:
            rest = [item for item in node.inputs if item is not None and not same(size_of(item), stride)]
            if len(rest) != 1 or len(walk.dims(rest[0]) or ()) != len(roles):
                return False
            value, stride = rest[0], 1
            continue
        found = back(node, roles, sizes)
        if found is None:
            return False
        value, roles = node.inputs[0], found


# The choice


def choice(gather: Gathered, count: int) -> Choice:
    """What a gather of `count` items for each sample chooses by.

    Raises:
        Unlike: its index is not the choice itself, or not certainly.
    """
    shape = walk.dims(gather.items) or (None, None)
    sizes: dict[str, Dim] = {"b": shape[0], "k": count}
    value, roles, offset = gather.index, gather.roles, gather.offset and shape[0] != 1
    while (node := walk.made_by(value)) is not None and node.op_type not in CHOICES:
        if node.op_type == "Add" and gather.offset:
            value, offset = _without_rows(node, roles, sizes, shape[1]), False
            continue
        found = roles if _keeps(node, shape[gather.axis]) else back(node, roles, sizes)
        if found is None or node.inputs[0] is None:
            break
        value, roles = node.inputs[0], found
    if node is None or node.op_type not in CHOICES or offset:
        raise Unlike(f"the index {value.name!r} is not known to be the choice itself")
    return _chosen(node, value, roles, shape[0], count)


def _keeps(node: ir.Node, count: Dim) -> bool:
    """Whether a node leaves places below `count` as they are."""
    if node.op_type == "Mod":
        return same(size_of(node.inputs[1]), count)
    return node.op_type == "Cast" and all(item is not None and item.dtype in INDEX for item in node.inputs)


def _without_rows(node: ir.Node, roles: Roles, sizes: Sizes, stride: Dim) -> ir.Value:
    """The choice in a sum of it and the first row of each sample."""
    for value, rows in (node.inputs, node.inputs[::-1]):
        before, after = extents(value), extents(rows)
        if value is None or rows is None or before is None or after is None or len(before) != len(after):
            continue
        if len(before) == len(roles):
            ones = tuple("" if size == 1 else role for role, size in zip(roles, after, strict=True))
            if walk.made_by(value, *CHOICES, *STEPS) is not None and _is_rows(rows, ones, sizes, stride):
                return value
    raise Unlike(f"{node.op_type} {node.name} does not add the first row of each sample to a choice")


def _chosen(node: ir.Node, value: ir.Value, roles: Roles, batch: Dim, count: int) -> Choice:
    scores, shape = node.inputs[0], walk.dims(node.inputs[0])
    if scores is None or shape is None or value is not node.outputs[-1]:
        raise Unlike(f"the index {value.name!r} is no choice of known shape")
    axis = walk.integer(node, "axis", -1 if node.op_type == "TopK" else 0) % len(shape)
    if node.op_type == "ArgMax" and not walk.integer(node, "keepdims", 1):
        roles = (*roles[:axis], "", *roles[axis:])
    plain = axis != 0 and all(size == 1 for place, size in enumerate(shape) if place not in (0, axis))
    expected = tuple({0: "b" * (batch != 1), axis: "k" * (count > 1)}.get(place, "") for place in range(len(shape)))
    if not plain or roles != expected or not same(shape[0], batch):
        raise Unlike(f"{node.op_type} {node.name} chooses along axis {axis} of {shape}, expected scores ({batch}, N)")
    return Choice(node, scores, axis, count)


def starts_from_data(node: ir.Node) -> bool:
    """Whether the start of a Slice follows from what a tensor holds, not from its size."""
    waiting, seen = [value for value in node.inputs[1:2] if value is not None], set[ir.Value]()
    while waiting:
        value = waiting.pop()
        made = walk.made_by(value)
        if value in seen or walk.constant(value) is not None or (made is not None and made.op_type in SIZES):
            continue
        seen.add(value)
        given = made is None and value.dtype is not None and value.dtype.is_floating_point()
        if given or (made is not None and made.op_type in (*CHOICES, *LAYERS)):
            return True
        waiting += [item for item in (made.inputs if made is not None else ()) if item is not None]
    return False
