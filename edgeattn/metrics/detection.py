"""Detection: average precision as COCO has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from edgeattn.errors import InputError
from edgeattn.metrics.base import Label, Metric, mean_where, ratio

if TYPE_CHECKING:
    from edgeattn.tensors import Array

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MOST = 100  # detections of one class in one image
ANY_MATCH = 1 - 1e-10  # COCO's: rounding must not keep a perfect box from matching


@dataclass
class _OfClass:
    """What is kept of one class: how many boxes each image has, and of all detections the image, the score and matches.

    `right` and `ignored` are (thresholds, detections): which took a box, and which of them only a crowd.
    """

    boxes: dict[int, int] = field(default_factory=dict)
    images: list[Array] = field(default_factory=list)
    scores: list[Array] = field(default_factory=list)
    right: list[Array] = field(default_factory=list)
    ignored: list[Array] = field(default_factory=list)

    def ranked(self) -> tuple[Array, Array, Array]:
        """Image, and `right` and `ignored`, of the detections in the order of their scores."""
        order = np.argsort(-np.concatenate(self.scores), kind="stable")
        right, ignored = (np.concatenate(kept, 1)[:, order] for kept in (self.right, self.ignored))
        return np.concatenate(self.images)[order], right, ignored

    def average_precision(self, weights: Array) -> Array:
        """On each resample at each threshold (R, thresholds); nan where a resample has no box.

        Precision is read where a detection takes a box: there alone recall rises, and a sample that comes several
        times only makes the step larger.
        """
        boxes = weights[:, list(self.boxes)] @ np.array(list(self.boxes.values()), float)
        images, right, ignored = self.ranked()
        times = weights[:, images]
        all_seen = times.cumsum(1)
        found = np.full((len(weights), len(THRESHOLDS)), np.nan)
        for index, (hit, none) in enumerate(zip(right & ~ignored, ignored, strict=True)):
            hits = times[:, hit].cumsum(1)
            seen = np.where(none, 0.0, times).cumsum(1) if none.any() else all_seen
            precision = np.maximum.accumulate((hits / np.maximum(seen[:, hit], 1))[:, ::-1], 1)[:, ::-1]
            reached = np.searchsorted(RECALLS, ratio(hits, boxes[:, None]), side="right")
            found[:, index] = (np.diff(reached, prepend=0) * precision).sum(1) / len(RECALLS)
        found[boxes == 0] = np.nan
        return found


@dataclass
class Detection(Metric):
    """mAP at IoU 0.5, and its mean over IoU 0.50, 0.55 .. 0.95.

    In each image and class, the 100 best detections take, best first, the free box of the highest IoU. Over all
    images, in the order of the scores, precision = TP / (TP + FP) and recall = TP / boxes; with precision made
    monotone from the right, AP is its mean at recall 0, 0.01 .. 1, and mAP the mean over the classes that have boxes.

    A box of class `-1 - c` is a crowd of class c: detections mostly within it (intersection over their own area) count
    neither way. A detection whose score is not above 0, or whose class is below, is padding.

    Source: Lin et al., arXiv 1405.0312, and `pycocotools.cocoeval` (cocodataset/cocoapi), area "all", maxDets 100.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("map50", "map")
    NEEDS: ClassVar[str] = (
        "labels that are boxes (K, 5), and an output of detections (N, K, 6: x1, y1, x2, y2, score, class)"
    )

    BY_CLASS: ClassVar[str] = "AP50"

    samples: int = 0
    classes: dict[float, _OfClass] = field(default_factory=dict)

    @staticmethod
    def fits(label: Label, output: Array) -> bool:
        """Boxes of floats, and detections (N, K, 6)."""
        boxes = isinstance(label, np.ndarray) and label.ndim == 2 and label.shape[1] == 5 and label.dtype.kind == "f"
        return boxes and output.ndim == 3 and output.shape[2] == 6

    @staticmethod
    def answers(outputs: Array) -> Sequence[Label]:
        """The detections as boxes."""
        return [detected(rows)[:, [0, 1, 2, 3, 5]] for rows in outputs]

    def add(self, outputs: Array, labels: Sequence[Label]) -> None:
        """Count a batch of detections (N, K, 6) and N arrays of boxes (K, 5)."""
        for rows, boxes in zip(outputs, labels, strict=True):
            if not isinstance(boxes, np.ndarray) or boxes.shape[1:] != (5,):
                raise InputError(f"the label holds no boxes; detection needs {self.NEEDS}")
            found, true = detected(rows), boxes.astype(np.float64)
            crowd = true[:, 4] < 0
            home = np.where(crowd, -1 - true[:, 4], true[:, 4])
            for number in map(float, np.unique([*found[:, 5], *home])):
                of_class = home == number
                self._count(number, found[found[:, 5] == number], true[of_class, :4], crowd[of_class])
            self.samples += 1

    def _count(self, number: float, found: Array, true: Array, crowd: Array) -> None:
        found = found[np.argsort(-found[:, 4], kind="stable")[:MOST]]
        right, ignored = _match(overlaps(found[:, :4], true, crowd), crowd)
        kept = self.classes.setdefault(number, _OfClass())
        if count := int((~crowd).sum()):
            kept.boxes[self.samples] = count
        kept.images.append(np.full(len(found), self.samples))
        kept.scores.append(found[:, 4])
        kept.right.append(right)
        kept.ignored.append(ignored)

    def resampled(self, weights: Array) -> dict[str, Array]:
        """`map50` and `map`."""
        each = [kept.average_precision(weights) for kept in self.classes.values() if kept.boxes]
        if not each:
            return {}
        precisions = np.stack(each, -1)
        means = mean_where(precisions, np.isfinite(precisions))
        return {"map50": means[:, 0], "map": means.mean(1)}

    def by_class(self) -> dict[int, float]:
        """AP at IoU 0.5 of each class that has boxes."""
        once = np.ones((1, self.samples))
        return {
            int(number): float(kept.average_precision(once)[0, 0])
            for number, kept in sorted(self.classes.items())
            if kept.boxes
        }

    def curve(self) -> list[tuple[float, float]]:
        """Precision at recall 0, 0.01 .. 1 and IoU 0.5, mean over the classes."""
        rows = []
        for kept in self.classes.values():
            if kept.boxes:
                _, right, ignored = kept.ranked()
                hit = (right & ~ignored)[0]
                hits, seen = hit.cumsum()[hit], (~ignored[0]).cumsum()[hit]
                precision = np.maximum.accumulate((hits / seen)[::-1])[::-1]
                places = np.searchsorted(hits / sum(kept.boxes.values()), RECALLS, side="left")
                rows.append(np.append(precision, 0.0)[places])
        return list(zip(RECALLS.tolist(), np.mean(rows, 0).tolist(), strict=True)) if rows else []


