"""A recurrent network that sees an image only through glimpses, and chooses where to look next.

Source: Mnih et al., "Recurrent Models of Visual Attention", arXiv 1406.6247: the retina, the glimpse network, the core
and the location network of its section 3 and appendix. The core is a GRU; it starts with the whole image, small; and
a glimpse is cut by an affine sampling grid, so the network exports to plain operators. Trained as there: cross entropy
for the class, REINFORCE with a learned baseline for the places.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeattn.zoo.blocks import conv_bn_act
from edgeattn.zoo.weights import ready

GLANCE = 12  # height and width of the whole image, as the network first sees it
STEPS = 12  # places from the middle of the image to its side


class RecurrentAttention(nn.Module):
    """Glimpse, remember, choose the next place; classify after the last glimpse.

    Args:
        glimpses: how many.
        patch: height and width in which each glimpse is seen.
        scales: sides of the windows of one glimpse, as parts of the image's.
        dim: features of the memory.
        in_channels: channels of the image.
        classes: length of the logits.
        spread: standard deviation of the places tried in training; the image spans -1 to 1.
    """

    def __init__(
        self,
        *,
        glimpses: int = 4,
        patch: int = 24,
        scales: tuple[float, ...] = (1 / 2, 1.0),
        dim: int = 64,
        in_channels: int = 1,
        classes: int = 10,
        spread: float = 0.15,
    ) -> None:
        super().__init__()
        self.glimpses, self.patch, self.scales, self.spread = glimpses, patch, scales, spread
        self.what = nn.Sequential(
            conv_bn_act(in_channels * len(scales), 16), conv_bn_act(16, 24, 3, 2), conv_bn_act(24, 16, 3, 2)
        )
        self.read = nn.Linear(16 * (patch // 4) ** 2, dim)
        self.where = nn.Linear(2, dim)
        self.glance = nn.Linear(in_channels * GLANCE**2, dim)
        self.core = nn.GRUCell(dim, dim)
        self.locate = nn.Linear(dim, 2)
        self.value = nn.Linear(dim, 1)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images `x` (B, in_channels, H, W); returns logits (B, classes)."""
        logits, *_ = self._look(x, 0.0)
        return logits

    def training_loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy, REINFORCE on the places with reward 1 for a right class, and the baseline's error."""
        logits, log_probs, values = self._look(x, self.spread)
        reward = (logits.argmax(1) == labels).float().unsqueeze(1)
        advantage = reward - values
        reinforce = -(log_probs * advantage.detach()).sum(1).mean()
        return F.cross_entropy(logits, labels) + 0.05 * reinforce + advantage.square().mean()

    def _look(self, x: Tensor, spread: float) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, and for each glimpse but the first the log-density of its place and the baseline: (B, glimpses)."""
        memory = torch.tanh(self.glance(F.adaptive_avg_pool2d(x, GLANCE).flatten(1)))
        log_probs, values = [], []
        for _ in range(self.glimpses):
            mean = torch.tanh(self.locate(memory.detach() if spread else memory))
            place = mean if not spread else (mean + spread * torch.randn_like(mean)).detach()
            log_probs.append(-((place - mean) ** 2).sum(1) / max(2 * spread**2, 1e-9))
            values.append(self.value(memory.detach()).squeeze(1))
            # Whole steps: else an error of rounding in one place grows from glimpse to glimpse.
            memory = self.core(self._glimpse(x, torch.round(place * STEPS) / STEPS), memory)
        return self.head(memory), torch.stack(log_probs, 1), torch.stack(values, 1)

    def _glimpse(self, x: Tensor, place: Tensor) -> Tensor:
        """What the windows around `place` (B, 2) show, and where they are: (B, dim)."""
        size = [x.shape[0], x.shape[1], self.patch, self.patch]
        seen = [F.grid_sample(x, F.affine_grid(_window(place, scale), size, False), "bilinear", "zeros", False)
                for scale in self.scales]  # fmt: skip
        return F.relu(self.read(self.what(torch.cat(seen, 1)).flatten(1)) + self.where(place))


def _window(place: Tensor, scale: float) -> Tensor:
    """The affine matrix (B, 2, 3) of a window of this scale, centred at `place` (B, 2), kept inside the image."""
    centre = place.clamp(scale - 1, 1 - scale).unsqueeze(2)
    return torch.cat([scale * torch.eye(2, device=place.device).expand(place.shape[0], 2, 2), centre], 2)


@ready("1x1x48x48")
def recurrent_attention() -> RecurrentAttention:
    """Four glimpses of two windows."""
    return RecurrentAttention()
