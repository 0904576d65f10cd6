"""Small steps through a graph that every search takes: producers, constants, sizes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from edgeattn.tensors import Array

_LARGEST_SCALAR_FOLD = 64


def made_by(value: ir.Value | None, *kinds: str) -> ir.Node | None:
    """The node of the default domain that computes a value, if it is one of these kinds (any, where none is named)."""
    node = value.producer() if value is not None else None
    if node is None or node.domain not in ("", "ai.onnx") or (kinds and node.op_type not in kinds):
        return None
    return node


def users(value: ir.Value, *kinds: str) -> list[ir.Node]:
    """The nodes that read a value, each once; only those of these kinds, where some are named."""
    nodes = dict.fromkeys(node for node, _ in value.uses())
    return [node for node in nodes if not kinds or node.op_type in kinds]


def constant(value: ir.Value | None) -> Array | None:
    """The array of an initializer, a Constant node, or a cast of a small one; None where it is computed."""
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    node = value.producer()
    if node is None:
        return None
    if node.op_type == "Constant":
        tensor = ir.convenience.get_const_tensor(value)
        return None if tensor is None else tensor.numpy()
    if node.op_type in ("Identity", "Cast", "CastLike"):
        inner = constant(node.inputs[0])
        if inner is not None and inner.size <= _LARGEST_SCALAR_FOLD:
            return inner if value.dtype is None else inner.astype(value.dtype.numpy())
    return None


def scalar(value: ir.Value | None) -> float | None:
    """The number of a constant with one element."""
    array = constant(value)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


_ARITHMETIC: dict[str, Callable[..., Array]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Pow": np.power,
    "Sqrt": np.sqrt, "Exp": np.exp, "Neg": np.negative, "Reciprocal": np.reciprocal,
}  # fmt: skip


def number(value: ir.Value | None) -> float | None:
    """The number of a value with one element that follows from constants and known sizes, such as 1 / sqrt(size)."""
    shape = dims(value)
    array = _folded(value) if shape is not None and all(dim == 1 for dim in shape) else None
    return float(array.reshape(())) if array is not None and array.size == 1 and None not in array.flat else None


def _folded(value: ir.Value | None, depth: int = 16) -> Array | None:
    """A small value computed from constants and sizes; a size that is not known is None in an array of objects."""
    array = constant(value)
    node = made_by(value)
    if array is not None or node is None or depth == 0:
        return array if array is not None and array.size <= _LARGEST_SCALAR_FOLD else None
    if node.op_type == "Shape":
        sizes = [dim if isinstance(dim, int) else None for dim in dims(node.inputs[0]) or ()]
        end = node.attributes.get("end")
        return np.array(sizes, object)[integer(node, "start", 0) : None if end is None else end.as_int()]
    if node.op_type not in (*_ARITHMETIC, "Cast", "Identity", "Squeeze", "Unsqueeze", "Gather", "Slice"):
        return None
    inputs = [_folded(item, depth - 1) for item in node.inputs]
    return (
        None if any(item is None for item in inputs) else _applied(node, [item for item in inputs if item is not None])
    )


def _applied(node: ir.Node, inputs: list[Array]) -> Array | None:
    first, *rest = inputs
    picks = node.op_type in ("Gather", "Slice")
    dtype = node.outputs[0].dtype
    if dtype is None or any(None in item.flat for item in (rest if picks else inputs)):
        return None
    if picks:
        return _picked(node, first, rest) if first.ndim == 1 else None
    first = first.astype(dtype.numpy())
    if node.op_type not in _ARITHMETIC:
        return first.reshape(-1) if node.op_type == "Unsqueeze" else first
    if not dtype.is_floating_point() and node.op_type not in ("Add", "Sub", "Mul"):
        return None if node.op_type != "Div" or min(first.min(), rest[0].min()) <= 0 else first // rest[0]
    with np.errstate(all="ignore"):
        return np.asarray(_ARITHMETIC[node.op_type](first, *rest)).astype(dtype.numpy())


def _picked(node: ir.Node, first: Array, rest: list[Array]) -> Array | None:
    """Some elements of a list of sizes."""
    if node.op_type == "Gather":
        places = rest[0].astype(np.int64)
        return np.asarray(first[places]) if np.all((places < len(first)) & (places >= -len(first))) else None
    numbers = [int(item.item()) for item in rest if item.size == 1]
    step = numbers[3] if len(numbers) > 3 else 1
    return first[numbers[0] : numbers[1] : step] if len(numbers) == len(rest) and step > 0 else None


def dims(value: ir.Value | None) -> tuple[int | str | None, ...] | None:
    """The dimensions of a value: numbers, names, or None for one that is not known; None where the rank is not."""
    if value is None or value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)


def ints(node: ir.Node, name: str, default: tuple[int, ...] | None = None) -> tuple[int, ...] | None:
    """A list attribute of a node."""
    attribute = node.attributes.get(name)
    return default if attribute is None else tuple(attribute.as_ints())


def integer(node: ir.Node, name: str, default: int) -> int:
    """A number attribute of a node."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def axes_of(node: ir.Node, rank: int) -> tuple[int, ...] | None:
    """The axes a Reduce*, Squeeze or Unsqueeze works on, from attribute or input, counted from 0; None if computed."""
    given = ints(node, "axes")
    if given is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        array = constant(node.inputs[1])
        given = None if array is None else tuple(int(axis) for axis in np.atleast_1d(array))
    return None if given is None else tuple(sorted(axis % rank for axis in given))


def between(last: ir.Value, stops: Collection[ir.Value]) -> Iterator[ir.Node]:
    """The nodes on the way back from a value to others, those included that make `last`, not those behind `stops`."""
    seen: set[ir.Node] = set()
    waiting = [last]
    while waiting:
        value = waiting.pop()
        node = None if value in stops else value.producer()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += [item for item in node.inputs if item is not None]
