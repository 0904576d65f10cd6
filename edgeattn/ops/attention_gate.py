"""AttentionGate: one weight for each position of a skip connection, from it and a coarser gating signal.

    AttentionGate(x, g, wx, wg, b, wp, bp) = x * sigmoid(conv(relu(conv(x, wx) + conv(g, wg) + b), wp) + bp)

x (B, C, H, W), g (B, G, H, W), wx (F, C, 1, 1), wg (F, G, 1, 1), b (F), wp (1, F, 1, 1), bp (1): variant "same", all
at one resolution. In variant "coarse" the gate is computed on a smaller map and resampled to x's size:

    AttentionGate(x, p, wx, b, wp, bp) = x * resize(sigmoid(conv(relu(conv(x, wx) + b + p), wp) + bp))

with p (B, F, h, w) the projected signal, already of the size that the convolution of x (any kernel and stride) gives.
Variant "late" resamples before the sigmoid: x * sigmoid(resize(conv(...))). Normalisation in inference is folded into
the weights.

Source: Oktay et al., "Attention U-Net", 2018, arXiv 1804.03999, section 2, equations 1 and 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgeattn.ops import walk
from edgeattn.ops.activations import gate
from edgeattn.ops.base import AttentionOp, Case, Facts, Match, Miss
from edgeattn.ops.layers import Layer, Unlike, elements, itemsize, layer, sizes, unspread, weighed_maps
from edgeattn.ops.layout import VIEWS
from edgeattn.ops.products import name_of

if TYPE_CHECKING:
    from torch import Tensor

    from edgeattn.tensors import Array

Attributes = Mapping[str, str | Sequence[int]]
ENDS = ("Softplus", "Softmax", "Relu", "LeakyRelu", "Elu", "Clip", "Exp", "Softsign")  # of gates that are no such gate


def function(variant: str) -> str:
    """The body for `same`, `coarse` or `late`."""
    if variant == "same":
        return """
        AttentionGate (x, g, wx, wg, b, wp, bp) => (y) {
            theta = Conv (x, wx, b)
            phi = Conv (g, wg)
            sum = Add (theta, phi)
            active = Relu (sum)
            z = Conv (active, wp, bp)
            weights = Sigmoid (z)
            y = Mul (x, weights)
        }"""
    before, after = ("weights = Sigmoid (z)", "weights") if variant == "coarse" else ("", "z")
    return f"""
        AttentionGate <strides, pads, kernel_shape, mode, coordinates, nearest> (x, p, wx, b, wp, bp) => (y) {{
            theta = Conv <strides: ints = @strides, pads: ints = @pads, kernel_shape: ints = @kernel_shape> (x, wx, b)
            sum = Add (theta, p)
            active = Relu (sum)
            z = Conv (active, wp, bp)
            {before}
            outer = Shape <start = 0, end = 2> ({after})
            inner = Shape <start = 2> (x)
            size = Concat <axis = 0> (outer, inner)
            resized = Resize <mode: string = @mode, coordinate_transformation_mode: string = @coordinates,
                              nearest_mode: string = @nearest> ({after}, , , size)
            {"" if before else "weights = Sigmoid (resized)"}
            y = Mul (x, {"resized" if before else "weights"})
        }}"""


def reference(variant: str, x: Tensor, *inputs: Tensor, **attributes: str | Sequence[int]) -> Tensor:
    """The formula in PyTorch; `coarse` and `late` know the resampling that PyTorch itself exports.

    Raises:
        ValueError: PyTorch has no such resampling.
    """
    import torch
    from torch.nn import functional as F

    if variant == "same":
        g, wx, wg, b, wp, bp = inputs
        return x * torch.sigmoid(F.conv2d(F.relu(F.conv2d(x, wx, b) + F.conv2d(g, wg)), wp, bp))
    p, wx, b, wp, bp = inputs
    top, left, bottom, right = (int(pad) for pad in attributes["pads"])
    theta = F.conv2d(F.pad(x, (left, right, top, bottom)), wx, b, stride=tuple(attributes["strides"]))  # type: ignore[arg-type]
    z = F.conv2d(F.relu(theta + p), wp, bp)
    how = attributes["mode"], attributes["coordinates"]
    known = {
        ("nearest", "asymmetric"): {"mode": "nearest"},
        ("linear", "half_pixel"): {"mode": "bilinear"},
        ("linear", "pytorch_half_pixel"): {"mode": "bilinear"},
        ("linear", "align_corners"): {"mode": "bilinear", "align_corners": True},
    }
    if how not in known:
        raise ValueError(f"PyTorch does not resample as {how}; known: {', '.join(map(str, known))}")

    def resized(y: Tensor) -> Tensor:
        return F.interpolate(y, size=x.shape[2:], **known[how])  # type: ignore[arg-type]

    return x * (resized(torch.sigmoid(z)) if variant == "coarse" else torch.sigmoid(resized(z)))


def find(graph: ir.Graph) -> Iterator[Match | Miss]:
    """From every product of a map and a plane, back through sigmoid, psi and ReLU to the sum of two projections."""
    return weighed_maps(graph, "AttentionGate", _match)


@dataclass(frozen=True)
class _Gate:
    """What ends in a plane of weights: its last step, the resampling around it, psi, and psi's two summands."""

    end: str
    resize: ir.Node | None
    late: bool
    psi: Layer
    summands: tuple[ir.Value, ir.Value]


