"""What a parity check finds, piece by piece: one value for each output, shape, metric, rebuild, sample and map."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from edgeattn.metrics import ERRORS
from edgeattn.parity.bootstrap import LEVEL, RESAMPLES, Interval
from edgeattn.reports.latency import LatencyReport
from edgeattn.reports.text import number
from edgeattn.tensors import format_shape

if TYPE_CHECKING:
    from edgeattn.tensors import Shape

ROUNDING = 1e-12  # of the difference of two fractions


@dataclass(frozen=True)
class OutputParity:
    """How far one output is from the truth, over all samples; relative to max|y| and to the L2 norm of y.

    Of whole numbers and booleans, both relative errors are the share of values that differ. `own_*` is the error of
    the reference itself in the engine's precision, None where it was not measured. `limit_max` is infinite where single
    values are not judged: of INT8, and of detections, whose errors are what `edgeattn.parity.detections` says. `scale`
    is max|y|. `histogram` holds (low, high, count) in decimal exponents of the absolute error, without the zeros.
    `non_finite` values of the engine are not finite where the original's differ, `reference_non_finite` of the original
    are not. `failures` says in words what is wrong.
    """

    name: str
    dtype: str
    shape: Shape
    elements: int
    max_abs: float
    relative_max: float
    relative_l2: float
    cosine: float
    sqnr_db: float
    worst_sample: str
    worst_index: tuple[int, ...]
    non_finite: int
    own_max: float | None
    own_l2: float | None
    limit_max: float
    limit_l2: float
    scale: float
    histogram: tuple[tuple[float, float, int], ...]
    failures: tuple[str, ...]
    reference_non_finite: int = 0

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def whole(self) -> bool:
        """Whether it holds integers or booleans."""
        return self.dtype.startswith(("int", "uint", "bool"))

    @property
    def worst(self) -> str:
        """Where the largest error is: `3/0007.png [4, 17]`."""
        return f"{self.worst_sample} [{', '.join(map(str, self.worst_index))}]" if self.worst_sample else "-"

    @property
    def undefined(self) -> str:
        """How much of the original is no number, in words; empty where all is."""
        some = f"{self.name}: {self.reference_non_finite} of {self.elements} values of the original are not finite"
        return some if self.reference_non_finite else ""


@dataclass(frozen=True)
class ShapeParity:
    """The verdict at one corner of the engine's range: `data` says where the input came from."""

    shapes: Mapping[str, Shape]
    data: str
    relative_max: float
    relative_l2: float
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.failures

    def __str__(self) -> str:
        return ", ".join(f"{name} {format_shape(shape)}" for name, shape in self.shapes.items())


@dataclass(frozen=True)
class MetricParity:
    """A metric of both on the same labelled samples, as fractions.

    `agreement` is the engine's if the reference's answers were the labels, None where an answer is no label.
    `intervals` are those of `reference`, `engine` and `drop`; empty where there are too few samples for any.
    """

    name: str
    reference: float
    engine: float
    agreement: float | None
    samples: int
    max_drop: float | None = None
    intervals: Mapping[str, Interval] = field(default_factory=dict)

    @property
    def drop(self) -> float:
        """What the engine does worse: reference minus engine, or engine minus reference of an error."""
        return self.engine - self.reference if self.name in ERRORS else self.reference - self.engine

    @property
    def failures(self) -> tuple[str, ...]:
        """What is wrong in words; nothing where the drop is within its bound or has none."""
        if self.max_drop is None or self.drop <= self.max_drop + ROUNDING:
            return ()
        return (f"{self.change}, at most {share(self.max_drop)} is allowed",)

    @property
    def change(self) -> str:
        """The drop in words."""
        return f"{self.name} {'rises' if self.name in ERRORS else 'drops'} by {share(self.drop)}"

    @property
    def standing(self) -> str:
        """How the drop stands to its bound, in words, and whether the samples are enough to tell.

        Where no sample differs there is nothing to draw from; by the rule of three, less than 3 / n of all then do.
        """
        if self.max_drop is None or "drop" not in self.intervals:
            return ""
        low, high = self.intervals["drop"]
        high = max(high, 3 / self.samples) if low == high else high
        if not self.failures:
            words, inside, other = "within the bound", high <= self.max_drop + ROUNDING, high
        else:
            words, inside, other = "beyond the bound", low > self.max_drop + ROUNDING, low
        if inside:
            return f"{words}, and so is its interval"
        return f"{words}, but {self.samples} samples cannot tell {share(self.drop)} from {share(other)}"

    def to_json(self) -> dict[str, Any]:
        """The fields but the name, and the drop."""
        shown = {key: getattr(self, key) for key in ("reference", "engine", "agreement", "samples", "max_drop", "drop")}
        found = {"confidence_level": LEVEL, "n_resamples": RESAMPLES, **self.intervals} if self.intervals else None
        return {**shown, "confidence_interval": found, "standing": self.standing}


