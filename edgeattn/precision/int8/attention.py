"""The queries and keys of softmax attentions in INT8, for runtimes whose fused attention takes them so."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from edgeattn.ops.base import DOMAIN
from edgeattn.precision.int8.placement import MOVES, Placement, operand, unusable
from edgeattn.precision.ranges import Ranges
from edgeattn.precision.signatures import op

QUERY_AND_KEY = (0, 1)
# That keep all values and their order along each axis: rounding before them is the same, and spares moving floats.
_MOVES = frozenset(MOVES) - {"Concat", "MaxPool"}
_ROUNDED = "all of it but the queries and keys, which are rounded"


def round_attentions(graph: ir.Graph, found: Placement, ranges: Ranges, keep: Collection[str]) -> None:
    """Add to a placement the queries and keys of the softmax attentions that are not to be kept high.

    Both are symmetric, as OpenVINO's INT8 kernel wants them: with a zero point it computes in float, and so it does
    where only one of them is rounded. Values are not: their product with the probabilities would take these in 8 bits,
    in which those of some thousands of keys are all zero.
    """
    for node in graph:
        if node.domain != DOMAIN or node.op_type != "SoftmaxAttention" or node.name in keep:
            continue
        sources = [_source(node, place, found) for place in QUERY_AND_KEY]
        if all(_is_free(value, found) and not unusable(ranges.tensors.get(value.name or "")) for value, *_ in sources):
            for value, reader, place in sources:
                found.symmetric.add(value)
                found.points[value] = ranges.tensors[value.name or ""]
                found.read(value, reader, place)
            found.kept[node] = _ROUNDED


def _is_free(value: ir.Value, found: Placement) -> bool:
    return value.dtype == ir.DataType.FLOAT and (value in found.symmetric or value not in found.points)


def _source(node: ir.Node, place: int, found: Placement) -> tuple[ir.Value, ir.Node, int]:
    """Where to round an operand: before the moves that only it goes through, as (value, its reader, the place)."""
    value = operand(node, place)
    while (maker := value.producer()) is not None and op(maker) in _MOVES and _has_one_reader(value):
        before = operand(maker, 0)
        if not _is_free(before, found):
            break
        value, node, place = before, maker, 0
    return value, node, place


def _has_one_reader(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()
