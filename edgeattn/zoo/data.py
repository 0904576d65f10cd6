"""The data that the models of the zoo are trained on and judged by, as files like those of any user."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from edgeattn.errors import EdgeAttnError, MissingDependencyError

HELD_OUT = 5  # every fifth scan of a class is for the test


def write_digits(folder: str | Path, split: Literal["train", "test"] = "test") -> int:
    """Write scikit-learn's handwritten digits as `<folder>/<label>/<index>.png` (8x8, 8-bit gray); return how many.

    `index` is the scan's place among all 1,797. The 5th, 10th, 15th ... scan of each class is in `test` (355 scans),
    the others in `train` (1,442), so the split is stratified and owes nothing to a random generator.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
        EdgeAttnError: the folder cannot be written.
    """
    from PIL import Image

    try:
        from sklearn.datasets import load_digits
    except ImportError as err:
        raise MissingDependencyError("the digits come with scikit-learn: pip install scikit-learn") from err
    digits = load_digits()
    held_out = np.zeros(len(digits.target), bool)
    for label in range(10):
        held_out[np.flatnonzero(digits.target == label)[HELD_OUT - 1 :: HELD_OUT]] = True
    chosen = np.flatnonzero(held_out if split == "test" else ~held_out)
    try:
        for index in chosen:
            path = Path(folder) / str(digits.target[index]) / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            gray = np.rint(digits.images[index] * (255 / 16)).astype(np.uint8)  # the scans count 0 .. 16
            Image.fromarray(gray).save(path)
    except OSError as err:
        raise EdgeAttnError(f"cannot write {err.filename or folder}: {err.strerror}") from err
    return len(chosen)
