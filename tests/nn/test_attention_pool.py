from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeattn.nn import AttentionPool
from tests.graphs import Array
from tests.nn.oracles import close, prepared, run, sigmoid, softmax

small = st.sampled_from([1, 2, 3, 5])


def expected(x: Array, weights: dict[str, Array], mask: Array | None = None) -> Array:
    """The formula for items (B, N, C)."""
    hidden = np.tanh(x @ weights["value.weight"].T + weights["value.bias"])
    if "gate.weight" in weights:
        hidden = hidden * sigmoid(x @ weights["gate.weight"].T + weights["gate.bias"])
    scores = np.swapaxes(hidden @ weights["fc.weight"].T + weights["fc.bias"], 1, 2)
    if mask is not None:
        scores = np.where(mask[:, None], scores, -np.inf)
    return np.einsum("bmn,bnc->bmc", softmax(scores, -1), x)


@settings(max_examples=25, deadline=None)
@given(sizes=st.tuples(small, small, small, small, small), gated=st.booleans())
def test_pooling_is_its_formula(sizes: tuple[int, ...], gated: bool) -> None:
    B, N, C, D, M = sizes
    module, weights = prepared(AttentionPool(C, D, M, gated=gated))
    x = np.random.default_rng(0).normal(size=(B, N, C))
    assert close(run(module, x), expected(x, weights))


@pytest.mark.parametrize("shape", [(2, 5, 3, 7), (1, 3, 1, 1)])
def test_a_map_is_pooled_over_its_places(shape: tuple[int, ...]) -> None:
    module, weights = prepared(AttentionPool(shape[1]))
    x = np.random.default_rng(0).normal(size=shape)
    assert close(run(module, x), expected(np.swapaxes(x.reshape(*shape[:2], -1), 1, 2), weights))


def test_items_that_are_masked_do_not_count() -> None:
    module, weights = prepared(AttentionPool(4, gated=True))
    x, mask = np.random.default_rng(0).normal(size=(2, 5, 4)), np.ones((2, 5), bool)
    mask[0, 2:] = False
    pooled = run(module, x, mask)
    assert close(pooled, expected(x, weights, mask))
    assert np.array_equal(pooled[:1], module(torch.from_numpy(x[:1, :2])).detach().numpy())
