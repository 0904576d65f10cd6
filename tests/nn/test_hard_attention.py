from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeattn.errors import UsageError
from edgeattn.nn import HardAttention
from tests.nn.oracles import close, prepared, run


class Mean(nn.Module):
    """Scores (B, N) of patches: their mean."""

    def forward(self, items: Tensor) -> Tensor:
        return items.flatten(2).mean(2)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_hard_attention_is_its_formula(k: int) -> None:
    module, weights = prepared(HardAttention(4, k))
    x = np.random.default_rng(0).normal(size=(2, 5, 4))
    scores = (x @ weights["scorer.weight"].T + weights["scorer.bias"])[..., 0]
    order = np.argsort(-scores, axis=1)[:, :k]
    assert close(run(module, x), np.stack([x[b, order[b]] for b in range(2)]))


def test_patches_are_chosen_whole_by_any_scorer() -> None:
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 2, 2))
    order = np.argsort(-x.reshape(2, 5, -1).mean(2), axis=1)[:, :2]
    module = HardAttention(3, 2, scorer=Mean()).eval()
    assert close(run(module, x), np.stack([x[b, order[b]] for b in range(2)]))


def test_training_gives_the_same_numbers_and_a_gradient_to_the_scorer() -> None:
    module, x = HardAttention(4, 2).double(), torch.randn(3, 5, 4, dtype=torch.float64)
    trained = module.train()(x)
    trained.square().sum().backward()
    assert module.scorer.weight.grad.abs().sum() > 0  # type: ignore[union-attr, operator]
    assert close(trained.detach().numpy(), module.eval()(x).detach().numpy())


def test_nothing_to_choose_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one item"):
        HardAttention(4, 0)
