from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeattn.ops.channel_gate import OP
from tests.ops.exactness import assert_body_is_reference, fused_exactly, graph_of, weights_of

small = st.sampled_from([1, 2, 3])
LINEAR = {
    "gemm": "z = Gemm <transB = 1> (h, w2, b2)",
    "untransposed": "t = Transpose <perm = [1, 0]> (w2)\nz = Gemm (h, t, b2)",
    "matmul": "t = Transpose <perm = [1, 0]> (w2)\nm = MatMul (h, t)\nz = Add (b2, m)",
    "normalised": "m = Gemm <transB = 1> (h, w2, b2)\nz = BatchNormalization (m, b2, b2, b2, var)",
    "bias-by-sample": "m = Gemm <transB = 1> (h, w2)\nz = Add (m, column)",
    "scaled": "z = Gemm <transB = 1, alpha = 0.5> (h, w2, b2)",
    "training": "m = Gemm <transB = 1> (h, w2)\nz, r, q = BatchNormalization <training_mode = 1> (m, b2, b2, b2, var)",
}
GATE = {
    "sigmoid": "g = Sigmoid (z)",
    "slope": "g = HardSigmoid (z)",
    "sixth": "g = HardSigmoid <alpha = 0.16666667, beta = 0.5> (z)",
    "softmax": "g = Softmax <axis = 1> (z)",
    "swapped": "o = Sigmoid (z)\nswapped = Transpose <perm = [1, 0]> (o)\ng = Reshape (swapped, flat)",
}
EXACT = {"gemm", "untransposed", "matmul", "normalised", "sigmoid", "sixth"}


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(small, small, small, small, small),
    axes=st.sampled_from([(2, 3), (3, 2), (-1, -2), (2,), (1, 3), (0, 3)]),
    linear=st.sampled_from(sorted(LINEAR)),
    gate=st.sampled_from(sorted(GATE)),
    product=st.sampled_from(["x", "other"]),
)
def test_a_gate_that_is_altered_is_left_alone_or_computes_the_same(
    sizes: tuple[int, ...], axes: tuple[int, ...], linear: str, gate: str, product: str
) -> None:
    B, C, H, W, R = sizes
    weights = weights_of(0, w1=(R, C), b1=(R,), w2=(C, R), b2=(C,), column=(B, 1))
    shapes = {"axes": axes, "flat": (B, C), "spread": (B, C, 1, 1)}
    weights |= {name: np.array(value) for name, value in shapes.items()} | {"var": np.ones(C, np.float32)}
    whole = {axis % 4 for axis in axes} == {2, 3}
    size = B * C * H * W // np.prod([(B, C, H, W)[axis] for axis in axes])
    if size != B * C or (linear == "training" and B * C == 1):
        return
    body = f"""
        pool = ReduceMean <keepdims = 0> (x, axes)
        v = Reshape (pool, flat)
        k = Gemm <transB = 1> (v, w1, b1)
        h = Relu (k)
        {LINEAR[linear]}
        {GATE[gate]}
        s = Reshape (g, spread)
        y = Mul (s, {product})
        also = Exp (h)"""
    image = f"float[{B}, {C}, {H}, {W}]"
    graph = graph_of(f"({image} x, {image} other) => ({image} y, float[{B}, {R}] also)", body, weights)
    found = [item.op for item in fused_exactly(graph).found]
    if {linear, gate} <= EXACT and whole and product == "x" and (H, W) != (1, 1):
        assert found == ["ChannelGate"]
    if linear in ("scaled", "training") or gate in ("slope", "softmax") or product == "other":
        assert not found


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_a_gate_is_found_in_files_of_other_types_and_opsets(dtype: str, opset: int) -> None:
    weights = weights_of(0, dtype, w1=(3, 5, 1, 1), w2=(5, 3, 1, 1), b2=(5,))
    body = """
        pool = GlobalAveragePool (x)
        k = Conv <kernel_shape = [1, 1]> (pool, w1)
        s = Sigmoid (k)
        h = Mul (k, s)
        z = Conv (h, w2, b2)
        g = Sigmoid (z)
        y = Mul (x, g)"""
    image = f"{'float' if dtype == 'float32' else dtype}[2, 5, 4, 3]"
    report = fused_exactly(graph_of(f"({image} x) => ({image} y)", body, weights, opset), dtype)
    assert [item.variant for item in report.found] == ["avg-silu-sigmoid"]


