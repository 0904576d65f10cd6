"""Segmentation: how far two class maps overlap, class by class, over all pixels of all images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from edgeattn.errors import InputError
from edgeattn.metrics.base import Label, Metric, check_size, is_map, is_mask, mean_where, probability, ratio

if TYPE_CHECKING:
    from edgeattn.tensors import Array

MAX_CLASSES = 4096  # of an output that holds classes


@dataclass
class Segmentation(Metric):
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

    BY_CLASS: ClassVar[str] = "IoU"

    samples: int = 0
    # Of each image: its classes, TP of each, and 2 TP + FP + FN of each.
    images: list[tuple[Array, Array, Array]] = field(default_factory=list)

    @staticmethod
    def fits(label: Label, output: Array) -> bool:
        """A mask, and scores, a probability or classes for each pixel."""
        if output.ndim == 4 and output.dtype.kind in "fV":
            return is_mask(label) and (output.shape[1] > 1 or is_map(output))
        return is_mask(label) and output.ndim == 3 and output.dtype.kind in "iu"

    @staticmethod
    def answers(outputs: Array) -> Sequence[Label]:
        """The class map of each image."""
        return [class_map(output) for output in outputs]

    def add(self, outputs: Array, labels: Sequence[Label]) -> None:
        """Count a batch of outputs and as many masks (H, W)."""
        for output, mask in zip(outputs, labels, strict=True):
            if not isinstance(mask, np.ndarray):
                raise InputError(f"label {mask} is no mask; segmentation needs {self.NEEDS}")
            check_size(output, mask)
            answer, counted = class_map(output), mask >= 0
            classes = max(2, len(output)) if output.ndim == 3 else MAX_CLASSES
            if (highest := int(mask.max(initial=0))) >= classes:
                raise InputError(
                    f"the mask has class {highest}, but the model has {classes} classes (from 0); if it marks pixels "
                    f"to leave out, say so in the recipe: [labels] ignore = {highest}"
                )
            self._count(mask[counted], np.clip(answer, 0, classes - 1)[counted])

    def _count(self, mask: Array, answer: Array) -> None:
        size = int(max(mask.max(initial=0), answer.max(initial=0))) + 1
        right = np.bincount(mask[mask == answer], minlength=size)
        both = np.bincount(mask, minlength=size) + np.bincount(answer, minlength=size)
        classes = np.flatnonzero(both)
        self.images.append((classes, right[classes], both[classes]))
        self.samples += 1

    def _tables(self) -> tuple[Array, Array, Array]:
        """The classes that are anywhere (C,), and by image TP and 2 TP + FP + FN of each (images, C)."""
        classes = np.unique(np.concatenate([np.zeros(0, int), *(own for own, _, _ in self.images)]))
        right, both = np.zeros((2, len(self.images), len(classes)))
        for row, (own, hits, all_of) in enumerate(self.images):
            places = np.searchsorted(classes, own)
            right[row, places], both[row, places] = hits, all_of
        return classes, right, both

    def resampled(self, weights: Array) -> dict[str, Array]:
        """`miou`, `dice` and `pixel_accuracy`."""
        _, right, both = self._tables()
        right, both = weights @ right, weights @ both
        return {
            "miou": mean_where(ratio(right, both - right), both > 0),
            "dice": mean_where(ratio(2 * right, both), both > 0),
            "pixel_accuracy": ratio(2 * right.sum(1), both.sum(1)),
        }

    def by_class(self) -> dict[int, float]:
        """TP / (TP + FP + FN) of each class."""
        classes, right, both = self._tables()
        overlaps = ratio(right.sum(0), both.sum(0) - right.sum(0))
        return {int(name): float(overlap) for name, overlap in zip(classes, overlaps, strict=True)}


def class_map(output: Array) -> Array:
    """Classes (H, W) from scores (C, H, W), a probability (1, H, W), or classes."""
    if output.ndim == 2:
        return output
    return (probability(output) >= 0.5).astype(np.int64) if len(output) == 1 else output.argmax(0)
