"""A digit that moves, and is seen in two or three frames of eight: when to look is the task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeattn.zoo.data.cluttered import faint_photograph, fragment
from edgeattn.zoo.data.files import write_npz
from edgeattn.zoo.data.sources import Split, generator, glyphs, grained, laid, scans

if TYPE_CHECKING:
    from edgeattn.tensors import Array

SIZE, FRAMES = 32, 8


def write_clips(folder: str | Path, split: Split = "test", count: int = 500) -> int:
    """Write `<folder>/<number>.npz`: `frames` (1, 8, 1, 32, 32) and `label`, the digit's class; return how many.

    The digit, 15 to 19 pixels high, moves on a straight line and is reflected at the borders; it is drawn in two or
    three of the frames. Every frame has three pieces of other scans before a faint photograph. Values are -1 to 1.

    Raises:
        MissingDependencyError: scikit-learn or scikit-image is not installed.
        EdgeAttnError: the folder cannot be written.
    """
    for number in range(count):
        frames, label, *_ = clip(split, number)
        write_npz(Path(folder) / f"{number:05d}.npz", {"frames": frames[:, None]}, label)
    return count


def clip(split: Split, number: int) -> tuple[Array, int, int, Array]:
    """Sample `number`: frames (8, 32, 32) in 8 bits, its label, which scan it is, and the frames that show it."""
    rng = generator("clips", split, number)
    indices, _, labels = scans(split)
    chosen = int(rng.integers(len(indices)))
    shown = np.sort(rng.permutation(FRAMES)[: rng.integers(2, 4)])
    size = int(rng.integers(15, 20))
    place, step = rng.integers(0, 2 * SIZE, 2), rng.integers(-4, 5, 2)
    background = faint_photograph(split, SIZE, rng)
    frames = []
    for time in range(FRAMES):
        picture = background
        for _ in range(3):
            picture = np.maximum(picture, fragment(split, SIZE, rng, (15, 19), (6, 8)))
        if time in shown:
            x, y = (reflected(int(value), size // 2, SIZE - size // 2) for value in place + time * step)
            picture = np.maximum(picture, laid(glyphs(split)[chosen], SIZE, (x, y), size))
        frames.append(grained(picture, rng, 10))
    return np.stack(frames), int(labels[chosen]), int(indices[chosen]), shown


def reflected(value: int, low: int, high: int) -> int:
    """Where a point on a line ends up that is mirrored back and forth between two walls."""
    span = high - low
    beyond = (value - low) % (2 * span)
    return low + min(beyond, 2 * span - beyond)
