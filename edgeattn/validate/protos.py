"""Walking an ONNX protobuf that nobody has checked yet: loops, no recursion, no trust."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from edgeattn.errors import InputError, quote

MAX_SUBGRAPH_DEPTH = 16
MAX_FIELDS = 2_000_000  # two bytes of a file can become 200 of memory

# Kinds of protobuf fields, by the lowest three bits of their keys; the fixed ones with their sizes.
_VARINT, _BYTES, _FIXED = 0, 2, {1: 8, 5: 4}
STRING, EXTERNAL = onnx.TensorProto.STRING, onnx.TensorProto.EXTERNAL
BITS = {dtype.value: dtype.bitwidth for dtype in ir.DataType if dtype.value not in (0, STRING)} | {STRING: 8}

Body = onnx.GraphProto | onnx.FunctionProto
FunctionId = tuple[str, str, str]


def check_fields(data: bytes) -> None:
    """Count what a serialised model holds, before a parser gives each field its memory.

    Raises:
        InputError: more than `MAX_FIELDS` fields.
        DecodeError: the bytes are no protobuf.
    """
    count = 0
    stack = [(0, len(data), onnx.ModelProto.DESCRIPTOR)]
    while stack:
        at, end, message = stack.pop()
        while at < end:
            count += 1
            if count > MAX_FIELDS:
                raise InputError(f"it has more than {MAX_FIELDS} fields, which no model needs; export it again")
            key, at = _varint(data, at)
            kind = key & 7
            if kind == _BYTES:
                size, at = _varint(data, at)
                field = message.fields_by_number.get(key >> 3)
                if field is not None and field.message_type is not None:
                    stack.append((at, at + size, field.message_type))
                at += size
            elif kind == _VARINT:
                _, at = _varint(data, at)
            elif kind in _FIXED:
                at += _FIXED[kind]
            else:
                raise DecodeError(f"field of kind {kind} at byte {at}")
        if at > end:
            raise DecodeError(f"field that ends beyond byte {end}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at a place, seven bits a byte and the lowest first, and the place after it."""
    value = 0
    for shift, byte in enumerate(data[at : at + 10]):
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value, at + shift + 1
    raise DecodeError(f"endless number at byte {at}")


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
