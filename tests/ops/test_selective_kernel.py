from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeattn.ops.selective_kernel import OP
from tests.ops.exactness import assert_body_is_reference, fused_exactly, graph_of, weights_of

small = st.sampled_from([1, 2, 3])
DESCRIPTORS = {"both": "d = Add (u, v)", "one": "d = Identity (u)", "twice": "e = Add (u, v)\nd = Add (e, u)"}
PARTS = {
    "gathered": "a = Gather <axis = 1> (s, zero)\nb = Gather <axis = 1> (s, one)",
    "swapped": "b = Gather <axis = 1> (s, zero)\na = Gather <axis = 1> (s, one)",
    "same": "a = Gather <axis = 1> (s, zero)\nb = Gather <axis = 1> (s, zero)",
    "split": "p, q = Split <axis = 1, num_outputs = 2> (s)\na = Squeeze (p, first)\nb = Squeeze (q, first)",
    "turned": "t = Transpose <perm = [0, 2, 1]> (s)\na = Gather <axis = 2> (t, zero)\nb = Gather <axis = 1> (s, one)",
}


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(small, small, small, small),
    descriptor=st.sampled_from(sorted(DESCRIPTORS)),
    parts=st.sampled_from(sorted(PARTS)),
    axis=st.sampled_from([1, 2, -2, 0]),
    product=st.sampled_from(["Mul", "Add"]),
)
def test_a_selection_that_is_altered_is_left_alone_or_computes_the_same(
    sizes: tuple[int, ...], descriptor: str, parts: str, axis: int, product: str
) -> None:
    B, C, H, R = sizes
    weights = weights_of(0, w1=(R, C), b1=(R,), w2=(2 * C, R), b2=(2 * C,)) | {
        "rows": np.array([B, 2, C]), "column": np.array([B, C, 1, 1]),
        "zero": np.array(0), "one": np.array(1), "first": np.array([1]), "places": np.array([2, 3]),
    }  # fmt: skip
    body = f"""
        {DESCRIPTORS[descriptor]}
        m = ReduceMean <keepdims = 0> (d, places)
        k = Gemm <transB = 1> (m, w1, b1)
        h = Relu (k)
        z = Gemm <transB = 1> (h, w2, b2)
        l = Reshape (z, rows)
        s = Softmax <axis = {axis}> (l)
        {PARTS[parts]}
        a1 = Reshape (a, column)
        b1x = Reshape (b, column)
        f = Mul (a1, u)
        g = {product} (v, b1x)
        y = Add (f, g)"""
    image = f"float[{B}, {C}, {H}, 2]"
    report = fused_exactly(graph_of(f"({image} u, {image} v) => ({image} y)", body, weights))
    exact = axis in (1, -2) and descriptor == "both" and product == "Mul"
    if exact and parts in ("gathered", "swapped", "split"):
        assert [item.variant for item in report.found] == ["2-relu"]
    if not exact or parts == "same":
        assert not report.found


@pytest.mark.parametrize("variant", ["2-relu", "3-silu", "2-gelu", "3-identity", "8-relu"])
def test_the_body_is_the_reference(variant: str) -> None:
    count = int(variant[0])
    branches = {f"u{index}": (2, 5, 3, 7) for index in range(count)}
    inputs = weights_of(0, **branches, w1=(3, 5), b1=(3,), w2=(5 * count, 3), b2=(5 * count,))
    assert_body_is_reference(OP, variant, list(inputs.values()))


