"""What the metrics of all tasks share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeattn.errors import InputError
from edgeattn.tensors import format_shape

if TYPE_CHECKING:
    from edgeattn.tensors import Array

# A class; a mask (H, W) of classes, whole numbers; or boxes (K, 5) of floats: x1, y1, x2, y2, class.
Label: TypeAlias = int | NDArray[Any]


class Metric(Protocol):
    """The figures of merit of one task, on samples as they come.

    `NAMES` are the keys of its result, all fractions, `NEEDS` what it takes, in words, and `BY_CLASS` what it tells of
    each class, empty for nothing. What it keeps of each of its `samples` is enough to weigh them anew.
    """

    NAMES: ClassVar[tuple[str, ...]]
    NEEDS: ClassVar[str]
    BY_CLASS: ClassVar[str] = ""

    samples: int

    @staticmethod
    def fits(label: Label, output: Array) -> bool:
        """Whether such a label can judge such an output, which has its batch axis."""

    @staticmethod
    def answers(outputs: Array) -> Sequence[Label]:
        """The labels by which these outputs would be right; none where a label cannot say what they say."""

    def add(self, outputs: Array, labels: Sequence[Label]) -> None:
        """Count a batch.

        Raises:
            InputError: a label and its output do not belong together.
        """

    def resampled(self, weights: Array) -> dict[str, Array]:
        """The figures by name on many resamples at once (R,), nan where one has no meaning there.

        Args:
            weights: how often each resample holds each sample (R, samples), floats.
        """

    def result(self) -> dict[str, float]:
        """The figures by name, as fractions; those that have no meaning on what was counted are left out."""
        figures = self.resampled(np.ones((1, self.samples)))
        return {name: float(values[0]) for name, values in figures.items() if np.isfinite(values[0])}

    def by_class(self) -> dict[int, float]:
        """The figure of `BY_CLASS` of each class that has one."""
        return {}

    def curve(self) -> list[tuple[float, float]]:
        """Precision over recall, as (recall, precision) with rising recall; empty where the task has none."""
        return []


def mean_where(values: Array, there: Array) -> Array:
    """The mean over the last axis of the values that are there; nan of none."""
    count = there.sum(-1)
    total = np.where(there, values, 0.0).sum(-1)
    return ratio(total, count)


def ratio(part: Array, whole: Array) -> Array:
    """`part / whole`, and nan of nothing."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), whole)
    found: Array = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return found


def is_mask(label: Label) -> bool:
    """Whether a label is a mask of classes (H, W)."""
    return isinstance(label, np.ndarray) and label.ndim == 2 and label.dtype.kind in "iu"


def is_map(output: Array) -> bool:
    """Whether an output can be probabilities (N, 1, H, W)."""
    if output.ndim != 4 or output.shape[1] != 1 or output.dtype.kind in "iub" or not output.size:
        return False
    return bool(output.min() >= 0 and output.max() <= 1)


def probability(channel: Array) -> Array:
    """One channel (1, H, W) as float64 within 0 and 1: a wrong engine's numbers are wrong, but they are counted."""
    clipped: Array = np.clip(np.nan_to_num(channel[0].astype(np.float64)), 0.0, 1.0)
    return clipped


def check_size(output: Array, mask: Array) -> None:
    """Refuse a mask of another size than the model's output.

    Raises:
        InputError: they differ; a model that answers in less detail resizes its answer itself.
    """
    if output.shape[-2:] != mask.shape:
        raise InputError(
            f"the mask is {format_shape(mask.shape)}, but the model's output {format_shape(output.shape[-2:])}; "
            "let the model resize its output to the size of its input, or fit the recipe to the model"
        )
