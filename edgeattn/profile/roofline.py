"""What an engine attains against what the machine does: the roofline model (Williams, Waterman, Patterson 2009).

The ceilings are those that `ceilings` measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgeattn.profile.report import Block, Ceiling, Layer, ProfileReport, grouped

__all__ = ["Point", "points"]


@dataclass(frozen=True)
class Point:
    """A layer or a block under the roof: what it attains, and what the machine would at that intensity.

    `kind` is `layer` or `block`, `intensity` FLOPs per byte, `share` what of the roof is attained. `bound` says which
    ceiling is above it: `compute`, `memory`, or `cache` where it is faster than memory could feed it.
    """

    name: str
    kind: str
    precision: str
    intensity: float
    gflops: float
    roof_gflops: float
    share: float
    bound: str

    def to_json(self) -> dict[str, Any]:
        """Plain values under the names of the fields."""
        return asdict(self)


def points(report: ProfileReport) -> tuple[Point, ...]:
    """Every block and layer whose FLOPs, bytes and time are known, where its precision's ceilings were measured."""
    roofs = {ceiling.precision: ceiling for ceiling in report.ceilings}
    own = {layer.name: layer for layer in report.layers}
    precisions = [_precision([own[name] for name in block.layers if name in own]) for block in report.blocks]
    found = [
        *(_point(block, roofs.get(precision)) for block, precision in zip(report.blocks, precisions, strict=True)),
        *(_point(layer, roofs.get(layer.precision)) for layer in report.layers),
    ]
    return tuple(point for point in found if point is not None)


def _precision(layers: Sequence[Layer]) -> str:
    """What most of the time is spent in; empty of nothing."""
    return next((group.name for group in grouped(layers, "precision")), "")


def _point(item: Block | Layer, ceiling: Ceiling | None) -> Point | None:
    hidden = item.ablation_ms if isinstance(item, Block) and item.median_ms is None else None
    spent = item.median_ms or hidden or 0.0
    if ceiling is None or not item.flops or not item.bytes or spent <= 0:
        return None
    intensity, gflops = item.flops / item.bytes, item.flops / spent / 1e6
    fed = intensity * ceiling.gbytes_per_s
    roof = min(fed, ceiling.gflops)
    bound = "compute" if fed >= ceiling.gflops else "memory" if gflops <= fed else "cache"
    kind = "block" if isinstance(item, Block) else "layer"
    return Point(item.name, kind, ceiling.precision, intensity, gflops, roof, gflops / roof, bound)
