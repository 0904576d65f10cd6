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


@pytest.mark.parametrize("variant", ["2-relu", "3-silu", "2-gelu", "3-identity"])
def test_the_body_is_the_reference(variant: str) -> None:
    count = int(variant[0])
    branches = {f"u{index}": (2, 5, 3, 7) for index in range(count)}
    inputs = weights_of(0, **branches, w1=(3, 5), b1=(3,), w2=(5 * count, 3), b2=(5 * count,))
    assert_body_is_reference(OP, variant, list(inputs.values()))
