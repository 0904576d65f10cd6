"""What a model's outputs say of a frame: classes, a mask, boxes or a map, in the frame's own pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn import files
from edgeattn.camera.detectors import form_of, forms, suppressed
from edgeattn.camera.geometry import boxes_in_frame, seen_part, spread
from edgeattn.errors import InputError, UsageError
from edgeattn.images import Recipe
from edgeattn.metrics import find_task, task_named
from edgeattn.metrics.base import Label, probability

if TYPE_CHECKING:
    from edgeattn.tensors import Array

MAX_NAMES_BYTES = 2**20
_HUGE = float(np.finfo(np.float32).max)
_LABELS: tuple[Label, ...] = (0, np.zeros((1, 1), np.int64), np.zeros((0, 5)))  # one of each form


@dataclass(frozen=True, eq=False)
class Classes:
    """The likeliest classes of a picture, best first: (class, probability); none where no score is a number."""

    best: tuple[tuple[int, float], ...]
    names: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values: `classes`, each with `class`, `label` and `probability`."""
        found = [{"class": n, "label": _label(n, self.names), "probability": p} for n, p in self.best]
        return {"task": "classification", "classes": found}


@dataclass(frozen=True, eq=False)
class Mask:
    """The class of each pixel. `plane` (h, w) lies over the model's input, `mask` over the frame of `size` (w, h)."""

    plane: Array
    size: tuple[int, int]
    recipe: Recipe
    names: tuple[str, ...] = ()

    def at(self, size: tuple[int, int]) -> Array:
        """The mask (H, W) of the frame drawn in `size` (W, H); -1 where the model did not look, beside a crop."""
        return spread(self.plane.astype(np.int16), self.size, self.recipe, size)

    @cached_property
    def mask(self) -> Array:
        """The mask (h, w) of the frame, int16, -1 where the model did not look."""
        return self.at(self.size)

    @cached_property
    def shares(self) -> dict[int, float]:
        """The share of each class in what the model saw of the frame, largest first."""
        seen = seen_part(self.plane, self.size, self.recipe)
        numbers, counts = np.unique(seen, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return {int(numbers[index]): float(counts[index] / seen.size) for index in order}

    def to_json(self) -> dict[str, Any]:
        """Plain values: `classes`, each with `class`, `label` and `share`; not the mask itself."""
        found = [{"class": n, "label": _label(n, self.names), "share": share} for n, share in self.shares.items()]
        return {"task": "segmentation", "classes": found}


@dataclass(frozen=True, eq=False)
class Boxes:
    """Objects, best first: `rows` (K, 6: x1, y1, x2, y2, score, class), float32, in pixels of the frame."""

    rows: Array
    size: tuple[int, int]
    names: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values: `boxes`, each with `class`, `label`, `score` and `box` [x1, y1, x2, y2]."""
        found = [
            {"class": int(kind), "label": _label(int(kind), self.names), "score": score, "box": box}
            for *box, score, kind in self.rows.tolist()
        ]
        return {"task": "detection", "boxes": found}


@dataclass(frozen=True, eq=False)
class Saliency:
    """How much each pixel stands out, 0 .. 1: `plane` (h, w), float32, over the model's input."""

    plane: Array
    size: tuple[int, int]
    recipe: Recipe

    def to_json(self) -> dict[str, Any]:
        """Plain values of what the model saw of the frame: the mean and the peak, and the share of 0.5 and more."""
        seen = seen_part(self.plane, self.size, self.recipe)
        share = float((seen >= 0.5).mean())
        return {"task": "saliency", "mean": float(seen.mean()), "peak": float(seen.max()), "share": share}


Value = Classes | Mask | Boxes | Saliency


@dataclass(frozen=True)
class Reading:
    """How outputs are to be read: the `task`, the names of the outputs that answer it, the names of its classes.

    `task` is empty where no task is known for such outputs; then `value` is None. `form` is how boxes are written that
    are still to be suppressed, one of `detectors.FORMS`.
    """

    task: str = ""
    outputs: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    form: str = ""

    def value(
        self, outputs: Mapping[str, Array], size: tuple[int, int], recipe: Recipe, top: int = 5, threshold: float = 0.3
    ) -> Value | None:
        """What a model's outputs (each with a batch axis of 1) say of a frame of `size` (w, h).

        - classification: the `top` classes; scores become probabilities by softmax unless they are ones already
        - segmentation: the class of the highest score, or of a probability of at least 0.5
        - detection: boxes of a score of `threshold` or more; where the graph left overlapping ones of a class (IoU
          above 0.5), the best of them
        - saliency: the probabilities, cut to 0 .. 1

        Raises:
            InputError: the outputs are not those that the reading was made of.
        """
        try:
            arrays = [outputs[name][0] for name in self.outputs]
        except (KeyError, IndexError) as err:
            raise InputError(f"the model's outputs have changed: expected {', '.join(self.outputs)}") from err
        match self.task:
            case "classification":
                return Classes(_best(arrays[0], top), self.names)
            case "segmentation":
                return Mask(_class_map(arrays[0]), size, recipe, self.names)
            case "detection":
                rows = suppressed(self.form, arrays, threshold) if self.form else arrays[0].astype(np.float32)
                return Boxes(_boxes(rows, size, recipe, threshold), size, self.names)
            case "saliency":
                return Saliency(probability(arrays[0]).astype(np.float32), size, recipe)
            case _:
                return None


def reading_of(
    outputs: Mapping[str, Array],
    asked: str | None = None,
    names: Sequence[str] = (),
    size: tuple[int, int] = (0, 0),
) -> Reading:
    """Tell by its outputs what task a model does; `asked` is the only one to think of, `names` those of its classes.

    As `edgeattn.metrics.find_task`, and for detection also the forms in `detectors`, some of which only the input's
    `size` (H, W) tells from other matrices.

    Raises:
        UsageError: the outputs do not fit the task that was asked for.
    """
    arrays = list(outputs.values())
    thought_of = asked
    if asked in (None, "detection") and (written := form_of(outputs, size)):
        form, read = written
        if form:
            return Reading("detection", read, tuple(names), form)
        thought_of = "detection"  # of a YOLO's masks, no prototype is the answer
    found = [fit for label in _LABELS if (fit := find_task(label, arrays, thought_of))]
    if found:
        task, index = min(found, key=lambda fit: fit[1])
        return Reading(task, (list(outputs)[index],), tuple(names))
    if asked is not None:
        raise UsageError(f"{asked} is read from {_needed(asked)}; the model has {_shapes(outputs)}")
    return Reading()


def read_names(path: str | Path) -> tuple[str, ...]:
    """The names of classes from a text file, one a line, class 0 first; empty lines at its end are none.

    Raises:
        InputError: it cannot be read, is no text, or is larger than 1 MiB.
    """
    try:
        text = files.read_bytes(Path(path), MAX_NAMES_BYTES).decode()
    except UnicodeDecodeError as err:
        raise InputError(f"{path} is not text in UTF-8; expected the name of one class a line") from err
    return tuple(line.strip() for line in text.rstrip().splitlines())


def name_of(number: int, names: Sequence[str]) -> str:
    """What to call a class."""
    return _label(number, names) or f"class {number}"


def _label(number: int, names: Sequence[str]) -> str | None:
    return names[number] or None if 0 <= number < len(names) else None


def _needed(task: str) -> str:
    needs = task_named(task).NEEDS.partition("an output of ")[2]
    return f"{needs}, or {forms()}" if task == "detection" else needs


def _shapes(outputs: Mapping[str, Array]) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, array.shape))}" for name, array in outputs.items())


