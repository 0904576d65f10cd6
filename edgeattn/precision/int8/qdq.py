"""INT8 as QuantizeLinear and DequantizeLinear nodes in the graph, placed by role (`edgeattn.precision.int8.placement`).

    signed      activations round(x / s) in -128 .. 127, s = max(|low|, |high|) / 127; biases stay in float.
                What TensorRT and TensorRT-RTX take
    shifted     activations round(x / s) + z in 0 .. 255, s = (high - low) / 255; biases stay in float, and queries and
                keys of attentions may be signed. What OpenVINO takes
    unsigned    activations as shifted; biases int32 of scale s * s_w. What ONNX Runtime's kernels on x86 take

In all, weights are stored in INT8 with one scale for each output channel, s_w = max|w| / 127, and no zero point.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from edgeattn.errors import UnsupportedError, UsageError, did_you_mean
from edgeattn.graph import Graph
from edgeattn.normalise import drop_identities, infer_types, inlined, upgraded
from edgeattn.ops.base import DOMAIN
from edgeattn.precision.int8.attention import round_attentions
from edgeattn.precision.int8.placement import SCHEMES, Placement, Product, Scheme, operand, place
from edgeattn.precision.int8.weights import Names, initializer, numbers, settle_weights
from edgeattn.precision.ranges import Range, Ranges
from edgeattn.precision.signatures import by_reason, op
from edgeattn.tensors import numpy_dtype

if TYPE_CHECKING:
    from edgeattn.tensors import Array

QDQ_OPSET = 13  # the first with a scale for each channel
WEIGHT_MAX = 127
SMALLEST_SCALE = 2.0**-60
BIAS_MAX = 2**30  # of an int32 bias: the sum it starts must not overflow


@dataclass(frozen=True)
class Quantised:
    """A graph with Q/DQ nodes.

    `quantised` names the operators that compute in INT8; `kept` says by name why another one with weights, or an
    attention, does not. `notes` is the same in words, a line a reason. `improved` names the steps that improve it;
    see `edgeattn.precision.int8.improve`.
    """

    graph: Graph
    quantised: tuple[str, ...]
    kept: Mapping[str, str]
    notes: tuple[str, ...]
    improved: tuple[str, ...] = ()


def quantise(
    graph: Graph,
    ranges: Ranges,
    scheme: str,
    keep: Collection[str] = (),
    *,
    rest: str = "float32",
    attention: bool = False,
) -> Quantised:
    """Put Q/DQ nodes into a fused graph.

    Args:
        graph: as `edgeattn.fuse` gives it; it is not changed.
        ranges: what calibration observed of its values.
        scheme: `signed`, `shifted` or `unsigned`.
        keep: names of nodes that stay in float.
        rest: the dtype that the graph will be lowered to beside INT8. Scales are numbers of that dtype from the start:
            rounded to float16 afterwards, those of small weights would be off by percents.
        attention: round the queries and keys of attentions too, where the scheme's runtime has a kernel for that.

    Raises:
        UsageError: another scheme, a name that no node has, or a graph that holds Q/DQ nodes already.
        UnsupportedError: nothing can be quantised; lists every reason.
    """
    if scheme not in SCHEMES:
        raise UsageError(f"there is no INT8 scheme {scheme!r}; expected {', '.join(SCHEMES)}")
    if any(op(node) == "DequantizeLinear" for node in graph.nodes()):
        raise UsageError(f"{graph.path or 'the graph'} is quantised already: give the float model it was made from")
    require_nodes(graph, keep)
    model = prepared(graph)
    placement = place(model.graph, Graph(model).opset, ranges, SCHEMES[scheme], keep)
    if not placement.products:
        raise UnsupportedError(f"nothing in {graph.path or 'the graph'} can be quantised", by_reason(placement.kept))
    if attention and SCHEMES[scheme].attention:
        round_attentions(model.graph, placement, ranges, keep)
    kept = {node.name or "": reason for node, reason in placement.kept.items()}
    notes = tuple(_notes(placement))
    _Inserter(model.graph, SCHEMES[scheme], numpy_dtype(rest)).run(placement)
    common.RemoveUnusedNodesPass()(model)
    quantised = tuple(node.name or "" for node in placement.products)
    return Quantised(Graph(model, graph.path), quantised, kept, notes)


def require_nodes(graph: Graph, keep: Collection[str]) -> None:
    """Refuse to keep a node that is not there.

    Raises:
        UsageError: a name that no node has.
    """
    names = {node.name or "" for node in graph.model.graph}
    for name in keep:
        if name not in names:
            raise UsageError(f"no node {name!r} to keep high; {did_you_mean(name, names)}")


def prepared(graph: Graph) -> ir.Model:
    """A copy in the form that `place` searches: as `fuse` makes it, which leaves graphs without attention alone."""
    if any(node.domain == DOMAIN for node in graph.model.graph):
        model = graph.model.clone()
    else:
        model = upgraded(inlined(graph.model), QDQ_OPSET)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        drop_identities(model)
    common.NameFixPass()(model)
    settle_weights(model)
    infer_types(model)
    return model


@dataclass
class _Inserter:
    """Writes a placement into a graph; what several nodes read is rounded, or stored, once."""

    graph: ir.Graph
    scheme: Scheme
    rest: np.dtype[Any]
    scales: dict[ir.Value, Array] = field(default_factory=dict)
    weights: dict[tuple[ir.Value, int, bytes], ir.Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = Names(self.graph)

    def run(self, placement: Placement) -> None:
        sources = [(product, operand(product.node, product.x)) for product in placement.products.values()]
        for value, spread in placement.points.items():
            shifted = not (self.scheme.signed or value in placement.symmetric)
            self._round(value, affine(spread, shifted, self.rest), list(placement.readers[value]))
        for product, source in sources:
            self._store(product, self.scales[source])

    def _round(self, value: ir.Value, by: tuple[Array, Array], readers: Sequence[tuple[ir.Node, int]]) -> None:
        scale, zero = by[0].astype(_dtype(value)), by[1]
        self.scales[value] = scale
        parameters = [self._constant(value, "scale", scale), self._constant(value, "zero_point", zero)]
        codes = self._node("QuantizeLinear", [value, *parameters], value, parameters[1].dtype)
        floats = self._node("DequantizeLinear", [codes.outputs[0], *parameters], value, value.dtype)
        producer = value.producer()
        if producer is not None:
            self.graph.insert_after(producer, [codes, floats])
        else:
            self.graph.insert_before(self.graph[0], [codes, floats])
        for node, index in readers:
            node.replace_input_with(index, floats.outputs[0])

    def _store(self, product: Product, x_scale: Array) -> None:
        node, axis, value = product.node, product.axis, operand(product.node, product.w)
        weights = numbers(value)
        offset = None
        if self.scheme.integers and product.bias is not None:
            offset = np.broadcast_to(numbers(operand(*product.bias)).reshape(-1), weights.shape[axis]) / x_scale
        codes, scale = stored(weights, axis, self.rest, offset)
        scale = scale.astype(_dtype(value))
        key = (value, axis, scale.tobytes())
        if key not in self.weights:
            self.weights[key] = self._dequantized(value, codes, scale, axis)
        node.replace_input_with(product.w, self.weights[key])
        if offset is not None and product.bias is not None:
            codes = np.rint(offset / scale.astype(np.float64)).astype(np.int32)
            bias = self._dequantized(operand(*product.bias), codes, (x_scale * scale).astype(scale.dtype), 0)
            product.bias[0].replace_input_with(product.bias[1], bias)

    def _dequantized(self, value: ir.Value, codes: Array, scale: Array, axis: int) -> ir.Value:
        """Codes that are stored, as the floats they stand for."""
        zero = np.zeros(scale.shape, codes.dtype)
        arrays = {"quantized": codes, "scale": scale, "zero_point": zero}
        inputs = [self._constant(value, suffix, array) for suffix, array in arrays.items()]
        node = self._node("DequantizeLinear", inputs, value, value.dtype, axis=axis)
        node.outputs[0].shape = ir.Shape(codes.shape)
        self.graph.insert_before(self.graph[0], node)
        return node.outputs[0]

    def _constant(self, value: ir.Value, suffix: str, array: Array) -> ir.Value:
        return initializer(self.graph, self.names, f"{value.name}_{suffix}", array)

    def _node(
        self, kind: str, inputs: Sequence[ir.Value], value: ir.Value, dtype: ir.DataType | None, **attributes: int
    ) -> ir.Node:
        """A node that stands between a value and its readers, named after it."""
        node = ir.node(kind, inputs, attributes, name=self.names.free(f"{value.name}_{kind}"))
        out = node.outputs[0]
        out.name, out.shape = self.names.free(f"{value.name}_{kind}_output"), value.shape
        out.type = ir.TensorType(dtype) if dtype is not None else None
        return node


def affine(spread: Range, shifted: bool, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """Scale and zero point of an activation, which is that of signed codes where it is not `shifted`."""
    low, high = min(spread.low, 0.0), max(spread.high, 0.0)
    if not shifted:
        return _scales(np.array(max(-low, high) / 127), dtype), np.zeros((), np.int8)
    scale = _scales(np.array((high - low) / 255), dtype)
    return scale, np.clip(np.rint(-low / scale.astype(np.float64)), 0, 255).astype(np.uint8)


def stored(weights: Array, axis: int, dtype: np.dtype[Any], bias: Array | None = None) -> tuple[Array, Array]:
    """Weights as INT8 codes, and the scale of each output channel.

    `bias` is each channel's in units of the input's scale: a channel's scale grows until its bias fits an int32, and
    that of a channel without weights follows its bias.
    """
    scale = np.abs(weights).max(axis=tuple(place for place in range(weights.ndim) if place != axis)) / WEIGHT_MAX
    if bias is not None:
        scale = np.where(scale > 0, np.maximum(scale, np.abs(bias) / BIAS_MAX), np.abs(bias) / 2**16)
    scale = _scales(np.where(scale > 0, scale, 1.0), dtype)
    along = scale.astype(np.float64).reshape([-1 if place == axis else 1 for place in range(weights.ndim)])
    return np.clip(np.rint(weights / along), -WEIGHT_MAX, WEIGHT_MAX).astype(np.int8), scale


def _scales(values: Array, dtype: np.dtype[Any]) -> Array:
    """Scales in a dtype: never zero, and rounded up, so that the largest value stays in range."""
    rounded = np.maximum(values, SMALLEST_SCALE).astype(dtype)
    up: Array = np.where(rounded < values, np.nextafter(rounded, dtype.type(np.inf)), rounded)
    return up.astype(dtype)


def _dtype(value: ir.Value) -> np.dtype[Any]:
    return (value.dtype or ir.DataType.FLOAT).numpy()


def _notes(placement: Placement) -> Iterator[str]:
    """What is quantised, and a line for each reason why something is not."""
    kinds = Counter(op(node) for node in placement.products)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    yield f"INT8: {counts}"
    yield from (f"stays in float: {line}" for line in by_reason(placement.kept))
