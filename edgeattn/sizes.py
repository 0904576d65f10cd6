"""Sizes as data: what a node computes from the shapes of tensors, in numbers, and in names where they are dynamic.

Exporters compute the targets of reshapes by dozens of small nodes. A value here is an array of numbers in its own
dtype or, where some are not known, an array of objects: numbers, names such as `batch` or `3*batch`, and None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from edgeattn.tensors import Array

Dim = int | str | None
LARGEST = 64  # elements; lists of sizes have few

_UNARY: dict[str, Callable[..., Any]] = {
    "Sqrt": np.sqrt, "Exp": np.exp, "Neg": np.negative, "Reciprocal": np.reciprocal, "Floor": np.floor,
    "Ceil": np.ceil, "Not": np.logical_not, "Identity": np.copy,
}  # fmt: skip
_BINARY: dict[str, Callable[..., Any]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Pow": np.power, "Max": np.maximum, "Min": np.minimum,
    "Equal": np.equal, "Greater": np.greater, "Less": np.less, "GreaterOrEqual": np.greater_equal,
    "LessOrEqual": np.less_equal, "And": np.logical_and, "Or": np.logical_or, "Mod": np.mod, "Div": np.divide,
}  # fmt: skip


def factors(dim: Dim) -> tuple[int, Dim]:
    """The number and the name of a size like `3*batch`, as PyTorch writes it: (3, "batch"); (1, dim) for others."""
    times, star, name = dim.partition("*") if isinstance(dim, str) else ("", "", "")
    return (int(times), name) if star and times.isdecimal() and name.isidentifier() else (1, dim)


def times(count: int, dim: Dim) -> Dim:
    """A size taken several times."""
    own, name = factors(dim)
    if isinstance(dim, int) or count == 0:
        return count * dim if isinstance(dim, int) else 0
    whole = own * count
    return None if name is None else name if whole == 1 else f"{whole}*{name}"


def parted(dim: Dim, count: int) -> Dim:
    """A size in equal parts; None where that is not known to leave nothing over."""
    own, name = (dim, None) if isinstance(dim, int) else factors(dim)
    if count <= 0 or own % count:
        return None
    return own // count if isinstance(dim, int) else times(own // count, name)


def computed(node: ir.Node, inputs: Sequence[Array | None], shape: Sequence[Dim] | None) -> Array | None:
    """What a node computes from small values; None where nothing of it is known.

    Args:
        node: any node.
        inputs: its inputs as far as they are known.
        shape: the dimensions of its first input.
    """
    if node.domain not in ("", "ai.onnx") or not node.outputs or node.outputs[0].dtype is None:
        return None
    if node.op_type in ("Shape", "Size"):
        return _shape(node, shape)
    given = [item for item, value in zip(inputs, node.inputs, strict=True) if value is not None]
    known = [item for item in given if item is not None]
    if not given or len(known) < len(given):
        return None
    with np.errstate(all="ignore"):
        try:
            found = _of(node, known)
        except (IndexError, ValueError, TypeError, ZeroDivisionError, OverflowError):
            return None  # not a valid node: whoever runs the graph says so
    return _plain(found, node.outputs[0].dtype) if found is not None and found.size <= LARGEST else None


def _shape(node: ir.Node, shape: Sequence[Dim] | None) -> Array | None:
    if shape is None:
        return None
    if node.op_type == "Size":
        return np.array(prod(shape)) if all(isinstance(dim, int) for dim in shape) else None  # type: ignore[arg-type]
    end = node.attributes.get("end")
    places = slice(_integer(node, "start", 0), None if end is None else end.as_int())
    sizes = np.empty(len(shape), object)
    sizes[:] = shape
    return _plain(sizes[places], ir.DataType.INT64)


def _integer(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _plain(array: Array, dtype: ir.DataType) -> Array:
    """In its own dtype, where every element is a number."""
    unknown = array.dtype == object and any(item is None or isinstance(item, str) for item in array.flat)
    return array if unknown else array.astype(dtype.numpy())


def _of(node: ir.Node, inputs: list[Array]) -> Array | None:
    kind, first = node.op_type, inputs[0]
    if kind in _UNARY or kind in _BINARY or kind == "Where":
        return _elementwise(node, inputs)
    if kind == "Cast":
        return _cast(node, first)
    if kind == "Concat":
        objects = [item.astype(object) for item in inputs]
        return np.concatenate(objects, _integer(node, "axis", 0))
    if any(item.dtype == object for item in inputs[1:]):
        return None
    if kind in ("ConstantOfShape", "Range", "ReduceProd"):
        return None if first.dtype == object else _made(node, first, [item.item() for item in inputs[1:]])
    return _viewed(node, first, [item.tolist() for item in inputs[1:]])


def _viewed(node: ir.Node, first: Array, rest: list[Any]) -> Array | None:
    """Some elements, or all in another shape."""
    found = None
    match node.op_type:
        case "Gather":
            found = np.take(first, rest[0], _integer(node, "axis", 0))
        case "Slice":
            found = _sliced(first, *rest)
        case "Squeeze":
            found = np.squeeze(first, tuple(np.atleast_1d(rest[0])) if rest else None)
        case "Unsqueeze":
            found = np.expand_dims(first, tuple(np.atleast_1d(rest[0])))
        case "Reshape":
            keeps = [first.shape[place] if size == 0 else size for place, size in enumerate(rest[0])]
            found = first.reshape(rest[0] if _integer(node, "allowzero", 0) else keeps)
        case "Transpose":
            perm = node.attributes.get("perm")
            found = first.transpose(None if perm is None else perm.as_ints())
        case "Expand":
            shape = np.broadcast_shapes(first.shape, tuple(rest[0]))
            found = np.broadcast_to(first, shape) if prod(shape) <= LARGEST else None
    return None if found is None else np.asarray(found, first.dtype)


def _made(node: ir.Node, first: Array, rest: list[Any]) -> Array | None:
    """A constant of a given shape, numbers in a row, or a product of all."""
    if node.op_type == "ReduceProd":
        return None if rest else np.asarray(np.prod(first, keepdims=bool(_integer(node, "keepdims", 1))))
    if node.op_type == "ConstantOfShape" and prod(first.tolist()) <= LARGEST:
        value = node.attributes.get("value")
        return np.full(first.tolist(), 0 if value is None else value.as_tensor().numpy().item())
    if node.op_type == "Range" and rest[1] and (rest[0] - first.item()) / rest[1] <= LARGEST:
        return np.arange(first.item(), *rest)
    return None


def _sliced(
    first: Array, starts: list[int], ends: list[int], axes: list[int] | None = None, steps: list[int] | None = None
) -> Array:
    places = [slice(None)] * first.ndim
    for start, end, axis, step in zip(
        starts, ends, axes or range(len(starts)), steps or [1] * len(starts), strict=True
    ):
        past = step < 0 and end < -first.shape[axis]  # before the first, which Python has no number for
        places[axis] = slice(start, None if past else end, step)
    return first[tuple(places)]


def _cast(node: ir.Node, first: Array) -> Array | None:
    dtype = ir.DataType(_integer(node, "to", 0))
    if first.dtype == object:
        return first if dtype in (ir.DataType.INT64, ir.DataType.INT32) else None
    return first.astype(dtype.numpy())


def _elementwise(node: ir.Node, inputs: list[Array]) -> Array | None:
    kind = node.op_type
    if any(item.dtype == object for item in inputs):
        names = np.frompyfunc(lambda *items: _symbolic(kind, items), len(inputs), 1)
        return np.asarray(names(*(item.astype(object) for item in inputs)), object)
    if kind in _UNARY:
        return np.asarray(_UNARY[kind](inputs[0]))
    whole = inputs[-1].dtype.kind in "iu"
    if kind in ("Div", "Mod") and whole and (inputs[0].min(initial=0) < 0 or inputs[1].min(initial=1) <= 0):
        return None  # rounding of negative numbers differs from numpy's
    if kind == "Mod" and not whole:
        return None
    if kind == "Where":
        condition, one, other = inputs
        return np.where(condition, one, other)
    found = inputs[0]
    for other in inputs[1:]:
        found = np.asarray(found // other if kind == "Div" and whole else _BINARY[kind](found, other))
    return found


def _symbolic(kind: str, items: tuple[Any, ...]) -> Any:
    """One element, of numbers and names; None where it is not known."""
    if kind == "Where":
        condition, *choices = items
        return (choices[0] if choices[0] == choices[1] else None) if condition is None else choices[not condition]
    if kind == "Identity":
        return items[0]
    return None if len(items) != 2 or None in items else _of_two(kind, *items)


def _of_two(kind: str, one: Any, other: Any) -> Any:
    named = [isinstance(item, str) for item in (one, other)]
    numbers = not any(named)
    if kind == "Mul" and not all(named):
        count, size = (int(other), one) if named[0] else (int(one), other)
        return times(count, size) if count >= 0 else None
    if kind == "Equal":  # no size is negative
        known = one == other or numbers or (not all(named) and (other if named[0] else one) < 0)
        return one == other if known else None
    if kind in ("Div", "Mod") and not named[1]:
        part = parted(one if named[0] else int(one), int(other))
        return part if kind == "Div" or part is None else 0
    if kind in ("Add", "Sub") and numbers:
        return one + other if kind == "Add" else one - other
    if kind in ("Add", "Sub") and (other == 0 or (kind == "Add" and one == 0)):
        return one if other == 0 else other
    return None
