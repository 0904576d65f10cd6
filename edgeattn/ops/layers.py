"""The layers that gates are made of, read back from a graph whatever their spelling: pooling, linear, convolution.

A *vector* is a value that holds C numbers for each sample, in any layout: (B, C), (B, C, 1, 1), (B, 1, C). Reshapes
between such layouts keep the numbers in place, so every search looks through them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgeattn.ops import walk
from edgeattn.ops.base import Match, Miss

if TYPE_CHECKING:
    from edgeattn.tensors import Array

RESHAPING = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Identity")
POOLS = {
    "GlobalAveragePool": "avg", "ReduceMean": "avg", "AveragePool": "avg",
    "GlobalMaxPool": "max", "ReduceMax": "max", "MaxPool": "max",
}  # fmt: skip


class Unlike(Exception):  # noqa: N818 (no error: it ends one attempt of a search)
    """Nearly the op that is searched for; the message says what was found, and what was expected."""


# Vectors and maps


def vector(value: ir.Value | None) -> int | None:
    """The length C of a vector; None for a value that is none, or of unknown size."""
    shape = walk.dims(value)
    if shape is None or len(shape) < 2:
        return None
    sizes = [dim for dim in shape[1:] if dim != 1]
    if not sizes:
        return 1
    return sizes[0] if len(sizes) == 1 and isinstance(sizes[0], int) else None


def channel_axis(value: ir.Value) -> int:
    """The axis of a vector's numbers; of anything else the one where images have their channels."""
    shape = walk.dims(value) or ()
    if vector(value) is None:
        return 1
    return next((axis for axis, dim in enumerate(shape) if axis and dim != 1), 1)


def bare(value: ir.Value) -> ir.Value:
    """Look back through nodes that only lay a vector out in another way."""
    while (node := walk.made_by(value, *RESHAPING)) and node.inputs[0] is not None:
        source = node.inputs[0]
        if vector(value) is None or vector(source) != vector(value):
            break
        if node.op_type == "Transpose" and (walk.ints(node, "perm") or (1,))[0] != 0:
            break
        value = source
    return value


def unspread(value: ir.Value, like: ir.Value) -> ir.Value:
    """Look back through an Expand to the shape of `like`, which broadcasting would give as well.

    Raises:
        Unlike: it expands to something else, or it is not known to what.
    """
    node = walk.made_by(value, "Expand")
    if node is None or node.inputs[0] is None:
        return value
    shape = walk.made_by(node.inputs[1], "Shape")
    whole = shape is not None and shape.inputs[0] is like and walk.integer(shape, "start", 0) == 0
    whole = whole and shape is not None and "end" not in shape.attributes
    expected, found = walk.dims(like), walk.dims(value)
    if not whole and (expected is None or None in expected or found != expected):
        raise Unlike(f"the gate is expanded to {_text(found)}, expected the shape of {like.name!r}, {_text(expected)}")
    return node.inputs[0]


def _text(shape: tuple[int | str | None, ...] | None) -> str:
    return "an unknown shape" if shape is None else "(" + ", ".join(str(dim or "?") for dim in shape) + ")"


def sizes(value: ir.Value, *names: str) -> dict[str, int | str]:
    """The dimensions of a value by name, "?" for one that is not known."""
    return {name: "?" if dim is None else dim for name, dim in zip(names, walk.dims(value) or (), strict=False)}


def elements(value: ir.Value) -> int | None:
    """How many numbers a sample has: the product of all sizes but the first; None where one is not known."""
    shape = walk.dims(value)
    known = [dim for dim in (shape or ())[1:] if isinstance(dim, int)]
    return math.prod(known) if shape is not None and len(known) == len(shape) - 1 else None


def itemsize(value: ir.Value) -> int:
    """Bytes of one number; those of float32 where the type is not known."""
    return 4 if value.dtype is None else value.dtype.itemsize  # type: ignore[return-value]


# Pooling


def pooled(value: ir.Value) -> tuple[str, ir.Value] | None:
    """("avg" or "max", x) if a vector is the mean or the maximum over all places of a map x (B, C, ...)."""
    value = bare(value)
    node = walk.made_by(value, *POOLS)
    if node is None or value is not node.outputs[0] or node.inputs[0] is None:
        return None
    kind, source = POOLS[node.op_type], node.inputs[0]
    if node.op_type.startswith("Reduce"):
        reduced = _reduced(node, node.op_type)
        if reduced is None:
            return None
        source, axes = reduced
        complete = axes == tuple(range(2, len(walk.dims(source) or ()))) != ()
    else:
        complete = node.op_type.startswith("Global") or _covers(node)
    shape = walk.dims(source)
    return (kind, unflattened(source)) if complete and shape is not None and len(shape) > 2 else None