@dataclass(frozen=True)
class LatencyPair:
    """Reference and engine at one batch size, measured in turn in one process."""

    batch: int
    reference: LatencyReport
    engine: LatencyReport

    @property
    def speedup(self) -> float:
        """How many times faster the engine is, by the median."""
        return self.reference.p50_ms / self.engine.p50_ms


@dataclass(frozen=True)
class RebuildParity:
    """One more build from the same graph, on the same samples.

    `relative_l2` is its error against the original, of its worst output; `spread_l2` and `spread_max` are how far it is
    from the engine itself, relative as errors are. `metrics` are its figures on the labelled samples.
    """

    name: str
    plan_sha256: str
    relative_l2: float
    spread_l2: float
    spread_max: float
    metrics: Mapping[str, float]
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.failures


@dataclass(frozen=True)
class ClassParity:
    """A figure of one class on both sides, None where a side has none: `metric` names it."""

    number: int
    metric: str
    reference: float | None
    engine: float | None

    def to_json(self) -> dict[str, Any]:
        """The fields; `number` is called `class`."""
        kept = asdict(self)
        return {"class": kept.pop("number"), **kept}


@dataclass(frozen=True)
class SampleParity:
    """One of the samples that differ most.

    `relative_l2` is the L2 norm of its output's error over that of a typical sample's output; of detections it is
    1 - IoU of boxes and their partners, of whole numbers the share that differs. `decision` is how far what the two
    decide differs, 0 to 1. `label`, `reference` and `engine` say it in words. `pictures` are PNG or JPEG files by what
    they show: input, reference, engine, difference.
    """

    name: str
    relative_l2: float
    decision: float
    max_abs: float
    label: str
    reference: str
    engine: str
    pictures: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        """The fields but the pictures."""
        return {key: value for key, value in asdict(self).items() if key != "pictures"}


@dataclass(frozen=True)
class MapParity:
    """Where one attention looks, in the original and in the engine, over some samples.

    Each measure is a mean over the samples, None where the map is not one that has it: `kl` the Kullback-Leibler
    divergence of weights that add up to one, `topk_overlap` how much of the original's mass at its own top places the
    engine's top places hold, `drift` how far the centre of mass moved, in fractions of the map, `distance` as
    `edgeattn.maps` has it, and `limit` the largest distance that passes. `note` says what else must be known, such as
    that the original's own map was not found. The pictures are small PNG files.
    """

    op: str
    name: str
    kind: str
    module: str
    kl: float | None
    topk_overlap: float | None
    drift: float | None
    distance: float
    limit: float | None
    failures: tuple[str, ...] = ()
    original_png: bytes = field(default=b"", repr=False)
    engine_png: bytes = field(default=b"", repr=False)
    note: str = ""

    @property
    def passed(self) -> bool:
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """The fields but the pictures; `kind` is called `map`, as in `edgeattn attention`."""
        kept = {key: value for key, value in asdict(self).items() if not key.endswith("_png")}
        return {"map": kept.pop("kind"), **kept, "passed": self.passed}


def share(value: float | None) -> str:
    """A fraction in percent; `-` for none."""
    return "-" if value is None else f"{_percent(value)} %"


def between(interval: Interval | None) -> str:
    """An interval in percent; `-` for none."""
    return "-" if interval is None else f"{_percent(interval[0])} .. {_percent(interval[1])} %"


def bound(limit: float) -> str:
    """A limit in few characters; `-` for none."""
    return number(limit if limit < math.inf else None)


def _percent(value: float) -> str:
    return f"{round(100 * value, 2) + 0.0:.2f}"  # no minus before what rounds to nothing
