from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeattn.fuse import fuse
from edgeattn.graph import Graph
from edgeattn.interpreter import run_as_written
from edgeattn.ops.attention_pool import OP
from tests.ops.exactness import assert_close, fused_exactly, graph_of, weights_of

small = st.sampled_from([1, 2, 3])
SUMS = {
    "product": "p = Mul (w, x)\ny = ReduceSum <keepdims = 0> (p, over)",
    "kept": "p = Mul (x, w)\nk = ReduceSum (p, over)\ny = Reshape (k, flat)",
    "matmul": "r = Transpose <perm = [0, 2, 1]> (w)\np = MatMul (r, x)\ny = Reshape (p, flat)",
    "turned": "t = Transpose <perm = [0, 2, 1]> (x)\np = MatMul (t, w)\ny = Reshape (p, flat)",
    "einsum": 'y = Einsum <equation = "bno,bnc->bc"> (w, x)',
    "expanded": "e = Expand (w, whole)\np = Mul (e, x)\ny = ReduceSum <keepdims = 0> (p, over)",
    "repeated": """
        e = Expand (w, whole)
        f = Slice (x, zero, one, two)
        p = Mul (e, f)
        y = ReduceSum <keepdims = 0> (p, over)""",
    "mean": "p = Mul (w, x)\ny = ReduceMean <keepdims = 0> (p, over)",
    "crossed": "r = Reshape (w, row)\np = MatMul (r, x)\ny = Reshape (p, flat)",
    "shifted": "p = Mul (w, x)\nq = Add (p, w)\ny = ReduceSum <keepdims = 0> (q, over)",
}
EXACT = {"product", "expanded", "kept", "matmul", "turned"}


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(small, small, small),
    total=st.sampled_from(sorted(SUMS)),
    axis=st.sampled_from([0, 1, 2, -2]),
    scored=st.sampled_from(["samples", "wide", "one"]),
)
def test_a_pooling_that_is_altered_is_left_alone_or_computes_the_same(
    sizes: tuple[int, ...], total: str, axis: int, scored: str
) -> None:
    B, N, C = sizes
    shape = {"samples": (B, N, 1), "wide": (B, N, C), "one": (1, N, 1)}[scored]
    if (total not in ("product", "kept", "mean", "shifted") and shape != (B, N, 1)) or (total == "einsum" and N == 1):
        return
    constants = {"whole": np.array([B, N, C]), "zero": np.array([0]), "one": np.array([1]), "two": np.array([2])}
    constants |= {"over": np.array([1]), "flat": np.array([B, C]), "row": np.array([B, 1, N])}
    body = f"w = Softmax <axis = {axis}> (s)\n{SUMS[total]}"
    signature = f"(float[{','.join(map(str, shape))}] s, float[{B}, {N}, {C}] x) => (float[{B}, {C}] y)"
    report = fused_exactly(graph_of(signature, body, constants))
    found, over_items = [item.op for item in report.found], axis in (1, -2)
    if over_items and N > 1 and C > 1 and total in EXACT and scored != "wide":
        assert found == ["AttentionPool"]
    if (
        not over_items
        or total in ("mean", "shifted")
        or (total == "repeated" and C > 1)
        or (scored == "wide" and C > 1)
    ):
        assert not found


def test_weights_along_other_axes_than_the_sum_are_a_miss() -> None:
    body = """
        w = Softmax <axis = 2> (s)
        p = Mul (w, x)
        y = ReduceSum <keepdims = 0> (p, over)"""
    signature = "(float[2, 3, 4] s, float[2, 3, 4] x) => (float[2, 4] y)"
    (missed,) = fused_exactly(graph_of(signature, body, {"over": np.array([1])})).missed
    assert missed.candidate == "AttentionPool"
    assert "softmax is over axis 2" in missed.reason


@pytest.mark.parametrize("equation", ["bn,bnc->bc", "bn,bnc->cb", "bhn,bnc->bhc", "bhw,bchw->bc", "mn,bnc->bmc"])
def test_any_einsum_that_sums_the_items_is_found(equation: str) -> None:
    sizes = {"b": 2, "n": 5, "c": 3, "h": 4, "w": 6, "m": 7}
    left, right, out = equation.replace("->", ",").split(",")
    shapes = [",".join(str(sizes[label]) for label in labels) for labels in (left, right, out)]
    rows = left.replace("w", "")[:-1] if "w" in left else left[:-1]
    flat, whole = [*[sizes[label] for label in rows], -1], [sizes[label] for label in left]
    body = f"""
        f = Reshape (s, flat)
        g = Softmax <axis = -1> (f)
        w = Reshape (g, whole)
        y = Einsum <equation = "{equation}"> (w, x)"""
    signature = f"(float[{shapes[0]}] s, float[{shapes[1]}] x) => (float[{shapes[2]}] y)"
    report = fused_exactly(graph_of(signature, body, {"flat": np.array(flat), "whole": np.array(whole)}))
    assert [item.op for item in report.found] == ["AttentionPool"], report


def test_a_map_is_not_transposed() -> None:
    body = """
        f = Reshape (s, flat)
        g = Softmax <axis = 2> (f)
        w = Reshape (g, plane)
        p = Mul (x, w)
        y = ReduceSum <keepdims = 0> (p, places)"""
    signature = "(float[2, 1, 4, 5] s, float[2, 3, 4, 5] x) => (float[2, 3] y)"
    constants = {"flat": np.array([2, 1, 20]), "plane": np.array([2, 1, 4, 5]), "places": np.array([2, 3])}
    graph = graph_of(signature, body, constants)
    assert [item.variant for item in fused_exactly(graph).found] == ["map"]
    turned = [node.inputs[0] for node in fuse(graph)[0].model.graph if node.op_type == "Transpose"]
    assert all(value is not None and value.shape == (2, 1, 20) for value in turned)


