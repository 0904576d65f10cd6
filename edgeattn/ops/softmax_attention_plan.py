"""How the tensors of a softmax attention are brought to (batch, heads, rows, columns), and the result back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeattn.ops.base import Tape
from edgeattn.ops.layout import VIEWS, Axes, Frame, Step, apply, same
from edgeattn.ops.products import Slot
from edgeattn.ops.softmax_attention_walk import Term
from edgeattn.ops.walk import dims, made_by, number

REPEATS = ("Expand", "Tile")

Axis = tuple[int, ...]
Cut = tuple[Axis, Axis]  # leading axes parted into batch and heads


@dataclass(frozen=True)
class Operand:
    """Queries, keys or values: a tensor, what its axes are, and a number it is multiplied by."""

    slot: Slot
    axes: Axes
    scale: float = 1.0


@dataclass(frozen=True)
class Parts:
    """What an attention is made of: tensors, and the names of its axes before heads are chosen."""

    q: Operand
    k: Operand
    v: Operand
    terms: tuple[Term, ...]
    fills: tuple[Term, ...]
    factors: tuple[Term, ...]
    result: Axes
    lead: Axis
    queries: Axis
    keys: Axis
    wide: Axis  # of queries and keys
    out: Axis  # of values


@dataclass(frozen=True)
class Placed:
    """A tensor and the steps that bring it to (batch, heads, rows, columns); `lacks` are axes to be repeated."""

    operand: Operand
    steps: tuple[Step, ...]
    lacks: tuple[int, ...]


@dataclass(frozen=True)
class Joined:
    """Tensors of the scores' shape, each placed, and the steps that follow once they are one."""

    terms: tuple[tuple[Term, tuple[Step, ...]], ...]
    merge: tuple[Step, ...]


@dataclass(frozen=True)
class Plan:
    """Everything placed."""

    batch: Axis
    heads: Axis
    q: Placed
    k: Placed
    v: Placed
    terms: Joined
    fills: Joined
    early: tuple[tuple[Term, tuple[Step, ...]], ...]  # factors of the queries as they come
    late: tuple[tuple[Term, tuple[Step, ...]], ...]  # and of the queries in place
    finish: tuple[Step, ...]


def planned(frame: Frame, parts: Parts) -> Plan | None:
    """The plan for the likeliest way to part the leading axes that works."""
    return next((plan for cut in _cuts(frame.resolve(parts.lead)) if (plan := _plan(frame, cut, parts))), None)


def grouped(frame: Frame, parts: Parts) -> Frame:
    """The frame with heads parted into groups, where the same keys or values are repeated for each of a group."""
    for operand in (parts.k, parts.v):
        trial, node, axes = frame.copy(), made_by(operand.slot.value), frame.resolved(operand.axes)
        while node is not None and node.op_type in VIEWS:
            inner = trial.through(node, axes, back=True)
            if inner is None:
                break
            node, axes = made_by(node.inputs[0]), inner
        if node is not None and node.op_type in REPEATS:
            frame = trial
    return frame


def _cuts(lead: tuple[int, ...]) -> Iterator[Cut]:
    """Ways to part leading axes into batch and heads, the likely one first."""
    for place in (*range(len(lead) - 1, 0, -1), len(lead)):
        yield lead[:place], lead[place:]


def _plan(frame: Frame, cut: Cut, parts: Parts) -> Plan | None:
    """Everything brought to this batch and these heads, if that takes no repetition but of whole groups."""
    lead = (*cut[0], *cut[1])
    asked_by_all = set(lead) <= {leaf for axis in frame.resolved(parts.q.axes) for leaf in axis}
    q = _place(frame, cut, _peeled(frame, parts.q, ()), (parts.queries, parts.wide))
    k = _place(frame, cut, _peeled(frame, parts.k, lead if asked_by_all else ()), (parts.keys, parts.wide))
    v = _place(frame, cut, _peeled(frame, parts.v, lead, numbers=False), (parts.keys, parts.out))
    terms, fills = (_place_terms(frame, cut, parts, group) for group in (parts.terms, parts.fills))
    finish = frame.steps((*cut, parts.queries, parts.out), parts.result)
    if q is None or k is None or v is None or terms is None or fills is None or finish is None:
        return None
    late, early = [], []
    for term in parts.factors:
        if (steps := _placed_factor(frame, term, _target(frame, cut, term.axes, (parts.queries, ())))) is not None:
            late.append((term, steps))
        elif (steps := _placed_factor(frame, term, _within(frame, term.axes, q.operand.axes))) is not None:
            early.append((term, steps))
        else:
            return None
    return Plan(*cut, q, k, v, terms, fills, tuple(early), tuple(late), finish)


