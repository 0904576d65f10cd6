"""Which nodes must stay in float32 when a graph is lowered to a 16-bit dtype, each with the reason.

A value that the low dtype holds badly (a mask of -1e9, a sum of squares, an index) makes an island: the nodes from
where it appears to where values are ordinary numbers again.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from edgeattn.graph import dtype_name
from edgeattn.lowering import ATTENTION
from edgeattn.precision.extremes import extremes
from edgeattn.precision.observed import needless, overflowing, vanishing
from edgeattn.precision.ranges import Ranges
from edgeattn.precision.signatures import (
    MOVES,
    Islands,
    bound,
    constant,
    float32,
    groups,
    has_body,
    kinds,
    lowerable,
    op,
    signature,
)
from edgeattn.precision.sums import MEAN_AS_SUM, statistics

# Cheap enough to compute indices in float32; a Conv that eats integers is no index arithmetic.
INDEX_MATH = MOVES | kinds(
    "Abs Add Cast Ceil Clip ConstantOfShape Cos Div Exp Floor Log Max Min Mod Mul Neg Pow Range Reciprocal ReduceMax "
    "ReduceMin ReduceProd ReduceSum Round Sign Sin Sqrt Sub Where"
)
INDEX_INPUTS = {
    "AffineGrid": {0},
    "GridSample": {1},
    "MaxRoiPool": {1},
    "NonMaxSuppression": {0, 1, 3, 4},
    "Range": {0, 1, 2},
    "Resize": {1, 2},
    "RoiAlign": {1},
    "Upsample": {1},
}
SAMPLERS = kinds("AffineGrid GridSample MaxRoiPool RoiAlign")
WIDE_INTS = frozenset({ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT32, ir.DataType.UINT64})

QUANTIZE = kinds("DynamicQuantizeLinear QuantizeLinear")  # of ONNX Runtime's own domain too
DEQUANTIZE = "DequantizeLinear"


def islands(
    graph: ir.Graph, low: ir.DataType, opset: int, ranges: Ranges | None = None, keep: Collection[str] = ()
) -> Islands:
    """The nodes that stay in float32 and why; where several reasons hold, the first found.

    Args:
        graph: typed, its nodes named.
        low: the dtype that all else will have.
        opset: the version of the default operator set.
        ranges: what was observed. What overflowed or vanished becomes an island, and sums that stayed small none.
        keep: names of nodes, and of attentions, that stay in float32 whatever was found.
    """
    exact, fragile = _indices(graph), statistics(graph, low)
    means = {node for node, reason in exact.items() if reason == MEAN_AS_SUM}
    spare = needless(means | fragile.keys(), low, ranges) if ranges is not None else set()
    found = [_named(graph, keep), _unlowerable(graph, low, opset)]
    if ranges is not None:
        found += [overflowing(graph, low, ranges), vanishing(graph, low, ranges)]
    found += [{node: reason for node, reason in part.items() if node not in spare} for part in (exact, fragile)]
    found.append(extremes(graph, low))
    kept: Islands = {}
    for part in found:
        for node, reason in part.items():
            kept.setdefault(node, reason)
    return {**_quantised(graph, low, opset, kept), **kept}


def _named(graph: ir.Graph, keep: Collection[str]) -> Islands:
    asked = [node for node in graph if node.name in keep or node.metadata_props.get(ATTENTION) in keep]
    return dict.fromkeys(asked, "kept high as asked")


def _unlowerable(graph: ir.Graph, low: ir.DataType, opset: int) -> Islands:
    kept = {}
    for node in graph:
        found = signature(node, opset)
        values = [value for _, value in bound(node, opset)]
        if has_body(node):
            kept[node] = "the bodies of control flow stay in float32"
        elif found is None:
            kept[node] = f"{node.domain}::{node.op_type} is no operator of ONNX's opset {opset}"
        elif any(isinstance(value.type, (ir.SequenceType, ir.OptionalType)) for value in values):
            kept[node] = "sequences stay in float32"
        elif any(value.type is None for value in values):
            kept[node] = "the dtype of a value is not known"
        elif op(node) in SAMPLERS:
            kept[node] = "sampling coordinates need float32"
        elif op(node) != "Constant" and float32(values) and not lowerable(node, low, opset):
            kept[node] = f"{op(node)} of opset {opset} computes in float32"
    return kept


def _quantised(graph: ir.Graph, low: ir.DataType, opset: int, kept: Islands) -> Islands:
    """What Q/DQ nodes touch, through data movement, where one of them has to stay: integer kernels have one dtype."""
    touched: list[ir.Node] = []
    rounded: set[ir.Value] = set()
    for node in graph:
        reads = not rounded.isdisjoint(node.inputs)
        if reads or node.op_type in (*QUANTIZE, DEQUANTIZE):
            touched.append(node)
        if node.op_type == DEQUANTIZE or (reads and op(node) in MOVES):
            rounded.update(node.outputs)
    quantisers = [node for node in touched if node.op_type in (*QUANTIZE, DEQUANTIZE)]
    stay = kept.keys() | {node for node in quantisers if not _has_fitting_scale(node, low, opset)}
    reason = f"next to quantisation that {dtype_name(low)} cannot carry"
    parts = groups(touched, apart=QUANTIZE)
    return {node: reason for part in parts if not stay.isdisjoint(part) for node in part}


def _has_fitting_scale(node: ir.Node, low: ir.DataType, opset: int) -> bool:
    """Whether a Q or DQ node may be lowered, and the dtype holds each of its scales."""
    scale = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if scale is None or not lowerable(node, low, opset):
        return False
    exact = scale.numpy().astype(np.float64)
    with np.errstate(over="ignore"):
        error = np.abs(exact.astype(low.numpy()).astype(np.float64) - exact)
    return bool((error <= exact / 256).all())


def _indices(graph: ir.Graph) -> Islands:
    """Float arithmetic on sizes and indices: 2049 is no float16, and a size that is off by one is another shape."""
    kept: Islands = {}
    reason = "shape and index arithmetic must be exact"
    exact: set[ir.Value] = set()
    for node in graph:
        inputs = float32(node.inputs)
        from_ints = op(node) == "Cast" and node.inputs[0] is not None and node.inputs[0].dtype in WIDE_INTS
        closed = any(v in exact for v in inputs) and all(v in exact or constant(v) is not None for v in inputs)
        if op(node) == "Range" or from_ints or (closed and op(node) in INDEX_MATH):
            exact.update(float32(node.outputs))
            if float32(node.outputs):
                kept[node] = reason
        elif op(node) == "Div" and node.inputs[1] in exact:
            producer = inputs[0].producer()
            summed = [producer] if producer and op(producer) == "ReduceSum" else []
            kept.update(dict.fromkeys([node, *summed], MEAN_AS_SUM))
    for node in reversed(graph):
        uses = [use for value in node.outputs for use in value.uses()]
        outside = not uses or any(value.is_graph_output() for value in node.outputs)
        if op(node) not in INDEX_MATH or not float32(node.outputs) or outside:
            continue
        if all(kept.get(user) == reason or _is_index(user, at) for user, at in uses):
            kept[node] = reason
    return kept


def _is_index(node: ir.Node, at: int) -> bool:
    if op(node) == "Cast":
        return node.outputs[0].dtype in WIDE_INTS
    return at in INDEX_INPUTS.get(op(node), ())