@pytest.mark.parametrize("shared", [True, False])
def test_mean_and_maximum_must_share_their_layers(shared: bool) -> None:
    weights = weights_of(0, w1=(2, 3), b1=(2,), w2=(3, 2), b2=(3,), other=(3, 2))
    body = f"""
        mean = GlobalAveragePool (x)
        peak = GlobalMaxPool (x)
        m0 = Flatten (mean)
        p0 = Flatten (peak)
        m1 = Gemm <transB = 1> (m0, w1, b1)
        p1 = Gemm <transB = 1> (p0, w1, b1)
        m2 = Relu (m1)
        p2 = Relu (p1)
        m3 = Gemm <transB = 1> (m2, w2, b2)
        p3 = Gemm <transB = 1> (p2, {"w2" if shared else "other"}, b2)
        z = Add (m3, p3)
        g = Sigmoid (z)
        axes = Constant <value_ints = [2, 3]> ()
        s = Unsqueeze (g, axes)
        y = Mul (x, s)"""
    report = fused_exactly(graph_of("(float[2, 3, 4, 5] x) => (float[2, 3, 4, 5] y)", body, weights))
    assert [item.variant for item in report.found] == (["avgmax-relu-sigmoid"] if shared else [])
    assert bool(report.missed) is not shared


MLPS = ("-".join(words) for words in itertools.product(("avg", "max", "avgmax"), ("relu", "gelu"), ("sigmoid", "tanh")))


@pytest.mark.parametrize("variant", [*MLPS, "avg-silu-hardsigmoid", "avg-hardswish-sigmoid", "avg-identity-tanh+1"])
def test_the_body_of_an_mlp_is_its_reference(variant: str) -> None:
    inputs = weights_of(0, x=(2, 5, 3, 7), w1=(3, 5), b1=(3,), w2=(5, 3), b2=(5,))
    assert_body_is_reference(OP, variant, list(inputs.values()))


def test_the_bodies_of_single_layers_are_their_references() -> None:
    inputs = weights_of(0, x=(2, 5, 3, 7), w=(5, 5), b=(5,), kernel=(1, 1, 3))
    assert_body_is_reference(OP, "ese-hardsigmoid", [inputs["x"], inputs["w"], inputs["b"]])
    assert_body_is_reference(OP, "eca-sigmoid", [inputs["x"], inputs["kernel"]], pads=[2, 0])
    assert_body_is_reference(OP, "eca-bias-sigmoid", [inputs["x"], inputs["kernel"], inputs["b"][:1]], pads=[1, 1])


@pytest.mark.parametrize("variant", ["attn-relu-sigmoid", "attn-ln-gelu-add", "avg-ln-relu-add", "attn-ese-add"])
def test_the_body_of_a_global_context_is_its_reference(variant: str) -> None:
    weights = weights_of(0, s=(1, 5), w1=(3, 5), b1=(3,), g=(3,), h=(3,), w2=(5, 3), b2=(5,), w=(5, 5), b=(5,))
    names = ["w", "b"] if "ese" in variant else ["w1", "b1", *(["g", "h"] if "ln" in variant else []), "w2", "b2"]
    names = (["s"] if "attn" in variant else []) + names
    x = weights_of(1, x=(2, 5, 3, 7))["x"]
    attributes = {"epsilon": 0.25} if "ln" in variant else {}
    assert_body_is_reference(OP, variant, [x, *(weights[name] for name in names)], **attributes)


