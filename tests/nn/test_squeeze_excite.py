from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeattn.nn import EffectiveSE, SqueezeExcite
from edgeattn.nn.squeeze_excite import reduced_width
from tests.nn.oracles import close, mix, prepared, run, sigmoid

shapes = st.tuples(*[st.sampled_from([1, 2, 3, 5, 7])] * 4)  # (B, C, H, W)


@settings(max_examples=25, deadline=None)
@given(shape=shapes, bias=st.booleans(), seed=st.integers(0, 99))
def test_squeeze_excite_is_its_formula(shape: tuple[int, ...], bias: bool, seed: int) -> None:
    module, weights = prepared(SqueezeExcite(shape[1], rd_channels=3, bias=bias, act_layer=nn.SiLU))
    x = np.random.default_rng(seed).normal(size=shape)
    hidden = mix(x.mean((2, 3), keepdims=True), weights["fc1.weight"], weights.get("fc1.bias", 0.0))
    z = mix(hidden * sigmoid(hidden), weights["fc2.weight"], weights.get("fc2.bias", 0.0))
    assert close(run(module, x), x * sigmoid(z))


def test_effective_se_is_its_formula() -> None:
    module, weights = prepared(EffectiveSE(5))
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 7))
    z = mix(x.mean((2, 3), keepdims=True), weights["fc.weight"], weights["fc.bias"])
    assert close(run(module, x), x * np.clip(z / 6 + 0.5, 0, 1))


@pytest.mark.parametrize(
    ("channels", "ratio", "width", "divisor", "expected"),
    [(64, 1 / 16, None, 8, 8), (256, 1 / 16, None, 8, 16), (64, 0.25, 5, 8, 5), (8, 1 / 16, None, 1, 1)],
)
def test_the_hidden_layer_is_as_wide_as_the_words_say(
    channels: int, ratio: float, width: int | None, divisor: int, expected: int
) -> None:
    assert reduced_width(channels, ratio, width, divisor) == expected


def test_parameters_are_named_as_in_timm_so_that_its_checkpoints_load() -> None:
    assert list(SqueezeExcite(16).state_dict()) == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    assert list(EffectiveSE(16).state_dict()) == ["fc.weight", "fc.bias"]
