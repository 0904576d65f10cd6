"""One or two things that stand out of a photograph, and where they are; what they are does not matter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeattn.zoo.data.files import write_png
from edgeattn.zoo.data.sources import (
    SHAPES,
    Split,
    blended,
    coins,
    contrast,
    crop,
    generator,
    glyphs,
    grained,
    horse,
    laid,
    outline,
    photographs,
)

if TYPE_CHECKING:
    from edgeattn.tensors import Array

SIZE = 64


def write_saliency(folder: str | Path, split: Split = "test", count: int = 500) -> int:
    """Write `images/<number>.png` (64x64 RGB) and `masks/<number>.png` (1 where an object is); return how many.

    An object is a digit, a shape, a coin or, in the training split, a horse, 22 to 40 pixels high, in a colour far from
    those around it, with a little of a photograph's texture. Distractors lie behind: lines and outlines in colours that
    the photograph has elsewhere.

    Raises:
        MissingDependencyError: scikit-learn or scikit-image is not installed.
        EdgeAttnError: the folder cannot be written.
    """
    for number in range(count):
        picture, mask = saliency(split, number)
        write_png(Path(folder) / "images" / f"{number:05d}.png", picture)
        write_png(Path(folder) / "masks" / f"{number:05d}.png", mask)
    return count


def saliency(split: Split, number: int) -> tuple[Array, Array]:
    """Sample `number`: picture (64, 64, 3) and mask (64, 64)."""
    rng = generator("saliency", split, number)
    sources = photographs(split)
    order = rng.permutation(len(sources))
    picture = distracted(crop(sources[order[0]], SIZE, rng), rng)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    for _ in range(int(rng.integers(1, 3))):
        size = int(rng.integers(22, 41))
        margin = size // 2 - 2
        centre = (int(rng.integers(margin, SIZE - margin)), int(rng.integers(margin, SIZE - margin)))
        alpha, light = silhouette(split, centre, size, rng)
        texture = crop(sources[order[1]], SIZE, rng, SIZE) if light is None else np.repeat(light[..., None], 3, 2)
        colour = contrast(picture, centre, rng).astype(np.int64)
        filling = ((2 * colour + texture.astype(np.int64)) // 3).astype(np.uint8)
        picture = blended(picture, filling, alpha)
        mask[alpha >= 128] = 1
    return grained(picture, rng, 6), mask


def silhouette(
    split: Split, centre: tuple[int, int], size: int, rng: np.random.Generator
) -> tuple[Array, Array | None]:
    """Where an object is (255 inside), and for a coin its own light and shade: each (64, 64)."""
    degrees = int(rng.integers(-30, 31))
    kinds = ("digit", "shape", "coin", "horse") if split == "train" else ("digit", "shape", "coin")
    kind = kinds[rng.integers(len(kinds))]
    if kind == "coin":
        light, inside = coins(split)[rng.integers(len(coins(split)))]
        return laid(inside, SIZE, centre, size, degrees), laid(light, SIZE, centre, size, degrees)
    if kind == "horse":
        return laid(horse(), SIZE, centre, size, degrees), None
    if kind == "shape":
        return outline(SHAPES[rng.integers(len(SHAPES))], SIZE, centre, size / 2, degrees * 6), None
    glyph = laid(glyphs(split)[rng.integers(len(glyphs(split)))], SIZE, centre, size, degrees)
    return np.minimum(glyph.astype(np.int32) * 2, 255).astype(np.uint8), None


def distracted(picture: Array, rng: np.random.Generator) -> Array:
    """The picture with three to six lines or outlines in its own colours."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(3, 7))):
        row, column = rng.integers(SIZE, size=2)
        colour = tuple(int(value) for value in picture[row, column])
        x1, y1, x2, y2 = (int(value) for value in rng.integers(SIZE, size=4))
        corners = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
        kind = int(rng.integers(3))
        if kind == 0:
            draw.line((x1, y1, x2, y2), fill=colour, width=int(rng.integers(1, 4)))
        elif kind == 1:
            draw.rectangle(corners, outline=colour, width=2)
        else:
            draw.ellipse(corners, outline=colour, width=2)
    return np.asarray(image)