def _gate(weights: ir.Value) -> _Gate | None:
    """The gate that a plane of weights is, whatever its last step; None where no ReLU of a sum is behind it."""
    resize = walk.made_by(weights, "Resize")
    value = weights if resize is None else resize.inputs[0]
    if value is None:
        return None
    chosen = walk.made_by(value, "Where")  # PyTorch's softplus is z itself where that is large
    last = value if chosen is None or chosen.inputs[2] is None else chosen.inputs[2]
    found, node = gate(value), walk.made_by(walk.behind(last, VIEWS), *ENDS)
    if found is not None:
        end, z = found
    elif node is not None and node.inputs[0] is not None:
        end, z = name_of(node), walk.behind(node.inputs[0], VIEWS)
    else:
        end, z = "no sigmoid", value
    inner = walk.made_by(z, "Resize") if resize is None else None
    psi = layer(z if inner is None or inner.inputs[0] is None else inner.inputs[0])
    relu = walk.made_by(psi.source, "Relu") if psi is not None else None
    add = walk.made_by(relu.inputs[0], "Add") if relu is not None else None
    if psi is None or add is None or psi.weight.ndim != 4 or psi.weight.shape[0] != 1 or psi.pointwise is None:
        return None
    left, right = add.inputs
    if left is None or right is None or left.const_value is not None or right.const_value is not None:
        return None
    return _Gate(end, resize or inner, inner is not None, psi, (left, right))


def _match(node: ir.Node, x: ir.Value, weights: ir.Value) -> Match | None:
    expand = walk.made_by(weights, "Expand")
    inner = weights if expand is None else expand.inputs[0]
    found = _gate(inner) if inner is not None and (walk.dims(inner) or ())[1:2] == (1,) else None
    projected = None if found is None else _projection(x, *found.summands)
    if found is None or (projected is None and found.end != "sigmoid"):
        return None
    if found.end != "sigmoid":
        raise Unlike(f"the gate ends in {found.end}, expected a sigmoid")
    if projected is None:
        raise Unlike(f"neither summand is a convolution of {x.name!r}, which is weighed")
    (theta, other), psi, resize = projected, found.psi, found.resize
    unspread(weights, x)
    phi = layer(other)
    attributes: Attributes = {}
    if resize is None and theta.pointwise is not None and phi is not None and phi.pointwise is not None:
        variant, signal, arrays = "same", phi.source, [theta.weight, phi.weight, _sum(theta.bias, phi.bias)]
    else:
        if resize is None:
            raise Unlike("the projections are no 1x1 convolutions, and the gate is not resampled to the map's size")
        variant, signal, arrays = "late" if found.late else "coarse", other, [theta.weight, theta.bias]
        attributes = {**_window(theta), **_resampling(resize, x)}
    arrays += [psi.weight, psi.bias]
    return Match(
        "AttentionGate",
        variant,
        node,
        tuple(walk.between(node.outputs[0], {x, signal})),
        node.outputs[0],
        lambda tape: [x, signal, *(tape.constant(array) for array in arrays)],
        attributes,
        _facts(x, signal, arrays, walk.dims(inner if resize is None else resize.inputs[0])),
    )


def _projection(x: ir.Value, left: ir.Value, right: ir.Value) -> tuple[Layer, ir.Value] | None:
    """The convolution of x among two summands, and the other summand; None where neither is one."""
    for one, other in ((left, right), (right, left)):
        theta = layer(one)
        if theta is not None and theta.source is x and theta.node.op_type == "Conv":
            if walk.integer(theta.node, "group", 1) != 1:
                raise Unlike(f"the projection {theta.node.name!r} is grouped, expected one group")
            return theta, other
    return None


