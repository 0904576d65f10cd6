"""What a graph costs: the multiplications and additions of its convolutions, products and attentions."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from math import prod

import onnx_ir as ir

from edgeattn import sizes
from edgeattn.graph import Graph
from edgeattn.ops.base import DOMAIN
from edgeattn.ops.walk import dims, integer

UNKNOWN = ("If", "Loop", "Scan", "LSTM", "GRU", "RNN")  # how often their bodies run is not in their shapes


def flops_of(graph: Graph, attention: Mapping[str, int | None]) -> int | None:
    """FLOPs of one sample, a multiplication and an addition counted as two.

    Conv, ConvTranspose, MatMul, Gemm and Einsum count by their shapes; what a graph does besides is little.

    Args:
        graph: a fused graph, its shapes inferred; the first dimension of an input counts as one where it is dynamic.
        attention: FLOPs of the canonical nodes, by name.

    Returns:
        None where another size is dynamic, or an operator repeats its body.
    """
    costs = list(node_flops(graph, attention))
    return None if None in costs else sum(cost or 0 for cost in costs)


def node_flops(graph: Graph, attention: Mapping[str, int | None]) -> Iterator[int | None]:
    """FLOPs of each node of the main graph in turn; see `flops_of`."""
    batches = {shape[0] for value in graph.model.graph.inputs if (shape := dims(value)) and isinstance(shape[0], str)}
    for node in graph.model.graph:
        yield attention.get(node.name or "") if node.domain == DOMAIN else _flops(node, batches)


def _flops(node: ir.Node, batches: Collection[str | int | None]) -> int | None:
    """FLOPs of a plain node; 0 for those that do not count."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum"):
        return None if node.op_type in UNKNOWN else 0
    first, second, *_ = *node.inputs, None
    x, w, y = (_sizes(value, batches) for value in (first, second, node.outputs[0]))
    if x is None or y is None or (w is None and node.op_type != "Einsum"):
        return None
    if node.op_type == "Einsum":
        return _einsum(node, batches)
    if node.op_type == "MatMul":
        return 2 * prod(y) * x[-1]
    if node.op_type == "Gemm":
        return 2 * prod(y) * x[0 if integer(node, "transA", 0) else 1]
    return 2 * prod(y if node.op_type == "Conv" else x) * prod((w or ())[1:])


def _einsum(node: ir.Node, batches: Collection[str | int | None]) -> int | None:
    """Every label once, which is what a product of two tensors costs."""
    terms = node.attributes["equation"].as_string().replace(" ", "").partition("->")[0].split(",")
    found: dict[str, int] = {}
    for term, value in zip(terms, node.inputs, strict=False):
        shape = _sizes(value, batches)
        if shape is None or len(shape) != len(term):  # with an ellipsis, axes have no label
            return None
        found.update({label: max(size, found.get(label, 1)) for label, size in zip(term, shape, strict=True)})
    return 2 * prod(found.values()) if len(terms) > 1 else 0


def _sizes(value: ir.Value | None, batches: Collection[str | int | None]) -> tuple[int, ...] | None:
    shape = [sizes.factors(dim) if isinstance(dim, str) else (dim, None) for dim in dims(value) or (None,)]
    known = [count for count, name in shape if count is not None and (name is None or name in batches)]
    return tuple(known) if len(known) == len(shape) else None
