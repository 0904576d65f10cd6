"""The standard operator `Attention` (opset 23) as softmax attention, where it does no more than that."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeattn.ops.layout import Axes, Dim, Frame, same
from edgeattn.ops.softmax_attention_plan import Operand, Parts
from edgeattn.ops.softmax_attention_walk import Slot, Term
from edgeattn.ops.walk import constant, dims, integer, made_by, users


def attention_operator(node: ir.Node, frame: Frame) -> tuple[Parts, float] | None:
    """What an `Attention` node is made of, and its scale; None for any other node, and for one that does more.

    More is: a cache, a causal mask, capped scores, a softmax in another type, scores as an output, heads in groups of
    several, and a mask of truth values that may leave a query without a key.
    """
    shapes = [dims(value) for value in node.inputs[:3]]
    if made_by(node.outputs[0], "Attention") is None or None in shapes or not _is_plain(node):
        return None
    q, k, v = (shape or () for shape in shapes)
    merged = len(q) == 3
    counts = (integer(node, "q_num_heads", 0), *[integer(node, "kv_num_heads", 0)] * 2)
    heads, shared, others = counts if merged else (q[1], k[1], v[1])
    widths = [_each(shape[-1], count) if merged else shape[-1] for shape, count in zip((q, k, v), counts, strict=True)]
    scale = node.attributes.get("scale")
    if scale is None and not isinstance(widths[0], int):
        return None
    known = same(q[0], k[0]) and same(q[0], v[0]) and same(k[-2], v[-2]) and None not in widths
    if not known or not same(shared, others) or (not same(heads, shared) and shared != 1):
        return None
    batch, every, queries, keys = (frame.leaf(size) for size in (q[0], heads, q[-2], k[-2]))
    wide, out = frame.leaf(widths[0]), frame.leaf(widths[2])
    own = every if same(heads, shared) else ()

    def axes(head: tuple[int, ...], rows: tuple[int, ...], columns: tuple[int, ...]) -> Axes:
        return (batch, rows, head + columns) if merged else (batch, head, rows, columns)

    terms = _masks(node, (batch, every, queries, keys), (q[0], heads, q[-2], k[-2]))
    if terms is None:
        return None
    parts = Parts(
        q=Operand(Slot(node, 0), axes(every, queries, wide)),
        k=Operand(Slot(node, 1), axes(own, keys, wide)),
        v=Operand(Slot(node, 2), axes(own, keys, out)),
        terms=terms,
        factors=(),
        result=axes(every, queries, out),
        lead=batch + every,
        queries=queries,
        keys=keys,
        wide=wide,
        out=out,
    )
    return parts, scale.as_float() if scale is not None else float(widths[0] or 1) ** -0.5


def _is_plain(node: ir.Node) -> bool:
    softcap = node.attributes.get("softcap")
    precision = integer(node, "softmax_precision", 0)
    own = node.outputs[0].dtype
    return (
        all(value is None for value in node.inputs[4:])
        and not any(users(value) or value.is_graph_output() for value in node.outputs[1:])
        and not integer(node, "is_causal", 0)
        and (softcap is None or softcap.as_float() == 0)
        and own is not None
        and precision in (0, own.value)
    )


def _each(size: Dim, heads: int) -> Dim:
    return size // heads if isinstance(size, int) and heads > 0 and size % heads == 0 else None


def _masks(node: ir.Node, axes: Axes, sizes: tuple[Dim, ...]) -> tuple[Term, ...] | None:
    """The mask as a term of the scores, if there is one; None where it is not certain what it does."""
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    if mask is None:
        return ()
    own = dims(mask)
    if own is None or not 2 <= len(own) <= 4 or not same(own[-1], sizes[-1]):
        return None
    named = []
    for dim, size, axis in zip(own, sizes[-len(own) :], axes[-len(own) :], strict=True):
        if not same(dim, size) and dim != 1:
            return None
        named.append(axis if same(dim, size) else ())
    if mask.dtype != ir.DataType.BOOL:
        return (Term("add", Slot(node, 3), tuple(named), 1.0),)
    array = constant(mask)
    keeps = array is not None and bool(np.all(np.any(array, axis=-1)))
    return (Term("keep", Slot(node, 3), tuple(named), 1.0, -np.inf),) if keeps else None
