"""The standard operator `Attention` (opset 23) as softmax attention, where it does no more than that."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from edgeattn.ops.layout import Axes, Dim, Frame, same
from edgeattn.ops.products import Slot, name_of
from edgeattn.ops.softmax_attention_plan import Operand, Parts
from edgeattn.ops.softmax_attention_walk import Term, Unclear
from edgeattn.ops.walk import constant, dims, integer, made_by, users


def attention_operator(node: ir.Node, frame: Frame) -> tuple[Parts, float] | None:
    """What an `Attention` node is made of, and its scale; None for any other node.

    Raises:
        Unclear: it does more than softmax attention, or its sizes are not known.
    """
    if not node.outputs or made_by(node.outputs[0], "Attention") is None:
        return None
    shapes = [dims(value) for value in node.inputs[:3]]
    more = next(_more(node), None)
    if more or None in shapes:
        raise Unclear(f"{name_of(node)} {more or 'has operands whose sizes are not known'}")
    q, k, v = (shape or () for shape in shapes)
    merged = len(q) == 3
    counts = (integer(node, "q_num_heads", 0), *[integer(node, "kv_num_heads", 0)] * 2)
    heads, shared, others = counts if merged else (q[1], k[1], v[1])
    widths = [_each(shape[-1], count) if merged else shape[-1] for shape, count in zip((q, k, v), counts, strict=True)]
    scale = node.attributes.get("scale")
    groups = 1 if same(heads, shared) else _each(heads, shared) if isinstance(shared, int) else None
    known = all(same(*pair) for pair in ((q[0], k[0]), (q[0], v[0]), (k[-2], v[-2]), (shared, others)))
    if not known or None in widths or groups is None or (scale is None and not isinstance(widths[0], int)):
        raise Unclear(f"{name_of(node)} has operands of sizes {q}, {k} and {v}, which are not known to fit")
    batch, every, queries, keys = (frame.leaf(size) for size in (q[0], heads, q[-2], k[-2]))
    own = every if groups == 1 else frame.split(every[0], (shared, groups))[:1]
    wide, out = frame.leaf(widths[0]), frame.leaf(widths[2])

    def axes(head: tuple[int, ...], rows: tuple[int, ...], columns: tuple[int, ...]) -> Axes:
        return (batch, rows, head + columns) if merged else (batch, head, rows, columns)

    parts = Parts(
        q=Operand(Slot(node, 0), axes(every, queries, wide)),
        k=Operand(Slot(node, 1), axes(own, keys, wide)),
        v=Operand(Slot(node, 2), axes(own, keys, out)),
        terms=_masks(node, (batch, every, queries, keys), (q[0], heads, q[-2], k[-2])),
        fills=(),
        factors=(),
        result=axes(every, queries, out),
        lead=batch + every,
        queries=queries,
        keys=keys,
        wide=wide,
        out=out,
    )
    return parts, scale.as_float() if scale is not None else float(widths[0] or 1) ** -0.5


def _more(node: ir.Node) -> Iterator[str]:
    """What an `Attention` node does beyond softmax attention."""
    if any(value is not None for value in node.inputs[4:6]):
        yield "has a cache of past keys and values, expected none"
    if any(value is not None for value in node.inputs[6:]):
        yield "counts the keys that are no padding, expected a mask for it"
    if any(users(value) or value.is_graph_output() for value in node.outputs[1:]):
        yield "returns its scores or its cache, expected its result alone"
    if integer(node, "is_causal", 0):
        yield "hides the keys behind each query (is_causal), expected a mask for it"
    softcap = node.attributes.get("softcap")
    if softcap is not None and softcap.as_float() != 0:
        yield f"caps its scores at {softcap.as_float():g} (softcap), expected none"
    own, precision = node.outputs[0].dtype, integer(node, "softmax_precision", 0)
    if own is None or precision not in (0, own.value):
        yield f"runs its softmax in type {precision}, expected {own}"


def _each(size: Dim, heads: int) -> Dim:
    return size // heads if isinstance(size, int) and heads > 0 and size % heads == 0 else None


def _masks(node: ir.Node, axes: Axes, sizes: tuple[Dim, ...]) -> tuple[Term, ...]:
    """The mask as a term of the scores, if there is one.

    Raises:
        Unclear: it is not certain what it does.
    """
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    if mask is None:
        return ()
    own = dims(mask)
    fits = own is not None and 2 <= len(own) <= 4 and same(own[-1], sizes[-1])
    named = []
    for dim, size, axis in zip(own or (), sizes[-len(own or ()) :], axes[-len(own or ()) :], strict=False):
        fits = fits and (same(dim, size) or dim == 1)
        named.append(axis if same(dim, size) else ())
    if not fits:
        raise Unclear(f"{name_of(node)} has a mask of sizes {own}, which is not known to fit scores of {sizes}")
    if mask.dtype != ir.DataType.BOOL:
        return (Term("add", Slot(node, 3), tuple(named), 1.0),)
    array = constant(mask)
    if array is None or not np.all(np.any(array, axis=-1)):
        raise Unclear(f"{name_of(node)} has a mask of truth values that may leave a query without a key")
    return (Term("keep", Slot(node, 3), tuple(named), 1.0, -np.inf),)
