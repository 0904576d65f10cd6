from __future__ import annotations

import numpy as np
import pytest

from edgeattn.nn import GlobalContext
from tests.graphs import Array
from tests.nn.oracles import close, mix, prepared, run, sigmoid, softmax


def mlp(context: Array, weights: dict[str, Array], name: str) -> Array:
    hidden = mix(context, weights[f"{name}.fc1.weight"], weights[f"{name}.fc1.bias"])
    scaled = (hidden - hidden.mean(1, keepdims=True)) / np.sqrt(hidden.var(1, keepdims=True) + 1e-6)
    scaled = scaled * weights[f"{name}.norm.weight"][:, None, None] + weights[f"{name}.norm.bias"][:, None, None]
    return mix(np.maximum(scaled, 0), weights[f"{name}.fc2.weight"], weights[f"{name}.fc2.bias"])


@pytest.mark.parametrize("attend", [True, False])
@pytest.mark.parametrize("halves", ["scale", "add", "scale add"])
@pytest.mark.parametrize("shape", [(2, 5, 3, 7), (1, 3, 1, 1)])
def test_global_context_is_its_formula(shape: tuple[int, ...], halves: str, attend: bool) -> None:
    scale, add = "scale" in halves, "add" in halves
    module, weights = prepared(GlobalContext(shape[1], attend, add, scale, rd_channels=4))
    x = np.random.default_rng(0).normal(size=shape)
    scores = mix(x, weights["conv_attn.weight"], weights["conv_attn.bias"]) if attend else np.zeros_like(x[:, :1])
    shares = softmax(scores.reshape(shape[0], 1, -1), -1).reshape(shape[0], 1, *shape[2:])
    context = (x * shares).sum((2, 3), keepdims=True)
    expected = x * sigmoid(mlp(context, weights, "mlp_scale")) if scale else x
    assert close(run(module, x), expected + mlp(context, weights, "mlp_add") if add else expected)


def test_parameters_are_named_as_in_timm_so_that_its_checkpoints_load() -> None:
    assert [name for name in GlobalContext(16).state_dict() if name.endswith("weight")] == [
        "conv_attn.weight",
        "mlp_scale.fc1.weight",
        "mlp_scale.norm.weight",
        "mlp_scale.fc2.weight",
    ]
