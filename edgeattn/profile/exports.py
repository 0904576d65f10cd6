"""A profile in other tools' forms: a trace for Perfetto, and the JSON files that trtexec writes.

Forms read off NVIDIA/TensorRT's samples/common/sampleReporting.cpp (11.0, a892d22), its engine inspector, and the
Chrome trace event format, which Perfetto opens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate, groupby, pairwise
from typing import Any

from edgeattn.profile.report import Layer, ProfileReport, Run
from edgeattn.tensors import Dim, format_shape

__all__ = ["chrome_trace", "trtexec_layer_info", "trtexec_profile", "trtexec_times"]

PROCESS = 1
LAYERS, BLOCKS, MODULES, STAGES = range(1, 5)  # tracks, in this order
TRACKS = {LAYERS: "layers", BLOCKS: "attention blocks", MODULES: "modules", STAGES: "stages"}
NODE_SEPARATOR = "\x1e"  # between ONNX nodes in the inspector's metadata


def chrome_trace(report: ProfileReport) -> dict[str, Any]:
    """One typical run on a time line, as Chrome trace events: every layer takes its median, one after another.

    Beside the layers, tracks for attention blocks, modules (one slice in another, by their paths) and stages: a slice
    is the layers next to each other that belong to it. Times are in microseconds.
    """
    ends = list(accumulate((round(layer.median_ms * 1e6) for layer in report.layers), initial=0))
    spans = list(pairwise(ends))
    tracks: dict[int, list[dict[str, Any]]] = {
        LAYERS: [
            _slice(LAYERS, layer.name, start, end, _arguments(layer))
            for layer, (start, end) in zip(report.layers, spans, strict=True)
        ],
        BLOCKS: _merged(BLOCKS, report.layers, spans, lambda layer: layer.attention),
        MODULES: _nested(report.layers, spans),
        STAGES: _merged(STAGES, report.layers, spans, lambda layer: layer.stage),
    }
    slices = [item for track in tracks.values() for item in track]
    title = f"{report.engine} ({report.backend}, {report.precision})"
    return {
        "traceEvents": [
            _about("process_name", 0, name=title),
            *(_about("thread_name", track, name=name) for track, name in TRACKS.items() if tracks[track]),
            *(_about("thread_sort_index", track, sort_index=track) for track in TRACKS if tracks[track]),
            *sorted(slices, key=lambda item: (item["ts"], -item["dur"])),
        ],
        "displayTimeUnit": "ms",
        "otherData": {
            "run": "typical: every layer takes its median, one after another",
            "latency_p50_ms": report.latency.p50_ms,
            **report.environment,
        },
    }


def trtexec_profile(report: ProfileReport) -> list[dict[str, Any]]:
    """The layers as `trtexec --exportProfile` writes them: the number of runs, then a record a layer."""
    total = sum(layer.mean_ms for layer in report.layers)
    return [
        {"count": report.layer_runs},
        *(
            {
                "name": layer.name,
                "timeMs": layer.mean_ms * report.layer_runs,
                "averageMs": layer.mean_ms,
                "medianMs": layer.median_ms,
                "percentage": 100 * layer.mean_ms / total if total else 0.0,
            }
            for layer in report.layers
        ),
    ]


def trtexec_layer_info(report: ProfileReport) -> dict[str, Any]:
    """The layers as `trtexec --exportLayerInfo` writes them, with as much as the backend tells.

    A tensor has no name outside TensorRT's own inspector: it is called after its layer.
    """
    return {"Layers": [_layer_info(layer) for layer in report.layers], "Bindings": list(report.shapes)}


def trtexec_times(report: ProfileReport) -> list[dict[str, float]]:
    """Every run as `trtexec --exportTimes` writes it; without a device, all of it is compute."""
    return [_times(run) for run in report.runs]


def _times(run: Run) -> dict[str, float]:
    to_device, from_device = run.host_to_device_ms or 0.0, run.device_to_host_ms or 0.0
    compute = run.latency_ms if run.compute_ms is None else run.compute_ms
    copied, computed = run.start_ms + to_device, run.start_ms + to_device + compute
    return {
        "startEnqMs": run.start_ms,
        "endEnqMs": run.start_ms + run.latency_ms,  # a run returns when it is done
        "startH2dMs": run.start_ms,
        "endH2dMs": copied,
        "startComputeMs": copied,
        "endComputeMs": computed,
        "startD2hMs": computed,
        "endD2hMs": computed + from_device,
        "h2dMs": to_device,
        "computeMs": compute,
        "d2hMs": from_device,
        "latencyMs": to_device + compute + from_device,
    }


def _layer_info(layer: Layer) -> dict[str, Any]:
    def tensors(shapes: Sequence[Sequence[Dim]], side: str) -> list[dict[str, Any]]:
        return [
            {
                "Name": f"{layer.name}:{side}{place}",
                "Dimensions": [size if isinstance(size, int) else -1 for size in shape],
                "Format/Datatype": layer.precision,
            }
            for place, shape in enumerate(shapes)
        ]

    return {
        "Name": layer.name,
        "LayerType": layer.kind,
        "Inputs": tensors(layer.input_shapes, "in"),
        "Outputs": tensors(layer.output_shapes, "out"),
        "ParameterType": layer.kind,
        "TacticName": layer.kernel,
        "Metadata": NODE_SEPARATOR.join(f"[ONNX Layer: {node}]" for node in layer.nodes),
    }


def _merged(
    track: int, layers: Sequence[Layer], spans: Sequence[tuple[int, int]], key: Callable[[Layer], str]
) -> list[dict[str, Any]]:
    """One slice for layers next to each other that have the same key; none where they have none."""
    return [_slice(track, name, start, end) for name, start, end in _runs(layers, spans, key) if name]


def _nested(layers: Sequence[Layer], spans: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Slices of modules: those of a path's first part, and within them those of its longer and longer starts."""
    deepest = max((layer.module.count(".") + 1 for layer in layers), default=0)
    found = []
    for depth in range(1, deepest + 1):
        found += _merged(MODULES, layers, spans, partial(_start, depth=depth))
    return found


def _start(layer: Layer, depth: int) -> str:
    parts = layer.module.split(".")
    return ".".join(parts[:depth]) if len(parts) >= depth else ""


def _runs(
    layers: Sequence[Layer], spans: Sequence[tuple[int, int]], key: Callable[[Layer], str]
) -> Iterator[tuple[str, int, int]]:
    for name, group in groupby(zip(layers, spans, strict=True), key=lambda pair: key(pair[0])):
        own = [span for _, span in group]
        yield name, own[0][0], own[-1][1]


def _slice(track: int, name: str, start: int, end: int, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
    """A complete event; times come in nanoseconds, and slices that nest in them nest in microseconds."""
    place = {"pid": PROCESS, "tid": track, "ts": start / 1000, "dur": (end - start) / 1000}
    return {"ph": "X", "name": name, "cat": TRACKS[track], **place, "args": arguments or {}}


def _about(what: str, track: int, **arguments: object) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": PROCESS, "tid": track, "args": arguments}


def _arguments(layer: Layer) -> dict[str, Any]:
    """What Perfetto shows of a layer that is clicked; empty things are left out."""
    shapes = {
        "inputs": " ".join(map(format_shape, layer.input_shapes)),
        "outputs": " ".join(map(format_shape, layer.output_shapes)),
    }
    texts = {name: getattr(layer, name) for name in ("kind", "precision", "kernel", "attention", "module")}
    known = {**texts, **shapes, "nodes": list(layer.nodes), "p90_ms": layer.p90_ms, "share": layer.share}
    return {name: value for name, value in known.items() if value not in ("", [])}
