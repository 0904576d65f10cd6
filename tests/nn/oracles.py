"""What the gates' modules compute, in numpy and float64."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from tests.graphs import Array


def prepared(module: nn.Module) -> tuple[nn.Module, dict[str, Array]]:
    """The module in float64 with every parameter and statistic drawn at random, and its values by name."""
    module = module.double().eval()
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5)
    return module, {name: value.numpy() for name, value in module.state_dict().items()}


def run(module: nn.Module, *inputs: Array) -> Array:
    """The module's result in float64."""
    with torch.no_grad():
        return module(*(torch.from_numpy(array) for array in inputs)).numpy()


def close(found: Array, expected: Array) -> bool:
    """Whether they differ by no more than rounding in float64."""
    return found.shape == expected.shape and bool(np.abs(found - expected).max() <= 1e-12 * np.abs(expected).max())


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softmax(x: Array, axis: int) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def mix(x: Array, weight: Array, bias: Array | float = 0.0) -> Array:
    """A 1x1 convolution (B, C, H, W) -> (B, F, H, W)."""
    return np.einsum("bchw,fc->bfhw", x, weight[:, :, 0, 0]) + np.reshape(bias, (-1, 1, 1))


def normalised(x: Array, weights: dict[str, Array], name: str) -> Array:
    """BatchNorm in inference."""
    column = {
        part: weights[f"{name}.{part}"][:, None, None] for part in ("weight", "bias", "running_mean", "running_var")
    }
    scaled = (x - column["running_mean"]) / np.sqrt(column["running_var"] + 1e-5)
    return scaled * column["weight"] + column["bias"]
