"""Where quantisation goes: which operators compute in INT8, which values are rounded for them, and why others are not.

Products with constant weights are quantised: Conv, ConvTranspose, Gemm, MatMul. An attention is one unit that stays in
float but for what `edgeattn.precision.int8.attention` rounds, and so do softmax, normalisation and gates: rounded to 8
bits they cost 15 to 30 dB, while the projections around an attention, which hold most of the arithmetic, cost little.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from edgeattn.ops.base import DOMAIN
from edgeattn.precision.int8.weights import numbers
from edgeattn.precision.ranges import Range, Ranges
from edgeattn.precision.signatures import constant, op


@dataclass(frozen=True)
class Scheme:
    """How a runtime takes INT8.

    `signed` activations are symmetric in -127 .. 127, others lie in 0 .. 255 about a zero point. With `integers`, a
    convolution's result is rounded as well and its bias stored in int32. With `attention`, a fused attention takes
    queries and keys in INT8.
    """

    signed: bool
    integers: bool
    attention: bool = False


SCHEMES = {
    "signed": Scheme(signed=True, integers=False),
    "shifted": Scheme(signed=False, integers=False, attention=True),
    "unsigned": Scheme(signed=False, integers=True),
}
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
SCALE_OPSET = 19  # the first in which scales may be float16
# Taken into the integer kernel of the convolution before, as a bound of its result.
FUSED = ("Clip", "Relu")
# What only moves values, or picks some: rounding before it or after it is the same.
MOVES = ("Concat", "Flatten", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_REDUCES = ("GlobalAveragePool", "GlobalMaxPool", "ReduceMax", "ReduceMean", "ReduceSum")
FEW_WEIGHTS = 1 << 16
_KEPT = "kept high as asked"


@dataclass(frozen=True)
class Product:
    """An operator that computes with constant weights.

    `x` and `w` are the places of its data and its weights among the inputs, `axis` is that of the weights along which
    each output channel has its own scale. `bias` is the input, of this node or of the Add behind it, that adds to each
    channel, where there is one.
    """

    node: ir.Node
    x: int
    w: int
    axis: int
    bias: tuple[ir.Node, int] | None = None


def operand(node: ir.Node, place: int) -> ir.Value:
    """An input of a node that is there."""
    value = node.inputs[place]
    assert value is not None
    return value


@dataclass
class Placement:
    """What is quantised.

    `points` are the values that are rounded to 8 bits, each with the range it is rounded in; `readers` are the inputs
    (node, place) that read the rounded value. Those in `symmetric` have no zero point whatever the scheme. `kept` says
    why an operator with weights stays in float.
    """

    products: dict[ir.Node, Product] = field(default_factory=dict)
    points: dict[ir.Value, Range] = field(default_factory=dict)
    readers: dict[ir.Value, dict[tuple[ir.Node, int], None]] = field(default_factory=dict)
    symmetric: set[ir.Value] = field(default_factory=set)
    kept: dict[ir.Node, str] = field(default_factory=dict)

    def read(self, value: ir.Value, node: ir.Node, place: int) -> None:
        """Let an input of a node read the rounded value."""
        self.readers.setdefault(value, {})[node, place] = None

    def read_by_all(self, value: ir.Value) -> None:
        """Let all who read a value read the rounded one."""
        for user, place in value.uses():
            self.read(value, user, place)


def place(graph: ir.Graph, opset: int, ranges: Ranges, scheme: Scheme, keep: Collection[str]) -> Placement:
    """Decide what of a graph is quantised.

    The inputs of products are rounded. A scheme with integers rounds the results of convolutions too: ONNX Runtime
    computes a convolution in INT8 only where its result is rounded.
    """
    found = Placement()
    small = _small(graph)
    for node in graph:
        if node.domain == DOMAIN:
            found.kept[node] = _KEPT if node.name in keep else "an attention is one unit: its inside stays in float"
        elif op(node) in PRODUCTS:
            product = _product(node)
            reason = _KEPT if node.name in keep else small.get(node, "")
            reason = reason or (product if isinstance(product, str) else _obstacle(product, opset, ranges, scheme))
            if reason or isinstance(product, str):
                found.kept[node] = reason
                continue
            found.products[node] = product
            value = operand(node, product.x)
            found.points[value] = ranges.tensors[value.name or ""]
            found.read(value, node, product.x)
    if scheme.integers:
        _round_results(found, ranges)
    _round_between(graph, found, scheme)
    return found


def _product(node: ir.Node) -> Product | str:
    """A node's roles, or why it is no product with weights."""
    fixed = [constant(value) is not None for value in node.inputs]
    if op(node) == "MatMul":
        return _matrix_product(node) if fixed[0] != fixed[1] else "both operands are computed"
    if not fixed[1] or fixed[0]:
        return "its weights are computed" if not fixed[1] else "it computes a constant"
    bias = (node, 2) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if op(node) == "ConvTranspose":
        grouped = "group" in node.attributes and node.attributes["group"].as_int() != 1
        return (
            "a transposed convolution in groups has no scale per channel" if grouped else Product(node, 0, 1, 1, bias)
        )
    if op(node) == "Gemm":
        factors = [name for name in ("alpha", "beta") if name in node.attributes]
        scaled = next((name for name in factors if node.attributes[name].as_float() != 1), "")
        transposed = "transB" in node.attributes and node.attributes["transB"].as_int()
        return f"it is scaled by {scaled}" if scaled else Product(node, 0, 1, 0 if transposed else 1, bias)
    return Product(node, 0, 1, 0, bias)


