"""How detectors write boxes that are still to be sorted out: the forms that are known, and their suppression."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgeattn.metrics.detection import overlaps

if TYPE_CHECKING:
    from edgeattn.tensors import Array

STRIDES = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32))  # of the grids of one YOLO: usual, P6 and P2
CANDIDATES = 300  # boxes that suppression looks at
OVERLAP = 0.5  # of two boxes of one class, beyond which the worse one goes
_ROUNDING = 0.01  # of a probability in half precision, and more


@dataclass(frozen=True)
class Form:
    """One way to write boxes: `words` for people, how many `outputs` it takes, and two functions.

    `fits` takes the shapes, each with a batch axis, and the input's (H, W). `read` takes arrays without that axis, and
    gives boxes (K, 4: x1, y1, x2, y2) in pixels of the input and scores (classes, K): at least those boxes that have a
    score of the threshold.
    """

    words: str
    outputs: int
    fits: Callable[[Sequence[tuple[int, ...]], tuple[int, int]], bool]
    read: Callable[[Sequence[Array], float], tuple[Array, Array]]


def _anchors(size: tuple[int, int]) -> set[int]:
    """How many places the grids of a YOLO have on an input of (H, W)."""
    height, width = size
    return {sum((height // stride) * (width // stride) for stride in strides) for strides in STRIDES} - {0}


def _corners(x: Array, y: Array, width: Array, height: Array) -> Array:
    """Boxes (K, 4) from centres and sides."""
    return np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)


def _with_objectness(x: Array) -> tuple[Array, Array]:
    """Boxes and scores of (5 + classes, K), where objectness, at most 1, goes before the scores."""
    return _corners(*x[:4]), x[4] * x[5:]


FORMS: Mapping[str, Form] = {
    "pair": Form(
        "boxes (N, K, 4: x1, y1, x2, y2) with scores (N, K, classes)",
        2,
        lambda shapes, size: (
            [len(shape) for shape in shapes] == [3, 3]
            and shapes[0][2] == 4
            and shapes[0][:2] == shapes[1][:2]
            and shapes[1][2] > 0
        ),
        lambda arrays, threshold: (arrays[0], arrays[1].T),
    ),
    # Ultralytics' export: https://docs.ultralytics.com/modes/export; the number of places tells it from other matrices.
    "yolo8": Form(
        "a YOLOv8's (N, 4 + classes, places: x, y, w, h, scores)",
        1,
        lambda shapes, size: len(shapes[0]) == 3 and shapes[0][1] > 4 and shapes[0][2] in _anchors(size),
        lambda arrays, threshold: (_corners(*arrays[0][:4]), arrays[0][4:]),
    ),
    # https://github.com/ultralytics/yolov5, export.py; a YOLOv7 without its suppression writes the same.
    "yolo5": Form(
        "a YOLOv5's (N, 3 x places, 5 + classes: x, y, w, h, objectness, scores)",
        1,
        lambda shapes, size: (
            len(shapes[0]) == 3 and shapes[0][2] > 5 and shapes[0][1] in {3 * count for count in _anchors(size)}
        ),
        lambda arrays, threshold: _with_objectness(arrays[0][arrays[0][:, 4] >= threshold].T),
    ),
}


def forms() -> str:
    """All that can be read, in words."""
    return f"{', or '.join(form.words for form in FORMS.values())}, with scores from 0 to 1"


def form_of(outputs: Mapping[str, Array], size: tuple[int, int]) -> tuple[str, tuple[str, ...]] | None:
    """The form of a detector's outputs on an input of (H, W), and the names of those that are read.

    Shapes tell, and scores that are probabilities: where a pose, a mask or an angle follows the boxes, they are not.
    """
    for name, form in FORMS.items():
        read = tuple(outputs)[: form.outputs]
        arrays = [outputs[key] for key in read]
        if len(read) == form.outputs and form.fits([array.shape for array in arrays], size):
            _, scores = form.read([array[0].astype(np.float32) for array in arrays], 0.0)
            if scores.min(initial=0) >= -_ROUNDING and scores.max(initial=0) <= 1 + _ROUNDING:
                return name, read
    return None


def suppressed(name: str, arrays: Sequence[Array], threshold: float) -> Array:
    """Greedy suppression by class of boxes in a form: rows (K, 6: x1, y1, x2, y2, score, class), best first.

    A box has its best class.
    """
    boxes, scores = FORMS[name].read([array.astype(np.float32, copy=False) for array in arrays], threshold)
    best = scores.max(0)
    places = np.flatnonzero(best >= threshold)
    order = places[np.argsort(-best[places], kind="stable")][:CANDIDATES]
    kinds = scores[:, order].argmax(0)
    rows = np.concatenate([boxes[order], best[order, None], kinds[:, None]], 1).astype(np.float32)
    over = overlaps(rows[:, :4], rows[:, :4], np.zeros(len(rows), bool)) > OVERLAP
    over &= rows[:, None, 5] == rows[None, :, 5]
    kept: list[int] = []
    for index in range(len(rows)):
        if not over[index, kept].any():
            kept.append(index)
    return rows[kept]
