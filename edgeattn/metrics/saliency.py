"""Saliency: how well a map of probabilities shows the object that stands out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from edgeattn.errors import InputError
from edgeattn.metrics.base import Label, Metric, check_size, is_map, is_mask, probability, ratio

if TYPE_CHECKING:
    from edgeattn.tensors import Array

BETA_SQUARED = 0.3
ALPHA = 0.5
LEVELS = 256
TINY = float(np.finfo(np.float64).eps)
_OBJECT = (1, 255)
_KEPT = 7  # numbers kept of an image, before its F at every threshold
_OF_ALL = (2, 3)  # of these, the means over images without an object too


@dataclass
class Saliency(Metric):
    """F-beta, precision, recall, S-measure and mean absolute error, means over images, on probabilities (N, 1, H, W).

    With P and R the precision and recall of the pixels at or above a threshold, and beta^2 = 0.3,

        F(t) = (1 + beta^2) P R / (beta^2 P + R)
        fbeta = max over t = 0/255 .. 255/255 of the mean of F(t)
        fbeta_adaptive, precision, recall: at t = min(1, 2 mean(map)) of each image
        smeasure = max(0, S_object / 2 + S_region / 2)        mae = mean |map - mask|

    A mask holds 0, and 1 or 255 on the object. Pixels below 0 in it are left out. An image without an object has no
    precision, so it counts only in `smeasure` and `mae`. Values outside 0 .. 1 are clipped: end a model with a sigmoid.

    Source: Achanta et al., Frequency-tuned Salient Region Detection, CVPR 2009, for F and both kinds of threshold;
    Fan et al., arXiv 1708.00786, for the S-measure. Maps are taken as they are, not stretched to 0 .. 1 one by one.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("fbeta", "fbeta_adaptive", "precision", "recall", "smeasure", "mae")
    NEEDS: ClassVar[str] = "labels that are masks (H, W) of 0 and 1, and an output of probabilities (N, 1, H, W)"

    samples: int = 0
    # Of each image: whether it counts and has an object, S and mean error, F, P and R at its own threshold, F at all.
    images: list[Array] = field(default_factory=list)
    curves: Array = field(default_factory=lambda: np.zeros((2, LEVELS)))  # sums of precision and recall

    @staticmethod
    def fits(label: Label, output: Array) -> bool:
        """A mask, and one probability for each pixel."""
        return is_mask(label) and is_map(output)

    @staticmethod
    def answers(outputs: Array) -> Sequence[Label]:
        """None: a mask cannot say what a map of probabilities says."""
        return []

    def add(self, outputs: Array, labels: Sequence[Label]) -> None:
        """Count a batch of maps (N, 1, H, W) and N masks (H, W)."""
        for output, mask in zip(outputs, labels, strict=True):
            if not isinstance(mask, np.ndarray):
                raise InputError(f"label {mask} is no mask; saliency needs {self.NEEDS}")
            check_size(output, mask)
            counted, truth = mask >= 0, np.isin(mask, _OBJECT)
            if strange := mask[counted & ~truth & (mask != 0)].tolist():
                raise InputError(f"the mask has class {strange[0]}; saliency knows 0, and 1 or 255 for the object")
            self.images.append(self._counted(probability(output), truth, counted))
            self.samples += 1

    def _counted(self, values: Array, truth: Array, counted: Array) -> Array:
        """What is kept of an image."""
        kept = np.zeros(_KEPT + LEVELS)
        if not counted.any():
            return kept
        structure = s_measure(values, truth, counted)
        values, truth = values[counted], truth[counted]
        kept[:4] = 1, truth.any(), structure, np.abs(values - truth).mean()
        if truth.any():
            curves = _at_every_threshold(values, truth)
            chosen = values >= min(1.0, 2 * float(values.mean()))
            hits, picked = np.count_nonzero(chosen & truth), np.count_nonzero(chosen)
            precision, recall = np.float64(hits / picked if picked else 0.0), hits / np.count_nonzero(truth)
            kept[4:_KEPT] = float(_f_beta(precision, np.float64(recall))), precision, recall
            kept[_KEPT:] = _f_beta(*curves)
            self.curves += curves
        return kept

    def resampled(self, weights: Array) -> dict[str, Array]:
        """All of `NAMES`; without any object only `smeasure` and `mae` have a meaning."""
        sums = weights @ np.reshape(self.images, (self.samples, _KEPT + LEVELS))
        means = ratio(sums, np.where(np.isin(np.arange(sums.shape[1]), _OF_ALL), sums[:, :1], sums[:, 1:2]))
        curve = means[:, _KEPT:].max(1)
        return dict(zip(self.NAMES, (curve, *means[:, [4, 5, 6, 2, 3]].T), strict=True))

    def curve(self) -> list[tuple[float, float]]:
        """Of the means over the images with an object, at the thresholds 255/255 .. 0/255."""
        count = sum(image[1] for image in self.images)
        precision, recall = self.curves[:, ::-1] / max(count, 1)
        return list(zip(recall.tolist(), precision.tolist(), strict=True)) if count else []


