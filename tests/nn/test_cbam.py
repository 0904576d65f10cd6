from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeattn.nn import CBAM, ChannelAttention, SpatialAttention
from tests.nn.oracles import prepared, sigmoid

shapes = st.tuples(*[st.sampled_from([1, 2, 3, 5, 7, 11])] * 4)  # (B, C, H, W)


def channel_oracle(x: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    def mlp(pooled: np.ndarray) -> np.ndarray:  # (B, C)
        hidden = pooled @ weights["fc1.weight"][:, :, 0, 0].T + weights.get("fc1.bias", 0)
        return np.maximum(hidden, 0) @ weights["fc2.weight"][:, :, 0, 0].T + weights.get("fc2.bias", 0)

    gate = sigmoid(mlp(x.mean((2, 3))) + mlp(x.max((2, 3))))
    return x * gate[:, :, None, None]


def spatial_oracle(x: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    kernel = weights["conv.conv.weight"][0]  # (2, K, K)
    K = kernel.shape[-1]
    B, _, H, W = x.shape
    planes = np.zeros((B, 2, H + K - 1, W + K - 1))
    planes[:, 0, K // 2 : K // 2 + H, K // 2 : K // 2 + W] = x.mean(1)
    planes[:, 1, K // 2 : K // 2 + H, K // 2 : K // 2 + W] = x.max(1)
    score = np.zeros((B, H, W))
    for i in range(K):
        for j in range(K):
            score += (planes[:, :, i : i + H, j : j + W] * kernel[:, i, j, None, None]).sum(1)
    score = (score - weights["conv.bn.running_mean"]) / np.sqrt(weights["conv.bn.running_var"] + 1e-5)
    return x * sigmoid(score * weights["conv.bn.weight"] + weights["conv.bn.bias"])[:, None]


def close(ours: torch.Tensor, expected: np.ndarray, x: np.ndarray) -> bool:
    return bool(np.abs(ours.detach().numpy() - expected).max() <= 64 * np.spacing(np.abs(x).max()))


@settings(max_examples=25, deadline=None)
@given(shape=shapes, bias=st.booleans(), seed=st.integers(0, 99))
def test_channel_attention_is_its_formula(shape: tuple[int, ...], bias: bool, seed: int) -> None:
    module, weights = prepared(ChannelAttention(shape[1], rd_ratio=0.5, mlp_bias=bias))
    x = np.random.default_rng(seed).normal(size=shape)
    assert close(module(torch.from_numpy(x)), channel_oracle(x, weights), x)


@settings(max_examples=25, deadline=None)
@given(shape=shapes, kernel_size=st.sampled_from([1, 3, 7]), seed=st.integers(0, 99))
def test_spatial_attention_is_its_formula(shape: tuple[int, ...], kernel_size: int, seed: int) -> None:
    module, weights = prepared(SpatialAttention(kernel_size))
    x = np.random.default_rng(seed).normal(size=shape)
    assert close(module(torch.from_numpy(x)), spatial_oracle(x, weights), x)


def test_cbam_gates_by_channel_first_and_then_by_place() -> None:
    module, weights = prepared(CBAM(6, rd_ratio=0.5))
    x = np.random.default_rng(0).normal(size=(2, 6, 5, 3))
    part = {name: {k.removeprefix(name): v for k, v in weights.items()} for name in ("channel.", "spatial.")}
    expected = spatial_oracle(channel_oracle(x, part["channel."]), part["spatial."])
    assert close(module(torch.from_numpy(x)), expected, x)


@pytest.mark.parametrize(
    ("words", "width"),
    [
        ({"channels": 64}, 4),
        ({"channels": 8}, 1),
        ({"channels": 64, "rd_ratio": 0.25}, 16),
        ({"channels": 64, "rd_channels": 5}, 5),
        ({"channels": 64, "rd_divisor": 8}, 8),
        ({"channels": 300, "rd_ratio": 0.1, "rd_divisor": 8}, 32),
    ],
)
def test_the_mlp_is_as_wide_as_the_words_say(words: dict[str, float], width: int) -> None:
    assert ChannelAttention(**words).fc1.out_channels == width  # type: ignore[arg-type]


def test_parameters_are_named_as_in_timm_so_that_its_checkpoints_load() -> None:
    assert [name for name, _ in CBAM(16).named_parameters()] == [
        "channel.fc1.weight",
        "channel.fc2.weight",
        "spatial.conv.conv.weight",
        "spatial.conv.bn.weight",
        "spatial.conv.bn.bias",
    ]
