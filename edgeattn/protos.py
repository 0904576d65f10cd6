"""Walking an ONNX protobuf that nobody has checked yet: loops, no recursion, no trust."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import onnx
import onnx_ir as ir

from edgeattn.errors import InputError, quote

MAX_SUBGRAPH_DEPTH = 16
STRING, EXTERNAL = onnx.TensorProto.STRING, onnx.TensorProto.EXTERNAL
BITS = {dtype.value: dtype.bitwidth for dtype in ir.DataType if dtype.value not in (0, STRING)} | {STRING: 8}

Body = onnx.GraphProto | onnx.FunctionProto
FunctionId = tuple[str, str, str]


def function_id(item: onnx.FunctionProto | onnx.NodeProto, name: str) -> FunctionId:
    """Domain, name and overload: what a node's call and a function's definition are matched by."""
    return domain_of(item.domain), name, item.overload


def domain_of(name: str) -> str:
    """ONNX's own domain has two spellings; this is the short one."""
    return "" if name == "ai.onnx" else name


def nested(body: Body) -> Iterator[Body]:
    """The graph or function itself, and every subgraph of its control flow."""
    stack: list[tuple[Body, int]] = [(body, 0)]
    while stack:
        graph, depth = stack.pop()
        if depth > MAX_SUBGRAPH_DEPTH:
            raise InputError(f"graph {quote(graph.name)} lies {depth} subgraphs deep; supported: {MAX_SUBGRAPH_DEPTH}")
        yield graph
        for attribute in attributes(graph):
            stack += [(inner, depth + 1) for inner in attribute.graphs]
            if attribute.HasField("g"):
                stack.append((attribute.g, depth + 1))


def attributes(graph: Body) -> Iterator[onnx.AttributeProto]:
    """The attributes of a body's nodes, and the defaults of a function's own."""
    for node in graph.node:
        yield from node.attribute
    if isinstance(graph, onnx.FunctionProto):
        yield from graph.attribute_proto


def initializers(graph: Body) -> Iterable[onnx.TensorProto]:
    """A graph's initializers; a function has none."""
    return graph.initializer if isinstance(graph, onnx.GraphProto) else ()


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """The bytes that a tensor's shape and dtype need; strings count one each."""
    bits: int = math.prod(tensor.dims) * BITS[tensor.data_type]
    return -(-bits // 8)
