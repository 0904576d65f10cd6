"""Segmentation: how far two class maps overlap, from one confusion matrix over all pixels of all images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from edgeattn.errors import InputError
from edgeattn.metrics.base import Label, check_size, is_map, is_mask, probability

if TYPE_CHECKING:
    from edgeattn.tensors import Array

MAX_CLASSES = 4096  # of an output that holds classes: its confusion matrix has the square of that


@dataclass
class Segmentation:
    """mIoU, Dice and pixel accuracy.

    With TP, FP and FN the pixels of a class over the whole data set, and the mean over the classes that are there, in
    a mask or in an answer:

        miou = mean(TP / (TP + FP + FN))        dice = mean(2 TP / (2 TP + FP + FN))
        pixel_accuracy = sum(TP) / pixels

    An answer is the class of the highest score of (N, C, H, W), a class map of whole numbers (N, H, W) as it is, or
    class 1 where a probability (N, 1, H, W) is at least 0.5. Pixels whose class is below 0 in the mask are left out.

    Source: Everingham et al., The Pascal Visual Object Classes Challenge, IJCV 2015, section 3.4, for the IoU; classes
    that are nowhere are left out of the mean, as in scikit-learn's `jaccard_score` and `f1_score`.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("miou", "dice", "pixel_accuracy")
    NEEDS: ClassVar[str] = (
        "labels that are masks (H, W), and an output of scores (N, classes, H, W), probabilities (N, 1, H, W) or "
        "classes (N, H, W)"
    )

    confusion: Array = field(default_factory=lambda: np.zeros((0, 0), np.int64))  # [mask, answer]

    @staticmethod
    def fits(label: Label, output: Array) -> bool:
        """A mask, and scores, a probability or classes for each pixel."""
        if output.ndim == 4 and output.dtype.kind in "fV":
            return is_mask(label) and (output.shape[1] > 1 or is_map(output))
        return is_mask(label) and output.ndim == 3 and output.dtype.kind in "iu"

    @staticmethod
    def answers(outputs: Array) -> Sequence[Label]:
        """The class map of each image."""
        return [_class_map(output) for output in outputs]

    def add(self, outputs: Array, labels: Sequence[Label]) -> None:
        """Count a batch of outputs and as many masks (H, W)."""
        for output, mask in zip(outputs, labels, strict=True):
            if not isinstance(mask, np.ndarray):
                raise InputError(f"label {mask} is no mask; segmentation needs {self.NEEDS}")
            check_size(output, mask)
            answer, counted = _class_map(output), mask >= 0
            classes = max(2, len(output)) if output.ndim == 3 else MAX_CLASSES
            if (highest := int(mask.max(initial=0))) >= classes:
                raise InputError(
                    f"the mask has class {highest}, but the model has {classes} classes (from 0); if it marks pixels "
                    f"to leave out, say so in the recipe: [labels] ignore = {highest}"
                )
            self._count(mask[counted], np.clip(answer, 0, classes - 1)[counted])

    def _count(self, mask: Array, answer: Array) -> None:
        highest = int(max(mask.max(initial=0), answer.max(initial=0)))
        self.confusion = np.pad(self.confusion, (0, max(0, highest + 1 - len(self.confusion))))
        size = len(self.confusion)
        pairs = mask.astype(np.int64) * size + answer.astype(np.int64)
        self.confusion += np.bincount(pairs, minlength=size * size).reshape(size, size)

    def result(self) -> dict[str, float]:
        """`miou`, `dice` and `pixel_accuracy`."""
        right = self.confusion.diagonal().astype(np.float64)
        both = (self.confusion.sum(0) + self.confusion.sum(1)).astype(np.float64)  # 2 TP + FP + FN
        right, both = right[both > 0], both[both > 0]
        if not both.size:
            return {}
        return {
            "miou": float((right / (both - right)).mean()),
            "dice": float((2 * right / both).mean()),
            "pixel_accuracy": float(2 * right.sum() / both.sum()),
        }


def _class_map(output: Array) -> Array:
    """Classes (H, W) from scores (C, H, W), a probability (1, H, W), or classes."""
    if output.ndim == 2:
        return output
    return (probability(output) >= 0.5).astype(np.int64) if len(output) == 1 else output.argmax(0)