def _matrix_product(node: ir.Node) -> Product | str:
    w = 1 if constant(node.inputs[0]) is None else 0
    shape = numbers(node.inputs[w]).shape
    if len(shape) == 1:
        return "its weights are a vector"
    return Product(node, 1 - w, w, len(shape) - 2 + w, _added(node, shape[-1]) if w else None)


def _added(node: ir.Node, channels: int) -> tuple[ir.Node, int] | None:
    """The constant that an Add, the only reader of a product, adds to each channel."""
    user = _only_reader(node.outputs[0])
    if user is None or op(user) != "Add":
        return None
    for place in (0, 1):
        tensor = constant(user.inputs[place])
        if tensor is not None and tuple(tensor.shape) == (channels,):
            return user, place
    return None


def _obstacle(product: Product, opset: int, ranges: Ranges, scheme: Scheme) -> str:
    """Why a product cannot be quantised; empty where it can."""
    node = product.node
    value = operand(node, product.x)
    if value.dtype not in FLOATS or (value.dtype != ir.DataType.FLOAT and opset < SCALE_OPSET):
        dtype = value.dtype.name if value.dtype else "no such dtype"
        return f"quantisation takes {dtype} from opset {SCALE_OPSET} on: export it with that, or in float32"
    if why := unusable(ranges.tensors.get(value.name or "")):
        return f"{why} of its input"
    return _no_integers(product, ranges) if scheme.integers else ""


def _no_integers(product: Product, ranges: Ranges) -> str:
    """Why ONNX Runtime has no integer kernel for a product; empty where it has."""
    node, bias = product.node, constant(operand(*product.bias)) if product.bias is not None else None
    result = _result(node)
    why = unusable(ranges.tensors.get(result.name or ""))
    obstacles = {
        "ONNX Runtime has no integer kernels beside other floats than float32": (
            operand(node, product.x).dtype != ir.DataType.FLOAT
        ),
        "ONNX Runtime has no integer transposed convolution": op(node) == "ConvTranspose",
        "ONNX Runtime has no integer product with the weights on the left": product.w == 0,
        "its bias is no constant vector": product.bias is not None
        and (bias is None or (bias.size > 1 and bias.shape[-1] != bias.size)),
        "its result is an output of the graph, which would be rounded to 8 bits": op(node) == "Conv"
        and result.is_graph_output(),
        f"{why} of its result": op(node) == "Conv" and bool(why),
    }
    return next((reason for reason, holds in obstacles.items() if holds), "")


