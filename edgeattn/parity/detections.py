"""Detections compared as the sets they are: the rows of two that score nearly the same change places."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from edgeattn.tensors import Array

__all__ = ["are_detections", "beside"]

MOST = 500  # rows of an image: pairing them off takes their cube
FAR = 1e300  # of what is no number; what is paired already is farther still


def are_detections(array: Array) -> bool:
    """Whether the rows of (N, K, 6) all read x1, y1, x2, y2, a score from 0 to 1, and the number of a class.

    More than 500 of an image were not picked by their scores, and keep their places.
    """
    if array.ndim != 3 or array.shape[2] != 6 or array.shape[1] > MOST:
        return False
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        return False
    x1, y1, x2, y2, scores, classes = np.moveaxis(array, 2, 0)
    ordered = (x1 <= x2) & (y1 <= y2) & (scores >= 0) & (scores <= 1)
    return bool(ordered.all() and (scores > 0).any() and (classes == np.floor(classes)).all() and (classes >= 0).all())


def beside(got: Array, truth: Array) -> Array:
    """What `got` says of each detection of `truth`, such that its difference is all that is wrong with it, in corners.

    Rows pair off, the nearest two first: by the largest difference of a corner, in parts of the largest coordinate, and
    that of the score, with one more where the classes differ. Of a pair, corners differ by the larger score of the two,
    so that what scores nothing may be anything; those of another class are at 0; and scores in parts of the largest
    coordinate, beside which they would be nothing.
    """
    scale = max(float(np.abs(truth[..., :4]).max()), 1e-30)
    theirs = truth.astype(np.float64)
    ours = np.stack([_paired(*pair, scale) for pair in zip(got.astype(np.float64), theirs, strict=True)])
    with np.errstate(invalid="ignore"):
        weight = np.maximum(ours[..., 4:5], theirs[..., 4:5])
        ours[..., :4] *= ours[..., 5:] == theirs[..., 5:]
        result: Array = theirs + (ours - theirs) * weight
        result[..., 4] = theirs[..., 4] + (ours[..., 4] - theirs[..., 4]) * scale
    return result


def _paired(ours: Array, theirs: Array, scale: float) -> Array:
    """Rows (K, 6), each in the place of that of `theirs` that it stands for."""
    result = np.empty_like(ours)
    with np.errstate(invalid="ignore"):
        gaps = np.abs(ours[None] - theirs[:, None])
        far = gaps[..., :4].max(2) / scale + gaps[..., 4] + (gaps[..., 5] != 0)
    far = np.nan_to_num(far, nan=FAR, posinf=FAR)
    for _ in theirs:
        row, nearest = np.unravel_index(np.argmin(far), far.shape)
        far[row], far[:, nearest] = np.inf, np.inf
        result[row] = ours[nearest]
    return result
