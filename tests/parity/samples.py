"""Engines and batches to compare, and a parity report with a bit of everything."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import onnx_ir as ir
from PIL import Image

from edgeattn.backends import backend_named
from edgeattn.backends.base import BuildConfig, Session
from edgeattn.graph import Graph
from edgeattn.parity.findings import (
    ClassParity,
    LatencyPair,
    MapParity,
    MetricParity,
    OutputParity,
    RebuildParity,
    SampleParity,
    ShapeParity,
)  # fmt: skip
from edgeattn.parity.report import ParityReport
from edgeattn.precision.fp16 import lower
from edgeattn.reports.latency import latency_report
from edgeattn.tensors import resolve_profile
from tests.graphs import Array


def opened(graph: Graph, precision: str = "float32", backend: str = "onnxruntime", **asked: Any) -> Session:
    typed = graph if precision == "float32" else lower(graph, precision).graph
    profile = resolve_profile(graph.inputs, **asked)
    module = backend_named(backend)
    return module.load(module.build(typed, BuildConfig(precision=precision, profile=profile)))


def batched(x: Array, size: int, labels: Array | None = None) -> Iterator[tuple[list[str], dict[str, Array], Any]]:
    for start in range(0, len(x), size):
        rows = range(start, min(start + size, len(x)))
        yield [f"{row}.png" for row in rows], {"x": x[rows]}, None if labels is None else [labels[row] for row in rows]


def replaced(graph: Graph, change: Callable[[ir.Graph], None]) -> Graph:
    wrong = graph.copy()
    change(wrong.model.graph)
    return wrong


def sample_report(name: str = "") -> ParityReport:
    """A report that failed; `name` is a part of every name in it."""
    picture = io.BytesIO()
    Image.new("RGB", (16, 16), (90, 120, 200)).save(picture, "PNG")
    png = picture.getvalue()
    latency = latency_report([1_000_000 + 10_000 * run for run in range(50)])
    bins = tuple((-5 + step / 2, -4.5 + step / 2, 3 * step) for step in range(8))
    output = OutputParity(
        name=f"logits{name}", dtype="float32", shape=(1, 10), elements=4000, max_abs=0.01, relative_max=0.02,
        relative_l2=0.01, cosine=0.9999, sqnr_db=40.0, worst_sample=f"3/07{name}.png", worst_index=(4,), non_finite=0,
        own_max=0.01, own_l2=0.01, limit_max=0.02, limit_l2=0.02, scale=5.0, histogram=bins, failures=(f"far{name}",),
    )  # fmt: skip
    sample = SampleParity(
        name=f"3/07{name}.png", relative_l2=0.03, decision=1.0, max_abs=0.5, label=f"cat{name}", reference=f"cat{name}",
        engine=f"dog{name}", pictures={"input": png, "reference": png, "engine": png, "difference": png},
    )  # fmt: skip
    seen = MapParity(
        op="CBAM", name=f"down.0{name}", kind="spatial", module=f"down.0{name}", kl=0.01, topk_overlap=0.98, drift=0.01,
        distance=0.02, limit=0.05, failures=(f"elsewhere{name}",), original_png=png, engine_png=png,
    )  # fmt: skip
    return ParityReport(
        precision="int8",
        compared={"engine": f"{name}model.engine", "reference": f"zoo:{name}", "data": f"dir{name}"},
        samples=400,
        outputs=(output,),
        shapes=(ShapeParity({f"x{name}": (1, 3, 64, 64)}, "real", 0.01, 0.01, (f"far{name}",)),),
        metrics=(MetricParity(f"top1{name}", 0.95, 0.94, 0.98, 400, 0.005, {"drop": (-0.001, 0.021)}),),
        latency=(LatencyPair(1, latency, latency),),
        environment={f"cpu{name}": f"some{name}"},
        reasons=(f"top1{name} drops by 1 %",),
        classes=(ClassParity(0, "iou", 0.7, 0.69), ClassParity(1, "iou", None, None)),
        curves={"reference": ((0.0, 1.0), (1.0, 0.4)), "engine": ((0.0, 1.0), (1.0, 0.3))},
        agreement=((0, 0, 50), (0, 1, 3), (1, 1, 60)),
        worst=(sample,) * 3,
        rebuilds=(RebuildParity(f"rebuild{name}", "5f2a" * 16, 0.01, 0.001, 0.002, {"top1": 0.94}, ()),),
        maps=(seen,) * 2,
    )
