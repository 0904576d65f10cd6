from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from edgeattn.errors import UsageError
from edgeattn.nn import SelectiveKernel
from tests.nn.oracles import close, mix, normalised, prepared, run, softmax


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("kernels", [(3, 5), (3, 5, 7)])
def test_a_selective_kernel_is_its_formula(kernels: tuple[int, ...], split: bool) -> None:
    count = len(kernels)
    module, weights = prepared(SelectiveKernel(2 * count, 5, kernels, 2, split_input=split, rd_channels=4))
    x = np.random.default_rng(0).normal(size=(2, 2 * count, 7, 9))
    paths = []
    for index in range(count):
        part = x[:, 2 * index : 2 * index + 2] if split else x
        weight, step = weights[f"paths.{index}.conv.weight"], index + 1
        made = F.conv2d(torch.from_numpy(part), torch.from_numpy(weight), stride=2, padding=step, dilation=step)
        paths.append(np.maximum(normalised(made.numpy(), weights, f"paths.{index}.bn"), 0))
    hidden = mix(sum(paths).mean((2, 3), keepdims=True), weights["attn.fc_reduce.weight"])
    logits = mix(np.maximum(normalised(hidden, weights, "attn.bn"), 0), weights["attn.fc_select.weight"])
    shares = softmax(logits.reshape(2, count, 5, 1, 1), 1)
    assert close(run(module, x), sum(shares[:, index] * path for index, path in enumerate(paths)))


def test_kernels_stay_as_they_are_where_it_is_wanted() -> None:
    convolutions = [path.conv for path in SelectiveKernel(8, kernel_size=(3, 5), keep_3x3=False).paths]
    assert [conv.kernel_size for conv in convolutions] == [(3, 3), (5, 5)]
    assert [conv.dilation for conv in convolutions] == [(1, 1), (1, 1)]


@pytest.mark.parametrize(("channels", "kernels"), [(5, (3, 5)), (4, (3, 4))])
def test_what_cannot_be_built_is_refused(channels: int, kernels: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"expected odd|choose a multiple of 2"):
        SelectiveKernel(channels, kernel_size=kernels)


def test_parameters_are_named_as_in_timm_so_that_its_checkpoints_load() -> None:
    assert [name for name, _ in SelectiveKernel(16).named_parameters()] == [
        *(f"paths.{index}.{part}" for index in (0, 1) for part in ("conv.weight", "bn.weight", "bn.bias")),
        "attn.fc_reduce.weight",
        "attn.bn.weight",
        "attn.bn.bias",
        "attn.fc_select.weight",
    ]
