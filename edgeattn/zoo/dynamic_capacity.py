"""A dynamic capacity network: a cheap look at the whole image, an expensive one at the few patches that matter.

Source: Almahairi et al., "Dynamic Capacity Networks", arXiv 1511.07838. Saliency is that of its equation 4, the norm of
the gradient of the prediction's entropy with respect to each coarse feature. The top layers are a smooth maximum over
all places and a linear layer here, so that gradient has a closed form and is part of the exported graph. Training adds
the hint of its equation 6.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from edgeattn.zoo.blocks import conv_bn_act, patches, picked
from edgeattn.zoo.weights import ready


class DynamicCapacityNetwork(nn.Module):
    """Coarse features everywhere, fine ones at the `k` most salient patches, `top(logsumexp_n(c_n))` on the mixed map.

    Args:
        k: patches that the fine network sees.
        patch: height and width of a patch; they are centred every 8 pixels.
        dim: features of a place.
        in_channels: channels of the image.
        classes: length of the logits.
        hint: weight of the distance between coarse and fine features in training.
    """

    def __init__(
        self,
        k: int = 6,
        patch: int = 24,
        dim: int = 48,
        *,
        in_channels: int = 1,
        classes: int = 10,
        hint: float = 0.1,
    ) -> None:
        super().__init__()
        self.step, self.k, self.patch, self.hint = 8, k, patch, hint
        self.coarse = nn.Sequential(
            conv_bn_act(in_channels, 8, 5, 4), conv_bn_act(8, 24, 3, 2), nn.Conv2d(24, dim, 1), nn.BatchNorm2d(dim)
        )
        self.fine = nn.Sequential(
            conv_bn_act(in_channels, 16), conv_bn_act(16, 24, 3, 2), conv_bn_act(24, 32, 3, 2),
            nn.AvgPool2d(patch // 8), nn.Flatten(), nn.Linear(128, dim),
        )  # fmt: skip
        self.top = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images `x` (B, in_channels, H, W), sides multiples of 8; returns logits (B, classes)."""
        return self._refine(x)[0]

    def training_loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of the refined and the coarse prediction, and the hint."""
        refined, coarse, distance = self._refine(x)
        return F.cross_entropy(refined, labels) + 0.5 * F.cross_entropy(coarse, labels) + self.hint * distance

    def _refine(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the mixed and of the coarse map, and the mean squared distance of fine to coarse features."""
        features = self.coarse(x).flatten(2).transpose(1, 2)  # (B, N, dim)
        coarse: Tensor = self.top(features.logsumexp(1))
        # The derivative of a logsumexp is the softmax.
        gradient = features.softmax(1) * entropy_gradient(coarse, self.top.weight).unsqueeze(1)
        index = gradient.norm(dim=2).topk(self.k).indices
        squares = patches(F.pad(x, [(self.patch - self.step) // 2] * 4), self.patch, self.step)
        chosen = picked(squares.flatten(2), index).reshape(*index.shape, *squares.shape[2:])
        fine = self.fine(chosen.flatten(0, 1)).unflatten(0, chosen.shape[:2])
        rough = picked(features, index)
        mixed = features.scatter(1, index.unsqueeze(2).expand_as(fine), fine)
        return self.top(mixed.logsumexp(1)), coarse, (fine.detach() - rough).square().mean()


def entropy_gradient(logits: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the softmax's entropy H with respect to the linear layer's input: `W^T (-p (log p + H))`.

    `logits` (B, K), `weight` (K, D); returns (B, D).
    """
    log_p = F.log_softmax(logits, 1)
    p = log_p.exp()
    entropy = -(p * log_p).sum(1, keepdim=True)
    return -(p * (log_p + entropy)) @ weight


@ready("1x1x48x48")
def dynamic_capacity_network() -> DynamicCapacityNetwork:
    """Six of 36 patches."""
    return DynamicCapacityNetwork()
