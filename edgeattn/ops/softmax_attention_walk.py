"""The steps of the search for softmax attention: from a softmax back to queries and keys, and on to the values.

What lies between is followed by names of axes (`edgeattn.ops.layout`), so one search covers every order of axes, side
of a product and merging of leading axes; where a name or a size is not certain, the reason is said.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgeattn.ops.layout import VIEWS, Axes, Dim, Frame, same
from edgeattn.ops.products import NEAR, Product, Slot, Softmax, is_of_two_tensors, name_of, product_of
from edgeattn.ops.walk import constant, dims, made_by, number, users

_LOWEST = float(np.finfo(np.float32).min)
_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_SINGLE = (ir.DataType.FLOAT,)


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
    """How the input of a softmax comes about: scale * factors * product + terms, and where it is filled by a number."""

    product: Product | None = None
    axes: Axes = ()
    scale: float = 1.0
    terms: list[Term] = field(default_factory=list)
    factors: list[Term] = field(default_factory=list)
    fills: list[Term] = field(default_factory=list)  # finite, and after all terms


class Unclear(Exception):  # noqa: N818 - it is an answer, caught where the search began
    """Why something that is nearly an attention is none."""


def nears_product(value: ir.Value | None, depth: int = NEAR) -> bool:
    """Whether a tensor comes from a product of two others by views and few nodes that keep its last two sizes."""
    node = value.producer() if value is not None else None
    if node is None or depth == 0:
        return False
    if is_of_two_tensors(product_of(node)):
        return True
    if node.op_type in VIEWS:
        return nears_product(node.inputs[0], depth)
    if node.op_type in ("TopK", "ScatterElements", "ScatterND"):
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
            _require_types(scores, product)
            if not scores.terms and all(_vanishes_beside(term) for term in scores.fills):
                scores.terms, scores.fills = scores.fills, []
            return scores
        if node is None or not nears_product(value):
            return None
        if casts(node, _HALVES, _SINGLE):
            place = 0
        elif node.op_type in VIEWS:
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
    fill = _filling(node.inputs[other])
    inner = dims(node.inputs[3 - other])
    if fill is None or inner is None:
        raise Unclear(f"{name_of(node)} replaces scores by another tensor, expected one number")
    if scores.scale <= 0 or scores.factors:
        raise Unclear(f"{name_of(node)} masks scores that are scaled by a tensor or a negative number afterwards")
    with np.errstate(over="ignore"):
        scaled = np.array(fill * scores.scale).astype((node.outputs[0].dtype or ir.DataType.FLOAT).numpy())
    if np.isfinite(fill) and not np.isfinite(scaled.astype(np.float64)):
        raise Unclear(f"{name_of(node)} fills masked scores with {fill:g}, which overflows once it is scaled")
    _aligned(node, other, inner, frame, axes)
    mask = _aligned(node, 0, inner, frame, axes)
    term = Term("keep" if other == 2 else "drop", Slot(node, 0), mask, scores.scale, fill)
    if fill == -np.inf:
        scores.terms.append(term)
        return
    if scores.terms or any(done.fill * done.scale != fill * scores.scale for done in scores.fills):
        raise Unclear(f"{name_of(node)} fills masked scores with {fill:g} before others are added or masked")
    scores.fills.append(term)


def _filling(value: ir.Value | None) -> float | None:
    """The one number that a tensor is filled with."""
    array = constant(value)
    if array is not None:
        return float(array.flat[0]) if array.size and bool(np.all(array == array.flat[0])) else None
    node = made_by(value, "Expand", "ConstantOfShape")
    if node is not None and node.op_type == "ConstantOfShape":
        tensor = node.attributes.get("value")
        return 0.0 if tensor is None else float(tensor.as_tensor().numpy().item())
    return None if node is None else number(node.inputs[0])


def _vanishes_beside(term: Term) -> bool:
    """Whether a score added to the fill of a mask leaves it as it is, which is as good as to replace it."""
    return term.slot.node.outputs[0].dtype == ir.DataType.FLOAT and term.fill * term.scale <= _LOWEST


def casts(node: ir.Node, source: Collection[ir.DataType], result: Collection[ir.DataType]) -> bool:
    """Whether a node turns one of these types into one of those."""
    value = node.inputs[0] if node.op_type == "Cast" else None
    return value is not None and value.dtype in source and node.outputs[0].dtype in result


def _require_types(scores: Scores, product: Product) -> None:
    """Terms of one type, and factors of the queries' own.

    Raises:
        Unclear: they differ.
    """
    types = {term.slot.node.outputs[0].dtype for term in scores.terms}
    if len(types) > 1:
        last = scores.terms[-1].slot.node
        raise Unclear(f"{name_of(last)} adds to the scores in one type and others in another, expected one type")
    for factor in scores.factors:
        if factor.slot.value.dtype != product.node.outputs[0].dtype:
            raise Unclear(f"{name_of(factor.slot.node)} scales the scores in another type than the queries'")


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


def uses(
    weights: ir.Value, frame: Frame, axes: Axes, guarded: bool = False, narrowed: bool = False
) -> Iterator[Use | ir.Node]:
    """Follow weights through views to the products that use them; other nodes on the way as they are.

    Casts are followed as long as they lose nothing, and one that does: it rounds to the type of the values.
    """
    for node in users(weights):
        product = product_of(node)
        sides = [place for place, value in enumerate(node.inputs) if value is weights]
        narrows = casts(node, _SINGLE, _HALVES)
        if product is not None and len(sides) == 1 and sides[0] < 2:
            yield Use(product, sides[0], axes, guarded)
        elif narrows or (casts(node, _HALVES, _SINGLE) and not narrowed):
            yield from uses(node.outputs[0], frame, axes, guarded, narrows)
        elif node.op_type in VIEWS and sides == [0] and (inner := frame.through(node, axes, back=False)) is not None:
            yield from uses(node.outputs[0], frame, inner, guarded, narrowed)
        elif node.op_type == "Where" and sides == [2] and _is_guard(node, weights):
            yield from uses(node.outputs[0], frame, axes, True, narrowed)
        elif node.op_type != "IsNaN":
            yield node


def _is_guard(node: ir.Node, weights: ir.Value) -> bool:
    """Where(IsNaN(weights), 0, weights): rows that are masked whole become zero."""
    test = made_by(node.inputs[0], "IsNaN")
    return test is not None and test.inputs[0] is weights and number(node.inputs[1]) == 0
