"""How a graph is searched for `ChannelGate`: from a product or sum of a map and a vector back to the map."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgeattn.ops import walk
from edgeattn.ops.activations import activation, gate
from edgeattn.ops.base import DOMAIN, Facts, Match, Miss, Tape
from edgeattn.ops.layers import (
    POOLS,
    RESHAPING,
    Unlike,
    affine,
    bare,
    elements,
    itemsize,
    layer,
    parameter,
    pooled,
    sizes,
    unflattened,
    unspread,
    vector,
)

if TYPE_CHECKING:
    from edgeattn.tensors import Array

NAME = "ChannelGate"
FURTHEST = 64  # values between a product and the pooling beyond which they have nothing to do with each other
SPACE = {3: ("length",), 4: ("height", "width"), 5: ("depth", "height", "width")}


@dataclass(frozen=True)
class _Gate:
    """What weighs a map: the variant's words without the gate, the canonical weights, and the map it comes from."""

    words: tuple[str, ...]
    arrays: tuple[Array, ...]
    source: ir.Value
    attributes: Mapping[str, Sequence[int] | float]


def find(graph: ir.Graph) -> Iterator[Match | Miss]:
    """From every product or sum of a map and a vector, back through gate, layers and pooling to the map."""
    for node in graph:
        if node.op_type not in ("Mul", "Add") or node.domain:
            continue
        for x, weights in (node.inputs, node.inputs[::-1]):
            if x is None or weights is None or (axis := _weighed_axis(x, weights)) is None:
                continue
            if walk.made_by(x, "Expand"):  # a plane that is spread over the channels is no map
                continue
            near = _near(node, x, _narrow(weights))
            if axis == 1 and near:
                try:
                    yield _match(node, x, weights)
                except Unlike as err:
                    if node.op_type == "Mul" or near == "AttentionPool":
                        yield Miss(NAME, node, (node,), str(err))
                break
            if axis != 1 and near in POOLS and node.op_type == "Mul":
                yield Miss(
                    NAME,
                    node,
                    (node,),
                    f"the gate weighs axis {axis} of {walk.dims(x)}, the last one, expected channels on axis 1",
                )
                break


def _narrow(weights: ir.Value) -> ir.Value:
    expand = walk.made_by(weights, "Expand")
    return expand.inputs[0] if expand is not None and expand.inputs[0] is not None else weights


def _weighed_axis(x: ir.Value, weights: ir.Value) -> int | None:
    """The axis of a map, the second or the last, along which a vector weighs it."""
    shape, other = walk.dims(x), walk.dims(_narrow(weights))
    if shape is None or other is None or len(shape) < 3 or len(shape) != len(other) or set(shape[1:]) == {1}:
        return None
    for axis in (1, len(shape) - 1):
        rest = {dim for place, dim in enumerate(other) if place not in (0, axis)}
        places = {dim for place, dim in enumerate(shape) if place not in (0, axis)}
        if isinstance(shape[axis], int) and other[axis] == shape[axis] and rest == {1} and places != {1}:
            return axis
    return None


def _near(node: ir.Node, x: ir.Value, weights: ir.Value) -> str:
    """The operator by which a vector comes from a map; empty where it does not, or is no gate of it.

    Of maps that are not of two dimensions only a gate is near: normalisations of tokens are spelled alike.
    """
    images = len(walk.dims(x) or ()) == 4 and _weighed_axis(x, weights) == 1
    if node.op_type == "Mul" and not images and gate(bare(weights)) is None:
        return ""
    waiting, seen = [weights], set[ir.Value]()
    while waiting and len(seen) < FURTHEST:
        value = waiting.pop()
        made = value.producer()
        if made is None or value in seen:
            continue
        seen.add(value)
        inputs = [item for item in made.inputs if item is not None and item.const_value is None]
        maps = [item for item in inputs if item is x or vector(item) is None]
        if made.op_type in POOLS and maps and (images or unflattened(maps[0]) is unflattened(x)):
            return made.op_type
        if (made.domain, made.op_type) == (DOMAIN, "AttentionPool"):
            return made.op_type
        waiting += [item for item in inputs if item not in maps]
    return ""


