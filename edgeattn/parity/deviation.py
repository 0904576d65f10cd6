"""How far one output is from the truth, summed over batches as they come: memory does not grow with the data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.parity.detections import are_detections, beside
from edgeattn.parity.report import OutputParity
from edgeattn.reports.text import number
from edgeattn.tensors import format_shape
from edgeattn.tolerance import Tolerance

if TYPE_CHECKING:
    from edgeattn.tensors import Array, Shape

__all__ = ["Deviation"]

BINS_PER_DECADE = 2
LOWEST, HIGHEST = -30, 30  # decimal exponents that the histogram tells apart


@dataclass
class _Norms:
    """Largest magnitude and sum of squares of a growing set of numbers."""

    largest: float = 0.0
    squares: float = 0.0

    def add(self, values: Array) -> None:
        magnitudes = np.abs(values)
        self.largest = max(self.largest, float(magnitudes.max(initial=0.0)))
        self.squares += float(np.square(magnitudes).sum())

    def over(self, other: _Norms) -> tuple[float, float]:
        """Largest and L2 norm of these, relative to those of the others."""
        return _ratio(self.largest, other.largest), math.sqrt(_ratio(self.squares, other.squares))


@dataclass
class Deviation:
    """One output's errors against the truth, and the reference's own errors against it."""

    name: str
    dtype: str = ""
    whole: bool = False  # integers or booleans: they agree or not
    sets: bool = False  # detections: one that barely enters or leaves is a large error, and says little
    shape: Shape = ()
    elements: int = 0
    non_finite: int = 0
    undefined: int = 0  # of the truth
    different: int = 0
    own_different: int = 0
    own_known: bool = True
    worst_sample: str = ""
    worst_index: tuple[int, ...] = ()
    dot: float = 0.0
    truth: _Norms = field(default_factory=_Norms)
    got: _Norms = field(default_factory=_Norms)
    error: _Norms = field(default_factory=_Norms)
    own: _Norms = field(default_factory=_Norms)
    counts: Array = field(default_factory=lambda: np.zeros((HIGHEST - LOWEST) * BINS_PER_DECADE, np.int64))
    mismatches: dict[str, None] = field(default_factory=dict)  # a set that keeps its order

    def add(self, samples: Sequence[str], got: Array, truth: Array, own: Array | None) -> None:
        """Add one batch.

        Args:
            samples: a name for each entry of the first axis, or any other number of names where there is no such axis.
            got: what the engine says.
            truth: what the oracle says.
            own: what the reference itself says in the engine's precision, None where it cannot run there.
        """
        self.dtype, self.shape, self.whole = str(got.dtype), got.shape, truth.dtype.kind in "iub"
        if _kind(got) != _kind(truth):
            self.mismatches[f"is {got.dtype}, expected {truth.dtype}"] = None
        elif got.shape != truth.shape:
            self.mismatches[f"has shape {format_shape(got.shape)}, expected {format_shape(truth.shape)}"] = None
        elif are_detections(truth):
            self.sets = True
            alike = own is not None and own.shape == truth.shape
            self._add(samples, beside(got, truth), truth, beside(own, truth) if own is not None and alike else None)
        else:
            self._add(samples, got, truth, own)

    def _add(self, samples: Sequence[str], got: Array, truth: Array, own: Array | None) -> None:
        y, t = got.astype(np.float64), truth.astype(np.float64)
        both = np.isfinite(t) & np.isfinite(y)
        same = (y == t) | (np.isnan(y) & np.isnan(t))
        error = np.where(both, y - np.where(both, t, 0.0), 0.0) if not both.all() else y - t
        self.elements += y.size
        self.non_finite += int((~both & ~same).sum())
        self.undefined += int((~np.isfinite(t)).sum())
        self.different += int((~same).sum())
        largest = self.error.largest
        self.error.add(error)
        if self.error.largest > largest:
            self._locate(samples, np.abs(error))
        self.truth.add(t[both])
        self.got.add(y[both])
        self.dot += float(np.vdot(y[both], t[both]))
        self._count(error)
        o = None if own is None or own.shape != t.shape else own.astype(np.float64)
        if o is None or not np.isfinite(o[both]).all():
            self.own_known = False
        else:
            self.own.add((o - t)[both])
            self.own_different += int((o != t)[both].sum())

    def _locate(self, samples: Sequence[str], magnitudes: Array) -> None:
        index = tuple(int(i) for i in np.unravel_index(int(magnitudes.argmax()), magnitudes.shape))
        batched = magnitudes.ndim > 0 and magnitudes.shape[0] == len(samples)
        self.worst_sample = samples[index[0]] if batched else ", ".join(samples)
        self.worst_index = index[1:] if batched else index

    def _count(self, error: Array) -> None:
        exponents = np.log10(np.abs(error[error != 0]))
        self.counts += np.histogram(np.clip(exponents, LOWEST, HIGHEST), len(self.counts), (LOWEST, HIGHEST))[0]

    def judged(self, tolerance: Tolerance) -> OutputParity:
        """The verdict on what was added."""
        worst, noise = self.error.over(self.truth)
        own_max, own_l2 = self.own.over(self.truth) if self.own_known else (None, None)
        limit_max, limit_l2 = tolerance.limit(own_max), tolerance.limit(own_l2)
        limit_max = math.inf if tolerance.noise or self.sets else limit_max
        measured = [("the largest error over max|y|", worst, limit_max), ("the relative L2 error", noise, limit_l2)]
        if self.whole:
            worst = _ratio(self.different, self.elements)
            own_max = own_l2 = _ratio(self.own_different, self.elements) if self.own_known else None
            limit_max = limit_l2 = tolerance.limit_differing(own_max)
            measured = [("the share of values that differ", worst, limit_max)]
        norms = math.sqrt(self.got.squares) * math.sqrt(self.truth.squares)
        return OutputParity(
            name=self.name,
            dtype=self.dtype,
            shape=self.shape,
            elements=self.elements,
            max_abs=self.error.largest,
            relative_max=worst,
            relative_l2=worst if self.whole else noise,
            cosine=self.dot / norms if norms else float(self.got.squares == self.truth.squares),
            sqnr_db=-20 * math.log10(noise) if noise else math.inf,
            worst_sample=self.worst_sample,
            worst_index=self.worst_index,
            non_finite=self.non_finite,
            own_max=own_max,
            own_l2=own_l2,
            limit_max=limit_max,
            limit_l2=limit_l2,
            scale=self.truth.largest,
            histogram=self._histogram(),
            failures=tuple(self._failures(measured)),
            reference_non_finite=self.undefined,
        )

    def _failures(self, measured: Sequence[tuple[str, float, float]]) -> Iterator[str]:
        for mismatch in self.mismatches:
            yield f"output {self.name!r} {mismatch}"
        if self.non_finite:
            yield f"output {self.name!r}: {self.non_finite} of {self.elements} values are not finite"
        for what, value, limit in measured:
            if value > limit:
                yield f"output {self.name!r}: {what} is {number(value)}, the limit is {number(limit)}"

    def _histogram(self) -> tuple[tuple[float, float, int], ...]:
        used = np.flatnonzero(self.counts)
        if not used.size:
            return ()
        step = 1 / BINS_PER_DECADE
        span = range(int(used[0]), int(used[-1]) + 1)
        return tuple((LOWEST + step * bin, LOWEST + step * (bin + 1), int(self.counts[bin])) for bin in span)


def _ratio(part: float, whole: float) -> float:
    """0 of 0 is 0; anything else of 0 is infinite."""
    return part / whole if whole else (math.inf if part else 0.0)


def _kind(array: Array) -> Any:
    """`f` for every floating dtype, those of ml_dtypes too."""
    return "f" if array.dtype.kind in "fV" else array.dtype.kind.replace("u", "i")
