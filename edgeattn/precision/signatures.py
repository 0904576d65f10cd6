"""Which dtypes an operator's schema admits for each of a node's inputs and outputs."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from edgeattn.ops.base import DOMAIN
from edgeattn.reports.text import few

Islands = dict[ir.Node, str]  # what stays in float32, and why
NAMED_NODES = 3  # of those that stay for one reason


def kinds(names: str) -> frozenset[str]:
    """A set of operators, from their names in one line."""
    return frozenset(names.split())


MOVES = kinds(
    "Concat DepthToSpace Expand Flatten Gather GatherElements GatherND Identity Reshape Slice SpaceToDepth Split "
    "Squeeze Tile Transpose Unsqueeze"
)
FLOATS = frozenset({"tensor(float)", "tensor(float16)", "tensor(bfloat16)"})
# Operators whose output's dtype is theirs to choose. Random generators could too, but runtimes have them in float32.
CHOOSING = frozenset({"Cast", "ConstantOfShape", "DequantizeLinear"})


@dataclass(frozen=True)
class Signature:
    """The type variable of each input and output that a node has, and the types each variable may take."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    admits: dict[str, frozenset[str]]


@functools.lru_cache(maxsize=4096)
def _signature(op_type: str, opset: int, inputs: int, outputs: int) -> Signature | None:
    try:
        schema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
    takes, gives = _formal(schema.inputs, inputs), _formal(schema.outputs, outputs)
    return Signature(
        tuple(item.type_str for item in takes),
        tuple(item.type_str for item in gives),
        {item.type_str: frozenset(item.types) for item in (*takes, *gives)},
    )


def _formal(parameters: Sequence[Any], count: int) -> list[Any]:
    """One formal parameter per actual one: only the last may repeat."""
    return [parameters[min(index, len(parameters) - 1)] for index in range(count)] if parameters else []


def op(node: ir.Node | None) -> str:
    """The name of a standard operator; empty for one of another domain, whatever it is called."""
    return node.op_type if node is not None and node.domain in ("", "ai.onnx") else ""


def has_body(node: ir.Node) -> bool:
    """Whether it is control flow: If, Loop, Scan."""
    return any(attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attr in node.attributes.values())


def signature(node: ir.Node, opset: int) -> Signature | None:
    """The node's signature, None for an operator outside of ONNX's default domain or unknown to it.

    A node of ours is one that a plugin will run: in any float, the same for all.
    """
    if node.domain == DOMAIN:
        floats = tuple("" if value is None or value.dtype == ir.DataType.BOOL else "T" for value in node.inputs)
        return Signature(floats, ("T",) * len(node.outputs), {"T": FLOATS, "": frozenset()})
    return _signature(op(node), opset, len(node.inputs), len(node.outputs))


def bound(node: ir.Node, opset: int) -> Iterator[tuple[str, ir.Value]]:
    """Each value of the node with its type variable; absent optional ones are left out."""
    found = signature(node, opset)
    if found is not None:
        yield from ((name, v) for name, v in zip(found.inputs, node.inputs, strict=True) if v is not None)
        yield from ((name, v) for name, v in zip(found.outputs, node.outputs, strict=True) if v.name)


def is_float32(value: ir.Value | None) -> bool:
    """Whether it is a float32 tensor, not a sequence of them."""
    return value is not None and value.dtype == ir.DataType.FLOAT and isinstance(value.type, ir.TensorType)


def float32(values: Iterable[ir.Value | None]) -> list[ir.Value]:
    """Those of the values that are float32 tensors."""
    return [value for value in values if value is not None and is_float32(value)]


def lowerable(node: ir.Node, low: ir.DataType, opset: int) -> frozenset[str]:
    """The type variables of a node that are float32 and may become `low`.

    The region of interest of Resize shares no variable with its image, and stays exact.
    """
    found = signature(node, opset)
    if found is None:
        return frozenset()
    pairs = list(bound(node, opset))
    high = {name for name, value in pairs if not is_float32(value)}
    if node.op_type not in CHOOSING:
        chosen = set(found.outputs) - set(found.inputs)
        if found.outputs[0] in chosen and is_float32(node.outputs[0]):
            return frozenset()
        high |= chosen
    if node.op_type == "Resize":
        high.add("T2")
    wanted = f"tensor({low.name.lower()})"
    return frozenset(name for name, _ in pairs if name not in high and wanted in found.admits[name])


def groups(nodes: Collection[ir.Node], apart: Collection[str] = ()) -> list[set[ir.Node]]:
    """The nodes, together with those they read from; what operators named `apart` read is no tie."""
    home: dict[ir.Node, set[ir.Node]] = {node: {node} for node in nodes}
    for node in nodes:
        for producer in [value.producer() for value in node.inputs if value is not None]:
            if producer in home and node.op_type not in apart and home[producer] is not home[node]:
                home[producer] |= home[node]
                home.update(dict.fromkeys(home[node], home[producer]))
    return list({id(group): group for group in home.values()}.values())


def by_reason(kept: Mapping[ir.Node, str]) -> list[str]:
    """In words why nodes stay as they are: a line for each reason, and few of its nodes."""
    nodes: dict[str, list[str]] = {}
    for node, reason in kept.items():
        nodes.setdefault(reason, []).append(f"{node.op_type} {node.name!r}")
    return [f"{few(names, NAMED_NODES)}: {reason}" for reason, names in nodes.items()]


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The numbers of an initializer or of a Constant node's output; onnx_ir's own would rename the tensor."""
    if value is None or value.const_value is not None:
        return None if value is None else value.const_value
    node = value.producer()
    if node is None or op(node) != "Constant":
        return None
    for name, attribute in node.attributes.items():
        if name == "value":
            return attribute.as_tensor()
        if name in ("value_float", "value_floats"):
            return ir.Tensor(np.array(attribute.value, np.float32))
        if name in ("value_int", "value_ints"):
            return ir.Tensor(np.array(attribute.value, np.int64))
    return None