def _sum(left: Array, right: Array) -> Array:
    return (left.astype(np.float64) + right.astype(np.float64)).astype(left.dtype)


def _window(theta: Layer) -> Attributes:
    window = theta.window
    if set(window["dilations"]) != {1}:
        raise Unlike(f"the projection {theta.node.name!r} is dilated, expected an undilated convolution")
    return {"strides": window["strides"], "pads": window["pads"], "kernel_shape": theta.weight.shape[2:]}


def _resampling(resize: ir.Node, x: ir.Value) -> Attributes:
    """A Resize's attributes.

    Raises:
        Unlike: it is not known to reach the size of x, or it is no plain nearest or linear one.
    """
    given = {name: attribute.value for name, attribute in resize.attributes.items()}
    plain = {"antialias": 0, "exclude_outside": 0, "keep_aspect_ratio_policy": "stretch"}
    mode, coordinates = given.get("mode", "nearest"), given.get("coordinate_transformation_mode", "half_pixel")
    if mode not in ("nearest", "linear") or "axes" in given or coordinates == "tf_crop_and_resize":
        raise Unlike(f"the gate is resampled by {mode!r} in {coordinates!r} coordinates, expected nearest or linear")
    if any(given.get(name, default) != default for name, default in plain.items()):
        raise Unlike("the gate is resampled with anti-aliasing or a fixed aspect, expected a plain Resize")
    before, after, wanted = (walk.dims(value) or () for value in (resize.inputs[0], resize.outputs[0], x))
    sized = len(before) == 4 and None not in after and after[1:] == (1, *wanted[2:])
    if not sized or not (after[0] == before[0] or _keeps_batch(resize)):
        raise Unlike(f"the gate is resampled to {after}, which is not known to be the size of {x.name!r}, {wanted}")
    scales = walk.constant(resize.inputs[2]) if len(resize.inputs) > 2 else None
    if scales is not None and scales.size:
        pairs = zip(before, after, scales, strict=True)
        if not all(scale == 1 or (isinstance(old, int) and old * float(scale) == new) for old, new, scale in pairs):
            raise Unlike("the gate is resampled by a factor, expected a size or a factor that gives it exactly")
    elif len(resize.inputs) < 4:
        raise Unlike("the gate is resampled by a factor that is computed, expected a constant or a size")
    nearest = given.get("nearest_mode", "round_prefer_floor")
    return {"mode": mode, "coordinates": coordinates, "nearest": nearest}


def _keeps_batch(resize: ir.Node) -> bool:
    """Whether a Resize takes its first sizes from its own input: Concat(Slice(Shape(input), 0, ...), ...)."""
    sizes_made = walk.made_by(resize.inputs[3] if len(resize.inputs) > 3 else None, "Concat")
    head = walk.made_by(sizes_made.inputs[0], "Slice") if sizes_made is not None else None
    shape = walk.made_by(head.inputs[0], "Shape") if head is not None else None
    whole = shape is not None and shape.inputs[0] is resize.inputs[0] and not shape.attributes
    steps = [walk.scalar(item) for item in head.inputs[3:]] if head is not None else []
    first = head is not None and walk.scalar(head.inputs[1]) == 0 and (walk.scalar(head.inputs[2]) or 0) >= 1
    return whole and first and steps in ([], [0], [0, 1])


def _facts(x: ir.Value, signal: ir.Value, arrays: Sequence[Array], plane: Sequence[int | str | None] | None) -> Facts:
    named = {**sizes(x, "batch", "channels", "height", "width"), "inner": int(arrays[0].shape[0])}
    count, other, width = elements(x), elements(signal), itemsize(x)
    places = [dim for dim in (plane or ())[2:] if isinstance(dim, int)]
    if count is None or other is None or len(places) != 2:
        return Facts(named)
    area, inner = places[0] * places[1], int(arrays[0].shape[0])
    parameters = sum(array.size for array in arrays)
    return Facts(
        named,
        flops=2 * area * parameters + 2 * area * inner + count,
        bytes_decomposed=width * (3 * count + other + 8 * area * inner + 4 * area + parameters),
        bytes_fused=width * (2 * count + other + parameters),
    )


def cases() -> Sequence[Case]:
    """Modules that must match and that must not."""
    from edgeattn.ops.attention_gate_cases import CASES

    return CASES


OP = AttentionOp("AttentionGate", "arXiv 1804.03999", find, function, reference, cases, maps=("weights",))
