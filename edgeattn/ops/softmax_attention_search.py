"""The search for softmax attention: which tensor is what, in what was found on both sides of a softmax."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod

import numpy as np
import onnx_ir as ir

from edgeattn.ops.base import Facts, Match, Miss
from edgeattn.ops.layout import VIEWS, Dim, Frame, apply, regrouped, same
from edgeattn.ops.products import Product, Softmax, is_of_two_tensors, name_of, product_of, softmaxes
from edgeattn.ops.softmax_attention_channels import over_channels
from edgeattn.ops.softmax_attention_operator import attention_operator
from edgeattn.ops.softmax_attention_plan import Operand, Parts, Plan, grouped, inputs_of, planned
from edgeattn.ops.softmax_attention_walk import Scores, Term, Unclear, Use, trace_scores, uses
from edgeattn.ops.walk import between, constant, dims, made_by, number, users
from edgeattn.sizes import factors, parted, times

NAME = "SoftmaxAttention"
OTHERS = ("Sigmoid", "HardSigmoid", "Relu", "Tanh", "Mul", "Div", "Add")  # what stands where others have a softmax


def find(graph: ir.Graph) -> Iterator[Match | Miss]:
    """Every softmax between two products, and products with another normalisation between them."""
    for softmax in softmaxes(graph):
        yield from _around(softmax)
    for node in graph:
        yield from _without_softmax(node)
        yield from _operator(node)


def _around(softmax: Softmax) -> Iterator[Match | Miss]:
    frame = Frame()
    axes = tuple(frame.leaf(size) for size in dims(softmax.scores) or ())
    try:
        scores = trace_scores(softmax, frame, axes)
    except Unclear as err:
        if any(isinstance(use, Use) or _feeds_product(use) for use in uses(softmax.weights, frame, axes)):
            yield Miss(NAME, softmax.anchor, (softmax.anchor,), str(err))
        return
    if scores is None or scores.product is None:
        return
    goals = list(uses(softmax.weights, frame, axes))
    nodes = (scores.product.node, softmax.anchor)
    others = [goal for goal in goals if isinstance(goal, ir.Node)]
    if len(others) == len(goals):
        found = name_of(others[0]) if others else "nothing"
        reason = f"the weights of {name_of(softmax.anchor)} go to {found}, expected a product with values"
        yield Miss(NAME, softmax.anchor, nodes, reason)
    for goal in goals:
        if isinstance(goal, Use):
            try:
                yield _match(softmax, scores, goal, frame.copy(), axes[softmax.axis])
            except Unclear as err:
                yield Miss(NAME, softmax.anchor, (*nodes, goal.product.node), str(err))


def _feeds_product(node: ir.Node) -> bool:
    return any(product_of(user) is not None for value in node.outputs for user in users(value))


def _operator(node: ir.Node) -> Iterator[Match | Miss]:
    frame = Frame()
    try:
        if (plain := attention_operator(node, frame)) is not None:
            yield _canonical(frame, *plain, (node, node))
    except Unclear as err:
        yield Miss(NAME, node, (node,), str(err))


def _match(softmax: Softmax, scores: Scores, use: Use, frame: Frame, over: tuple[int, ...]) -> Match:
    parts = _parts(softmax, scores, use, frame, over)
    _require_tokens(frame, parts)
    guarded = use.guarded and not _leaves_keys(scores.terms, frame, over)
    wide = _is_wider(softmax, parts)
    more = (["guarded"] if guarded else []) + (["f32softmax"] if wide else [])
    parts = _with_heads(frame, parts)
    return _canonical(frame, parts, scores.scale, (softmax.anchor, use.product.node), more)


def _canonical(
    frame: Frame, parts: Parts, scale: float, ends: tuple[ir.Node, ir.Node], more: Sequence[str] = ()
) -> Match:
    groups, anchor, output = grouped(frame, parts), ends[0], ends[1].outputs[0]
    plan = planned(groups, parts) if len(groups) > len(frame) else None
    frame, plan = (frame, planned(frame, parts)) if plan is None else (groups, plan)
    if plan is None:
        sizes = [frame.size((leaf,)) for leaf in parts.lead]
        raise Unclear(frame.doubt or f"the leading axes {sizes} of the scores do not merge to batch and heads")
    scale *= plan.q.operand.scale * plan.k.operand.scale
    if not np.isfinite(scale):
        raise Unclear(f"the scores of {name_of(anchor)} are scaled by {scale}")
    stops = [placed.operand.slot.value for placed in (plan.q, plan.k, plan.v)]
    stops += [term.slot.value for term in (*parts.terms, *parts.fills, *parts.factors)]
    attributes = {"scale": float(scale)}
    if parts.fills:
        attributes["fill"] = float(parts.fills[0].fill * parts.fills[0].scale)
    has = (["bias"] if parts.terms else []) + (["filled"] if parts.fills else [])
    return Match(
        op=NAME,
        variant="-".join([*has, *more]),
        anchor=anchor,
        nodes=tuple(reversed(list(between(output, stops)))),
        output=output,
        inputs=lambda tape: inputs_of(tape, plan),
        attributes=attributes,
        facts=_facts(frame, plan, parts, scale, output),
        finish=lambda tape, value: apply(tape, value, plan.finish),
    )


def _require_tokens(frame: Frame, parts: Parts) -> None:
    """Refuse what is an attention over channels.

    Raises:
        Unclear: it is.
    """
    q, k = (frame.resolved(operand.axes) for operand in (parts.q, parts.k))
    if parts.queries in q and parts.keys in k and parts.wide in q and parts.wide in k:
        attended, contracted = (q.index(parts.queries), k.index(parts.keys)), (q.index(parts.wide), k.index(parts.wide))
        if over_channels(parts.q.slot.value, parts.k.slot.value, attended, contracted):
            raise Unclear(f"attends over {frame.size(parts.keys) or 'the'} channels, expected over tokens")


def _is_wider(softmax: Softmax, parts: Parts) -> bool:
    """Whether the softmax runs in float32 between products of another type.

    Raises:
        Unclear: it runs in a type that none of the tensors has.
    """
    own, others = softmax.weights.dtype, {parts.q.slot.value.dtype, parts.v.slot.value.dtype}
    if others != {own} and own != ir.DataType.FLOAT:
        raise Unclear(f"{name_of(softmax.anchor)} runs in {own}, expected the type of queries and values, or float32")
    return others != {own}


def _parts(softmax: Softmax, scores: Scores, use: Use, frame: Frame, over: tuple[int, ...]) -> Parts:
    """Which side of which product is what, and which of its axes.

    Raises:
        Unclear: an axis is not where an attention has it.
    """
    first, second, side = scores.product, use.product, use.side
    assert first is not None
    keys = frame.resolve(over)
    named = dict(zip(first.out, frame.resolved(scores.axes), strict=True))
    ends = [[label for label in first.out if label in first.own(place)][-1:] for place in (0, 1)]
    asks = next((place for place in (0, 1) if ends[0] and ends[1] and named[ends[1 - place][0]] == keys), None)
    if asks is None:
        size = (dims(softmax.scores) or ())[softmax.axis]
        raise Unclear(f"softmax over axis {softmax.axis} of size {size}, expected the axis of the keys or queries")
    row, column = ends[asks][0], ends[1 - asks][0]
    weights = dict(zip(second.labels[side], frame.resolved(use.axes), strict=True))
    if weights[second.summed] != keys:
        raise Unclear(
            f"softmax over axis {softmax.axis} of {name_of(softmax.anchor)}, but {name_of(second.node)} sums over "
            f"another axis of the weights, expected the axis of the keys"
        )
    rows = [label for label, axis in weights.items() if axis == named[row] and label in second.own(side)]
    columns, order = second.own(1 - side), second.labels[1 - side].index
    if len(rows) != 1 or not columns or any(order(label) < order(second.summed) for label in columns[:-1]):
        raise Unclear(
            f"{name_of(second.node)} multiplies weights of axes {second.labels[side]!r} and values of axes "
            f"{second.labels[1 - side]!r} to {second.out!r}, expected (queries, keys) and (keys, columns)"
        )
    _require_whole_weights(second, side)
    for factor in scores.factors:
        if set(keys) & {leaf for axis in frame.resolved(factor.axes) for leaf in axis}:
            raise Unclear(f"{name_of(factor.slot.node)} scales scores by a tensor that differs from key to key")
    named[first.summed] = frame.leaf(_size(first, asks, first.summed))
    weights |= {label: frame.leaf(_size(second, 1 - side, label)) for label in columns}
    return Parts(
        q=_operand(frame, first, asks, named),
        k=_operand(frame, first, 1 - asks, named),
        v=_operand(frame, second, 1 - side, weights),
        terms=tuple(scores.terms),
        fills=tuple(scores.fills),
        factors=tuple(scores.factors),
        result=tuple(weights[label] for label in second.out),
        lead=tuple(leaf for label in first.out if label not in (row, column) for leaf in named[label]),
        queries=named[row],
        keys=keys,
        wide=named[first.summed],
        out=tuple(leaf for label in columns for leaf in weights[label]),
    )


def _with_heads(frame: Frame, parts: Parts) -> Parts:
    """A single leading axis split into batch and heads, where the views before it show how many there are."""
    lead = parts.lead
    if len(lead) == 1 and not frame.doubt and lead in parts.q.axes:
        size = frame.size(lead)
        heads = _heads_merged(parts.q.slot.value, parts.q.axes.index(lead))
        if heads and (not isinstance(size, int) or size % heads == 0):
            split = frame.split(lead[0], (parted(size, heads), heads))
            return replace(parts, lead=split)
    return parts


def _size(product: Product, side: int, label: str) -> Dim:
    return (dims(product.slot(side).value) or ())[product.labels[side].index(label)]


def _operand(frame: Frame, product: Product, side: int, named: dict[str, tuple[int, ...]]) -> Operand:
    """An operand with its axes named: those of size one that the other side has larger are ()."""
    slot, other = product.slot(side), product.labels[1 - side]
    axes = []
    for label, size in zip(product.labels[side], dims(slot.value) or (), strict=True):
        if label in other and label != product.summed:
            against = _size(product, 1 - side, label)
            if not same(size, against) and 1 not in (size, against):
                frame.doubt = f"{name_of(product.node)} multiplies axes of sizes {size} and {against}, maybe not equal"
            axes.append(() if size == 1 and against != 1 else named[label])
        else:
            axes.append(named[label])
    return Operand(slot, tuple(axes))


def _require_whole_weights(product: Product, side: int) -> None:
    for label in product.labels[side]:
        if label in product.labels[1 - side] and label != product.summed:
            size, values = _size(product, side, label), _size(product, 1 - side, label)
            if size == 1 and values != 1:
                raise Unclear(f"{name_of(product.node)} shares weights among {values} groups of values, expected one")


def _heads_merged(value: ir.Value, axis: int) -> int | None:
    """How many heads were merged into an axis, as the views show that made the tensor."""
    while (node := made_by(value, "Transpose", "Reshape", "Mul", "Div")) is not None and node.inputs[0] is not None:
        source, result = dims(node.inputs[0]), dims(value)
        if source is None or result is None:
            return None
        if node.op_type == "Transpose":
            axis = tuple(node.attributes["perm"].as_ints())[axis]
        elif node.op_type == "Reshape":
            return _inner_factor(source, result, axis)
        elif number(node.inputs[1]) is None:
            return None
        value = node.inputs[0]
    return None


def _inner_factor(source: tuple[Dim, ...], result: tuple[Dim, ...], axis: int) -> int | None:
    """H of an axis that is (B, H) merged, or (B, H d) parted to (B H, d)."""
    groups = regrouped(source, result) or []
    olds, news = next(((olds, news) for olds, news in groups if axis in news), ([], []))
    if len(olds) != 2 or not news or news[0] != axis or len(news) > 2:
        return None
    whole, each = source[olds[1]], result[news[1]] if len(news) == 2 else 1
    exact = isinstance(whole, int) and isinstance(each, int) and each > 0 and whole > each and whole % each == 0
    return whole // each if exact and isinstance(whole, int) and isinstance(each, int) else None


def _leaves_keys(terms: list[Term], frame: Frame, over: tuple[int, ...]) -> bool:
    """Whether it is certain that each query keeps a key, so that no row of weights is not a number."""
    if not terms:
        return True
    array = constant(terms[0].slot.value)
    if len(terms) > 1 or array is None or not array.ndim or frame.resolve(terms[0].axes[-1]) != frame.resolve(over):
        return False
    kept = {"add": array > -np.inf, "keep": array == True, "drop": array == False}[terms[0].kind]  # noqa: E712
    return bool(np.all(np.any(kept, axis=-1)))


def _facts(frame: Frame, plan: Plan, parts: Parts, scale: float, output: ir.Value) -> Facts:
    cut = (parts.lead[:-1], parts.lead[-1:]) if plan.heads else (plan.batch, ())  # windows are no heads
    axes = (*cut, parts.queries, parts.keys, parts.wide, parts.out)
    found = [_whole(frame, axis) for axis in axes]
    labels = ("batch", "heads", "queries", "keys", "d_qk", "d_v")
    sizes = {label: size if size is not None else "?" for label, size in zip(labels, found, strict=True)}
    if not isinstance(found[0], int):
        found[0] = 1 if found[0] is None else factors(found[0])[0]
    if not all(isinstance(size, int) for size in found):
        return Facts(sizes)
    batch, heads, queries, keys, wide, out = (int(size or 0) for size in found)
    share = int(frame.size(plan.heads) or 1)
    k_heads, v_heads = (batch * heads // (share if 1 in placed.lacks else 1) for placed in (plan.k, plan.v))
    each = 4 if output.dtype is None else output.dtype.itemsize
    maps = batch * heads * queries * keys
    passes = (
        4 + 2 * (scale != 1) + 2 * len(plan.terms.terms)
    )  # written and read by product, scale, terms, softmax, product
    ends = batch * heads * queries * (wide + out) + keys * (wide * k_heads + out * v_heads)
    ends += sum(_known_size(term) for term, _ in plan.terms.terms)
    flops = 2 * maps * (wide + out) + maps * (5 + (scale != 1) + len(plan.terms.terms))
    return Facts(sizes, flops, int(each * (ends + passes * maps)), int(each * ends))


def _whole(frame: Frame, axis: Sequence[int]) -> Dim:
    """The size of an axis, "4*batch" where one part of it has a name."""
    parts = [frame.size((leaf,)) for leaf in frame.resolve(axis)]
    names = [part for part in parts if not isinstance(part, int)]
    count = prod(part for part in parts if isinstance(part, int))
    return count if not names else times(count, names[0]) if len(names) == 1 else None


def _known_size(term: Term) -> int:
    sizes = dims(term.slot.value) or ()
    return prod(size for size in sizes if isinstance(size, int))


def _without_softmax(node: ir.Node) -> Iterator[Miss]:
    """Two products with something else than a softmax between them, where attention has one."""
    product = product_of(node)
    for side in (0, 1) if product is not None else ():
        value = node.inputs[side]
        between_them: list[ir.Node] = []
        while (made := made_by(value, *VIEWS, *OTHERS)) is not None and len(between_them) < 6:
            between_them.append(made)
            place = 1 if made.op_type in ("Mul", "Div", "Add") and constant(made.inputs[0]) is not None else 0
            value = made.inputs[place]
        first = product_of(value.producer() if value is not None else None)
        done = [made for made in between_them if made.op_type not in VIEWS]
        if product is None or first is None or not {made.op_type for made in done} - {"Add"}:
            continue
        if is_of_two_tensors(first) and is_of_two_tensors(product) and product.summed in product.labels[side][-2:]:
            what = ", ".join(name_of(made) for made in done)
            yield Miss(NAME, done[0], (first.node, *done, node), f"scores are normalised by {what}, expected a softmax")
