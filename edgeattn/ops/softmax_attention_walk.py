"""The steps of the search for softmax attention: from a softmax back to queries and keys, and on to the values.

What lies between is followed by names of axes (`edgeattn.ops.layout`), so one search covers every order of axes, side
of a product and merging of leading axes; where a name or a size is not certain, the reason is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from edgeattn.ops.layout import VIEWS, Axes, Dim, Frame, same
from edgeattn.ops.walk import axes_of, constant, dims, integer, made_by, number, users

_NEAR = 6  # nodes between a product and its softmax beyond which they have nothing to do with each other
_LOWEST = float(np.finfo(np.float32).min)


class Slot(NamedTuple):
    """An input of a node: what stands there after others were replaced, too."""

    node: ir.Node
    place: int

    @property
    def value(self) -> ir.Value:
        """The tensor there."""
        value = self.node.inputs[self.place]
        assert value is not None
        return value


@dataclass(frozen=True)
class Product:
    """A contraction of two tensors over one axis; labels name the axes of both and of the result."""

    node: ir.Node
    labels: tuple[str, str]
    out: str
    factor: float = 1.0

    def slot(self, side: int) -> Slot:
        """An operand."""
        return Slot(self.node, side)

    @property
    def summed(self) -> str:
        """The label that both operands have and the result has not."""
        return next(label for label in self.labels[0] if label not in self.out)

    def own(self, side: int) -> str:
        """The labels that only one operand has."""
        return "".join(label for label in self.labels[side] if label not in self.labels[1 - side])


@dataclass(frozen=True)
class Softmax:
    """A softmax over one axis, one node or written out."""

    anchor: ir.Node
    scores: ir.Value
    weights: ir.Value
    axis: int


@dataclass(frozen=True)
class Term:
    """What is added to the scores (`kind` "add"), or a mask: where it is true they stay ("keep") or go ("drop")."""

    kind: str
    slot: Slot
    axes: Axes
    scale: float
    fill: float = 0.0


@dataclass
class Scores:
    """How the input of a softmax comes about: scale * factors * product + terms."""

    product: Product | None = None
    axes: Axes = ()
    scale: float = 1.0
    terms: list[Term] = field(default_factory=list)
    factors: list[Term] = field(default_factory=list)


class Unclear(Exception):  # noqa: N818 - it is an answer, caught where the search began
    """Why something that is nearly an attention is none."""


def name_of(node: ir.Node) -> str:
    """An operator and its name, as messages say them."""
    return f"{node.op_type} {node.name!r}"


def product_of(node: ir.Node | None) -> Product | None:
    """The node as a contraction over one axis of two tensors, if it is one."""
    if node is None or node.domain not in ("", "ai.onnx") or len(node.inputs) < 2:
        return None
    left, right = dims(node.inputs[0]), dims(node.inputs[1])
    if left is None or right is None or min(len(left), len(right)) < 2:
        return None
    if node.op_type == "MatMul":
        batch = "ABCDEFGH"[: max(len(left), len(right)) - 2]
        labels = (batch[len(batch) + 2 - len(left) :] + "ix", batch[len(batch) + 2 - len(right) :] + "xj")
        return Product(node, labels, batch + "ij") if max(len(left), len(right)) <= 10 else None
    if node.op_type == "Gemm" and (len(node.inputs) < 3 or node.inputs[2] is None):
        alpha = node.attributes.get("alpha")
        labels = ("xi" if integer(node, "transA", 0) else "ix", "jx" if integer(node, "transB", 0) else "xj")
        return Product(node, labels, "ij", 1.0 if alpha is None else alpha.as_float())
    return _einsum(node) if node.op_type == "Einsum" and len(node.inputs) == 2 else None


def _einsum(node: ir.Node) -> Product | None:
    inputs, arrow, out = node.attributes["equation"].as_string().replace(" ", "").partition("->")
    left, _, right = inputs.partition(",")
    if not arrow or "." in inputs or any(len(set(labels)) != len(labels) for labels in (left, right, out)):
        return None
    gone = [label for label in {*left, *right} if label not in out]
    if len(gone) != 1 or gone[0] not in left or gone[0] not in right:
        return None
    return Product(node, (left, right), out)


def is_of_two_tensors(product: Product | None) -> bool:
    """Whether neither operand is the weight of a linear layer."""
    if product is None:
        return False
    sides = [product.slot(side).value for side in (0, 1)]
    return not any(constant(value) is not None and len(dims(value) or ()) < 3 for value in sides)


def softmaxes(graph: ir.Graph) -> Iterator[Softmax]:
    """Every softmax of a graph."""
    for node in graph:
        output = node.outputs[0] if node.outputs else None
        shape = dims(output)
        if not shape or output is None:
            continue
        if made_by(output, "Softmax") and node.inputs[0] is not None:
            yield Softmax(node, node.inputs[0], output, integer(node, "axis", -1) % len(shape))
        elif made_by(output, "Div"):
            yield from _written_out(node, len(shape))


def _written_out(node: ir.Node, rank: int) -> Iterator[Softmax]:
    """exp(x) / sum(exp(x)), with the maximum subtracted before or not."""
    top = made_by(node.inputs[0], "Exp")
    total = made_by(node.inputs[1], "ReduceSum")
    if top is None or total is None or total.inputs[0] is not node.inputs[0] or not integer(total, "keepdims", 1):
        return
    axes = axes_of(total, rank)
    value = top.inputs[0]
    if axes is None or len(axes) != 1 or value is None:
        return
    shift = made_by(value, "Sub")
    if shift is not None and (peak := made_by(shift.inputs[1], "ReduceMax")) is not None:
        over = axes_of(peak, rank)
        if peak.inputs[0] is shift.inputs[0] and over == axes and integer(peak, "keepdims", 1) and shift.inputs[0]:
            value = shift.inputs[0]
    yield Softmax(node, value, node.outputs[0], axes[0])


def nears_product(value: ir.Value | None, depth: int = _NEAR) -> bool:
    """Whether a tensor comes from a product of two others by few nodes that keep its last two sizes."""
    node = value.producer() if value is not None else None
    if node is None or depth == 0:
        return False
    if is_of_two_tensors(product_of(node)):
        return True
    if node.op_type in (*VIEWS, "TopK", "ScatterElements"):
        return any(nears_product(item, depth - 1) for item in node.inputs)
    wanted = sorted(map(str, (dims(value) or ())[-2:]))
    return any(
        sorted(map(str, (dims(item) or ())[-2:])) == wanted and nears_product(item, depth - 1)
        for item in node.inputs
        if item is not None and constant(item) is None
    )


def trace_scores(softmax: Softmax, frame: Frame, axes: Axes) -> Scores | None:
    """Follow scores back to the product they come from; None where there is none near.

    Raises:
        Unclear: there is one, but something else is done to it on the way.
    """
    scores, value = Scores(), softmax.scores
    while True:
        node = made_by(value)
        product = product_of(node)
        if product is not None and is_of_two_tensors(product):
            scores.product, scores.axes = product, axes
            scores.scale *= product.factor
            return scores
        if node is None or not nears_product(value):
            return None
        if node.op_type in VIEWS:
            inner = frame.through(node, axes, back=True)
            if inner is None:
                raise Unclear(_unclear_view(node))
            axes, place = inner, 0
        else:
            place = _step(node, frame, axes, scores)
        value = Slot(node, place).value


def _unclear_view(node: ir.Node) -> str:
    if node.op_type == "Cast":
        source, result = node.inputs[0], node.outputs[0]
        types = [str(value.dtype).lower() if value is not None else "?" for value in (source, result)]
        return f"{name_of(node)} turns {types[0]} into {types[1]} within the attention, expected one type throughout"
    return f"{name_of(node)} mixes the axes of the scores, or their sizes are not known"


def _step(node: ir.Node, frame: Frame, axes: Axes, scores: Scores) -> int:
    """Record what an arithmetic node does to the scores; the place of its input where they come from."""
    kind = node.op_type
    if kind == "Neg":
        scores.scale *= -1
        return 0
    if kind not in ("Mul", "Div", "Add", "Sub", "Where"):
        raise Unclear(f"{name_of(node)} stands between the product and the softmax")
    first = 1 if kind == "Where" else 0
    places = [place for place in (first, first + 1) if nears_product(node.inputs[place])]
    rank = [(dims(node.inputs[place]) == dims(node.outputs[0]), -place) for place in places]
    place = -max(rank)[1]
    other = 2 * first + 1 - place
    inner = dims(node.inputs[place])
    if inner is None or len(inner) != len(axes):
        raise Unclear(f"{name_of(node)} broadcasts the scores")
    if kind == "Where":
        _mask(node, frame, axes, scores, other)
        return place
    single = number(node.inputs[other])
    if kind in ("Mul", "Div"):
        if kind == "Div" and place == 1:
            raise Unclear(f"{name_of(node)} divides by the scores")
        if single is not None:
            scores.scale *= single if kind == "Mul" else 1 / single if single else np.nan
            return place
        scores.factors.append(Term(kind, Slot(node, other), _aligned(node, other, inner, frame, axes), 1.0))
        return place
    sign = -1.0 if kind == "Sub" and other == 1 else 1.0
    if scores.factors:
        raise Unclear(f"{name_of(node)} adds to scores that are scaled by a tensor afterwards")
    if single is None:  # one number added to all scores changes no softmax
        scores.terms.append(
            Term("add", Slot(node, other), _aligned(node, other, inner, frame, axes), sign * scores.scale)
        )
    if kind == "Sub" and place == 1:
        scores.scale *= -1
    return place


def _mask(node: ir.Node, frame: Frame, axes: Axes, scores: Scores, other: int) -> None:
    """Where(mask, scores, fill), either way round."""
    fill = number(node.inputs[other])
    inner = dims(node.inputs[3 - other])
    if fill is None or inner is None:
        raise Unclear(f"{name_of(node)} replaces scores by another tensor, expected -inf")
    if scores.scale <= 0 or scores.factors:
        raise Unclear(f"{name_of(node)} masks scores that are scaled by a tensor or a negative number afterwards")
    single = node.inputs[other]
    lowest = single is not None and single.dtype == ir.DataType.FLOAT and fill <= _LOWEST
    if fill != -np.inf and not lowest:
        raise Unclear(f"{name_of(node)} fills masked scores with {fill:g}, which is only exact for -inf")
    kind = "keep" if other == 2 else "drop"
    scores.terms.append(Term(kind, Slot(node, 0), _aligned(node, 0, inner, frame, axes), scores.scale, fill))
    if len(scores.terms) > 1 and any(term.fill not in (0.0, -np.inf) for term in scores.terms):
        raise Unclear(f"{name_of(node)} fills masked scores with {fill:g}, exact beside other terms only for -inf")


def _aligned(node: ir.Node, place: int, inner: tuple[Dim, ...], frame: Frame, axes: Axes) -> Axes:
    """Name the axes of a tensor that is broadcast to the scores.

    Raises:
        Unclear: it may be the scores that are broadcast to it.
    """
    own = dims(node.inputs[place])
    if own is None or len(own) > len(inner):
        raise Unclear(f"{name_of(node)} broadcasts the scores to {own}")
    named = []
    for dim, size, axis in zip(own, inner[len(inner) - len(own) :], axes[len(axes) - len(own) :], strict=True):
        if not same(dim, size) and dim != 1:
            if size == 1 or (isinstance(dim, int) and isinstance(size, int)):
                raise Unclear(f"{name_of(node)} broadcasts scores of sizes {list(inner)} to {list(own)}")
            frame.doubt = f"{name_of(node)} joins scores of sizes {list(inner)} and {list(own)}, maybe not the same"
        named.append(() if dim == 1 and size != 1 else axis)
    return tuple(named)


@dataclass(frozen=True)
class Use:
    """A product that the weights of a softmax go into, on this side; their axes there; whether NaN became zero."""

    product: Product
    side: int
    axes: Axes
    guarded: bool


def uses(weights: ir.Value, frame: Frame, axes: Axes, guarded: bool = False) -> Iterator[Use | ir.Node]:
    """Follow weights through views to the products that use them; other nodes on the way as they are."""
    for node in users(weights):
        product = product_of(node)
        sides = [place for place, value in enumerate(node.inputs) if value is weights]
        if product is not None and len(sides) == 1 and sides[0] < 2:
            yield Use(product, sides[0], axes, guarded)
        elif node.op_type in VIEWS and sides == [0] and (inner := frame.through(node, axes, back=False)) is not None:
            yield from uses(node.outputs[0], frame, inner, guarded)
        elif node.op_type == "Where" and sides == [2] and _is_guard(node, weights):
            yield from uses(node.outputs[0], frame, axes, True)
        elif node.op_type != "IsNaN":
            yield node


def _is_guard(node: ir.Node, weights: ir.Value) -> bool:
    """Where(IsNaN(weights), 0, weights): rows that are masked whole become zero."""
    test = made_by(node.inputs[0], "IsNaN")
    return test is not None and test.inputs[0] is weights and number(node.inputs[1]) == 0