CONTEXT = {
    "plain": "h = Relu (k)",
    "operator": "n = LayerNormalization <axis = 1, epsilon = 0.5> (k, g, o)\nh = Relu (n)",
    "first": "n = LayerNormalization <axis = 2> (k, one)\nh = Relu (n)",
    "batch": "n = LayerNormalization <axis = 0> (k, all)\nh = Relu (n)",
    "written": "n = Div (c, root)\nm = Mul (n, g)\nl = Add (o, m)\nh = Relu (l)",
    "uncentred": "n = Div (k, root)\nh = Relu (n)",
    "other-mean": "n = Div (e, root)\nh = Relu (n)",
}


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(small, small, small, small, small),
    norm=st.sampled_from(sorted(CONTEXT)),
    axis=st.sampled_from([2, 1, 0]),
    scored=st.sampled_from(["x", "other"]),
    final=st.sampled_from(
        ["y = Add (x, z)", "y = Add (z, other)", "g1 = Sigmoid (z)\ny = Mul (x, g1)", "y = Mul (x, z)"]
    ),
)
def test_a_global_context_that_is_altered_is_left_alone_or_computes_the_same(
    sizes: tuple[int, ...], norm: str, axis: int, scored: str, final: str
) -> None:
    B, C, H, W, R = sizes
    weights = weights_of(
        0, s=(1, C, 1, 1), t=(1,), w1=(R, C, 1, 1), b1=(R,), g=(R, 1, 1), o=(R, 1, 1), w2=(C, R, 1, 1), b2=(C,)
    ) | {
        "rows": np.array([B, 1, H * W]), "flat": np.array([B, C, H * W]), "column": np.array([B, C, 1, 1]),
        "over": np.array([1]), "small": np.array(0.5, np.float32), "two": np.array(2, np.float32),
        "one": np.ones((1, 1), np.float32), "all": np.ones((B, R, 1, 1), np.float32), "places": np.array([0]),
    }  # fmt: skip
    body = f"""
        a = Conv ({scored}, s, t)
        r = Reshape (a, rows)
        p = Softmax <axis = {axis}> (r)
        q = Transpose <perm = [0, 2, 1]> (p)
        f = Reshape (x, flat)
        v = MatMul (f, q)
        d = Reshape (v, column)
        k = Conv (d, w1, b1)
        mean = ReduceMean (k, over)
        c = Sub (k, mean)
        mean0 = ReduceMean (k, places)
        e = Sub (k, mean0)
        sq = Pow (c, two)
        var = ReduceMean (sq, over)
        eps = Add (var, small)
        root = Sqrt (eps)
        {CONTEXT[norm]}
        z = Conv (h, w2, b2)
        {final}"""
    image = f"float[{B}, {C}, {H}, {W}]"
    graph = graph_of(f"({image} x, {image} other) => ({image} y)", body, weights)
    found = [item.op for item in fused_exactly(graph).found]
    same_map = "other" not in final
    if min(B, C, R) > 1 and H * W > 1 and axis == 2 and scored == "x" and same_map and final != "y = Mul (x, z)":
        assert found == (["ChannelGate"] if norm in ("plain", "operator", "written") else ["AttentionPool"])
    if scored == "other" or not same_map or final == "y = Mul (x, z)":
        assert "ChannelGate" not in found


@pytest.mark.parametrize("shape", [(2, 5, 7), (2, 5, 3, 4, 2), (1, 5, 2, 1, 3, 2)])
def test_sequences_and_volumes_are_laid_out_as_maps(shape: tuple[int, ...]) -> None:
    weights = weights_of(0, w1=(3, 5), w2=(5, 3)) | {
        "places": np.arange(2, len(shape)), "flat": np.array(shape[:2]),
        "spread": np.array([*shape[:2], *[1] * (len(shape) - 2)]),
    }  # fmt: skip
    body = """
        pool = ReduceMean (x, places)
        v = Reshape (pool, flat)
        k = Gemm <transB = 1> (v, w1)
        h = Relu (k)
        z = Gemm <transB = 1> (h, w2)
        g = Sigmoid (z)
        s = Reshape (g, spread)
        y = Mul (x, s)"""
    size = ",".join(map(str, shape))
    report = fused_exactly(graph_of(f"(float[{size}] x) => (float[{size}] y)", body, weights))
    assert [item.variant for item in report.found] == ["avg-relu-sigmoid"]


def test_facts_count_the_map_and_the_layers() -> None:
    weights = weights_of(0, w1=(2, 4), w2=(4, 2))
    body = """
        pool = GlobalAveragePool (x)
        v = Flatten (pool)
        k = Gemm <transB = 1> (v, w1)
        h = Relu (k)
        z = Gemm <transB = 1> (h, w2)
        g = Sigmoid (z)
        axes = Constant <value_ints = [2, 3]> ()
        s = Unsqueeze (g, axes)
        y = Mul (x, s)"""
    (found,) = fused_exactly(graph_of("(float[3, 4, 5, 6] x) => (float[3, 4, 5, 6] y)", body, weights)).found
    assert found.facts.sizes == {"batch": 3, "channels": 4, "height": 5, "width": 6, "reduced": 2}
    parameters = 2 * (2 * 4) + 2 + 4
    assert found.facts.flops == 2 * 4 * 5 * 6 + 2 * parameters
    assert found.facts.bytes_fused == 4 * (2 * 4 * 5 * 6 + parameters)


def test_a_reciprocal_that_is_no_gate_is_left_alone() -> None:
    body = "mean = GlobalAveragePool (x) power = Exp (mean) gate = Reciprocal (power) y = Mul (x, gate)"
    report = fused_exactly(graph_of("(float[2, 3, 5, 4] x) => (float[2, 3, 5, 4] y)", body, {}))
    assert report.found == report.notes == ()