def _best(scores: Array, top: int) -> tuple[tuple[int, float], ...]:
    x = scores.astype(np.float64).ravel()
    if np.isnan(x).all():
        return ()
    x = np.nan_to_num(x, nan=-_HUGE, posinf=_HUGE, neginf=-_HUGE)
    if x.min() < 0 or x.max() > 1 or abs(x.sum() - 1) > 0.01:
        x = np.exp(x - x.max())
        x /= x.sum()
    order = np.argsort(-x, kind="stable")[:top]
    return tuple((int(index), float(x[index])) for index in order)


def _class_map(output: Array) -> Array:
    """Classes (h, w), int16 where scores choose, from scores (C, h, w), a probability (1, h, w), or classes (h, w)."""
    if output.ndim == 2:
        return output
    if len(output) == 1:
        return (probability(output) >= 0.5).astype(np.int16)
    scores = output.astype(np.float32, copy=False)
    best, chosen = scores[0].copy(), np.zeros(scores.shape[1:], np.int16)
    for number in range(1, len(scores)):  # a fifth of the time of argmax over the first axis
        better = scores[number] > best
        np.maximum(chosen, better.view(np.uint8) * np.int16(number), out=chosen)
        np.maximum(best, scores[number], out=best)
    return chosen


def _boxes(rows: Array, size: tuple[int, int], recipe: Recipe, threshold: float) -> Array:
    """Those of (K, 6) that are boxes with a score of `threshold` or more, in the frame, best first."""
    kept = rows[
        np.isfinite(rows).all(1) & (rows[:, 4] >= max(threshold, np.finfo(np.float32).tiny)) & (rows[:, 5] >= 0)
    ]
    kept = kept[np.argsort(-kept[:, 4], kind="stable")]
    found = np.concatenate([boxes_in_frame(kept[:, :4], size, recipe), kept[:, 4:]], 1)
    visible: Array = found[(found[:, 2:4] > found[:, :2]).all(1)]
    return visible