def _placed_factor(frame: Frame, factor: Term, target: Axes | None) -> tuple[Step, ...] | None:
    return None if target is None else frame.steps(factor.axes, target)


def _within(frame: Frame, axes: Axes, others: Axes) -> Axes | None:
    """The layout of a tensor among the axes of another, each of which it has whole or not at all."""
    present = {leaf for axis in frame.resolved(axes) for leaf in axis}
    target = tuple(axis if set(axis) <= present else () for axis in frame.resolved(others))
    return target if present == {leaf for axis in target for leaf in axis} else None


def _target(frame: Frame, cut: Cut, axes: Axes, last: tuple[tuple[int, ...], ...]) -> Axes | None:
    """The canonical layout of a tensor: a group of leading axes whole, or of size one; None where it has some of it."""
    present = {leaf for axis in frame.resolved(axes) for leaf in axis}
    groups = []
    for group in (*cut, *(frame.resolve(axis) for axis in last)):
        if present & set(group) and not set(group) <= present:
            return None
        groups.append(group if set(group) <= present else ())
        present -= set(group)
    return None if present else tuple(groups)


def _place(
    frame: Frame,
    cut: Cut,
    candidates: Sequence[Operand],
    last: tuple[tuple[int, ...], tuple[int, ...]],
) -> Placed | None:
    """The form of an operand that takes the fewest steps, one free of scalings and of repeated heads first."""
    placed = []
    for depth, operand in enumerate(candidates):
        target = _target(frame, cut, operand.axes, last)
        steps = frame.steps(operand.axes, target) if target else None
        ends_whole = target is not None and all(
            end or frame.size(axis) == 1 for end, axis in zip(target[2:], last, strict=True)
        )
        if target is not None and steps is not None and ends_whole:
            lacks = tuple(axis for axis in (0, 1) if not target[axis] and frame.size(cut[axis]) != 1)
            worth = (operand.scale != candidates[-1].scale, 1 not in lacks, 0 in lacks, len(steps), depth)
            placed.append((worth, operand, steps, lacks))
    if not placed:
        return None
    _, operand, steps, lacks = min(placed, key=lambda item: item[0])
    return Placed(operand, steps, lacks)


def _peeled(frame: Frame, operand: Operand, repeated: Axis, *, numbers: bool = True) -> list[Operand]:
    """The same operand further up: before views, numbers it is multiplied by, and repetition along `repeated`."""
    forms = [operand]
    while (node := made_by(forms[-1].slot.value)) is not None:
        last = forms[-1]
        if node.op_type in ("Mul", "Div") and numbers:
            place = 1 if node.op_type == "Mul" and number(node.inputs[0]) is not None else 0
            factor = number(node.inputs[1 - place])
            if factor is None or factor == 0 or dims(node.inputs[place]) != dims(node.outputs[0]):
                break
            factor = factor if node.op_type == "Mul" else 1 / factor
            forms.append(Operand(Slot(node, place), last.axes, last.scale * factor))
        elif node.op_type in VIEWS:
            trial = frame.copy()
            axes = trial.through(node, frame.resolved(last.axes), back=True)
            if axes is None or len(trial) != len(frame):
                break
            forms.append(Operand(Slot(node, 0), axes, last.scale))
        elif node.op_type in REPEATS and repeated and (shrunk := _before_expand(frame, node, last.axes, repeated)):
            forms.append(Operand(Slot(node, 0), shrunk, last.scale))
        else:
            break
    return forms


