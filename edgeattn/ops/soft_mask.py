"""SoftMask: one weight for each element of a map, from a branch that looks at a wider part of what the map comes from.

    SoftMask(x, z) = x * gate(z)

x (B, C, H, W), z (B, C, H, W) or (B, 1, H, W). Variants by gate: sigmoid, hardsigmoid, tanh, and each "+1", the
residual x * (1 + gate(z)). What computes the logits z stays outside. A product with a sigmoid is no attention by itself
(SiLU and gated linear units are such, too). It is taken for one where z is either

  - the end of an hourglass: made by convolutions, activations and sums alone, of which one brings a smaller map back to
    a larger size, from what x is or comes from, none of it on the way to x; or
  - a vector of the channels and a plane of the places, each computed, their sum or product.

Source: Wang et al., "Residual Attention Network", 2017, arXiv 1704.06904, equation 3 (hourglass); Park et al., "BAM:
Bottleneck Attention Module", 2018, arXiv 1807.06514, equations 1 and 2 (vector and plane).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from edgeattn.ops import walk
from edgeattn.ops.activations import RESIDUAL, activate, gate, gate_text
from edgeattn.ops.base import DOMAIN, AttentionOp, Case, Facts, Match, Miss
from edgeattn.ops.layers import Unlike, elements, itemsize, sizes, unspread, weighed_maps
from edgeattn.ops.layout import Dim, same
from edgeattn.ops.products import is_fixed, name_of

if TYPE_CHECKING:
    from torch import Tensor

FURTHEST = 256  # nodes before logits among which a map has to grow
SHRINKING = ("Conv", "MaxPool", "AveragePool")
GROWING = ("Resize", "ConvTranspose")
JOINING = ("Add", "Sum", "Mul", "Div")
THROUGH = (  # what a mask is made of, besides other attentions
    *SHRINKING, *GROWING, *JOINING, "BatchNormalization", "InstanceNormalization", "Relu", "LeakyRelu", "PRelu", "Elu",
    "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Erf", "Gelu", "Identity", "Cast",
)  # fmt: skip


def function(variant: str) -> str:
    """The body of a variant."""
    return f"""
        SoftMask (x, z) => (y) {{
            {gate_text(variant, "z", "weights")}
            y = Mul (x, weights)
        }}"""


def reference(variant: str, x: Tensor, z: Tensor) -> Tensor:
    """The formula in PyTorch."""
    return x * activate(variant, z)


# Search


def find(graph: ir.Graph) -> Iterator[Match | Miss]:
    """From every product of a map and a gate, back from the gate's logits to where they leave the way to the map."""
    return weighed_maps(graph, "SoftMask", _match)


def _match(node: ir.Node, x: ir.Value, weights: ir.Value) -> Match | None:
    spread, shape = walk.made_by(weights, "Expand"), walk.dims(x) or ()
    inner = weights if spread is None or spread.inputs[0] is None else spread.inputs[0]
    _require_no_direction(node, inner, shape)
    found, other = gate(inner), walk.dims(inner) or ()
    if found is None or found[1] is x or is_fixed(x) or not _covers(other, shape):
        return None
    kind, z = found
    if not _is_vector_and_plane(z) and not _is_hourglass(z, x):
        if kind.endswith(RESIDUAL):
            raise Unlike(
                f"1 + a gate of {z.name!r} weighs {x.name!r}, "
                "expected logits from an hourglass beside it, or from a vector of channels and a plane of places"
            )
        return None
    unspread(weights, x)
    return Match(
        "SoftMask",
        kind,
        node,
        tuple(walk.between(node.outputs[0], {x, z})),
        node.outputs[0],
        lambda tape: [x, z],
        {},
        _facts(x, z, kind),
    )


def _covers(other: Sequence[Dim], shape: Sequence[Dim]) -> bool:
    """Whether weights have an element for each place, and for each channel or one for all."""
    pairs = zip(other[2:], shape[2:], strict=True)
    return len(other) == 4 and other[1] in (1, shape[1]) and all((one == 1) == (two == 1) for one, two in pairs)


def _require_no_direction(node: ir.Node, weights: ir.Value, shape: Sequence[Dim]) -> None:
    """Require that a map is not weighed row by row or column by column, as coordinate attention does.

    Raises:
        Unlike: it is.
    """
    product = walk.made_by(weights, "Mul")
    for value in (weights,) if product is None else product.inputs:
        other = walk.dims(value) or ()
        if value is None or len(other) != 4 or gate(value) is None or other[1] not in (1, shape[1]):
            continue
        for one, whole in ((2, 3), (3, 2)):
            if other[one] == 1 != shape[one] and other[whole] != 1 and same(other[whole], shape[whole]):
                raise Unlike(
                    f"{name_of(node)} weighs each {'column' if one == 2 else 'row'} as a whole by {value.name!r}, "
                    "as coordinate attention does, expected a weight for each place, or for each channel"
                )


