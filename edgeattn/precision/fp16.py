"""Lower a float32 graph to float16 or bfloat16 by casts that stand in the graph.

Every TensorRT network is built strongly typed, so a graph says itself what it computes in, and gives the same numbers
in every runtime. Each operator's schema decides which of its inputs and outputs may change; what would overflow or
vanish stays in float32 (`edgeattn.precision.islands`), and the notes say what and why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from edgeattn.errors import InputError, UsageError
from edgeattn.graph import Graph, dtype_name
from edgeattn.lowering import ATTENTION
from edgeattn.normalise import infer_types, inlined, upgraded
from edgeattn.precision.islands import QUANTIZE, islands
from edgeattn.precision.norms import merge_norms
from edgeattn.precision.ranges import Ranges
from edgeattn.precision.scaling import scale_before
from edgeattn.precision.signatures import (
    MOVES,
    Islands,
    bound,
    by_reason,
    constant,
    is_float32,
    lowerable,
    op,
    signature,
)
from edgeattn.tensors import dtype_named

HIGH = ir.DataType.FLOAT
BFLOAT16_OPSET = 22  # the first in which Conv and pooling take bfloat16
QUANTIZED_OPSET = 19  # the first in which scales may be float16


@dataclass(frozen=True)
class Lowered:
    """A graph in a low dtype; `notes` says in words what stayed in float32, and why."""

    graph: Graph
    notes: tuple[str, ...]


def lower(
    graph: Graph,
    dtype: str,
    keep_io_types: bool = True,
    ranges: Ranges | None = None,
    keep: Collection[str] = (),
) -> Lowered:
    """Turn a graph's float32 computation into float16 or bfloat16.

    Weights are converted, casts stand where the dtype changes. A graph that already holds `dtype` is left as it is.

    Args:
        graph: any valid graph; it is not changed.
        dtype: `float16` or `bfloat16` (or their short names).
        keep_io_types: leave inputs and outputs in float32; otherwise they become `dtype` too. Names stay.
        ranges: what calibration saw of this graph's values. What overflowed or vanished then stays in float32, or is
            scaled where that is exact, and parts that only might have overflowed are lowered.
        keep: names of nodes, and of attentions that were expanded, to leave in float32.

    Raises:
        UsageError: another dtype.
        InputError: the graph cannot be carried over to the operator set that bfloat16 needs.
    """
    name = dtype_named(dtype).name
    if name not in ("float16", "bfloat16"):
        raise UsageError(f"cannot lower to {name}; expected float16 or bfloat16")
    low = ir.DataType(dtype_named(name).onnx)
    if _holds(graph.model, low):
        return Lowered(graph, (f"the graph already computes in {name}: left as it is",))
    model = _prepared(graph, low)
    opset = Graph(model).opset
    scaled = scale_before(model.graph, low, ranges) if ranges is not None else ()
    kept = islands(model.graph, low, opset, ranges, keep)
    unknown = sorted(
        set(keep) - {name for node in model.graph for name in (node.name, node.metadata_props.get(ATTENTION))}
    )
    _Caster(model.graph, low).run(kept, opset, keep_io_types)
    asked = tuple(f"nothing to keep in float32: the graph has no node {name!r}" for name in unknown)
    return Lowered(Graph(model, graph.path), (*asked, *scaled, *_notes(model.graph, kept)))


def _holds(model: ir.Model, low: ir.DataType) -> bool:
    nodes = list(Graph(model).nodes())
    values = chain(model.graph.inputs, *((*node.inputs, *node.outputs) for node in nodes))
    targets = (node.attributes["to"].value for node in nodes if op(node) == "Cast")
    return low in (value.dtype for value in values if value is not None) or low in targets


def _prepared(graph: Graph, low: ir.DataType) -> ir.Model:
    """A copy with functions inlined, norms merged, every value typed where types can be known, and every node named."""
    model = inlined(graph.model)
    if low == ir.DataType.BFLOAT16:
        model = upgraded(model, BFLOAT16_OPSET)
    elif any(node.op_type == "DequantizeLinear" for node in model.graph):
        with contextlib.suppress(InputError):  # then what is quantised stays next to float32
            model = upgraded(model, QUANTIZED_OPSET)
    common.NameFixPass()(model)
    values = [value for node in model.graph for value in node.outputs if value.name]
    if any(value.type is None or value.shape is None for value in values):
        infer_types(model)
    if any(value.type is None for value in values):
        _share_types(model)
    model = merge_norms(model)
    _drop_casts(model.graph)
    return model


def _drop_casts(graph: ir.Graph) -> None:
    """Remove each Cast to the dtype that a value has: lowered, it would be a pair of casts."""
    for node in [node for node in graph if op(node) == "Cast"]:
        source, result = node.inputs[0], node.outputs[0]
        if source is not None and source.dtype == result.dtype is not None and not result.is_graph_output():
            ir.convenience.replace_all_uses_with(result, source)
            graph.remove(node, safe=True)


def _share_types(model: ir.Model) -> None:
    """Type what ONNX's inference cannot, behind unknown operators, by sharing a type variable."""
    opset = Graph(model).opset
    for node in chain(model.graph, reversed(model.graph)):
        known = {name: value.type for name, value in bound(node, opset) if value.type is not None}
        for name, value in bound(node, opset):
            value.type = value.type or known.get(name)