def unusable(found: Range | None) -> str:
    """Why nothing can be rounded in a range; empty where it can."""
    if found is None:
        return "no range was observed"
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        return "no finite range was observed"
    return "nothing but zero was observed" if found.low == found.high == 0 else ""


def _result(node: ir.Node) -> ir.Value:
    """What a convolution's kernel gives: its result, through a bound that only it feeds."""
    value = node.outputs[0]
    user = _only_reader(value)
    return user.outputs[0] if user is not None and op(user) in FUSED and user.inputs[0] is value else value


def _only_reader(value: ir.Value) -> ir.Node | None:
    users = {user for user, _ in value.uses()}
    return users.pop() if len(users) == 1 and not value.is_graph_output() else None


def _round_results(found: Placement, ranges: Ranges) -> None:
    """Round what convolutions give, for all who read it."""
    for node in [node for node in found.products if op(node) == "Conv"]:
        value = _result(node)
        found.points[value] = ranges.tensors[value.name or ""]
        found.read_by_all(value)


def _round_between(graph: ir.Graph, found: Placement, scheme: Scheme) -> None:
    """Let sums and moves between quantised products work on what is rounded anyway.

    A residual sum in which one side is a convolution's result is then part of its kernel. The sums of a transformer,
    which normalisation follows, have no rounded operand: 8 bits would cost 12 dB there.
    """
    for node in graph:
        inputs = [value for value in node.inputs if value is not None and constant(value) is None]
        rounded = [value in found.points for value in inputs]
        if scheme.integers:
            joined = op(node) in ("Add", *MOVES) and all(rounded) and _result(node) in found.points
        else:
            makers = [value.producer() for value in inputs]
            joined = (
                scheme.signed
                and op(node) == "Add"
                and any(op(maker) == "Conv" and maker in found.products for maker in makers)
            )
        for place, value in enumerate(node.inputs) if joined else ():
            if value is not None and value in found.points:
                found.read(value, node, place)
        if joined and scheme.integers:  # whose kernel gives it only rounded
            found.read_by_all(_result(node))


def _small(graph: ir.Graph) -> dict[ir.Node, str]:
    """Products of pooled values: those that make a gate, and those with few weights, such as a small classifier.

    They hold next to nothing of the arithmetic. In float, the last layer alone is worth 0 to 5 dB on the zoo; the first
    one, which is no small part, is worth -2 to 1 dB and stays in.
    """
    pooled: set[ir.Value] = set()
    kept: dict[ir.Node, str] = {}
    for node in graph:
        inputs = [value for value in node.inputs if value is not None and constant(value) is None]
        if op(node) in _REDUCES or (inputs and pooled.issuperset(inputs)):
            pooled.update(node.outputs)
            weights = [tensor.size for value in node.inputs if (tensor := constant(value)) is not None]
            if op(node) in PRODUCTS and max(weights, default=0) < FEW_WEIGHTS:
                kept[node] = "it works on pooled values, too small to gain"
    for node in graph:
        if op(node) == "Mul" and len({value in pooled for value in node.inputs}) == 2:
            gate = next(value for value in node.inputs if value in pooled)
            for product in _upstream(gate, pooled):
                kept[product] = "it makes a gate, too small to gain"
    return kept


def _upstream(value: ir.Value | None, within: Collection[ir.Value]) -> Iterator[ir.Node]:
    """The products that a value is made by, as far back as values are `within`."""
    waiting, seen = [value], set()
    while waiting:
        node = item.producer() if (item := waiting.pop()) in within and item is not None else None
        if node is not None and node not in seen:
            seen.add(node)
            waiting += node.inputs
            if op(node) in PRODUCTS:
                yield node
