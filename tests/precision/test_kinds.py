"""Every kind of node, constant, input and output, lowered."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from edgeattn.errors import UsageError
from edgeattn.graph import Graph
from edgeattn.precision.fp16 import lower
from edgeattn.tolerance import tolerance_for
from tests.precision.lowered import BOTH, assert_close, by_op, checked, distance, graph, normal, reference, run


def test_control_flow_stays_float32_and_what_it_captures_is_cast() -> None:
    source = graph(
        """g (float[2,3] x, bool c) => (float[2,3] y) <float[3,3] w = {1,2,3,4,5,6,7,8,9}>
        { r = MatMul(x, w)
          z = If(c) <then_branch = t () => (float[2,3] a) { k = Relu(r)  a = MatMul(k, w) },
                     else_branch = e () => (float[2,3] b) { b = Neg(r) }>
          y = Sigmoid(z) }"""
    )
    lowered = checked(source)
    for choice in (True, False):
        feeds = {"x": normal(2, 3), "c": np.array(choice)}
        assert_close(lowered, source, feeds)
        run(lowered.graph, feeds)
    weights = lowered.graph.weight_bytes()
    assert weights == {"float32": 36, "float16": 18}


def test_a_loop_stays_float32() -> None:
    source = graph(
        """g (float[2,3] x, int64 n) => (float[2,3] y)
        <float[3,3] w = {0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9}, bool t = {1}>
        { r = MatMul(x, w)
          z = Loop(n, t, r) <body = b (int64 i, bool c, float[2,3] s) => (bool d, float[2,3] o)
            { d = Identity(c)  m = MatMul(s, w)  k = Add(m, r)  o = Tanh(k) }>
          y = Sigmoid(z) }"""
    )
    assert_close(checked(source), source, {"x": normal(2, 3), "n": np.array(3)})


def test_model_local_functions_are_inlined() -> None:
    source = graph(
        """g (float[1,4,5,5] x) => (float[1,4,5,5] y) { a = edgeattn.Gate(x)  y = edgeattn.Gate(a) }
        <domain: "edgeattn", opset_import: ["": 18]> Gate (x) => (y)
        { ax = Constant<value_ints = [2,3]>()  m = ReduceMean(x, ax)  s = Sigmoid(m)  y = Mul(x, s) }""",
        domains=', "edgeattn": 1',
    )
    lowered = checked(source)
    assert lowered.graph.op_counts()["Sigmoid"] == 2
    assert by_op(lowered)["Mul"] == {"float16"}
    assert_close(lowered, source, {"x": normal(1, 4, 5, 5)})


def test_operators_of_other_domains_stay_float32_whatever_they_are_called() -> None:
    source = graph(
        """g (float[1,4] x) => (float[1,4] y) <float[4] w = {1,2,3,4}>
        { a = Mul(x, w)  b = other.Pow(a)  c = Add(b, w)  d = other.Exp(c)  e = Relu(d)  y = Sigmoid(e) }""",
        domains=', "other": 1',
    )
    for dtype in BOTH:
        found = by_op(checked(source, dtype))
        assert found["Pow"] == found["Exp"] == {"float32"}
        assert found["Mul"] == found["Add"] == found["Relu"] == found["Sigmoid"] == {dtype}


def test_sequences_stay_float32() -> None:
    source = graph(
        """g (float[4,2] x) => (float[4,2] y)
        { r = Relu(x)  s = SplitToSequence<axis=0>(r)  z = ConcatFromSequence<axis=0>(s)  y = Sigmoid(z) }""",
        opset=17,
    )
    assert_close(checked(source), source, {"x": normal(4, 2)})


def test_an_operator_without_float16_stays_float32_and_is_named() -> None:
    source = graph("g (float[2,3] x) => (float[2,3] y) <int64 a = {1}> { r = Relu(x)  y = CumSum(r, a) }", opset=13)
    lowered = checked(source)
    assert_close(lowered, source, {"x": normal(2, 3)})
    assert lowered.notes == ("stays float32: CumSum 'node_1': CumSum of opset 13 computes in float32",)


def test_float64_is_left_alone() -> None:
    source = graph(
        """g (float[2] x, double[2] u) => (double[2] y, float[2] z)
        { r = Relu(x)  d = Cast<to=11>(r)  y = Add(d, u)  f = Cast<to=1>(y)  z = Sigmoid(f) }"""
    )
    lowered = checked(source)
    assert_close(lowered, source, {"x": normal(2), "u": np.ones(2)})
    assert by_op(lowered)["Add"] == {"float64"}


def test_constants_of_every_kind_become_stored_numbers() -> None:
    source = graph(
        """g (float[1,3] x) => (float[1,3] y)
        { a = Constant<value_float = 0.5>()  b = Constant<value_floats = [1.0,2.0,3.0]>()
          c = Constant<value = float[1] {3}>()
          s = Constant<value_ints = [1,3]>()  d = ConstantOfShape<value = float[1] {7}>(s)  e = ConstantOfShape(s)
          f = Mul(x, a)  g = Add(f, b)  h = Mul(g, c)  i = Add(h, d)  y = Add(i, e) }"""
    )
    lowered = checked(source)
    assert_close(lowered, source, {"x": normal(1, 3)})
    assert lowered.graph.op_counts()["Cast"] == 2
    assert by_op(lowered)["ConstantOfShape"] == {"float16"}


def test_an_extreme_fill_is_an_island_too() -> None:
    source = graph(
        """g (float[1,3] x) => (float[1,3] y) <int64[2] s = {1,3}>
        { d = ConstantOfShape<value = float[1] {-1e9}>(s)  a = Add(x, d)  y = Softmax(a) }"""
    )
    assert_close(checked(source), source, {"x": normal(1, 3)})


def test_random_numbers_are_drawn_in_float32() -> None:
    source = graph(
        "g (float[1,3] x) => (float[1,3] y) { r = RandomNormal<shape = [1,3]>()  a = Add(x, r)  y = Relu(a) }"
    )
    lowered = checked(source)
    assert by_op(lowered)["RandomNormal"] == {"float32"}
    run(lowered.graph, {"x": normal(1, 3)})


@pytest.mark.parametrize("keep_io_types", [True, False])
def test_weights_wanted_in_both_dtypes_are_stored_twice(keep_io_types: bool) -> None:
    source = graph(
        """g (float[2,3] x) => (float[2,3] y, float[3,3] z) <float[3,3] w = {1,2,3,4,5,6,7,8,9}, int64 a = {0}>
        { y = MatMul(x, w)  z = CumSum(w, a) }""",
        opset=13,
    )
    lowered = checked(source, keep_io_types=keep_io_types)
    assert lowered.graph.weight_bytes() == {"float32": 36, "float16": 18, "int64": 8}
    assert sorted(lowered.graph.model.graph.initializers) == ["a", "w", "w_float16"]


@pytest.mark.parametrize("keep_io_types", [True, False])
def test_inputs_and_weights_that_are_outputs_keep_their_names(keep_io_types: bool) -> None:
    source = graph(
        """g (float[2,3] x, float[2,3] p) => (float[2,3] x, float[3] w, float[3] c, float[3,2] t, float[2,3] y,
        float[2,3] z) <float[3] w = {1,2,3}>
        { c = Constant<value_floats = [1.0,2.0,3.0]>()  t = Transpose(p)  a = Mul(x, w)  y = Mul(a, c)
          z = Sigmoid(y) }"""
    )
    lowered = checked(source, keep_io_types=keep_io_types)
    feeds = {"x": normal(2, 3), "p": normal(2, 3, seed=1)}
    truth = run(source, feeds)
    found = run(lowered.graph, feeds if keep_io_types else {k: v.astype(np.float16) for k, v in feeds.items()})
    assert all(distance(found[name], truth[name]) <= tolerance_for("float16").floor for name in truth)
    if keep_io_types:
        np.testing.assert_array_equal(found["t"], feeds["p"].T)  # data that only moves is not rounded
        np.testing.assert_array_equal(found["x"], feeds["x"])


def test_initializers_listed_as_inputs_are_weights() -> None:
    source = graph("g (float[2,3] x, float[3] w = {1,2,3}) => (float[2,3] y) { y = Mul(x, w) }")
    assert checked(source).graph.weight_bytes() == {"float16": 6}


def test_taken_names_are_not_taken_again() -> None:
    source = graph(
        """g (float[2] x, float[2] x_float16) => (float[2] y)
        { y_float16 = Relu(x)  a = Add(y_float16, x_float16)  y = Neg(a) }"""
    )
    assert_close(checked(source), source, {"x": normal(2), "x_float16": normal(2, seed=1)})


def test_questions_about_a_value_need_no_cast() -> None:
    source = graph(
        """g (float[2,3] x) => (int64[2] s, int64[2] k, bool[2,3] b, float[2,3] y) <float h = {0.5}>
        { s = Shape(x)  k = ArgMax<axis=1, keepdims=0>(x)  b = Greater(x, h)  y = Relu(x) }"""
    )
    lowered = checked(source)
    assert lowered.graph.op_counts()["Cast"] == 2
    x = np.array([[0.5, 0.50001, 0.4], [1.0, 1.00001, 0.2]], np.float32)
    assert reference(lowered.graph, {"x": x})["k"].tolist() == [1, 1]


def test_external_weights_are_converted(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> g (float[1,9] x) => (float[1,9] y) { y = MatMul(x, w) }'
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(normal(9, 9), "w"))
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="w.bin")
    source = Graph(ir.load(tmp_path / "m.onnx"))
    for dtype in BOTH:
        assert checked(source, dtype).graph.weight_bytes() == {dtype: 162}


def test_bfloat16_weights_are_rounded_to_nearest() -> None:
    values = normal(7, 11)
    numbers = ",".join(repr(float(value)) for value in values.ravel())
    source = graph(f"g (float[1,7] x) => (float[1,11] y) <float[7,11] w = {{{numbers}}}> {{ y = MatMul(x, w) }}")
    stored = checked(source, "bfloat16").graph.model.graph.initializers["w"].const_value
    assert stored is not None
    np.testing.assert_array_equal(stored.numpy(), values.astype(ml_dtypes.bfloat16))


def test_a_graph_that_holds_the_dtype_is_left_as_it_is() -> None:
    source = graph("g (float16[2] x) => (float[2] y) { r = Relu(x)  f = Cast<to=1>(r)  y = Sigmoid(f) }")
    lowered = lower(source, "fp16")
    assert lowered.graph is source
    assert lowered.notes == ("the graph already computes in float16: left as it is",)


def test_a_graph_without_floats_stays() -> None:
    source = graph("g (int64[2] x) => (int64[2] y) { y = Neg(x) }")
    assert checked(source).graph.op_counts() == source.op_counts()


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_another_dtype_is_refused(dtype: str) -> None:
    with pytest.raises(UsageError, match="expected float16 or bfloat16"):
        lower(graph("g (float[2] x) => (float[2] y) { y = Relu(x) }"), dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_that_ir_version_3_lists_as_inputs_stay_weights(dtype: str) -> None:
    weights = {"w": np.arange(81, dtype=np.float32).reshape(9, 9), "s": np.array([9, 1], np.int64)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Reshape", ["y", "s"], ["z"])]
    inputs = [helper.make_tensor_value_info(*item) for item in (("x", 1, [1, 9]), ("w", 1, [9, 9]), ("s", 7, [2]))]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "old", inputs, [helper.make_tensor_value_info("z", 1, [9, 1])], tensors)
    old = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=3)
    lowered = lower(Graph(ir.from_proto(old)), dtype).graph
    assert [spec.name for spec in lowered.inputs] == ["x"]
    onnx.checker.check_model(lowered.proto(), full_check=True)
    assert lowered.model.ir_version >= 4
