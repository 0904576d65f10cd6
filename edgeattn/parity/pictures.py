"""A sample and what is said of it, as small pictures: what a report shows of the samples that differ most."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

import numpy as np

from edgeattn.metrics.base import probability
from edgeattn.metrics.segmentation import class_map
from edgeattn.parity.decisions import boxes_of, unmatched
from edgeattn.reports.heat import coloured

if TYPE_CHECKING:
    from PIL.Image import Image

    from edgeattn.images import Recipe
    from edgeattn.tensors import Array, Feeds

__all__ = ["drawn", "encoded", "input_picture", "unprepared"]

SIDE = 144  # pixels of the longer side
LARGE_PNG = 4_000  # bytes from which on a JPEG will do
RED = (210, 40, 30)
# Okabe and Ito's colours, for classes and boxes.
_CLASSES = np.array(
    [[86, 180, 233], [230, 159, 0], [0, 158, 115], [240, 228, 66], [0, 114, 178], [213, 94, 0], [204, 121, 167]], float
)


def drawn(task: str, image: Image | None, ours: Array, theirs: Array) -> dict[str, bytes]:
    """The pictures of one sample: its input, what the original and the engine say, and where they differ.

    Args:
        task: of the output, empty for none: then an output with places is drawn as what it is.
        image: the input; None where it is no picture.
        ours: the engine's output, without its batch axis.
        theirs: the original's.
    """
    pictures = {"input": image} if image else {}
    if task == "detection" and image:
        pictures |= {
            "reference": _boxed(image, boxes_of(theirs)),
            "engine": _boxed(image, boxes_of(ours)),
            "difference": _boxed(image, np.vstack([unmatched(ours, theirs), unmatched(theirs, ours)]), RED),
        }
    elif task == "segmentation":
        classes, wanted = class_map(ours), class_map(theirs)
        pictures |= {"reference": _over(image, _class_colours(wanted)), "engine": _over(image, _class_colours(classes))}
        pictures["difference"] = _marked(image, classes != wanted)
    elif task == "saliency":
        pictures |= _planes(probability(ours), probability(theirs), 0.0, 1.0)
    elif (plane := _plane(ours)) is not None and (other := _plane(theirs)) is not None:
        pictures |= _planes(plane, other, float(other.min()), float(other.max()))
    return {what: encoded(_small(picture)) for what, picture in pictures.items()}


def input_picture(feeds: Feeds, recipe: Recipe | None) -> Image | None:
    """The first input of one sample (1, ...) that is a picture, if there is one.

    Without a recipe, values are stretched from the least to the greatest.
    """
    from PIL import Image as Pictures

    for array in feeds.values():
        if array.ndim != 4 or min(array.shape) == 0:
            continue
        if recipe is not None and array.shape[1:] == recipe.shape:
            return Pictures.fromarray(unprepared(array[0], recipe))
        if array.shape[1] in (1, 3):
            return Pictures.fromarray(_stretched(array[0].transpose(1, 2, 0)))
        if array.shape[3] in (1, 3):
            return Pictures.fromarray(_stretched(array[0]))
    return None


def unprepared(x: Array, recipe: Recipe) -> Array:
    """What a recipe made an input from: (H, W, 3) in 8 bits, of one image as the model sees it."""
    pixels = np.nan_to_num(x.astype(np.float32))
    pixels = pixels.transpose(1, 2, 0) if recipe.layout == "nchw" else pixels
    pixels = pixels * np.asarray(recipe.std or 1.0, np.float32) + np.asarray(recipe.mean or 0.0, np.float32)
    pixels = pixels / np.float32(recipe.scale)
    pixels = pixels[..., ::-1] if recipe.color == "bgr" else pixels
    colours: Array = np.broadcast_to(np.clip(np.rint(pixels), 0, 255).astype(np.uint8), (*pixels.shape[:2], 3))
    return np.ascontiguousarray(colours)


def encoded(image: Image) -> bytes:
    """A picture as a PNG, or as a JPEG where that is large."""
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    if stream.tell() > LARGE_PNG:
        stream = io.BytesIO()
        image.convert("RGB").save(stream, "JPEG", quality=75, optimize=True)
    return stream.getvalue()


def _small(image: Image) -> Image:
    from PIL.Image import Resampling

    ratio = SIDE / max(image.size)
    size = max(1, round(image.width * ratio)), max(1, round(image.height * ratio))
    return image.resize(size, Resampling.NEAREST if ratio > 1 else Resampling.BOX)


def _planes(ours: Array, theirs: Array, low: float, high: float) -> dict[str, Image]:
    """Heat maps on one scale, and of the difference on its own."""
    from PIL import Image as Pictures

    def scaled(values: Array, least: float, most: float) -> Array:
        return (np.nan_to_num(values) - least) / (most - least) if most > least else np.zeros(values.shape)

    gap = np.abs(np.nan_to_num(ours) - np.nan_to_num(theirs))
    shown = {
        "reference": scaled(theirs, low, high),
        "engine": scaled(ours, low, high),
        "difference": scaled(gap, 0.0, float(gap.max())),
    }
    return {what: Pictures.fromarray(coloured(np.clip(values, 0, 1))) for what, values in shown.items()}


def _plane(output: Array) -> Array | None:
    """An output as one plane of values: the mean over its channels; None where it has no places."""
    values = np.nan_to_num(output.astype(np.float64), posinf=0.0, neginf=0.0)
    values = values.mean(0) if values.ndim == 3 else values
    return values if values.ndim == 2 and min(values.shape) > 3 else None


def _class_colours(classes: Array) -> Array:
    """A colour for each class: seven, and then the same darker."""
    rounds = 1 + np.abs(classes.astype(int) // len(_CLASSES))[..., None]
    colours: Array = (_CLASSES[classes.astype(int) % len(_CLASSES)] / rounds).astype(np.uint8)
    return colours


def _over(image: Image | None, colours: Array) -> Image:
    from PIL import Image as Pictures

    layer = Pictures.fromarray(colours)
    return layer if image is None else Pictures.blend(image.convert("L").convert("RGB").resize(layer.size), layer, 0.6)


def _marked(image: Image | None, where: Array) -> Image:
    """The places where something differs, in red."""
    from PIL import Image as Pictures

    base = Pictures.new("L", where.shape[::-1], 230) if image is None else image.convert("L").resize(where.shape[::-1])
    pixels = np.asarray(base.convert("RGB")).copy()
    pixels[where] = RED
    return Pictures.fromarray(pixels)


def _boxed(image: Image, rows: Array, colour: tuple[int, int, int] | None = None) -> Image:
    """Boxes (K, 6) on their image, large enough for lines to be seen."""
    from PIL import ImageDraw
    from PIL.Image import Resampling

    factor = max(1, math.ceil(SIDE / max(image.size)))
    canvas = image.convert("RGB").resize((image.width * factor, image.height * factor), Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)
    for row in rows:
        own = tuple(int(part) for part in _CLASSES[int(row[5]) % len(_CLASSES)])
        left, top, right, bottom = (float(edge) * factor for edge in row[:4])
        corners = (min(left, right), min(top, bottom), max(left, right), max(top, bottom))
        draw.rectangle(corners, outline=colour or own, width=max(2, max(canvas.size) // SIDE * 2))
    return canvas


def _stretched(pixels: Array) -> Array:
    """Values (H, W, 1 or 3) from their least to their greatest as (H, W, 3) in 8 bits."""
    values = np.nan_to_num(pixels.astype(np.float64))
    low, high = values.min(), values.max()
    shown = (255 * (values - low) / (high - low if high > low else 1.0)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(shown, (*shown.shape[:2], 3)))
