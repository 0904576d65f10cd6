"""Small steps through a graph that every search takes: producers, constants, sizes."""

from __future__ import annotations

from collections.abc import Collection, Iterator
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


def behind(value: ir.Value, kinds: Collection[str]) -> ir.Value:
    """What a value comes from through nodes of these kinds, by their first inputs."""
    while (node := made_by(value, *kinds)) is not None and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


def users(value: ir.Value, *kinds: str) -> list[ir.Node]:
    """The nodes that read a value, each once; only those of these kinds, where some are named."""
    nodes = dict.fromkeys(node for node, _ in value.uses())
    return [node for node in nodes if not kinds or node.op_type in kinds]


def constant(value: ir.Value | None) -> Array | None:
    """The array of an initializer, a Constant node, or a cast of a small one; None where it is computed."""
    if value is None:
        return None
    if (tensor := ir.convenience.get_const_tensor(value)) is not None:
        return tensor.numpy()
    node = value.producer()
    if node is not None and node.op_type in ("Identity", "Cast", "CastLike"):
        inner = constant(node.inputs[0])
        if inner is not None and inner.size <= _LARGEST_SCALAR_FOLD:
            return inner if value.dtype is None else inner.astype(value.dtype.numpy())
    return None


def scalar(value: ir.Value | None) -> float | None:
    """The number of a constant with one element."""
    array = constant(value)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def number(value: ir.Value | None) -> float | None:
    """The number of a constant with one element, whose shape is known to have no other size than one."""
    shape = dims(value)
    return scalar(value) if shape is not None and all(dim == 1 for dim in shape) else None


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
