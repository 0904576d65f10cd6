"""Scores scaled after the product, as hand-written models have them. Oracle: the graph in float32."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeattn.graph import Graph
from edgeattn.precision.fp16 import lower
from tests.precision.lowered import assert_close, by_op, checked, distance, graph, normal, observed, reference, run


def scores(step: str, scale: float, more: str = "") -> Graph:
    """Attention of q, k, v (2, 5, 64), its scores scaled by a step after the product."""
    return graph(
        f"""g (float[2,5,64] q, float[2,7,64] k, float[2,7,64] v) => (float[2,5,64] y{more}) <float c = {{{scale!r}}}>
        {{ t = Transpose<perm = [0,2,1]>(k)  [product] raw = MatMul(q, t)  [scale] s = {step}  p = Softmax<axis = -1>(s)
          y = MatMul(p, v) }}"""
    )


def feeds(gain: float) -> dict[str, np.ndarray]:
    return {"q": gain * normal(2, 5, 64), "k": 8 * normal(2, 7, 64, seed=1), "v": normal(2, 7, 64, seed=2)}


@pytest.mark.parametrize(
    ("step", "scale", "power", "left"),
    [
        ("Mul(raw, c)", 2.0**-13, -13, set()),
        ("Mul(c, raw)", 0.0001, -14, {"Mul"}),
        ("Div(raw, c)", 2.0**13, -13, set()),
        ("Div(raw, c)", 10000.0, -14, {"Div"}),
    ],
)
def test_a_scale_moves_before_the_product_instead_of_an_island(
    step: str, scale: float, power: int, left: set[str]
) -> None:
    source, given_ = scores(step, scale), feeds(1000.0)
    lowered = checked(source, ranges=observed(source, given_))
    assert_close(lowered, source, given_)
    (note,) = lowered.notes
    assert note.startswith("MatMul 'product': values of up to 1.24e+05 observed; 8 times that exceeds float16")
    assert f"scaled by 2^{power} before the product" in note
    assert by_op(lowered)["MatMul"] == by_op(lowered)["Softmax"] == {"float16"}
    assert lowered.graph.op_counts()["Cast"] == 4
    assert {node.op_type for node in lowered.graph.nodes() if node.name == "scale"} == left
    plain = reference(lower(source, "float16").graph, given_)["y"]
    assert not distance(plain, run(source, given_)["y"]) <= 0.5


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-6, 2e-3), st.booleans(), st.booleans(), st.floats(300, 2000))
def test_any_scale_gives_the_same_scores(scale: float, divides: bool, negative: bool, gain: float) -> None:
    factor = float(np.float32((-1 if negative else 1) * (1 / scale if divides else scale)))
    source, given_ = scores("Div(raw, c)" if divides else "Mul(raw, c)", factor), feeds(gain)
    lowered = checked(source, ranges=observed(source, given_))
    found, truth = reference(lowered.graph, given_), run(source, given_)
    assert distance(found["y"], truth["y"]) <= 0.02


@pytest.mark.parametrize(
    ("source", "gain"),
    [
        (scores("Mul(raw, c)", 0.125), 1.0),
        (scores("Mul(raw, c)", 0.125), 1e5),
        (scores("Mul(raw, c)", 1e-4, ", float[2,5,7] raw"), 1000.0),
        (scores("Mul(raw, raw)", 1.0), 1000.0),
    ],
    ids=["no overflow", "too large when scaled as well", "an output", "a square"],
)
def test_other_products_are_left_as_they_are(source: Graph, gain: float) -> None:
    lowered = checked(source, ranges=observed(source, feeds(gain)))
    assert not any("before the product" in note for note in lowered.notes)


def test_a_product_that_others_read_keeps_its_value() -> None:
    source = graph(
        """g (float[2,64] q, float[3,64] k) => (float[2,3] y, float[2,3] z) <float c = {0.0001}>
        { t = Transpose<perm = [1,0]>(k)  raw = MatMul(q, t)  y = Mul(raw, c)  z = Tanh(raw) }"""
    )
    given_ = {"q": 5000 * normal(2, 64), "k": normal(3, 64, seed=1)}
    lowered = checked(source, ranges=observed(source, given_))
    assert by_op(lowered)["MatMul"] == {"float32"}
    assert_close(lowered, source, given_)


def test_a_factor_that_adds_axes_stays_where_it_is() -> None:
    source = graph(
        """g (float[2,64] q, float[64,3] k) => (float[1,1,2,3] y) <float[1,1,1,1] c = {0.0001220703125}>
        { raw = MatMul(q, k)  s = Mul(raw, c)  y = Softmax(s) }"""
    )
    given_ = {"q": 5000 * normal(2, 64), "k": normal(64, 3, seed=1)}
    lowered = checked(source, ranges=observed(source, given_))
    assert by_op(lowered)["MatMul"] == {"float32"}
    assert_close(lowered, source, given_)
