"""scikit-learn's handwritten digits as they are."""

from __future__ import annotations

from pathlib import Path

from edgeattn.zoo.data.files import write_png
from edgeattn.zoo.data.sources import Split, scans


def write_digits(folder: str | Path, split: Split = "test", count: int | None = None) -> int:
    """Write scikit-learn's handwritten digits as `<folder>/<label>/<index>.png` (8x8, 8-bit gray); return how many.

    `index` is the scan's place among all 1,797. The 5th, 10th, 15th ... scan of each class is in `test` (355 scans),
    the others in `train` (1,442), so the split is stratified and owes nothing to a random generator. `count` writes
    the first so many only.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
        EdgeAttnError: the folder cannot be written.
    """
    indices, images, labels = (column[:count] for column in scans(split))
    for index, image, label in zip(indices, images, labels, strict=True):
        write_png(Path(folder) / str(label) / f"{index:04d}.png", image)
    return len(indices)
