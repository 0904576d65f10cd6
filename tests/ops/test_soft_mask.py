from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeattn.ops.soft_mask import OP
from tests.graphs import Array
from tests.ops.exactness import assert_body_is_reference, fused_exactly, graph_of, weights_of

small = st.sampled_from([1, 2, 3])
DOWN = {
    "pooled": "d = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)",
    "strided": "d = Conv <strides = [2, 2]> (x, w2)",
    "same": "d = Conv <pads = [1, 1, 1, 1]> (x, w3)",
}
UP = {
    "resized": 'u = Resize <mode = "linear"> (c, , , size)',
    "transposed": "u = ConvTranspose <strides = [2, 2]> (c, t2)",
    "same": "u = Conv <pads = [1, 1, 1, 1]> (c, w3)",
}
GATES = {
    "sigmoid": "m = Sigmoid (z)",
    "sigmoid+1": "s = Sigmoid (z)\nm = Add (one, s)",
    "1.5": "s = Sigmoid (z)\nm = Add (half, s)",
    "relu": "m = Relu (z)",
}


def constants(channels: int, rows: int, columns: int) -> dict[str, Array]:
    square = (channels, channels)
    shapes = {"w1": (*square, 1, 1), "w2": (*square, 2, 2), "w3": (*square, 3, 3), "t2": (*square, 2, 2)}
    return weights_of(0, **shapes) | {
        "size": np.array([2, channels, rows, columns]), "one": np.ones((), np.float32),
        "half": np.full((), 1.5, np.float32),
    }  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(small, small, small),
    down=st.sampled_from(sorted(DOWN)),
    up=st.sampled_from(sorted(UP)),
    gate=st.sampled_from(sorted(GATES)),
    trunk=st.sampled_from(["t = Conv (x, w1)", "t = Identity (x)", "t = Identity (z)", "t = Relu (u)"]),
)
def test_a_mask_that_is_altered_is_left_alone_or_computes_the_same(
    sizes: tuple[int, ...], down: str, up: str, gate: str, trunk: str
) -> None:
    C, H, W = sizes[0], 2 * sizes[1], 2 * sizes[2]
    if (down == "same") != (up == "same"):
        return
    body = f"{DOWN[down]}\nc = Relu (d)\n{UP[up]}\nz = Conv (u, w1)\n{trunk}\n{GATES[gate]}\ny = Mul (t, m)"
    image = f"float[2, {C}, {H}, {W}]"
    report = fused_exactly(graph_of(f"({image} x) => ({image} y)", body, constants(C, H, W)))
    masks = [item.variant for item in report.found if item.op == "SoftMask"]
    beside = trunk in ("t = Conv (x, w1)", "t = Identity (x)")
    if not beside or gate not in ("sigmoid", "sigmoid+1") or down == "same":
        assert not masks
    elif C > 1:
        assert masks == [gate]


@pytest.mark.parametrize("joined", ["Add", "Mul", "Sub"])
@pytest.mark.parametrize("vector", ["float[2, 3, 1, 1]", "float[2, 3, 4, 5]"])
def test_a_vector_and_a_plane_are_a_mask(joined: str, vector: str) -> None:
    signature = f"(float[2, 3, 4, 5] x, {vector} v, float[2, 1, 4, 5] p) => (float[2, 3, 4, 5] y)"
    report = fused_exactly(graph_of(signature, f"z = {joined} (v, p)\ns = Sigmoid (z)\ny = Mul (s, x)", {}))
    expected = joined != "Sub" and vector == "float[2, 3, 1, 1]"
    assert [item.op for item in report.found] == ["SoftMask"] * expected


def test_a_mask_of_another_input_is_none() -> None:
    body = f"{DOWN['pooled'].replace('(x)', '(o)')}\nc = Relu (d)\n{UP['resized']}\ns = Sigmoid (u)\ny = Mul (x, s)"
    image = "float[2, 3, 4, 6]"
    report = fused_exactly(graph_of(f"({image} x, {image} o) => ({image} y)", body, constants(3, 4, 6)))
    assert report.found == ()


@pytest.mark.parametrize("variant", ["sigmoid", "hardsigmoid", "tanh", "sigmoid+1", "hardsigmoid+1", "tanh+1"])
def test_the_body_is_the_reference(variant: str) -> None:
    assert_body_is_reference(OP, variant, list(weights_of(0, x=(2, 5, 3, 7), z=(2, 1, 3, 7)).values()))


def test_facts_count_the_gate_and_the_product() -> None:
    body = "z = Add (v, p)\ns = Sigmoid (z)\nm = Add (s, one)\ny = Mul (m, x)"
    signature = "(float[2, 3, 4, 5] x, float[2, 3, 1, 1] v, float[2, 1, 4, 5] p) => (float[2, 3, 4, 5] y)"
    (found,) = fused_exactly(graph_of(signature, body, {"one": np.ones((), np.float32)})).found
    assert found.facts.sizes == {"batch": 2, "channels": 3, "height": 4, "width": 5}
    assert found.facts.flops == 60 + 5 * 60
    assert found.facts.bytes_fused == 4 * 3 * 60
    assert found.facts.bytes_decomposed == 4 * (2 * 60 + 5 * 60)