# Where logits come from


def _is_vector_and_plane(z: ir.Value) -> bool:
    """Whether logits are the sum or product of a vector (B, C, 1, 1) and a plane (B, 1, H, W), both computed."""
    node = walk.made_by(z, "Add", "Mul")
    if node is None:
        return False
    parts = [walk.made_by(value, "Expand") for value in node.inputs]
    values = [value if part is None else part.inputs[0] for value, part in zip(node.inputs, parts, strict=True)]
    shapes = [walk.dims(value) or () for value in values]
    if any(len(shape) != 4 for shape in shapes) or any(is_fixed(value) for value in values):
        return False
    vectors = [shape for shape in shapes if shape[1] != 1 and shape[2:] == (1, 1)]
    planes = [shape for shape in shapes if shape[1] == 1 and 1 not in shape[2:]]
    return len(vectors) == len(planes) == 1


def _is_hourglass(z: ir.Value, x: ir.Value) -> bool:
    """Whether logits come down and up again beside the way to x, from where both begin."""
    if not _looks_back(z):
        return False
    trunk = {x, *(value for node in walk.between(x, ()) for value in node.inputs if value is not None)}
    beside = _between(z, trunk)
    grown = [node for node in beside if node.op_type in GROWING and _resizes(node, up=True)]
    below = (inner for node in grown for inner in _between(node.inputs[0], trunk))
    return any(inner.op_type in (*SHRINKING, "Resize") and _resizes(inner, up=False) for inner in below)


def _looks_back(z: ir.Value) -> bool:
    """Whether something grows near before logits: spares the walk over all that comes before x where nothing does."""
    seen, waiting = set[ir.Node](), [z]
    while waiting and len(seen) < FURTHEST:
        node = waiting.pop(0).producer()
        if node is None or node in seen or node.op_type not in THROUGH:
            continue
        if node.op_type in GROWING:
            return True
        seen.add(node)
        waiting += _read(node)
    return False


def _between(last: ir.Value | None, trunk: Collection[ir.Value]) -> list[ir.Node]:
    """The nodes that make a value of what is on the trunk; none where others than those of a mask are among them."""
    nodes: dict[ir.Node, None] = {}
    waiting = [last]
    while waiting:
        value = waiting.pop()
        node = value.producer() if value is not None and value not in trunk else None
        if value in trunk or node in nodes:
            continue
        if node is None or (node.op_type not in THROUGH and node.domain != DOMAIN):
            return []
        nodes[node] = None
        waiting += _read(node)
    return list(nodes)


def _read(node: ir.Node) -> list[ir.Value]:
    """The maps that a node reads, without sizes, weights and constants."""
    values = node.inputs if node.op_type in JOINING or node.domain == DOMAIN else node.inputs[:1]
    return [value for value in values if value is not None and walk.constant(value) is None]


def _resizes(node: ir.Node, *, up: bool) -> bool:
    """Whether the places of a map become more, or fewer; where sizes are not known, as the operator is used for."""
    before, after = ((walk.dims(value) or ())[2:] for value in (node.inputs[0], node.outputs[0]))
    pairs = [(old, new) for old, new in zip(before, after, strict=False) if not same(old, new)]
    known = [(old, new) for old, new in pairs if isinstance(old, int) and isinstance(new, int)]
    if known:
        return any(new > old if up else new < old for old, new in known)
    strided = any(step > 1 for step in walk.ints(node, "strides") or ())
    return up == (node.op_type in GROWING) and (node.op_type == "Resize" or strided)


def _facts(x: ir.Value, z: ir.Value, kind: str) -> Facts:
    named = sizes(x, "batch", "channels", "height", "width")
    count, logits, width = elements(x), elements(z), itemsize(x)
    if count is None or logits is None:
        return Facts(named)
    more = kind.endswith(RESIDUAL)
    return Facts(
        named,
        flops=count + (4 + more) * logits,  # a sigmoid is an exponential, a sum, a division and a change of sign
        bytes_decomposed=width * (2 * count + (3 + 2 * more) * logits),
        bytes_fused=width * (2 * count + logits),
    )


def cases() -> Sequence[Case]:
    """Modules that must match and that must not."""
    from edgeattn.ops.soft_mask_cases import CASES

    return CASES


OP = AttentionOp("SoftMask", "arXiv 1704.06904, 1807.06514", find, function, reference, cases, maps=("weights",))
