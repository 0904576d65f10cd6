"""What is in a file: a graph's inputs, operators and weights, or what an engine's sidecar knows."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeattn.backends import BACKENDS
from edgeattn.costs import flops_of
from edgeattn.engine import Sidecar, read_sidecar, sidecar_path
from edgeattn.fuse import Found, Missed, fuse
from edgeattn.graph import Graph, load_graph
from edgeattn.lowering import Plan, plan
from edgeattn.reports.text import table
from edgeattn.tensors import TensorSpec, format_size


@dataclass(frozen=True)
class AttentionInfo:
    """One attention: what it is, what each backend will run it with, and its share of the model's FLOPs, if known."""

    found: Found
    plans: Mapping[str, Plan]
    share: float | None = None

    def __str__(self) -> str:
        facts = self.found.facts
        sizes = ", ".join(f"{name} {size}" for name, size in facts.sizes.items())
        costs = [
            "" if facts.flops is None else f"{facts.flops / 1e6:.3g} MFLOP",
            "" if self.share is None else f"{self.share:.1%} of the model",
            "" if facts.bytes_decomposed is None else f"moves {format_size(facts.bytes_decomposed)}",
            "" if facts.bytes_fused is None else f"fused {format_size(facts.bytes_fused)}",
        ]
        return f"{self.found.op} {self.found.name} ({'; '.join(filter(None, (sizes, ', '.join(filter(None, costs)))))})"

    def to_json(self) -> dict[str, Any]:
        """Plain values; `flops` and `bytes` are of one sample, `share` is of the whole model's FLOPs, from 0 to 1."""
        found, facts = self.found, self.found.facts
        return {
            "op": found.op,
            "variant": found.variant,
            "name": found.name,
            "nodes": list(found.nodes),
            "shape": dict(facts.sizes),
            "flops": facts.flops,
            "share": self.share,
            "bytes": {"decomposed": facts.bytes_decomposed, "fused": facts.bytes_fused},
            "plan": {backend: dataclasses.asdict(item) for backend, item in self.plans.items()},
        }


@dataclass(frozen=True)
class GraphInfo:
    """An ONNX model, described: `operators` counts nodes per operator, `weights` bytes per dtype."""

    path: Path
    producer: str
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: Mapping[str, int]
    functions: tuple[str, ...]
    parameters: int
    weights: Mapping[str, int]
    attention: tuple[AttentionInfo, ...]
    missed: tuple[Missed, ...]
    notes: tuple[str, ...]
    sha256: str

    def __str__(self) -> str:
        rows = [
            ("model", f"{self.path} (opset {self.opset}, {self.producer or 'unknown producer'})"),
            *(("input", str(spec)) for spec in self.inputs),
            *(("output", str(spec)) for spec in self.outputs),
            ("operators", _counts(self.operators)),
            *(("function", name) for name in self.functions),
            ("parameters", f"{self.parameters:,}"),
            *(("weights", f"{dtype} {format_size(size)}") for dtype, size in self.weights.items()),
            *self._attention_rows(),
            *(("missed", str(item)) for item in self.missed),
            *(("note", note) for note in self.notes),
            ("sha256", self.sha256),
        ]
        return table(rows)

    def _attention_rows(self) -> Iterator[tuple[str, str]]:
        for item in self.attention:
            yield "attention", str(item)
            by_plan: dict[Plan, list[str]] = {}
            for backend, chosen in item.plans.items():
                by_plan.setdefault(chosen, []).append(backend)
            for chosen, backends in by_plan.items():
                yield "", f"  {', '.join(backends)}: {chosen.runs}{f' ({chosen.why})' if chosen.why else ''}"

    def to_json(self) -> dict[str, Any]:
        """Plain values under the field names."""
        plain = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {
            "kind": "graph",
            **plain,
            "path": str(self.path),
            "inputs": [dataclasses.asdict(spec) for spec in self.inputs],
            "outputs": [dataclasses.asdict(spec) for spec in self.outputs],
            "attention": [item.to_json() for item in self.attention],
            "missed": [dataclasses.asdict(item) for item in self.missed],
        }


@dataclass(frozen=True)
class EngineInfo:
    """An engine, described by its sidecar; the plan itself is hashed, not loaded."""

    path: Path
    sidecar: Sidecar

    def __str__(self) -> str:
        sidecar, precision = self.sidecar, self.sidecar.precision
        rows = [
            ("engine", f"{self.path} ({format_size(sidecar.plan_bytes)})"),
            ("backend", f"{sidecar.backend} {sidecar.backend_version}"),
            ("built for", f"{', '.join(sidecar.targets)} on {sidecar.platform}"),
            *(("input", f"{spec} [{sidecar.profile[spec.name]}]") for spec in sidecar.inputs),
            *(("output", str(spec)) for spec in sidecar.outputs),
            ("asked for", precision.asked),
            *(("weights", f"{dtype} {format_size(size)}") for dtype, size in precision.weights.items()),
            ("layers", _counts(precision.compute)),
            *(("note", note) for note in precision.notes),
            ("built from", f"{sidecar.graph.get('path') or 'a graph in memory'}"),
            ("checked", f"against the {sidecar.verified.get('against')}" if sidecar.verified else "no"),
            ("rebuild", sidecar.rebuild),
            ("sha256", sidecar.plan_sha256),
        ]
        return table(rows)

    def to_json(self) -> dict[str, Any]:
        """The sidecar's fields, but the provenance of its layers."""
        return {"kind": "engine", "path": str(self.path), **self.sidecar.to_json()}


def inspect_file(path: str | Path, trust: bool = False) -> GraphInfo | EngineInfo:
    """Describe an ONNX model, or an engine: a file with a sidecar beside it.

    Raises:
        InputError: the file is refused as a model, or is not the engine that its sidecar describes.
    """
    path = Path(path)
    if os.path.exists(sidecar_path(path)):
        return EngineInfo(path, read_sidecar(path, trust))
    graph = load_graph(path)
    fused, report = fuse(graph)
    return GraphInfo(
        path=path,
        producer=" ".join(filter(None, (graph.model.producer_name, graph.model.producer_version))),
        opset=graph.opset,
        inputs=graph.inputs,
        outputs=graph.outputs,
        operators=dict(graph.op_counts().most_common()),
        functions=tuple(f"{domain}::{name}" for domain, name, _ in graph.model.functions),
        parameters=graph.parameter_count,
        weights=graph.weight_bytes(),
        attention=attention_in(fused, report.found, "float16"),
        missed=report.missed,
        notes=report.notes,
        sha256=graph.sha256,
    )


def attention_in(fused: Graph, found: Sequence[Found], precision: str) -> tuple[AttentionInfo, ...]:
    """What runs each attention of a fused graph, per backend, and what it costs."""
    nodes = {node.name: node for node in fused.model.graph}
    whole = flops_of(fused, {item.name: item.facts.flops for item in found})
    return tuple(
        AttentionInfo(
            item,
            {backend: plan(nodes[item.name], backend, precision) for backend in BACKENDS},
            item.facts.flops / whole if whole and item.facts.flops is not None else None,
        )
        for item in found
    )


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "unknown"
