from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeattn.ops.attention_gate import OP
from tests.ops.exactness import assert_body_is_reference, fused_exactly, graph_of, weights_of

small = st.sampled_from([1, 2, 3])
RESIZED = {
    "size": 's = Resize <mode = "linear", coordinate_transformation_mode = "align_corners"> (a, , , size)',
    "factor": 's = Resize <mode = "nearest"> (a, , factor)',
    "uneven": 's = Resize <mode = "linear"> (a, , uneven)',
    "cubic": 's = Resize <mode = "cubic"> (a, , , size)',
}


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(small, small, small, small, small),
    active=st.sampled_from(["Relu", "Sigmoid", "Elu"]),
    sum_=st.sampled_from(["Add", "Mul"]),
    product=st.sampled_from(["x", "g"]),
    outputs=st.sampled_from([1, 2]),
)
def test_a_gate_that_is_altered_is_left_alone_or_computes_the_same(
    sizes: tuple[int, ...], active: str, sum_: str, product: str, outputs: int
) -> None:
    B, C, F, H, W = sizes
    if outputs not in (1, C):
        return
    weights = weights_of(0, wx=(F, C, 1, 1), bx=(F,), wg=(F, C, 1, 1), bg=(F,), wp=(outputs, F, 1, 1), bp=(outputs,))
    body = f"""
        t = Conv (x, wx, bx)
        p = Conv (g, wg, bg)
        u = {sum_} (p, t)
        r = {active} (u)
        z = Conv (r, wp, bp)
        a = Sigmoid (z)
        y = Mul (a, {product})"""
    image = f"float[{B}, {C}, {H}, {W}]"
    found = [item.op for item in fused_exactly(graph_of(f"({image} x, {image} g) => ({image} y)", body, weights)).found]
    expected = (active, sum_, outputs) == ("Relu", "Add", 1)
    assert found == (["AttentionGate"] if expected else [])


@pytest.mark.parametrize("variant", ["coarse", "late"])
@pytest.mark.parametrize(("resize", "found"), [("size", 1), ("factor", 1), ("uneven", 0), ("cubic", 0)])
def test_the_gate_is_resampled_as_it_was(resize: str, found: int, variant: str) -> None:
    weights = weights_of(0, wx=(2, 3, 2, 2), wp=(1, 2, 1, 1), bp=(1,)) | {
        "size": np.array([2, 1, 4, 6]),
        "factor": np.array([1, 1, 2, 2], np.float32),
        "uneven": np.array([1, 1, 2.4, 2.1], np.float32),
    }
    body = f"""
        t = Conv <strides = [2, 2]> (x, wx)
        u = Add (t, p)
        r = Relu (u)
        z = Conv (r, wp, bp)
        {"a = Sigmoid (z)" if variant == "coarse" else "a = Identity (z)"}
        {RESIZED[resize]}
        {"w = Identity (s)" if variant == "coarse" else "w = Sigmoid (s)"}
        y = Mul (x, w)"""
    report = fused_exactly(
        graph_of("(float[2, 3, 4, 6] x, float[2, 2, 2, 3] p) => (float[2, 3, 4, 6] y)", body, weights)
    )
    assert [item.variant for item in report.found] == [variant] * found
    assert len(report.missed) == 1 - found


def test_the_bodies_are_the_references() -> None:
    inputs = weights_of(
        0, x=(2, 3, 4, 6), g=(2, 5, 4, 6), wx=(2, 3, 1, 1), wg=(2, 5, 1, 1), b=(2,), wp=(1, 2, 1, 1), bp=(1,)
    )
    assert_body_is_reference(OP, "same", list(inputs.values()))
    inputs = weights_of(0, x=(2, 3, 5, 7), p=(2, 2, 3, 4), wx=(2, 3, 3, 3), b=(2,), wp=(1, 2, 1, 1), bp=(1,))
    window = {"strides": [2, 2], "pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    for mode, coordinates in [("linear", "half_pixel"), ("linear", "align_corners"), ("nearest", "asymmetric")]:
        how = {"mode": mode, "coordinates": coordinates, "nearest": "floor"}
        for variant in ("coarse", "late"):
            assert_body_is_reference(OP, variant, list(inputs.values()), **window, **how)