def _match(node: ir.Node, x: ir.Value, weights: ir.Value) -> Match:
    kind, z = "add", bare(unspread(weights, x))
    if node.op_type == "Mul":
        found = gate(z)
        if found is None:
            raise Unlike(f"the gate is made by {_maker(z)}, expected sigmoid, hard sigmoid of slope 1/6, or tanh")
        kind, z = found[0], bare(found[1])
    read = (_eca(z) if node.op_type == "Mul" else None) or _mlps(z)
    if read.source is not unflattened(x):
        done = "weighs" if node.op_type == "Mul" else "is added to"
        raise Unlike(f"the gate comes from {read.source.name!r} but {done} {x.name!r}, expected the same tensor")
    return Match(
        NAME,
        "-".join((*read.words, kind)),
        node,
        tuple(walk.between(node.outputs[0], {x, read.source})),
        node.outputs[0],
        lambda tape: [_as_map(tape, x), *(tape.constant(array) for array in read.arrays)],
        read.attributes,
        _facts(x, read),
        partial(_as_given, x),
    )


def _maker(value: ir.Value) -> str:
    node = value.producer()
    return "the graph's input" if node is None else f"{node.op_type} {node.name!r}"


# The layers


def _eca(z: ir.Value) -> _Gate | None:
    """A convolution over the pooled channels; None if it is another layer."""
    found = layer(z)
    if found is None or found.node.op_type != "Conv" or found.weight.ndim != 3:
        return None
    window = found.window
    if found.weight.shape[:2] != (1, 1) or vector(found.source) == 1:
        return None
    pads, kernel = window["pads"], found.weight.shape[2]
    if set(window["strides"] + window["dilations"]) != {1} or sum(pads) != kernel - 1:
        raise Unlike(
            f"the convolution over channels has {window}, expected stride 1 and as many channels after as before"
        )
    pool = _pool(found.source)
    if pool.words != ("avg",):
        raise Unlike(f"the convolution over channels reads their {pool.words[0]} pooling, expected their means")
    if found.bias.any():
        return _Gate(("eca", "bias"), (found.weight, found.bias), pool.source, {"pads": pads})
    return _Gate(("eca",), (found.weight,), pool.source, {"pads": pads})


def _mlps(z: ir.Value) -> _Gate:
    """One MLP, or the sum of one applied to means and to maxima."""
    add = walk.made_by(z, "Add")
    if layer(z) is not None or add is None:
        return _mlp(z)
    left, right = (_mlp(item) for item in add.inputs if item is not None)
    if walk.dims(add.inputs[0]) != walk.dims(add.inputs[1]) or {left.words[0], right.words[0]} != {"avg", "max"}:
        raise Unlike(
            f"{'-'.join(left.words)} and {'-'.join(right.words)} are added, "
            "expected an MLP of the mean and one of the maximum"
        )
    same = (left.words[1:], left.attributes) == (right.words[1:], right.attributes)
    if not same or len(left.arrays) != len(right.arrays) or left.source is not right.source:
        raise Unlike("mean and maximum go through different layers, expected the same")
    if not all(np.array_equal(one, other) for one, other in zip(left.arrays, right.arrays, strict=True)):
        raise Unlike("mean and maximum go through layers with different weights, expected shared ones")
    return _Gate(("avgmax", *left.words[1:]), left.arrays, left.source, left.attributes)


def _mlp(z: ir.Value) -> _Gate:
    last, weight = _linear(z)
    act, hidden = activation(last)
    if act == "identity" and (single := _pooling(hidden)) is not None:
        if single.words == ("max",):
            raise Unlike("one layer reads the channels' maxima, expected their means")
        words = ("ese",) if single.words == ("avg",) else (*single.words, "ese")
        return _Gate(words, (*single.arrays, *weight), single.source, {})
    norm = _layer_norm(hidden)
    first, before = _linear(hidden if norm is None else norm.source)
    pool = _pool(first)
    if norm is None:
        return _Gate((*pool.words, act), (*pool.arrays, *before, *weight), pool.source, {})
    return _Gate((*pool.words, "ln", act), (*pool.arrays, *before, *norm.arrays, *weight), pool.source, norm.attributes)


