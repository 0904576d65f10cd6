"""What a build will do and did, as values that print themselves."""

from __future__ import annotations

import dataclasses
import glob
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeattn.backends.base import BuildConfig
from edgeattn.engine import Sidecar
from edgeattn.folding import FOLDED
from edgeattn.fuse import Missed
from edgeattn.graph import Graph
from edgeattn.inspect import AttentionInfo
from edgeattn.parity import ParityReport
from edgeattn.precision.mixed import floating
from edgeattn.reports.text import number, table
from edgeattn.tensors import format_shape, format_size

LOW_PRECISIONS = ("float16", "bfloat16")
SHORT_NAMES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "int8"}


@dataclass(frozen=True)
class BuildPlan:
    """What a build will do, before it does it: `edgeattn build --dry-run`."""

    source: Graph
    typed: Graph
    backend: str
    why: str
    config: BuildConfig
    attention: tuple[AttentionInfo, ...] = ()
    missed: tuple[Missed, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = [
            ("model", f"{self.source.path or 'in memory'} (opset {self.source.opset})"),
            ("backend", f"{self.backend} ({self.why})"),
            ("precision", " beside ".join(dict.fromkeys((self.config.precision, floating(self.config))))),
            *(("input", f"{name}: {spread}") for name, spread in self.config.profile.items()),
            *(("output", str(spec)) for spec in self.typed.outputs),
            ("targets", ", ".join(self.config.targets) or "this machine"),
            *self.attention_rows(),
            *(("note", note) for note in self.notes),
        ]
        return table(rows)

    def attention_rows(self) -> list[tuple[str, str]]:
        """For people: what each attention is run with, and what was nearly one."""
        chosen = ((item, item.plans[self.backend]) for item in self.attention)
        return [
            *(("attention", f"{item}: {plan.runs}{f' ({plan.why})' if plan.why else ''}") for item, plan in chosen),
            *(("missed", str(item)) for item in self.missed),
        ]


@dataclass(frozen=True)
class BuildReport:
    """What a build did: where the engine is, what is in it, and what the check of it said."""

    path: Path
    plan: BuildPlan
    sidecar: Sidecar
    parity: ParityReport | None
    unchecked: str  # why it was not checked, empty where it was
    seconds: Mapping[str, float]

    @property
    def overhead_s(self) -> float:
        """What the build cost beyond the backend's compilation, the timing of attentions and the check, in seconds."""
        return sum(spent for phase, spent in self.seconds.items() if phase not in ("measure", "compile", "check"))

    def __str__(self) -> str:
        precision = self.sidecar.precision
        asked = f"{precision.asked}; weights {_shares(precision.weights, format_size)}"
        rows = [
            ("engine", f"{self.path} ({format_size(self.sidecar.plan_bytes)})"),
            ("backend", f"{self.sidecar.backend} {self.sidecar.backend_version} ({self.plan.why})"),
            *(("input", f"{spec} [{self.sidecar.profile[spec.name]}]") for spec in self.sidecar.inputs),
            *(("output", f"{spec.name}: {spec.dtype} {format_shape(spec.shape)}") for spec in self.sidecar.outputs),
            *([("threads", str(self.plan.config.threads))] if self.plan.config.threads else []),
            ("precision", f"asked {asked}; layers {_shares(precision.compute, str)}"),
            *self.plan.attention_rows(),
            *(("note", note) for note in precision.notes),
            ("check", self.verdict),
        ]
        return "\n\n".join(filter(None, (table(rows), self._searched())))

    def _searched(self) -> str:
        """What else was tried; a star where nothing is both faster and nearer to the model."""
        rows = self.sidecar.search
        metrics = list(dict.fromkeys(metric for row in rows for metric in row.get("drops", ())))
        found = [
            (
                row["candidate"] + (" *" if row.get("pareto") else ""),
                number(row["ms"]),
                *(_lost(metric, row["drops"].get(metric)) for metric in metrics),
                row["verdict"],
            )
            for row in rows
        ]
        heads = (
            "candidate",
            "ms",
            *(metric if metric == "sqnr" else f"{metric} lost" for metric in metrics),
            "verdict",
        )
        return table(found, heads, "l" + "r" * (len(metrics) + 1)) if found else ""

    @property
    def compared(self) -> bool:
        """Whether it was held against the graph; random input says nothing of INT8."""
        if (self.sidecar.verified or {}).get("values"):
            return True
        return self.parity is not None and (self.plan.config.precision != "int8" or self.parity.samples > 0)

    @property
    def verdict(self) -> str:
        """What the check said, in words."""
        if judged := (self.sidecar.verified or {}).get("values"):
            kept = ", ".join(f"{metric} {number(value)}" for metric, value in judged.items())
            return f"within the budget on samples that did not calibrate it: {kept}"
        if self.parity is None:
            return f"not run: {self.unchecked}"
        lost = "".join(f"; {metric.change}" for metric in self.parity.metrics)
        if self.plan.config.precision != "int8":
            shapes = len(self.parity.shapes)
            return f"passed against the graph at {shapes} shape{'s' * (shapes > 1)}{lost}"
        if not self.parity.samples:
            return "runs, and gives finite numbers on random input; give --data to see what INT8 costs on real samples"
        worst = min(output.sqnr_db for output in self.parity.outputs)
        return f"SQNR {number(worst)} dB against the graph on {self.parity.samples} samples{lost}"

    def to_json(self) -> dict[str, Any]:
        """Plain values: the sidecar but the provenance of its layers, the notes, seconds by phase."""
        return {
            "engine": str(self.path),
            "why": self.plan.why,
            "attention": [item.to_json() for item in self.plan.attention],
            "missed": [dataclasses.asdict(item) for item in self.plan.missed],
            "notes": list(self.plan.notes),
            "sidecar": self.sidecar.to_json(),
            "checked": self.compared,
            "unchecked": self.unchecked,
            "seconds": dict(self.seconds),
            "overhead_s": self.overhead_s,
        }


def rebuild_command(plan: BuildPlan, output: Path, choice: Sequence[str]) -> str:
    """The command line that does a build again; `choice` says how its backend is chosen."""
    config, source = plan.config, plan.source
    words = ["edgeattn", "build", str(source.path or "MODEL.onnx"), "-o", str(output), *choice]
    if FOLDED in source.model.metadata_props:
        words += ["--fold-preprocess", *(["--recipe", "RECIPE.toml"] if "--recipe" not in choice else [])]
    if config.precision == "int8":
        words += ["--int8", "--ranges", "RANGES.json"]
    if floating(config) in LOW_PRECISIONS:
        words.append(f"--{SHORT_NAMES[floating(config)]}")
    for name, precision in config.layer_precisions.items():
        words += ["--keep", glob.escape(name)] if precision != config.precision else []
    words += ["--attention", config.attention] if config.attention != "auto" else []
    words += ["--no-fuse"] if not config.fuse else []
    words += ["--threads", str(config.threads)] if config.threads else []
    for flag, bound in (("--min-shapes", "min"), ("--opt-shapes", "opt"), ("--max-shapes", "max")):
        words += [flag, ",".join(f"{name}:{format_shape(getattr(r, bound))}" for name, r in config.profile.items())]
    if config.targets:
        words += ["--target", ",".join(config.targets)]
    return shlex.join(words)


def _lost(metric: str, drop: float | None) -> str:
    if drop is None:
        return "-"
    return f"{drop:.1f} dB" if metric == "sqnr" else f"{100 * drop:.2f} %"


def _shares(counts: Mapping[str, int], show: Any) -> str:
    return ", ".join(f"{dtype} {show(count)}" for dtype, count in counts.items()) or "none"
