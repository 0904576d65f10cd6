"""One digit, turned and anywhere, among pieces of others: where to look is half of the task.

Source: the cluttered translated digits of Mnih et al., "Recurrent Models of Visual Attention", arXiv 1406.6247, and
the distortions of Jaderberg et al., "Spatial Transformer Networks", arXiv 1506.02025.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeattn.zoo.data.files import write_png
from edgeattn.zoo.data.sources import Split, crop, generator, glyphs, grained, laid, photographs, scans

if TYPE_CHECKING:
    from edgeattn.tensors import Array

SIZE = 48


def write_cluttered(folder: str | Path, split: Split = "test", count: int = 500) -> int:
    """Write cluttered digits as `<folder>/<label>/<number>-<scan>.png` (48x48, 8-bit gray); return how many.

    The digit is a scan of the split, 20 to 28 pixels high, turned by up to 25 degrees, sheared by up to 0.2 and wholly
    inside. Behind it lie six pieces, 7 to 9 pixels wide, of other scans as large, and a faint photograph.

    Raises:
        MissingDependencyError: scikit-learn or scikit-image is not installed.
        EdgeAttnError: the folder cannot be written.
    """
    for number in range(count):
        picture, label, scan = cluttered(split, number)
        write_png(Path(folder) / str(label) / f"{number:05d}-{scan:04d}.png", picture)
    return count


def cluttered(split: Split, number: int) -> tuple[Array, int, int]:
    """Sample `number`: the picture (48, 48), its label, and which of the 1,797 scans the digit is."""
    rng = generator("cluttered", split, number)
    indices, _, labels = scans(split)
    chosen = int(rng.integers(len(indices)))
    picture = faint_photograph(split, SIZE, rng)
    for _ in range(6):
        picture = np.maximum(picture, fragment(split, SIZE, rng, (20, 28), (7, 9)))
    size = int(rng.integers(20, 29))
    margin = size // 2 + 2
    x, y = (int(value) for value in rng.integers(margin, SIZE - margin + 1, 2))
    shear = int(rng.integers(-20, 21)) / 100
    digit = laid(glyphs(split)[chosen], SIZE, (x, y), size, int(rng.integers(-25, 26)), shear=shear)
    return grained(np.maximum(picture, digit), rng, 8), int(labels[chosen]), int(indices[chosen])


def faint_photograph(split: Split, size: int, rng: np.random.Generator) -> Array:
    """A gray cut of a photograph, a quarter as bright: (size, size)."""
    photograph = photographs(split)[rng.integers(len(photographs(split)))]
    gray: Array = (crop(photograph, size, rng).astype(np.int32).sum(2) // 12).astype(np.uint8)
    return gray


def fragment(
    split: Split, size: int, rng: np.random.Generator, digit: tuple[int, int], width: tuple[int, int]
) -> Array:
    """A square piece, `width` pixels wide, of some scan `digit` pixels high, anywhere on black: (size, size)."""
    whole = int(rng.integers(digit[0], digit[1] + 1))
    side = int(rng.integers(width[0], width[1] + 1))
    glyph = glyphs(split)[rng.integers(len(glyphs(split)))]
    picture = laid(glyph, whole, (whole // 2, whole // 2), whole, int(rng.integers(-25, 26)))
    # From the middle of the scan, where its ink is.
    edge = (whole - side) // 4
    top, left = (int(value) for value in rng.integers(edge, whole - side - edge + 1, 2))
    y, x = (int(value) for value in rng.integers(0, size - side + 1, 2))
    canvas = np.zeros((size, size), np.uint8)
    canvas[y : y + side, x : x + side] = picture[top : top + side, left : left + side]
    return canvas