def _at_every_threshold(values: Array, truth: Array) -> tuple[Array, Array]:
    """Precision and recall of `values >= t`, for t = 0/255 .. 255/255; precision is 0 where nothing is chosen."""
    level = np.searchsorted(np.arange(LEVELS) / (LEVELS - 1), values, side="right") - 1
    hits, chosen = (np.bincount(part, minlength=LEVELS)[::-1].cumsum()[::-1] for part in (level[truth], level))
    return hits / np.maximum(chosen, 1), hits / hits[0]


def _f_beta(precision: Array | np.float64, recall: Array | np.float64) -> Array:
    below = BETA_SQUARED * precision + recall
    return np.asarray((1 + BETA_SQUARED) * precision * recall / np.where(below > 0, below, 1.0))


def s_measure(values: Array, truth: Array, counted: Array) -> float:
    """The structure measure S = max(0, alpha S_object + (1 - alpha) S_region) with alpha = 0.5.

    S_object weighs how bright and even the map is on the object, 2 x / (x^2 + 1 + sigma), and how dark and even
    beside it, by their areas. S_region is the mean of the structural similarity of the four blocks that meet at the
    object's centroid, by their areas. A mask that is all background gives 1 - mean(map), one that is all object
    mean(map).

    Args:
        values: the map (H, W), 0 .. 1.
        truth: where the object is (H, W), booleans.
        counted: the pixels that count (H, W), booleans, at least one.

    Source: Fan et al., arXiv 1708.00786, and the authors' S_object.m and S_region.m (DengPingFan/S-measure), of which
    the rounding of the centroid and N - 1 in variances are kept.
    """
    share = float(truth[counted].mean())
    if share in (0.0, 1.0):
        return abs(1 - share - float(values[counted].mean()))
    on, beside = values[counted & truth], 1 - values[counted & ~truth]
    by_object = share * _evenness(on) + (1 - share) * _evenness(beside)
    total = np.count_nonzero(counted)
    by_region = 0.0
    for block in _blocks(counted & truth):
        inside = counted[block]
        if inside.any():
            similar = _similarity(values[block][inside], truth[block][inside].astype(np.float64))
            by_region += np.count_nonzero(inside) / total * similar
    return max(0.0, float(ALPHA * by_object + (1 - ALPHA) * by_region))


def _evenness(x: Array) -> float:
    mean, sigma = float(x.mean()), float(x.std(ddof=1)) if x.size > 1 else 0.0
    return 2 * mean / (mean * mean + 1 + sigma + TINY)


def _blocks(truth: Array) -> Iterator[tuple[slice, slice]]:
    """The four blocks around the centroid; its pixel belongs to the one above and to the left."""
    row, column = (int(np.floor(axis.mean() + 0.5)) + 1 for axis in np.nonzero(truth))
    for rows in (slice(row), slice(row, None)):
        for columns in (slice(column), slice(column, None)):
            yield rows, columns


def _similarity(x: Array, y: Array) -> float:
    """4 x y sigma_xy / ((x^2 + y^2)(sigma_x^2 + sigma_y^2)); 1 of 0 / 0."""
    mean_x, mean_y, n = float(x.mean()), float(y.mean()), x.size - 1 + TINY
    dx, dy = x - mean_x, y - mean_y
    above = 4 * mean_x * mean_y * float((dx * dy).sum()) / n
    below = (mean_x**2 + mean_y**2) * (float((dx * dx).sum()) + float((dy * dy).sum())) / n
    if above:
        return above / (below + TINY)
    return 0.0 if below else 1.0
