from __future__ import annotations

import pytest

from edgeattn.ops.cbam import OP
from tests.ops.exactness import assert_body_is_reference, fused_exactly, graph_of, weights_of

HALVES = """
    mean = GlobalAveragePool (x)
    peak = GlobalMaxPool (x)
    m1 = Conv (mean, w1)
    p1 = Conv (peak, w1)
    m2 = Relu (m1)
    p2 = Relu (p1)
    m3 = Conv (m2, w2)
    p3 = Conv (p2, w2)
    z = Add (m3, p3)
    g = Sigmoid (z)
    gated = Mul (x, g)
    one = Constant <value_ints = [1]> ()
    a = ReduceMean <keepdims = 1> (gated, one)
    b = ReduceMax <keepdims = 1> (gated, one)
    both = Concat <axis = 1> (a, b)
    s = Conv <pads = [1, 1, 1, 1]> (both, w)
    t = Sigmoid (s)
    y = Mul (gated, t)"""
IMAGE = "float[2, 3, 4, 5]"


@pytest.mark.parametrize(
    ("outputs", "more", "found"),
    [
        (f"{IMAGE} y", "", ["CBAM"]),
        (f"{IMAGE} y, {IMAGE} gated", "", ["ChannelGate", "SpatialGate"]),
        (f"{IMAGE} y, {IMAGE} e", "e = Exp (gated)", ["ChannelGate", "SpatialGate"]),
    ],
    ids=["alone", "between-is-output", "between-is-read"],
)
def test_the_map_between_the_halves_must_be_theirs_alone(outputs: str, more: str, found: list[str]) -> None:
    weights = weights_of(0, w1=(2, 3, 1, 1), w2=(3, 2, 1, 1), w=(1, 2, 3, 3))
    report = fused_exactly(graph_of(f"({IMAGE} x) => ({outputs})", f"{HALVES}\n{more}", weights))
    assert [item.op for item in report.found] == found


@pytest.mark.parametrize("variant", ["relu", "silu", "gelu", "hardswish", "identity"])
def test_the_body_is_the_reference(variant: str) -> None:
    inputs = weights_of(0, x=(2, 5, 3, 7), w1=(3, 5), b1=(3,), w2=(5, 3), b2=(5,), w=(1, 2, 3, 3), b=(1,))
    assert_body_is_reference(OP, variant, list(inputs.values()), pads=[1, 1, 1, 1], kernel_shape=[3, 3])