@pytest.mark.parametrize("variant", ["stack-2-relu", "stack-3-gelu"])
def test_the_body_of_a_stack_is_the_reference(variant: str) -> None:
    count = int(variant.split("-")[1])
    inputs = weights_of(0, u=(2, count, 5, 3, 7), w1=(3, 5), b1=(3,), w2=(5 * count, 3), b2=(5 * count,))
    assert_body_is_reference(OP, variant, list(inputs.values()))


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(small, small, small, small),
    order=st.sampled_from([(0, 1), (1, 0)]),
    starts=st.sampled_from(["halves", "first", "overlapping"]),
    described=st.sampled_from(["both", "one"]),
)
def test_halves_of_a_map_weighed_by_parts_of_one_softmax_are_exact_or_left_alone(
    sizes: tuple[int, ...], order: tuple[int, ...], starts: str, described: str
) -> None:
    B, C, H, R = sizes
    begin = {"halves": (0, C), "first": (0, 0), "overlapping": (0, 1)}[starts]
    weights = weights_of(0, w1=(R, C), b1=(R,), w2=(2 * C, R), b2=(2 * C,)) | {
        "rows": np.array([B, 1, 2, C]), "flat": np.array([B, 2 * C, 1, 1]), "places": np.array([2, 3]),
        "s0": np.array([begin[0]]), "e0": np.array([begin[0] + C]), "one": np.array([1]),
        "s1": np.array([begin[1]]), "e1": np.array([begin[1] + C]),
    }  # fmt: skip
    body = f"""
        u, v = Split <axis = 1, num_outputs = 2> (x)
        d = {"Add (u, v)" if described == "both" else "Identity (u)"}
        m = ReduceMean <keepdims = 0> (d, places)
        k = Gemm <transB = 1> (m, w1, b1)
        h = Relu (k)
        z = Gemm <transB = 1> (h, w2, b2)
        l = Reshape (z, rows)
        t = Transpose <perm = [0, 2, 1, 3]> (l)
        s = Softmax <axis = 1> (t)
        a = Reshape (s, flat)
        a0 = Slice (a, s0, e0, one)
        a1 = Slice (a, s1, e1, one)
        f = Mul (a{order[0]}, u)
        g = Mul (v, a{order[1]})
        y = Add (f, g)"""
    signature = f"(float[{B}, {2 * C}, {H}, 2] x) => (float[{B}, {C}, {H}, 2] y)"
    found = [item.op for item in fused_exactly(graph_of(signature, body, weights)).found]
    if described == "both" and begin == (0, C):
        assert found == ["SelectiveKernel"]
    if described == "one" or begin != (0, C):
        assert not found


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(small, small, small, small),
    layout=st.sampled_from(["rows", "interleaved", "first", "mixed"]),
    axis=st.sampled_from([0, 1, 2]),
    sums=st.tuples(*[st.sampled_from([0, 1])] * 3),
)
def test_a_stack_that_is_altered_is_left_alone_or_computes_the_same(
    sizes: tuple[int, ...], layout: str, axis: int, sums: tuple[int, ...]
) -> None:
    (B, C, H, R), (stacked, summed, kept) = sizes, sums
    M = 3
    shape = (M, B, C, 1, 1) if stacked == 0 else (B, M, C, 1, 1)
    weights = weights_of(0, w1=(R, C), b1=(R,), w2=(M * C, R), b2=(M * C,)) | {
        "rows": np.array([B, M, C]), "swapped": np.array([B, C, M]), "mixed": np.array([M, B, C]),
        "whole": np.array(shape), "lift": np.array([stacked]), "places": np.array([2, 3]), "sum": np.array([summed]),
    }  # fmt: skip
    logits = {
        "rows": "l = Reshape (z, rows)",
        "interleaved": "i = Reshape (z, swapped)\nl = Transpose <perm = [0, 2, 1]> (i)",
        "first": "i = Reshape (z, rows)\nl = Transpose <perm = [1, 0, 2]> (i)",
        "mixed": "l = Reshape (z, mixed)",
    }[layout]
    turned = "[1, 0, 2]" if (layout in ("rows", "interleaved")) == (stacked == 0) else "[0, 1, 2]"
    body = f"""
        d1 = Add (u, v)
        d = Add (d1, t)
        m = ReduceMean <keepdims = 0> (d, places)
        k = Gemm <transB = 1> (m, w1, b1)
        h = Relu (k)
        z = Gemm <transB = 1> (h, w2, b2)
        {logits}
        s = Softmax <axis = {axis}> (l)
        n = Transpose <perm = {turned}> (s)
        a = Reshape (n, whole)
        u1 = Unsqueeze (u, lift)
        v1 = Unsqueeze (v, lift)
        t1 = Unsqueeze (t, lift)
        f = Concat <axis = {stacked}> (u1, v1, t1)
        p = Mul (f, a)
        y = ReduceSum <keepdims = {kept}> (p, sum)"""
    image = f"float[{B}, {C}, {H}, 2]"
    graph = graph_of(f"({image} u, {image} v, {image} t) => (float[{','.join('?' * (4 + kept))}] y)", body, weights)
    found = [item.op for item in fused_exactly(graph).found]
    branch = 1 if layout in ("rows", "interleaved") else 0
    if axis == branch and summed == stacked and layout != "mixed":
        assert found == ["SelectiveKernel"]
    if axis != branch or summed != stacked:
        assert "SelectiveKernel" not in found
