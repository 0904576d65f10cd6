"""Boxes (x1, y1, x2, y2) in pixels: places of a grid, overlaps, and suppression in plain operators.

`suppressed` is Cluster-NMS: Zheng et al., "Enhancing Geometric Factors in Model Learning and Inference", arXiv
2005.03572, algorithm 2. It has no loop over boxes and no output of unknown length, so every runtime carries it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeattn.zoo.blocks import picked


def centres(height: int, width: int, stride: int, like: Tensor) -> Tensor:
    """The centre (x, y) of each cell of a grid, row by row: (height * width, 2)."""
    ys = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) * stride
    xs = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) * stride
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1)


def around(points: Tensor, distances: Tensor) -> Tensor:
    """Boxes from `points` (N, 2) and distances (B, N, 4) to their left, top, right and bottom sides: (B, N, 4)."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], -1)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every box of `a` (..., N, 4) with every one of `b` (..., M, 4): (..., N, M)."""
    low = torch.maximum(a[..., :, None, :2], b[..., None, :, :2])
    high = torch.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    inter = (high - low).clamp(min=0).prod(-1)
    return inter / (area(a)[..., :, None] + area(b)[..., None, :] - inter).clamp(min=1e-6)


def area(boxes: Tensor) -> Tensor:
    """Pixels of each box (..., 4); 0 for one turned inside out."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def giou_loss(boxes: Tensor, truth: Tensor) -> Tensor:
    """1 - GIoU of each pair (N, 4): Rezatofighi et al., arXiv 1902.09630."""
    inter = (torch.minimum(boxes[:, 2:], truth[:, 2:]) - torch.maximum(boxes[:, :2], truth[:, :2])).clamp(min=0).prod(1)
    hull = (torch.maximum(boxes[:, 2:], truth[:, 2:]) - torch.minimum(boxes[:, :2], truth[:, :2])).clamp(min=0).prod(1)
    union = area(boxes) + area(truth) - inter
    return 1 - inter / union.clamp(min=1e-6) + (hull - union) / hull.clamp(min=1e-6)


def suppressed(boxes: Tensor, classes: Tensor, threshold: float = 0.5, rounds: int = 8) -> Tensor:
    """Which of the boxes (B, K, 4), sorted by falling score, a better one of its class overlaps: 0 or 1, (B, K).

    That of greedy suppression where no chain of overlaps (a hides b, so b does not hide c, ...) exceeds `rounds`.
    """
    same = (classes[:, :, None] == classes[:, None, :]).to(boxes.dtype)
    over = (pairwise_iou(boxes, boxes) > threshold).to(boxes.dtype) * same
    order = torch.arange(boxes.shape[1], device=boxes.device)
    hides = over * (order[:, None] < order[None, :]).to(boxes.dtype)  # (B, by, of)
    hidden = torch.zeros_like(boxes[..., 0])
    for _ in range(rounds):
        hidden = (hides * (1 - hidden)[:, :, None]).amax(1)
    return hidden


def detections(boxes: Tensor, scores: Tensor, count: int, threshold: float = 0.5) -> Tensor:
    """The best boxes after suppression: (B, count, 6) rows x1, y1, x2, y2, score, class; the score of none is 0.

    `boxes` (B, N, 4), `scores` (B, N, classes); a box has its best class only.
    """
    best, classes = scores.max(2)
    top, index = best.topk(count, dim=1)
    chosen, kinds = picked(boxes, index), classes.gather(1, index)
    kept = top * (1 - suppressed(chosen, kinds, threshold))
    return torch.cat([chosen, kept.unsqueeze(2), kinds.unsqueeze(2).to(boxes.dtype)], 2)


def assigned(points: Tensor, strides: Tensor, truth: Sequence[Tensor], reach: float = 1.5) -> tuple[Tensor, Tensor]:
    """What each place has to say in training, FCOS's centre sampling: (B, N) classes, -1 for none, and boxes (B, N, 4).

    A place belongs to the smallest of the boxes that hold it and whose centre lies within `reach` strides. `points`
    (N, 2), `strides` (N), `truth` per image (K, 5): x1, y1, x2, y2, class. Source: Tian et al., arXiv 1904.01355.
    """
    classes = points.new_full((len(truth), len(points)), -1)
    targets = points.new_zeros(len(truth), len(points), 4)
    for row, boxes in enumerate(truth):
        if not len(boxes):
            continue
        sides = torch.cat([points[:, None] - boxes[None, :, :2], boxes[None, :, 2:4] - points[:, None]], 2)  # (N, K, 4)
        middle = (boxes[:, :2] + boxes[:, 2:4]) / 2
        near = (points[:, None] - middle[None]).abs().amax(2) < reach * strides[:, None]
        sizes = area(boxes[:, :4]).expand(len(points), -1)
        sizes = torch.where(near & (sides.amin(2) > 0), sizes, torch.inf)
        least, owner = sizes.min(1)
        taken = least.isfinite()
        classes[row, taken] = boxes[owner[taken], 4]
        targets[row, taken] = boxes[owner[taken], :4]
    return classes.long(), targets


def focal_loss(logits: Tensor, truth: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """The sum of Lin et al.'s focal loss, arXiv 1708.02002, of logits against truths of 0 and 1."""
    losses = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    p = logits.sigmoid()
    wrong = truth * (1 - p) + (1 - truth) * p
    return (losses * wrong**gamma * (truth * alpha + (1 - truth) * (1 - alpha))).sum()
