"""Several digits in a colour picture, and a depth map that says which of them is nearest: that one is the label."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeattn.zoo.data.files import write_npz
from edgeattn.zoo.data.sources import (
    Split,
    blended,
    contrast,
    crop,
    generator,
    glyphs,
    grained,
    laid,
    outline,
    photographs,
    scans,
)

if TYPE_CHECKING:
    from edgeattn.tensors import Array

SIZE = 48


def write_fusion(folder: str | Path, split: Split = "test", count: int = 500) -> int:
    """Write `<folder>/<number>.npz`: `rgb` (1, 3, 48, 48), `depth` (1, 1, 48, 48), `label`; return how many.

    Two or three digits of different classes stand apart in front of a pale photograph, each on a board: a disc in the
    depth map, which shows no digit. Depth is -1 (near) to 1 (far), with noise and holes, which read as far. Place, size
    and colour are independent of depth, so neither array alone tells the label. Values are -1 to 1.

    Raises:
        MissingDependencyError: scikit-learn or scikit-image is not installed.
        EdgeAttnError: the folder cannot be written.
    """
    for number in range(count):
        rgb, depth, standing = fusion(split, number)
        label = min(standing)[1]
        write_npz(Path(folder) / f"{number:05d}.npz", {"rgb": rgb.transpose(2, 0, 1), "depth": depth[None]}, label)
    return count


def fusion(split: Split, number: int) -> tuple[Array, Array, list[tuple[int, int, int]]]:
    """Sample `number`: colour (48, 48, 3), depth (48, 48), both 8 bits; (depth, label, scan) of each digit."""
    rng = generator("fusion", split, number)
    indices, _, labels = scans(split)
    rgb = crop(photographs(split)[rng.integers(len(photographs(split)))], SIZE, rng) // 2 + np.uint8(64)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    slope = rng.integers(-1, 2, 2)
    depth = (205 + slope[0] * (rows - SIZE // 2) // 2 + slope[1] * (columns - SIZE // 2) // 2).astype(np.int64)
    count = int(rng.integers(2, 4))
    cells = rng.permutation(4)[:count]
    distances = 20 + rng.permutation(5)[:count] * 30 + rng.integers(0, 16, count)
    classes = rng.permutation(10)[:count]
    standing = []
    for cell, distance, label in zip(cells, distances, classes, strict=True):
        chosen = int(rng.choice(np.flatnonzero(labels == label)))
        centre = (int(cell % 2 * 24 + rng.integers(11, 14)), int(cell // 2 * 24 + rng.integers(11, 14)))
        alpha = laid(glyphs(split)[chosen], SIZE, centre, int(rng.integers(18, 23)), int(rng.integers(-15, 16)))
        rgb = blended(rgb, np.broadcast_to(contrast(rgb, centre, rng), rgb.shape), alpha)
        board = outline("disc", SIZE, centre, int(rng.integers(10, 12)), 0) >= 128
        depth[board] = distance
        standing.append((int(distance), int(label), int(indices[chosen])))
    depth = grained(depth, rng, 5)
    depth[rng.integers(0, 100, depth.shape) < 3] = 255
    return grained(rgb, rng, 8), depth, standing
