from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeattn.ops.spatial_gate import OP
from tests.ops.exactness import assert_body_is_reference, fused_exactly, graph_of, weights_of

small = st.sampled_from([1, 2, 3])


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(small, small, small),
    planes=st.sampled_from([("Mean", "Max"), ("Max", "Mean"), ("Mean", "Mean"), ("Mean", "Min")]),
    of=st.tuples(st.sampled_from(["x", "other"]), st.sampled_from([1, -3, 2])),
    window=st.sampled_from([(3, 1, 1, 1), (3, 2, 1, 2), (1, 0, 1, 1), (3, 1, 2, 1), (2, 0, 1, 1), (3, 0, 1, 1)]),
    gate=st.sampled_from(["Sigmoid", "HardSigmoid", "Tanh", "Softmax"]),
)
def test_a_gate_that_is_altered_is_left_alone_or_computes_the_same(
    sizes: tuple[int, ...], planes: tuple[str, str], of: tuple[str, int], window: tuple[int, ...], gate: str
) -> None:
    (B, C, N), (source, axis) = sizes, of
    kernel, pad, stride, dilation = window
    out = (N + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
    if (axis == 2 and C != N) or out not in (1, N):
        return
    lines = f"""
        p = Reduce{planes[0]} <keepdims = 0> (x, axes)
        q = Reduce{planes[1]} <keepdims = 0> ({source}, axes)
        p1 = Unsqueeze (p, one)
        q1 = Unsqueeze (q, one)
        both = Concat <axis = 1> (p1, q1)
        z = Conv <pads = [{pad}, {pad}, {pad}, {pad}], strides = [{stride}, {stride}],
                  dilations = [{dilation}, {dilation}]> (both, w, b)
        g = {gate} (z)
        y = Mul (g, x)"""
    weights = weights_of(0, w=(1, 2, kernel, kernel), b=(1,)) | {"axes": np.array([axis]), "one": np.array([1])}
    image = f"float[{B}, {C}, {N}, {N}]"
    found = [
        item.op for item in fused_exactly(graph_of(f"({image} x, {image} other) => ({image} y)", lines, weights)).found
    ]
    kept = window in ((3, 1, 1, 1), (3, 2, 1, 2), (1, 0, 1, 1)) and dilation == 1
    if set(planes) == {"Mean", "Max"} and source == "x" and axis != 2 and kept and gate in ("Sigmoid", "Tanh"):
        assert found == ["SpatialGate"]
    if (
        planes[1] == "Min"
        or planes == ("Mean", "Mean")
        or source == "other"
        or axis == 2
        or gate in ("HardSigmoid", "Softmax")
    ):
        assert not found


def test_the_maps_order_is_that_of_the_weight() -> None:
    weights = weights_of(0, w=(1, 2, 3, 5), b=(1,)) | {"one": np.array([1])}
    body = """
        q = ReduceMax <keepdims = 1> (x, one)
        p = ReduceMean <keepdims = 1> (x, one)
        both = Concat <axis = -3> (q, p)
        z = Conv <auto_pad = "SAME_UPPER"> (both, w, b)
        g = Sigmoid (z)
        y = Mul (x, g)"""
    (found,) = fused_exactly(graph_of("(float[2, 3, 5, 7] x) => (float[2, 3, 5, 7] y)", body, weights)).found
    assert found.variant == "sigmoid"


@pytest.mark.parametrize("variant", ["sigmoid", "hardsigmoid", "tanh", "sigmoid+1"])
def test_the_body_is_the_reference(variant: str) -> None:
    inputs = weights_of(0, x=(2, 5, 3, 7), w=(1, 2, 3, 5), b=(1,))
    assert_body_is_reference(OP, variant, list(inputs.values()), pads=[1, 2, 1, 2], kernel_shape=[3, 5])
    inputs = weights_of(0, x=(2, 5, 3, 7), w=(1, 5, 1, 1), b=(1,))
    assert_body_is_reference(OP, f"conv-{variant}", list(inputs.values()))