@pytest.mark.parametrize("opset", [13, 18, 21])
@pytest.mark.parametrize("island", [True, False])
def test_half_precision_is_found_with_the_softmax_in_either_type(island: bool, opset: int) -> None:
    weights = weights_of(0, "float16", w=(3, 1))
    single, half = ("Cast <to = 1>", "Cast <to = 10>") if island else ("Identity", "Identity")
    body = f"""
        s = MatMul (x, w)
        s1 = {single} (s)
        g = Softmax <axis = 1> (s1)
        h = {half} (g)
        t = Transpose <perm = [0, 2, 1]> (h)
        y = MatMul (t, x)"""
    graph = graph_of("(float16[2, 5, 3] x) => (float16[2, 1, 3] y)", body, weights, opset)
    assert [item.variant for item in fused_exactly(graph, "float16").found] == ["items"]


def test_queries_and_keys_are_left_to_softmax_attention() -> None:
    body = """
        t = Transpose <perm = [0, 2, 1]> (k)
        s = MatMul (q, t)
        r = Relu (s)
        w = Softmax <axis = 2> (s)
        y = MatMul (w, k)"""
    signature = "(float[2, 4, 3] q, float[2, 5, 3] k) => (float[2, 4, 3] y, float[2, 4, 5] r)"
    assert [item.op for item in fused_exactly(graph_of(signature, body, {})).found] == ["SoftmaxAttention"]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(small, small, small, small),
    shared=st.tuples(*[st.booleans()] * 4),
    softmax=st.integers(0, 3),
    total=st.integers(0, 3),
    keepdims=st.sampled_from([0, 1]),
)
def test_weights_that_differ_along_any_axes_are_left_alone_or_compute_the_same(
    sizes: tuple[int, ...], shared: tuple[bool, ...], softmax: int, total: int, keepdims: int
) -> None:
    scores = [1 if one else size for one, size in zip(shared, sizes, strict=True)]
    body = f"""
        w = Softmax <axis = {softmax}> (s)
        p = Mul (x, w)
        y = ReduceSum <keepdims = {keepdims}> (p, over)"""
    dims = [",".join(map(str, shape)) for shape in (scores, sizes)]
    signature = f"(float[{dims[0]}] s, float[{dims[1]}] x) => (float[{','.join('?' * (3 + keepdims))}] y)"
    found = [item.op for item in fused_exactly(graph_of(signature, body, {"over": np.array([total])})).found]
    several = any(
        one and size > 1 for place, (one, size) in enumerate(zip(shared, sizes, strict=True)) if place != total
    )
    if softmax == total and scores[total] > 1 and several:
        assert found == ["AttentionPool"]
    if softmax != total or scores[softmax] == 1:
        assert not found


def test_facts_of_weights_that_differ_from_place_to_place() -> None:
    body = "w = Softmax <axis = 1> (s)\np = Mul (w, x)\ny = ReduceSum <keepdims = 0> (p, over)"
    signature = "(float[2, 5, 1, 7] s, float[2, 5, 3, 7] x) => (float[2, 3, 7] y)"
    (found,) = fused_exactly(graph_of(signature, body, {"over": np.array([1])})).found
    assert found.variant == "along-3"
    assert found.facts.sizes == {"batch": 2, "queries": 7, "items": 5, "channels": 3}
    assert found.facts.flops == 7 * (5 * 5 + 2 * 5 * 3)
    assert found.facts.bytes_fused == 4 * (5 * 7 + 5 * 3 * 7 + 3 * 7)


@pytest.mark.parametrize(
    ("variant", "scores", "x"),
    [
        ("items", (2, 3, 5), (2, 5, 4)),
        ("map", (2, 5, 3), (2, 4, 5)),
        ("map", (5, 1), (4, 5)),
        ("along-1", (2, 1, 5), (2, 3, 5)),
        ("along-3", (2, 4, 1, 5), (2, 4, 3, 5)),
    ],
)
def test_the_body_is_the_reference(variant: str, scores: tuple[int, ...], x: tuple[int, ...]) -> None:
    arrays = weights_of(0, scores=scores, x=x)
    (found,) = run_as_written(_of_body(variant, arrays["scores"].shape, arrays["x"].shape))(arrays).values()
    truth = OP.reference(variant, *(torch.from_numpy(array).double() for array in arrays.values()))
    assert_close(found, truth.numpy())


def _of_body(variant: str, scores: tuple[int, ...], x: tuple[int, ...]) -> Graph:
    body = OP.function(variant).partition("{")[2].rpartition("}")[0]
    shapes = [",".join(map(str, shape)) for shape in (scores, x)]
    rows = ",".join("?" * (len(x) - variant.startswith("along")))
    return graph_of(f"(float[{shapes[0]}] scores, float[{shapes[1]}] x) => (float[{rows}] y)", body, {})


def test_facts_count_weights_and_items() -> None:
    body = "w = Softmax <axis = 1> (s)\np = Mul (w, x)\ny = ReduceSum <keepdims = 0> (p, over)"
    signature = "(float[2, 5, 1] s, float[2, 5, 3] x) => (float[2, 3] y)"
    (found,) = fused_exactly(graph_of(signature, body, {"over": np.array([1])})).found
    assert found.facts.sizes == {"batch": 2, "queries": 1, "items": 5, "channels": 3}
    assert found.facts.flops == 5 * 5 + 2 * 5 * 3  # the softmax; a product and a sum
    assert found.facts.bytes_fused == 4 * (5 + 5 * 3 + 3)
    assert found.facts.bytes_decomposed == 4 * (5 + 5 * 3 + 3 + 2 * 5 + 2 * 5 * 3)
