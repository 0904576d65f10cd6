"""What stays in float32 by what stands in the graph."""

from __future__ import annotations

import numpy as np
import pytest

from tests.precision.lowered import (
    BOTH,
    assert_close,
    by_op,
    checked,
    dtypes,
    exported,
    graph,
    normal,
    observed,
    reference,
)


@pytest.mark.parametrize("bound", ["-1e9", "-3.4028234e38"])
def test_a_mask_made_of_arithmetic_stays_float32_up_to_the_softmax(bound: str) -> None:
    source = graph(
        f"""g (float[2,3,3] s, float[2,1,3] m) => (float[2,3,3] y) <float big = {{{bound}}}, float one = {{1}}>
        {{ hidden = Sub(one, m)  bias = Mul(hidden, big)  z = Add(s, bias)  p = Softmax<axis=-1>(z)
          y = MatMul(p, s) }}"""
    )
    feeds = {"s": normal(2, 3, 3), "m": np.array([[[1, 1, 0]], [[0, 0, 0]]], np.float32)}
    lowered = checked(source)
    assert_close(lowered, source, feeds)
    assert by_op(lowered)["Softmax"] == {"float32"}
    assert by_op(lowered)["MatMul"] == {"float16"}


def test_an_infinite_mask_is_no_island() -> None:
    source = graph(
        """g (float[2,3] s, bool[2,3] m) => (float[2,3] y) <float no = {-inf}>
        { z = Where(m, s, no)  y = Softmax(z) }"""
    )
    lowered = checked(source)
    assert lowered.notes == ()
    assert_close(lowered, source, {"s": normal(2, 3), "m": np.array([[True, False, True], [True, True, False]])})


@pytest.mark.parametrize(
    ("body", "op", "held"),
    [
        ("a = Add(x, c)  b = Tanh(a)", "Add", "1e6"),
        ("a = Clip(x, , c)", "Clip", "3.4e38"),
        ("a = Min(x, c)", "Min", "3.4e38"),
        ("a = Div(x, c)", "Div", "1e6"),
        ("a = Add(x, c)  b = Clip(a, m, n)", "Add", "1e6"),
        ("a = Mul(x, c)", "Mul", "1e-9"),
    ],
    ids=["tanh", "far clip", "far min", "large divisor", "clip", "tiny factor"],
)
def test_an_island_ends_where_values_are_ordinary_again(body: str, op: str, held: str) -> None:
    last = "b" if "b =" in body else "a"
    source = graph(
        f"""g (float[5] x) => (float[5] y)
        <float c = {{{held}}}, float m = {{-2}}, float n = {{3}}, float[5] w = {{1,2,3,4,5}}>
        {{ {body} z = Mul({last}, w)  y = Sigmoid(z) }}"""
    )
    lowered = checked(source)
    assert by_op(lowered)[op] >= {"float32"}
    assert by_op(lowered)["Sigmoid"] == {"float16"}
    assert_close(lowered, source, {"x": normal(5)})


def test_an_island_goes_on_through_what_does_not_bound() -> None:
    source = graph(
        """g (float[2,3] x) => (float[2,3] y)
        <float c = {1e9}, int64[2] s = {2,3}, float half = {0.5}, float[3,3] w = {1,2,3,4,5,6,7,8,9}>
        { a = Mul(x, c)  b = Reshape(a, s)  d = MatMul(b, w)  e = Mul(d, half)  y = Softsign(e) }"""
    )
    lowered = checked(source)
    assert "float16" not in {dtype for name, dtype in dtypes(lowered).items() if "to_float" not in name}
    assert "and 2 more" in lowered.notes[0]


def test_normalising_by_a_clamped_norm_stays_float32_up_to_the_division() -> None:
    source, feeds = exported("cosine")
    lowered = checked(source)
    assert by_op(lowered)["Div"] == {"float32"}
    zero = {name: np.zeros_like(value) for name, value in feeds.items()}
    assert_close(lowered, source, feeds)
    assert all(np.isfinite(value).all() for value in reference(lowered.graph, zero).values())


@pytest.mark.parametrize("dtype", BOTH)
def test_a_written_out_layer_norm_does_not_overflow(dtype: str) -> None:
    source, feeds = exported("channels-first norm")
    lowered = checked(source, dtype)
    assert_close(lowered, source, feeds, dtype)
    assert lowered.notes == ()
    assert lowered.graph.op_counts()["LayerNormalization"] == 1
    assert lowered.graph.op_counts()["Cast"] == 2


