"""Hard attention: keep the few items with the highest scores, and compute nothing for the others.

Source: Xu et al., "Show, Attend and Tell", arXiv 1502.03044, section 4.1 (one item), and Almahairi et al., "Dynamic
Capacity Networks", arXiv 1511.07838 (the k most salient patches). Both train the choice in their own way (REINFORCE;
the gradient of an entropy as the score); here it is the straight-through estimate, which needs neither.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeattn.errors import UsageError


class HardAttention(nn.Module):
    """Choose the k items with the highest scores, best first.

    `s = scorer(items)`, `i = topk(s, k)`, `y_j = items[i_j]`. While training, `y_j` is multiplied by
    `1 + p_j - stop(p_j)` with `p = softmax(s)`: the same numbers, but a gradient reaches the scorer. In eval mode it
    is the choice alone.

    Args:
        dim: numbers C of an item, for the default scorer, a linear layer.
        k: how many items are chosen.
        scorer: a network from (B, N, ...) to scores (B, N) or (B, N, 1), in place of the linear layer; needed for
            items that are patches (B, N, C, h, w).

    Raises:
        UsageError: `k` is below 1.
    """

    def __init__(self, dim: int, k: int = 1, scorer: nn.Module | None = None) -> None:
        super().__init__()
        if k < 1:
            raise UsageError(f"k is {k}, expected at least one item to choose")
        self.k, self.scorer = k, scorer or nn.Linear(dim, 1)

    def forward(self, items: Tensor) -> Tensor:
        """Choose from `items` (B, N, ...), N at least k: (B, k, ...)."""
        scores: Tensor = self.scorer(items).flatten(1)
        places = scores.topk(self.k, dim=1).indices
        spread = places.view(*places.shape, *[1] * (items.ndim - 2)).expand(-1, -1, *items.shape[2:])
        chosen = items.gather(1, spread)
        if not self.training:
            return chosen
        shares = torch.softmax(scores, dim=1).gather(1, places)
        return chosen * (1 + shares - shares.detach()).view(*places.shape, *[1] * (items.ndim - 2))
