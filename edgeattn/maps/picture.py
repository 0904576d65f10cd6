"""Attention maps as a picture: the original's and the engine's side by side."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn import files
from edgeattn.errors import UsageError
from edgeattn.reports.heat import coloured

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

    from edgeattn.maps.compare import AttentionMap
    from edgeattn.tensors import Array

PANEL, GAP, LABEL = 160, 8, 14
CHANNELS = ("ChannelGate", "SelectiveKernel")  # their maps have no places


def picture(maps: Sequence[AttentionMap], image: Array | None, query: int | None = None) -> Image:
    """Draw the maps of one sample: the input, and below it a row a map, the original's and then the engine's.

    Args:
        maps: in the order of the rows.
        image: the input (H, W, 3) in 8 bits, under the maps of places; gray where there is none.
        query: whose view of the keys is shown, of a softmax attention that has it; by default what all queries see.

    Raises:
        UsageError: no softmax attention has such a query.
    """
    from PIL import Image as Pictures
    from PIL import ImageDraw

    queries = max((_queries(item) for item in maps), default=0)
    if query is not None and query >= queries:
        raise UsageError(f"there is no query {query}: the softmax attention here has {queries}, counted from 0")
    base = Pictures.new("RGB", (1, 1), (90, 90, 90)) if image is None else Pictures.fromarray(image)
    base = base.resize((PANEL, PANEL))
    both = any(item.engine is not None for item in maps)
    rows = [("input; below, the original on the left, the other on the right" if both else "input", [base])]
    for item in maps:
        arrays = [array for array in (item.original, item.engine) if array is not None]
        rows.append((_label(item, query), [panel(item, array, base, query) for array in arrays]))
    step = PANEL + GAP + LABEL
    canvas = Pictures.new("RGB", (2 * (PANEL + GAP) + GAP, len(rows) * step + GAP), (255, 255, 255))
    draw = ImageDraw.Draw(canvas)
    for row, (label, panels) in enumerate(rows):
        top = GAP + row * step
        draw.text((GAP, top), label, (0, 0, 0))
        for column, drawn in enumerate(panels):
            canvas.paste(drawn, (GAP + column * (PANEL + GAP), top + LABEL))
    return canvas


def _label(item: AttentionMap, query: int | None) -> str:
    words = [f"{item.op} {item.kind}"]
    if query is not None and _queries(item):
        words.append(f"query {query}" if query < _queries(item) else "all queries")
    if len(item.original) > 1:  # a batch, or windows
        words.append(f"first of {len(item.original)}")
    return f"{item.name} ({', '.join(words)})"


def _queries(item: AttentionMap) -> int:
    return item.original.shape[-2] if item.op == "SoftmaxAttention" else 0


def save_picture(path: Path, drawn: Image) -> None:
    """Write a PNG in one step."""
    stream = io.BytesIO()
    drawn.save(stream, "PNG", optimize=True)
    files.write_atomic(path, stream.getvalue())


def panel(item: AttentionMap, array: Array, base: Image, query: int | None = None) -> Image:
    """One map of the first sample: heat over the picture where it has places, bars where it has none."""
    if item.op == "SpatialTransformer":
        return _grid(_finite(array), base)
    plane = places(item, array, query)
    return _bars(_reduced(item, array, query).ravel(), base) if plane is None else _heat(plane, base)


def places(item: AttentionMap, array: Array, query: int | None = None) -> Array | None:
    """One map of the first sample as it lies over the picture (h, w); None where it has no places."""
    if item.op in CHANNELS or item.kind == "channel" or item.op == "SpatialTransformer":
        return None
    return _plane(_reduced(item, array, query))


def _finite(array: Array) -> Array:
    return np.nan_to_num(np.asarray(array[0], np.float64), posinf=0.0, neginf=0.0)


def _reduced(item: AttentionMap, array: Array, query: int | None) -> Array:
    """The values of the first sample that are to be seen, of several heads or channels together."""
    values = _finite(array)
    if item.op == "SoftmaxAttention":
        keys = values.reshape(-1, *values.shape[-2:]).mean(0)
        values = keys.mean(0) if query is None or query >= len(keys) else keys[query]
    if item.op == "HardAttention":
        values = np.bincount(values.astype(int).ravel(), minlength=max(1, item.items)).astype(float)
    if item.op == "SoftMask":
        values = values.mean(0)  # a weight for each element: over the channels
    return values


def _plane(values: Array) -> Array | None:
    """A map of places (h, w), where the values are one: an image layout, or a square number of tokens."""
    sizes = [size for size in values.shape if size != 1]
    if len(sizes) == 2:
        return values.reshape(sizes)
    count = sizes[0] if len(sizes) == 1 else 0
    for skipped in (0, 1):  # a class token comes first
        side = math.isqrt(count - skipped) if count > skipped else 0
        if side > 2 and side * side == count - skipped:
            return values.ravel()[skipped:].reshape(side, side)
    return None


def _heat(plane: Array, base: Image) -> Image:
    from PIL import Image as Pictures

    low, high = float(plane.min()), float(plane.max())
    scaled = (plane - low) / (high - low) if high > low else np.zeros_like(plane)
    large = Pictures.fromarray((255 * scaled).astype(np.uint8)).resize((PANEL, PANEL), Pictures.Resampling.BILINEAR)
    colours = Pictures.fromarray(coloured(np.asarray(large, float) / 255))
    return Pictures.blend(base, colours, 0.6)


def _bars(values: Array, base: Image) -> Image:
    """One bar a value, from the smaller of 0 and the least to the greatest."""
    from PIL import Image as Pictures
    from PIL import ImageDraw

    drawn = Pictures.new("RGB", base.size, (245, 245, 245))
    draw = ImageDraw.Draw(drawn)
    high = max(float(values.max(initial=0)), 1e-12)
    width = PANEL / max(len(values), 1)
    for index, value in enumerate(values):
        top = PANEL * (1 - max(float(value), 0) / high)
        colour: Any = tuple(int(part) for part in coloured(np.array([float(value) / high]))[0])
        draw.rectangle((index * width, top, max((index + 1) * width - 1, index * width), PANEL), colour)
    return drawn


def _grid(grid: Array, base: Image) -> Image:
    """Where a sampling grid (h, w, 2) lies in the picture."""
    from PIL import ImageDraw

    drawn = base.copy()
    draw = ImageDraw.Draw(drawn)
    places = (grid + 1) / 2 * PANEL
    for lines in (places, places.swapaxes(0, 1)):
        for line in lines[:: max(1, len(lines) // 8)]:
            draw.line([tuple(place) for place in line], (253, 231, 37))
    return drawn