def _reduced(node: ir.Node, kind: str) -> tuple[ir.Value, tuple[int, ...]] | None:
    """What one or more reductions of a kind, each of the last one's result, reduce, and over which axes."""
    source = node.inputs[0]
    shape = walk.dims(source)
    axes = walk.axes_of(node, len(shape)) if shape is not None else None
    if source is None or not axes:
        return None
    inner = walk.made_by(source, kind)
    before = _reduced(inner, kind) if inner is not None else None
    if inner is None or before is None:
        return source, axes
    origin, gone = before
    if walk.integer(inner, "keepdims", 1) == 0:
        left = [axis for axis in range(len(walk.dims(origin) or ())) if axis not in gone]
        axes = tuple(left[axis] for axis in axes)
    return origin, tuple(sorted({*gone, *axes}))


def unflattened(value: ir.Value) -> ir.Value:
    """The map (B, C, ...) that a value is with its places in a row, (B, C, N); else the value itself."""
    after, source = walk.dims(value), value
    if after is None or len(after) != 3 or not isinstance(after[1], int):
        return value
    while (node := walk.made_by(source, "Reshape", "Flatten", "Squeeze", "Unsqueeze")) and node.inputs[0] is not None:
        source = node.inputs[0]
        before = walk.dims(source)
        if before is None or len(before) < 4 or before[1] != after[1]:
            continue
        sizes = [dim for dim in before[2:] if isinstance(dim, int)]
        area = math.prod(sizes) if len(sizes) == len(before) - 2 else None
        if (before[0] is not None and before[0] == after[0]) or (area is not None and area == after[2]):
            return source
    return value


def _covers(node: ir.Node) -> bool:
    """Whether a pooling window is the whole map, and nothing beside it."""
    shape = walk.dims(node.inputs[0])
    window, pads = walk.ints(node, "kernel_shape"), walk.ints(node, "pads", (0,))
    padding = node.attributes.get("auto_pad")
    return (
        shape is not None
        and shape[2:] == window
        and not any(pads or ())
        and (padding is None or padding.as_string() in ("NOTSET", "VALID"))
        and set(walk.ints(node, "dilations", (1,)) or ()) == {1}
        and (walk.dims(node.outputs[0]) or ())[2:] == (1,) * (len(shape) - 2)
    )


# Linear layers and convolutions


def parameter(value: ir.Value | None) -> Array | None:
    """The array of a constant, also where a node transposes, reshapes or casts it when the graph runs."""
    node = walk.made_by(value, *RESHAPING, "Cast")
    array = walk.constant(value) if node is None else parameter(node.inputs[0])
    if node is None or array is None or value is None:
        return array
    if node.op_type == "Cast":
        return None if value.dtype is None else array.astype(value.dtype.numpy())
    if node.op_type == "Transpose":
        return array.transpose(walk.ints(node, "perm"))
    shape = walk.dims(value)
    known = shape is not None and all(isinstance(dim, int) for dim in shape)
    return array.reshape(shape) if known else None  # type: ignore[arg-type]


