"""A one-stage detector with CBAM in its neck: an anchor-free YOLO of two levels.

Source: Ge et al., "YOLOX", arXiv 2107.08430 (anchor-free, decoupled head), Tian et al., "FCOS", arXiv 1904.01355
(distances to the sides, centre sampling), CBAM where fine and coarse maps meet.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeattn.nn import CBAM
from edgeattn.zoo.blocks import ResidualBlock, conv_bn_act, upsampled
from edgeattn.zoo.boxes import around, assigned, centres, detections, focal_loss, giou_loss
from edgeattn.zoo.weights import ready


class CBAMYolo(nn.Module):
    """Backbone to an eighth, a neck that brings it back to a quarter, a head that both levels share.

    Args:
        classes: kinds of objects.
        width: channels of the neck.
        count: detections per image.
        suppresses: whether boxes that a better one overlaps are removed in the graph.
    """

    strides = (4, 8)

    def __init__(self, classes: int = 5, width: int = 32, count: int = 32, *, suppresses: bool = True) -> None:
        super().__init__()
        self.count, self.suppresses = count, suppresses
        self.stem = nn.Sequential(conv_bn_act(3, 12, 3, 2), ResidualBlock(12, 24, 2))
        self.deep = nn.Sequential(ResidualBlock(24, width, 2), conv_bn_act(width, width, dilation=2))
        self.fine = nn.Sequential(conv_bn_act(24 + width, width, 1), CBAM(width, rd_ratio=1 / 4))
        self.coarse = CBAM(width, rd_ratio=1 / 4)
        self.kinds = nn.Sequential(conv_bn_act(width, width), nn.Conv2d(width, classes, 1))
        self.sides = nn.Sequential(conv_bn_act(width, width), nn.Conv2d(width, 4, 1))
        nn.init.constant_(self.kinds[1].bias, -4.0)  # type: ignore[arg-type]  # so that rare objects do not drown

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Detect in `x` (B, 3, H, W), sides multiples of 8.

        Returns (B, count, 6), rows x1, y1, x2, y2, score, class in pixels, the score of what is suppressed 0; or,
        where nothing is suppressed, all boxes (B, N, 4) and the probability of each class (B, N, classes).
        """
        logits, boxes = self._raw(x)[:2]
        scores = logits.sigmoid()
        return detections(boxes, scores, self.count) if self.suppresses else (boxes, scores)

    def training_loss(self, x: Tensor, truth: Sequence[Tensor]) -> Tensor:
        """Focal loss of the classes and GIoU loss of the boxes, per place that has an object."""
        logits, boxes, points, strides = self._raw(x)
        classes, targets = assigned(points, strides, truth)
        held = classes >= 0
        wanted = F.one_hot(classes.clamp(min=0), logits.shape[2]).to(logits.dtype) * held.unsqueeze(2)
        count = held.sum().clamp(min=1)
        return (focal_loss(logits, wanted) + 2 * giou_loss(boxes[held], targets[held]).sum()) / count

    def _raw(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Class logits (B, N, classes), boxes (B, N, 4), and of each place its centre (N, 2) and stride (N)."""
        early = self.stem(x)
        deep = self.deep(early)
        levels = self.fine(torch.cat([early, upsampled(deep, early)], 1)), self.coarse(deep)
        logits, boxes, points, strides = [], [], [], []
        for level, stride in zip(levels, self.strides, strict=True):
            middle = centres(level.shape[2], level.shape[3], stride, level)
            distances = stride * F.softplus(self.sides(level)).flatten(2).transpose(1, 2)
            logits.append(self.kinds(level).flatten(2).transpose(1, 2))
            boxes.append(around(middle, distances))
            points.append(middle)
            strides.append(torch.full_like(middle[:, 0], stride))
        return torch.cat(logits, 1), torch.cat(boxes, 1), torch.cat(points), torch.cat(strides)


@ready("1x3x64x64")
def cbam_yolo() -> CBAMYolo:
    """Decoding and suppression in the graph: 32 rows of x1, y1, x2, y2, score, class."""
    return CBAMYolo()


@ready("1x3x64x64", weights="cbam_yolo")
def cbam_yolo_raw() -> CBAMYolo:
    """The same without suppression: 320 boxes and their class probabilities, for who suppresses outside."""
    return CBAMYolo(suppresses=False)
