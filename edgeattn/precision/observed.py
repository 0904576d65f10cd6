"""Islands by what calibration saw: values beyond a low dtype's range, or so small that it rounds them away.

A value counts as beyond where `MARGIN` times the largest magnitude among all samples is: data that were not among them
may go further. By the same margin an island that was made only for what might come is given up again, where nothing in
it came near. What was not observed, as a value that a pass has made since, decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from edgeattn.graph import dtype_name
from edgeattn.lowering import ATTENTION
from edgeattn.precision.extremes import LIMITS, ends, vanishes
from edgeattn.precision.ranges import Ranges
from edgeattn.precision.signatures import MOVES, Islands, constant, float32, groups, kinds, op
from edgeattn.precision.sums import MEANS, SQUARING, is_square, terms

MARGIN = 8.0
UNKNOWN = (math.nan, math.nan)
ASKING = kinds("Shape Size")  # for no number of a tensor

# What makes an ordinary number of a tiny one. Beside ordinary numbers, a tiny summand is no loss.
AMPLIFIERS = kinds(
    "BatchNormalization Conv ConvTranspose Div Gemm GroupNormalization InstanceNormalization LayerNormalization Log "
    "LpNormalization MatMul MeanVarianceNormalization Mul Pow RMSNormalization Reciprocal ReduceSum Sqrt"
)
# What they cut off may be infinite, so calibration leaves out what only they read.
BOUNDS = kinds("Clip Relu")
# The input that must not come near zero.
DENOMINATORS = {"Div": 1, "Log": 0, "Pow": 0, "Reciprocal": 0, "Sqrt": 0}
# What a value means to the operator that reads it.
MEANINGS = {
    "GroupNormalization": "inputs of a normalisation",
    "InstanceNormalization": "inputs of a normalisation",
    "LayerNormalization": "inputs of a normalisation",
    "LogSoftmax": "logits",
    "RMSNormalization": "inputs of a normalisation",
    "Softmax": "logits",
}


def overflowing(graph: ir.Graph, low: ir.DataType, ranges: Ranges) -> Islands:
    """The nodes that read, make, or sum up values beyond the dtype's range."""
    worst = {node: _worst(node, ranges) for node in graph if op(node) not in ASKING}
    beyond = [node for node, (peak, _) in worst.items() if peak * MARGIN > LIMITS[low][1]]
    kept: Islands = {}
    for group in groups(beyond):
        peak, meaning = max(worst[node] for node in group)
        kept.update(dict.fromkeys(group, f"{meaning} of up to {too_large(peak, low)}"))
    return kept


def too_large(peak: float, low: ir.DataType) -> str:
    """A magnitude that was observed, and why that is too much, in words."""
    end = f"{dtype_name(low)}, which ends at {LIMITS[low][1]:.5g}"
    return f"{peak:.3g} observed; {MARGIN:g} times that exceeds {end}"


def vanishing(graph: ir.Graph, low: ir.DataType, ranges: Ranges) -> Islands:
    """The nodes that make values too small for the dtype which others amplify, and those that amplify them."""
    kept: Islands = {}
    wanted = set(graph.outputs)
    for node in reversed(graph):
        tiny = {value: peak for value in _computed(node) if (peak := peak_of(value, ranges)) and _is_tiny(peak, low)}
        gives = tiny.keys() & set(node.outputs)
        if gives & wanted or (op(node) in AMPLIFIERS and tiny and not gives):
            wanted |= tiny.keys()
            kept[node] = (
                f"values of no more than {max(tiny.values()):.1g} observed, which {dtype_name(low)} rounds away"
            )
    return kept


def needless(kept: Collection[ir.Node], low: ir.DataType, ranges: Ranges) -> set[ir.Node]:
    """The islands made for what might come in which all values, and all sums, stayed far within the dtype's range."""
    calm = {node for node in kept if _is_calm(node, low, ranges)}
    return {node for group in groups(kept) if calm.issuperset(group) for node in group}


def peak_of(value: ir.Value, ranges: Ranges) -> float | None:
    """The largest magnitude that a value had or, as a constant, has; None where that is not known."""
    first, last = _span(value, ranges)
    return max(abs(first), abs(last)) if math.isfinite(first) and math.isfinite(last) else None


def _span(value: ir.Value | None, ranges: Ranges) -> tuple[float, float]:
    """The smallest and the largest that a value had, or as much of it as its readers let through."""
    if value is None:
        return UNKNOWN
    fixed, seen = constant(value), ranges.tensors.get(value.name or "")
    if fixed is not None:
        return ends(fixed.numpy())
    if seen is not None:
        return seen.min, seen.max
    producer, readers = value.producer(), value.consumers()
    alike: list[ir.Value] = []
    if producer is not None and op(producer) in MOVES:
        alike = float32(producer.inputs)
    elif all(op(user) in BOUNDS and user.inputs[0] is value for user in readers):
        alike = [user.outputs[0] for user in readers]
    spans = [_span(each, ranges) for each in alike] or [UNKNOWN]
    return float(np.min([first for first, _ in spans])), float(np.max([last for _, last in spans]))


def _computed(node: ir.Node) -> list[ir.Value]:
    return [value for value in float32((*node.inputs, *node.outputs)) if constant(value) is None]


def _is_tiny(peak: float, low: ir.DataType) -> bool:
    return 0 < peak * MARGIN < LIMITS[low][0]


def _worst(node: ir.Node, ranges: Ranges) -> tuple[float, str]:
    """The largest magnitude in a node, and what it is."""
    found = [(peak_of(value, ranges) or 0.0, _meaning(value)) for value in _computed(node)]
    peak, meaning = max([*found, (_inner(node, ranges), f"sums inside {node.op_type}")])
    attention = node.metadata_props.get(ATTENTION)
    return peak, f"{meaning} of attention {attention!r}" if attention else meaning


def _meaning(value: ir.Value) -> str:
    known = (MEANINGS[op(user)] for user in value.consumers() if op(user) in MEANINGS)
    return next(known, "exponentials" if op(value.producer()) == "Exp" else "values")


def _inner(node: ir.Node, ranges: Ranges) -> float:
    """What sums reach inside a node: their result and, estimated, as much as alternating signs may hide of the way."""
    if op(node) not in MEANS | SQUARING or node.inputs[0] is None:
        return 0.0
    taken, given = peak_of(node.inputs[0], ranges), peak_of(node.outputs[0], ranges)
    if taken is None or given is None:
        return 0.0
    if op(node) in SQUARING:
        squares = {"ReduceSumSquare": given, "ReduceL2": given**2, "InstanceNormalization": taken**2}
        return squares.get(op(node), math.inf)
    count = terms(node) or 1
    return (given if op(node) == "ReduceSum" else given * count) + taken * math.sqrt(count)


def _is_calm(node: ir.Node, low: ir.DataType, ranges: Ranges) -> bool:
    """Whether all that a node reads, makes and sums up is known, and ordinary by a margin."""
    smallest, largest = LIMITS[low]
    peaks = [peak_of(value, ranges) for value in float32((*node.inputs, *node.outputs))]
    known = [peak for peak in (*peaks, _inner(node, ranges)) if peak is not None]
    if len(known) <= len(peaks) or max(known) * MARGIN > largest or vanishes(node, low):
        return False
    place = DENOMINATORS.get(op(node))
    under = node.inputs[place] if place is not None and not is_square(node) else None
    first, last = _span(under, ranges)
    near_zero = first < smallest * MARGIN and last > -smallest * MARGIN
    return not near_zero and not any(_is_tiny(peak, low) for peak in known)