@dataclass(frozen=True)
class Layer:
    """weight applied to `source`, plus bias, with any normalisation after it folded in.

    `node` is a Conv, or a Gemm or MatMul, whose `weight` is (out, in) then.
    """

    source: ir.Value
    node: ir.Node
    weight: Array
    bias: Array

    @property
    def window(self) -> dict[str, tuple[int, ...]]:
        """A convolution's strides, dilations and pads, spelled out."""
        rank = self.weight.ndim - 2
        names = {"strides": (1,) * rank, "dilations": (1,) * rank, "pads": (0,) * 2 * rank}
        window = {name: walk.ints(self.node, name, default) or default for name, default in names.items()}
        padding = self.node.attributes.get("auto_pad")
        if padding is not None and padding.as_string().startswith("SAME") and set(window["strides"]) <= {1}:
            sizes = [step * (size - 1) for step, size in zip(window["dilations"], self.weight.shape[2:], strict=True)]
            halves = (tuple(size // 2 for size in sizes), tuple(size - size // 2 for size in sizes))
            window["pads"] = sum(halves if padding.as_string() == "SAME_UPPER" else halves[::-1], ())
        return window

    @property
    def pointwise(self) -> Array | None:
        """The weight (out, in) where each output place reads one input place, and all its channels."""
        window, kernel = self.window, self.weight.shape[2:]
        plain = set(kernel) <= {1} and set(window["strides"]) <= {1} and not any(window["pads"])
        grouped = self.node.op_type == "Conv" and walk.integer(self.node, "group", 1) != 1
        return self.weight.reshape(self.weight.shape[:2]) if plain and not grouped else None


def layer(value: ir.Value) -> Layer | None:
    """The layer with constant weights that computes a value, with the affine maps per channel that follow it."""
    value = bare(value)
    scale, shift = np.ones(1), np.zeros(1)
    while (step := affine(value)) is not None:
        source, factor, offset = step
        scale, shift = scale * factor, shift + scale * offset
        value = bare(source)
    node = walk.made_by(value, "Conv", "Gemm", "MatMul")
    found = None if node is None else _weights(node)
    if node is None or found is None:
        return None
    source, weight, bias = found
    out = weight.shape[0]
    if np.size(scale) not in (1, out) or np.size(shift) not in (1, out):
        return None
    bias = np.zeros(out, weight.dtype) if bias is None else bias
    if np.any(scale != 1):
        factors = np.broadcast_to(scale, out).reshape(out, *[1] * (weight.ndim - 1))
        weight = (weight.astype(np.float64) * factors).astype(weight.dtype)
    if np.any(scale != 1) or np.any(shift != 0):
        bias = (bias.astype(np.float64) * scale + shift).astype(weight.dtype)
    return Layer(source, node, weight, bias)


def affine(value: ir.Value) -> tuple[ir.Value, Array, Array] | None:
    """(x, scale, shift), the last two per channel, if a value is scale * x + shift: BatchNorm, a factor or a bias."""
    node = walk.made_by(value, "BatchNormalization", "Add", "Mul")
    if node is None or value is not node.outputs[0]:
        return None
    axis = channel_axis(value)
    if node.op_type == "BatchNormalization":
        numbers = [parameter(item) for item in node.inputs[1:5]]
        source = node.inputs[0]
        if (
            source is None
            or axis != 1
            or any(item is None for item in numbers)
            or walk.integer(node, "training_mode", 0)
        ):
            return None
        gamma, beta, mean, variance = (np.asarray(item, np.float64) for item in numbers)
        epsilon = node.attributes.get("epsilon")
        scale = gamma / np.sqrt(variance + (1e-5 if epsilon is None else epsilon.as_float()))
        return source, scale, beta - mean * scale
    for source, other in (node.inputs, node.inputs[::-1]):
        array = parameter(other)
        shape = walk.dims(value)
        if array is None or source is None or shape is None or walk.dims(source) != shape or len(shape) <= axis:
            continue
        numbers64 = _per_channel(array, axis, len(shape)) if isinstance(shape[axis], int) else None
        if numbers64 is not None:
            one, zero = np.ones(()), np.zeros(())
            return (source, one, numbers64) if node.op_type == "Add" else (source, numbers64, zero)
    return None


def _per_channel(array: Array, axis: int, rank: int) -> Array | None:
    """A constant that broadcasts along one axis only, as float64 (C) or (1)."""
    if array.ndim > rank:
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    lone = all(size == 1 for place, size in enumerate(shape) if place != axis)
    return array.reshape(-1).astype(np.float64) if lone else None


def _weights(node: ir.Node) -> tuple[ir.Value, Array, Array | None] | None:
    """(source, weight (out, in, ...), bias (out)) of a node, its source in the layout that the node wants."""
    source, weight = node.inputs[0], parameter(node.inputs[1])
    if source is None or weight is None:
        return None
    given = node.inputs[2] if len(node.inputs) > 2 else None
    bias = parameter(given)
    if given is not None and bias is None:
        return None
    if node.op_type == "Conv":
        return source, weight, bias
    if weight.ndim != 2 or vector(source) is None or (walk.dims(source) or ())[-1] != vector(source):
        return None
    return (source, weight.T, None) if node.op_type == "MatMul" else _gemm(node, source, weight, bias)


def _gemm(
    node: ir.Node, source: ir.Value, weight: Array, bias: Array | None
) -> tuple[ir.Value, Array, Array | None] | None:
    alpha, beta = (node.attributes.get(name) for name in ("alpha", "beta"))
    plain = all(item is None or item.as_float() == 1 for item in (alpha, beta))
    if not plain or walk.integer(node, "transA", 0):
        return None
    weight = weight if walk.integer(node, "transB", 0) else weight.T
    if bias is None:
        return source, weight, None
    flat = _per_channel(bias, 1, 2)
    return None if flat is None else (source, weight, np.broadcast_to(flat, len(weight)).astype(weight.dtype))


def weighed_maps(
    graph: ir.Graph, name: str, match: Callable[[ir.Node, ir.Value, ir.Value], Match | None]
) -> Iterator[Match | Miss]:
    """Try every product of a map (B, C, H, W), C fixed, and what may be its weights; `Unlike` becomes a miss."""
    for node in graph:
        if node.op_type != "Mul" or node.domain:
            continue
        for x, weights in (node.inputs, node.inputs[::-1]):
            shape = walk.dims(x)
            if x is None or weights is None or shape is None or len(shape) != 4 or not isinstance(shape[1], int):
                continue
            try:
                found = match(node, x, weights)
            except Unlike as err:
                yield Miss(name, node, (node,), str(err))
                break
            if found is not None:
                yield found
                break