@dataclass
class _Caster:
    """Retypes a graph in place. `versions` maps a value to what stands for it in another dtype."""

    graph: ir.Graph
    low: ir.DataType
    versions: dict[tuple[ir.Value, ir.DataType], ir.Value] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    def run(self, kept: Islands, opset: int, keep_io_types: bool) -> None:
        self.names = _all_names(self.graph)
        followers = _followers(self.graph, kept, keep_io_types)
        plan = {node: frozenset() if node in kept else lowerable(node, self.low, opset) for node in self.graph}
        if not keep_io_types:
            for value in self.graph.inputs:
                if is_float32(value):
                    value.type = ir.TensorType(self.low)  # never in place: copies share their types
        for node, lowered in plan.items():
            follows = node in followers and self._fed_high(node)
            self._retype(node, frozenset() if follows else lowered, opset)
        for body in self.graph.subgraphs():
            for inner in body:
                self._feed(inner, [False] * len(inner.inputs))
        for index, value in enumerate(self.graph.outputs):
            if value.dtype in (HIGH, self.low) and isinstance(value.type, ir.TensorType):
                self._output(index, HIGH if keep_io_types else self.low)
        self._store_constants()

    def _retype(self, node: ir.Node, lowered: frozenset[str], opset: int) -> None:
        found = signature(node, opset)
        variables = found.inputs if found else ("",) * len(node.inputs)
        outputs = found.outputs if found else ("",) * len(node.outputs)
        self._feed(node, [name in lowered for name in variables])
        for name, value in zip(outputs, node.outputs, strict=True):
            if name in lowered and is_float32(value):
                value.type = ir.TensorType(self.low)
                _set_dtype(node, self.low)

    def _fed_high(self, node: ir.Node) -> bool:
        computed = [value for value in node.inputs if value is not None and constant(value) is None]
        floats = [value.dtype for value in computed if value.dtype in (HIGH, self.low)]
        return not floats or HIGH in floats

    def _feed(self, node: ir.Node, wants_low: Sequence[bool]) -> None:
        for index, (value, wants) in enumerate(zip(node.inputs, wants_low, strict=True)):
            if value is not None and (value.dtype == self.low or (wants and is_float32(value))):
                node.replace_input_with(index, self._as(value, self.low if wants else HIGH))

    def _as(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        if value.dtype == dtype:
            return value
        if (value, dtype) not in self.versions:
            fixed = constant(value)
            self.versions[value, dtype] = self._cast(value, dtype) if fixed is None else _rounded(value, fixed, dtype)
        return self.versions[value, dtype]

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        suffix = dtype_name(dtype)
        cast = ir.node("Cast", [value], {"to": dtype}, name=self._unique(f"{value.name}_to_{suffix}"))
        out = cast.outputs[0]
        out.name = self._unique(f"{value.name}_{suffix}")
        out.type, out.shape = ir.TensorType(dtype), value.shape
        producer = value.producer()
        if producer is not None:
            self.graph.insert_after(producer, cast)
        else:
            self.graph.insert_before(self.graph[0], cast)
        return out

    def _output(self, index: int, dtype: ir.DataType) -> None:
        value = self.graph.outputs[index]
        version = self._as(value, dtype)
        if version is not value:
            name, self.graph.outputs[index] = value.name, version
            value.name = self._unique(f"{name}_{dtype_name(value.dtype)}")
            version.name = name

    def _store_constants(self) -> None:
        """Give each rounded constant its name, and drop the float32 one where nobody reads it any more."""
        for (old, dtype), new in self.versions.items():
            if constant(old) is None:
                continue
            if not old.uses() and not old.is_graph_output():
                new.name = new.name or old.name
                producer = old.producer()
                if producer is not None:
                    self.graph.remove(producer, safe=True)
                else:
                    del self.graph.initializers[old.name or ""]
            new.name = new.name or self._unique(f"{old.name}_{dtype_name(dtype)}")
            self.graph.register_initializer(new)

    def _unique(self, name: str) -> str:
        candidates = chain([name], (f"{name}_{count}" for count in range(1, len(self.names) + 2)))
        unique = next(item for item in candidates if item not in self.names)
        self.names.add(unique)
        return unique


def _all_names(graph: ir.Graph) -> set[str]:
    names = {node.name for node in graph.all_nodes()} | {v.name for node in graph.all_nodes() for v in node.outputs}
    for part in (graph, *graph.subgraphs()):
        names |= {value.name for value in (*part.inputs, *part.initializers.values())}
    return {name for name in names if name}


def _followers(graph: ir.Graph, kept: Islands, keep_io_types: bool) -> set[ir.Node]:
    """Nodes that compute in whatever they are fed, since a cast before them would buy nothing.

    They give no float (Shape, ArgMax, a comparison), or only move data to where float32 is wanted. Not what quantises:
    its scale is rounded as is that of what dequantises.
    """
    found: set[ir.Node] = set()
    for node in reversed(graph):
        outputs = [value for value in node.outputs if is_float32(value)]
        users = [user for value in outputs for user in value.consumers()]
        leaves = not keep_io_types and any(value.is_graph_output() for value in outputs)
        moves = op(node) in MOVES and not leaves and all(user in kept or user in found for user in users)
        if (not outputs and node.op_type not in QUANTIZE) or moves:
            found.add(node)
    return found


def _rounded(value: ir.Value, tensor: ir.TensorProtocol, dtype: ir.DataType) -> ir.Value:
    array = np.asarray(tensor.numpy()).astype(dtype.numpy())
    rounded = ir.Tensor(array, dtype=dtype)
    return ir.Value(shape=ir.Shape(array.shape), type=ir.TensorType(dtype), const_value=rounded)


def _set_dtype(node: ir.Node, dtype: ir.DataType) -> None:
    """Where an attribute chooses the output's dtype, choose the new one."""
    if op(node) == "Cast":
        node.attributes["to"] = ir.AttrInt64("to", dtype.value)
    elif op(node) == "DequantizeLinear":
        node.attributes.pop("output_dtype", None)  # it gives its scale's then
    elif op(node) == "ConstantOfShape":
        fill = node.attributes.get("value")
        array = fill.as_tensor().numpy() if fill is not None else np.zeros(1, np.float32)
        node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(array.astype(dtype.numpy()), dtype=dtype))


def _notes(graph: ir.Graph, kept: Islands) -> tuple[str, ...]:
    ordered = {node: kept[node] for node in graph if node in kept}
    return tuple(f"stays float32: {line}" for line in by_reason(ordered))
