"""What an output decides, by the task it speaks of: a class, a class for each pixel, boxes; and whether two agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgeattn.metrics import Label, find_task
from edgeattn.metrics.base import probability
from edgeattn.metrics.detection import detected, overlaps
from edgeattn.metrics.segmentation import class_map
from edgeattn.reports.text import number

if TYPE_CHECKING:
    from edgeattn.tensors import Array

__all__ = ["SHOWN", "boxes_of", "decision", "guess", "moved", "said", "unmatched"]

SHOWN = 0.3  # the least score of a box that is decided on
MATCHED = 0.5  # the least IoU of two boxes that are the same
_MASK = np.zeros((1, 1), np.int64)
# Any label of the tasks that an output alone may speak of.
_LABELS: dict[str, Label] = {"classification": 0, "detection": np.zeros((0, 5)), "saliency": _MASK}


def guess(outputs: Sequence[Array], asked: str | None) -> tuple[str, int]:
    """What task the outputs may be of where no label tells, and which of them; no task ("") where none looks like it.

    Scores of classes for each pixel look like any other feature map: only who asks for segmentation has it.
    """
    for task in _LABELS if asked is None else [asked]:
        if found := find_task(_LABELS.get(task, _MASK), outputs, task):
            return found
    return "", 0


def decision(task: str, ours: Array, theirs: Array) -> float:
    """How far what two outputs of one sample decide differs, from 0 to 1: the share of pixels, of boxes, or all."""
    if task == "classification":
        return float(ours.argmax() != theirs.argmax())
    if task == "segmentation":
        return float((class_map(ours) != class_map(theirs)).mean())
    if task == "saliency":
        return float(((probability(ours) >= 0.5) != (probability(theirs) >= 0.5)).mean())
    if task == "detection":
        alone = [len(unmatched(*pair)) for pair in ((ours, theirs), (theirs, ours))]
        return sum(alone) / max(1, len(boxes_of(ours)) + len(boxes_of(theirs)))
    return 0.0


def said(task: str, output: Array) -> str:
    """What one sample's output decides, in words."""
    if task == "classification":
        return ", ".join(f"{best} ({number(float(output[best]))})" for best in np.argsort(-output, kind="stable")[:5])
    if task == "detection":
        found = boxes_of(output)
        return ", ".join(f"{int(row[5])} ({row[4]:.2f})" for row in found[:8]) + (", ..." if len(found) > 8 else "")
    if task == "saliency":
        return f"{100 * float((probability(output) >= 0.5).mean()):.1f} % of the pixels"
    if task == "segmentation":
        classes, counts = np.unique(class_map(output), return_counts=True)
        most = sorted(zip(counts.tolist(), classes.tolist(), strict=True), reverse=True)[:5]
        return ", ".join(f"{name}: {100 * count / counts.sum():.1f} %" for count, name in most)
    return ""


def boxes_of(output: Array) -> Array:
    """The detections (K, 6) that count as decided on, best first."""
    found = detected(output)
    found = found[found[:, 4] >= SHOWN]
    kept: Array = found[np.argsort(-found[:, 4], kind="stable")]
    return kept


def unmatched(output: Array, other: Array) -> Array:
    """The boxes of one output that the other does not have: none of their class overlaps them by half."""
    kept: Array = boxes_of(output)[_overlap(output, other) < MATCHED]
    return kept


def moved(ours: Array, theirs: Array) -> float:
    """How far boxes are from their partners: 1 - IoU, mean over the boxes of both."""
    gaps = 1 - np.concatenate([_overlap(ours, theirs), _overlap(theirs, ours)])
    return float(gaps.mean()) if gaps.size else 0.0


def _overlap(output: Array, other: Array) -> Array:
    """Of each box of one output, the largest overlap with one of its class in the other."""
    mine, theirs = boxes_of(output), boxes_of(other)
    same = mine[:, None, 5] == theirs[None, :, 5]
    shared = overlaps(mine[:, :4], theirs[:, :4], np.zeros(len(theirs), bool))
    best: Array = np.where(same, shared, 0.0).max(1, initial=0.0)
    return best
