"""Objects of five classes on real photographs, labelled twice: a class per pixel, and boxes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn import files
from edgeattn.zoo.data.files import write_png
from edgeattn.zoo.data.sources import SHAPES, Split, blended, crop, generator, grained, outline, photographs

if TYPE_CHECKING:
    from edgeattn.tensors import Array

SIZE = 64
LEAST_SEEN = 0.5  # of an object, behind those before it


def write_scenes(folder: str | Path, split: Split = "test", count: int = 500) -> int:
    """Write `images/<number>.png` (64x64 RGB), `masks/<number>.png` and `annotations.json`; return how many.

    One to four objects (disc, square, triangle, star, ring) lie on a photograph, filled with a piece of another one or
    with a gradient of two colours, 7 to 18 pixels in radius, turned, partly before one another. At least half of
    each is seen. A mask holds the class of each pixel: 0 is background, 1 to 5 the shapes. `annotations.json` is COCO's
    instances: category ids are the mask's, boxes are [left, top, width, height] around what is seen, area its pixels.

    Raises:
        MissingDependencyError: scikit-learn or scikit-image is not installed.
        EdgeAttnError: the folder cannot be written.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        picture, mask, seen = scene(split, number)
        name = f"{number:05d}.png"
        write_png(Path(folder) / "images" / name, picture)
        write_png(Path(folder) / "masks" / name, mask)
        images.append({"id": number, "file_name": name, "height": SIZE, "width": SIZE})
        for category, visible in seen:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category,
                    "bbox": box_around(visible),
                    "area": int(visible.sum()),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(SHAPES, start=1)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    files.write_json(Path(folder) / "annotations.json", document)
    return count


def scene(split: Split, number: int) -> tuple[Array, Array, list[tuple[int, Array]]]:
    """Sample `number`: picture (64, 64, 3), mask (64, 64), and (category, what is seen of it) of each object."""
    rng = generator("scenes", split, number)
    sources = photographs(split)
    order = rng.permutation(len(sources))
    picture = crop(sources[order[0]], SIZE, rng)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    objects: list[tuple[int, int, Array]] = []  # category, pixels of the whole, what is seen
    wanted = int(rng.integers(1, 5))
    for _ in range(4 * wanted):
        category = int(rng.integers(len(SHAPES))) + 1
        radius = int(rng.integers(14, 37)) / 2
        centre = tuple(int(value) for value in rng.integers(4, SIZE - 3, 2))
        alpha = outline(SHAPES[category - 1], SIZE, centre, radius, int(rng.integers(360)))  # type: ignore[arg-type]
        filling = fill(sources[order[1 + len(objects) % (len(order) - 1)]], picture, alpha, rng)
        inside = alpha >= 128
        behind = [seen & ~inside for *_, seen in objects]
        hidden = any(left.sum() < LEAST_SEEN * whole for (_, whole, _), left in zip(objects, behind, strict=True))
        if hidden or inside.sum() < 60:
            continue
        picture = blended(picture, filling, alpha)
        mask[inside] = category
        objects = [(kind, whole, left) for (kind, whole, _), left in zip(objects, behind, strict=True)]
        objects.append((category, int(inside.sum()), inside))
        if len(objects) == wanted:
            break
    return grained(picture, rng, 4), mask, [(category, seen) for category, _, seen in objects]


def fill(photograph: Array, picture: Array, alpha: Array, rng: np.random.Generator) -> Array:
    """What an object is made of, unlike what it covers: a piece of a photograph, tinted, or a gradient of colours."""
    size = len(picture)
    around = picture[alpha > 0].astype(np.int64).reshape(-1, 3)
    mean = around.sum(0) // max(len(around), 1)
    first, second = rng.integers(0, 256, (2, 3))
    if np.abs(first - mean).sum() < 120:
        first = 255 - first
    if rng.integers(2):
        mixed: Array = (crop(photograph, size, rng, size).astype(np.int64) + 2 * first) // 3
    else:
        ramp = np.arange(size).reshape((1, size, 1) if rng.integers(2) else (size, 1, 1))
        mixed = first + (second - first) * ramp // (2 * size)
    return mixed


def box_around(visible: Array) -> list[int]:
    """COCO's box [left, top, width, height] around the true pixels of (H, W)."""
    rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    return [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