def _linear(value: ir.Value) -> tuple[ir.Value, list[Array]]:
    """(input, [weight, bias]) of a linear layer or a 1x1 convolution of a vector."""
    found = layer(value)
    weight = found.pointwise if found is not None else None
    if found is None:
        raise Unlike(
            f"{_maker(bare(value))} feeds the gate, expected a linear layer, a 1x1 convolution, "
            "or the mean or maximum over height and width"
        )
    if weight is None or weight.shape[1] != vector(found.source):
        raise Unlike(f"{found.node.op_type} {found.node.name!r} mixes places or groups, expected a linear layer")
    return found.source, [weight, found.bias]


def _layer_norm(value: ir.Value) -> _Gate | None:
    """The LayerNorm over all numbers of a vector that ends in a value: its scale and offset, epsilon, and input."""
    value = bare(value)
    count, scale, shift = vector(value), np.ones(1), np.zeros(1)
    while (step := affine(value)) is not None:
        source, factor, offset = step
        value, scale, shift = bare(source), scale * factor, shift + scale * offset
    node = walk.made_by(value, "LayerNormalization", "Div")
    found = None if node is None else _normalised(node)
    if found is None or count is None or vector(found.source) != count or value.dtype is None:
        return None
    inner = [np.asarray(array, np.float64) for array in found.arrays]
    pair = (inner[0] * scale, inner[1] * scale + shift)
    if any(array.size not in (1, count) for array in pair):
        return None
    arrays = [np.broadcast_to(array.reshape(-1), (count,)).astype(value.dtype.numpy()) for array in pair]
    return _Gate((), tuple(arrays), found.source, found.attributes)


def _normalised(node: ir.Node) -> _Gate | None:
    """The operator, or (x - mean) / sqrt(mean of its square + epsilon) written out."""
    if node.op_type == "LayerNormalization":
        source, given = node.inputs[0], [parameter(item) for item in node.inputs[1:]]
        shape = walk.dims(source)
        if source is None or shape is None or any(array is None for array in given):
            return None
        over = shape[walk.integer(node, "axis", -1) % len(shape) :]
        whole = all(isinstance(dim, int) for dim in over) and prod(int(dim or 0) for dim in over) == vector(source)
        epsilon = node.attributes.get("epsilon")
        weights = [np.ravel(array) for array in given if array is not None]
        if not whole or len(over) == len(shape) or walk.integer(node, "stash_type", 1) != 1:
            return None
        number = 1e-5 if epsilon is None else epsilon.as_float()
        return _Gate((), (*weights, *([np.zeros(1)] if len(weights) == 1 else [])), source, {"epsilon": number})
    centred, root = walk.made_by(node.inputs[0], "Sub"), walk.made_by(node.inputs[1], "Sqrt")
    total = walk.made_by(root.inputs[0], "Add") if root is not None else None
    if centred is None or total is None:
        return None
    for variance, number_of in (total.inputs, total.inputs[::-1]):
        small, square = walk.scalar(number_of), walk.made_by(_mean_of(variance), "Mul", "Pow")
        source = centred.inputs[0]
        if small is None or square is None or source is None or _mean_of(centred.inputs[1]) is not source:
            continue
        twice = square.op_type == "Mul" and square.inputs[1] is square.inputs[0]
        deviation = walk.made_by(square.inputs[0], "Sub") if twice or walk.scalar(square.inputs[1]) == 2 else None
        if deviation is not None and list(deviation.inputs) == list(centred.inputs):
            return _Gate((), (np.ones(1), np.zeros(1)), source, {"epsilon": small})
    return None


def _mean_of(value: ir.Value | None) -> ir.Value | None:
    """What a value is the mean of, over all numbers of a vector, its axes kept."""
    node = walk.made_by(value, "ReduceMean")
    shape = walk.dims(node.inputs[0]) if node is not None else None
    axes = walk.axes_of(node, len(shape)) if node is not None and shape is not None else None
    if node is None or not axes or shape is None or 0 in axes or not walk.integer(node, "keepdims", 1):
        return None
    complete = all(dim == 1 for place, dim in enumerate(shape) if place and place not in axes)
    return node.inputs[0] if complete and vector(node.inputs[0]) is not None else None


# The pooling


def _pool(value: ir.Value) -> _Gate:
    found = _pooling(value)
    if found is None:
        raise Unlike(f"the gate reads {_maker(bare(value))}, expected the mean or maximum over height and width")
    return found


