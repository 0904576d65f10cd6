"""Graphs with Q/DQ nodes: the numbers they stand for, and what the runtimes make of them."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgeattn.backends import backend_named
from edgeattn.backends.base import BuildConfig
from edgeattn.errors import UnsupportedError, UsageError
from edgeattn.fuse import fuse
from edgeattn.graph import Graph
from edgeattn.interpreter import run_as_written
from edgeattn.lowering import to_backend
from edgeattn.precision.int8.improve import quantise_best
from edgeattn.precision.int8.placement import SCHEMES
from edgeattn.precision.int8.qdq import Quantised, quantise
from edgeattn.precision.ranges import Range, Ranges
from edgeattn.tensors import resolve_profile
from edgeattn.zoo.data.sources import crop, photographs
from tests.graphs import FLOAT, graph_of
from tests.models import ZOO
from tests.precision.lowered import exported, observed, sqnr

Array = np.ndarray[Any, Any]


def photos(count: int, split: str, size: int = 32) -> Array:
    """Crops of real photographs: (count, 3, size, size), about -2 to 2."""
    rng, sources = np.random.default_rng(count), photographs(split)  # type: ignore[arg-type]
    crops = np.stack([crop(sources[index % len(sources)], size, rng) for index in range(count)])
    return ((crops / np.float32(127.5) - 1) * 2).astype(np.float32).transpose(0, 3, 1, 2).copy()


@functools.cache
def network(name: str) -> tuple[Graph, Ranges]:
    """A network fused, with a dynamic batch, and its ranges on photographs."""
    fused, _ = fuse(exported(name, dynamic=True)[0])
    images = photos(8, "train")
    samples = [{fused.inputs[0].name: images[index : index + 1]} for index in range(len(images))]
    return fused, observed(to_backend(fused, "openvino"), *samples)


def unseen(name: str) -> dict[str, Array]:
    """Photographs that the ranges do not know."""
    return {network(name)[0].inputs[0].name: photos(3, "test")}


def count(found: Quantised) -> dict[str, int]:
    return dict(found.graph.op_counts())


# The numbers


def rounded(values: Array, scale: Any, zero: Any, low: int, high: int) -> Array:
    return (np.clip(np.rint(values.astype(np.float64) / scale) + zero, low, high) - zero) * scale


def ranges_of(**spreads: tuple[float, float]) -> Ranges:
    return Ranges("minmax", 1, {name: Range(*ends, *ends) for name, ends in spreads.items()})


@settings(deadline=None, max_examples=40)
@given(
    scheme=st.sampled_from(list(SCHEMES)),
    shape=st.tuples(st.integers(1, 7), st.integers(1, 11), st.integers(1, 7)),
    transposed=st.booleans(),
    ends=st.tuples(st.floats(-8, 0), st.floats(0.25, 8)),
    seed=st.integers(0, 99),
)
def test_a_product_is_that_of_the_rounded_numbers(
    scheme: str, shape: tuple[int, int, int], transposed: bool, ends: tuple[float, float], seed: int
) -> None:
    (rows, inner, columns), (low, high) = shape, ends
    rng = np.random.default_rng(seed)
    x = rng.uniform(1.2 * low, 1.2 * high, (rows, inner)).astype(np.float32)  # some of it beyond the range
    w = rng.standard_normal((inner, columns)).astype(np.float32)
    w[:, seed % columns] *= 1e-3
    b = rng.standard_normal(columns).astype(np.float32)
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="product", transB=int(transposed))
    weights = {"w": w.T.copy() if transposed else w, "b": b}
    source = graph_of([node], [("x", FLOAT, ["n", inner])], [("y", FLOAT, ["n", columns])], weights)
    found = quantise(source, ranges_of(x=(low, high)), scheme)
    onnx.checker.check_model(found.graph.proto(), full_check=True)
    if scheme == "signed":
        s = max(-low, high) / 127
        xq = rounded(x, s, 0, -128, 127)
    else:
        s = (high - low) / 255
        xq = rounded(x, s, np.rint(-low / s), 0, 255)
    step = np.abs(w).max(0) / 127
    truth = xq @ rounded(w, step, 0, -127, 127) + b
    got = run_as_written(found.graph)({"x": x})["y"]
    # A value on the edge between two codes may go either way, in float32 and in float64.
    assert np.abs(got - truth).max() <= 1e-4 * np.abs(truth).max() + 1.01 * s * np.abs(w).max()
    assert np.median(np.abs(got - truth)) <= 1e-5 * np.abs(truth).max() + s * step.max()


def test_an_int32_bias_holds_however_small_the_weights() -> None:
    w = np.array([[1e-12, 1.0, 0.0]], np.float32)
    b = np.array([3.0, -100.0, 7.0], np.float32)
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="product")
    source = graph_of([node], [("x", FLOAT, [2, 1])], [("y", FLOAT, [2, 3])], {"w": w, "b": b})
    found = quantise(source, ranges_of(x=(-1e-3, 1e-3)), "unsigned")
    got = run_as_written(found.graph)({"x": np.array([[1e-3], [-1e-3]], np.float32)})["y"]
    np.testing.assert_allclose(got, np.array([[1e-3], [-1e-3]]) @ w + b, rtol=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_dead_channel_and_a_dead_weight_give_their_bias(scheme: str) -> None:
    w = np.zeros((3, 2, 3, 3), np.float32)
    w[1] = 0.5
    node = helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv")
    nodes = [node, helper.make_node("Tanh", ["c"], ["y"], name="end")]
    b = np.array([0.25, 0.0, -0.5], np.float32)
    source = graph_of(nodes, [("x", FLOAT, [1, 2, 5, 5])], [("y", FLOAT, [1, 3, 3, 3])], {"w": w, "b": b})
    found = quantise(source, ranges_of(x=(-1, 1), c=(-9, 9)), scheme)
    y = run_as_written(found.graph)({"x": np.full((1, 2, 5, 5), 0.5, np.float32)})["y"]
    np.testing.assert_allclose(y[0, :, 0, 0], np.tanh(np.array([0.25, 4.5, -0.5])), atol=0.04)


def test_scales_are_numbers_of_the_dtype_of_the_rest() -> None:
    rng = np.random.default_rng(0)
    w = (rng.standard_normal((5, 7)) * 1e-5).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    source = graph_of([node], [("x", FLOAT, [3, 5])], [("y", FLOAT, [3, 7])], {"w": w})
    found = quantise(source, ranges_of(x=(-1, 1)), "signed", rest="float16")
    scales = [v.const_value.numpy() for v in found.graph.model.graph.initializers.values() if "scale" in str(v.name)]
    assert len(scales) == 2
    for scale in scales:
        assert (scale > 0).all()
        np.testing.assert_array_equal(scale, scale.astype(np.float16).astype(np.float32))
    x = rng.uniform(-1, 1, (3, 5)).astype(np.float32)
    assert sqnr(run_as_written(found.graph)({"x": x}), {"y": x @ w}) > 25


# What is stored once, folded, or carried over


def test_what_several_read_is_rounded_and_stored_once() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], [f"y{i}"], name=f"product{i}") for i in range(3)]
    outputs = [(f"y{i}", FLOAT, [4, 6]) for i in range(3)]
    w = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    found = quantise(graph_of(nodes, [("x", FLOAT, [4, 5])], outputs, {"w": w}), ranges_of(x=(-1, 1)), "signed")
    assert count(found) == {"QuantizeLinear": 1, "DequantizeLinear": 2, "MatMul": 3}
    assert found.graph.weight_bytes()["int8"] == 30 + 6 + 1  # codes, zero points


def test_shared_weights_keep_valid_names_where_their_biases_differ_in_scale() -> None:
    nodes = [helper.make_node("Gemm", [f"x{i}", "w", "b"], [f"y{i}"], name=f"product{i}") for i in range(2)]
    inputs = [(f"x{i}", FLOAT, [4, 5]) for i in range(2)]
    weights = {"w": np.ones((5, 6), np.float32), "b": np.ones(6, np.float32)}
    source = graph_of(nodes, inputs, [(f"y{i}", FLOAT, [4, 6]) for i in range(2)], weights)
    found = quantise(source, ranges_of(x0=(-1, 1), x1=(-3, 3)), "unsigned")
    feeds = {f"x{i}": np.ones((4, 5), np.float32) for i in range(2)}
    for value in run_as_written(found.graph)(feeds).values():
        np.testing.assert_allclose(value, 6, rtol=0.02)


def convolution_and_norm(kind: str, opset: int) -> tuple[Graph, dict[str, Array]]:
    rng = np.random.default_rng(1)
    shape = (4, 3, 3, 3) if kind == "Conv" else (3, 4, 3, 3)
    weights = {
        "w": rng.standard_normal(shape).astype(np.float32),
        "b": rng.standard_normal(4).astype(np.float32),
        "gamma": np.array([1e-3, 1, 30, -2], np.float32),
        "beta": rng.standard_normal(4).astype(np.float32),
        "mean": rng.standard_normal(4).astype(np.float32),
        "var": np.array([0.01, 1, 4, 2], np.float32),
    }
    nodes = [
        helper.make_node(kind, ["x", "w", "b"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"], name="norm"),
        helper.make_node("Relu", ["n"], ["y"], name="relu"),
    ]
    source = graph_of(nodes, [("x", FLOAT, [1, 3, 7, 5])], [("y", FLOAT, [1, 4, None, None])], weights, opset)
    return source, {"x": rng.uniform(-1, 1, (1, 3, 7, 5)).astype(np.float32)}


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_batch_normalization_goes_into_the_weights(kind: str, opset: int) -> None:
    source, feeds = convolution_and_norm(kind, opset)
    found = quantise(source, ranges_of(x=(-1, 1)), "signed")
    assert "BatchNormalization" not in count(found)
    assert found.quantised == ("conv",)
    assert sqnr(run_as_written(found.graph)(feeds), run_as_written(source)(feeds)) > 35


def test_weights_behind_moves_and_casts_are_found() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Cast", ["w"], ["wide"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["wide"], ["turned"], name="turn", perm=[1, 0]),
        helper.make_node("Identity", ["turned"], ["same"], name="same"),
        helper.make_node("MatMul", ["x", "same"], ["y"], name="product"),
    ]
    w = rng.standard_normal((6, 5)).astype(np.float16)
    source = graph_of(nodes, [("x", FLOAT, [2, 5])], [("y", FLOAT, [2, 6])], {"w": w})
    found = quantise(source, ranges_of(x=(-1, 1)), "signed")
    assert count(found) == {"QuantizeLinear": 1, "DequantizeLinear": 2, "MatMul": 1}
    assert set(found.graph.weight_bytes()) == {"int8", "float32"}


@pytest.mark.parametrize(("opset", "done"), [(19, True), (18, False)])
def test_a_float16_model_is_quantised_from_the_opset_on_that_can(opset: int, done: bool) -> None:
    w = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float16)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    half = TensorProto.FLOAT16
    source = graph_of([node], [("x", half, [2, 5])], [("y", half, [2, 6])], {"w": w}, opset)
    if not done:
        with pytest.raises(UnsupportedError, match="FLOAT16 from opset 19 on"):
            quantise(source, ranges_of(x=(-1, 1)), "signed")
        return
    found = quantise(source, ranges_of(x=(-1, 1)), "signed")
    onnx.checker.check_model(found.graph.proto(), full_check=True)
    feeds = {"x": np.linspace(-1, 1, 10, dtype=np.float16).reshape(2, 5)}
    assert sqnr(run_as_written(found.graph)(feeds), run_as_written(source)(feeds)) > 30


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_added_to_columns_is_no_bias_of_weights_on_the_left(scheme: str) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["w", "x"], ["m"], name="left"),
        helper.make_node("Add", ["m", "b"], ["a"], name="columns"),
        helper.make_node("MatMul", ["a", "v"], ["n"], name="single"),
        helper.make_node("Add", ["n", "c"], ["y"], name="spread"),
    ]
    shapes = {"w": (5, 6), "b": (5,), "v": (5, 1), "c": (3,)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    source = graph_of(nodes, [("x", FLOAT, [6, 5])], [("y", FLOAT, [5, 3])], weights)
    feeds = {"x": rng.uniform(-1, 1, (6, 5)).astype(np.float32)}
    found = quantise_best(source, observed(source, feeds), scheme, samples=[feeds] * 8)
    assert sqnr(run_as_written(found.graph)(feeds), run_as_written(source)(feeds)) > 35


# What is refused


def test_a_quantised_graph_is_not_quantised_again() -> None:
    fused, ranges = network("cbam")
    again = quantise(fused, ranges, "signed").graph
    with pytest.raises(UsageError, match="quantised already"):
        quantise(again, ranges, "signed")


def test_a_name_that_is_not_there_is_refused_with_the_nearest() -> None:
    fused, ranges = network("cbam")
    name = next(str(node.name) for node in fused.model.graph if node.op_type == "Conv")
    with pytest.raises(UsageError, match=f"did you mean '?{name}"):
        quantise(fused, ranges, "signed", [f"{name}x"])


def test_nothing_to_quantise_is_an_error_with_every_reason() -> None:
    fused, ranges = network("vit")
    products = [str(node.name) for node in fused.model.graph if node.op_type in ("Conv", "Gemm", "MatMul")]
    with pytest.raises(UnsupportedError, match="kept high as asked"):
        quantise(fused, ranges, "signed", products)


def test_the_notes_say_what_is_in_int8_and_why_the_rest_is_not() -> None:
    fused, ranges = network("vit")
    head = next(str(node.name) for node in fused.model.graph if node.op_type == "Gemm")
    found = quantise(fused, ranges, "signed", [head])
    assert found.notes[0] == "INT8: 8 MatMul, 1 Conv"
    assert f"stays in float: Gemm {head!r}: kept high as asked" in found.notes
    assert sum("an attention is one unit" in note for note in found.notes) == 1
    assert found.kept[head] == "kept high as asked"
    assert len(found.quantised) == 9


# The runtimes


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("name", ZOO)
def test_engines_are_close_on_photographs_and_compute_in_int8(name: str, backend: str) -> None:
    fused, ranges = network(name)
    module = backend_named(backend)
    found = quantise(fused, ranges, module.INT8)
    typed = to_backend(found.graph, backend)
    engine = module.build(typed, BuildConfig(precision="int8", profile=resolve_profile(typed.inputs)))
    assert engine.sidecar.precision.compute["int8"] >= len(found.quantised)
    feeds = unseen(name)
    with module.load(engine) as session:
        got = session.run(feeds)
    truth = run_as_written(to_backend(fused, backend))(feeds)
    assert sqnr(got, truth) > 20
    assert sqnr(got, truth) > sqnr(run_as_written(typed)(feeds), truth) - 4  # what it computes wrong costs 20


@pytest.mark.parametrize("name", ZOO)
def test_tensorrt_rtx_builds_it_strongly_typed_and_without_a_warning(name: str) -> None:
    module = backend_named("tensorrt-rtx")
    if reasons := module.missing(running=False):
        pytest.skip("; ".join(reasons))
    fused, ranges = network(name)
    found = quantise(fused, ranges, module.INT8)
    typed = to_backend(found.graph, "tensorrt-rtx")
    config = BuildConfig(precision="int8", profile=resolve_profile(typed.inputs), targets=("sm_86",))
    engine = module.build(typed, config)
    assert engine.sidecar.precision.compute["int8"] == len(found.quantised)
    assert engine.sidecar.precision.notes == ()


@pytest.mark.parametrize("name", ZOO)
def test_onnxruntime_has_integer_kernels_for_all_of_it(name: str, tmp_path: Path) -> None:
    fused, ranges = network(name)
    found = quantise(fused, ranges, "unsigned")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(to_backend(found.graph, "onnxruntime").serialized, options, ["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    assert kinds["QLinearConv"] + kinds["QGemm"] + kinds["MatMulIntegerToFloat"] >= len(found.quantised)
