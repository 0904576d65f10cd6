"""A two-stage detector on a backbone with squeeze-and-excitation.

Source: Ren et al., "Faster R-CNN", arXiv 1506.01497: proposals from the backbone's map, then a head that looks at each
of them. Proposals are anchor-free (arXiv 1904.01355); features of a proposal are sampled bilinearly at the centres of
its bins, RoIAlign (He et al., arXiv 1703.06870) with one sample a bin. The number of proposals is fixed, so every
shape in the graph is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeattn.nn import SqueezeExcite
from edgeattn.zoo.blocks import ResidualBlock, conv_bn_act, picked, upsampled
from edgeattn.zoo.boxes import (
    around,
    assigned,
    centres,
    detections,
    focal_loss,
    giou_loss,
    pairwise_iou,
    suppressed,
)
from edgeattn.zoo.weights import ready

STRIDE = 4


class SEFasterRCNN(nn.Module):
    """Backbone, proposals, bins of features, a class and a better box for each proposal.

    Args:
        classes: kinds of objects.
        width: channels of the map that both stages read.
        proposals: how many the second stage looks at.
        count: detections per image.
        bins: height and width of a proposal's features.
    """

    def __init__(self, classes: int = 5, width: int = 32, proposals: int = 24, count: int = 16, bins: int = 5) -> None:
        super().__init__()
        squeeze = partial(SqueezeExcite, rd_ratio=1 / 4)
        self.proposals, self.count, self.bins = proposals, count, bins
        self.early = nn.Sequential(conv_bn_act(3, 12, 3, 2), ResidualBlock(12, 24, 2, squeeze))
        self.deep = ResidualBlock(24, width, 2, squeeze)
        self.merge = conv_bn_act(24 + width, width)
        self.objectness, self.sides = nn.Conv2d(width, 1, 1), nn.Conv2d(width, 4, 1)
        self.look = nn.Sequential(nn.Linear(width * bins**2, 48), nn.ReLU())
        self.kinds, self.shifts = nn.Linear(48, classes + 1), nn.Linear(48, 4)
        nn.init.constant_(self.objectness.bias, -3.0)  # type: ignore[arg-type]  # so that rare objects do not drown
        nn.init.zeros_(self.shifts.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Detect in `x` (B, 3, H, W), sides multiples of 8: (B, count, 6), rows x1, y1, x2, y2, score, class."""
        features, objectness, boxes, _ = self._propose(x)
        chosen = self._chosen(objectness, boxes)
        logits, shifts = self._look_at(features, chosen, x)
        return detections(_shifted(chosen, shifts), logits.softmax(2)[..., :-1], self.count)

    def training_loss(self, x: Tensor, truth: Sequence[Tensor]) -> Tensor:
        """Both stages: focal and GIoU loss of the proposals, cross entropy and GIoU loss of what the head says."""
        features, objectness, boxes, points = self._propose(x)
        classes, targets = assigned(points, torch.full_like(points[:, 0], STRIDE), truth)
        held = classes >= 0
        first = focal_loss(objectness, held.to(objectness.dtype)) + giou_loss(boxes[held], targets[held]).sum()
        chosen = self._chosen(objectness, boxes).detach()
        logits, shifts = self._look_at(features, chosen, x)
        kinds, wanted = self._matched(chosen, truth, logits.shape[2] - 1)
        real = kinds < logits.shape[2] - 1
        second = giou_loss(_shifted(chosen, shifts)[real], wanted[real]).sum() / real.sum().clamp(min=1)
        return first / held.sum().clamp(min=1) + F.cross_entropy(logits.flatten(0, 1), kinds.flatten()) + second

    def _propose(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features (B, C, h, w), logits (B, N) and boxes (B, N, 4) of all places, and the places (N, 2)."""
        early = self.early(x)
        features = self.merge(torch.cat([early, upsampled(self.deep(early), early)], 1))
        points = centres(features.shape[2], features.shape[3], STRIDE, features)
        distances = 2 * STRIDE * F.softplus(self.sides(features)).flatten(2).transpose(1, 2)
        return features, self.objectness(features).flatten(1), around(points, distances), points

    def _chosen(self, objectness: Tensor, boxes: Tensor) -> Tensor:
        """The best boxes of which none overlaps a better one much, and, where these are too few, others."""
        top, index = objectness.topk(3 * self.proposals, dim=1)
        best = picked(boxes, index)
        # Lowered and not replaced by one number: no two places may tie, or runtimes choose differently.
        left = top - 100 * suppressed(best, torch.zeros_like(top), 0.7)
        return picked(best, left.topk(self.proposals, dim=1).indices)

    def _look_at(self, features: Tensor, boxes: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (B, K, classes + 1), the last for nothing, and shifts (B, K, 4) of boxes (B, K, 4)."""
        steps = (torch.arange(self.bins, device=x.device, dtype=x.dtype) + 0.5) / self.bins
        low, sides = boxes[..., :2, None], (boxes[..., 2:] - boxes[..., :2])[..., None]
        places = low + sides * steps  # (B, K, 2, bins): x and y of each column and row
        spread = 2 * places / places.new_tensor([x.shape[3], x.shape[2]])[:, None] - 1
        columns = spread[:, :, 0, None, :].expand(-1, -1, self.bins, -1)
        rows = spread[:, :, 1, :, None].expand(-1, -1, -1, self.bins)
        grid = torch.stack([columns, rows], -1).flatten(2, 3)  # (B, K, bins^2, 2)
        seen = F.grid_sample(features, grid, "bilinear", "border", False)  # (B, C, K, bins^2)
        hidden = self.look(seen.transpose(1, 2).flatten(2))
        return self.kinds(hidden), self.shifts(hidden)

    def _matched(self, boxes: Tensor, truth: Sequence[Tensor], nothing: int) -> tuple[Tensor, Tensor]:
        """The class (B, K) and box (B, K, 4) that each proposal should become: those it overlaps by half."""
        kinds = torch.full(boxes.shape[:2], nothing, device=boxes.device)
        wanted = boxes.clone()
        for row, objects in enumerate(truth):
            if len(objects):
                overlap, owner = pairwise_iou(boxes[row], objects[:, :4]).max(1)
                hit = overlap >= 0.5
                kinds[row, hit] = objects[owner[hit], 4].long()
                wanted[row, hit] = objects[owner[hit], :4]
        return kinds, wanted


def _shifted(boxes: Tensor, shifts: Tensor) -> Tensor:
    """Boxes moved by `shifts` (B, K, 4) of their centre, in sides, and grown by the exponentials of the other two."""
    sides = boxes[..., 2:] - boxes[..., :2]
    middle = (boxes[..., 2:] + boxes[..., :2]) / 2 + shifts[..., :2] * sides
    grown = sides * shifts[..., 2:].clamp(-2, 2).exp() / 2
    return torch.cat([middle - grown, middle + grown], -1)


@ready("1x3x64x64")
def se_faster_rcnn() -> SEFasterRCNN:
    """24 proposals, 16 detections."""
    return SEFasterRCNN()