def overlaps(found: Array, true: Array, crowd: Array) -> Array:
    """Intersection over union (found, true); over the found box's own area where the true one is a crowd."""
    low = np.maximum(found[:, None, :2], true[None, :, :2])
    high = np.minimum(found[:, None, 2:4], true[None, :, 2:4])
    both = np.prod(np.clip(high - low, 0.0, None), 2)
    own, other = (np.prod(boxes[:, 2:4] - boxes[:, :2], 1) for boxes in (found, true))
    whole = np.where(crowd, own[:, None], own[:, None] + other - both)
    ratio: Array = np.divide(both, whole, out=np.zeros_like(both), where=whole > 0)
    return ratio


def _match(iou: Array, crowd: Array) -> tuple[Array, Array]:
    """Which detections (thresholds, found) took a box, and which of them only a crowd.

    A crowd is never used up; of equal overlaps the later box is taken, as in the reference.
    """
    taken = np.zeros((len(THRESHOLDS), iou.shape[1]), bool)
    right, ignored = (np.zeros((len(THRESHOLDS), iou.shape[0]), bool) for _ in range(2))
    if not iou.shape[1]:
        return right, ignored
    rows, least = np.arange(len(THRESHOLDS)), np.minimum(THRESHOLDS, ANY_MATCH)
    for place, row in enumerate(iou):
        reached = row >= least[:, None]
        single = np.where(reached & ~taken & ~crowd, row, -1.0)
        best = single.shape[1] - 1 - single[:, ::-1].argmax(1)
        hit = single[rows, best] >= 0
        taken[rows[hit], best[hit]] = True
        ignored[:, place] = ~hit & (reached & crowd).any(1)
        right[:, place] = hit | ignored[:, place]
    return right, ignored


def detected(rows: Array) -> Array:
    """The rows (K, 6) that are detections, in float64."""
    found = rows[np.isfinite(rows.astype(np.float64)).all(1)].astype(np.float64)
    found[:, 5] = np.rint(found[:, 5])
    kept: Array = found[(found[:, 4] > 0) & (found[:, 5] >= 0)]
    return kept
