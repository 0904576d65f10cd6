"""The way back: from what a model saw to the frame it came from, undoing a recipe's stretch, crop or letterbox."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgeattn.images import Recipe, placement

if TYPE_CHECKING:
    from edgeattn.tensors import Array


def boxes_in_frame(boxes: Array, size: tuple[int, int], recipe: Recipe) -> Array:
    """Take boxes (K, 4: x1, y1, x2, y2) in pixels of the model's input back to a frame of `size` (w, h).

    The inverse of `edgeattn.images.place_boxes`; float32, cut at the frame's edges.
    """
    place = placement(*size, recipe)
    left, top, right, bottom = place.box
    scale = np.array([(right - left) / place.size[0], (bottom - top) / place.size[1]])
    corners = (np.asarray(boxes, np.float64).reshape(-1, 2, 2) - place.corner) * scale + (left, top)
    cut: Array = np.clip(corners, 0, size).reshape(-1, 4).astype(np.float32)
    return cut


def seen_part(plane: Array, size: tuple[int, int], recipe: Recipe) -> Array:
    """The part of a plane (h, w) over the model's input that shows the frame: all of it but a letterbox's border."""
    place = placement(*size, recipe)
    cuts = []
    for count, side, start, length in zip(plane.shape, recipe.size, place.corner[::-1], place.size[::-1], strict=True):
        first = min(int(start * count / side), count - 1)
        cuts.append(slice(first, max(first + 1, round((start + length) * count / side))))
    part: Array = plane[cuts[0], cuts[1]]
    return part


def spread(plane: Array, size: tuple[int, int], recipe: Recipe, at: tuple[int, int], fill: float = -1) -> Array:
    """A plane (h, w) over the model's input as a frame of `size` (w, h), drawn `at` (W, H) pixels, shows it: (H, W).

    Each pixel takes what its centre falls on; `fill` stands where the model did not look, beside a crop.
    """
    (columns, across), (rows, down) = (_places(plane, size, recipe, at, axis) for axis in (0, 1))
    height, width = plane.shape
    drawn: Array = plane[np.clip(rows.astype(np.intp), 0, height - 1)][
        :, np.clip(columns.astype(np.intp), 0, width - 1)
    ]
    drawn[~down] = fill
    drawn[:, ~across] = fill
    return drawn


def smooth(plane: Array, size: tuple[int, int], recipe: Recipe, at: tuple[int, int]) -> Array:
    """As `spread`, with straight lines between the centres of the plane's pixels; float32, 0 beside a crop."""
    (columns, across), (rows, down) = (_places(plane, size, recipe, at, axis) for axis in (0, 1))
    drawn = _between(_between(plane.astype(np.float32).T, columns).T, rows)
    drawn[~down] = 0
    drawn[:, ~across] = 0
    return drawn


def _places(plane: Array, size: tuple[int, int], recipe: Recipe, at: tuple[int, int], axis: int) -> tuple[Array, Array]:
    """Where the centre of each drawn column (axis 0) or row (1) lies in the plane, and whether the model saw it."""
    place = placement(*size, recipe)
    low, high = place.box[axis], place.box[axis + 2]
    centres = (np.arange(at[axis]) + 0.5) * size[axis] / at[axis]
    inside = (centres - low) * (place.size[axis] / (high - low)) + place.corner[axis]
    return inside * plane.shape[1 - axis] / recipe.size[1 - axis], (centres >= low) & (centres < high)


def _between(plane: Array, rows: Array) -> Array:
    """Rows of a plane at fractional places, row i having its centre at i + 0.5."""
    places = np.clip(rows - 0.5, 0, len(plane) - 1)
    first = places.astype(np.intp)
    share = (places - first).astype(np.float32)[:, None]
    between: Array = plane[first]
    between += (plane[np.minimum(first + 1, len(plane) - 1)] - between) * share
    return between
