"""What is quantised and what is not: by the role in the graph, on hand-made graphs and on exported models."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgeattn.fuse import fuse
from edgeattn.graph import Graph
from edgeattn.lowering import to_backend
from edgeattn.ops.base import DOMAIN
from edgeattn.precision.int8.placement import SCHEMES, Placement, place
from edgeattn.precision.ranges import Range, Ranges
from tests.precision.lowered import exported, observed

SPREAD = Range(-1.0, 1.0, -1.0, 1.0)


def graph(body: str, weights: dict[str, tuple[int, ...]], inputs: str = "float[1,4,8,8] x", opset: int = 18) -> Graph:
    """A graph from its nodes, with an output y and weights of these shapes."""
    text = f'<ir_version: 9, opset_import: ["": {opset}]> g ({inputs}) => (float y) {{ {body} }}'
    model = ir.from_onnx_text(text)
    rng = np.random.default_rng(0)
    for name, shape in weights.items():
        tensor = ir.tensor(rng.standard_normal(shape).astype(np.float32), name=name)
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)
        for node in model.graph:
            for index, item in enumerate(node.inputs):
                if item is not None and item.name == name:
                    node.replace_input_with(index, value)
        model.graph.register_initializer(value)
    for node in model.graph:
        node.name = node.outputs[0].name
        for value in node.outputs:
            value.type = ir.TensorType(ir.DataType.FLOAT)
    return Graph(model)


def placed(source: Graph, scheme: str = "shifted", ranges: dict[str, Range] | None = None) -> Placement:
    names = [value.name for node in source.model.graph for value in node.outputs] + [s.name for s in source.inputs]
    tensors = {str(name): SPREAD for name in names} | (ranges or {})
    return place(source.model.graph, source.opset, Ranges("minmax", 1, tensors), SCHEMES[scheme], ())


def names(found: Placement) -> set[str]:
    return {str(node.name) for node in found.products}


def kept(found: Placement) -> dict[str, str]:
    return {str(node.name): reason for node, reason in found.kept.items()}


def readers(found: Placement) -> dict[str, set[str]]:
    """By the name of a rounded value, the nodes that read it rounded."""
    return {str(value.name): {str(node.name) for node, _ in users} for value, users in found.readers.items()}


@pytest.mark.parametrize(
    ("body", "weights", "axis"),
    [
        ("y = Conv <group = 2> (x, w)", {"w": (6, 2, 3, 3)}, 0),
        ("y = ConvTranspose (x, w)", {"w": (4, 6, 3, 3)}, 1),
        ("y = MatMul (x, w)", {"w": (8, 5)}, 1),
        ("y = MatMul (w, x)", {"w": (5, 8)}, 0),
        ("f = Flatten (x) y = Gemm (f, w)", {"w": (256, 5)}, 1),
        ("f = Flatten (x) y = Gemm <transB = 1> (f, w)", {"w": (5, 256)}, 0),
    ],
)
def test_each_output_channel_has_a_scale_of_its_own(body: str, weights: dict[str, tuple[int, ...]], axis: int) -> None:
    (product,) = placed(graph(body, weights)).products.values()
    assert product.axis == axis
    assert product.node.inputs[product.w] is not None
    assert product.node.inputs[product.w].name == "w"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("body", "weights", "scheme", "reason"),
    [
        ("k = Relu (x) y = MatMul (x, k)", {}, "shifted", "both operands are computed"),
        ("k = Relu (w) y = Conv (x, k)", {"w": (4, 4, 3, 3)}, "shifted", "its weights are computed"),
        ("y = ConvTranspose <group = 2> (x, w)", {"w": (4, 3, 3, 3)}, "shifted", "no scale per channel"),
        ("y = ConvTranspose (x, w)", {"w": (4, 6, 3, 3)}, "unsigned", "no integer transposed convolution"),
        ("y = MatMul (w, x)", {"w": (5, 8)}, "unsigned", "weights on the left"),
        ("y = MatMul (x, w)", {"w": (8,)}, "shifted", "a vector"),
        ("f = Flatten (x) y = Gemm <alpha = 0.5> (f, w)", {"w": (256, 5)}, "signed", "scaled by alpha"),
        ("y = Conv (x, w)", {"w": (6, 4, 3, 3)}, "unsigned", "an output of the graph"),
        ("b = Flatten (x) f = Flatten (x) y = Gemm (f, w, b)", {"w": (256, 256)}, "unsigned", "no constant vector"),
    ],
)
def test_what_cannot_be_quantised_says_why(
    body: str, weights: dict[str, tuple[int, ...]], scheme: str, reason: str
) -> None:
    found = placed(graph(body, weights), scheme)
    assert not found.products
    assert reason in kept(found)["y"]


@pytest.mark.parametrize(
    ("spread", "reason"),
    [
        (Range(0, 0, 0, 0), "nothing but zero"),
        (Range(-1, np.inf, -1, np.inf), "no finite range"),
        (Range(np.nan, np.nan, np.nan, np.nan), "no finite range"),
    ],
)
def test_a_range_that_gives_no_scale_is_refused_with_the_reason(spread: Range, reason: str) -> None:
    found = placed(graph("y = Conv (x, w)", {"w": (6, 4, 3, 3)}), ranges={"x": spread})
    assert reason in kept(found)["y"]


def test_a_value_that_was_not_observed_is_not_rounded() -> None:
    source = graph("y = Conv (x, w)", {"w": (6, 4, 3, 3)})
    found = place(source.model.graph, 18, Ranges("minmax", 1, {}), SCHEMES["signed"], ())
    assert kept(found) == {"y": "no range was observed of its input"}


def test_a_gate_and_a_small_head_stay_in_float_and_a_large_head_does_not() -> None:
    source = graph(
        "a = Conv (x, w1) p = GlobalAveragePool (a) s = Conv (p, w2) r = Relu (s) t = Conv (r, w3) g = Sigmoid (t) "
        "m = Mul (a, g) q = GlobalAveragePool (m) f = Flatten (q) h = Gemm (f, w4) y = Gemm (h, w5)",
        {"w1": (6, 4, 3, 3), "w2": (2, 6, 1, 1), "w3": (6, 2, 1, 1), "w4": (6, 11000), "w5": (11000, 2)},
    )
    found = placed(source)
    assert names(found) == {"a", "h"}
    assert "pooled values" in kept(found)["y"]
    assert {name for name, reason in kept(found).items() if "gate" in reason} == {"s", "t"}


def test_a_spatial_gate_stays_in_float() -> None:
    source = graph(
        "m = ReduceMean <keepdims = 1> (x, axis) s = Conv <pads = [3, 3, 3, 3]> (m, w) g = Sigmoid (s) z = Mul (x, g) "
        "y = Conv (z, v)",
        {"w": (1, 1, 7, 7), "v": (6, 4, 3, 3), "axis": (1,)},
    )
    assert names(placed(source)) == {"y"}


def test_swish_is_no_gate() -> None:
    source = graph(
        "a = Conv (x, w) s = Sigmoid (a) z = Mul (a, s) y = Conv (z, v)", {"w": (6, 4, 3, 3), "v": (6, 6, 3, 3)}
    )
    assert names(placed(source)) == {"a", "y"}


RESIDUAL = (
    "a = Relu (x) b = Conv <pads = [1, 1, 1, 1]> (a, w) c = Relu (b) d = Conv <pads = [1, 1, 1, 1]> (c, v) "
    "e = Add (d, a) f = Relu (e) h = Conv (f, u) i = Relu (h) y = Sigmoid (i)"
)
WEIGHTS = {"w": (4, 4, 3, 3), "v": (4, 4, 3, 3), "u": (4, 4, 3, 3)}


def test_a_residual_sum_takes_the_rounded_shortcut_where_the_sum_is_part_of_a_kernel() -> None:
    source = graph(RESIDUAL, WEIGHTS)
    assert readers(placed(source, "shifted"))["a"] == {"b"}
    assert readers(placed(source, "signed"))["a"] == {"b", "e"}


def test_integer_kernels_get_rounded_results_behind_their_bound() -> None:
    source = graph(RESIDUAL, WEIGHTS)
    expected = {"a": {"b", "e"}, "c": {"d"}, "d": {"e"}, "f": {"h"}, "i": {"y"}}
    assert readers(placed(source, "unsigned")) == expected


def test_the_sums_of_a_transformer_are_not_rounded() -> None:
    source, feeds = exported("vit")
    fused, _ = fuse(source)
    ranges = observed(to_backend(fused, "openvino"), feeds)
    for scheme in SCHEMES.values():
        found = place(fused.model.graph, fused.opset, ranges, scheme, ())
        kinds = {node.op_type for users in found.readers.values() for node, _ in users}
        assert kinds <= {"Conv", "MatMul", "Gemm"} | ({"Reshape"} if scheme.integers else set())


@pytest.mark.parametrize("name", ["cbam", "vit", "nonlocal", "unet"])
@pytest.mark.parametrize("scheme", ["signed", "shifted"])
def test_an_attention_is_one_unit_with_nothing_rounded_inside(name: str, scheme: str) -> None:
    source, feeds = exported(name)
    fused, report = fuse(source)
    assert report.found
    ranges = observed(to_backend(fused, "openvino"), feeds)
    found = place(fused.model.graph, fused.opset, ranges, SCHEMES[scheme], ())
    attentions = {node for node in fused.model.graph if node.domain == DOMAIN}
    assert attentions <= set(found.kept)
    assert not attentions & {node for users in found.readers.values() for node, _ in users}
