"""What is in a file: a graph's inputs, operators and weights, or what an engine's sidecar knows."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeattn.engine import Sidecar, read_sidecar, sidecar_path
from edgeattn.graph import load_graph
from edgeattn.reports.text import table
from edgeattn.tensors import TensorSpec, format_size


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
            ("sha256", self.sha256),
        ]
        return table(rows)

    def to_json(self) -> dict[str, Any]:
        """Plain values under the field names."""
        return {"kind": "graph", **dataclasses.asdict(self), "path": str(self.path)}


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
        """The sidecar's fields."""
        return {"kind": "engine", "path": str(self.path), **dataclasses.asdict(self.sidecar)}


def inspect_file(path: str | Path, trust: bool = False) -> GraphInfo | EngineInfo:
    """Describe an ONNX model, or an engine: a file with a sidecar beside it.

    Raises:
        InputError: the file is refused as a model, or is not the engine that its sidecar describes.
    """
    path = Path(path)
    if os.path.exists(sidecar_path(path)):
        return EngineInfo(path, read_sidecar(path, trust))
    graph = load_graph(path)
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
        sha256=graph.sha256,
    )


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "unknown"
