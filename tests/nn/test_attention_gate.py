from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeattn.nn import AttentionGate
from tests.nn.oracles import close, mix, prepared, run, sigmoid

small = st.sampled_from([1, 2, 3, 5])


@settings(max_examples=25, deadline=None)
@given(sizes=st.tuples(small, small, small, small, small))
def test_a_gate_at_one_resolution_is_its_formula(sizes: tuple[int, ...]) -> None:
    B, C, G, H, W = sizes
    module, weights = prepared(AttentionGate(C, G))
    generator = np.random.default_rng(0)
    x, g = generator.normal(size=(B, C, H, W)), generator.normal(size=(B, G, H, W))
    hidden = mix(x, weights["theta.weight"]) + mix(g, weights["phi.weight"], weights["phi.bias"])
    z = mix(np.maximum(hidden, 0), weights["psi.weight"], weights["psi.bias"])
    assert close(run(module, x, g), x * sigmoid(z))


def test_a_coarser_gate_of_a_constant_signal_is_its_formula() -> None:
    module, weights = prepared(AttentionGate(3, 4, 2, sub_sample=2))
    x, g = np.ones((2, 3, 8, 6)), np.ones((2, 4, 3, 5))  # resampling keeps what is constant
    theta = weights["theta.weight"].sum((1, 2, 3))
    phi = weights["phi.weight"].sum((1, 2, 3)) + weights["phi.bias"]
    z = (weights["psi.weight"][0, :, 0, 0] * np.maximum(theta + phi, 0)).sum() + weights["psi.bias"]
    assert close(run(module, x, g), x * sigmoid(z))