@pytest.mark.parametrize(
    "body",
    [
        "q = Mul(r, r)  v = ReduceMean(q, ax)  w = Add(v, eps)  s = Sqrt(w)  i = Reciprocal(s)  y = Mul(r, i)",
        "q = Pow(r, two)  v = ReduceMean(q, ax)  w = Add(v, eps)  s = Sqrt(w)  y = Div(r, s)",
        "q = Mul(r, r)  v = ReduceMean(q, ax)  m = ReduceMean(r, ax)  mm = Mul(m, m)  c = Sub(v, mm)  w = Add(c, eps)"
        " s = Sqrt(w)  d = Sub(r, m)  y = Div(d, s)",
        "v = ReduceSumSquare(r, ax)  s = Sqrt(v)  y = Div(r, s)",
        "s = ReduceL2(r, ax)  y = Div(r, s)",
        "v = LpNormalization<p=2, axis=1>(r)  y = Identity(v)",
    ],
    ids=["rms", "pow", "mean of squares", "sum square", "l2", "lp"],
)
def test_sums_of_squares_survive_large_values(body: str) -> None:
    source = graph(
        f"""g (float[3,7] x) => (float[3,7] y) <int64[1] ax = {{1}}, float eps = {{1e-6}}, float two = {{2}}>
        {{ r = Relu(x)  {body} }}"""
    )
    lowered = checked(source)
    feeds = {"x": np.abs(normal(3, 7)) * 3000}
    assert by_op(lowered)["Relu"] == {"float16"}
    assert_close(lowered, source, feeds)


def test_a_square_that_is_not_summed_is_lowered() -> None:
    source = graph(
        "g (float[3] x) => (float[3] y) <float three = {3}> { s = Mul(x, x)  c = Pow(s, three)  y = Tanh(c) }"
    )
    assert checked(source).notes == ()


def test_a_written_out_softmax_does_not_overflow() -> None:
    source = graph(
        "g (float[3,7] x) => (float[3,7] y) <int64[1] ax = {1}> { e = Exp(x)  s = ReduceSum(e, ax)  y = Div(e, s) }"
    )
    assert_close(checked(source), source, {"x": normal(3, 7) * 5 + 10})


def test_a_mean_written_as_a_sum_does_not_overflow() -> None:
    source = graph(
        """g (float[1,2,h,w] x) => (float[1,2,1,1] y) <int64[1] a = {2}, int64[1] b = {4}, int64[2] hw = {2,3}>
        { r = Relu(x)  s = Shape(x)  d = Slice(s, a, b)  p = ReduceProd<keepdims=0>(d)  n = Cast<to=1>(p)
          t = ReduceSum(r, hw)  y = Div(t, n) }"""
    )
    assert_close(checked(source), source, {"x": np.ones((1, 2, 300, 301), np.float32)})


@pytest.mark.parametrize(
    "pool",
    [
        "GlobalAveragePool(r)",
        "ReduceMean(r, hw)",
        "ReduceSum(r, hw)",
        "AveragePool<kernel_shape = [128,128]>(r)",
    ],
)
def test_a_sum_of_many_numbers_stays_float32_and_one_of_few_does_not(pool: str) -> None:
    for side, dtype in ((128, "float32"), (96, "float16")):
        source = graph(
            f"""g (float[1,2,{side},{side}] x) => (float[1,2,1,1] y) <int64[2] hw = {{2,3}}>
            {{ r = Relu(x)  p = {pool.replace("128", str(side))}  y = Tanh(p) }}"""
        )
        lowered = checked(source)
        assert by_op(lowered)[pool.partition("(")[0].partition("<")[0]] == {dtype}
        assert by_op(lowered)["Relu"] == {"float16"}


def test_instance_norm_may_compute_its_statistics_in_the_dtype_of_its_input() -> None:
    source = graph(
        """g (float[1,2,5,5] x) => (float[1,2,5,5] y) <float[2] s = {1,2}, float[2] b = {0,1}>
        { r = Relu(x)  n = InstanceNormalization(r, s, b)  y = Tanh(n) }"""
    )
    large, small = ({"x": gain * np.abs(normal(1, 2, 5, 5))} for gain in (3000, 1))
    assert_close(checked(source), source, large)
    assert by_op(checked(source))["InstanceNormalization"] == {"float32"}
    assert by_op(checked(source, ranges=observed(source, large)))["InstanceNormalization"] == {"float32"}
    assert checked(source, ranges=observed(source, small)).notes == ()


