"""What an engine was built from, found again: its graph, its settings, and the graph as its backend got it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgeattn.backends import backend_named
from edgeattn.backends.base import BuildConfig, Session, config_of
from edgeattn.build import plan_build
from edgeattn.calibrate import CalibrationSettings, calibrate
from edgeattn.data import Dataset
from edgeattn.engine import Sidecar
from edgeattn.errors import InputError
from edgeattn.folding import built_from, folded_name, folded_recipe
from edgeattn.graph import Graph, load_graph
from edgeattn.precision.int8.improve import STEPS
from edgeattn.precision.ranges import Ranges, load_ranges

TELLING = ("method", "data_sha256", "graph_sha256", "recipe")  # what tells two tables of ranges apart


@dataclass(frozen=True)
class Rebuilt:
    """An engine's parts.

    Attributes:
        sidecar: what is known of the engine.
        graph: what it was built from.
        typed: that graph as its backend got it: fused, lowered, in its precisions.
        config: how it was built.
        ranges: what calibration observed, where that was found again.
        samples: what its INT8 weights were improved on, where they were.
        notes: what could not be had as it was, in words.
    """

    sidecar: Sidecar
    graph: Graph
    typed: Graph
    config: BuildConfig
    ranges: Ranges | None = None
    samples: Dataset | None = None
    notes: tuple[str, ...] = ()

    def session(self, typed: Graph, config: BuildConfig | None = None) -> Session:
        """Build a typed graph as the engine was built, in memory, and open it.

        OpenVINO takes its precision for the whole graph, so that a part of one gets what all of it got.

        Raises:
            BuildError: the backend refuses the graph.
        """
        module, config = backend_named(self.sidecar.backend), config or self.config
        if self.sidecar.config.get("inference_precision") == "f32" and config.precision != "int8":
            config = dataclasses.replace(config, precision="float32")
        return module.load(module.build(typed, config))


def rebuilt(
    target: str | Path, sidecar: Sidecar, *, ranges: Path | None = None, data: Dataset | None = None
) -> Rebuilt:
    """Find again what an engine was built from.

    ONNX Runtime's plan is the typed graph itself, and `--best` leaves it beside the engine; otherwise the graph is
    typed again. What calibration observed is read from `ranges`, or observed again on `data` where these are the same
    samples.

    Raises:
        InputError: the graph is gone or has changed, or the ranges are others; or an INT8 engine's are not there.
    """
    graph, config = built_from(target, sidecar), config_of(sidecar)
    left = Path(f"{target}.onnx")
    plan = Path(target) if sidecar.backend == "onnxruntime" else left if sidecar.search and left.is_file() else None
    if plan is not None:
        found = None
        with contextlib.suppress(InputError):  # then remedies go without
            found = _observed(target, sidecar, graph, ranges, data)
        return Rebuilt(sidecar, graph, load_graph(plan), config, found, data)
    found = _observed(target, sidecar, graph, ranges, data)
    samples = data if config.improve else None
    typed = typed_again(sidecar, graph, config, found, samples)
    lacking = {
        "what calibration had observed: give --ranges or --data": found is None and bool(sidecar.calibration),
        "what had improved its INT8: give --data": data is None and not STEPS.keys().isdisjoint(config.improve or ()),
    }
    notes = tuple(f"built again without {what}" for what, is_lacking in lacking.items() if is_lacking)
    return Rebuilt(sidecar, graph, typed, config, found, samples, notes)


def typed_again(
    sidecar: Sidecar, graph: Graph, config: BuildConfig, ranges: Ranges | None, samples: Iterable[object] | None
) -> Graph:
    """A graph as an engine's backend gets it."""
    return plan_build(graph, config, sidecar.backend, ranges=ranges, samples=samples).typed  # type: ignore[arg-type]


def _observed(
    target: str | Path, sidecar: Sidecar, graph: Graph, table: Path | None, data: Dataset | None
) -> Ranges | None:
    """What calibration observed for an engine: read, or observed again on the same samples."""
    wanted = sidecar.calibration
    if table is None and data is None and sidecar.precision.asked == "int8":
        raise InputError(
            f"{target} is in INT8, and the ranges it was built with are not in its sidecar: give them with --ranges, "
            "or the samples they were observed on with --data and --recipe"
        )
    if not wanted or (table is None and data is None):
        return None
    found = load_ranges(table) if table else calibrate(graph, data, _settings(sidecar)) if data else None
    assert found is not None
    where = table or (data.folder if data else "")
    other = [name for name in TELLING if getattr(found, name) != wanted.get(name)]
    if other:
        raise InputError(f"{where} is not what {target} was calibrated on: {', '.join(other)} differ")
    if folded_recipe(sidecar.graph) and table is not None:
        renamed = {graph.inputs[0].name: folded_name(graph)}
        tensors = {renamed.get(name, name): item for name, item in found.tensors.items()}
        found = dataclasses.replace(found, tensors=tensors)
    return found


def _settings(sidecar: Sidecar) -> CalibrationSettings:
    said = sidecar.calibration
    how = {name: value for name, value in said["settings"].items() if name in ("limit", "seed", "percentile")}
    return CalibrationSettings(method=said["method"], **how)
