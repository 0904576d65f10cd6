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
MOST = 300  # boxes that suppression leaves
OVERLAP = 0.5  # of two boxes of one class, beyond which the worse one goes
_ROUNDING = 0.01  # of a probability in half precision, and more
_PIXELS = 2.0  # coordinates that never exceed this are shares of the picture


@dataclass(frozen=True)
class Form:
    """One way to write boxes: `words` for people, how many `outputs` it takes, and three functions.

    `fits` takes the shapes, each with a batch axis, and the input's (H, W). The others take arrays without that axis.
    `holds` says whether an answer to any picture may be of the form. `read` gives boxes (K, 4: x1, y1, x2, y2) in
    pixels of the input and scores (classes, K): at least those boxes that have a score of the threshold.
    """

    words: str
    outputs: int
    fits: Callable[[Sequence[tuple[int, ...]], tuple[int, int]], bool]
    holds: Callable[[Sequence[Array]], bool]
    read: Callable[[Sequence[Array], float], tuple[Array, Array]]


def _places(size: tuple[int, int]) -> set[int]:
    """How many places the grids of a YOLO have on an input of (H, W)."""
    height, width = size
    return {
        sum((height // stride) * (width // stride) for stride in strides)
        for strides in STRIDES
        if min(size) > 0 and height % strides[-1] == width % strides[-1] == 0
    }


def _are_shares(scores: Array) -> bool:
    """Whether all may be probabilities: logits, key points, coefficients of masks and angles are not."""
    return bool(((scores >= -_ROUNDING) & (scores <= 1 + _ROUNDING)).all())


def _are_pixels(coordinates: Array) -> bool:
    """Whether these may count pixels; where all are zero nobody knows."""
    most = coordinates.max(initial=0)
    return bool(most == 0 or most > _PIXELS)


def _corners(x: Array, y: Array, width: Array, height: Array) -> Array:
    """Boxes (K, 4) from centres and sides."""
    return np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)


def _is_yolo5(x: Array) -> bool:
    """Whether (K, 5 + classes) may be of a YOLOv5, and not detections (K, 6) with whole numbers of classes."""
    finished = x.shape[1] == 6 and np.array_equal(x[:, 5], np.rint(x[:, 5]))
    return not finished and _are_shares(x[:, 4:]) and _are_pixels(x[:, :4])


def _read_yolo5(x: Array, threshold: float) -> tuple[Array, Array]:
    likely = x[x[:, 4] >= threshold].T  # no score exceeds the objectness
    return _corners(*likely[:4]), likely[4] * likely[5:]


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
        lambda arrays: _are_shares(arrays[1]),
        lambda arrays, threshold: (arrays[0], arrays[1].T),
    ),
    # Ultralytics' export: https://docs.ultralytics.com/modes/export; the number of places tells it from other matrices.
    "yolo8": Form(
        "a YOLOv8's (N, 4 + classes, places: x, y, w, h, scores)",
        1,
        lambda shapes, size: len(shapes[0]) == 3 and shapes[0][1] > 4 and shapes[0][2] in _places(size),
        lambda arrays: _are_shares(arrays[0][4:]) and _are_pixels(arrays[0][:4]),
        lambda arrays, threshold: (_corners(*arrays[0][:4]), arrays[0][4:]),
    ),
    # https://github.com/ultralytics/yolov5, export.py; a YOLOv7 without its suppression writes the same.
    "yolo5": Form(
        "a YOLOv5's (N, 3 x places, 5 + classes: x, y, w, h, objectness, scores)",
        1,
        lambda shapes, size: (
            len(shapes[0]) == 3 and shapes[0][2] > 5 and shapes[0][1] in {3 * count for count in _places(size)}
        ),
        lambda arrays: _is_yolo5(arrays[0]),
        lambda arrays, threshold: _read_yolo5(arrays[0], threshold),
    ),
}


def forms() -> str:
    """All that can be read, in words."""
    return f"{', or '.join(form.words for form in FORMS.values())}, in pixels and with scores from 0 to 1"


def form_of(outputs: Mapping[str, Array], size: tuple[int, int]) -> tuple[str, tuple[str, ...]] | None:
    """The form of a detector's outputs on an input of (H, W), and the names of those that are read.

    None where no shapes are of a form. Where they are and what they hold is not, as that of a pose or of logits, the
    form is empty.
    """
    found: tuple[str, tuple[str, ...]] | None = None
    for name, form in FORMS.items():
        read = tuple(outputs)[: form.outputs]
        if len(read) == form.outputs and form.fits([outputs[key].shape for key in read], size):
            holds = form.holds([outputs[key][0].astype(np.float32) for key in read])
            found = (name, read) if holds else found or ("", ())
    return found


def suppressed(name: str, arrays: Sequence[Array], threshold: float) -> Array:
    """Greedy suppression by class of boxes in a form: rows (K, 6: x1, y1, x2, y2, score, class), best first.

    A box has its best class. What is not finite is none.
    """
    boxes, scores = FORMS[name].read([array.astype(np.float32, copy=False) for array in arrays], threshold)
    best = scores.max(0)
    likely = np.flatnonzero((best >= threshold) & np.isfinite(best) & np.isfinite(boxes).all(1))
    order = likely[np.argsort(-best[likely], kind="stable")]
    kinds = scores[:, order].argmax(0)
    left = np.concatenate([boxes[order], best[order, None], kinds[:, None]], 1).astype(np.float32)
    kept: list[Array] = []
    while len(left) and len(kept) < MOST:
        kept.append(left[0])
        others = left[1:]
        over = overlaps(others[:, :4], left[:1, :4], np.zeros(1, bool))[:, 0] > OVERLAP
        left = others[~(over & (others[:, 5] == left[0, 5]))]
    return np.array(kept, np.float32).reshape(-1, 6)
