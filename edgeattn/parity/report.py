"""What a parity check found: the values, and the verdict as a table, JSON and JUnit (`parity_page` draws it)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from edgeattn.metrics import ERRORS
from edgeattn.reports.junit import Case, junit
from edgeattn.reports.latency import LatencyReport
from edgeattn.reports.text import number, table
from edgeattn.tensors import format_shape

if TYPE_CHECKING:
    from edgeattn.tensors import Shape

__all__ = ["LatencyPair", "MetricParity", "OutputParity", "ParityReport", "ShapeParity", "share"]

ROUNDING = 1e-12  # of the difference of two fractions


@dataclass(frozen=True)
class OutputParity:
    """How far one output is from the truth, over all samples; relative to max|y| and to the L2 norm of y.

    Of whole numbers and booleans, both relative errors are the share of values that differ. `own_*` is the error of
    the reference itself in the engine's precision, None where it was not measured. `scale` is max|y|. `histogram`
    holds (low, high, count) in decimal exponents of the absolute error, without the zeros. `failures` says in words
    what is wrong.
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

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def worst(self) -> str:
        """Where the largest error is: `3/0007.png [4, 17]`."""
        return f"{self.worst_sample} [{', '.join(map(str, self.worst_index))}]" if self.worst_sample else "-"


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
    """

    name: str
    reference: float
    engine: float
    agreement: float | None
    samples: int
    max_drop: float | None = None

    @property
    def drop(self) -> float:
        """What the engine does worse: reference minus engine, or engine minus reference of an error."""
        return self.engine - self.reference if self.name in ERRORS else self.reference - self.engine

    @property
    def failures(self) -> tuple[str, ...]:
        """What is wrong in words; nothing where the drop is within its bound or has none."""
        if self.max_drop is None or self.drop <= self.max_drop + ROUNDING:
            return ()
        verb = "rises" if self.name in ERRORS else "drops"
        return (f"{self.name} {verb} by {share(self.drop)}, at most {share(self.max_drop)} is allowed",)

    def to_json(self) -> dict[str, Any]:
        """The fields but the name, and the drop."""
        return {**{key: value for key, value in asdict(self).items() if key != "name"}, "drop": self.drop}


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
class ParityReport:
    """The verdict on an engine against its reference; `reasons` is empty where it passed.

    `compared` says in words what stood against what: engine, reference, data, recipe, hashes.
    """

    precision: str
    compared: Mapping[str, str]
    samples: int
    outputs: tuple[OutputParity, ...]
    shapes: tuple[ShapeParity, ...]
    metrics: tuple[MetricParity, ...] = ()
    latency: tuple[LatencyPair, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.reasons

    def to_json(self) -> dict[str, Any]:
        """Plain values. A number that is not finite is null: JSON has no word for it."""
        plain = {
            "passed": self.passed,
            "reasons": self.reasons,
            "precision": self.precision,
            "samples": self.samples,
            "outputs": [{**asdict(output), "passed": output.passed} for output in self.outputs],
            "shapes": [{**asdict(shape), "passed": shape.passed} for shape in self.shapes],
            "metrics": {metric.name: metric.to_json() for metric in self.metrics},
            "latency": {
                f"batch_{pair.batch}": {
                    "reference": pair.reference.to_json(),
                    "engine": pair.engine.to_json(),
                    "speedup": pair.speedup,
                }
                for pair in self.latency
            },
            "compared": dict(self.compared),
            "environment": dict(self.environment),
        }
        finite: dict[str, Any] = _finite(plain)
        return finite

    def to_junit(self) -> str:
        """One test case per output, per shape and per metric, with the reasons of those that fail."""
        cases = [Case(f"output {output.name}", "; ".join(output.failures)) for output in self.outputs]
        cases += [Case(f"shape {shape}", "; ".join(shape.failures)) for shape in self.shapes]
        cases += [Case(f"metric {metric.name}", "; ".join(metric.failures)) for metric in self.metrics]
        return junit("edgeattn.parity", cases)

    def to_html(self) -> str:
        """One self-contained page."""
        from edgeattn.parity.page import parity_page

        return parity_page(self)

    def __str__(self) -> str:
        parts = [
            table(
                [
                    (o.name, number(o.max_abs), number(o.relative_max), number(o.limit_max), number(o.relative_l2),
                     number(o.limit_l2), f"{o.cosine:.7f}", number(o.sqnr_db), o.worst)
                    for o in self.outputs
                ],
                ("output", "max-abs", "/ max|y|", "limit", "rel. L2", "limit", "cosine", "SQNR dB", "worst"),
                "lrrrrrrrl",
            ),
            table(
                [
                    (str(shape), shape.data, number(shape.relative_max), number(shape.relative_l2),
                     "ok" if shape.passed else "FAILED")
                    for shape in self.shapes
                ],
                ("shape", "data", "/ max|y|", "rel. L2", ""),
                "llrrl",
            ),
        ]  # fmt: skip
        if self.metrics:
            header = ("metric", "reference", "engine", "drop", "agree", "labelled")
            parts.append(table([_metric_row(metric) for metric in self.metrics], header, "lrrrrr"))
        elif "task" in self.compared:
            parts.append(f"task: {self.compared['task']}")
        if self.latency:
            rows = [row for pair in self.latency for row in _latency_rows(pair)]
            parts.append(table(rows, ("batch", "", "p50 ms", "p90 ms", "p99 ms", "samples/s", "speed-up"), "llrrrrr"))
        return "\n\n".join([*parts, self.verdict])

    @property
    def verdict(self) -> str:
        """The last line: PASSED or FAILED, and why."""
        if not self.passed:
            more = f" (and {len(self.reasons) - 2} more)" if len(self.reasons) > 2 else ""
            return f"FAILED: {'; '.join(self.reasons[:2])}{more}"
        if self.precision == "int8" and not self.samples:
            return f"PASSED: int8 gives finite numbers on random input at {len(self.shapes)} shapes; --data judges them"
        data = f"{self.samples} samples" if self.samples else "random input"
        return f"PASSED: {self.precision} within tolerance on {data} at {len(self.shapes)} shapes"


def share(value: float | None) -> str:
    """A fraction in percent; `-` for none."""
    return "-" if value is None else f"{100 * value:.2f} %"


def _metric_row(metric: MetricParity) -> tuple[str, ...]:
    shares = (metric.reference, metric.engine, metric.drop, metric.agreement)
    return (metric.name, *map(share, shares), str(metric.samples))


def _latency_rows(pair: LatencyPair) -> list[tuple[str, ...]]:
    def row(name: str, report: LatencyReport, speedup: str) -> tuple[str, ...]:
        times = (f"{time:.3f}" for time in (report.p50_ms, report.p90_ms, report.p99_ms))
        return (str(pair.batch), name, *times, f"{report.throughput:.1f}", speedup)

    return [row("reference", pair.reference, ""), row("engine", pair.engine, f"{pair.speedup:.2f}x")]


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