def _pooling(value: ir.Value) -> _Gate | None:
    found = pooled(value)
    if found is not None:
        return _Gate((found[0],), (), found[1], {})
    node = bare(value).producer()
    if node is None or (node.domain, node.op_type) != (DOMAIN, "AttentionPool"):
        return None
    return _attended(node)


def _attended(node: ir.Node) -> _Gate:
    """The canonical attention pooling of a map by a 1x1 convolution of the same map to one channel.

    Raises:
        Unlike: the scores are made in another way.
    """
    scores, x = node.inputs
    shape = walk.dims(x)
    if node.overload != "map" or scores is None or x is None or shape is None or len(shape) != 3:
        raise Unlike(f"attention pools items of shape {shape}, expected channels on axis 1")
    source, value = unflattened(x), scores
    while (view := walk.made_by(value, *RESHAPING)) and view.inputs[0] is not None and _keeps_order(view):
        value = view.inputs[0]
    found = layer(value)
    weight = found.pointwise if found is not None else None
    if found is None or weight is None or len(weight) != 1 or unflattened(found.source) is not source:
        raise Unlike(
            f"the scores of the attention pooling are made by {_maker(value)}, "
            f"expected a 1x1 convolution of {source.name!r} to one channel"
        )
    return _Gate(("attn",), (weight,), source, {})  # a bias, the same for all places, changes no softmax


def _keeps_order(view: ir.Node) -> bool:
    """Whether a view leaves the numbers in their order: all but a transpose of two axes that have a size."""
    shape, perm = walk.dims(view.inputs[0]), walk.ints(view, "perm")
    if view.op_type != "Transpose":
        return True
    moved = [axis for axis in perm or () if shape is None or shape[axis] != 1]
    return perm is not None and moved == sorted(moved)


# The canonical node


def _as_map(tape: Tape, x: ir.Value) -> ir.Value:
    """A tensor (B, C, ...) as (B, C, H, W), which costs nothing."""
    shape = walk.dims(x) or ()
    if len(shape) == 4:
        return x
    places: tuple[int | str | None, ...] = (shape[2], 1)
    if len(shape) == 3:
        value = tape.op("Unsqueeze", [x, tape.constant(np.array([3]))])
    else:
        value = tape.op("Reshape", [x, tape.constant(np.array([0, 0, 0, -1]))])
        known = all(isinstance(dim, int) for dim in shape[3:])
        places = (shape[2], prod(int(dim or 0) for dim in shape[3:]) if known else None)
    value.shape, value.type = ir.Shape([*shape[:2], *places]), x.type
    return value


def _as_given(x: ir.Value, tape: Tape, value: ir.Value) -> ir.Value:
    """The gated map in the layout of x."""
    shape = walk.dims(x) or ()
    if len(shape) == 4:
        return value
    if len(shape) == 3:
        return tape.op("Squeeze", [value, tape.constant(np.array([3]))])
    known = [dim if isinstance(dim, int) else -1 for dim in shape[3:]]
    if known.count(-1) > 1:
        return tape.op("Reshape", [value, tape.op("Shape", [x])])
    return tape.op("Reshape", [value, tape.constant(np.array([0, 0, 0, *known]))])


def _facts(x: ir.Value, read: _Gate) -> Facts:
    rank, pool, arrays = len(walk.dims(x) or ()), read.words[0], read.arrays
    named = sizes(x, "batch", "channels", *SPACE.get(rank, ()))
    first = arrays[1] if pool == "attn" else arrays[0]
    if "ese" not in read.words and "eca" not in read.words:
        named["reduced"] = len(first)
    count, width, pools = elements(x), itemsize(x), 2 if pool == "avgmax" else 1
    if count is None:
        return Facts(named)
    parameters, passes = sum(array.size for array in arrays), 2 if pool == "attn" else pools
    area = count // int(named["channels"]) if pool == "attn" else 0  # scores and their softmax
    return Facts(
        named,
        flops=(3 * pools + 2 if pool == "attn" else pools + 1) * count + 2 * pools * parameters + 5 * area,
        bytes_decomposed=width * ((passes + 2) * count + 4 * area + parameters),
        bytes_fused=width * (2 * count + parameters),
    )