def _before_expand(frame: Frame, node: ir.Node, axes: Axes, repeated: tuple[int, ...]) -> Axes | None:
    """The axes before an Expand or Tile that repeats whole leading axes only."""
    source, result = dims(node.inputs[0]), dims(node.outputs[0])
    if source is None or result is None or len(source) != len(result):
        return None
    shrunk = tuple(axis if same(old, new) else () for axis, old, new in zip(axes, source, result, strict=True))
    for old, new, axis in zip(source, result, frame.resolved(axes), strict=True):
        if not same(old, new) and (old != 1 or not set(axis) <= set(repeated)):
            return None
    return shrunk


def _place_terms(frame: Frame, cut: Cut, parts: Parts, terms: tuple[Term, ...]) -> Joined | None:
    """Steps for each term, after which they are joined, and steps for the whole."""
    last = (frame.resolve(parts.queries), frame.resolve(parts.keys))
    whole = [_target(frame, cut, term.axes, last) for term in terms]
    merge: tuple[Step, ...] | None = ()
    if None in whole:  # join them with every axis apart, then merge
        order = (*cut[0], *cut[1], *last[0], *last[1])
        present = [{leaf for axis in frame.resolved(term.axes) for leaf in axis} for term in terms]
        whole = [tuple((leaf,) if leaf in own else () for leaf in order) for own in present]
        total = tuple((leaf,) if any(leaf in own for own in present) else () for leaf in order)
        target = _target(frame, cut, total, last)
        merge = frame.steps(total, target) if target is not None else None
    placed = []
    for term, target in zip(terms, whole, strict=True):
        steps = frame.steps(term.axes, target) if target is not None else None
        if steps is None:
            return None
        placed.append((term, steps))
    return None if merge is None else Joined(tuple(placed), merge)


def inputs_of(tape: Tape, plan: Plan) -> list[ir.Value]:
    """Put everything on a tape: q, k, v and, where there are any, the sum of the terms and what is not filled."""
    q, k, v = (placed.operand.slot.value for placed in (plan.q, plan.k, plan.v))
    for term, steps in plan.early:
        q = tape.op(term.kind, [q, apply(tape, term.slot.value, steps)])
    q, k, v = apply(tape, q, plan.q.steps), apply(tape, k, plan.k.steps), apply(tape, v, plan.v.steps)
    if plan.q.lacks:
        q = _repeated(tape, q, k, 2)
    if 0 in plan.k.lacks:
        k = _repeated(tape, k, q, 1)
    if 0 in plan.v.lacks:
        v = _repeated(tape, v, q, 1)
    for term, steps in plan.late:
        q = tape.op(term.kind, [q, apply(tape, term.slot.value, steps)])
    joined = [(plan.terms, "Add", _bias), (plan.fills, "And", _kept)]
    return [q, k, v, *(_joined(tape, group, kind, made) for group, kind, made in joined if group.terms)]


def _joined(tape: Tape, group: Joined, kind: str, made: Callable[[Tape, Term], ir.Value]) -> ir.Value:
    first, *others = [apply(tape, made(tape, term), steps) for term, steps in group.terms]
    for other in others:
        first = tape.op(kind, [first, other])
    return apply(tape, first, group.merge)


def _repeated(tape: Tape, value: ir.Value, like: ir.Value, axes: int) -> ir.Value:
    """Repeat a tensor (B, H, rows, columns) along its first one or two axes, as another has them."""
    sizes = tape.op("Shape", [like], start=0, end=axes)
    ones = tape.constant(np.ones(4 - axes, np.int64))
    return tape.op("Expand", [value, tape.op("Concat", [sizes, ones], axis=0)])


def _kept(tape: Tape, term: Term) -> ir.Value:
    return term.slot.value if term.kind == "keep" else tape.op("Not", [term.slot.value])


def _bias(tape: Tape, term: Term) -> ir.Value:
    dtype = term.slot.node.outputs[0].dtype or ir.DataType.FLOAT
    if term.kind == "add" and term.scale == 1:
        return term.slot.value
    if term.kind == "add":
        return tape.op("Mul", [term.slot.value, tape.constant(np.array(term.scale, dtype.numpy()))])
    zero = tape.constant(np.array(0.0, dtype.numpy()))
    fill = tape.constant(np.array(term.fill * term.scale, dtype.numpy()))
    return tape.op("Where", [term.slot.value, *((zero, fill) if term.kind == "keep" else (fill, zero))])
