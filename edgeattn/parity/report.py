"""What a parity check found, and the verdict as a table, JSON and JUnit (`parity_page` draws it)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from edgeattn.files import finite
from edgeattn.parity.findings import (
    ClassParity,
    LatencyPair,
    MapParity,
    MetricParity,
    OutputParity,
    RebuildParity,
    SampleParity,
    ShapeParity,
    between,
    share,
)
from edgeattn.reports.junit import Case, junit

__all__ = [
    "ClassParity",
    "LatencyPair",
    "MapParity",
    "MetricParity",
    "OutputParity",
    "ParityReport",
    "RebuildParity",
    "SampleParity",
    "ShapeParity",
    "between",
    "share",
]

SAID = 2  # reasons in the verdict


@dataclass(frozen=True)
class ParityReport:
    """The verdict on an engine against its reference; `reasons` is empty where it passed.

    `compared` says in words what stood against what: engine, reference, data, recipe, hashes. `curves` is precision
    over recall by side, `agreement` (the original's class, the engine's, samples) of the pairs that occur, `worst` the
    samples that differ most.
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
    classes: tuple[ClassParity, ...] = ()
    curves: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    agreement: tuple[tuple[int, int, int], ...] = ()
    worst: tuple[SampleParity, ...] = ()
    rebuilds: tuple[RebuildParity, ...] = ()
    maps: tuple[MapParity, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.reasons

    def with_maps(self, maps: Sequence[MapParity]) -> ParityReport:
        """The same report with attention maps, whose failures count."""
        failures = [reason for found in maps for reason in found.failures]
        return replace(self, maps=tuple(maps), reasons=tuple(dict.fromkeys((*self.reasons, *failures))))

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
            "classes": [found.to_json() for found in self.classes],
            "precision_recall": dict(self.curves),
            "agreement_matrix": [
                {"reference": wanted, "engine": given, "samples": count} for wanted, given, count in self.agreement
            ],
            "worst_samples": [found.to_json() for found in self.worst],
            "rebuilds": [{**asdict(found), "passed": found.passed} for found in self.rebuilds],
            "attention_maps": [found.to_json() for found in self.maps],
        }
        shown: dict[str, Any] = finite(plain)
        return shown

    def to_junit(self) -> str:
        """One test case per output, shape, metric, rebuild and attention map, with the reasons of those that fail."""
        cases = [Case(f"output {output.name}", "; ".join(output.failures)) for output in self.outputs]
        cases += [Case(f"shape {shape}", "; ".join(shape.failures)) for shape in self.shapes]
        cases += [Case(f"metric {metric.name}", "; ".join(metric.failures)) for metric in self.metrics]
        cases += [Case(rebuild.name, "; ".join(rebuild.failures)) for rebuild in self.rebuilds]
        cases += [Case(f"attention {found.name} ({found.kind})", "; ".join(found.failures)) for found in self.maps]
        return junit("edgeattn.parity", cases)

    def to_markdown(self, page: str = "") -> str:
        """A summary for a pull request; `page` is where the HTML report is."""
        from edgeattn.parity.markdown import parity_markdown

        return parity_markdown(self, page)

    def to_html(self) -> str:
        """One self-contained page."""
        from edgeattn.parity.page import parity_page

        return parity_page(self)

    def __str__(self) -> str:
        from edgeattn.parity.text import parity_text

        return parity_text(self)

    @property
    def verdict(self) -> str:
        """The last line: PASSED or FAILED, and why."""
        if not self.passed:
            more = f" (and {len(self.reasons) - SAID} more)" if len(self.reasons) > SAID else ""
            return f"FAILED: {'; '.join(self.reasons[:SAID])}{more}"
        if self.precision == "int8" and not self.samples:
            return f"PASSED: int8 gives finite numbers on random input at {len(self.shapes)} shapes; --data judges them"
        data = f"{self.samples} samples" if self.samples else "random input"
        return f"PASSED: {self.precision} within tolerance on {data} at {len(self.shapes)} shapes"
