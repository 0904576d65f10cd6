"""Channels of one value brought to like sizes, by factors that weights take up, so that one scale fits them all.

    W2 f(W1 x) = (W2 diag(s)) f(diag(1 / s) W1 x)    with f a ReLU or nothing, and W1 weights or a LayerNorm's gain

What the graph computes stays the same. Where one channel of a value is far larger than the others, a single scale
leaves those few of the 256 steps; `s = sqrt(largest |x| / largest |w|)`, for each channel, shares the burden between
the value and the weights that read it.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, arXiv 1906.04721,
section 4.1; Xiao et al., "SmoothQuant", 2022, arXiv 2211.10438, equation 4 with alpha = 1/2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgeattn.precision.int8.placement import Placement, Product, operand
from edgeattn.precision.int8.weights import Names, initializer, numbers
from edgeattn.precision.ranges import Range
from edgeattn.precision.signatures import constant, op

if TYPE_CHECKING:
    from edgeattn.tensors import Array

HOMOGENEOUS = ("LeakyRelu", "Relu")  # f(a x) = a f(x) for a > 0
MOST = 64.0  # that a channel is scaled by, either way
Slot = tuple[ir.Node, int, int]  # an input of a node, and the axis of a value's channels in it


@dataclass(frozen=True)
class Channels:
    """Over some samples, the smallest, the largest and the mean value of each channel of one value."""

    low: Array
    high: Array
    mean: Array


@dataclass(frozen=True)
class Link:
    """A value, the weights and biases that make its channels, and the weights that read them."""

    value: ir.Value
    makers: tuple[Slot, ...]
    readers: tuple[Slot, ...]


def equalise(graph: ir.Graph, placement: Placement, seen: Mapping[str, Channels]) -> dict[str, Range]:
    """Scale channels in place, wherever that is exact; the new ranges of the values, by name."""
    names, changed = Names(graph), {}
    for link in _links(placement):
        channels = seen[link.value.name or ""]
        x = np.maximum(np.abs(channels.low), np.abs(channels.high))
        w = np.max([_largest(slot) for slot in link.readers], axis=0)
        known = (x > 0) & (w > 0)
        if not known.any():
            continue
        s = np.sqrt(np.where(known, x, 1.0) / np.where(known, w, 1.0))
        s = np.where(known, np.clip(s / np.exp(np.log(s[known]).mean()), 1 / MOST, MOST), 1.0)
        for slots, factor in ((link.makers, 1 / s), (link.readers, s)):
            for slot in slots:
                _scale(graph, names, slot, factor)
        changed[link.value.name or ""] = _resized(placement.points[link.value], channels, s)
    return changed


def _resized(spread: Range, channels: Channels, s: Array) -> Range:
    """The range of a value after its channels were divided by `s`: each end moves as it did on the samples."""
    least, most = channels.low.min(), channels.high.max()
    down = (channels.low / s).min() / least if least < 0 else 1.0
    up = (channels.high / s).max() / most if most > 0 else 1.0
    ends = ((spread.min, down), (spread.max, up), (spread.low, down), (spread.high, up))
    return Range(*(float(end * factor) for end, factor in ends))


def input_axis(product: Product) -> int | None:
    """The axis of a product's weights along the channels of its input; None where these are divided into groups."""
    node, shape = product.node, numbers(operand(product.node, product.w)).shape
    if op(node) == "Conv":
        groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
        return 1 if groups == 1 else 0 if shape[1] == 1 and shape[0] == groups else None
    return 1 - product.axis if op(node) in ("Gemm", "MatMul") and product.w == 1 and len(shape) == 2 else None


def _links(placement: Placement) -> Iterator[Link]:
    for value in placement.points:
        readers = []
        for node, _ in value.uses():
            product = placement.products.get(node)
            axis = input_axis(product) if product is not None else None
            if product is None or axis is None:
                break
            readers.append((node, product.w, axis))
        else:
            makers = None if value.is_graph_output() else _makers(value)
            if makers and readers:
                yield Link(value, tuple(makers), tuple(readers))


def _makers(value: ir.Value) -> list[Slot] | None:
    """The weights and biases that scale a value's channels; None where something else makes it."""
    node = value.producer()
    if node is not None and op(node) in HOMOGENEOUS:
        node = _alone(node, 0)
    added: list[Slot] = []
    if node is not None and op(node) == "Add":
        place = next((place for place in (0, 1) if _is_vector(node, place)), None)
        if place is None:
            return None
        added = [(node, place, 0)]
        node = _alone(node, 1 - place)
        if node is None or op(node) != "MatMul":
            return None
    found = _weights(node) if node is not None else None
    return None if found is None else [*found, *added]


def _weights(node: ir.Node) -> list[Slot] | None:
    axis: int | None = 0
    if op(node) == "LayerNormalization":
        rank = len(node.outputs[0].shape or ())
        if (node.attributes["axis"].as_int() if "axis" in node.attributes else -1) not in (-1, rank - 1):
            return None
    elif op(node) == "Gemm":
        axis = 0 if "transB" in node.attributes and node.attributes["transB"].as_int() else 1
    elif op(node) == "MatMul":
        axis = 1 if constant(node.inputs[0]) is None else None
    elif op(node) != "Conv":
        return None
    places = [place for place in range(1, len(node.inputs)) if node.inputs[place] is not None]
    fixed = all(constant(node.inputs[place]) is not None for place in places)
    if axis is None or not fixed or not all(_is_vector(node, place) for place in places[1:]):
        return None
    return [(node, 1, axis), *((node, place, 0) for place in places[1:])]


def _alone(node: ir.Node, place: int) -> ir.Node | None:
    """What makes an input of a node, where nothing else reads it."""
    value = operand(node, place)
    return value.producer() if len(value.uses()) == 1 and not value.is_graph_output() else None


def _is_vector(node: ir.Node, place: int) -> bool:
    tensor = constant(node.inputs[place])
    return tensor is not None and len(tensor.shape) == 1 and tensor.size > 1


def _largest(slot: Slot) -> Array:
    node, place, axis = slot
    weights = np.abs(numbers(operand(node, place)))
    largest: Array = weights.max(axis=tuple(other for other in range(weights.ndim) if other != axis))
    return largest


def _scale(graph: ir.Graph, names: Names, slot: Slot, factor: Array) -> None:
    node, place, axis = slot
    value = operand(node, place)
    weights = numbers(value)
    scaled = weights * factor.reshape([-1 if other == axis else 1 for other in range(weights.ndim)])
    dtype = (value.dtype or ir.DataType.FLOAT).numpy()
    node.replace_input_with(place, initializer(graph, names, f"{value.name}_equalised", scaled.astype(dtype)))
