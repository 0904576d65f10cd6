"""Classification: the share of samples whose class is among the k of the highest scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from edgeattn.errors import InputError
from edgeattn.metrics.base import Label, Metric, ratio

if TYPE_CHECKING:
    from edgeattn.tensors import Array


@dataclass
class Classification(Metric):
    """top-k = share of samples whose class is among their k highest scores, for k = 1 and, beyond 5 classes, 5.

    Of equal scores the lower class comes first, as `argmax` has it.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("top1", "top5")
    NEEDS: ClassVar[str] = "labels that are classes, and an output of scores (N, classes)"
    BY_CLASS: ClassVar[str] = "top1"

    samples: int = 0
    classes: int = 0
    labels: list[int] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)  # how many scores come before the label's

    @staticmethod
    def fits(label: Label, output: Array) -> bool:
        """A class, and scores (N, classes) of floats."""
        return isinstance(label, int) and output.ndim == 2 and output.shape[1] > 1 and output.dtype.kind in "fV"

    @staticmethod
    def answers(outputs: Array) -> Sequence[Label]:
        """The class of the highest score."""
        return [int(best) for best in outputs.argmax(1)]

    def add(self, outputs: Array, labels: Sequence[Label]) -> None:
        """Count a batch of scores (N, classes) and N classes."""
        self.classes = outputs.shape[1]
        for label in labels:
            if not isinstance(label, int) or not 0 <= label < self.classes:
                said = label if isinstance(label, int) else "no class"
                raise InputError(f"label {said}, but the model has {self.classes} classes (from 0)")
            self.labels.append(label)
        order = np.argsort(-outputs.astype(np.float64), axis=1, kind="stable")
        self.ranks += (order == np.asarray(labels)[:, None]).argmax(1).tolist()
        self.samples += len(labels)

    def resampled(self, weights: Array) -> dict[str, Array]:
        """`top1`, and `top5` where there are more classes than that."""
        ranks = np.asarray(self.ranks, int)
        return {f"top{k}": ratio(weights @ (ranks < k), weights.sum(1)) for k in (1, 5) if k < self.classes}

    def by_class(self) -> dict[int, float]:
        """The share of each class's samples that are called by it."""
        ranks, labels = np.asarray(self.ranks, int), np.asarray(self.labels, int)
        return {int(label): float((ranks[labels == label] == 0).mean()) for label in np.unique(labels)}