def test_batch_norm_statistics_beyond_float16_stay() -> None:
    source = graph(
        """g (float[1,2,3,3] x) => (float[1,2,3,3] y)
        <float[2] s = {1,2}, float[2] b = {0,1}, float[2] m = {0,3}, float[2] v = {1e6,4}>
        { r = Relu(x)  n = BatchNormalization(r, s, b, m, v)  y = Relu(n) }"""
    )
    lowered = checked(source)
    assert by_op(lowered)["BatchNormalization"] == {"float32"}
    assert by_op(lowered)["Relu"] == {"float16"}
    assert_close(lowered, source, {"x": normal(1, 2, 3, 3)})


# ---- shapes and indices


def test_shape_arithmetic_in_floats_is_exact() -> None:
    """2 * 2049 / 2 is 2049 in float32, and 2048 in float16."""
    source = graph(
        """g (float[1,1,1,w] x) => (float[1,1,1,v] y)
        <float two = {2}, int64[1] a = {3}, int64[1] b = {4}, int64[1] nc = {0}, int64[1] e = {3}>
        { r = Relu(x)  s = Shape(r)  d = Slice(s, a, b)  f = Cast<to=1>(d)  g = Mul(f, two)  h = Div(g, two)
          k = Floor(h)  i = Cast<to=7>(k)  n = Slice(s, nc, e)  size = Concat<axis=0>(n, i)
          y = Resize<mode="nearest">(r, , , size) }"""
    )
    lowered = checked(source)
    found = reference(lowered.graph, {"x": normal(1, 1, 1, 2049)})
    assert found["y"].shape == (1, 1, 1, 2049)
    assert by_op(lowered)["Resize"] == {"float16"}
    assert "shape and index arithmetic" in lowered.notes[0]


def test_scales_of_a_resize_stay_and_its_image_does_not() -> None:
    source = graph(
        """g (float[1,2,3,5] x, float[4] s) => (float[1,2,h,w] y) <float[4] one = {1,1,1,1}>
        { t = Mul(s, one)  y = Resize<mode="linear">(x, , t) }"""
    )
    lowered = checked(source)
    resize = next(node for node in lowered.graph.nodes() if node.op_type == "Resize")
    assert [value.dtype.name if value else None for value in resize.inputs] == ["FLOAT16", None, "FLOAT"]
    scales = np.array([1, 1, 2.0001, 1.3], np.float32)
    assert reference(lowered.graph, {"x": normal(1, 2, 3, 5), "s": scales})["y"].shape == (1, 2, 6, 6)


def test_a_scale_computed_from_a_shape_is_cast_where_it_meets_data() -> None:
    source = graph(
        """g (float[2,n,16] q) => (float[2,n,16] y) <int64 axis = {2}, float one = {1}>
        { s = Shape(q)  d = Gather<axis=0>(s, axis)  f = Cast<to=1>(d)  r = Sqrt(f)  i = Div(one, r)  t = Mul(q, i)
          y = Softmax(t) }"""
    )
    lowered = checked(source)
    assert by_op(lowered)["Sqrt"] == {"float32"}
    assert by_op(lowered)["Mul"] == by_op(lowered)["Softmax"] == {"float16"}
    assert_close(lowered, source, {"q": normal(2, 3, 16)})


def test_integer_images_are_no_index_arithmetic() -> None:
    source = graph(
        """g (int64[1,2,5,5] x) => (float[1,1,5,5] y) <float d = {255}, float[1,2,1,1] w = {0.25,0.5}>
        { f = Cast<to=1>(x)  s = Div(f, d)  y = Conv(s, w) }"""
    )
    assert by_op(checked(source))["Conv"] == {"float16"}


def test_boxes_of_a_non_maximum_suppression_are_computed_in_float32() -> None:
    source = graph(
        """g (float[1,5,4] b, float[1,1,5] s) => (int64[n,3] y) <int64 k = {3}, float t = {0.5}, float two = {2}>
        { r = Relu(b)  boxes = Mul(r, two)  p = Sigmoid(s)  y = NonMaxSuppression(boxes, p, k, t) }"""
    )
    lowered = checked(source)
    assert by_op(lowered)["Mul"] == {"float32"}
    assert by_op(lowered)["Relu"] == {"float16"}


def test_sampling_coordinates_stay_float32() -> None:
    source, _ = exported("spatial transformer")
    lowered = checked(source, "bfloat16")
    assert by_op(lowered)["GridSample"] == {"float32"}
    assert by_op(lowered)["Conv"] == {"bfloat16"}
